"""Pasting and colour: what must stay stays to the bit, what is put in is what was given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.configs import load_settings
from ldvid.stages.align import estimate_similarity, invert, scale_of, warp
from ldvid.stages.colour_match import low_frequencies, match_colour
from ldvid.stages.detail import agreement
from ldvid.stages.detect import open_detector
from ldvid.stages.paste import Finish, PasteStage, Shot, paste
from ldvid.stages.records import F32, F64, U8, Crops, Frame
from ldvid.stages.swap.pack import open_pack

ROOT = Path(__file__).resolve().parents[1]


def oval(side: int, feather: float = 0.12) -> F32:
    """A soft mask (S, S) that is 0 at the border."""
    x = (np.arange(side) - (side - 1) / 2) / (side / 2)
    radius = np.sqrt(x[None] ** 2 / 0.5 + x[:, None] ** 2 / 0.7)
    return np.clip((1 - radius) / feather, 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def frame() -> U8:
    with av.open(str(ROOT / "examples/clip.mp4")) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


@pytest.fixture(scope="module")
def faces() -> list[tuple[U8, F64, U8]]:
    """(picture, frame → crop at 256, crop) for every face of the examples."""
    pack = open_pack("starter")
    detector = open_detector(pack, 0.6)
    found = []
    for name in ("tests/data/two-faces.jpg", "examples/face.png", "examples/face-2.png"):
        picture = np.ascontiguousarray(cv2.imread(str(ROOT / name))[..., ::-1])
        for face in detector.detect(picture):
            matrix = estimate_similarity(face.landmarks, pack.manifest.template_points())
            found.append((picture, matrix, warp(picture, matrix, 256)))
    assert len(found) == 4
    return found


def psnr(a: U8, b: U8, where: np.ndarray) -> float:
    error = (a.astype(float) - b)[where]
    return float(10 * np.log10(255**2 / max(float((error**2).mean()), 1e-9)))


def test_a_crop_pasted_back_unchanged_is_the_frame(faces: list[tuple[U8, F64, U8]]) -> None:
    for picture, matrix, crop in faces:
        result, touched = paste(picture, crop.astype(np.float32), oval(256), matrix)
        # A frame finer than the crop loses to it what the crop can't hold, and nothing else.
        least = 38 if scale_of(matrix) >= 1 else 34
        assert psnr(result, picture, touched > 0) > least
        assert np.array_equal(result[touched == 0], picture[touched == 0])
        assert touched.max() > 0.99 and 0 < (touched > 0).mean() < 0.6


@pytest.mark.parametrize("size", [64, 128, 256, 512, 1024])
def test_at_any_ratio_of_crop_and_frame_colours_and_places_are_kept(frame: U8, size: int) -> None:
    # A smooth picture survives a coarse crop: what is measured is shift and scale, not sharpness.
    smooth = cv2.GaussianBlur(frame, (0, 0), 4)
    matrix = np.array([[0.9, 0.1, -150.0], [-0.1, 0.9, -10.0]]) * size / 160
    crop = warp(smooth, matrix, size).astype(np.float32)
    result, touched = paste(smooth, crop, oval(size), matrix)
    assert psnr(result, smooth, touched > 0) > 44


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_nothing_happens_outside_the_mask(frame: U8, scale: float) -> None:
    matrix = np.array([[scale, 0, -200 * scale], [0, scale, -60 * scale]])
    mask = np.zeros((96, 96), np.float32)
    mask[30:60, 20:70] = 1
    result, touched = paste(frame, np.full((96, 96, 3), 255, np.float32), mask, matrix)
    assert np.array_equal(result[touched == 0], frame[touched == 0])
    inverse = invert(matrix)
    x0, y0 = inverse[:, :2] @ [20, 30] + inverse[:, 2]
    x1, y1 = inverse[:, :2] @ [69, 59] + inverse[:, 2]
    rows, columns = np.nonzero(touched)
    reach = 1 + 1 / scale  # a pixel of either picture
    assert rows.min() >= y0 - reach and rows.max() <= y1 + reach
    assert columns.min() >= x0 - reach and columns.max() <= x1 + reach
    middle = (round((y0 + y1) / 2), round((x0 + x1) / 2))
    assert touched[middle] == 1 and (result[middle] == 255).all()


@settings(max_examples=40)
@given(st.floats(0.05, 8), st.floats(-3.2, 3.2), st.floats(-900, 900), st.floats(-900, 900), st.booleans())
def test_any_pose_even_outside_the_frame(scale: float, angle: float, x: float, y: float, empty: bool) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (45, 80, 3), np.uint8)
    before = picture.copy()
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    mask = np.zeros((32, 32), np.float32) if empty else oval(32)
    swapped = np.full((32, 32, 3), 300, np.float32)  # out of range: clipped, not wrapped
    result, touched = paste(picture, swapped, mask, np.array([[c, -s, x], [s, c, y]]))
    assert np.array_equal(picture, before)
    assert np.array_equal(result[touched == 0], picture[touched == 0])
    assert (result >= picture).all()
    assert touched.min() >= 0 and touched.max() <= 1
    assert not (empty and touched.any())


def test_the_blend_is_the_formula(frame: U8) -> None:
    mask = np.full((64, 64), 0.5, np.float32)
    mask[[0, -1]] = mask[:, [0, -1]] = 0
    swapped = np.full((64, 64, 3), 200, np.float32)
    result, touched = paste(frame, swapped, mask, np.array([[1.0, 0, -100], [0, 1, -50]]))
    inside = np.s_[55:105, 105:155]
    assert (touched[inside] == 0.5).all()
    assert np.array_equal(result[inside], np.rint(frame[inside] * 0.5 + 100).astype(np.uint8))


def test_a_fine_crop_does_not_flicker_when_it_moves(frame: U8) -> None:
    stripes = np.zeros((512, 512, 3), np.float32)
    stripes[:, ::2] = 255  # finer than the frame can show
    means = []
    for shift in (0.0, 0.3, 0.6):
        result, touched = paste(frame, stripes, oval(512), np.array([[4.0, 0, -600 - shift], [0, 4, -200]]))
        means.append(result[touched == 1].astype(float))
    assert all(abs(m.mean() - 127.5) < 2 and m.std() < 6 for m in means)


def test_wrong_shapes_are_named(frame: U8) -> None:
    with pytest.raises(ValueError, match=r"\(32, 32, 3\), \(16, 16\)"):
        paste(frame, np.zeros((32, 32, 3), np.float32), np.zeros((16, 16), np.float32), np.eye(2, 3))


def crops(track: int, frames: list[int], matrix: F64, value: float) -> Crops:
    n = len(frames)
    return Crops(
        track=track, frames=np.array(frames), images=np.zeros((n, 32, 32, 3), np.uint8),
        matrices=np.stack([matrix] * n), landmarks=np.zeros((n, 5, 2), np.float32),
        masks=np.stack([oval(32)] * n), swapped=np.full((n, 32, 32, 3), value, np.float32),
    )  # fmt: skip


def test_the_stage_pastes_each_crop_into_its_frame(frame: U8) -> None:
    frames = [Frame(i, frame) for i in (7, 8, 9)]
    left, right = np.array([[1.0, 0, -50], [0, 1, -50]]), np.array([[1.0, 0, -300], [0, 1, -90]])
    items = [crops(2, [8, 9, 30], right, 255), crops(1, [9], left, 0)]
    pictures, touched = PasteStage().process((frames, items))
    assert pictures[0] is frame and touched[0] is None
    assert touched[1] is not None and touched[2] is not None
    assert (pictures[1][106, 316] == 255).all() and np.array_equal(pictures[1][66, 66], frame[66, 66])
    assert (pictures[2][106, 316] == 255).all() and (pictures[2][66, 66] == 0).all()
    assert (touched[2] > 0).sum() == 2 * (touched[1] > 0).sum()
    assert [p.tobytes() for p in PasteStage().process((frames, items[::-1]))[0]] == [
        p.tobytes() for p in pictures
    ]


def test_weights_fade_a_swap(frame: U8) -> None:
    item = crops(0, [0, 1, 2], np.array([[1.0, 0, -50], [0, 1, -50]]), 255)
    faded = replace(item, weights=np.array([0, 0.5, 1], np.float32))
    pictures, touched = PasteStage().process(([Frame(i, frame) for i in range(3)], [faded]))
    full, _ = PasteStage().process(([Frame(i, frame) for i in range(3)], [item]))
    assert np.array_equal(pictures[0], frame) and touched[0] is not None and not touched[0].any()
    assert np.abs(pictures[1].astype(float) - (frame / 2 + full[1] / 2)).max() <= 1
    assert np.array_equal(pictures[2], full[2])


def test_crops_that_were_not_swapped_are_refused(frame: U8) -> None:
    item = replace(crops(4, [0], np.eye(2, 3), 0), swapped=None)
    with pytest.raises(ValueError, match="track 4"):
        PasteStage().process(([Frame(0, frame)], [item]))


# ---- what a face takes over of its shot

FULL = Finish(detail=1, motion_blur=1, grain=1)


def big_face(faces: list[tuple[U8, F64, U8]]) -> tuple[U8, F64, U8]:
    """The one whose frame is finest beside its crop, that frame twice as large."""
    picture, matrix, _ = min(faces, key=lambda face: scale_of(face[1]))
    large = cv2.resize(picture, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    rng = np.random.default_rng(0)
    large = np.clip(large + rng.normal(0, 4, (*large.shape[:2], 1)), 0, 255).astype(np.uint8)
    finer = matrix.copy()
    finer[:, :2] /= 2
    assert scale_of(finer) < 0.7
    return large, finer, warp(large, finer, 256)


def sharpness(picture: U8, where: np.ndarray) -> float:
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float((luma - cv2.GaussianBlur(luma, (0, 0), 2))[where].std())


def test_a_swap_that_returns_the_crop_returns_the_frame(faces: list[tuple[U8, F64, U8]]) -> None:
    for picture, matrix, crop in [*faces, big_face(faces)]:
        result, touched = paste(
            picture, crop.astype(np.float32), oval(256), matrix, FULL, Shot(picture, crop)
        )
        assert touched.max() > 0.9
        assert np.abs(result.astype(int) - picture).max() <= 1


@settings(max_examples=15, deadline=None)
@given(st.floats(0.2, 4), st.floats(-3.2, 3.2), st.floats(-90, 90), st.integers(0, 2**31))
def test_the_crop_returns_the_frame_in_any_pose(scale: float, angle: float, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (120, 160, 3), np.uint8), (0, 0), 1.5)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[c, -s, 0.0], [s, c, 0]])
    matrix[:, 2] = 64 - matrix[:, :2] @ [80 + shift, 60]
    crop = warp(picture, matrix, 128)
    result, touched = paste(
        picture, crop.astype(np.float32), oval(128), matrix, Finish(detail=1, grain=1), Shot(picture, crop)
    )
    # Beyond the frame a crop repeats its border: what comes back of it there is not the frame's.
    error = np.abs(result.astype(int) - picture)[(touched > 0)]
    assert error.size == 0 or error.max() <= 1


def test_a_mask_of_zero_changes_nothing_however_a_face_is_finished(faces: list[tuple[U8, F64, U8]]) -> None:
    picture, matrix, crop = big_face(faces)
    swapped = np.full((256, 256, 3), 90, np.float32)
    for mask in (np.zeros((256, 256), np.float32), oval(256)):
        result, touched = paste(picture, swapped, mask, matrix, FULL, Shot(picture, crop))
        assert np.array_equal(result[touched == 0], picture[touched == 0])
        assert (touched.max() > 0) == bool(mask.any())


def test_detail_makes_a_soft_face_as_sharp_as_its_frame(faces: list[tuple[U8, F64, U8]]) -> None:
    picture, matrix, crop = big_face(faces)
    # Soft, and of another light and tone: what a swap of the same features is.
    soft = cv2.GaussianBlur(crop.astype(np.float32), (0, 0), 0.8) * np.float32(0.8) + 12
    plain, touched = paste(picture, soft, oval(256), matrix)
    done, _ = paste(picture, soft, oval(256), matrix, Finish(detail=1), Shot(picture, crop))
    inside = touched > 0.95
    assert sharpness(plain, inside) < 0.7 * sharpness(picture, inside)
    assert 0.8 < sharpness(done, inside) / sharpness(picture, inside) < 1.2
    # Of light and tone it changes nothing.
    low = [cv2.GaussianBlur(p.astype(np.float32), (0, 0), 12)[inside] for p in (plain, done)]
    assert np.abs(low[0] - low[1]).mean() < 0.5


def test_detail_stays_away_where_features_differ(faces: list[tuple[U8, F64, U8]]) -> None:
    crop = faces[2][2]
    other = crop.astype(np.float32)
    other[100:130, 60:110] = faces[3][2][100:130, 60:110]  # another eye
    weight = agreement(other, crop)
    assert weight[112:118, 75:95].mean() < 0.5
    assert weight[160:, 130:].min() > 0.99 and np.array_equal(
        agreement(crop.astype(np.float32), crop) == 1, weight >= 0
    )


def test_off_is_the_paste_as_it_was(faces: list[tuple[U8, F64, U8]]) -> None:
    picture, matrix, crop = big_face(faces)
    swapped = np.clip(cv2.GaussianBlur(crop, (0, 0), 2) * np.float32(0.9) + 7.3, 0, 255)
    plain, _ = paste(picture, swapped, oval(256), matrix)
    for finish in (Finish(), Finish(seed=5), None):
        same, _ = paste(picture, swapped, oval(256), matrix, finish, Shot(picture, crop, (3, 4)))
        assert np.array_equal(same, plain)
    for finish in (Finish(detail=0.5), Finish(grain=1)):
        other, _ = paste(picture, swapped, oval(256), matrix, finish, Shot(picture, crop, (3, 4)))
        assert not np.array_equal(other, plain), finish


def test_the_stage_finishes_as_its_settings_say_and_frames_alone_decide(frame: U8) -> None:
    matrix = np.array([[0.6, 0, -80.0], [0, 0.6, -20]])
    rng = np.random.default_rng(0)
    noisy = np.clip(frame + rng.normal(0, 6, (*frame.shape[:2], 1)), 0, 255).astype(np.uint8)
    crop = warp(noisy, matrix, 64)
    item = Crops(
        track=2, frames=np.arange(3), images=np.stack([crop] * 3), matrices=np.stack([matrix] * 3),
        landmarks=np.zeros((3, 5, 2), np.float32), masks=np.stack([oval(64)] * 3),
        swapped=np.stack([cv2.GaussianBlur(crop, (0, 0), 2).astype(np.float32)] * 3),
    )  # fmt: skip
    off = load_settings(overrides={"detail": 0.0, "motion_blur": 0.0, "grain": 0.0})
    on = off.model_copy(update={"grain": 1.0, "seed": 9})
    frames = [Frame(i, noisy) for i in range(3)]
    bare = PasteStage().process((frames, [item]))[0]
    assert all(
        np.array_equal(a, b) for a, b in zip(bare, PasteStage(off).process((frames, [item]))[0], strict=True)
    )
    together = PasteStage(on).process((frames, [item]))[0]
    alone = [PasteStage(on).process(([f], [item]))[0][0] for f in frames]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    # Grain is another in each frame, and for each seed.
    assert not np.array_equal(together[0], together[1])
    other = PasteStage(on.model_copy(update={"seed": 10})).process((frames, [item]))[0]
    assert not np.array_equal(together[0], other[0])


# ---- colour


def skin_error(a: F32, b: U8, mask: F32) -> float:
    """Distance of the two mean colours inside a mask, in 8-bit RGB."""
    means = [(p * mask[..., None]).sum((0, 1)) / mask.sum() for p in (a.astype(float), b.astype(float))]
    return float(np.linalg.norm(means[0] - means[1]))


@pytest.mark.parametrize("cast", [(1.15, 1.0, 0.85), (0.8, 0.95, 1.1), (0.75, 0.75, 0.75), (1.1, 0.95, 1.1)])
def test_a_cast_is_removed(faces: list[tuple[U8, F64, U8]], cast: tuple[float, float, float]) -> None:
    mask = oval(256)
    for _, _, crop in faces:
        tinted = np.clip(crop * np.array(cast), 0, 255).astype(np.float32)
        fixed = match_colour(tinted[None], crop[None], mask[None], 1.0)[0]
        assert skin_error(fixed, crop, mask) < 0.2 * skin_error(tinted, crop, mask) + 1.5
        half = match_colour(tinted[None], crop[None], mask[None], 0.5)[0]
        assert 0.25 < skin_error(half, crop, mask) / skin_error(tinted, crop, mask) < 0.75


def test_the_light_follows_the_target(faces: list[tuple[U8, F64, U8]]) -> None:
    crop, mask = faces[2][2], oval(256)
    ramp = np.linspace(0.65, 1.05, 256, dtype=np.float32)[None, :, None]
    target = (crop * ramp).astype(np.uint8)  # lit from the right
    fixed = match_colour(crop[None].astype(np.float32), target[None], mask[None], 1.0)[0]
    left, right = mask.copy(), mask.copy()
    left[:, 118:], right[:, :138] = 0, 0
    for side in (left, right):
        assert skin_error(fixed, target, side) < 0.35 * skin_error(crop.astype(np.float32), target, side)


def test_another_face_takes_the_skin_but_keeps_white_teeth(faces: list[tuple[U8, F64, U8]]) -> None:
    orange, pale, mask = faces[2][2], faces[3][2], oval(256)  # a tanned man smiling, a pale woman
    fixed = match_colour(orange[None].astype(np.float32), pale[None], mask[None], 1.0)[0]
    cheek = np.s_[135:160, 70:95]
    before = np.linalg.norm(orange[cheek].mean((0, 1)) - pale[cheek].mean((0, 1)))
    assert np.linalg.norm(fixed[cheek].mean((0, 1)) - pale[cheek].mean((0, 1))) < 0.5 * before
    teeth = np.argwhere((orange.min(-1) > 200) & (mask == 1))
    assert len(teeth) > 50
    r, _, b = fixed[tuple(teeth.T)].mean(0)
    assert b < r + 8  # taking the orange out of the skin must not make them blue


def test_thick_brows_stay_dark_but_in_haze(faces: list[tuple[U8, F64, U8]]) -> None:
    target, mask = faces[3][2], oval(256)
    brows = np.zeros((256, 256), bool)
    brows[92:122, 70:116] = brows[92:122, 140:186] = True
    swapped = target.astype(np.float32)
    swapped[brows] = (40, 32, 30)
    fixed = match_colour(swapped[None], target[None], mask[None], 1.0)[0]
    assert np.abs(fixed[brows] - swapped[brows]).mean() < 3
    # Haze lifts what is dark in the target, and so what is dark in the swap.
    hazy = (target * 0.5 + 110).astype(np.uint8)
    lifted = match_colour(swapped[None], hazy[None], mask[None], 1.0)[0]
    assert lifted[brows].mean() > fixed[brows].mean() + 30


def test_strength_0_and_an_empty_mask_change_nothing(faces: list[tuple[U8, F64, U8]]) -> None:
    target, swapped = faces[0][2][None], faces[1][2][None] + np.float32(0.3)
    assert np.array_equal(match_colour(swapped, target, oval(256)[None], 0.0), swapped)
    assert np.array_equal(match_colour(swapped, target, np.zeros((1, 256, 256), np.float32), 1.0), swapped)
    for empty in (0.0, 1.0):
        assert match_colour(swapped[:0], target[:0], oval(256)[None][:0], empty).shape == (0, 256, 256, 3)


def test_a_match_is_left_nearly_alone_and_is_stable(faces: list[tuple[U8, F64, U8]]) -> None:
    crop, other, mask = faces[2][2], faces[3][2], oval(256)
    same = match_colour(crop[None].astype(np.float32), crop[None], mask[None], 1.0)[0]
    assert np.abs(same - crop).max() < 1.5
    # A little noise and a pixel's move of the mask: the next frame. The colours hardly move.
    rng = np.random.default_rng(0)
    noisy = np.clip(other + rng.normal(0, 2, other.shape), 0, 255).astype(np.uint8)
    first = match_colour(crop[None].astype(np.float32), other[None], mask[None], 1.0)[0]
    second = match_colour(crop[None].astype(np.float32), noisy[None], np.roll(mask, 1, 1)[None], 1.0)[0]
    assert np.abs(first - second).max() < 3
    # A crop's result does not depend on its company.
    both = match_colour(
        np.stack([other, crop]).astype(np.float32), np.stack([crop, other]), np.stack([mask, mask]), 1.0
    )
    assert np.array_equal(both[1], first)


def test_low_frequencies_count_only_the_mask() -> None:
    image = np.full((64, 96, 3), 50, np.float32)
    image[:, 48:] = 9999
    mask = np.zeros((64, 96), np.float32)
    mask[:, :48] = 1
    for sigma in (1.5, 6.0, 24.0):
        np.testing.assert_allclose(low_frequencies(image, mask, sigma), 50, rtol=1e-3)
    assert low_frequencies(image[..., 0], mask, 4.0).shape == (64, 96)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (128, 128)).astype(np.float32)
    direct = cv2.GaussianBlur(noise, (0, 0), 16)
    blurred = low_frequencies(noise, np.ones((128, 128), np.float32), 16)
    assert np.abs(blurred - direct)[48:80, 48:80].max() < 0.1 * direct.std() + 0.005
