"""Which part of an aligned crop is a mirror image of the rest: what lay outside the photo it was cut from.

Crops on a template reach beyond their photo, and the usual filling is reflection: hair grows downwards
from the upper edge, shoulders meet their doubles. A model should not learn that. Nothing tells where the
photo ended, so the line is looked for, along which the crop equals its own mirror image and beside which
it does not.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from .shards import SIDE

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

_COARSE = 64  # side of the picture for the first look
_MAX_DEPTH = 0.36  # of the side: a fold's two halves must both be seen
_MIN_DEPTH = 6.0  # px of the crop; thinner strips do no harm
_ANGLES = np.arange(-16, 17, 2.0)  # degrees that the photo may be turned
_CONTRAST = 3.0  # grey levels by which the strip must differ from a mirror image that is off
_SHARPNESS = 0.45  # how much smaller the difference must be on the line than beside it


def outside_of_crop(crop: U8) -> NDArray[np.bool_] | None:
    """The reflected border of a crop (256, 256, 3) uint8 RGB as a mask (256, 256); None without one."""
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    outside = np.zeros((SIDE, SIDE), bool)
    for turns in range(4):  # each side in turn becomes the upper one
        found = _fold(np.ascontiguousarray(np.rot90(grey, turns)))
        if found is not None:
            outside |= np.rot90(_above(*found), -turns)
    return outside if outside.any() else None


def _fold(grey: F32) -> tuple[float, float] | None:
    """The angle in degrees and the depth in pixels, in the middle, of a fold along the upper side."""
    small = np.asarray(cv2.resize(grey, (_COARSE, _COARSE), interpolation=cv2.INTER_AREA), np.float32)
    depths = np.arange(2.0, _MAX_DEPTH * _COARSE)
    scores = np.stack([_residuals(small, angle, depths) for angle in _ANGLES])
    beside = np.median(scores)
    row, column = np.unravel_index(int(scores.argmin()), scores.shape)
    if beside < _CONTRAST / 2 or scores[row, column] > 0.8 * beside:
        return None
    depth = depths[column] * SIDE / _COARSE
    best = (np.inf, 0.0, 0.0)
    for step, reach in ((1.0, 4.0), (0.25, 1.0)):
        angle0, depth0 = (best[1], best[2]) if best[0] < np.inf else (float(_ANGLES[row]), float(depth))
        for angle in np.arange(angle0 - 2 * step, angle0 + 2.01 * step, step):
            near = np.arange(max(2.0, depth0 - reach), depth0 + reach + 0.1, max(step, 0.5))
            residuals = _residuals(grey, float(angle), near)
            index = int(residuals.argmin())
            best = min(best, (float(residuals[index]), float(angle), float(near[index])))
    residual, angle, depth = best
    off = _residuals(grey, angle, np.array([max(1.0, depth - 4), depth + 4]))
    if depth < _MIN_DEPTH or off.min() < _CONTRAST or residual > _SHARPNESS * float(off.mean()):
        return None
    return angle, depth


def _residuals(grey: F32, angle: float, depths: NDArray[np.floating]) -> F32:
    """Mean difference between what lies above a line and the mirror image of what lies below, per depth.

    The line runs ``depth`` pixels below the upper side's middle, turned by ``angle`` degrees; half a
    pixel counts. Only pixels whose mirror image is in the picture are compared.
    """
    side = grey.shape[0]
    upright, seen = _turned(grey, angle)
    result = np.empty(len(depths), np.float32)
    for index, depth in enumerate(depths):
        edge = round(2 * float(depth))  # in half rows: row r mirrors to edge − 1 − r
        rows = np.arange(max(0, edge // 2 - side // 3), edge // 2)
        mirrored = edge - 1 - rows
        inside = mirrored < side
        rows, mirrored = rows[inside], mirrored[inside]
        both = seen[rows] & seen[mirrored]
        difference = np.abs(upright[rows] - upright[mirrored])
        result[index] = difference[both].mean() if both.sum() > side else np.inf
    return result


def _turned(grey: F32, angle: float) -> tuple[F32, NDArray[np.bool_]]:
    """The picture turned about its upper side's middle, so that the line is level; and what is seen."""
    side = grey.shape[0]
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, 0), angle, 1)
    turned = cv2.warpAffine(grey, matrix, (side, side), flags=cv2.INTER_LINEAR, borderValue=-1000)
    return np.asarray(turned, np.float32), np.asarray(turned) >= 0


def _above(angle: float, depth: float) -> NDArray[np.bool_]:
    """The pixels of a crop above a line, as in ``_residuals``."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    slope = np.deg2rad(angle)
    # The row of a pixel in the turned picture.
    row = -np.sin(slope) * (x - (SIDE - 1) / 2) + np.cos(slope) * y
    above: NDArray[np.bool_] = row < depth - 0.5
    return above
