"""Similarities and warps: the algebra for any pose, and the pictures for real ones."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.stages.align import (
    ARCFACE_TEMPLATE,
    AlignStage,
    apply_points,
    estimate_similarity,
    invert,
    scale_of,
    warp,
)
from ldvid.stages.records import F64, Frame, Track


@st.composite
def similarities(draw: st.DrawFn) -> F64:
    scale = draw(st.floats(0.05, 20))
    angle = draw(st.floats(-np.pi, np.pi))
    shift = draw(st.tuples(st.floats(-2000, 2000), st.floats(-2000, 2000)))
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


@given(similarities())
def test_a_known_similarity_is_found(matrix: F64) -> None:
    moved = ARCFACE_TEMPLATE @ matrix[:, :2].T + matrix[:, 2]
    found = estimate_similarity(ARCFACE_TEMPLATE, moved)
    np.testing.assert_allclose(found, matrix, atol=1e-6 * max(1, np.abs(matrix).max()))


@given(similarities(), st.lists(st.floats(-3, 3), min_size=10, max_size=10))
def test_the_fit_is_the_least_squares_one(matrix: F64, noise: list[float]) -> None:
    target = ARCFACE_TEMPLATE @ matrix[:, :2].T + matrix[:, 2] + np.reshape(noise, (5, 2))
    found = estimate_similarity(ARCFACE_TEMPLATE, target)

    def error(m: F64) -> float:
        return float(((ARCFACE_TEMPLATE @ m[:, :2].T + m[:, 2] - target) ** 2).sum())

    best = error(found)
    # No reflection, no shear, whatever the noise; and no neighbour is better.
    assert found[0, 0] == pytest.approx(found[1, 1]) and found[0, 1] == pytest.approx(-found[1, 0])
    for step in (1e-3, -1e-3):
        turned = found.copy()
        turned[:, :2] = found[:, :2] @ np.array([[1, -step], [step, 1]])
        assert error(turned) >= best - 1e-6 * (1 + best)
        assert error(found + np.array([[0, 0, step], [0, 0, 0]])) >= best - 1e-6 * (1 + best)


@given(similarities())
def test_the_inverse_undoes_the_map(matrix: F64) -> None:
    points = ARCFACE_TEMPLATE.astype(np.float64)
    there = points @ matrix[:, :2].T + matrix[:, 2]
    back = there @ invert(matrix)[:, :2].T + invert(matrix)[:, 2]
    np.testing.assert_allclose(back, points, atol=1e-4)
    assert scale_of(matrix) * scale_of(invert(matrix)) == pytest.approx(1)


def test_points_that_define_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="coincide"):
        estimate_similarity(np.ones((5, 2)), ARCFACE_TEMPLATE)
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        estimate_similarity(np.ones((4, 2)), ARCFACE_TEMPLATE)


def test_a_pixel_lands_where_the_matrix_says() -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[11, 23] = 255
    crop = warp(picture, np.array([[1.0, 0, -13], [0, 1, -7]]), 32)
    assert np.argwhere(crop[..., 0]).tolist() == [[4, 10]]


@settings(max_examples=25)
@given(similarities())
def test_a_flat_picture_stays_flat_outside_its_border_too(matrix: F64) -> None:
    picture = np.full((30, 40, 3), (10, 120, 250), np.uint8)
    assert (warp(picture, matrix, 16) == (10, 120, 250)).all()


def test_shrinking_does_not_alias() -> None:
    # Stripes of one pixel are grey from afar; sampled without a low-pass they would come and go.
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    for shift in (0.0, 0.7, 1.3):
        crop = warp(stripes, np.array([[0.25, 0, -shift], [0, 0.25, 0]]), 90)[10:80, 10:80]
        assert abs(float(crop.mean()) - 127.5) < 3
        assert float(crop.std()) < 3


def test_the_stage_puts_landmarks_on_the_template() -> None:
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 255, (20, 30, 3), np.uint8), (300, 200))
    turn = np.array([[0.4, -0.1, 60], [0.1, 0.4, 30]])
    template = ARCFACE_TEMPLATE.astype(np.float32)
    points = np.stack([apply_points(turn, template), apply_points(turn, template) + 5])
    track = Track(
        id=3, shot=0, frames=np.array([1, 2]), boxes=np.zeros((2, 4), np.float32), landmarks=points,
        scores=np.ones(2, np.float32), embedding=np.zeros(4, np.float32),
    )  # fmt: skip
    crops = AlignStage(track, template, 112).process([Frame(i, picture) for i in (0, 1, 2, 3)])
    assert crops.frames.tolist() == [1, 2] and crops.track == 3
    np.testing.assert_allclose(crops.landmarks, np.stack([template] * 2), atol=1e-3)
    assert not np.array_equal(crops.images[0], crops.images[1])
    assert len(AlignStage(track, template, 112).process([Frame(9, picture)])) == 0


@pytest.mark.parametrize("centre", [(300.0, 200.0), (20.0, 30.0), (630.0, 350.0), (-400.0, 900.0)])
@pytest.mark.parametrize("scale", [0.3, 0.8, 1.7])
def test_a_crop_needs_only_its_neighbourhood(centre: tuple[float, float], scale: float) -> None:
    """The same crop as from low-passing and warping the whole frame, wherever the face is."""
    rng = np.random.default_rng(0)
    frame = cv2.GaussianBlur(rng.integers(0, 256, (360, 640, 3), np.uint8), (0, 0), 1.0)
    linear = scale * np.array([[0.96, -0.28], [0.28, 0.96]])
    matrix = np.hstack([linear, (64 - linear @ centre)[:, None]])
    whole = frame
    if scale < 1:
        whole = cv2.GaussianBlur(frame, (0, 0), 0.5 * (1 / scale - 1), borderType=cv2.BORDER_REPLICATE)
    wanted = cv2.warpAffine(whole, matrix, (128, 128), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    assert np.abs(warp(frame, matrix, 128).astype(int) - wanted).max() <= 2
