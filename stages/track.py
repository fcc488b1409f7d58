"""Tracking: which detections of successive frames are one person.

Tracks live within one shot. A detection joins the track whose box, moved on at its own speed, it
overlaps most (Hungarian assignment over all pairs). Identity embeddings, which cost far more than
boxes, are asked only where overlap can't tell: people crossing, a face that returns after a few
frames, or one that comes back somewhere else.

Finished tracks have no holes: gaps of up to ``MAX_GAP`` seconds are filled linearly, longer ones end
the track (``people`` finds its continuation). Landmarks are then smoothed over time without
delay; steady motion passes unchanged, at the ends of a track too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..configs.settings import Settings
from .align import ARCFACE_TEMPLATE, estimate_similarity, warp
from .records import F32, F64, U8, Detection, Track
from .turned import overlap

Embed = Callable[[U8], F32]

MAX_GAP = 0.5  # seconds without a detection that a track survives
_FADE = 0.02  # of the score, to the power of the seconds to the nearest seen frame
_GATE = 0.15  # overlap below which two boxes have nothing to do with each other
_DOUBT_AFTER = 3  # missed frames after which overlap alone is not believed
_SAME, _REJECT = 0.45, 0.25  # cosines: surely one person; surely not, where overlap says so
_VIEWS = 5  # embeddings averaged per track
_SPACING = 8  # frames between them, so that they differ


@dataclass(eq=False)
class _View:
    """An aligned face of a track, (112, 112, 3) uint8 RGB, embedded when somebody asks."""

    quality: float
    index: int
    crop: U8
    embedding: F32 | None = None


@dataclass(eq=False)
class _Live:
    """A track in the making; itself alone, whatever another holds."""

    shot: int
    frames: list[int] = field(default_factory=list)
    found: list[Detection] = field(default_factory=list)
    views: list[_View] = field(default_factory=list)

    def predict(self, index: int) -> F32:
        """Where the box should be in a frame: its recent speed, believed for a few frames only."""
        last = self.found[-1].box
        if len(self.found) < 2:
            return last
        back = max(-4, -len(self.found))
        centres = [(d.box[:2] + d.box[2:]) / 2 for d in (self.found[back], self.found[-1])]
        speed = (centres[1] - centres[0]) / (self.frames[-1] - self.frames[back])
        return last + np.tile(speed * min(index - self.frames[-1], 3), 2)


class Tracker:
    """Follows faces through a clip, frame by frame, in order.

    ``embed`` maps one aligned face (112, 112, 3) uint8 RGB to its unit embedding (D,). ``times`` are the
    seconds at which frames are shown; without them there are 24 in a second.
    """

    def __init__(self, settings: Settings, embed: Embed, times: Sequence[float] | None = None) -> None:
        self._settings, self._embed, self._times = settings, embed, times
        self._shot = 0
        self._shot_start: int | None = None
        self._last = -1
        self._live: list[_Live] = []
        self._done: list[Track] = []

    def follow(self, index: int, detections: Sequence[Detection], crops: Sequence[U8], cut: bool) -> None:
        """Take in one frame: its index, its faces and each of them aligned (``aligned_face``); ``cut`` if it
        begins a shot."""
        if self._shot_start is None:
            self._shot_start = index
        elif cut:
            self._end_shot()
            self._shot, self._shot_start = self._shot + 1, index
        self._last = index
        # Unseen from the first frame that didn't show it until this one; rates are rounded in containers.
        lost = [t for t in self._live if self._time(index) - self._time(t.frames[-1] + 1) > MAX_GAP + 2e-3]
        self._close(lost, self._settings.min_track_frames)
        self._live = [t for t in self._live if t not in lost]
        pairs = self._assign(index, detections, crops)
        for column, detection in enumerate(detections):
            if column in pairs:
                track = self._live[pairs[column]]
            else:
                track = _Live(self._shot)
                self._live.append(track)
            track.frames.append(index)
            track.found.append(detection)
            self._consider_view(track, index, crops[column], detection)

    def finish(self) -> list[Track]:
        """All tracks, numbered from 0 by first frame (the larger face first where two begin together)."""
        self._end_shot()
        ordered = sorted(self._done, key=lambda t: (int(t.frames[0]), -t.mean_area, float(t.boxes[0, 0])))
        return [replace(track, id=i) for i, track in enumerate(ordered)]

    def _time(self, index: int) -> float:
        return index / 24 if self._times is None else self._times[index]

    def _assign(self, index: int, detections: Sequence[Detection], crops: Sequence[U8]) -> dict[int, int]:
        """Detection → live track."""
        shape = (len(self._live), len(detections))
        if 0 in shape:
            return {}
        boxes = [t.predict(index) for t in self._live]
        iou = np.array([[overlap(box, d.box) for d in detections] for box in boxes])
        near = iou >= _GATE
        missed = np.array([index - t.frames[-1] - 1 for t in self._live])
        seen: dict[int, F32] = {}

        def cosine(row: int, column: int) -> float:
            if column not in seen:
                seen[column] = self._embed(crops[column])
            return float(self._identity(self._live[row], 2) @ seen[column])

        cost = np.where(near, 1 - iou, 1e3)
        for row, column in np.argwhere(near):
            rivals = near[row].sum() > 1 or near[:, column].sum() > 1
            if rivals or missed[row] >= _DOUBT_AFTER:
                same = cosine(row, column)
                cost[row, column] = 0.3 * (1 - iou[row, column]) + 0.7 * (1 - same)
                if missed[row] >= _DOUBT_AFTER and same < _REJECT:
                    cost[row, column] = 1e3
        pairs = _solve(cost)
        # What overlap left over: somebody who moved far between two looks.
        rows = [r for r in range(shape[0]) if r not in pairs.values()]
        columns = [c for c in range(shape[1]) if c not in pairs]
        if rows and columns:
            far = np.full(shape, 1e3)
            for row in rows:
                for column in columns:
                    if _reachable(boxes[row], detections[column].box):
                        same = cosine(row, column)
                        far[row, column] = 1 - same if same >= _SAME else 1e3
            pairs |= _solve(far)
        return pairs

    def _consider_view(self, track: _Live, index: int, crop: U8, detection: Detection) -> None:
        """Keep a few good, well spaced looks at the face: large, frontal, surely detected."""
        quality = (
            detection.score * frontal(detection.landmarks) * min(1.0, float(detection.area) ** 0.5 / 112)
        )
        views = track.views
        recent = bool(views) and index - views[-1].index < _SPACING
        rival = views[-1] if recent else min(views, key=lambda v: v.quality) if len(views) == _VIEWS else None
        if rival is not None and rival.quality >= quality:
            return
        if rival is not None:
            views.remove(rival)
        views.append(_View(quality, index, crop))

    def _identity(self, track: _Live, looks: int = _VIEWS) -> F32:
        """Unit mean embedding (D,) of the best views of a track."""
        vectors = []
        for view in sorted(track.views, key=lambda v: -v.quality)[:looks]:
            if view.embedding is None:
                view.embedding = self._embed(view.crop)
            vectors.append(view.embedding)
        mean = np.mean(vectors, 0)
        return cast(F32, (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32))

    def _end_shot(self) -> None:
        """Close what is live. A shot of fewer frames than a track needs can't ask for more than it has."""
        length = self._last + 1 - (self._shot_start or 0)
        self._close(self._live, min(self._settings.min_track_frames, length))
        self._live = []

    def _close(self, tracks: list[_Live], least: int) -> None:
        """Finish tracks at once, so that their pictures can go: memory must not grow with the clip."""
        for live in tracks:
            if len(live.frames) >= least:
                times = np.array([self._time(i) for i in range(live.frames[0], live.frames[-1] + 1)])
                self._done.append(_finish(live, self._identity(live), self._settings.smoothing, times))


def _finish(live: _Live, embedding: F32, sigma: float, times: F64) -> Track:
    """``times`` are the seconds of all frames from its first to its last."""
    at = np.array(live.frames, np.int64)
    frames = np.arange(at[0], at[-1] + 1)

    def fill(values: Sequence[F32 | float]) -> F64:
        flat = np.array(values, np.float64).reshape(len(at), -1)
        return np.stack([np.interp(frames, at, column) for column in flat.T], 1)

    after = np.searchsorted(at, frames)
    seen = times[at - at[0]]
    away = np.minimum(
        seen[after] - times, np.abs(times - seen[after - 1])
    )  # seconds to the nearest seen frame
    landmarks = smooth(fill([d.landmarks for d in live.found]), sigma, np.where(away > 0, 0.25, 1.0))
    return Track(
        id=0,
        shot=live.shot,
        frames=frames,
        boxes=fill([d.box for d in live.found]).astype(np.float32),
        landmarks=landmarks.reshape(-1, 5, 2).astype(np.float32),
        # A guessed frame is worth less the farther it is from a seen one.
        scores=(fill([d.score for d in live.found])[:, 0] * _FADE**away).astype(np.float32),
        embedding=embedding,
    )


def smooth(values: F64, sigma: float, weights: F64 | None = None) -> F64:
    """Zero-phase smoothing of (N, C) over time: a line fitted around each frame, Gaussian weights.

    Inside a long run this is a Gaussian of ``sigma`` frames; unlike it, motion at constant speed is
    kept exactly, to the first and last frame. ``weights`` (N,) says how far each frame is trusted.
    """
    count = len(values)
    if sigma < 0.1 or count < 2:  # narrower than this, a frame has no neighbours
        return values.copy()
    reach = max(1, int(np.ceil(4 * sigma)))
    step = np.arange(-reach, reach + 1)
    at = np.arange(count)[:, None] + step
    inside = (at >= 0) & (at < count)
    at = at.clip(0, count - 1)
    trust = np.ones(count) if weights is None else weights
    w = np.exp(-0.5 * (step / sigma) ** 2) * inside * trust[at]
    s0, s1, s2 = w.sum(1), (w * step).sum(1), (w * step**2).sum(1)
    kernel = w * (s2[:, None] - s1[:, None] * step) / (s0 * s2 - s1**2)[:, None]
    return cast(F64, np.einsum("nk,nkc->nc", kernel, values[at]))


def aligned_face(rgb: U8, landmarks: F32) -> U8:
    """The face as identity networks take it: ArcFace's template, (112, 112, 3) uint8 RGB."""
    matrix = estimate_similarity(landmarks.astype(np.float64), ARCFACE_TEMPLATE)
    return warp(rgb, matrix, 112)


def frontal(landmarks: F32) -> float:
    """1 for a face straight on, towards 0 for a profile: where the nose is between the eyes."""
    eyes = landmarks[1] - landmarks[0]
    along = float((landmarks[2] - landmarks[0]) @ eyes) / max(float(eyes @ eyes), 1e-6)
    return max(0.05, 1 - 2 * abs(along - 0.5))


def _reachable(box: F32, other: F32) -> bool:
    """Near enough and of a like size to be the same face a moment later."""
    a, b = box[2:] - box[:2], other[2:] - other[:2]
    away = float(np.linalg.norm((box[:2] + box[2:] - other[:2] - other[2:]) / 2))
    ratio = float(np.sqrt((a.prod() + 1e-6) / (b.prod() + 1e-6)))
    return away <= 2 * float(np.sqrt(a.prod())) and 0.5 < ratio < 2


def _solve(cost: NDArray[np.float64]) -> dict[int, int]:
    from scipy.optimize import linear_sum_assignment  # a quarter of a second, for who only aligns a face

    rows, columns = linear_sum_assignment(cost)
    return {int(c): int(r) for r, c in zip(rows, columns, strict=True) if cost[r, c] < 1e3}
