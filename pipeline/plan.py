"""The plan: what analysis found and what rendering will do, as a file that people can read and edit.

``plan.json`` holds the clip's facts, the shots, the tracks (one row a frame) with the person each shows
and the source it gets, and the segments. Numbers are rounded when written, and rendering always works
from what is read back, so a plan gives the same bytes whether it was just made, resumed or copied
elsewhere. Editing: set a track's ``source`` to null to leave it alone, or to the number of a source (that
of the first --source is 0); give a track another ``person``; delete a row to leave one frame alone; move
the landmarks. Only the segments touched are rendered again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import JobError
from ..stages.records import NEIGHBOURS, ClipInfo, Segment, Track

VERSION = 1
COLUMNS = (
    "frame", "x0", "y0", "x1", "y1", "right_eye_x", "right_eye_y", "left_eye_x", "left_eye_y",
    "nose_x", "nose_y", "right_mouth_x", "right_mouth_y", "left_mouth_x", "left_mouth_y", "score",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What to render. ``shots`` are [start, stop) ranges of frames; ``sources`` maps a track's id to
    the index of the source it gets (tracks that stay as they are have none), ``people`` to the number of
    the person it shows."""

    clip: ClipInfo
    shots: tuple[tuple[int, int], ...]
    tracks: tuple[Track, ...]
    sources: dict[int, int]
    segments: tuple[Segment, ...]
    people: dict[int, int] = field(default_factory=dict)

    def swapped_tracks(self, segment: Segment, margin: int = 0) -> list[Track]:
        """The tracks to swap in a segment, each cut to its rows there, in the order of their ids; with a
        ``margin``, their rows in as many frames before and after are left too."""
        wanted = (t for t in self.tracks if t.id in self.sources)
        here = [t for t in wanted if len(slice_track(t, segment.start, segment.stop).frames)]
        first, last = segment.start - margin, segment.stop + margin
        return sorted((slice_track(t, first, last) for t in here), key=lambda t: t.id)

    def swapped_frames(self) -> int:
        """Number of faces that will be swapped, over all segments."""
        return sum(len(t.frames) for t in self.tracks if t.id in self.sources)

    def segment_digest(self, segment: Segment, job: str) -> str:
        """SHA-256 naming what a segment's file must hold: the job's digest and all it is made of here."""
        seen = self.swapped_tracks(segment, NEIGHBOURS)
        first, last = segment.start - NEIGHBOURS, segment.stop + NEIGHBOURS
        # Where a track ends, unless that is too far to be seen: a swap fades there, and not at a hole.
        whole = {t.id: t.frames for t in self.tracks}
        ends = {t.id: (max(int(whole[t.id][0]), first), min(int(whole[t.id][-1]), last)) for t in seen}
        rows = [[t.id, self.sources[t.id], ends[t.id], _rows(t)] for t in seen]
        shot = self.shots[segment.shot]
        times = [
            [self.clip.timestamps[i], self.clip.durations[i] if i < len(self.clip.durations) else 0]
            for i in range(segment.start, segment.stop)
        ]
        text = json.dumps([job, segment.start, segment.stop, shot, str(self.clip.time_base), times, rows])
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """The text of ``plan.json``: one line per row of a track."""
        tracks = ",\n".join(
            _track_text(t, self.people.get(t.id), self.sources.get(t.id)) for t in self.tracks
        )
        segments = ",\n".join(f"    [{s.index}, {s.start}, {s.stop}, {s.shot}]" for s in self.segments)
        clip = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in _clip_dict(self.clip).items())
        return (
            f'{{\n  "version": {VERSION},\n  "clip": {{\n{clip}\n  }},\n'
            f'  "shots": {json.dumps(self.shots)},\n'
            f'  "tracks": [\n{tracks}\n  ],\n'
            f'  "segment_columns": ["index", "start", "stop", "shot"],\n'
            f'  "segments": [\n{segments}\n  ]\n}}\n'
        )

    @classmethod
    def from_json(cls, text: str, name: str = "plan.json") -> Plan:
        """Read a plan back, checking what an edit can break.

        Raises:
            JobError: not JSON, not a plan of this version, or shots, tracks and segments that don't fit the
                clip.
        """
        try:
            data = json.loads(text)
            if data["version"] != VERSION:
                raise ValueError(f"it is of version {data['version']}, this ldvid reads {VERSION}")
            clip = _clip_from(data["clip"])
            tracks = tuple(_track_from(t) for t in data["tracks"])
            sources = {int(t["id"]): int(t["source"]) for t in data["tracks"] if t["source"] is not None}
            people = {int(t["id"]): int(t["person"]) for t in data["tracks"] if t.get("person") is not None}
            segments = tuple(Segment(*(int(v) for v in row)) for row in data["segments"])
            shots = tuple((int(a), int(b)) for a, b in data["shots"])
            _check(clip, shots, tracks, sources, segments)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise JobError(f"{name}: can't be used as a plan: {reason}") from error
        return cls(clip, shots, tracks, sources, segments, people)


def cut_segments(shots: Iterable[tuple[int, int]], length: int) -> tuple[Segment, ...]:
    """Cut each shot [start, stop) into segments of ``length`` frames from its own start."""
    pieces = [
        (start, min(start + length, last), shot)
        for shot, (first, last) in enumerate(shots)
        for start in range(first, last, length)
    ]
    return tuple(Segment(index, start, stop, shot) for index, (start, stop, shot) in enumerate(pieces))


def slice_track(track: Track, start: int, stop: int) -> Track:
    """The rows of a track whose frames lie in [start, stop)."""
    a, b = (int(v) for v in np.searchsorted(track.frames, (start, stop)))
    return replace(
        track,
        frames=track.frames[a:b],
        boxes=track.boxes[a:b],
        landmarks=track.landmarks[a:b],
        scores=track.scores[a:b],
    )


def frame_ranges(frames: Iterable[int]) -> list[tuple[int, int]]:
    """Sorted frame indices as inclusive ranges: 0 1 2 5 → (0, 2) (5, 5)."""
    ranges: list[tuple[int, int]] = []
    for frame in sorted(set(frames)):
        if ranges and ranges[-1][1] == frame - 1:
            ranges[-1] = (ranges[-1][0], frame)
        else:
            ranges.append((frame, frame))
    return ranges


def _check(
    clip: ClipInfo,
    shots: Sequence[tuple[int, int]],
    tracks: Sequence[Track],
    sources: dict[int, int],
    segments: Sequence[Segment],
) -> None:
    expected = 0
    for number, (start, stop) in enumerate(shots):
        if start != expected or stop <= start:
            raise ValueError(f"shot {number} must start at frame {expected} and end after it")
        expected = stop
    if expected != clip.frames:
        raise ValueError(f"the shots end at frame {expected}, the clip at {clip.frames}")
    expected = 0
    for number, segment in enumerate(segments):
        if segment.index != number or segment.start != expected or segment.stop <= segment.start:
            raise ValueError(f"segment {number} must have that index and start at frame {expected}")
        if not 0 <= segment.shot < len(shots):
            raise ValueError(f"segment {number} names shot {segment.shot}, there are {len(shots)}")
        first, last = shots[segment.shot]
        if not first <= segment.start < segment.stop <= last:
            raise ValueError(f"segment {number} doesn't lie inside shot {segment.shot}")
        expected = segment.stop
    if expected != clip.frames:
        raise ValueError(f"the segments end at frame {expected}, the clip at {clip.frames}")
    if len({t.id for t in tracks}) != len(tracks):
        raise ValueError("two tracks have the same id")
    for track in tracks:
        if not 0 <= track.shot < len(shots):
            raise ValueError(f"track {track.id} names shot {track.shot}, there are {len(shots)}")
        if len(track.frames) and (track.frames[0] < 0 or track.frames[-1] >= clip.frames):
            raise ValueError(f"track {track.id} has rows outside the clip's {clip.frames} frames")
        if (np.diff(track.frames) <= 0).any():
            raise ValueError(f"the rows of track {track.id} are not in the order of their frames")
    for track in tracks:
        if sources.get(track.id, 0) < 0:
            raise ValueError(
                f"the source of track {track.id} must be the number of a --source, from 0, or null"
            )


def _clip_dict(clip: ClipInfo) -> dict[str, Any]:
    values = {f.name: getattr(clip, f.name) for f in fields(clip)}
    return {k: str(v) if isinstance(v, Fraction | Path) else v for k, v in values.items()}


def _clip_from(values: dict[str, Any]) -> ClipInfo:
    known = {f.name for f in fields(ClipInfo)}
    v: dict[str, Any] = {k: tuple(x) if isinstance(x, list) else x for k, x in values.items() if k in known}
    v |= {"path": Path(v["path"]), "time_base": Fraction(v["time_base"]), "rate": Fraction(v["rate"])}
    if v.get("sample_aspect_ratio") is not None:
        v["sample_aspect_ratio"] = Fraction(v["sample_aspect_ratio"])
    if v["kind"] not in ("video", "folder"):
        raise ValueError(f"its clip is a {v['kind']}; video and folder are known")
    for key, kind in (("timestamps", int), ("durations", int), ("files", str), ("warnings", str)):
        if not all(type(x) is kind for x in v.get(key, ())):
            raise ValueError(f"the clip's {key} hold something else than {kind.__name__}")
    v |= {k: int(v[k]) for k in ("width", "height", "first_frame", "rotation") if k in v}
    return ClipInfo(**v)


def _rows(track: Track) -> list[list[float]]:
    n = len(track.frames)
    numbers = np.concatenate(
        [track.boxes.reshape(n, 4), track.landmarks.reshape(n, 10), track.scores.reshape(n, 1)], axis=1
    ).astype(np.float64)
    return [[int(f), *map(float, row)] for f, row in zip(track.frames, numbers.round(3), strict=True)]


def _track_text(track: Track, person: int | None, source: int | None) -> str:
    rows = ",\n".join(f"        {json.dumps(row)}" for row in _rows(track))
    embedding = [float(v) for v in track.embedding.astype(np.float64).round(6)]
    return (
        f'    {{\n      "id": {track.id},\n      "shot": {track.shot},\n'
        f'      "person": {json.dumps(person)},\n      "source": {json.dumps(source)},\n'
        f'      "embedding": {json.dumps(embedding)},\n      "columns": {json.dumps(COLUMNS)},\n'
        f'      "rows": [\n{rows}\n      ]\n    }}'
    )


def _track_from(data: dict[str, Any]) -> Track:
    rows = np.asarray(data["rows"], np.float64).reshape(-1, len(COLUMNS))
    if not np.isfinite(rows).all():
        raise ValueError(f"track {data['id']} has a row with something that is no number")
    embedding = np.asarray(data["embedding"], np.float32).reshape(-1)
    if not np.isfinite(embedding).all():
        raise ValueError(f"track {data['id']} has an embedding with something that is no number")
    return Track(
        id=int(data["id"]),
        shot=int(data["shot"]),
        frames=rows[:, 0].astype(np.int64),
        boxes=rows[:, 1:5].astype(np.float32),
        landmarks=rows[:, 5:15].astype(np.float32).reshape(-1, 5, 2),
        scores=rows[:, 15].astype(np.float32),
        embedding=embedding,
    )
