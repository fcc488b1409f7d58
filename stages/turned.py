"""Faces found in a picture turned by quarters of a circle, brought together in the upright one.

A quarter is ``np.rot90``'s: counter-clockwise on the screen, so that a head lying on its left side (its
crown to the right) is upright at quarter 1. Points and pixels are as in ``records``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np

from .records import F32, Detection

_MARGIN = 0.02  # by which a face must be surer in a turned picture


@dataclass(frozen=True, slots=True)
class Found:
    """A face in pixels of the upright picture, and the ``quarter`` at which it was seen."""

    face: Detection
    quarter: int


def quarter_back(points: F32, quarter: int, shape: tuple[int, ...]) -> F32:
    """Points (..., 2) of ``np.rot90(picture, quarter)`` in pixels of the picture, whose shape is given."""
    height, width = shape[:2]
    x, y = points[..., 0], points[..., 1]
    if quarter == 1:
        x, y = width - 1 - y, x
    elif quarter == 2:
        x, y = width - 1 - x, height - 1 - y
    elif quarter == 3:
        x, y = y, height - 1 - x
    return cast(F32, np.stack([x, y], -1).astype(np.float32))


def roll_of(landmarks: F32) -> float:
    """Degrees by which a face (5, 2) is turned clockwise in its plane, (−180, 180]; 0 is upright."""
    eyes, mouth = landmarks[:2].astype(np.float64), landmarks[3:].astype(np.float64)
    # Turning the head to the side shortens one of the two directions; their sum keeps the better one.
    across, down = eyes[1] - eyes[0] + mouth[1] - mouth[0], mouth.sum(0) - eyes.sum(0)
    direction = across + np.array([down[1], -down[0]])
    return float(np.degrees(np.arctan2(direction[1], direction[0])))


def sort_out(found: Iterable[Found]) -> list[Found]:
    """Each face once: of those that overlap the surest, which is nearest upright where it was seen."""
    kept: list[Found] = []
    for f in sorted(found, key=lambda f: (-f.face.score + (_MARGIN if f.quarter else 0), f.quarter)):
        # One network's answers at one quarter were told apart by itself.
        if all(k.quarter == f.quarter or overlap(k.face.box, f.face.box) < 0.3 for k in kept):
            kept.append(f)
    return kept


def overlap(a: F32, b: F32) -> float:
    """Intersection over union of two XYXY boxes (4,)."""
    wh = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    common = float(wh[0] * wh[1])
    total = float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])) - common
    return common / total if total > 0 else 0.0
