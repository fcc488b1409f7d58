"""Shots: where one camera take ends and the next begins.

A cut changes both where things are and, usually, which colours there are. Neighbouring frames are
compared on a small thumbnail: by the correlation of their luma patterns (hardly moved by exposure),
the overlap of their colour histograms (hardly moved by motion) and the mean difference. What the
take has been doing lately is then allowed for: a still take needs a small jump, a hand-held or fast
one a large jump. A frame lit by a flash counts as a cut: better one shot too many than two people
in one track.
"""

from __future__ import annotations

from collections import deque
from typing import cast

import cv2
import numpy as np

from .records import F32, U8

_WIDTH, _HEIGHT = 64, 36
_HISTORY = 12  # frames of which the usual change is taken

Description = tuple[F32, F32, F32]


class ShotDetector:
    """Called frame by frame, in order; says whether a frame begins a new shot.

    ``threshold`` in (0, 1] is the jump needed in a take that moves; a still one needs 0.4 of it.
    On this scale frames of one take are mostly below 0.1, a fast pan reaches 0.4, a cut to another
    person before the same wall 0.3, unrelated pictures 0.6 to 1.
    """

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {threshold}")
        self._threshold = threshold
        self._last: Description | None = None
        self._recent: deque[float] = deque(maxlen=_HISTORY)

    def is_cut(self, rgb: U8) -> bool:
        """Whether this frame, (H, W, 3) uint8 RGB, starts a new shot; the first frame never does."""
        now = describe(rgb)
        last, self._last = self._last, now
        return last is not None and self.cuts(difference(last, now))

    def cuts(self, change: float) -> bool:
        """Whether a frame that differs so much from the one before starts a new shot (``difference``)."""
        # Cuts stay in the history: the median shrugs one off, and a take that begins with a fast
        # pan would otherwise never be learnt.
        usual = float(np.median(self._recent)) if self._recent else 0.1
        self._recent.append(change)
        need = self._threshold * (0.4 + 0.6 * min(1.0, usual / 0.15))
        return change > min(0.95, usual + need)


def describe(rgb: U8) -> Description:
    """Luma thumbnail, its blurred copy (small motion hardly counts), colour histogram (sums to 1)."""
    small = cv2.resize(rgb, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA)
    luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    hsv = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    # Hue means nothing where there is no colour: it is weighed by the chroma, value counts for the rest.
    chroma = hsv[..., 1] * hsv[..., 2]
    angle = np.deg2rad(hsv[..., 0])
    colour = np.stack([chroma * np.cos(angle), chroma * np.sin(angle), hsv[..., 2]], -1)
    bins = np.clip((colour + np.array([1, 1, 0])) * np.array([8, 8, 8]), 0, 15.999).astype(int)
    flat = (bins[..., 0] * 16 + bins[..., 1]) * 16 + bins[..., 2]
    cube = np.bincount(flat.ravel(), minlength=4096).reshape(16, 16, 16).astype(np.float32)
    # Neighbouring bins share, so that a slight change of light moves little.
    for axis in range(3):
        cube = 0.5 * cube + 0.25 * (np.roll(cube, 1, axis) + np.roll(cube, -1, axis))
    smooth = cv2.GaussianBlur(luma, (0, 0), 1.5)
    return luma, cast(F32, smooth), cast(F32, cube.ravel() / cube.sum())


def difference(a: Description, b: Description) -> float:
    """How different two frames are, in [0, 1]."""
    x, y = a[1] - a[1].mean(), b[1] - b[1].mean()
    power = float(np.sqrt((x**2).mean() * (y**2).mean()))
    # Flat pictures have no pattern to compare (the 4 is about the noise of 8-bit video).
    pattern = 1 - max(0.0, (float((x * y).mean()) + 4) / (power + 4))
    colours = 1 - float(np.minimum(a[2], b[2]).sum())
    level = min(1.0, float(np.abs(a[0] - b[0]).mean()) / 64)
    return float(np.clip(1.5 * (0.4 * pattern + 0.4 * colours + 0.2 * level), 0, 1))
