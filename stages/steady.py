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
        change = look.change(row)[box].copy()
        total = np.ones(change.shape[:2], np.float32)
        for other in (i for i in around(row) if i != row):
            away = int(crops.frames[other] - crops.frames[row])
            trust = look.trust(row, other, box) * np.float32(np.exp(-0.5 * (away / sigma) ** 2))
            moved = follow(look.change(other), look.flow(row, other), box)
            moved *= cv2.merge([trust] * 4)  # numpy repeats so short an axis slowly
            change += moved
            total += trust
        change /= cv2.merge([total] * 4)
        swapped[row - a][box] = np.clip(light + change[..., :3], 0, 255)
        masks[row - a] = 0
        masks[row - a][box] = np.minimum(change[..., 3], most[box])

    for first in range(a, b, AT_ONCE):
        rows = range(first, min(first + AT_ONCE, b))
        near = {row: around(row) for row in rows}
        look.look({(row, other) for row in rows for other in near[row]})
        spread(average, rows)
        look.forget(rows[-1] - far)
    return replace(inside, masks=masks, swapped=swapped)


def _box(mask: F32) -> Box:
    """The rectangle of a mask."""
    there = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    rows, columns = (slice(int(each[0]), int(each[-1]) + 1) for each in there)
    return rows, columns


class _Rows:
    """What crops say of themselves and of each other, each found out once."""

    def __init__(self, crops: Crops) -> None:
        self._crops = crops
        # At half the size, in pixels of that: from a row to the one beside it, and to those farther off.
        self._steps: dict[tuple[int, int], F32] = {}
        self._flows: dict[tuple[int, int], F32] = {}
        self._light: dict[int, F32] = {}
        self._change: dict[int, F32] = {}
        self._soft: dict[int, F32] = {}

    def look(self, pairs: set[tuple[int, int]]) -> None:
        """Find out all that will be asked of these pairs of rows, so that several may ask at once."""
        rows = sorted({row for pair in pairs for row in pair} - self._light.keys())
        for row, (soft, light, change) in zip(rows, spread(self._alone, rows), strict=True):
            self._soft[row], self._light[row], self._change[row] = soft, light, change
        both = pairs | {(second, first) for first, second in pairs}
        new = sorted({(i, j) for i, j in both if i != j} - self._flows.keys())
        ways = sorted({(i, 1 if j > i else -1) for i, j in new})
        ends = [[j for i, j in new if i == row and (j - i) * way > 0] for row, way in ways]
        steps = {
            (k, k + way) for (row, way), far in zip(ways, ends, strict=True) for k in _along(row, way, far)
        }
        missing = sorted(steps - self._steps.keys())
        for step, flow in zip(missing, spread(self._step, missing), strict=True):
            self._steps[step] = flow
        for made in spread(self._chain, ways, ends):
            self._flows.update(made)

    def _step(self, pair: tuple[int, int]) -> F32:
        """The flow from a row to the one beside it, at half the size and in pixels of that."""
        flow = optical_flow(*(self._crops.images[row] for row in pair))
        small = _halved(flow)
        return small * np.float32(len(small) / len(flow))

    def _chain(self, start: tuple[int, int], ends: list[int]) -> dict[tuple[int, int], F32]:
        """The flows from a row to all of ``ends`` that way, step by step, each where the last one ends."""
        row, way = start
        flow, made = None, {}
        for at in _along(row, way, ends):
            step = self._steps[at, at + way]
            flow = step if flow is None else flow + follow(step, flow)
            if at + way in ends:
                made[row, at + way] = flow
        return made

    def _alone(self, row: int) -> tuple[F32, F32, F32]:
        """The target without its grain at half the size, its light, and what the swap changes of that,
        (S, S, 4) with the mask."""
        swapped, masks = self._crops.swapped, self._crops.masks
        assert swapped is not None and masks is not None
        whole = self._crops.images[row].astype(np.float32)
        light = _blur(whole, LIGHT)
        soft = _blur(_halved(whole), GRAIN / 2, len(whole))
        return soft, light, np.dstack([swapped[row] - light, masks[row]])

    def light(self, row: int) -> F32:
        """The coarse part of a target, (S, S, 3)."""
        return self._light[row]

    def change(self, row: int) -> F32:
        """Swapped, less the target's light, and the mask: (S, S, 4)."""
        return self._change[row]

    def flow(self, first: int, second: int) -> F32:
        """From one row to another, (S, S, 2)."""
        size, small = self._crops.images.shape[2:0:-1], self._flows[first, second]
        whole = cast(F32, cv2.resize(small, size, interpolation=cv2.INTER_LINEAR))
        return whole * np.float32(size[0] / len(small))

    def trust(self, row: int, other: int, box: Box) -> F32:
        """How far each pixel of a row's box is the same point of the same face in another, in [0, 1].

        Found out at half the size: a flow is no finer, and grain is no difference.
        """
        there, back = self._flows[row, other], self._flows[other, row]
        apart = follow(self._soft[other], there) - self._soft[row]
        apart *= apart
        most = np.maximum(np.maximum(apart[..., 0], apart[..., 1]), apart[..., 2])
        unlike = np.exp(most * np.float32(-1 / LOOKS_SAME**2))
        size = self._crops.images.shape[2:0:-1]
        trusted = agreement(there, back, size=len(there) / size[0]) * unlike
        return cast(F32, cv2.resize(trusted, size, interpolation=cv2.INTER_LINEAR)[box])

    def forget(self, row: int) -> None:
        """Let go of what is known of rows up to this one."""
        for flows in (self._flows, self._steps):
            for pair in [k for k in flows if min(k) <= row]:
                del flows[pair]
        for known in (self._light, self._change, self._soft):
            for old in [k for k in known if k <= row]:
                del known[old]


def _along(row: int, way: int, ends: list[int]) -> range:
    """The rows from which steps that way lead on, as far as the last of ``ends``."""
    return range(row, max(ends) if way > 0 else min(ends), way)


def _halved(picture: F32) -> F32:
    """(S, S, C) at half the size, each pixel a mean."""
    half = (len(picture) + 1) // 2
    return cast(F32, cv2.resize(picture, (half, half), interpolation=cv2.INTER_AREA))


def _blur(picture: F32, sigma: float, size: int | None = None) -> F32:
    """By ``sigma`` pixels of a 256 crop; ``size`` is that of the crop, if the picture is not one."""
    width = sigma * (size or len(picture)) / 256
    return cast(F32, cv2.GaussianBlur(picture, (0, 0), width, borderType=cv2.BORDER_REPLICATE))
