"""Stillness: does a swapped face hold still when the original does?

Three figures of one track, each beside the original's own:

- **warp ratio**: the part of successive frames' difference that motion doesn't explain (``flow``), in the
  face, of the swapped frames over that of the original ones. 1.0 is as still as the original; grain and
  coding noise are in both. ``light_ratio`` is the same of the coarse part, where pumping light shows.
- **identity spread**: the standard deviation over the track of the judge's cosine to the source.
- **landmark jitter**: what of the landmarks' path no smooth motion explains, as the standard deviation of
  the independent noise that would look the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import cv2
import numpy as np

from ..stages.align import apply_points, estimate_similarity, invert
from ..stages.oval import face_oval
from ..stages.records import F32, F64, U8
from .flow import Motion, coarse, mean_error, motion, unexplained
from .judges import Judges

QUIET = 0.05  # grey levels added to both errors: a frozen original would make any ratio infinite
LIGHT = 0.25  # eye distances: σ of the blur behind ``light_ratio``
_SIDE = 256.0  # of the square the face's region is drawn in


@dataclass(frozen=True)
class Step:
    """From frame ``frame`` − 1 to ``frame``: unexplained change in grey levels, before and after the swap,
    of all detail and of light alone."""

    frame: int
    original: float
    swapped: float
    original_light: float
    swapped_light: float

    @property
    def ratio(self) -> float:
        """1.0: as still as the original."""
        return (self.swapped + QUIET) / (self.original + QUIET)


@dataclass(frozen=True)
class Stillness:
    """What a track measures. Ratios are of the track's means; spreads are standard deviations of cosines;
    jitters are in per cent of the eye distance. NaN where too few frames were given."""

    warp_ratio: float
    light_ratio: float
    identity: float
    identity_spread: float
    original_spread: float
    jitter: float
    original_jitter: float
    steps: tuple[Step, ...] = ()


def face_region(landmarks: F32, shape: tuple[int, ...]) -> F32:
    """Where a face with these five landmarks is in a frame of (H, W, …): (H, W) float32 in [0, 1].

    The oval that no mask of ours leaves, so that a mask's edge lies within.
    """
    flat = estimate_similarity(landmarks, TEMPLATE)
    oval = face_oval(apply_points(flat, landmarks), int(_SIDE))
    back = invert(flat)
    return cast(F32, cv2.warpAffine(oval, back, (shape[1], shape[0]), flags=cv2.INTER_LINEAR))


# Any upright layout in which the whole oval fits will do: it is only where the region is drawn.
TEMPLATE: F64 = np.array([[96.0, 100.0], [160.0, 100.0], [128.0, 135.0], [103.0, 165.0], [153.0, 165.0]])


class StillnessMeter:
    """Takes a track's frames one by one, in order; holds one pair of frames, whatever the track's length.

    Args:
        judges: for identity and landmarks; without them only the ratios are measured.
        source: the judge's embedding of the source (D,), which identity is measured against.
    """

    def __init__(self, judges: Judges | None = None, source: F32 | None = None) -> None:
        self._judges, self._source = judges, source
        self._last: tuple[int, U8, U8 | F32, F32] | None = None
        self._steps: list[Step] = []
        self._runs: list[_Run] = []

    def add(self, frame: int, original: U8, swapped: U8 | F32, landmarks: F32) -> Step | None:
        """One frame (H, W, 3) RGB before and after; ``landmarks`` (5, 2) are the original's.

        Returns the step from the frame before, None if that wasn't given (nothing is measured across a
        hole) or nothing of the face can be compared.

        Raises:
            ValueError: pictures of different shapes, or frames out of order.
        """
        if original.shape != swapped.shape:
            raise ValueError(f"frame {frame}: the pictures are {original.shape} and {swapped.shape}")
        if self._last is not None and frame <= self._last[0]:
            raise ValueError(f"frame {frame} came after frame {self._last[0]}")
        last, self._last = self._last, (frame, original, swapped, landmarks)
        if last is None or frame != last[0] + 1:
            self._runs.append(_Run())
        if self._judges is not None:
            self._runs[-1].look(self._judges, self._source, original, swapped, landmarks)
        if last is None or frame != last[0] + 1:
            return None
        moved = motion(last[1], original, face_region(last[3], original.shape))
        if moved.empty:
            return None
        step = _step(frame, moved, (last[1], original), (last[2], swapped), _gap(landmarks))
        self._steps.append(step)
        return step

    def result(self) -> Stillness:
        """The figures so far."""
        s = self._steps
        ours = [c for r in self._runs for c in r.swapped_identity]
        theirs = [c for r in self._runs for c in r.original_identity]
        return Stillness(
            warp_ratio=_ratio([x.swapped for x in s], [x.original for x in s]),
            light_ratio=_ratio([x.swapped_light for x in s], [x.original_light for x in s]),
            identity=float(np.mean(ours)) if ours else float("nan"),
            identity_spread=float(np.std(ours)) if ours else float("nan"),
            original_spread=float(np.std(theirs)) if theirs else float("nan"),
            jitter=_pooled([r.jitter(r.swapped_points) for r in self._runs]),
            original_jitter=_pooled([r.jitter(r.original_points) for r in self._runs]),
            steps=tuple(s),
        )


@dataclass
class _Run:
    """What the judges saw in consecutive frames; points are in pixels, as are the eye distances ``gaps``."""

    swapped_identity: list[float] = field(default_factory=list)
    original_identity: list[float] = field(default_factory=list)
    swapped_points: list[F32] = field(default_factory=list)
    original_points: list[F32] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def look(self, judges: Judges, source: F32 | None, original: U8, swapped: U8 | F32, at: F32) -> None:
        after = swapped if swapped.dtype == np.uint8 else np.clip(np.rint(swapped), 0, 255)
        pictures = (original, after.astype(np.uint8))
        if source is not None:
            both = [float(judges.identity.embed(p, at) @ source) for p in pictures]
            self.original_identity.append(both[0])
            self.swapped_identity.append(both[1])
        self.original_points.append(judges.mesh.points(pictures[0], at)[:, :2])
        self.swapped_points.append(judges.mesh.points(pictures[1], at)[:, :2])
        self.gaps.append(_gap(at))

    def jitter(self, points: list[F32]) -> float:
        """Of one of the paths, in per cent of the run's mean eye distance."""
        return 100 * jitter(np.array(points)) / float(np.mean(self.gaps)) if points else float("nan")


def jitter(paths: F32 | F64) -> float:
    """σ of the independent noise with the same second differences as these paths (N, P, 2).

    Motion at constant speed has none; noise of variance σ² has second differences of 6 σ². NaN below
    three frames.
    """
    if len(paths) < 3:
        return float("nan")
    second = np.diff(paths.astype(np.float64), 2, axis=0)
    return float(np.sqrt((second**2).mean() / 6))


def measure(
    originals: Sequence[U8],
    swapped: Sequence[U8 | F32],
    landmarks: F32,
    judges: Judges | None = None,
    source: F32 | None = None,
) -> Stillness:
    """Consecutive frames at once: N pictures (H, W, 3) before and after, ``landmarks`` (N, 5, 2)."""
    meter = StillnessMeter(judges, source)
    for i, (before, after, points) in enumerate(zip(originals, swapped, landmarks, strict=True)):
        meter.add(i, before, after, points)
    return meter.result()


def _step(
    frame: int, moved: Motion, originals: tuple[U8, U8], swapped: tuple[U8 | F32, U8 | F32], gap: float
) -> Step:
    pairs = (originals, swapped)
    changes = [unexplained(a, b, moved) for a, b in pairs]
    fine = [mean_error(c, moved.weight) for c in changes]
    light = [mean_error(coarse(c, moved.weight, LIGHT * gap), moved.weight) for c in changes]
    return Step(frame, fine[0], fine[1], light[0], light[1])


def _gap(landmarks: F32) -> float:
    return max(float(np.linalg.norm(landmarks[1] - landmarks[0])), 1.0)


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return (float(np.mean(ours)) + QUIET) / (float(np.mean(theirs)) + QUIET) if ours else float("nan")


def _pooled(values: list[float]) -> float:
    known = [v for v in values if np.isfinite(v)]
    return float(np.sqrt(np.mean(np.square(known)))) if known else float("nan")
