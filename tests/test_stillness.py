"""Stillness: 1.0 means as still as the original, and what makes a face boil makes the figures rise."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.metrics.flow import motion, unexplained
from ldvid.metrics.judges import open_judges
from ldvid.metrics.stillness import StillnessMeter, face_region, jitter, measure
from ldvid.stages.decode import open_reader, probe
from ldvid.stages.detect import Detector
from ldvid.stages.records import F32, U8
from ldvid.stages.swap.pack import Pack

SIDE, FRAMES = 160, 5
FACE = np.array([[60, 65], [100, 65], [80, 85], [64, 105], [96, 105]], np.float32)


@cache
def scene(speed: float = 1.3) -> tuple[list[U8], F32]:
    """A textured picture that moves across, with the landmarks that move along, and a little noise."""
    rng = np.random.default_rng(0)
    wide = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE + 60, 3)).astype(np.float32), (0, 0), 2.0)
    wide = 128 + 35 * wide / wide.std()
    frames, points = [], []
    for i in range(FRAMES):
        matrix = np.array([[1, 0, speed * i - 20], [0, 1, 0.0]])
        moved = cv2.warpAffine(wide, matrix, (SIDE, SIDE), flags=cv2.INTER_CUBIC)
        frames.append((moved + rng.normal(0, 2, moved.shape)).clip(0, 255).round().astype(np.uint8))
        points.append(FACE + np.array([speed * i, 0]))
    return frames, np.array(points, np.float32)


def noise(sigma: float, seed: int = 1) -> list[F32]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, sigma, (SIDE, SIDE, 3)).astype(np.float32) for _ in range(FRAMES)]


@settings(max_examples=12, deadline=None)
@given(offset=st.floats(-80, 80))
def test_a_constant_offset_is_as_still_as_the_original(offset: float) -> None:
    frames, points = scene()
    found = measure(frames, [f.astype(np.float32) + np.float32(offset) for f in frames], points)
    assert found.warp_ratio == pytest.approx(1, abs=1e-3)
    assert found.light_ratio == pytest.approx(1, abs=5e-3)
    assert len(found.steps) == FRAMES - 1


@settings(max_examples=10, deadline=None)
@given(sigma=st.floats(2, 12), more=st.floats(1.3, 3))
def test_independent_noise_raises_the_ratio_and_more_of_it_more(sigma: float, more: float) -> None:
    frames, points = scene()
    added = noise(1.0)
    ratios = [
        measure(frames, [f + s * n for f, n in zip(frames, added, strict=True)], points).warp_ratio
        for s in (sigma, sigma * more)
    ]
    assert 1.05 < ratios[0] < ratios[1]


def test_a_pumping_light_shows_in_the_light_most_of_all() -> None:
    frames, points = scene()
    pumping = [f.astype(np.float32) + (3 if i % 2 else -3) for i, f in enumerate(frames)]
    boiling = [f + n for f, n in zip(frames, noise(6.0), strict=True)]
    light, grain = measure(frames, pumping, points), measure(frames, boiling, points)
    assert light.light_ratio > 4 * light.warp_ratio
    assert light.light_ratio > 4 * grain.light_ratio


def test_what_moves_along_with_the_face_is_still_and_what_stays_behind_is_not() -> None:
    frames, points = scene()
    spot = np.zeros((SIDE, SIDE, 1), np.float32)
    cv2.circle(spot, (80, 85), 20, 60.0, -1)
    along = []
    for i, f in enumerate(frames):
        there = cv2.warpAffine(spot, np.array([[1, 0, 1.3 * i], [0, 1, 0.0]]), (SIDE, SIDE))
        along.append(f + there[..., None])
    behind = [f + spot for f in frames]
    ratios = measure(frames, along, points).warp_ratio, measure(frames, behind, points).warp_ratio
    assert ratios[0] < 1.1 < 1.2 < ratios[1]


def test_a_softer_face_is_stiller_and_what_lies_outside_the_face_counts_nothing() -> None:
    frames, points = scene()
    soft = [cv2.GaussianBlur(f, (0, 0), 3.0) for f in frames]
    assert measure(frames, soft, points).warp_ratio < 0.8
    outside = [f.astype(np.float32) for f in frames]
    for f, n, p in zip(outside, noise(30), points, strict=True):
        f += n * (face_region(p, f.shape) == 0)[..., None]
    ratio = measure(frames, outside, points).warp_ratio
    assert ratio == pytest.approx(1, abs=0.06), "a border pixel or two is sampled from beyond"


def test_nothing_is_measured_across_a_hole_and_out_of_order_is_refused() -> None:
    frames, points = scene()
    meter = StillnessMeter()
    steps = [meter.add(at, frames[i], frames[i], points[i]) for i, at in enumerate((0, 1, 5, 6))]
    assert [s is None for s in steps] == [True, False, True, False]
    assert [s.frame for s in meter.result().steps] == [1, 6]
    assert all(s.ratio == 1 for s in meter.result().steps)
    with pytest.raises(ValueError, match="after frame 6"):
        meter.add(6, frames[0], frames[0], points[0])
    with pytest.raises(ValueError, match="frame 7"):
        meter.add(7, frames[0], frames[0][:50], points[0])
    assert np.isnan(StillnessMeter().result().warp_ratio)


def test_a_face_that_is_covered_or_gone_gives_no_number() -> None:
    frames, points = scene()
    assert motion(frames[0], frames[1], np.zeros((SIDE, SIDE), np.float32)).empty
    other = np.random.default_rng(5).integers(0, 255, frames[0].shape, dtype=np.uint8)
    region = face_region(points[0], frames[0].shape)
    moved, unrelated = motion(frames[0], frames[1], region), motion(frames[0], other, region)
    assert moved.weight.sum() > 0.9 * region.sum() > 2 * unrelated.weight.sum()
    assert np.abs(unexplained(frames[0], frames[1], moved)).mean() < 6


@settings(max_examples=20, deadline=None)
@given(sigma=st.floats(0.1, 5), speed=st.floats(-9, 9))
def test_jitter_is_the_noise_of_a_path_whatever_its_speed(sigma: float, speed: float) -> None:
    steady = np.arange(200.0)[:, None, None] * speed + FACE
    assert jitter(steady) == pytest.approx(0, abs=1e-9)
    shaking = steady + np.random.default_rng(3).normal(0, sigma, steady.shape)
    assert jitter(shaking) == pytest.approx(sigma, rel=0.1)
    assert np.isnan(jitter(steady[:2]))


def test_identity_and_landmarks_of_a_real_face(example_clip: Path, detector: Detector, pack: Pack) -> None:
    info = probe(example_clip)
    frames = [f.rgb for f in open_reader(info, "pyav").read(0, 4)]
    points = np.array([detector.detect(f)[0].landmarks for f in frames])
    judges = open_judges(pack)
    source = judges.identity.embed(frames[0], points[0])
    same = measure(frames, frames, points, judges, source)
    assert same.identity_spread == same.original_spread < 0.05
    assert same.jitter == same.original_jitter < 2
    assert 0.9 < same.identity <= 1 and same.warp_ratio == 1
    shaken = [np.roll(f, 2 if i % 2 else -2, axis=1) for i, f in enumerate(frames)]
    gone = face_region(points[2], frames[2].shape)[..., None] > 0
    shaken[2] = np.where(gone, 127, shaken[2]).astype(np.uint8)
    after = measure(frames, shaken, points, judges, source)
    assert after.jitter > 2 * same.jitter
    assert after.identity_spread > same.original_spread + 0.03
    assert after.original_spread == same.original_spread


@pytest.mark.parametrize(("x", "y"), [(-123, 0), (121, 0), (0, -135), (0, 128)])
def test_a_face_that_leaves_the_frame_is_measured_to_the_end(x: int, y: int) -> None:
    frames, points = scene()
    found = measure(frames, [f.astype(np.float32) for f in frames], points + np.array([x, y], np.float32))
    region = face_region(points[0] + np.array([x, y], np.float32), frames[0].shape)
    assert 0 < min(region.any(0).sum(), region.any(1).sum()) < 8, "hardly anything of it is left"
    assert found.warp_ratio == pytest.approx(1, abs=1e-3)


def test_pictures_too_small_for_flow_have_no_motion() -> None:
    small = np.zeros((20, 24, 3), np.uint8)
    assert motion(small, small, np.ones((20, 24), np.float32)).empty
