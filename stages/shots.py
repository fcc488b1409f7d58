"""Shots: where one camera take ends and the next begins.

A cut changes both where things are and, usually, which colours there are. Neighbouring frames are
compared on a small thumbnail: by the correlation of their luma patterns (hardly moved by exposure),
the overlap of their colour histograms (hardly moved by motion) and the mean difference. What the
take has been doing lately is then allowed for: a still take needs a small jump, a hand-held or fast
one a large jump.

Some things need frames further apart. A flash is a jump after which the old picture comes back. In a
whip pan many frames jump, of which at most one is a cut: none if it ends where it began. A fade has a
flat picture in the middle, with something else before it than after. In a dissolve the frames between
two unlike ones are their mixtures, which frames of a moving camera are not.
docs/people.md compares this with PySceneDetect's detectors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple, cast

import cv2
import numpy as np

from .records import F32, U8

_WIDTH, _HEIGHT = 64, 36
_HISTORY = 12  # frames of which the usual change is taken
_FLASH = 0.12  # seconds that a flash may last
_WHIP = 0.6  # seconds that a whip pan may last
_DISSOLVES = (0.32, 0.64, 0.96)  # seconds over which mixtures are looked for
_FLAT = 6.0  # grey levels (standard deviation) below which a thumbnail shows nothing
_UNLIKE = 0.4  # of the patterns on both sides of a fade or dissolve, in [0, 1]
_MIXED = 0.06  # what may be left of the energy of a change when mixtures are taken away


class Description(NamedTuple):
    """A frame as a thumbnail: luma (36, 64), the same blurred (small motion hardly counts), and a colour
    histogram (4096,) that sums to 1."""

    luma: F32
    smooth: F32
    colours: F32


class ShotDetector:
    """Given frames one by one, in order, says of each whether it begins a new shot, a little later.

    ``threshold`` in (0, 1] is the jump needed in a take that moves; a still one needs 0.4 of it.
    On this scale frames of one take are mostly below 0.1, a fast pan reaches 0.4, a cut to another
    person before the same wall 0.3, unrelated pictures 0.6 to 1. ``rate`` is in frames per second.
    """

    def __init__(self, threshold: float, rate: float = 25.0) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {threshold}")
        self._threshold = threshold
        self._flash = max(2, round(rate * _FLASH))
        self._widths = sorted({max(4, round(rate * s)) for s in _DISSOLVES})
        self._whip = max(self._flash, round(rate * _WHIP))
        self._delay = max(self._whip, self._widths[-1] * 3 // 4)
        self._recent: deque[float] = deque(maxlen=_HISTORY)
        self._frames: deque[Description | None] = deque(maxlen=self._delay + self._widths[-1] + 2)
        self._cuts: deque[bool] = deque(maxlen=self._frames.maxlen)
        self._count = self._decided = 0
        self._calm: deque[tuple[int, int]] = deque(maxlen=8)  # frames (inclusive) among which no cut is
        self._mixed: list[int] = []  # middles of the dissolve that is going on
        self._before_flat: Description | None = None

    def push(self, now: Description | None) -> list[bool]:
        """Take in a frame (None: it can't be decoded) and return what is decided by it: no frame's fate at
        first, then one frame's at a time. The first frame begins no *new* shot."""
        if now is None and self._frames:
            now = self._frames[-1]
        self._frames.append(now)
        self._cuts.append(False)
        self._count += 1
        if self._count > self._whip:
            self._judge(self._count - 1 - self._whip)
        self._dissolve()
        return self._release(self._count - 1 - self._delay)

    def flush(self) -> list[bool]:
        """What is still undecided, there being no more frames."""
        for index in range(max(0, self._count - self._whip), self._count):
            self._judge(index)
        self._settle()
        return self._release(self._count - 1)

    def _release(self, last: int) -> list[bool]:
        """The fates of frames up to ``last`` that were not told yet."""
        told = [self._cuts[self._at(i)] for i in range(self._decided, last + 1)]
        self._decided = max(self._decided, last + 1)
        return told

    def _at(self, index: int) -> int:
        return index - self._count + len(self._frames)

    def _judge(self, index: int) -> None:
        """Is there a hard cut before a frame, or the end of a fade?"""
        at = self._at(index)
        now, last = self._frames[at], self._frames[at - 1] if at > 0 else None
        if now is None or last is None:
            return
        change = difference(last, now)
        usual = float(np.median(self._recent)) if self._recent else 0.1
        # Cuts stay in the history: the median shrugs one off, and a take that begins with a fast
        # pan would otherwise never be learnt.
        self._recent.append(change)
        need = usual + self._threshold * (0.4 + 0.6 * min(1.0, usual / 0.15))
        flat, was_flat = (float(d.smooth.std()) < _FLAT for d in (now, last))
        if flat and not was_flat:
            self._before_flat = last
        if any(a <= index <= b for a, b in self._calm):
            return
        if change > (need := min(0.95, need)):
            length, cut = self._jumps(at, need)
            if length > 1:
                self._calm.append((index, index + length - 1))
            if cut is not None:
                self._cuts[cut] = True
                self._before_flat = None
        elif was_flat and not flat and self._before_flat is not None:
            self._cuts[at] = pattern(self._before_flat, now) > _UNLIKE
            self._before_flat = None

    def _jumps(self, at: int, need: float) -> tuple[int, int | None]:
        """For how many frames from a jump on the picture is unsettled, and which of them is a cut, if any."""
        frames = [cast(Description, f) for f in list(self._frames)[at - 1 : at + self._whip + 1]]
        before = frames[0]
        for step in range(2, min(self._flash + 2, len(frames))):
            lit = frames[step - 1]
            if abs(float(lit.luma.mean() - before.luma.mean())) < 12 or pattern(before, lit) > 0.6:
                break  # no light but another picture
            if difference(before, frames[step]) < 0.5 * need:
                return step, None
        jumps = [difference(a, b) > 0.5 * need for a, b in pairwise(frames)]
        run = 1
        while any(jumps[run : run + 2]):  # where a pan turns round a frame may stand still
            run += 1
        if sum(jumps[:run]) < 3:
            return 1, at
        return run, None if difference(before, frames[run]) < 0.5 * need else at + run // 2

    def _dissolve(self) -> None:
        """Have the last frames been mixtures of the first and the last of them? While they have, wait."""
        if (middle := self._middle()) is not None:
            self._mixed.append(middle)
        elif self._mixed:
            self._settle()

    def _settle(self) -> None:
        """The end of a dissolve: of all the middles it seemed to have the median is the cut."""
        if self._mixed:
            middle = max(self._mixed[len(self._mixed) // 2], self._decided)
            self._cuts[self._at(middle)] = True
            reach = self._widths[-1] // 2
            self._calm.append((middle - reach, middle + reach))
            self._mixed.clear()

    def _middle(self) -> int | None:
        """The middle frame of the widest dissolve that ends with the newest frame."""
        for width in reversed(self._widths):
            first, middle = len(self._frames) - 1 - width, self._count - 1 - width // 2
            if (
                first < 0
                or any(a <= middle <= b for a, b in self._calm)
                or any(list(self._cuts)[first + 1 :])
            ):
                continue
            steps = [self._frames[first + width * k // 4] for k in range(5)]
            if all(steps) and _mixtures(cast(list[Description], steps)):
                return middle
        return None


def _mixtures(frames: list[Description]) -> bool:
    """Whether frames go from the first to the last, which are unlike, by mixing the two."""
    first, last = frames[0], frames[-1]
    if pattern(first, last) < _UNLIKE or min(float(d.smooth.std()) for d in (first, last)) < _FLAT:
        return False
    way = (last.smooth - first.smooth).ravel().astype(np.float64)
    energy = float(way @ way)
    shares = [0.0]
    for frame in frames[1:-1]:
        moved = (frame.smooth - first.smooth).ravel().astype(np.float64)
        share = float(moved @ way) / energy
        rest = moved - share * way
        if float(rest @ rest) > _MIXED * energy or not shares[-1] + 0.1 < share < 0.9:
            return False
        shares.append(share)
    return True


def find_cuts(frames: Iterable[U8], threshold: float, rate: float = 25.0) -> list[int]:
    """The frames, (H, W, 3) uint8 RGB, that begin a new shot; never the first."""
    shots = ShotDetector(threshold, rate)
    flags: list[bool] = []
    for rgb in frames:
        flags += shots.push(describe(rgb))
    return [i for i, cut in enumerate(flags + shots.flush()) if cut]


def describe(rgb: U8) -> Description:
    """The description of a picture (H, W, 3) uint8 RGB."""
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
    return Description(luma, cast(F32, smooth), cast(F32, cube.ravel() / cube.sum()))


def difference(a: Description, b: Description) -> float:
    """How different two frames are, in [0, 1]."""
    colours = 1 - float(np.minimum(a.colours, b.colours).sum())
    level = min(1.0, float(np.abs(a.luma - b.luma).mean()) / 64)
    return float(np.clip(1.5 * (0.4 * pattern(a, b) + 0.4 * colours + 0.2 * level), 0, 1))


def pattern(a: Description, b: Description) -> float:
    """How different what two frames show is, whatever their light and contrast, in [0, 1]."""
    x, y = a.smooth - a.smooth.mean(), b.smooth - b.smooth.mean()
    power = float(np.sqrt((x**2).mean() * (y**2).mean()))
    # Flat pictures have no pattern to compare (the 4 is about the noise of 8-bit video).
    return 1 - max(0.0, (float((x * y).mean()) + 4) / (power + 4))
