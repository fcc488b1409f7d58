"""The oval a face fills: where a mask may lie, and what of a face is in the picture."""

from __future__ import annotations

from typing import cast

import numpy as np

from .records import F32

# Its centre and half axes, in eye-to-mouth distances (height) and eye distances (width).
OVAL_CENTRE, OVAL_HEIGHT, OVAL_WIDTH = 0.42, 1.36, 1.13


def face_oval(landmarks: F32, size: int) -> F32:
    """A soft oval around the five landmarks (5, 2), (S, S) in [0, 1]: keeps neck and ears out.

    A parser of photographs calls them skin. The oval hangs on eyes and mouth, so it turns with them.
    """
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    down = (mouth - eyes).astype(np.float64)
    height = max(float(np.hypot(*down)), 1e-3)
    down /= height
    width = max(float(np.hypot(*(landmarks[1] - landmarks[0]))), height * 0.8)
    centre = eyes + down * height * OVAL_CENTRE
    ticks = np.arange(size)
    xs, ys = (ticks - centre[0])[None], (ticks - centre[1])[:, None]
    high, wide = down / (height * OVAL_HEIGHT), down / (width * OVAL_WIDTH)
    along = (xs * high[0]).astype(np.float32) + (ys * high[1]).astype(np.float32)
    across = (xs * wide[1]).astype(np.float32) - (ys * wide[0]).astype(np.float32)
    radius = np.sqrt(along * along + across * across)
    ramp = np.clip((1.06 - radius) / 0.12, 0, 1)
    return cast(F32, (ramp * ramp * (3 - 2 * ramp)).astype(np.float32))
