"""Thin dark lines in front of a face: rims of glasses, strands of hair, cables.

A parser sees them at a quarter of the crop's size and loses the finest. As lines they are plain: darker than
both sides (a closing less the picture, of lightness), and long (the most that an opening by a straight piece
of any direction leaves). Faces have such lines too: between the lips, along lids and brows. Those are short,
or lie where the parser sees features; so a line counts if it is long, and most of it elsewhere.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import cv2
import numpy as np

from .records import F32, U8

# In pixels of a 256 crop: the widest line, the straight piece that must fit into it, and how far the whole
# of it must reach.
WIDTH, PIECE, LONG = 5, 17, 40
DIRECTIONS = 16
DARKER = (3.0, 5.0)  # CIE L by which a line inside the face begins to count, and counts fully
DARKER_OUTSIDE = (4.0, 6.0)  # the same at the face's outline and beyond
GRAIN = 2.0  # times the median contrast is what grain may show
ON_FEATURES = 0.6  # the share of a line that may lie on the face's own features
BESIDE = 3  # pixels that count as on them


def thin_lines(image: U8, features: F32, inside: F32) -> F32:
    """How surely each pixel of a crop belongs to a thin dark line in front of the face.

    Args:
        image: (S, S, 3) uint8 RGB.
        features: (S, S), the probability of eyes, brows, nose, lips or mouth.
        inside: (S, S) in [0, 1], 1 well inside the face, 0 at its outline and beyond.

    Returns:
        (S, S) float32 in [0, 1].
    """
    unit = len(image) / 256
    lightness = cast(U8, cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[..., 0])  # 0 to 255 for L of 0 to 100
    across = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_odd(WIDTH * unit),) * 2)
    dark = cv2.morphologyEx(lightness, cv2.MORPH_BLACKHAT, across)
    along = np.zeros_like(dark)
    for piece in _pieces(_odd(PIECE * unit), round(DIRECTIONS * max(unit, 1))):
        np.maximum(along, cv2.morphologyEx(dark, cv2.MORPH_OPEN, piece), out=along)
    contrast = along.astype(np.float32) / np.float32(2.55)
    if (within := contrast[inside > 0.5]).size:  # grain has lines everywhere, if faint ones
        contrast -= np.float32(GRAIN * np.median(within))
    counts = _ramp(contrast, DARKER) * inside
    sure = np.maximum(counts, _ramp(contrast, DARKER_OUTSIDE))
    return cast(F32, sure * _lines(contrast, features, unit))


def _lines(contrast: F32, features: F32, unit: float) -> F32:
    """1 where the pixel's line is long enough, and not the face's own."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        (contrast > DARKER[0]).astype(np.uint8), connectivity=8
    )
    own = cv2.dilate(features, np.ones((2 * round(BESIDE * unit) + 1,) * 2)) > 0.3
    on_features = np.bincount(labels.ravel(), own.ravel(), count) / stats[:, cv2.CC_STAT_AREA]
    reach = np.maximum(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    kept = (reach >= LONG * unit) & (on_features <= ON_FEATURES)
    kept[0] = False  # what is no line
    return cast(F32, kept.astype(np.float32)[labels])


def _ramp(x: F32, between: tuple[float, float]) -> F32:
    low, high = between
    return cast(F32, np.clip((x - np.float32(low)) / np.float32(high - low), 0, 1))


def _odd(length: float) -> int:
    return max(3, int(length) | 1)


@lru_cache(maxsize=4)
def _pieces(length: int, directions: int) -> list[U8]:
    """Straight pieces of this length in all directions, as kernels."""
    middle = (length - 1) / 2
    pieces: list[U8] = []
    for turn in range(directions):
        angle = np.pi * turn / directions
        x, y = (round(middle * float(f(angle))) for f in (np.cos, np.sin))
        piece = np.zeros((length, length), np.uint8)
        cv2.line(piece, (round(middle) - x, round(middle) - y), (round(middle) + x, round(middle) + y), 1, 1)
        if not any(np.array_equal(piece, other) for other in pieces):
            pieces.append(piece)
    return pieces
