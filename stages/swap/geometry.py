"""Soft landmarks: where a parser sees eyes, brows, nose and mouth, differentiably.

A part's class probabilities, inside a window hung on the target's five landmarks, are taken as a
distribution: its mass (how open an eye or a mouth is), centroid and spread (the square root of its
second moments) move smoothly with the picture. All in units of the target's eye distance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .constants import constant
from .manifest import ParserEntry

FLOOR = 0.004  # squared eye distances (16 pixels of a 256 crop) below which a part counts as not seen
NOMINAL_SPREAD = 0.1  # of a part that isn't seen
RIM = 0.06  # over which a window fades out


class Part(NamedTuple):
    """A part's classes, its window's centre (a weight for each landmark, then a shift) and half sides.

    ``spread`` and ``opening`` say how much its extent and its mass matter beside its place: width of a
    nose or thickness of a brow are the source's; how far lids and lips are apart is the target's.
    """

    name: str
    classes: tuple[str, ...]
    anchor: tuple[float, float, float, float, float]
    shift: float
    half_width: float
    half_height: float
    spread: float
    opening: float


PARTS = (
    Part("right_eye", ("eyes",), (1, 0, 0, 0, 0), 0.0, 0.45, 0.3, 1.0, 1.0),
    Part("left_eye", ("eyes",), (0, 1, 0, 0, 0), 0.0, 0.45, 0.3, 1.0, 1.0),
    Part("right_brow", ("brows",), (1, 0, 0, 0, 0), -0.3, 0.48, 0.35, 0.25, 0.0),
    Part("left_brow", ("brows",), (0, 1, 0, 0, 0), -0.3, 0.48, 0.35, 0.25, 0.0),
    Part("mouth", ("lips", "mouth"), (0, 0, 0, 0.5, 0.5), 0.0, 0.8, 0.7, 1.0, 0.0),
    Part("inner_mouth", ("mouth",), (0, 0, 0, 0.5, 0.5), 0.0, 0.8, 0.7, 1.0, 1.0),
    Part("nose", ("nose",), (0, 0, 1, 0, 0), -0.3, 0.5, 0.75, 0.25, 0.0),
)


class SoftLandmarks(NamedTuple):
    """Per picture and part: ``mass`` (B, P), ``centre`` (B, P, 2) as (x, y), ``spread`` (B, P, 2)."""

    mass: Tensor
    centre: Tensor
    spread: Tensor


class Windows:
    """The windows of all parts around the target's landmarks.

    Args:
        landmarks: (B, 5, 2) in pixels of a crop of side ``crop_size``.
        size: side of the parses they are laid over.
    """

    def __init__(self, landmarks: Tensor, crop_size: int, size: int) -> None:
        gap = (landmarks[:, 1] - landmarks[:, 0]).norm(dim=1).clamp(min=1)[:, None]  # (B, 1)
        # Parse pixel i is centred at (i + ½) · crop/size − ½ in the crop.
        ticks = torch.arange(size, dtype=landmarks.dtype, device=landmarks.device)
        ticks = (ticks + 0.5) * (crop_size / size) - 0.5
        self.ticks = ticks / gap  # (B, size)
        self.cell = ((crop_size / size) / gap) ** 2  # (B, 1), area of a parse pixel
        anchors = constant([p.anchor for p in PARTS], landmarks)  # (P, 5)
        shift = constant([[0.0, p.shift] for p in PARTS], landmarks)
        self.centre = torch.einsum("pl,blc->bpc", anchors, landmarks) / gap[..., None] + shift  # (B, P, 2)
        sides = constant([[p.half_width, p.half_height] for p in PARTS], landmarks)
        distance = (self.ticks[:, None, None] - self.centre[..., None]).abs()  # (B, P, 2, size)
        self.inside = ((sides[..., None] - distance) / RIM).clamp(0, 1)

    def measure(
        self, parse: Tensor, parser: ParserEntry, prior: SoftLandmarks | None = None
    ) -> SoftLandmarks:
        """Soft landmarks of a parse (B, K, size, size).

        What isn't there has no place: with falling mass, centre and spread go over to the ``prior``'s,
        so that a part that closes pulls nothing about. Without one they are those of the mass itself.
        """
        classes = [[i for c in p.classes for i in parser.indices(c)] for p in PARTS]
        among = constant([[float(k in found) for k in range(parse.shape[1])] for found in classes], parse)
        maps = torch.einsum("pk,bkhw->bphw", among, parse)
        across, down = self.inside[:, :, 0], self.inside[:, :, 1]
        columns = torch.einsum("bphw,bph->bpw", maps, down) * across
        rows = torch.einsum("bphw,bpw->bph", maps, across) * down
        marginals = torch.stack([columns, rows], 2) * self.cell[..., None, None]  # (B, P, 2, size)
        mass = marginals[:, :, 0].sum(-1)
        floor = FLOOR
        if prior is None:
            floor = 1e-6  # of nothing at all, the window's middle
            flat = torch.full_like(self.centre, NOMINAL_SPREAD)
            prior = SoftLandmarks(torch.zeros_like(mass), self.centre, flat)
        total = (mass + floor)[..., None]
        ticks = self.ticks[:, None, None]
        centre = ((marginals * ticks).sum(-1) + floor * prior.centre) / total
        square = (marginals * (ticks - centre[..., None]) ** 2).sum(-1) + floor * prior.spread**2
        return SoftLandmarks(mass, centre, (square / total).sqrt())
