"""Steady: what diffusion gave frame by frame, averaged along the track without lag.

Frames are swapped one by one, so that detail, light and the mask's edge differ a little between neighbours,
and the face boils. So each swapped crop is averaged with those before and after it, brought onto it along
the optical flow of the *target's* crops (in the spirit of Bonneel et al. 2015, doi 10.1145/2816795.2818107).
The target's own light, the part of it coarser than ``LIGHT``, is taken out before and put back after: what it
does stays where it is in time. Masks take the same path.

A neighbour counts only where the flow there and back agree and the target itself looks the same: behind a
blink, an opening mouth or a passing hand nothing is averaged, and what moves fast stays sharp. Weights
are a Gaussian, symmetric in time, so nothing lags.

At the ends of a track there are fewer neighbours. Where a *segment* ends, the crops must hold ``reach``
frames more (the ``Loader`` sees to that): then no byte depends on where that is.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import cv2
import numpy as np

from .flow import Box, agreement, follow, optical_flow
from .records import F32, NEIGHBOURS, Crops
from .rows import between
from .spread import spread

LOOKS_SAME = 8.0  # grey levels of the target's own difference along the flow at which trust is at 1/e
LIGHT = 6.0  # pixels of a 256 crop: σ of the blur that is the target's light
AT_ONCE = 16  # rows averaged before what is no longer needed is forgotten
GRAIN = 1.5  # the same, of the blur that keeps grain from being taken for a difference


def reach(sigma: float) -> int:
    """Frames to either side that an average of this σ looks at."""
    return min(math.ceil(2.5 * sigma), NEIGHBOURS)


def steady(crops: Crops, sigma: float, start: int, stop: int) -> Crops:
    """Masks and swapped crops of frames [start, stop), averaged over their neighbours.

    Args:
        crops: swapped and masked, in the order of their frames; of frames outside [start, stop) only
            what the average needs.
        sigma: of the Gaussian over time, in frames; 0 changes nothing.

    Returns:
        The rows of [start, stop) alone.

    Raises:
        ValueError: crops without ``swapped`` or ``masks``.
    """
    if len(crops) and (crops.swapped is None or crops.masks is None):
        raise ValueError(f"track {crops.track}: crops must have been swapped and masked to be steadied")
    inside = between(crops, start, stop)
    if sigma <= 0 or not len(inside):
        return inside
    assert crops.swapped is not None and crops.masks is not None
    a, b = (int(v) for v in np.searchsorted(crops.frames, (start, stop)))
    look, far = _Rows(crops), reach(sigma)
    masks, swapped = crops.masks[a:b].copy(), np.clip(crops.swapped[a:b], 0, 255)

    def around(row: int) -> list[int]:
        return [int(i) for i in np.flatnonzero(np.abs(crops.frames - crops.frames[row]) <= far)]

    def average(row: int) -> None:
        assert crops.masks is not None
        # Never much beyond the frame's own: what is in front of a face, or beyond the crop, stays out.
        most = cast(F32, cv2.dilate(crops.masks[row], np.ones((5, 5))))
        if not most.any():
            masks[row - a] = 0
            return
        box = _box(most)
        light = look.light(row)[box]
        mine = look.change(row)[box]
        change, mask = mine[..., :3].copy(), mine[..., 3].copy()
        total = np.ones(mask.shape, np.float32)
        for other in (i for i in around(row) if i != row):
            away = int(crops.frames[other] - crops.frames[row])
            trust = look.trust(row, other, box) * np.float32(np.exp(-0.5 * (away / sigma) ** 2))
            moved = follow(look.change(other), look.flow(row, other), box)
            moved *= trust[..., None]
            change += moved[..., :3]
            mask += moved[..., 3]
            total += trust
        swapped[row - a][box] = np.clip(light + change / total[..., None], 0, 255)
        masks[row - a] = 0
        masks[row - a][box] = np.minimum(mask / total, most[box])

    for first in range(a, b, AT_ONCE):
        rows = range(first, min(first + AT_ONCE, b))
        near = {row: around(row) for row in rows}
        look.look({(row, other) for row in rows for other in near[row]})
        spread(average, rows)
        look.forget(rows[-1] - far)
    return replace(inside, masks=masks, swapped=swapped)


def _box(mask: F32) -> Box:
    """The rectangle of a mask, and around it what a blur by ``GRAIN`` reaches."""
    unit = len(mask) / 256
    sides = []
    for axis in (1, 0):
        there = np.flatnonzero(mask.any(axis))
        sides.append(slice(max(int(there[0] - 8 * unit), 0), int(there[-1] + 8 * unit) + 1))
    return sides[0], sides[1]


class _Rows:
    """What crops say of themselves and of each other, each found out once."""

    def __init__(self, crops: Crops) -> None:
        self._crops = crops
        self._flows: dict[tuple[int, int], F32] = {}
        self._light: dict[int, F32] = {}
        self._change: dict[int, F32] = {}
        self._whole: dict[int, F32] = {}

    def look(self, pairs: set[tuple[int, int]]) -> None:
        """Find out all that will be asked of these pairs of rows, so that several may ask at once."""
        rows = sorted({row for pair in pairs for row in pair} - self._light.keys())
        for row, (whole, light, change) in zip(rows, spread(self._alone, rows), strict=True):
            self._whole[row], self._light[row], self._change[row] = whole, light, change
        both = pairs | {(second, first) for first, second in pairs}
        new = sorted({(i, j) for i, j in both if i != j} - self._flows.keys())
        images = self._crops.images
        flows = spread(lambda pair: optical_flow(*(images[row] for row in pair)), new)
        self._flows |= dict(zip(new, flows, strict=True))

    def _alone(self, row: int) -> tuple[F32, F32, F32]:
        """The target (S, S, 3) as float32, its light, and what the swap changes of that, (S, S, 4) with the
        mask."""
        swapped, masks = self._crops.swapped, self._crops.masks
        assert swapped is not None and masks is not None
        whole = self._crops.images[row].astype(np.float32)
        light = _blur(whole, LIGHT)
        return whole, light, np.dstack([swapped[row] - light, masks[row]])

    def light(self, row: int) -> F32:
        """The coarse part of a target, (S, S, 3)."""
        return self._light[row]

    def change(self, row: int) -> F32:
        """Swapped, less the target's light, and the mask: (S, S, 4)."""
        return self._change[row]

    def flow(self, first: int, second: int) -> F32:
        """From one row to another, (S, S, 2)."""
        return self._flows[first, second]

    def trust(self, row: int, other: int, box: Box) -> F32:
        """How far each pixel of a row's box is the same point of the same face in another, in [0, 1]."""
        apart = follow(self._whole[other], self.flow(row, other), box)
        apart -= self._whole[row][box]
        apart = _blur(apart, GRAIN, len(self._whole[row]))
        apart *= apart
        most = np.maximum(np.maximum(apart[..., 0], apart[..., 1]), apart[..., 2])
        unlike = np.exp(most * np.float32(-1 / LOOKS_SAME**2))
        return agreement(self.flow(row, other), self.flow(other, row), box) * cast(F32, unlike)

    def forget(self, row: int) -> None:
        """Let go of what is known of rows up to this one."""
        self._flows = {k: v for k, v in self._flows.items() if min(k) > row}
        for known in (self._light, self._change, self._whole):
            for old in [k for k in known if k <= row]:
                del known[old]


def _blur(picture: F32, sigma: float, size: int | None = None) -> F32:
    """By ``sigma`` pixels of a 256 crop; ``size`` is that of the crop this is part of (None: all of it)."""
    width = sigma * (size or len(picture)) / 256
    return cast(F32, cv2.GaussianBlur(picture, (0, 0), width, borderType=cv2.BORDER_REPLICATE))
