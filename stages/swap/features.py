"""Feature points from a parse: where the eyes, brows and lips begin and end.

Five landmarks say where a mouth is, not how far it is open. A face parser knows; its class maps give
the extents of each part, as quantiles of probability mass, which move smoothly from frame to frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ..records import F32
from .manifest import ParserEntry

LOW, HIGH = 0.06, 0.94  # quantiles taken as the ends of a part
MIN_MASS = 12.0  # pixels of a 256 crop below which a part counts as not seen
EXTENTS = 4  # left, right, top, bottom
LANDMARKS = 5
RIM = 4.0  # pixels of a 256 crop over which a window fades out


class Place(NamedTuple):
    """Where to look for a part: a window about a mean of landmarks, raised, all in eye distances."""

    parts: tuple[str, ...]
    anchor: tuple[float, float, float, float, float]
    raised: float
    half_width: float
    half_height: float


PLACES = (
    Place(("eyes",), (1, 0, 0, 0, 0), 0.0, 0.45, 0.3),
    Place(("eyes",), (0, 1, 0, 0, 0), 0.0, 0.45, 0.3),
    Place(("brows",), (1, 0, 0, 0, 0), 0.3, 0.48, 0.35),
    Place(("brows",), (0, 1, 0, 0, 0), 0.3, 0.48, 0.35),
    Place(("lips", "mouth"), (0, 0, 0, 0.5, 0.5), 0.0, 0.8, 0.7),
    Place(("nose",), (0, 0, 1, 0, 0), 0.3, 0.5, 0.75),
)
UNSURE = LANDMARKS + EXTENTS * (len(PLACES) - 1) + 2  # where a nose begins is anyone's guess


def _quantiles(marginal: F32, shares: Sequence[float]) -> list[float]:
    cumulative = np.concatenate([[0.0], np.cumsum(marginal, dtype=np.float64)])
    edges = np.arange(len(cumulative)) - 0.5
    return [float(np.interp(share * cumulative[-1], cumulative, edges)) for share in shares]


def _extents(mass: F32) -> tuple[F32, bool]:
    """Left, right, top and bottom points (4, 2) of a probability map (S, S), and if there is enough."""
    total = float(mass.sum())
    if total < MIN_MASS * (mass.shape[0] / 256) ** 2:
        return np.zeros((EXTENTS, 2), np.float32), False
    columns, rows = mass.sum(0), mass.sum(1)
    x0, xl, xr, x1 = _quantiles(columns, (LOW, 3 * LOW, 1 - 3 * LOW, HIGH))
    y0, y1 = _quantiles(rows, (LOW, HIGH))
    ticks = np.arange(mass.shape[0])

    def mean_y(keep: NDArray[np.bool_]) -> float:
        part = mass[:, keep].sum(1)
        return float((part * ticks).sum() / max(float(part.sum()), 1e-6))

    middle = float((columns * ticks).sum() / total)
    points = [(x0, mean_y(ticks <= xl + 1)), (x1, mean_y(ticks >= xr - 1)), (middle, y0), (middle, y1)]
    return np.array(points, np.float32), True


def _window(size: int, centre: F32, half_width: float, half_height: float) -> F32:
    """1 inside a box with a soft rim of 4 pixels of a 256 crop, (S, S)."""
    ticks, rim = np.arange(size, dtype=np.float32), RIM * size / 256
    wx = np.clip((half_width - np.abs(ticks - centre[0])) / rim, 0, 1)
    wy = np.clip((half_height - np.abs(ticks - centre[1])) / rim, 0, 1)
    return cast(F32, np.multiply.outer(wy, wx).astype(np.float32))


def part_mass(parse: F32, parser: ParserEntry, *parts: str) -> F32:
    """Probability of any of these parts (``ParserEntry.parts``), (S, S) from (K, S, S); 0 where unknown."""
    indices = [i for part in parts for i in parser.indices(part)]
    return cast(F32, sum((parse[i] for i in indices), np.zeros(parse.shape[1:], np.float32)))


def merge_parts(parse: F32, parser: ParserEntry) -> F32:
    """A finer parser's classes summed to the parts the stages know: (K, S, S) → (G, S, S), G ≤ K.

    Classes that belong to no part stay as they are. A parser without ``parts`` is returned itself.
    """
    groups = [parser.indices(part) for part in parser.parts]
    if not groups:
        return parse
    grouped = {i for group in groups for i in group}
    groups += [[i] for i in range(len(parser.classes)) if i not in grouped]
    return np.stack([parse[group].sum(0) for group in groups if group])


def feature_points(parse: F32, landmarks: F32, parser: ParserEntry) -> tuple[F32, NDArray[np.bool_]]:
    """Landmarks, then the extents of eyes, brows, mouth and nose: points (P, 2), and which were seen (P,).

    Args:
        parse: class probabilities (K, S, S) of a crop.
        landmarks: (5, 2) in its pixels.
        parser: names the K classes and groups them; parts it does not know are not seen.
    """
    size = parse.shape[-1]
    gap = max(float(np.linalg.norm(landmarks[1] - landmarks[0])), 1.0)
    points, found = [landmarks.astype(np.float32)], [np.ones(LANDMARKS, bool)]
    for place in PLACES:
        centre = np.array(place.anchor, np.float32) @ landmarks - np.array(
            [0, place.raised * gap], np.float32
        )
        window = _window(size, centre, place.half_width * gap, place.half_height * gap)
        extents, seen = _extents(part_mass(parse, parser, *place.parts) * window)
        points.append(extents)
        found.append(np.full(EXTENTS, seen))
    every, seen_at_all = np.concatenate(points), np.concatenate(found)
    seen_at_all[UNSURE] = False  # a nose's wings and tip are sure
    return every, seen_at_all
