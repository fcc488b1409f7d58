"""Grain and blur of the shot: measured right, given in full, never more than measured, and repeatable."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.stages.grain import add_grain, levels, noise_levels, shot_levels
from ldvid.stages.motion_blur import blur_between, blur_by, match_blur
from ldvid.stages.records import F32, F64

SIDE = 160
WHERE = np.ones((SIDE, SIDE), np.float32)
NOTHING = np.zeros((SIDE, SIDE), np.float32)


def scene(seed: int = 0) -> F32:
    """A smooth picture with edges and slopes, (SIDE, SIDE, 3) in [40, 215]."""
    rng = np.random.default_rng(seed)
    picture = cv2.resize(
        rng.uniform(60, 190, (5, 5, 3)).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC
    )
    picture[50:54] = 40
    picture[:, 100:103] = 215
    return np.clip(picture, 40, 215).astype(np.float32)


def noisy(sigma: float, seed: int = 1, block: int = 1) -> F32:
    """The scene with luma noise of σ, of single pixels or blocks."""
    noise = np.random.default_rng(seed).normal(0, sigma, (SIDE // block, SIDE // block, 1))
    return (scene() + noise.repeat(block, 0).repeat(block, 1)).astype(np.float32)


# ---- grain


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 20))
def test_white_noise_is_measured_whatever_it_lies_on(sigma: float) -> None:
    fine, coarse = levels(noisy(sigma), WHERE)[0]
    assert abs(fine - sigma) < 0.1 * sigma + 0.1
    assert abs(coarse - sigma / 2) < 0.15 * sigma + 0.15
    assert levels(noisy(sigma), WHERE)[1:].max() < 0.05 * sigma + 0.1  # none of it is chroma


def test_a_clean_picture_has_no_noise() -> None:
    assert levels(scene(), WHERE).max() < 0.15
    assert not noise_levels(scene(), NOTHING)[0].any()


@pytest.mark.parametrize(("sigma", "block"), [(2.0, 1), (8.0, 1), (4.0, 2)])
def test_what_lacks_is_given_and_no_more(sigma: float, block: int) -> None:
    wanted = levels(noisy(sigma, block=block), WHERE)
    given_ = add_grain(scene(), scene(), wanted, WHERE, NOTHING, (0, 0, 0), 1.0)
    got = levels(given_, WHERE)
    assert got[0, 0] > 0.85 * wanted[0, 0] and got[0, 1] > 0.8 * wanted[0, 1]
    assert (got <= 1.08 * wanted + 0.2).all()
    half = add_grain(scene(), scene(), wanted, WHERE, NOTHING, (0, 0, 0), 0.5)
    assert np.abs(half - (scene() + given_) / 2).max() < 1e-3


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 10), st.floats(0, 10))
def test_never_more_than_measured(own: float, there: float) -> None:
    face = noisy(own, seed=2)
    wanted = levels(noisy(there), WHERE)
    got = levels(add_grain(face, face, wanted, WHERE, NOTHING, (0, 0, 0), 1.0), WHERE)
    most = np.maximum(wanted, levels(face, WHERE))
    assert (got <= 1.1 * most + 0.25).all()
    if own >= there + 1:
        assert np.array_equal(add_grain(face, face, wanted, WHERE, NOTHING, (0, 0, 0), 1.0), face)


def test_grain_hangs_on_seed_track_and_frame_and_on_nothing_else() -> None:
    wanted = levels(noisy(5), WHERE)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    made = [add_grain(scene(), scene(), wanted, WHERE, NOTHING, key, 1.0) for key in keys]
    again = add_grain(scene(), scene(), wanted, WHERE, NOTHING, keys[3], 1.0)
    assert np.array_equal(made[3], again)
    noise = [(m - scene()).ravel() for m in made]
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.02 for a, b in pairwise(noise))


def test_what_the_frame_gave_already_is_not_given_twice() -> None:
    wanted = levels(noisy(6), WHERE)
    kept = np.ones_like(WHERE)
    kept[:, SIDE // 2 :] = 0
    added = add_grain(scene(), scene(), wanted, WHERE, kept, (0, 0, 0), 1.0) - scene()
    assert not added[:, : SIDE // 2].any()
    assert added[:, SIDE // 2 :].std() > 4


def test_skin_texture_is_no_grain() -> None:
    """A face with more of the finest octave than its surround gets the surround's."""
    textured = noisy(7)
    assert levels(textured, WHERE)[0, 0] > 6
    quiet = shot_levels(textured, WHERE, noisy(1.5), WHERE)
    assert np.allclose(quiet, np.minimum(levels(textured, WHERE), levels(noisy(1.5), WHERE)))
    # A blown-out wall shows no grain, and says nothing.
    white = np.full((SIDE, SIDE, 3), 255, np.float32)
    assert np.array_equal(shot_levels(textured, WHERE, white, WHERE), levels(textured, WHERE))


def test_no_strength_and_no_lack_change_nothing() -> None:
    face = noisy(1)
    assert add_grain(face, face, levels(noisy(9), WHERE), WHERE, NOTHING, (0, 0, 0), 0.0) is face
    assert add_grain(face, face, levels(scene(), WHERE), WHERE, NOTHING, (0, 0, 0), 1.0) is face


# ---- blur


def portrait(seed: int = 3) -> F32:
    """A crop with detail at all scales, (256, 256, 3)."""
    rng = np.random.default_rng(seed)
    octaves = [
        cv2.resize(
            rng.normal(0, 4 * 1.6**i, (256 >> i, 256 >> i)).astype(np.float32),
            (256, 256),
            interpolation=cv2.INTER_CUBIC,
        )
        for i in range(6)
    ]
    return np.repeat(np.clip(128 + sum(octaves), 0, 255)[..., None], 3, 2).astype(np.float32)


def oval() -> F32:
    ys, xs = np.mgrid[0:256, 0:256]
    return np.clip(2 - 2 * np.hypot((xs - 128) / 75, (ys - 128) / 95), 0, 1).astype(np.float32)


def streak(picture: F32, length: float, angle: float) -> F32:
    """Motion blur of this length in pixels."""
    kernel = np.zeros((41, 41), np.float32)
    for t in np.linspace(-length / 2, length / 2, 400):
        x, y = 20 + t * np.cos(angle), 20 + t * np.sin(angle)
        i, j = int(y), int(x)
        for dy in (0, 1):
            for dx in (0, 1):
                kernel[i + dy, j + dx] += (1 - abs(y - i - dy)) * (1 - abs(x - j - dx))
    return cv2.filter2D(picture, -1, kernel / kernel.sum())


def axes(covariance: F64) -> tuple[F64, float]:
    """Eigenvalues, ascending, and the direction of the larger, in [0, π)."""
    values, vectors = np.linalg.eigh(covariance)
    return values, float(np.arctan2(vectors[1, 1], vectors[0, 1]) % np.pi)


@pytest.mark.parametrize(("length", "angle"), [(8.0, 0.4), (12.0, 1.2), (18.0, 2.5)])
def test_motion_is_found_by_length_and_direction(length: float, angle: float) -> None:
    target = np.rint(streak(portrait(), length, angle)).astype(np.uint8)
    values, direction = axes(blur_between(portrait(), target, oval()))
    variance = length**2 / 12
    assert 0.65 * variance < values[1] < 1.2 * variance
    assert values[0] < 0.5
    assert abs(np.sin(direction - angle)) < 0.15


def test_another_face_says_the_same_of_the_blur() -> None:
    """What is compared are spectra, not pictures."""
    target = np.rint(streak(portrait(4), 12, 1.2)).astype(np.uint8)
    values, direction = axes(blur_between(portrait(3), target, oval()))
    assert 7 < values[1] < 15 and values[0] < 1.5
    assert abs(np.sin(direction - 1.2)) < 0.25


def test_a_sharper_target_adds_nothing() -> None:
    soft = cv2.GaussianBlur(portrait(), (0, 0), 2)
    target = np.rint(portrait()).astype(np.uint8)
    assert not blur_between(soft, target, oval()).any()
    for one in (portrait(), portrait(5)):
        assert np.linalg.eigvalsh(blur_between(one, target, oval()))[-1] < 0.3
    assert match_blur(soft, target, oval(), 1.0, 1.0) is soft


def test_a_face_is_blurred_as_its_target_is() -> None:
    target = np.rint(streak(portrait(), 12, 0.4)).astype(np.uint8)
    done = match_blur(portrait(), target, oval(), 1.0, 1.0)
    inside = oval() > 0.9
    before, after = (np.abs(p - target)[inside].mean() for p in (portrait(), done))
    assert after < 0.35 * before
    face = portrait()
    assert match_blur(face, target, oval(), 1.0, 0.0) is face
    half = match_blur(portrait(), target, oval(), 1.0, 0.5)
    assert after < np.abs(half - target)[inside].mean() < before


def test_an_empty_mask_tells_nothing() -> None:
    target = np.zeros((256, 256, 3), np.uint8)
    assert not blur_between(portrait(), target, np.zeros((256, 256), np.float32)).any()


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 30), st.floats(0, 30), st.floats(0, 3.1))
def test_a_blur_has_the_covariance_asked_for(large: float, small: float, angle: float) -> None:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    covariance = turn @ np.diag([large, min(small, large)]) @ turn.T
    point = np.zeros((101, 101, 3), np.float32)
    point[50, 50] = 1
    spread = blur_by(point, covariance)[..., 0].astype(np.float64)
    ys, xs = np.mgrid[-50:51, -50:51]
    moments = [(spread * a * b).sum() for a, b in ((xs, xs), (xs, ys), (ys, ys))]
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    assert np.allclose(moments, covariance[[0, 0, 1], [0, 1, 1]], atol=0.45 + 0.06 * large)


def test_lines_that_are_never_sampled_show_no_grain() -> None:
    """Of a large picture every second row is looked at; those may all be left out."""
    picture = np.random.default_rng(0).normal(120, 9, (400, 400, 3)).astype(np.float32)
    where = np.zeros((400, 400), np.float32)
    where[1::2] = 1
    assert noise_levels(picture, where)[0][0] > 1
    assert not noise_levels(picture, 1 - where)[0].any()
