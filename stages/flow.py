"""Optical flow between two views of one face, and looking things up along it.

Convention
    A flow (H, W, 2) float32 belongs to the pixels of the *first* picture: what is at (x, y) there is at
    (x + flow[..., 0], y + flow[..., 1]) in the second. (0, 0) is the centre of the top left pixel.
    ``follow`` therefore brings the second picture onto the first.

Dense inverse search (Kroeger et al. 2016, arXiv 1603.03590) as OpenCV has it. Its propagation between
patches is off: it goes stripe by stripe, one for each thread, and the numbers must not depend on those.
"""

from __future__ import annotations

import threading
from typing import Any, Literal, cast

import cv2
import numpy as np

from .records import F32, U8

Effort = Literal["fast", "medium"]
Box = tuple[slice, slice]  # rows and columns
ALL: Box = (slice(None), slice(None))
_EFFORT = {"fast": cv2.DISOPTICAL_FLOW_PRESET_FAST, "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM}
_own = threading.local()
SMALLEST = 32  # pixels: narrower pictures have no pyramid


def optical_flow(first: U8, second: U8, effort: Effort = "fast") -> F32:
    """The flow (H, W, 2) from one picture to another, both (H, W) grey or (H, W, 3) RGB uint8.

    Raises:
        ValueError: shapes that differ, or a picture smaller than 32 pixels.
    """
    if first.shape != second.shape or min(first.shape[:2]) < SMALLEST:
        raise ValueError(
            f"flow needs two pictures of one size, {SMALLEST} pixels or more; "
            f"got {first.shape} and {second.shape}"
        )
    return cast(F32, _search(effort).calc(_grey(first), _grey(second), None))  # no first guess


def _search(effort: Effort) -> Any:
    """This thread's: making one takes half as long as using it."""
    search: Any = getattr(_own, effort, None)
    if search is None:
        search = cv2.DISOpticalFlow.create(_EFFORT[effort])
        search.setUseSpatialPropagation(False)
        setattr(_own, effort, search)
    return search


def follow(picture: F32 | U8, flow: F32, box: Box = ALL) -> F32:
    """The second picture (H, W) or (H, W, C) brought onto the first, float32, linear, border repeated; of
    the first, only what lies in ``box``."""
    x, y = _partners(flow, box)
    whole = picture.astype(np.float32, copy=False)
    return cast(F32, cv2.remap(whole, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def agreement(forward: F32, backward: F32, box: Box = ALL, size: float = 1.0) -> F32:
    """1 where going there and back again ends at the start, towards 0 where it doesn't: (H, W), or of a box.

    The criterion of Sundaram et al. (ECCV 2010), |f + b|² < 0.01 (|f|² + |b|²) + 0.5, made smooth; a pixel
    whose partner lies outside the picture has none. ``size`` is that of these flows' pictures, against
    those in whose pixels the half is meant.
    """
    back, there = follow(backward, forward, box), forward[box]
    miss = _square(there + back)
    allowed = 0.01 * (_square(there) + _square(back)) + 0.5 * size**2
    height, width = forward.shape[:2]
    x, y = _partners(forward, box)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return cast(F32, (np.exp(-((miss / allowed) ** 2)) * inside).astype(np.float32))


def _partners(flow: F32, box: Box) -> tuple[F32, F32]:
    """Where in the second picture each pixel of the first, or of a box of it, is: x and y, (H, W) each."""
    height, width = flow.shape[:2]
    xs, ys = np.arange(width, dtype=np.float32)[box[1]], np.arange(height, dtype=np.float32)[box[0]]
    here = flow[box]
    return here[..., 0] + xs, here[..., 1] + ys[:, None]


def _square(flow: F32) -> F32:
    """Its length squared, (H, W); numpy's sum over so short an axis takes several times as long."""
    squares = flow**2
    return cast(F32, squares[..., 0] + squares[..., 1])


def _grey(picture: U8) -> U8:
    return picture if picture.ndim == 2 else cast(U8, cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
