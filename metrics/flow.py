"""Warp error: how much of a picture's change in time its motion doesn't explain.

After Lai et al. 2018 (arXiv 1808.00449, §4.2): the next frame is brought back along the optical flow of
the *original* frames and compared where that flow can be trusted. Here it is measured in a face, and in
grey levels, not squared, so that single edges don't decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ..stages.flow import SMALLEST, agreement, follow, optical_flow
from ..stages.records import F32, U8

MARGIN = 24  # pixels about the face in which its motion is looked for
TRUSTED = 0.5  # least agreement of forward and backward flow


@dataclass(frozen=True)
class Motion:
    """The motion of a face between two frames of the original.

    ``window`` is (x0, y0, x1, y1) in frame pixels, exclusive; ``flow`` (h, w, 2) in it, ``weight`` (h, w)
    float32, 0 where nothing can be compared.
    """

    window: tuple[int, int, int, int]
    flow: F32
    weight: F32

    @property
    def empty(self) -> bool:
        """Nothing of the face can be compared."""
        return not bool(self.weight.any())


def motion(first: U8, second: U8, region: F32) -> Motion:
    """How the face moves from one original frame to the next, (H, W, 3) uint8 RGB.

    ``region`` (H, W) float32 in [0, 1] says where it is in the first.
    """
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    height, width = region.shape
    if not len(rows):
        return Motion((0, 0, 0, 0), np.zeros((0, 0, 2), np.float32), np.zeros((0, 0), np.float32))
    (x0, x1), (y0, y1) = _around(columns, width), _around(rows, height)
    window = (x0, y0, x1, y1)
    if min(x1 - x0, y1 - y0) < SMALLEST:
        shape = (y1 - y0, x1 - x0)
        return Motion(window, np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32))
    a, b = _cut(first, window), _cut(second, window)
    there, back = optical_flow(a, b, "medium"), optical_flow(b, a, "medium")
    weight = region[y0:y1, x0:x1] * (agreement(there, back) > TRUSTED)
    return Motion(window, there, weight.astype(np.float32))


def _around(inside: NDArray[np.intp], size: int) -> tuple[int, int]:
    """[start, stop) along an axis: where the face is and ``MARGIN`` about it, within the frame; at its border
    no narrower than flow can be found in, if the frame is as wide."""
    start, stop = max(int(inside[0]) - MARGIN, 0), min(int(inside[-1]) + 1 + MARGIN, size)
    return max(min(start, size - SMALLEST), 0), min(max(stop, SMALLEST), size)


def unexplained(first: U8 | F32, second: U8 | F32, moved: Motion) -> F32:
    """second(x + flow) − first(x) in the window, (h, w, 3) float32, signed, in grey levels."""
    there = follow(_cut(second, moved.window), moved.flow)
    return there - _cut(first, moved.window).astype(np.float32)


def mean_error(difference: F32, weight: F32) -> float:
    """Weighted mean of the absolute difference (h, w, 3)."""
    total = float(weight.sum(dtype=np.float64))
    return float((np.abs(difference).mean(-1, dtype=np.float64) * weight).sum()) / max(total, 1e-9)


def coarse(difference: F32, weight: F32, sigma: float) -> F32:
    """What of a signed difference is left after a blur of ``sigma`` pixels: pumping light, not grain."""
    stack = np.dstack([difference * weight[..., None], weight]).astype(np.float32)
    stack = cast(F32, cv2.GaussianBlur(stack, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT))
    return cast(F32, stack[..., :-1] / np.maximum(stack[..., -1:], np.float32(1e-3)))


def _cut(picture: U8 | F32, window: tuple[int, int, int, int]) -> U8:
    x0, y0, x1, y1 = window
    return cast(U8, picture[y0:y1, x0:x1])  # or F32: only its values are used
