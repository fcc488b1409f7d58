"""Occlusion: what is in front of a face stays in front, and a face with nothing before it stays a face."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.configs import Settings, load_settings
from ldvid.stages.align import AlignStage
from ldvid.stages.decode import open_reader, probe
from ldvid.stages.detect import Detector
from ldvid.stages.mask import MaskStage
from ldvid.stages.occlusion import occluders, skin_residual
from ldvid.stages.records import F32, U8, Crops, Track
from ldvid.stages.rows import take
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import Pack

STEPS = 6


@pytest.fixture(scope="module")
def crop(pack: Pack, detector: Detector, example_clip: Path) -> Crops:
    """One aligned crop of the example clip."""
    frame = next(open_reader(probe(example_clip), "pyav").read(5, 6))
    found = detector.detect(frame.rgb)[0]
    track = Track(
        0, 0, np.array([5]), found.box[None], found.landmarks[None], np.ones(1, np.float32),
        np.zeros(512, np.float32),
    )  # fmt: skip
    return AlignStage(track, pack.manifest.template_points(), 256).process([frame])


def with_(crop: Crops, image: U8) -> Crops:
    return replace(crop, images=image[None])


def mask_of(networks: Networks, crop: Crops, occlusion: float) -> F32:
    done = MaskStage(networks, load_settings(overrides={"occlusion": occlusion})).process(crop)
    assert done.masks is not None
    return done.masks[0]


def stick(
    image: U8, x: float, width: float = 16, colour: tuple[int, int, int] = (30, 60, 140)
) -> tuple[U8, F32]:
    """A soft vertical bar from below up to the eyes: the picture and its matte."""
    xs = np.arange(256)
    matte = np.clip((width / 2 - np.abs(xs - x)) / 2 + 0.5, 0, 1)[None] * np.ones((256, 1))
    matte[:135] = 0
    matte = cv2.GaussianBlur(matte, (0, 0), 0.7).astype(np.float32)
    mixed = image + (np.array(colour) - image.astype(np.float32)) * matte[..., None]
    return np.rint(mixed).astype(np.uint8), matte


@pytest.mark.parametrize("colour", [(30, 60, 140), (25, 25, 25), (60, 190, 80)])
def test_what_moves_in_front_stays_in_front(
    crop: Crops, networks: Networks, colour: tuple[int, int, int]
) -> None:
    """Within 8 grey levels even of a swap 100 away: a mask below 0.08 on 95 % of the occluder."""
    clean = mask_of(networks, crop, 0)
    kept = before = total = covered = face = 0
    for x in np.linspace(80, 175, STEPS):
        image, matte = stick(crop.images[0], x, colour=colour)
        mask, plain = (mask_of(networks, with_(crop, image), o) for o in (1.0, 0.0))
        there, own = (matte > 0.5) & (clean > 0.5), (matte < 0.02) & (clean > 0.5)
        kept += int((mask[there] < 0.08).sum())
        before += int((plain[there] < 0.08).sum())
        total += int(there.sum())
        covered += int((mask[own] > 0.5).sum())
        face += int(own.sum())
    assert kept > 0.95 * total, f"{kept / total:.3f} of the occluder, {before / total:.3f} without the test"
    assert kept > before
    assert covered > 0.85 * face, f"{covered / face:.3f} of the face"


def test_a_free_face_stays_whole(crop: Crops, networks: Networks) -> None:
    full, left = mask_of(networks, crop, 0), mask_of(networks, crop, 1)
    core = cv2.erode(full, np.ones((17, 17))) > 0.5
    assert (left[core] > 0.9).mean() > 0.97
    assert (left <= full).all()


def test_strength_goes_from_nothing_to_all(crop: Crops, networks: Networks) -> None:
    image, _ = stick(crop.images[0], 128)
    none, half, full = (mask_of(networks, with_(crop, image), o) for o in (0.0, 0.5, 1.0))
    assert np.abs(half - (none + full) / 2).max() < 1e-6
    assert (none - full).max() > 0.9


def test_off_is_the_mask_as_it_was(crop: Crops, networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> F32:
        raise AssertionError("nothing should look for occluders")

    monkeypatch.setattr("ldvid.stages.mask_shape.occluders", never)
    assert mask_of(networks, crop, 0).max() > 0.99
    with pytest.raises(AssertionError, match="look for"):
        mask_of(networks, crop, 0.01)


def test_a_crop_alone_decides(crop: Crops, networks: Networks) -> None:
    """The same mask and parse in whatever company: so segments may end anywhere."""
    image, _ = stick(crop.images[0], 110)
    five = replace(
        crop, frames=np.array([2, 3, 4, 5, 6]), images=np.stack([crop.images[0], image] * 2 + [image]),
        matrices=crop.matrices.repeat(5, 0), landmarks=crop.landmarks.repeat(5, 0),
    )  # fmt: skip
    stage = MaskStage(networks, Settings(occlusion=1, batch=4))
    whole = stage.process(five)
    for part in ([0], [1, 3], [2, 3, 4]):
        pieces = stage.process(take(five, np.array(part)))
        np.testing.assert_array_equal(pieces.masks, whole.masks[part])  # type: ignore[index]
        np.testing.assert_array_equal(pieces.parses, whole.parses[part])  # type: ignore[index]


def disc(radius: float, x: float = 128, y: float = 128) -> F32:
    ys, xs = np.mgrid[0:256, 0:256]
    return np.clip(radius - np.hypot(xs - x, ys - y), 0, 1).astype(np.float32)


def skin_picture(noise: float = 3.0) -> U8:
    rng = np.random.default_rng(0)
    shade = np.linspace(0.8, 1.1, 256)[None, :, None]
    return np.clip(np.array([200, 150, 130]) * shade + rng.normal(0, noise, (256, 256, 3)), 0, 255).astype(
        np.uint8
    )


def test_what_leaves_a_hole_or_a_dent_in_a_face_is_in_front_of_it() -> None:
    """Whatever its colour; and what is beside the face is the outline's business."""
    nothing = np.zeros((256, 256), np.float32)
    hole, dent = disc(100) - disc(20), np.clip(disc(100) - disc(60, x=230), 0, 1)
    for image in (skin_picture(1.0), np.full((256, 256, 3), (20, 30, 40), np.uint8)):
        assert occluders(image, hole, nothing)[120:136, 120:136].min() > 0.95
        assert occluders(image, dent, nothing)[120:136, 180:190].min() > 0.95
        assert not occluders(image, disc(100), nothing)[disc(102) == 0].any()


def test_a_parser_that_is_not_quite_sure_asks_the_colours() -> None:
    nothing, image = np.zeros((256, 256), np.float32), skin_picture(1.0)
    face = disc(100) * (1 - 0.15 * disc(20))
    image[:128][disc(20)[:128] > 0.5] = (20, 30, 40)
    found = occluders(image, face, nothing)
    assert found[112:124, 120:136].min() > 0.95 and found[134:144, 120:136].max() < 0.05


def test_features_of_a_face_are_no_occluders() -> None:
    image, face, lips = skin_picture(), disc(100), disc(14, y=170)
    image[lips > 0.5] = (120, 60, 60)
    assert occluders(image, face, lips)[165:175, 120:136].max() < 0.05


@settings(max_examples=25, deadline=None)
@given(st.floats(0.6, 1.3), st.integers(-30, 30), st.floats(0, 12))
def test_light_and_noise_make_no_occluders(light: float, shift: int, noise: float) -> None:
    image = np.clip(skin_picture(noise) * light + shift, 0, 255).astype(np.uint8)
    inside = disc(85) > 0.5
    found = occluders(image, disc(100), np.zeros((256, 256), np.float32))
    assert found[inside].max() < 0.1


def test_a_picture_without_skin_has_no_residual() -> None:
    image = skin_picture()
    assert not skin_residual(image, np.zeros((256, 256), np.float32), 1.0).any()
    residual = skin_residual(image, disc(100), 1.0)
    assert residual[disc(90) > 0.5].mean() < 2.5


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        occluders(
            np.zeros((16, 16, 3), np.uint8), np.zeros((8, 8), np.float32), np.zeros((16, 16), np.float32)
        )


def test_a_face_of_crumbs_is_no_error() -> None:
    """A false face may be many small pieces, none of them a fiftieth of the whole."""
    face = np.zeros((256, 256), np.float32)
    for y in range(8, 250, 24):
        for x in range(8, 250, 24):
            face[y : y + 8, x : x + 8] = 1
    grey = np.full((256, 256, 3), 128, np.uint8)
    hidden = occluders(grey, face, np.zeros_like(face))
    assert hidden.shape == face.shape and np.isfinite(hidden).all()
