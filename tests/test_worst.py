"""Worst frames of a report: which they are, in what order, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ldvid.metrics.worst import APART, FaceFrame, crossing, findings

GOOD = FaceFrame(
    frame=0, track=0, person=0, shot=0, score=0.95, identity=0.95, before=0.8, pose=(1.0, 1.0, 0.0), yaw=5.0,
    eyes=60.0, found=0.95, drift=2.0, stillness=1.0, motion=0.01,
)  # fmt: skip


def clip_of(**bad: Any) -> list[FaceFrame]:
    """40 good frames, frame 20 of them changed."""
    return [replace(GOOD, frame=i, **(bad if i == 20 else {})) for i in range(40)]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (
            {"identity": 0.90},
            "less like the source: identity 0.90, this person's median is 0.95 (0.80 before",
        ),
        ({"pose": (9.0, -2.0, 0.2)}, "points 9.2° away from the original's (yaw +9°, pitch -2°)"),
        ({"stillness": 1.6}, "flickers: changes 1.60 times"),
        ({"drift": 9.0}, "features moved by 9.0 %"),
        ({"found": 0.0, "drift": None}, "the detector finds no face in the swap (0.95 in the original)"),
    ],
)
def test_the_worst_frame_comes_first_with_its_reason(bad: dict[str, Any], words: str) -> None:
    faces = clip_of(**bad)
    first, *others = findings(faces)
    assert first.face.frame == 20 and first.severity >= 1 and crossing(faces) == 1
    assert len(first.reasons) == 1 and words in first.reasons[0]
    assert len(others) == 5, "six are shown even if fewer cross a limit"
    assert all(f.severity < 1 and f.reasons[0].startswith("within all limits") for f in others)


def test_what_may_explain_a_frame_is_said() -> None:
    bad = {
        "yaw": -60.0,
        "eyes": 20.0,
        "cut": True,
        "score": 0.61,
        "motion": 0.3,
        "stillness": 2.0,
        "fresh": True,
    }
    context = " / ".join(findings(clip_of(**bad))[0].context)
    for words in ("profile (yaw -60°)", "20 px", "outside the frame", "score 0.61", "fast", "starts afresh"):
        assert words in context
    assert not findings(clip_of(stillness=2.0))[0].context


def test_a_small_face_may_move_by_two_pixels() -> None:
    assert crossing(clip_of(drift=9.0)) == 1
    assert crossing(clip_of(drift=9.0, eyes=20.0)) == 0
    assert crossing(clip_of(drift=11.0, eyes=20.0)) == 1


def test_several_reasons_are_sorted_by_how_bad_they_are() -> None:
    first = findings(clip_of(pose=(9.0, 0.0, 0.0), stillness=3.0, drift=9.0))[0]
    assert [r.split()[0] for r in first.reasons] == ["flickers:", "the", "features"] or first.reasons[0][
        0
    ] == "f"
    assert len(first.reasons) == 3 and first.reasons[0].startswith("flickers")


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.5, 4)), min_size=1, max_size=60), st.integers(1, 3))
def test_worst_frames_are_sorted_apart_and_never_too_many(
    rows: list[tuple[float, float]], people: int
) -> None:
    faces = [
        replace(GOOD, frame=i, person=i % people, identity=a, stillness=b) for i, (a, b) in enumerate(rows)
    ]
    found = findings(faces)
    assert 1 <= len(found) <= 12
    assert [f.severity for f in found] == sorted((f.severity for f in found), reverse=True)
    for one in found:
        for two in found:
            if one is not two and one.face.person == two.face.person:
                assert abs(one.face.frame - two.face.frame) >= APART
