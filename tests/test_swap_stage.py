"""Mask, start and the swap stage on real frames of the example clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.configs import Settings, load_settings
from ldvid.stages.mask import MaskStage
from ldvid.stages.mask_shape import soft_mask
from ldvid.stages.oval import face_oval
from ldvid.stages.records import Crops, SourceFace
from ldvid.stages.rows import take
from ldvid.stages.swap.features import feature_points
from ldvid.stages.swap.networks import Networks, to_tensor
from ldvid.stages.swap.stage import SwapStage
from ldvid.stages.swap.start import SourceStart, bend_map, pose_fit, thin_plate

FRAMES = (0, 1, 2, 46, 47)  # a smile, and closed eyes at the end


def small(**changes: object) -> Settings:
    overrides = {"steps": 2, "batch": 2, **changes}
    return load_settings("cpu", overrides=overrides)


@pytest.fixture(scope="module")
def crops(cut: Callable[[Sequence[int]], Crops], networks: Networks) -> Crops:
    """Aligned, masked crops of five frames."""
    return MaskStage(networks, small()).process(cut(FRAMES))


@pytest.fixture(scope="module")
def swapped(crops: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace]) -> Crops:
    return SwapStage(networks, small(), faces[0]).process(crops)


def rows(crops: Crops, *index: int) -> Crops:
    """Only some of the crops."""
    return replace(take(crops, np.array(index)), swapped=None)


def embeddings(networks: Networks, images: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    import torch
    from ldvid.stages.swap.guidance import arcface_theta, arcface_view

    theta = arcface_theta(landmarks, networks.identity_template(), 256, 112)
    with torch.no_grad():
        view = arcface_view(to_tensor(images, torch.device("cpu")), theta, 112)
        return networks.embed_aligned(view).numpy()


def test_masks_hold_the_face_and_nothing_else(crops: Crops) -> None:
    assert crops.masks is not None
    for mask, landmarks in zip(crops.masks, crops.landmarks, strict=True):
        for x, y in landmarks.round().astype(int):
            assert mask[y, x] > 0.95
        assert mask.min() >= 0 and mask.max() <= 1
        gap = landmarks[1, 0] - landmarks[0, 0]
        for ear in (landmarks[2, 0] - 1.32 * gap, landmarks[2, 0] + 1.32 * gap):
            assert mask[round(float(landmarks[2, 1])) - 15, round(float(ear))] < 0.05
        border = np.concatenate(
            [mask[:4].ravel(), mask[-4:].ravel(), mask[:, :4].ravel(), mask[:, -4:].ravel()]
        )
        assert border.max() < 0.1
        assert 0.15 < mask.mean() < 0.5


@settings(max_examples=20, deadline=None)
@given(st.floats(35, 70), st.floats(-10, 10), st.floats(1, 12))
def test_a_mask_grows_with_grow_and_falls_smoothly(radius: float, grow: float, feather: float) -> None:
    ys, xs = np.mgrid[0:256, 0:256]
    disc = (np.hypot(xs - 128, ys - 128) < radius).astype(np.float32)
    mask = soft_mask(disc, grow, feather)
    area = float(mask.sum())
    wanted = np.pi * max(radius + grow, 0) ** 2
    assert abs(area - wanted) < 0.12 * wanted + 2 * np.pi * radius + 60
    steps = np.abs(np.diff(mask[128]))
    assert steps.max() <= 0.85 / feather + 0.05


def test_an_empty_parse_is_an_empty_mask() -> None:
    assert soft_mask(np.zeros((256, 256), np.float32), 4, 6).max() == 0


def test_the_oval_turns_with_the_face(crops: Crops) -> None:
    points = crops.landmarks[0]
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    turned = ((points - 128) @ turn.T + 128).astype(np.float32)
    upright, rotated = face_oval(points, 256), face_oval(turned, 256)
    assert abs(upright.sum() - rotated.sum()) < 0.02 * upright.sum()
    assert np.abs(upright - rotated).max() > 0.5


def test_no_mask_returns_the_targets_reconstruction(
    crops: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    """Mask 0: the loop gives back the target, and colour matching has nothing to change."""
    import torch

    assert crops.masks is not None
    one = replace(rows(crops, 0, 1), masks=np.zeros_like(crops.masks[:2]))
    done = SwapStage(networks, small(), faces[0]).process(one)
    with torch.no_grad():
        x = to_tensor(one.images, torch.device("cpu"))
        wanted = networks.decode(networks.encode(x)).clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255
    assert done.swapped is not None
    np.testing.assert_allclose(done.swapped, wanted, atol=0.01)


def test_no_guidance_and_no_mask_is_the_reconstruction_exactly(
    crops: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    """Lines 3 to 19 of the paper's preset with every λ and M at 0: D(E(x_targ)), bit for bit."""
    import torch

    assert crops.masks is not None
    two = replace(rows(crops, 0, 1), masks=np.zeros_like(crops.masks[:2]))
    plain = load_settings("paper", overrides={"steps": 3, "batch": 2, "guidance": ()})
    done = SwapStage(networks, plain, faces[0]).process(two).swapped
    with torch.no_grad():
        x = to_tensor(two.images, torch.device("cpu"))
        wanted = (networks.decode(networks.encode(x)).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    assert done is not None and np.array_equal(done, wanted)


def test_terms_beyond_the_paper_run_in_the_stage(
    crops: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    """Added by name, scale 1: they change the picture, and so does the source's own framing."""
    one = rows(crops, 0)
    pictures = []
    alone = ["guidance=[{term = 'identity', scale = 1.0}]", "steps=1", "batch=1"]
    for extra in ((), ("geometry",), ("identity_crop",)):
        chosen = load_settings("cpu", assignments=[*alone, *(f"guidance.{t}.scale=1.0" for t in extra)])
        done = SwapStage(networks, chosen, faces[0]).process(one).swapped
        assert done is not None and np.isfinite(done).all()
        pictures.append(done)
    assert min(np.abs(pictures[0] - p).max() for p in pictures[1:]) > 3


def test_the_face_becomes_the_sources(
    swapped: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    assert swapped.swapped is not None
    after = np.clip(swapped.swapped, 0, 255).astype(np.uint8)
    own = embeddings(networks, swapped.images, swapped.landmarks)
    new = embeddings(networks, after, swapped.landmarks)
    to_source, before = new @ faces[0].embedding, own @ faces[0].embedding
    assert (to_source > before + 0.25).all(), (to_source, before)
    assert (to_source > (new * own).sum(1)).all()


def test_light_and_expression_stay_the_targets(swapped: Crops, networks: Networks) -> None:
    """Skin keeps its mean colour within 6 grey levels; open and closed eyes stay so."""
    import torch

    assert swapped.masks is not None and swapped.swapped is not None
    weight = swapped.masks[..., None] / swapped.masks.sum((1, 2))[:, None, None, None]
    difference = ((swapped.swapped - swapped.images) * weight).sum((1, 2))
    assert np.abs(difference).max() < 6, difference
    parser = networks.manifest.parser
    with torch.no_grad():
        before = networks.parse(to_tensor(swapped.images, torch.device("cpu")))
        after = networks.parse(to_tensor(swapped.swapped, torch.device("cpu")))
    eyes = [p[:, parser.indices("eyes")].sum((1, 2, 3)).numpy() for p in (before, after)]
    mouths = [p[:, parser.indices("mouth")].sum((1, 2, 3)).numpy() for p in (before, after)]
    assert (np.abs(eyes[0] - eyes[1]) < 0.4 * eyes[0].max()).all(), eyes
    assert (np.abs(mouths[0] - mouths[1]) < 0.4 * mouths[0].max()).all(), mouths


def test_same_seed_same_bytes_however_the_frames_are_cut(
    crops: Crops, swapped: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    assert swapped.swapped is not None
    stage = SwapStage(networks, small(), faces[0])
    for part in ((0,), (1, 2), (3, 4), (4,)):
        again = stage.process(rows(crops, *part)).swapped
        assert again is not None
        assert np.array_equal(again, swapped.swapped[list(part)]), part


def test_another_seed_is_another_picture(
    crops: Crops, swapped: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    assert swapped.swapped is not None
    other = SwapStage(networks, small(seed=1), faces[0]).process(rows(crops, 0)).swapped
    assert other is not None
    assert np.abs(other[0] - swapped.swapped[0]).max() > 2


@pytest.mark.parametrize("preset", ["fast", "quality", "paper"])
def test_every_preset_runs(
    preset: str, crops: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    chosen = load_settings(preset, overrides={"steps": 1, "batch": 1})
    done = SwapStage(networks, chosen, faces[1]).process(rows(crops, 0)).swapped
    assert done is not None and np.isfinite(done).all()
    inside = crops.masks[0] > 0.9 if crops.masks is not None else None
    assert np.abs(done[0] - crops.images[0])[inside].mean() > 2


def test_progress_counts_frames(
    crops: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    seen: list[int] = []
    SwapStage(networks, small(steps=1), faces[0], seen.append).process(rows(crops, 2, 3, 4))
    assert seen == [1, 2]  # frame 2, then 46 and 47 in one batch
    with pytest.raises(ValueError, match="masks"):
        SwapStage(networks, small(), faces[0]).process(replace(crops, masks=None))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_a_stiff_spline_passes_affine_maps_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, at = rng.random((9, 2)), rng.random((20, 2))
    linear, shift = rng.normal(size=(2, 2)), rng.normal(size=2)
    bent = thin_plate(points, points @ linear.T + shift, at)
    np.testing.assert_allclose(bent, at @ linear.T + shift, atol=1e-6)


def test_equal_features_do_not_bend(crops: Crops) -> None:
    points = crops.landmarks[0]
    mx, my = bend_map(points, points, 256)
    xs, ys = np.meshgrid(np.arange(256), np.arange(256))
    np.testing.assert_allclose(mx, xs, atol=1e-2)
    np.testing.assert_allclose(my, ys, atol=1e-2)
    moved = points + np.float32([0, 6])
    assert bend_map(points, moved, 256)[1][170, 128] < 170 - 3


def test_the_start_is_the_target_where_nothing_is_to_change(
    crops: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    """Outside the mask exactly; in the eyes and the open mouth all but."""
    import torch

    assert crops.masks is not None
    with torch.no_grad():
        parses = networks.parse(to_tensor(crops.images, torch.device("cpu"))).numpy()
        source = networks.parse(to_tensor(faces[0].image[None], torch.device("cpu")))[0].numpy()
    start = SourceStart(faces[0], source, networks.manifest.parser)
    pictures, kept = start.compose(crops.images, crops.landmarks, crops.masks, parses, 1.0)
    outside = crops.masks == 0
    assert np.array_equal(pictures[outside], crops.images[outside].astype(np.float32))
    parser = networks.manifest.parser
    inner = (parses[:, parser.indices("mouth")].sum(1) > 0.9) | (
        parses[:, parser.indices("eyes")].sum(1) > 0.9
    )
    assert inner.sum() > 200 and kept[inner].mean() > 0.9
    assert np.abs(pictures - crops.images)[inner].mean() < 4
    skin = (crops.masks == 1) & (kept < 0.05)
    assert np.abs(pictures - crops.images)[skin].mean() > 6
    unkept, _ = start.compose(crops.images, crops.landmarks, crops.masks, parses, 0.0)
    assert np.abs(unkept - crops.images)[inner].mean() > 10


def test_the_source_is_mirrored_where_the_target_looks_the_other_way(
    networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    """A head turned one way, put on its own mirror image: mirrored it fits, as it is it can't."""
    import torch

    face = faces[0]
    landmarks = face.landmarks.copy()
    landmarks[2, 0] += 12  # as of a head turned to its left
    with torch.no_grad():
        parse = networks.parse(to_tensor(face.image[None], torch.device("cpu")))[0].numpy()
    turned = replace(face, landmarks=landmarks)
    names = networks.manifest.parser.classes
    swap = [names.index(_other_side(name)) for name in names]
    target, theirs = np.ascontiguousarray(face.image[None, :, ::-1]), parse[None, swap][..., ::-1].copy()
    points = landmarks[[1, 0, 2, 4, 3]] * np.float32([-1, 1]) + np.float32([255, 0])
    mask = np.ones((1, 256, 256), np.float32)
    both = [SourceStart(turned, parse, networks.manifest.parser, mirror=m) for m in (True, False)]
    off, shares = [], []
    for start in both:
        picture, kept = start.compose(target, points[None], mask, theirs, 0.0)
        off.append(float(np.abs(picture - target)[kept < 0.5].mean()))
        shares.append(start.shares(points)[0])
    assert shares == [(0.0, 1.0), (1.0, 0.0)] and off[0] < 0.3 and off[1] > 3 * off[0] + 1, (shares, off)
    # Between the two, along a turning head, one goes over into the other without a jump.
    way = [(1 - k) * landmarks + k * points for k in np.linspace(0, 1, 41)]
    line = np.array([both[0].shares(seen)[0][1] for seen in way])
    assert line[0] == 0 and line[-1] == 1 and (np.diff(line) >= 0).all() and np.diff(line).max() < 0.3


def _other_side(name: str) -> str:
    right, left = name.replace("left_", "right_"), name.replace("right_", "left_")
    return right if name.startswith("left_") else left


def test_what_is_held_stays_through_the_loop(
    crops: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    one = rows(crops, 0)
    free = SwapStage(networks, small(start_hold=0.0, colour_match=0.0), faces[0]).process(one).swapped
    held = SwapStage(networks, small(start_hold=1.0, colour_match=0.0), faces[0]).process(one).swapped
    assert free is not None and held is not None
    x, y = ((one.landmarks[0, 3] + one.landmarks[0, 4]) / 2).round().astype(int)
    teeth = np.s_[0, y - 4 : y + 8, x - 16 : x + 16]
    moved = [np.abs(p[teeth] - one.images[teeth]).mean() for p in (free, held)]
    assert moved[1] < 0.8 * moved[0], moved


def test_a_profile_is_no_place_for_a_frontal_photo(crops: Crops) -> None:
    points = crops.landmarks[0]
    assert pose_fit(points, points + 5) == 1
    profile = points.copy()
    profile[1, 0] = profile[0, 0] + 20
    profile[2, 0] -= 30
    assert pose_fit(points, profile) < 0.05


def test_features_follow_what_is_seen(crops: Crops, networks: Networks) -> None:
    """Eye corners lie around the eyes; a shifted picture shifts them."""
    import torch

    parser = networks.manifest.parser
    with torch.no_grad():
        parse = networks.parse(to_tensor(crops.images[:1], torch.device("cpu")))[0].numpy()
    points, found = feature_points(parse, crops.landmarks[0], parser)
    assert len(points) == len(found) == 5 + 6 * 4
    assert found[:13].all()  # landmarks and both open eyes
    right = points[5:9]
    assert right[0, 0] < crops.landmarks[0][0, 0] < right[1, 0]
    assert right[2, 1] <= right[3, 1]
    shifted, _ = feature_points(np.roll(parse, 3, axis=2), crops.landmarks[0] + np.float32([3, 0]), parser)
    np.testing.assert_allclose(shifted[found] - points[found], np.tile([3, 0], (found.sum(), 1)), atol=0.6)


def test_each_crop_with_its_own_source_is_as_if_alone(
    crops: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    chosen = load_settings("cpu", guidance=["identity_crop"], assignments=["steps=2", "batch=2"])
    two = rows(crops, 0, 1)
    both = SwapStage(networks, chosen, faces).process(two).swapped
    assert both is not None
    for i, source in enumerate(faces):
        alone = SwapStage(networks, chosen, source).process(two).swapped
        assert alone is not None
        # The rows went through the same kernels; only the source beside them differs.
        np.testing.assert_array_equal(both[i], alone[i])
        assert np.abs(both[1 - i] - alone[1 - i]).mean() > 1
    with pytest.raises(ValueError, match="2 sources for 1 crops"):
        SwapStage(networks, chosen, faces).process(rows(crops, 0))
