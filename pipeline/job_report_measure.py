"""Measuring a finished job, face by face, by networks that never guided it.

Frames are read in order, runs of them that don't touch at the same time; of each run never more than two
pairs are held, however long the clip.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..errors import FaceError, PackError
from ..metrics.judges import Judges, open_judges
from ..metrics.pair import landmark_error
from ..metrics.stillness import QUIET, Step, StillnessMeter
from ..metrics.worst import FaceFrame
from ..stages.detect import Detector, open_detector
from ..stages.folder import read_picture
from ..stages.records import F32, U8, Detection, Track
from ..stages.swap.pack import open_pack
from .job_report_inputs import Frames, Inputs, UsedSource
from .job_report_strands import each_strand, strands_of
from .plan import Plan
from .progress import Listener

MOST, FEW = 480, 24  # faces measured unless --every says otherwise; after a swap, unasked
Change = tuple[int, Step]  # of which person
_AROUND = 1.0  # of the face's box on each side, where it is looked for in the swap


@dataclass(frozen=True)
class SourceLook:
    """A source picture (H, W, 3) uint8 RGB, its face's landmarks (5, 2), the judge's embedding (J,)."""

    picture: U8
    landmarks: F32
    identity: F32


@dataclass(frozen=True)
class Measured:
    """All faces in the order of their frames. ``every``: one frame in so many; ``ratios``: each person's
    warp ratio over whole tracks; ``spreads``: standard deviation of identity, after and before."""

    faces: tuple[FaceFrame, ...]
    every: int
    total: int
    sources: tuple[SourceLook, ...]
    ratios: Mapping[int, float]
    spreads: Mapping[int, tuple[float, float]]
    notes: tuple[str, ...] = ()


def people_of(plan: Plan) -> dict[int, int]:
    """Track → person; a track that the plan gives to nobody is a person of its own."""
    free = itertools.count(max(plan.people.values(), default=-1) + 1)
    return {t.id: plan.people[t.id] if t.id in plan.people else next(free) for t in plan.tracks}


@dataclass
class _Networks:
    judges: Judges
    detector: Detector
    reopen: Callable[[], Detector]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, inputs: Inputs) -> _Networks:
        """The judges that the job's pack names and its detector; those of the embedded one if it is gone."""
        notes: list[str] = []
        if inputs.settings.get("debug_overlay"):
            notes.append("the output has a debug overlay, and what is drawn is measured with the face")
        try:
            pack = open_pack(inputs.pack)
            judges = open_judges(pack)
        except PackError as error:
            notes.append(f"measured with pack starter's detector and pose judge instead: {error}")
            pack = open_pack("starter")
            judges = open_judges(pack)
        threshold: Any = inputs.settings.get("detector_threshold", 0.6)
        reopen = partial(open_detector, pack, float(threshold))
        return cls(judges, reopen(), reopen, notes)

    def again(self) -> _Networks:
        """The same with a detector of its own, which only one may use at a time."""
        return replace(self, detector=self.reopen())

    def source(self, used: UsedSource) -> SourceLook:
        """Of several photographs the first is shown, and the mean of all counts."""
        looks = []
        for path in used.paths:
            picture = read_picture(path)
            found = self.detector.detect(picture)
            if len(found) < used.face:
                raise FaceError(f"{path}: face {used.face} was not found in it")
            points = found[used.face - 1].landmarks
            looks.append(SourceLook(picture, points, self.judges.identity.embed(picture, points)))
        mean = np.sum([look.identity for look in looks], axis=0)
        return replace(looks[0], identity=(mean / np.linalg.norm(mean)).astype(np.float32))

    def near(self, picture: U8, box: F32, landmarks: F32) -> Detection | None:
        """What the detector finds where the face was, looking around it only."""
        size = float((box[2:] - box[:2]).max()) * _AROUND
        height, width = picture.shape[:2]
        x0, y0 = (max(0, int(v)) for v in box[:2] - size)
        x1, y1 = min(width, int(box[2] + size) + 1), min(height, int(box[3] + size) + 1)
        if x1 - x0 < 16 or y1 - y0 < 16:
            return None
        corner = np.array([x0, y0], np.float32)
        found = self.detector.detect(np.ascontiguousarray(picture[y0:y1, x0:x1]))
        gap = float(np.linalg.norm(landmarks[1] - landmarks[0]))
        at = [float(np.linalg.norm(d.landmarks + corner - landmarks, axis=1).mean()) for d in found]
        if not at or min(at) > gap:
            return None
        best = found[int(np.argmin(at))]
        return Detection(best.box + np.tile(corner, 2), best.landmarks + corner, best.score)


def measure(
    inputs: Inputs,
    frames: Frames,
    listener: Listener,
    every: int | None = None,
    most: int = MOST,
    *,
    alone: bool = True,
) -> Measured:
    """Every face of the job, or those of every Nth frame that has any; by default as many as ``most`` allows.
    ``alone``: nothing else computes in this process, whose threads are shared out.

    Raises:
        FaceError: the source's face is not found any more.
        InputError: a frame can't be read.
    """
    networks = _Networks.load(inputs)
    sources = tuple(networks.source(s) for s in inputs.sources)
    tracks = [t for t in inputs.plan.tracks if t.id in inputs.plan.sources]
    rows = {t.id: {int(f): i for i, f in enumerate(t.frames) if int(f) in inputs.swapped} for t in tracks}
    total = sum(len(r) for r in rows.values())
    interval = int(inputs.settings.get("keyframe_interval") or 48)
    step = every if every is not None else max(1, -(-total // most))
    people = people_of(inputs.plan)
    there = sorted({f for r in rows.values() for f in r})
    wanted = set(there[::step])
    visited = sorted({*wanted, *(f for f in there if f + 1 in wanted)})  # each with the one before it

    def along(strand: list[int], hands: tuple[Frames, _Networks]) -> tuple[list[FaceFrame], list[Change]]:
        frames, networks = hands
        last = {t: max(r.keys() & set(strand), default=-1) for t, r in rows.items()}
        meters: dict[int, StillnessMeter] = {}
        faces, changes = list[FaceFrame](), list[Change]()
        for frame in strand:
            before, after = frames.pair(frame)
            for track in tracks:
                row = rows[track.id].get(frame)
                if row is None:
                    continue
                meter = meters.setdefault(track.id, StillnessMeter())
                change = meter.add(frame, before, after, track.landmarks[row])
                if frame == last[track.id]:
                    del meters[track.id]  # and the pictures it holds, as no frame of the track comes any more
                if change is not None:
                    changes.append((people[track.id], change))
                if frame in wanted:
                    source = sources[min(inputs.plan.sources[track.id], len(sources) - 1)]
                    face = _face(networks, (before, after), track, row, source)
                    stillness = None if change is None else change.ratio
                    since = frame - inputs.plan.shots[track.shot][0]
                    fresh = since > 0 and since % interval == 0
                    faces.append(FaceFrame(person=people[track.id], stillness=stillness, fresh=fresh, **face))
            if frame in wanted:
                listener.advance("report")
        return faces, changes

    @contextlib.contextmanager
    def more() -> Iterator[tuple[Frames, _Networks]]:
        with contextlib.closing(Frames(inputs)) as own:
            yield own, networks.again()

    listener.start("report", len(wanted))
    # Nothing is measured across a hole.
    done = each_strand(strands_of(visited), along, (frames, networks), more if alone else None)
    listener.finish("report")
    faces = [face for found, _ in done for face in found]
    steps: dict[int, list[Step]] = {}
    for person, change in (c for _, changes in done for c in changes):
        steps.setdefault(person, []).append(change)
    return Measured(
        tuple(faces),
        step,
        total,
        sources,
        {person: _ratio(taken) for person, taken in steps.items()},
        _spreads(faces),
        tuple(networks.notes),
    )


def _face(
    networks: _Networks, pictures: tuple[U8, U8], track: Track, row: int, source: SourceLook
) -> dict[str, Any]:
    judges, points, box = networks.judges, track.landmarks[row], track.boxes[row]
    before, after = (judges.identity.embed(p, points) for p in pictures)
    old, new = (judges.pose.pose(p, points) for p in pictures)
    found = networks.near(pictures[1], box, points)
    eyes = float(np.linalg.norm(points[1] - points[0]))
    height, width = pictures[0].shape[:2]
    moved = None
    if row and track.frames[row - 1] == track.frames[row] - 1:
        moved = float(np.linalg.norm(points - track.landmarks[row - 1], axis=1).mean()) / max(eyes, 1.0)
    turned = (new.astype(np.float64) - old + 180) % 360 - 180
    drift = None
    if found is not None and eyes > 0:
        drift = _drift(networks, pictures[0], box, points, found.landmarks)
    return {
        "frame": int(track.frames[row]),
        "track": track.id,
        "shot": track.shot,
        "score": float(track.scores[row]),
        "identity": float(after @ source.identity),
        "before": float(before @ source.identity),
        "pose": tuple(float(v) for v in turned),
        "yaw": float(old[0]),
        "eyes": eyes,
        "found": 0.0 if found is None else found.score,
        "drift": drift,
        "motion": moved,
        "cut": bool(box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height),
    }


def _drift(networks: _Networks, before: U8, box: F32, points: F32, now: F32) -> float:
    """Detector against detector: the track's landmarks are smoothed, which is no fault of the swap."""
    own = networks.near(before, box, points)
    return landmark_error(now, points if own is None else own.landmarks)


def _ratio(steps: Sequence[Step]) -> float:
    """The warp ratio of a person: ``Stillness.warp_ratio`` over all of their tracks."""
    after, before = (float(np.mean([getattr(s, k) for s in steps])) for k in ("swapped", "original"))
    return (after + QUIET) / (before + QUIET)


def _spreads(faces: Sequence[FaceFrame]) -> dict[int, tuple[float, float]]:
    people = {f.person for f in faces}
    return {
        p: (
            float(np.std([f.identity for f in faces if f.person == p])),
            float(np.std([f.before for f in faces if f.person == p])),
        )
        for p in people
    }
