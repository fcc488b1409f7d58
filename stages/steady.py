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

from .flow import agreement, follow, optical_flow
from .records import F32, NEIGHBOURS, U8, Crops
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
    look, far = _Target(crops.images), reach(sigma)
    masks, swapped = crops.masks[a:b].copy(), crops.swapped[a:b].copy()

    def around(row: int) -> list[int]:
        return [int(i) for i in np.flatnonzero(np.abs(crops.frames - crops.frames[row]) <= far)]

    def average(row: int) -> None:
        assert crops.swapped is not None and crops.masks is not None
        change = crops.swapped[row] - look.light(row)
        mask = crops.masks[row].copy()
        total = np.ones(mask.shape, np.float32)
        for other in (i for i in around(row) if i != row):
            away = int(crops.frames[other] - crops.frames[row])
            trust = look.trust(row, other) * np.float32(np.exp(-0.5 * (away / sigma) ** 2))
            there = np.dstack([crops.swapped[other] - look.light(other), crops.masks[other]])
            moved = follow(there, look.flow(row, other))
            change += moved[..., :3] * trust[..., None]
            mask += moved[..., 3] * trust
            total += trust
        swapped[row - a] = np.clip(look.light(row) + change / total[..., None], 0, 255)
        # Never much beyond the frame's own: what is in front of a face, or beyond the crop, stays out.
        masks[row - a] = np.minimum(mask / total, cv2.dilate(crops.masks[row], np.ones((5, 5))))

    for first in range(a, b, AT_ONCE):
        rows = range(first, min(first + AT_ONCE, b))
        near = {row: around(row) for row in rows}
        look.look({(row, other) for row in rows for other in near[row]})
        spread(average, rows)
        look.forget(rows[-1] - far)
    return replace(inside, masks=masks, swapped=swapped)


class _Target:
    """What the target's crops (N, S, S, 3) say of each other, each found out once."""

    def __init__(self, images: U8) -> None:
        self._images = images
        self._flows: dict[tuple[int, int], F32] = {}
        self._light: dict[int, F32] = {}

    def look(self, pairs: set[tuple[int, int]]) -> None:
        """Find out all that will be asked of these pairs of rows, so that several may ask at once."""
        rows = sorted({row for pair in pairs for row in pair} - self._light.keys())
        lights = spread(lambda row: _blur(self._images[row], LIGHT), rows)
        self._light |= dict(zip(rows, lights, strict=True))
        both = pairs | {(second, first) for first, second in pairs}
        new = sorted({(i, j) for i, j in both if i != j} - self._flows.keys())
        flows = spread(lambda pair: optical_flow(*(self._images[row] for row in pair)), new)
        self._flows |= dict(zip(new, flows, strict=True))

    def light(self, row: int) -> F32:
        """Its coarse part, (S, S, 3)."""
        return self._light[row]

    def flow(self, first: int, second: int) -> F32:
        """From one row to another, (S, S, 2)."""
        return self._flows[first, second]

    def trust(self, row: int, other: int) -> F32:
        """How far each pixel of a row is the same point of the same face in another, (S, S) in [0, 1]."""
        there = follow(self._images[other], self.flow(row, other))
        apart = _blur(there - self._images[row].astype(np.float32), GRAIN)
        apart *= apart
        most = np.maximum(np.maximum(apart[..., 0], apart[..., 1]), apart[..., 2])
        unlike = np.exp(most * np.float32(-1 / LOOKS_SAME**2))
        return agreement(self.flow(row, other), self.flow(other, row)) * cast(F32, unlike)

    def forget(self, row: int) -> None:
        """Let go of what is known of rows up to this one."""
        self._flows = {k: v for k, v in self._flows.items() if min(k) > row}
        self._light = {k: v for k, v in self._light.items() if k > row}


def _blur(picture: U8 | F32, sigma: float) -> F32:
    """By ``sigma`` pixels of a 256 crop, float32."""
    width = sigma * len(picture) / 256
    return cast(
        F32,
        cv2.GaussianBlur(
            picture.astype(np.float32, copy=False), (0, 0), width, borderType=cv2.BORDER_REPLICATE
        ),
    )
