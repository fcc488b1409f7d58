"""Averaging along the track: no boiling, no lag, nothing smeared, the same bytes wherever segments end."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.pipeline.plan import slice_track
from ldvid.stages.fade import fade_weights, share_inside
from ldvid.stages.flow import agreement, follow, optical_flow
from ldvid.stages.records import F32, NEIGHBOURS, Crops, Track
from ldvid.stages.rows import between
from ldvid.stages.steady import reach, steady

SIDE = 96
FACE = np.array([[35, 40], [61, 40], [48, 54], [38, 66], [58, 66]], np.float32)


def texture(seed: int, side: int = SIDE, sigma: float = 2.0) -> F32:
    """Blobs about ``sigma`` pixels wide, (side, side, 3) in about 60–200."""
    noise = np.random.default_rng(seed).normal(size=(side, side, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), sigma)
    return (130 + 30 * blurred / blurred.std()).clip(30, 220).astype(np.float32)


def shifted(picture: F32, x: float) -> F32:
    matrix = np.array([[1, 0, x], [0, 1, 0.0]])
    moved = cv2.warpAffine(picture, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT)
    return np.asarray(moved, np.float32)


def made(images: list[F32], swapped: list[F32], masks: F32 | None = None) -> Crops:
    n = len(images)
    oval = np.zeros((SIDE, SIDE), np.float32)
    cv2.circle(oval, (SIDE // 2, SIDE // 2), 36, 1.0, -1)
    return Crops(
        track=0,
        frames=np.arange(n),
        images=np.stack(images).round().astype(np.uint8),
        matrices=np.tile(np.eye(2, 3), (n, 1, 1)),
        landmarks=np.tile(FACE, (n, 1, 1)),
        masks=np.tile(oval, (n, 1, 1)) if masks is None else masks,
        swapped=np.stack(swapped).astype(np.float32),
    )


def noisy(picture: F32, seed: int, sigma: float = 6.0) -> F32:
    return picture + np.random.default_rng(seed).normal(0, sigma, picture.shape).astype(np.float32)


def test_flow_finds_the_shift_and_brings_the_second_picture_onto_the_first() -> None:
    first = texture(1)
    second = shifted(first, 3.0)
    a, b = (p.round().astype(np.uint8) for p in (first, second))
    there, back = optical_flow(a, b), optical_flow(b, a)
    middle = np.s_[20:-20, 20:-20]
    assert np.abs(there[middle] - [3, 0]).mean() < 0.2
    assert np.abs(follow(b, there)[middle] - a[middle]).mean() < 3
    assert np.abs(follow(a, there)[middle] - a[middle]).mean() > 10, "the other way it doesn't fit"
    assert agreement(there, back)[middle].mean() > 0.9
    assert agreement(there, np.full_like(back, 4.0))[middle].max() < 0.01


def test_flow_does_not_depend_on_the_number_of_threads() -> None:
    a, b = (shifted(texture(1, sigma=1.0), x).round().astype(np.uint8) for x in (0, 2.5))
    before, flows = cv2.getNumThreads(), []
    try:
        for threads in (1, 2, 5):
            cv2.setNumThreads(threads)
            flows.append(optical_flow(a, b))
    finally:
        cv2.setNumThreads(before)
    assert flows[0].tobytes() == flows[1].tobytes() == flows[2].tobytes()


def test_boiling_on_a_still_face_falls_by_what_the_weights_promise() -> None:
    face, other = texture(1), texture(2)
    crops = made([face] * 9, [noisy(other, i) for i in range(9)])
    made_steady = steady(crops, 1.2, 0, 9)
    w = np.exp(-0.5 * (np.arange(-3, 4) / 1.2) ** 2)
    middle = np.s_[3:6, 10:-10, 10:-10]
    left = (made_steady.swapped[middle] - other[10:-10, 10:-10]).std() / 6.0
    assert left == pytest.approx(np.sqrt((w**2).sum()) / w.sum(), rel=0.05)


def test_nothing_lags() -> None:
    """A change at constant speed passes unchanged, and a short one stays centred where it was."""
    face, other = texture(1), texture(2)
    ramp = made([face] * 11, [other + 2 * i for i in range(11)])
    np.testing.assert_allclose(steady(ramp, 1.2, 3, 8).swapped, ramp.swapped[3:8], atol=0.05)
    pulse = made([face] * 11, [other + (12 if i == 5 else 0) for i in range(11)])
    answer = (steady(pulse, 1.2, 0, 11).swapped - other).mean((1, 2, 3))
    assert (np.arange(11) * answer).sum() / answer.sum() == pytest.approx(5, abs=0.01)
    np.testing.assert_allclose(answer, answer[::-1], atol=1e-3)


def test_what_moves_with_the_face_stays_sharp() -> None:
    face, other = texture(1), texture(2)
    images, clean = [shifted(face, 2.0 * i) for i in range(7)], [shifted(other, 2.0 * i) for i in range(7)]
    crops = made(images, [noisy(p, i) for i, p in enumerate(clean)])
    after = steady(crops, 1.2, 3, 4).swapped[0]
    middle = np.s_[25:-25, 25:-25]
    error = np.abs(after[middle] - clean[3][middle]).mean()
    assert error < 0.75 * np.abs(crops.swapped[3][middle] - clean[3][middle]).mean()
    still = np.mean([c[middle] for c in clean], 0)
    assert error < 0.3 * np.abs(still - clean[3][middle]).mean(), "an average in place would smear it"


def test_what_passes_in_front_is_neither_averaged_nor_covered() -> None:
    face, other = texture(1), texture(2)
    n, block = 7, np.s_[30:60, 30:60]
    images, swaps = [face.copy() for _ in range(n)], [other.copy() for _ in range(n)]
    crops = made(images, swaps)
    images[3][block], swaps[3][block] = 235.0, 235.0
    masks = crops.masks.copy()
    masks[3][block] = 0
    crops = made(images, swaps, masks)
    after = steady(crops, 1.2, 0, n)
    inner = np.s_[35:55, 35:55]
    assert after.masks[3][inner].max() == 0
    assert np.abs(after.swapped[3][inner] - 235).max() < 2
    for other_frame in (2, 4):
        assert after.masks[other_frame][inner].min() > 0.95
        assert np.abs(after.swapped[other_frame][inner] - other[inner]).max() < 4


def test_the_light_of_the_shot_stays_in_its_frame() -> None:
    """Light that flickers on the target, and on the swap with it, is not smoothed away."""
    face, other = texture(1), texture(2)
    light = [0, 4, -4, 3, -3, 4, -2.0]
    crops = made([face + v for v in light], [other + v for v in light])
    after = (steady(crops, 1.2, 0, 7).swapped - other)[:, 20:-20, 20:-20].mean((1, 2, 3))
    np.testing.assert_allclose(after, light, atol=0.5)


def test_a_trembling_mask_is_stilled_and_never_grows_far_beyond_its_own() -> None:
    face = texture(1)
    masks = np.zeros((9, SIDE, SIDE), np.float32)
    for i in range(9):
        cv2.circle(masks[i], (SIDE // 2, SIDE // 2), 30 + (i % 2), 1.0, -1)
    crops = made([face] * 9, [face] * 9, masks)
    after = steady(crops, 1.2, 0, 9).masks
    steps = np.abs(np.diff(after[3:6], axis=0)).sum(), np.abs(np.diff(masks[3:6], axis=0)).sum()
    assert steps[0] < 0.2 * steps[1]
    apart = made([face] * 9, [face] * 9, masks * (np.arange(9) != 4)[:, None, None].astype(np.float32))
    assert steady(apart, 1.2, 0, 9).masks[4].max() == 0


@settings(max_examples=8, deadline=None)
@given(cuts=st.sets(st.integers(1, 11)), sigma=st.sampled_from([0.0, 0.5, 1.2]))
def test_segments_of_any_length_give_the_same_bytes(cuts: set[int], sigma: float) -> None:
    n, far = 12, reach(sigma)
    images = [shifted(texture(1), 0.7 * i) for i in range(n)]
    crops = made(images, [noisy(p + 15, i) for i, p in enumerate(images)])
    whole = steady(crops, sigma, 0, n)
    ends = [0, *sorted(cuts), n]
    for start, stop in pairwise(ends):
        part = steady(between(crops, start - far, stop + far), sigma, start, stop)
        assert part.frames.tolist() == list(range(start, stop))
        assert part.swapped.tobytes() == whole.swapped[start:stop].tobytes()
        assert part.masks.tobytes() == whole.masks[start:stop].tobytes()


def test_switched_off_it_only_cuts_out_the_rows() -> None:
    crops = made([texture(1)] * 4, [texture(i) for i in range(4)])
    after = steady(crops, 0.0, 1, 3)
    assert after.frames.tolist() == [1, 2]
    np.testing.assert_array_equal(after.swapped, crops.swapped[1:3])
    with pytest.raises(ValueError, match="track 0"):
        steady(replace(crops, swapped=None), 1.2, 1, 3)


# Fades


def track(first: int = 20, last: int = 60, at: tuple[float, float] = (200, 150)) -> Track:
    frames = np.arange(first, last + 1)
    n = len(frames)
    return Track(
        id=0,
        shot=0,
        frames=frames,
        boxes=np.tile(np.array([*at, at[0] + 80, at[1] + 100], np.float32), (n, 1)),
        landmarks=np.tile(FACE + np.array(at, np.float32), (n, 1, 1)),
        scores=np.full(n, 0.9, np.float32),
        embedding=np.zeros(4, np.float32),
    )


def fade(t: Track, shot: tuple[int, int] = (0, 100), frames: int = 6) -> F32:
    return fade_weights(t, shot, (640, 480), 0.6, frames)


def test_a_face_comes_and_goes_slowly_but_is_whole_at_a_cut() -> None:
    t = track()
    weights = fade(t)
    x = np.arange(1, 7) / 7
    np.testing.assert_allclose(weights[:6], x * x * (3 - 2 * x), atol=1e-6)
    np.testing.assert_allclose(weights, weights[::-1], atol=1e-6)
    assert (weights[6:-6] == 1).all()
    assert (fade(t, (20, 100))[:30] == 1).all()
    assert (fade(t, (0, 61))[10:] == 1).all()
    assert (fade(t, frames=0) == 1).all()


def test_doubt_fades_before_it_is_there_and_a_sure_detection_never() -> None:
    t = track()
    scores = t.scores.copy()
    scores[:] = 0.6
    scores[20] = 0.3
    weights = fade(replace(t, scores=scores), (20, 61))
    x = (0.3 - 0.2) / 0.4
    assert weights[20] == pytest.approx(x * x * (3 - 2 * x), abs=1e-5)
    assert weights[20] < weights[19] < weights[18] < 1 and weights[21] == pytest.approx(weights[19])
    assert (weights[:14] == 1).all() and (weights[27:] == 1).all()


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.floats(0.05, 1.0), min_size=41, max_size=41),
    xs=st.lists(st.floats(-120, 700), min_size=41, max_size=41),
    frames=st.integers(1, 11),
    start=st.integers(10, 60),
)
def test_no_pop_and_nothing_beyond_the_neighbours_counts(
    scores: list[float], xs: list[float], frames: int, start: int
) -> None:
    t = track()
    landmarks = t.landmarks.copy()
    landmarks[:, :, 0] += np.array(xs, np.float32)[:, None] - 200
    t = replace(t, scores=np.array(scores, np.float32), landmarks=landmarks)
    weights = fade(t, frames=frames)
    assert ((weights >= 0) & (weights <= 1)).all()
    # Smoothstep is nowhere steeper than 1.5.
    assert np.abs(np.diff(weights)).max() <= 1.5 / (frames + 1) + 1e-6
    part = slice_track(t, start - NEIGHBOURS, start + 8 + NEIGHBOURS)
    inside = (part.frames >= start) & (part.frames < start + 8)
    whole = (t.frames >= start) & (t.frames < start + 8)
    np.testing.assert_array_equal(fade(part, frames=frames)[inside], weights[whole])


def test_a_face_half_out_of_the_frame_is_half_shown() -> None:
    size = (640, 480)
    # The oval hangs symmetrically on the face, whose middle is at x = 48 of FACE.
    assert share_inside((FACE + np.array([300, 200], np.float32))[None], size)[0] == 1
    half = share_inside((FACE + np.array([-48, 200], np.float32))[None], size)[0]
    assert half == pytest.approx(0.5, abs=0.07)
    assert share_inside((FACE - np.array([400, 0], np.float32))[None], size)[0] == 0
    leaving = np.array(
        [share_inside((FACE + np.array([x, 200], np.float32))[None], size)[0] for x in range(100, -120, -4)]
    )
    assert (np.diff(leaving) <= 0).all()
    t = track(at=(-48, 200))
    assert fade(t, (20, 61))[20] == pytest.approx(0.5, abs=0.1)


def test_a_row_taken_out_of_the_plan_fades_nothing_about_it() -> None:
    t = track()
    keep = t.frames != 40
    holed = replace(
        t,
        frames=t.frames[keep],
        boxes=t.boxes[keep],
        landmarks=t.landmarks[keep],
        scores=t.scores[keep],
    )
    np.testing.assert_array_equal(fade(holed), fade(t)[keep])
