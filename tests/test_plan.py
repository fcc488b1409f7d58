"""The plan: what is written reads back the same, segments tile the clip, edits are checked and cost
only the segments they touch."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ldvid.errors import JobError
from ldvid.pipeline.plan import Plan, cut_segments, frame_ranges, slice_track
from ldvid.stages.records import NEIGHBOURS, ClipInfo, Track


def make_plan(frames: int = 100, segment_frames: int = 24) -> Plan:
    """Two shots, a person in each; the second track starts late and has a gap."""
    rng = np.random.default_rng(0)

    def track(number: int, shot: int, at: list[int]) -> Track:
        n = len(at)
        return Track(
            id=number,
            shot=shot,
            frames=np.array(at, np.int64),
            boxes=rng.uniform(0, 500, (n, 4)).astype(np.float32),
            landmarks=rng.uniform(0, 500, (n, 5, 2)).astype(np.float32),
            scores=rng.uniform(0, 1, n).astype(np.float32),
            embedding=rng.normal(size=8).astype(np.float32),
        )

    clip = ClipInfo(
        path=Path("a clip.mp4"),
        kind="video",
        width=640,
        height=360,
        time_base=Fraction(1, 12800),
        rate=Fraction(30000, 1001),
        pix_fmt="yuv420p",
        codec="h264",
        timestamps=tuple(range(0, frames * 512, 512)),
        durations=(512,) * frames,
        sample_aspect_ratio=Fraction(4, 3),
        color_trc=1,
        warnings=("something",),
    )
    shots = ((0, 40), (40, frames))
    tracks = (track(0, 0, list(range(40))), track(3, 1, [45, 46, 50, *range(60, frames)]))
    return Plan(clip, shots, tracks, {0: 0, 3: 1}, cut_segments(shots, segment_frames), {0: 1, 3: 0})


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 30))
def test_segments_tile_the_clip_and_never_cross_a_cut(lengths: list[int], size: int) -> None:
    ends = np.cumsum(lengths).tolist()
    shots = list(zip([0, *ends[:-1]], ends, strict=True))
    segments = cut_segments(shots, size)
    assert [s.index for s in segments] == list(range(len(segments)))
    assert [f for s in segments for f in range(s.start, s.stop)] == list(range(ends[-1]))
    for s in segments:
        first, last = shots[s.shot]
        assert first <= s.start < s.stop <= last
        assert (s.start - first) % size == 0
        assert s.stop - s.start == size or s.stop == last


@given(st.sets(st.integers(0, 60)))
def test_ranges_hold_exactly_the_frames(frames: set[int]) -> None:
    ranges = frame_ranges(frames)
    assert {f for a, b in ranges for f in range(a, b + 1)} == frames
    assert all(b + 1 < c for (_, b), (c, _) in pairwise(ranges))


def test_reading_back_is_exact_after_the_first_time() -> None:
    plan = make_plan()
    once = Plan.from_json(plan.to_json())
    assert once.clip == plan.clip
    assert (once.shots, once.sources, once.segments) == (plan.shots, plan.sources, plan.segments)
    assert once.people == plan.people == {0: 1, 3: 0}
    assert np.abs(once.tracks[1].landmarks - plan.tracks[1].landmarks).max() <= 0.0006
    twice = Plan.from_json(once.to_json())
    assert once.to_json() == twice.to_json() == plan.to_json()
    for a, b in zip(once.tracks, twice.tracks, strict=True):
        for name in ("frames", "boxes", "landmarks", "scores", "embedding"):
            left, right = getattr(a, name), getattr(b, name)
            assert left.dtype == right.dtype == getattr(plan.tracks[0], name).dtype
            np.testing.assert_array_equal(left, right)


@given(st.integers(0, 100), st.integers(0, 100))
def test_slice_keeps_exactly_the_rows_between(start: int, stop: int) -> None:
    track = make_plan().tracks[1]
    part = slice_track(track, start, stop)
    keep = (track.frames >= start) & (track.frames < stop)
    np.testing.assert_array_equal(part.frames, track.frames[keep])
    np.testing.assert_array_equal(part.landmarks, track.landmarks[keep])


def test_an_edit_changes_the_digest_of_its_own_segment_and_its_neighbours_only() -> None:
    plan = Plan.from_json(make_plan().to_json())
    digests = [plan.segment_digest(s, "job") for s in plan.segments]
    assert len(set(digests)) == len(digests)
    data = json.loads(plan.to_json())
    row = next(r for r in data["tracks"][1]["rows"] if r[0] == 70)
    row[5] += 1.0
    edited = Plan.from_json(json.dumps(data))
    changed = [
        s.index for s, d in zip(plan.segments, digests, strict=True) if edited.segment_digest(s, "job") != d
    ]
    near = [s for s in plan.segments if s.start - NEIGHBOURS <= 70 < s.stop + NEIGHBOURS]
    assert 1 < len(near) < len(plan.segments)
    assert changed == [s.index for s in near]
    assert all(plan.segment_digest(s, "other job") != d for s, d in zip(plan.segments, digests, strict=True))


def test_where_a_track_begins_counts_if_it_is_near_enough_to_fade() -> None:
    """Rows 0 to 45 taken out, or all of them but the first: row 46 begins the track, or follows a hole."""
    plan = make_plan(frames=140)
    whole = replace(plan.tracks[0], shot=0, frames=np.arange(40))
    long = replace(
        whole, frames=np.arange(140), boxes=np.zeros((140, 4), np.float32),
        landmarks=np.zeros((140, 5, 2), np.float32), scores=np.ones(140, np.float32),
    )  # fmt: skip
    shots = ((0, 140),)
    segments = cut_segments(shots, 20)

    def digests(gone: range) -> list[str]:
        keep = ~np.isin(long.frames, gone)
        track = replace(
            long, frames=long.frames[keep], boxes=long.boxes[keep], landmarks=long.landmarks[keep],
            scores=long.scores[keep],
        )  # fmt: skip
        edited = replace(plan, shots=shots, tracks=(track,), sources={0: 0}, segments=segments)
        return [edited.segment_digest(s, "job") for s in segments]

    pairs = zip(digests(range(46)), digests(range(1, 46)), strict=True)
    different = [i for i, (a, b) in enumerate(pairs) if a != b]
    assert different == [0, 2], "0 has a face or not, 2 begins with a fade or doesn't; the rest is too far"


def test_a_tracks_source_is_part_of_its_segments_digest_and_its_person_is_not() -> None:
    plan = make_plan()
    given = replace(plan, sources={0: 0, 3: 2})
    for segment in plan.segments:
        same = plan.segment_digest(segment, "") == given.segment_digest(segment, "")
        assert same == (segment.shot == 0)
        renamed = replace(plan, people={0: 5}).segment_digest(segment, "")
        assert renamed == plan.segment_digest(segment, "")
    data = json.loads(plan.to_json())
    del data["tracks"][0]["person"]
    data["tracks"][1]["person"] = None
    assert Plan.from_json(json.dumps(data)).people == {}


def test_a_track_without_source_is_left_alone() -> None:
    data = json.loads(make_plan().to_json())
    data["tracks"][0]["source"] = None
    plan = Plan.from_json(json.dumps(data))
    assert plan.swapped_tracks(plan.segments[0]) == []
    assert plan.swapped_frames() == len(plan.tracks[1].frames)
    last = plan.swapped_tracks(plan.segments[-1])
    assert [t.id for t in last] == [3]
    assert last[0].frames[0] == plan.segments[-1].start


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d.update(version=99), "version 99"),
        (lambda d: d.pop("tracks"), "tracks"),
        (lambda d: d["segments"].pop(), "the segments end at frame"),
        (lambda d: d["segments"].pop(0), "segment 0"),
        (lambda d: d["tracks"][0]["rows"][0].pop(), "plan.json"),
        (lambda d: d["tracks"][0]["rows"].append([500, *[0.0] * 15]), "outside the clip"),
        (lambda d: d["tracks"][0]["rows"].reverse(), "order"),
        (lambda d: d["tracks"][0].update(source=-1), "source of track 0"),
        (lambda d: d["tracks"][0].update(shot=2), "track 0 names shot 2"),
        (lambda d: d["tracks"][0]["embedding"].__setitem__(0, None), "embedding"),
        (lambda d: d["shots"].pop(), "the shots end at frame 40"),
        (lambda d: d["shots"].reverse(), "shot 0"),
        (lambda d: d["shots"][1].__setitem__(0, 41), "shot 1 must start at frame 40"),
        (lambda d: d["segments"][0].__setitem__(3, 1), "segment 0 doesn't lie inside shot 1"),
        (lambda d: d["clip"].update(time_base="1/0"), "plan.json"),
        (lambda d: d["clip"]["timestamps"].__setitem__(0, "0"), "timestamps"),
        (lambda d: d.update(clip=[]), "plan.json"),
        (lambda d: d["tracks"][0].update(person="bob"), "bob"),
        (lambda d: d["tracks"][0].update(id=3), "same id"),
        (lambda d: d["tracks"][0]["rows"][0].__setitem__(3, float("nan")), "no number"),
    ],
)
def test_an_edit_that_breaks_the_plan_is_refused_by_name(edit: object, words: str) -> None:
    data = json.loads(make_plan().to_json())
    edit(data)  # type: ignore[operator]
    with pytest.raises(JobError) as caught:
        Plan.from_json(json.dumps(data), "here/plan.json")
    assert words in str(caught.value)
    assert "here/plan.json" in str(caught.value)


def test_not_json_is_refused() -> None:
    with pytest.raises(JobError, match="plan"):
        Plan.from_json("{")


def test_timestamps_are_part_of_a_segments_digest() -> None:
    plan = make_plan()
    times = (*plan.clip.timestamps[:-1], plan.clip.timestamps[-1] + 1)
    later = replace(plan, clip=replace(plan.clip, timestamps=times))
    same, other = plan.segments[0], plan.segments[-1]
    assert plan.segment_digest(same, "") == later.segment_digest(same, "")
    assert plan.segment_digest(other, "") != later.segment_digest(other, "")
