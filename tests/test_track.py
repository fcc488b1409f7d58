"""Tracking on made-up detections, where the truth is known, and on the example clip."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ldvid.configs.settings import Settings
from ldvid.stages.align import ARCFACE_TEMPLATE, estimate_similarity, warp
from ldvid.stages.detect import open_detector
from ldvid.stages.people import find_people
from ldvid.stages.records import F32, U8, Detection, Track
from ldvid.stages.swap.pack import open_pack
from ldvid.stages.track import MAX_GAP, Tracker, aligned_face, smooth

ROOT = Path(__file__).resolve().parents[1]
# Five points of an upright face, as shares of its box.
FACE = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
RED, BLUE = (220, 30, 30), (30, 30, 220)


def detection(x: float, y: float, side: float = 40, score: float = 0.9) -> Detection:
    box = np.array([x, y, x + side, y + side], np.float32)
    return Detection(box, (FACE * side + [x, y]).astype(np.float32), score)


def embed(crop: U8) -> F32:
    """Stands for an identity network: people differ by colour here."""
    vector = crop.astype(np.float64).mean((0, 1)) - 80
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class Scene:
    """Draws people as coloured squares and tracks them."""

    def __init__(self, times: list[float] | None = None, **settings: object) -> None:
        self.calls = 0
        self.tracker = Tracker(Settings(smoothing=0, **settings), self._embed, times)  # type: ignore[arg-type]
        self.index = 0

    def _embed(self, crop: U8) -> F32:
        assert crop.shape == (112, 112, 3) and crop.dtype == np.uint8
        self.calls += 1
        return embed(crop)

    def show(self, *people: tuple[tuple[int, int, int], Detection], cut: bool = False) -> None:
        """One frame; the last named is in front."""
        rgb = np.full((120, 400, 3), 80, np.uint8)
        for colour, who in people:
            x0, y0, x1, y1 = who.box.round().astype(int)
            rgb[y0:y1, x0:x1] = colour
        faces = [d for _, d in people]
        self.tracker.follow(self.index, faces, [aligned_face(rgb, d.landmarks) for d in faces], cut)
        self.index += 1


def test_a_steady_face_is_one_track() -> None:
    scene = Scene()
    for i in range(60):
        scene.show((RED, detection(10 + 3 * i, 20)))
    (track,) = scene.tracker.finish()
    assert track.frames.tolist() == list(range(60)) and track.shot == 0 and track.id == 0
    np.testing.assert_allclose(track.boxes[:, 0], 10 + 3 * np.arange(60), atol=1e-3)
    assert np.linalg.norm(track.embedding) == pytest.approx(1, abs=1e-5)
    assert scene.calls <= 5  # identity is expensive: only a few looks


def test_people_who_cross_keep_their_names() -> None:
    scene = Scene()
    for i in range(41):
        red, blue = (RED, detection(20 + 5 * i, 20)), (BLUE, detection(220 - 5 * i, 24))
        hidden = abs(red[1].box[0] - blue[1].box[0]) < 20  # blue walks behind red
        scene.show(red) if hidden else scene.show(blue, red)
    tracks = scene.tracker.finish()
    assert len(tracks) == 2
    for track in tracks:
        start, end = float(track.boxes[0, 0]), float(track.boxes[-1, 0])
        assert (end - start) == pytest.approx(200 if start < 100 else -200)
        assert track.frames.tolist() == list(range(41))


def test_turning_back_at_the_crossing_is_told_by_identity() -> None:
    # They meet and return where they came from: by speed alone they would have passed each other.
    scene = Scene()
    for i in range(41):
        step = min(i, 40 - i)
        scene.show((BLUE, detection(150 - 3 * step, 20)), (RED, detection(60 + 3 * step, 20)))
    tracks = scene.tracker.finish()
    assert sorted(float(t.boxes[-1, 0]) for t in tracks) == [60, 150]
    for track in tracks:
        assert track.boxes[0, 0] == track.boxes[-1, 0]


def test_a_short_gap_is_filled_and_scores_fall_in_it() -> None:
    scene = Scene()
    for i in range(30):
        scene.show() if 10 <= i < 18 else scene.show((RED, detection(10 + 2 * i, 20)))
    (track,) = scene.tracker.finish()
    assert track.frames.tolist() == list(range(30))
    np.testing.assert_allclose(track.boxes[:, 0], 10 + 2 * np.arange(30), atol=1e-3)
    np.testing.assert_allclose(track.landmarks[14], detection(38, 20).landmarks, atol=1e-3)
    assert track.scores[13] < track.scores[11] < track.scores[9]
    assert track.scores[9] == pytest.approx(0.9)


@pytest.mark.parametrize("rate", [12, 24, 25, 30000 / 1001, 60])
@pytest.mark.parametrize("more", [0, 1])
def test_a_gap_may_be_half_a_second_long_whatever_the_rate(rate: float, more: int) -> None:
    missing = int((MAX_GAP + 0.002) * rate) + more  # containers round times
    scene = Scene([i / rate for i in range(20 + missing)])
    for i in range(20 + missing):
        scene.show() if 10 <= i < 10 + missing else scene.show((RED, detection(50, 20)))
    tracks = scene.tracker.finish()
    assert len(tracks) == 1 + more
    assert sum(len(t.frames) for t in tracks) == (20 if more else 20 + missing)


def test_a_gap_is_timed_by_the_clock_where_frames_are_not_even() -> None:
    # 5 frames unseen of 0.05 s each are bridged, of 0.2 s each are not; in the gap scores fall with time.
    for pause, count in ((0.05, 1), (0.2, 2)):
        spans = [0.04] * 10 + [pause] * 5 + [0.04] * 10
        times = np.concatenate([[0], np.cumsum(spans)]).tolist()
        scene = Scene(times)
        for i in range(25):
            scene.show() if 10 <= i < 15 else scene.show((RED, detection(50, 20)))
        tracks = scene.tracker.finish()
        assert len(tracks) == count
    slow, fast = (Scene([i / rate for i in range(20)]) for rate in (12, 60))
    for scene in (slow, fast):
        for i in range(20):
            scene.show() if 10 <= i < 13 else scene.show((RED, detection(50, 20)))
    (a,), (b,) = slow.tracker.finish(), fast.tracker.finish()
    assert a.scores[11] < b.scores[11] < b.scores[9]
    assert a.scores[10] == pytest.approx(0.9 * 0.02 ** (1 / 12), rel=1e-4)


def test_somebody_else_in_the_same_place_is_another_track() -> None:
    scene = Scene()
    for i in range(30):
        scene.show() if 10 <= i < 15 else scene.show((RED if i < 10 else BLUE, detection(50, 20)))
    first, second = scene.tracker.finish()
    assert first.frames.tolist() == list(range(10)) and second.frames.tolist() == list(range(15, 30))


def test_a_leap_is_followed_if_it_is_the_same_person() -> None:
    for colour, count in ((RED, 1), (BLUE, 2)):
        scene = Scene()
        for i in range(20):
            scene.show((RED if i < 10 else colour, detection(50 if i < 10 else 100, 20)))
        assert len(scene.tracker.finish()) == count


def test_tracks_end_at_a_cut() -> None:
    scene = Scene()
    for i in range(20):
        scene.show((RED, detection(50, 20)), cut=i in (0, 12))
    tracks = scene.tracker.finish()
    assert [(t.shot, int(t.frames[0]), len(t.frames)) for t in tracks] == [(0, 0, 12), (1, 12, 8)]
    assert find_people(tracks, [1.0] * 20) == {0: 0, 1: 0}


def test_a_shot_shorter_than_a_track_must_be_still_has_its_face() -> None:
    scene = Scene(min_track_frames=3)
    for i in range(7):  # shots of 4, 1 and 2 frames; in the last, one frame is too little
        people = [(RED, detection(20, 20))]
        if i == 6:
            people.append((BLUE, detection(200, 20)))
        scene.show(*people, cut=i in (4, 5))
    found = [(t.shot, t.frames.tolist()) for t in scene.tracker.finish()]
    assert found == [(0, [0, 1, 2, 3]), (1, [4]), (2, [5, 6])]
    single = Scene()
    single.show((RED, detection(20, 20)))
    assert len(single.tracker.finish()) == 1  # a clip of one frame


def test_short_tracks_are_dropped_and_no_detection_is_no_track() -> None:
    scene = Scene(min_track_frames=3)
    for i in range(20):
        scene.show(*([(RED, detection(50, 20))] if i in (4, 5) else []))
    assert scene.tracker.finish() == []


@given(
    st.integers(2, 40),
    st.floats(0, 6),
    st.tuples(st.floats(-500, 500), st.floats(-30, 30)),
    st.data(),
)
def test_smoothing_keeps_steady_motion_exactly(
    count: int, sigma: float, motion: tuple[float, float], data: st.DataObject
) -> None:
    weights = np.array(data.draw(st.lists(st.sampled_from([0.25, 1.0]), min_size=count, max_size=count)))
    line = (motion[0] + motion[1] * np.arange(count))[:, None]
    np.testing.assert_allclose(smooth(line, sigma, weights), line, atol=1e-7)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.floats(0, 4))
def test_smoothing_has_no_direction(values: list[float], sigma: float) -> None:
    forwards = smooth(np.array(values)[:, None], sigma)
    np.testing.assert_allclose(smooth(np.array(values)[::-1, None], sigma)[::-1], forwards, atol=1e-6)


def test_smoothing_takes_noise_away_without_delay() -> None:
    rng = np.random.default_rng(1)
    t = np.arange(200)
    clean = 20 * np.sin(2 * np.pi * t / 60)
    noisy = clean + rng.normal(0, 1, 200)
    smoothed = smooth(noisy[:, None], 2.0)[:, 0]
    assert np.std(smoothed - clean) < 0.5
    lags = [float(np.sum(smoothed[5:-5] * clean[5 + k : 195 + k])) for k in (-1, 0, 1)]
    assert lags[1] == max(lags)
    assert np.array_equal(smooth(noisy[:, None], 0.0)[:, 0], noisy)


def test_the_example_clip_is_one_track(tmp_path: Path) -> None:
    detector = open_detector(open_pack("starter"), 0.6)
    calls: list[U8] = []

    def stand_in(crop: U8) -> F32:
        calls.append(crop)
        return embed(crop)

    smoothed, raw = (Tracker(Settings(smoothing=s), stand_in) for s in (1.0, 0.0))
    with av.open(str(ROOT / "examples/clip.mp4")) as container:
        for i, frame in enumerate(container.decode(video=0)):
            rgb = frame.to_ndarray(format="rgb24")
            found = detector.detect(rgb)
            crops = [aligned_face(rgb, d.landmarks) for d in found]
            smoothed.follow(i, found, crops, False)
            raw.follow(i, found, crops, False)
    (calm,), (shaky,) = smoothed.finish(), raw.finish()
    assert calm.frames.tolist() == list(range(48))
    assert len(calls) <= 10
    eyes = float(np.linalg.norm(calm.landmarks[:, 1] - calm.landmarks[:, 0], axis=1).mean())

    def jitter(t: Track) -> float:
        return float(np.abs(np.diff(t.landmarks, 2, axis=0)).mean()) / eyes

    assert jitter(calm) < 0.4 * jitter(shaky)
    assert np.abs(calm.landmarks - shaky.landmarks).max() < 0.06 * eyes
    # What identity sees is the upright face: the eyes are darker than the cheeks below them.
    crop = calls[0].astype(float).mean(-1)
    assert crop[48:56, 34:42].mean() < crop[62:70, 34:42].mean() - 10


def test_the_aligned_face_is_the_warp_of_the_whole_frame() -> None:
    rng = np.random.default_rng(2)
    picture = cv2.GaussianBlur(rng.integers(0, 255, (500, 700, 3), np.uint8), (0, 0), 3)
    for side, x, y in ((260, 200, 100), (60, 630, 450), (400, -150, -90)):
        points = (FACE * side + [x, y]).astype(np.float32)
        whole = warp(picture, estimate_similarity(points, ARCFACE_TEMPLATE), 112)
        np.testing.assert_allclose(aligned_face(picture, points).astype(int), whole.astype(int), atol=2)


def test_two_people_may_be_lost_in_the_same_frame() -> None:
    scene = Scene()
    left, right = (RED, detection(20, 20)), (BLUE, detection(200, 20))
    for _ in range(5):
        scene.show(left, right)
    for _ in range(20):  # well over half a second
        scene.show()
    tracks = scene.tracker.finish()
    assert [t.frames.tolist() for t in tracks] == [[0, 1, 2, 3, 4]] * 2
