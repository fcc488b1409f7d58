"""Fade: how much of a swap is shown, frame by frame, so that it never pops in or out.

Convention
    A weight is 1 for the whole swap and 0 for the original. Before the last step it is made of straight
    pieces; ``smoothstep`` (3x² − 2x³) rounds their corners.

Three things take weight from a swap, and the least counts:

- **Doubt**: the track's score, which falls below the detector's threshold θ only in frames where nothing was
  detected (``track`` bridges them). Whole from θ on, none from θ/3.
- **The frame's border**: the share of the face's oval that lies in the frame. Whole from 75 %, none from
  25 %, so that a face half out is half shown.
- **Coming and going**: a track's first and last frame, unless a cut, or the clip's own end, is there.

No weight then differs from its neighbour's by more than 1/(``frames`` + 1): a drop is seen coming. The rows
of the plan alone decide, so a segment needs no pictures of its neighbours.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from .oval import OVAL_CENTRE, OVAL_HEIGHT, OVAL_WIDTH
from .records import F32, F64, Track

INSIDE = (0.25, 0.75)  # of the oval, from no swap to all of it
_GRID = 16  # points across the oval


def fade_weights(
    track: Track, shot: tuple[int, int], size: tuple[int, int], threshold: float, frames: int
) -> F32:
    """Weights (N,) in [0, 1] of a track's rows.

    Args:
        track: all its rows: only a whole track knows where it begins and ends.
        shot: [start, stop) of its shot.
        size: of the frame, (width, height).
        threshold: the detector's.
        frames: how many frames a swap takes to come or go; 0: all weights are 1.
    """
    count = len(track.frames)
    if frames <= 0 or not count:
        return np.ones(count, np.float32)
    inside = share_inside(track.landmarks, size)
    raw = np.minimum(_ramp(track.scores, threshold / 3, threshold), _ramp(inside, *INSIDE))
    at, slope = track.frames, 1 / (frames + 1)
    weights = np.ones(count)
    for step in range(-frames, frames + 1):
        there = np.searchsorted(at, at + step).clip(0, count - 1)
        # Rows that an edit of the plan took out are nobody's coming or going.
        limit = np.where(at[there] == at + step, raw[there] + abs(step) * slope, 1.0)
        weights = np.minimum(weights, limit)
    if at[0] > shot[0]:
        weights = np.minimum(weights, (at - at[0] + 1) * slope)
    if at[-1] < shot[1] - 1:
        weights = np.minimum(weights, (at[-1] + 1 - at) * slope)
    return cast(F32, (weights * weights * (3 - 2 * weights)).astype(np.float32))


def share_inside(landmarks: F32, size: tuple[int, int]) -> F64:
    """The share (N,) of each face's oval, hung on landmarks (N, 5, 2), that is in a frame (width, height)."""
    eyes, mouth = landmarks[:, :2].mean(1).astype(np.float64), landmarks[:, 3:].mean(1).astype(np.float64)
    down = mouth - eyes
    height = np.maximum(np.hypot(down[:, 0], down[:, 1]), 1e-3)[:, None]
    down /= height
    gap = landmarks[:, 1] - landmarks[:, 0]
    width = np.maximum(np.hypot(gap[:, 0], gap[:, 1])[:, None], 0.8 * height)
    ticks = (np.arange(_GRID) + 0.5) * 2 / _GRID - 1
    across, along = (v.ravel() for v in np.meshgrid(ticks, ticks))
    oval = across**2 + along**2 <= 1
    v = (OVAL_CENTRE + OVAL_HEIGHT * along[oval]) * height  # (N, points)
    u = OVAL_WIDTH * across[oval] * width
    x, y = eyes[:, :1] + v * down[:, :1] - u * down[:, 1:], eyes[:, 1:] + v * down[:, 1:] + u * down[:, :1]
    within = (x >= -0.5) & (x < size[0] - 0.5) & (y >= -0.5) & (y < size[1] - 0.5)
    return cast(F64, within.mean(1))


def _ramp(values: F32 | F64, low: float, high: float) -> F64:
    return np.clip((np.asarray(values, np.float64) - low) / (high - low), 0, 1)
