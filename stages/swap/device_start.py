"""``start.SourceStart`` for batches that are on a GPU: the same in torch, the same to rounding.

OpenCV finds a pixel to the nearest 32nd of one, torch exactly; else both do what is said there.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray
from torch import Tensor

from ..records import F32
from .constants import constant
from .device_colour import match_colour
from .device_features import feature_points, part_sum
from .filters import dilate, filtered, gaussian, linear_matrix
from .manifest import ParserEntry
from .start import ANCHORS, EXPRESSIVE, GRID, STIFFNESS, SourceStart

_first = threading.Lock()


class DeviceStart:
    """The views of one source, or of many (N), on a device.

    ``images`` (N, 2, 3, S, S) in [0, 255] are each source's picture and its mirror image; ``maps``
    (N, 2, M, S, S) its face, its parts and those that move; ``points`` (N, 2, P, 2), ``found`` (N, 2, P).
    """

    def __init__(self, starts: Sequence[SourceStart], device: torch.device) -> None:
        self.starts, self.parser = list(starts), starts[0].parser
        views = [(s.view, s.mirrored or s.view) for s in starts]

        def stacked(name: str) -> Tensor:
            return torch.tensor(np.array([[getattr(v, name) for v in pair] for pair in views]), device=device)

        self.images = stacked("image").permute(0, 1, 4, 2, 3).contiguous()
        parses = stacked("parse")
        maps = [torch.cat([_parts(p, self.parser), _moving(p, self.parser)], 1) for p in parses]
        self.maps = torch.cat([stacked("probability")[:, :, None], torch.stack(maps)], 2)
        self.points, self.found = stacked("points"), stacked("found")
        with _first:  # torch loads a GPU's linear algebra when it is first asked for; two at once would fail
            eye = torch.eye(2, dtype=torch.float64, device=device)
            torch.linalg.solve(eye, eye)

    def shares(self, landmarks: F32, of: NDArray[np.intp]) -> F32:
        """(B, 3): how much of the picture, how much of its mirror image, and how well they fit."""
        rows = []
        for points, index in zip(landmarks, of, strict=True):
            (first, second), fit = self.starts[index].shares(points)
            rows.append((first, second, fit))
        return np.array(rows, np.float32)

    def compose(
        self,
        targets: Tensor,
        landmarks: Tensor,
        masks: Tensor,
        parses: Tensor,
        of: Tensor,
        shares: Tensor,
        keep: float,
    ) -> tuple[Tensor, Tensor]:
        """As ``SourceStart.compose``: pictures (B, 3, S, S) in [0, 255], and what was kept (B, S, S).

        Args:
            targets: (B, 3, S, S) in [0, 255]; ``landmarks`` (B, 5, 2), ``masks`` (B, S, S).
            parses: (B, K, p, p) class probabilities.
            of: (B,), which source each gets; ``shares`` as from the method of that name.
            keep: how much of the target to keep in openings and where the parses disagree.
        """
        size = targets.shape[-1]
        if parses.shape[-1] != size:
            parses = F.interpolate(parses, (size, size), mode="bilinear", align_corners=False)
        points, found = feature_points(parses, landmarks, self.parser)
        both = found[:, None] & self.found[of]  # (B, 2, P)
        grid = bend_grid(self.points[of], points[:, None].expand(-1, 2, -1, -1), both, size)
        images, maps = self.images[of].flatten(0, 1), self.maps[of].flatten(0, 1)
        face = F.grid_sample(images, grid, "bicubic", "border", align_corners=False)
        seen = F.grid_sample(maps, grid, "bilinear", "zeros", align_corners=False)
        weight = shares[:, :2, None, None, None]
        face = (face.view(len(of), 2, *face.shape[1:]) * weight).sum(1).clamp(0, 255)
        seen = (seen.view(len(of), 2, *seen.shape[1:]) * weight).sum(1)
        inside = seen[:, 0] * masks
        lit = match_colour(face, targets, inside, 1.0)
        differs = _disagreement(seen[:, 1:], parses, self.parser)
        kept = (keep * differs.maximum(_openings(parses, self.parser))).clamp(0, 1)
        alpha = (inside * shares[:, 2, None, None] * (1 - kept))[:, None]
        return (lit * alpha + targets * (1 - alpha)).clamp(0, 255), kept


def bend_grid(sources: Tensor, targets: Tensor, valid: Tensor, size: int) -> Tensor:
    """As ``start.bend_map``, for ``grid_sample``: (B, V, P, 2) twice, (B, V, P) → (B · V, S, S, 2)."""
    sources, targets, valid = (x.flatten(0, 1) for x in (sources, targets, valid))
    anchors = constant((ANCHORS * (size - 1)).tolist(), targets.double()).expand(len(targets), -1, -1)
    points = torch.cat([targets.double(), anchors], 1)
    values = torch.cat([sources.double() - targets.double(), torch.zeros_like(anchors)], 1)
    valid = torch.cat([valid, torch.ones_like(anchors[..., 0], dtype=torch.bool)], 1)
    ticks = torch.linspace(0, size - 1, size // GRID + 1, dtype=torch.float64, device=targets.device)
    at = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1).view(-1, 2)
    coarse = thin_plate(points / size, values, valid, at / size).float()
    coarse = coarse.view(len(points), len(ticks), len(ticks), 2).permute(0, 3, 1, 2)
    moved = filtered(
        coarse,
        ("bend", len(ticks), size),
        lambda: linear_matrix(size // GRID + 1, size, corners=True),
        lambda: linear_matrix(size // GRID + 1, size, corners=True),
    )
    pixels = torch.arange(size, dtype=moved.dtype, device=moved.device)
    x, y = moved[:, 0] + pixels, moved[:, 1] + pixels[:, None]
    return (2 * torch.stack([x, y], -1) + 1) / size - 1


def thin_plate(points: Tensor, values: Tensor, valid: Tensor, at: Tensor) -> Tensor:
    """As ``start.thin_plate``: (B, N, 2), (B, N, D), (B, N) bool, (M, 2) → (B, M, D), all float64.

    A point that isn't valid has a row of its own in the system, so that it bears no weight.
    """
    n = points.shape[1]
    pair = valid[:, :, None] & valid[:, None]
    eye = torch.eye(n, dtype=points.dtype, device=points.device)
    square = torch.where(pair, _kernel(points, points), torch.zeros_like(eye)) + eye * (
        STIFFNESS + (~valid[:, None]).to(points)
    )
    affine = torch.cat([torch.ones_like(points[..., :1]), points], 2) * valid[..., None]
    corner = torch.zeros_like(affine[:, :3, :3])
    system = torch.cat([torch.cat([square, affine], 2), torch.cat([affine.transpose(1, 2), corner], 2)], 1)
    right = torch.cat([values * valid[..., None], torch.zeros_like(values[:, :3])], 1)
    solved = torch.linalg.solve(system, right)
    plane = torch.cat([torch.ones_like(at[:, :1]), at], 1)
    bent: Tensor = (_kernel(at[None], points) * valid[:, None]) @ solved[:, :n] + plane @ solved[:, n:]
    return bent


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    square = ((a[:, :, None] - b[:, None]) ** 2).sum(3)
    return square * square.clamp(min=1e-12).log() / 2


def _parts(parse: Tensor, parser: ParserEntry) -> Tensor:
    """As ``features.merge_parts``: (B, K, S, S) → (B, G, S, S)."""
    groups = [parser.indices(part) for part in parser.parts]
    if not groups:
        return parse
    grouped = {i for group in groups for i in group}
    groups += [[i] for i in range(len(parser.classes)) if i not in grouped]
    return torch.stack([part_sum(parse, group) for group in groups if group], 1)


def _moving(parse: Tensor, parser: ParserEntry) -> Tensor:
    """What moves with expression, (B, 1, S, S)."""
    return part_sum(parse, sorted({i for part in EXPRESSIVE for i in parser.indices(part)}))[:, None]


def _disagreement(ours: Tensor, parses: Tensor, parser: ParserEntry) -> Tensor:
    """As ``start.disagreement``; ``ours`` (B, G + 1, S, S) are parts and what moves."""
    size = parses.shape[-1]
    moving = ours[:, -1:].maximum(_moving(parses, parser)).clamp(0, 1)
    difference = (ours[:, :-1] - _parts(parses, parser)).abs().sum(1, keepdim=True) / 2 * moving
    return gaussian(dilate(gaussian(difference, 1.5 * size / 256), 7), 3.0 * size / 256)[:, 0]


def _openings(parses: Tensor, parser: ParserEntry) -> Tensor:
    """As ``start.openings``: (B, K, S, S) → (B, S, S)."""
    size = parses.shape[-1]
    indices = [i for part in ("eyes", "mouth") for i in parser.indices(part)]
    grown = dilate(gaussian(part_sum(parses, indices).clamp(0, 1)[:, None], 1.0 * size / 256), 3)
    return (gaussian(grown, 1.5 * size / 256)[:, 0] * 1.25).clamp(0, 1)
