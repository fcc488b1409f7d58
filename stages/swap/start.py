"""Where the loop starts: the source's own face, bent to the target's landmarks and lit like it.

The paper noises the target to level k and lets guidance find the source's identity from there. On few
steps, and with an identity network small enough for a laptop, that goes only part of the way. A swap
knows more than an embedding: it has the source's picture. Noised to the same level, its large shapes
survive and its pixels don't; the sampler then settles pose, expression, light and seam. Off in preset
``paper`` (``start = "target"``); what each start measures is in ``docs/results.md``.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ..colour_match import match_colour
from ..records import F32, F64, U8, SourceFace
from ..spread import spread
from .features import feature_points, merge_parts, part_mass
from .manifest import ParserEntry

ANCHORS = np.array([[x, y] for y in (0.0, 0.5, 1.0) for x in (0.0, 0.5, 1.0) if (x, y) != (0.5, 0.5)])
MISFIT = (0.02, 0.26)  # in eye distances
MIRROR = (0.015, 0.06)  # by how much less the mirrored source misfits: from none to all of it
STIFFNESS = 0.008  # lets the spline miss a noisy point rather than fold
EXPRESSIVE = ("eyes", "lips", "mouth")
GRID = 8  # pixels between the points at which the bending is evaluated


def _kernel(a: F64, b: F64) -> F64:
    square = ((a[:, None] - b[None]) ** 2).sum(2)
    return cast(F64, square * np.log(np.maximum(square, 1e-12)) / 2)


def thin_plate(points: F64, values: F64, at: F64) -> F64:
    """Thin-plate spline near ``values`` (N, D) at ``points`` (N, 2), evaluated at ``at`` (M, 2)."""
    n = len(points)
    system = np.zeros((n + 3, n + 3))
    system[:n, :n] = _kernel(points, points) + STIFFNESS * np.eye(n)
    affine = np.hstack([np.ones((n, 1)), points])
    system[:n, n:], system[n:, :n] = affine, affine.T
    solved = np.linalg.solve(system, np.vstack([values, np.zeros((3, values.shape[1]))]))
    return cast(F64, _kernel(at, points) @ solved[:n] + np.hstack([np.ones((len(at), 1)), at]) @ solved[n:])


def bend_map(source: F32, target: F32, size: int) -> tuple[F32, F32]:
    """Backward map for ``cv2.remap``: where in the source's crop each target pixel is found.

    ``source`` and ``target`` are corresponding points (P, 2) in crop pixels. The border stays put.
    """
    anchors = ANCHORS * (size - 1)
    points = np.vstack([target.astype(np.float64), anchors])
    values = np.vstack([source.astype(np.float64), anchors]) - points
    ticks = np.linspace(0, size - 1, size // GRID + 1)
    at = np.stack(np.meshgrid(ticks, ticks), 2).reshape(-1, 2)
    # In units of the crop, so that the kernel's logarithm is well conditioned.
    coarse = thin_plate(points / size, values, at / size).astype(np.float32)
    coarse = coarse.reshape(len(ticks), len(ticks), 2)
    where = np.linspace(0, len(ticks) - 1, size, dtype=np.float32)
    gx, gy = np.meshgrid(where, where)
    moved = cv2.remap(coarse, gx, gy, cv2.INTER_LINEAR)
    xs, ys = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    return xs + moved[..., 0], ys + moved[..., 1]


def disagreement(ours: F32, theirs: F32, parser: ParserEntry) -> F32:
    """Where two parses (K, S, S) see different parts of a face, (S, S) in [0, 1], grown a little.

    Total variation between the two, counted where either sees what moves with expression: an open
    eye on one and a lid on the other, lips on one and teeth on the other.
    """
    size = ours.shape[-1]
    moving = sorted({i for part in EXPRESSIVE for i in parser.indices(part)})
    # By parts: a finer parser that takes an upper lip for a lower one has seen no other face.
    difference = np.abs(merge_parts(ours, parser) - merge_parts(theirs, parser)).sum(0) / 2
    difference *= np.clip(np.maximum(ours[moving].sum(0), theirs[moving].sum(0)), 0, 1)
    grown = cv2.dilate(cv2.GaussianBlur(difference, (0, 0), 1.5 * size / 256), np.ones((7, 7)))
    return cast(F32, cv2.GaussianBlur(grown, (0, 0), 3.0 * size / 256))


def openings(parse: F32, parser: ParserEntry) -> F32:
    """Where a parse (K, S, S) sees an eyeball, teeth or tongue, (S, S) in [0, 1], grown a little.

    What shows there is gaze and speech, which are the target's; the identity is in what surrounds it.
    """
    size = parse.shape[-1]
    seen = np.clip(part_mass(parse, parser, "eyes", "mouth"), 0, 1)
    grown = cv2.dilate(cv2.GaussianBlur(seen, (0, 0), 1.0 * size / 256), np.ones((3, 3)))
    return cast(F32, np.clip(cv2.GaussianBlur(grown, (0, 0), 1.5 * size / 256) * 1.25, 0, 1))


def misfit(source: F32, target: F32) -> float:
    """How far landmarks (5, 2) of two crops are from each other's shape, in eye distances of the source.

    Both are aligned to one template, so what is left between them is mostly head turn.
    """
    gap = max(float(np.linalg.norm(source[1] - source[0])), 1.0)
    residual = (target - target.mean(0)) - (source - source.mean(0))
    return float(np.sqrt((residual**2).sum(1).mean())) / gap


def _ramp(value: float, low: float, high: float) -> float:
    """0 below ``low``, 1 above ``high``, smooth between."""
    x = float(np.clip((value - low) / (high - low), 0, 1))
    return x * x * (3 - 2 * x)


def pose_fit(source: F32, target: F32) -> float:
    """How far the source's view serves the target's, from landmarks (5, 2) in crop pixels: 1 to 0.

    A frontal photograph bent onto a profile melts; from ``MISFIT`` on the start goes over to the target
    itself.
    """
    return 1 - _ramp(misfit(source, target), *MISFIT)


class _View:
    """The source's picture, or its mirror image, and what is known of it."""

    def __init__(self, image: F32, parse: F32, landmarks: F32, parser: ParserEntry) -> None:
        self.image, self.parser = image, parser
        self.parse = _at_size(parse, image.shape[0])
        self.points, self.found = feature_points(self.parse, landmarks, parser)
        face = self.parse[[parser.classes.index(n) for n in parser.face]].sum(0)
        # Hair over its forehead stays out.
        self.probability = cv2.GaussianBlur(cv2.erode(face, np.ones((5, 5))), (0, 0), 2.0)

    def mirrored(self) -> _View:
        """The same from the other side: right and left change names."""
        sides = {"right_": "left_", "left_": "right_"}

        def other(name: str) -> str:
            side = next((s for s in sides if name.startswith(s)), "")
            swapped = sides.get(side, "") + name.removeprefix(side)
            return swapped if swapped in self.parser.classes else name

        order = [self.parser.classes.index(other(name)) for name in self.parser.classes]
        landmarks = self.points[[1, 0, 2, 4, 3]].copy()
        landmarks[:, 0] = self.image.shape[1] - 1 - landmarks[:, 0]
        image, parse = self.image[:, ::-1], self.parse[order][:, :, ::-1]
        return _View(np.ascontiguousarray(image), np.ascontiguousarray(parse), landmarks, self.parser)

    def bent(self, points: F32, found: NDArray[np.bool_]) -> tuple[F32, F32, F32]:
        """Bent to a target's features: picture (S, S, 3), its face (S, S), its parse (K, S, S)."""
        both = found & self.found
        mx, my = bend_map(self.points[both], points[both], self.image.shape[0])
        face = cv2.remap(self.image, mx, my, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        inside = cv2.remap(self.probability, mx, my, cv2.INTER_LINEAR)
        parse = np.stack([cv2.remap(p, mx, my, cv2.INTER_LINEAR) for p in self.parse])
        return cast(F32, face), cast(F32, inside), cast(F32, parse.astype(np.float32))


def _at_size(parse: F32, size: int) -> F32:
    if parse.shape[-1] == size:
        return parse
    return np.stack([cv2.resize(p, (size, size), interpolation=cv2.INTER_LINEAR) for p in parse])


class SourceStart:
    """Composites the source into target crops.

    A face seen from the left serves a target seen from the right badly: nose and far cheek point the wrong
    way, and the start would go over to the target. Its mirror image shows nearly the same person (identity
    networks give both nearly one embedding) from the right side, so where that fits clearly better, it is
    taken; in between, along a turning head, one goes over into the other.

    Args:
        source: the face to put in.
        parse: its class probabilities (K, S, S).
        parser: the pack's entry, which names the classes.
        mirror: whether its mirror image may serve.
    """

    def __init__(self, source: SourceFace, parse: F32, parser: ParserEntry, *, mirror: bool = True) -> None:
        self.parser = parser
        self.view = _View(source.image.astype(np.float32), parse, source.landmarks, parser)
        self.mirrored = self.view.mirrored() if mirror else None

    def compose(self, targets: U8, landmarks: F32, masks: F32, parses: F32, keep: float) -> tuple[F32, F32]:
        """The start pictures (B, S, S, 3) float32 RGB in [0, 255], and what of the target was kept.

        Args:
            targets: crops (B, S, S, 3) uint8 RGB; ``landmarks`` (B, 5, 2) in their pixels;
                ``masks`` (B, S, S) their faces; ``parses`` (B, K, h, w) their class probabilities.
            keep: how much of the target's own picture to keep in openings and where the two parses
                disagree (an open mouth, a closed eye), as a factor.

        Returns:
            The pictures, and (B, S, S) float32 in [0, 1], 1 where the target's own was kept.
        """
        rows = spread(partial(self.compose_one, keep=keep), targets, landmarks, masks, parses)
        pictures, kept = zip(*rows, strict=True)
        return np.stack(pictures), np.stack(kept)

    def shares(self, landmarks: F32) -> tuple[tuple[float, float], float]:
        """How much of the picture and of its mirror image to take, for a target's landmarks (5, 2), and how
        well the two then serve (``pose_fit``)."""
        if self.mirrored is None:
            return (1.0, 0.0), pose_fit(self.view.points[:5], landmarks)
        better = misfit(self.view.points[:5], landmarks) - misfit(self.mirrored.points[:5], landmarks)
        share = _ramp(better, *MIRROR)
        fits = [pose_fit(view.points[:5], landmarks) for view in (self.view, self.mirrored)]
        return (1 - share, share), (1 - share) * fits[0] + share * fits[1]

    def compose_one(self, target: U8, landmarks: F32, mask: F32, parse: F32, keep: float) -> tuple[F32, F32]:
        """As ``compose``, of one crop."""
        size = target.shape[0]
        own_parse = _at_size(parse, size)
        points, found = feature_points(own_parse, landmarks, self.parser)
        shares, fit = self.shares(landmarks)
        views = [(v, w) for v, w in zip((self.view, self.mirrored), shares, strict=True) if v and w > 0]
        parts = [[w * part for part in view.bent(points, found)] for view, w in views]
        face, inside, bent = (cast(F32, sum(part)) for part in zip(*parts, strict=True))
        inside = inside * mask
        own = target.astype(np.float32)
        lit = match_colour(np.clip(face, 0, 255)[None], target[None], inside[None], 1.0)[0]
        differs = disagreement(bent, own_parse, self.parser)
        kept = np.clip(keep * np.maximum(differs, openings(own_parse, self.parser)), 0, 1)
        alpha = inside * fit * (1 - kept)
        picture = lit * alpha[..., None] + own * (1 - alpha[..., None])
        return np.clip(picture, 0, 255).astype(np.float32), kept.astype(np.float32)
