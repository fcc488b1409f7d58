"""Thin dark lines in front of a face: strands and rims are found, what a face has of its own is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ldvid.stages.occlusion import occluders
from ldvid.stages.records import F32, U8
from ldvid.stages.thin import thin_lines

SKIN = (205, 160, 140)


def skin(size: int = 256) -> U8:
    """Skin under a light from one side, with some grain."""
    slope = np.linspace(-25, 25, size)[None, :, None]
    grain = np.random.default_rng(0).normal(0, 2, (size, size, 1))
    return np.clip(np.array(SKIN) + slope + grain, 0, 255).astype(np.uint8)


Ends = tuple[tuple[int, int], tuple[int, int]]


def line(image: U8, ends: Ends, colour: int | tuple[int, int, int], width: int = 1) -> U8:
    drawn = image.copy()
    cv2.line(drawn, *ends, (colour,) * 3 if isinstance(colour, int) else colour, width, cv2.LINE_AA)
    return drawn


def found(image: U8, features: F32 | None = None, inside: float = 1.0) -> F32:
    size = len(image)
    nothing = np.zeros((size, size), np.float32)
    return thin_lines(image, nothing if features is None else features, nothing + np.float32(inside))


@given(turn=st.floats(0, np.pi), size=st.sampled_from([256, 512]), colour=st.integers(10, 90))
def test_a_strand_in_any_direction_is_found_and_nothing_beside_it(
    turn: float, size: int, colour: int
) -> None:
    middle, reach, width = size / 2, size * 0.35, size // 128
    x, y = np.cos(turn) * reach, np.sin(turn) * reach
    ends = (round(middle - x), round(middle - y)), (round(middle + x), round(middle + y))
    sure = found(line(skin(size), ends, colour, width))
    core = line(np.zeros((size, size, 3), np.uint8), ends, 255, 1)[..., 0] > 128
    assert (sure[core] > 0.9).mean() > 0.9
    near = cv2.dilate(core.astype(np.uint8), np.ones((4 * width + 3,) * 2)) > 0
    assert sure[~near].max() == 0


@pytest.mark.parametrize("colour", [(250, 250, 250), (203, 157, 137)])
def test_what_is_bright_or_hardly_darker_is_no_line(colour: tuple[int, int, int]) -> None:
    assert found(line(skin(), ((40, 60), (200, 190)), colour)).max() == 0


def test_skin_a_dark_half_a_short_line_and_a_broad_bar_have_none() -> None:
    half = skin()
    half[:, 128:] //= 3
    short = line(skin(), ((110, 120), (140, 122)), 30)
    bar = line(skin(), ((20, 128), (236, 128)), 30, 16)
    for image in (skin(), half, short, bar):
        assert found(image).max() == 0


def test_the_line_between_the_lips_is_the_faces_own_and_a_strand_across_them_is_not() -> None:
    lips = np.zeros((256, 256), np.float32)
    lips[165:185, 90:166] = 1
    closed = line(skin(), ((92, 175), (164, 175)), 60)
    assert found(closed, lips).max() == 0
    strand = line(skin(), ((100, 40), (140, 230)), 30)
    assert found(strand, lips)[175, 120:137].max() > 0.9


def test_at_the_outline_a_line_must_be_darker() -> None:
    faint = line(skin(), ((60, 40), (70, 220)), 140)
    assert found(faint, inside=1.0).max() > found(faint, inside=0.0).max()


def test_an_occluder_it_is_whatever_the_parser_says() -> None:
    """A parser sure of face from end to end: the strand is in front, the face beside it is not."""
    image = line(skin(), ((60, 70), (190, 180)), 30, 2)
    face = np.zeros((256, 256), np.float32)
    cv2.ellipse(face, (128, 128), (80, 105), 0, 0, 360, 1.0, -1)
    hidden = occluders(image, face, np.zeros_like(face))
    core = line(np.zeros_like(image), ((90, 95), (160, 155)), 255)[..., 0] > 128
    assert hidden[core].min() > 0.9
    away = (face > 0) & (cv2.dilate(core.astype(np.uint8), np.ones((41, 41))) == 0)
    assert np.isfinite(hidden).all()
    assert (hidden[away] > 0.1).mean() < 0.1
