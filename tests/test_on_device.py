"""What OpenCV does on a processor and torch on a GPU: the same pictures either way, and nothing waits.

torch's side runs here on a processor, as nothing in it asks where it runs; what needs a GPU is marked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.configs import Settings, load_settings
from ldvid.errors import SettingsError
from ldvid.pipeline.ahead import prepare_ahead, warm_up
from ldvid.stages.colour_match import low_frequencies, match_colour, skin_weights
from ldvid.stages.mask import MaskStage
from ldvid.stages.records import F32, Crops, SourceFace
from ldvid.stages.rows import take
from ldvid.stages.swap import constants, device_colour, device_features, filters
from ldvid.stages.swap.device_start import DeviceStart
from ldvid.stages.swap.features import feature_points
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import Pack
from ldvid.stages.swap.stage import SwapStage
from ldvid.stages.swap.start import SourceStart
from ldvid.stages.swap.terms import Identity
from torch import Tensor

CPU = torch.device("cpu")
FRAMES = (0, 1, 24, 46, 47)  # a smile, a turned head, closed eyes
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def some(**changes: object) -> Settings:
    return load_settings("cpu", overrides={"steps": 2, "batch": 2, "dtype": "float32", **changes})


@pytest.fixture(scope="module")
def crops(cut: Callable[[Sequence[int]], Crops]) -> Crops:
    """Aligned crops of five frames."""
    return cut(FRAMES)


@pytest.fixture(scope="module")
def masked(crops: Crops, networks: Networks) -> Crops:
    return MaskStage(networks, some()).process(crops)


def planes(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()


def pixels(x: Tensor) -> F32:
    return np.asarray(x.permute(0, 2, 3, 1))


@given(
    st.integers(20, 90), st.integers(20, 90), st.floats(0.4, 4.5), st.sampled_from(["reflect", "nothing"]),
    st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_blur_is_opencvs(height: int, width: int, sigma: float, border: str, seed: int) -> None:
    picture = np.random.default_rng(seed).random((height, width), np.float32)
    kind = {"reflect": cv2.BORDER_DEFAULT, "nothing": cv2.BORDER_CONSTANT}[border]
    wanted = cv2.GaussianBlur(picture, (0, 0), sigma, borderType=kind)
    got = filters.gaussian(torch.from_numpy(picture), sigma, border)  # type: ignore[arg-type]
    np.testing.assert_allclose(got.numpy(), wanted, atol=2e-5)


@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_changes_of_size_are_opencvs(small: int, times: int, seed: int) -> None:
    large = small * times
    row = np.random.default_rng(seed).random((1, large), np.float32)
    less = cv2.resize(row, (small, 1), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(filters.area_matrix(large, small) @ row[0], less[0], atol=1e-5)
    more = cv2.resize(less, (large, 1), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(filters.linear_matrix(small, large) @ less[0], more[0], atol=1e-5)
    ends = filters.linear_matrix(small, large + 1, corners=True) @ less[0]
    np.testing.assert_allclose(ends[[0, -1]], less[0, [0, -1]], atol=1e-6)


def test_lab_is_opencvs_and_comes_back(crops: Crops) -> None:
    """OpenCV interpolates its tables on the way there: a third of a unit of Lab."""
    rgb = planes(crops.images)
    lab = device_colour.to_lab(rgb)
    np.testing.assert_allclose(device_colour.to_rgb(lab), rgb, atol=1e-3)
    for ours, image in zip(pixels(lab), crops.images, strict=True):
        theirs = cv2.cvtColor(image.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
        assert np.abs(ours - theirs).max() < 0.5 and np.abs(ours - theirs).mean() < 0.1
    corners = np.array(np.meshgrid([0, 60, 255], [0, 60, 255], [0, 60, 255]), np.float32).reshape(1, 3, 1, 27)
    back = device_colour.to_rgb(device_colour.to_lab(torch.from_numpy(corners)))
    np.testing.assert_allclose(back, corners, atol=0.02)


def test_colours_are_matched_alike(masked: Crops) -> None:
    assert masked.masks is not None
    theirs, masks = planes(masked.images), torch.from_numpy(masked.masks)
    lab = device_colour.to_lab(theirs)
    whole = [np.ascontiguousarray(p) for p in pixels(lab)]
    skin = np.stack([skin_weights(p, m) for p, m in zip(whole, masked.masks, strict=True)])
    np.testing.assert_allclose(device_colour.skin_weights(lab, masks), skin, atol=1e-3)
    for sigma in (2.0, 24.0, 32.0):
        low = np.stack([low_frequencies(p, m, sigma) for p, m in zip(whole, masked.masks, strict=True)])
        np.testing.assert_allclose(pixels(device_colour.low_frequencies(lab, masks, sigma)), low, atol=0.02)
    for tint in ((0.7, 0.9, 1.1), (1.2, 0.8, 0.6), (0.3, 0.3, 0.3)):
        swapped = (masked.images[::-1] * np.float32(tint)).clip(0, 255).astype(np.float32)
        for strength in (0.4, 1.0):
            wanted = match_colour(swapped, masked.images, masked.masks, strength)
            got = pixels(device_colour.match_colour(planes(swapped), theirs, masks, strength))
            away = np.abs(got - wanted)
            assert away.mean() < 0.3 and away.max() < 2, (tint, away.mean(), away.max())
            assert np.abs(wanted - swapped).mean() > 3  # there was something to match


def test_no_mask_and_no_strength_change_no_colour(crops: Crops) -> None:
    swapped, target = planes(crops.images[::-1]), planes(crops.images)
    nothing = torch.zeros(len(target), 256, 256)
    assert torch.equal(device_colour.match_colour(swapped, target, nothing, 1.0), swapped)
    assert torch.equal(device_colour.match_colour(swapped, target, nothing + 1, 0.0), swapped)


def test_features_are_found_alike(masked: Crops, networks: Networks) -> None:
    """Also where a part isn't there: one eye behind a hand, no brows at all."""
    parser = networks.manifest.parser
    assert masked.parses is not None
    parses = masked.parses.copy()
    for i in parser.indices("brows"):
        parses[1, i] = 0
    x, y = masked.landmarks[2, 0].round().astype(int)
    parses[2, :, y - 40 : y + 40, x - 40 : x + 40] = 0
    points, found = device_features.feature_points(
        torch.from_numpy(parses), torch.from_numpy(masked.landmarks), parser
    )
    assert not found[1].all() and found[0].sum() > found[1].sum() and found[0].sum() > found[2].sum()
    for i, parse in enumerate(parses):
        wanted, seen = feature_points(parse, masked.landmarks[i], parser)
        np.testing.assert_array_equal(found[i], seen)
        np.testing.assert_allclose(points[i], wanted, atol=0.01)


def test_starts_are_composed_alike(
    masked: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    """One source for all and one for each, the mirror image among them, parts missing."""
    assert masked.masks is not None and masked.parses is not None
    parser = networks.manifest.parser
    starts = []
    for face in faces:
        turned = face.landmarks.copy()
        turned[2, 0] += 7
        parse = networks.parse_crops(face.image[None])[0]
        starts.append(SourceStart(replace(face, landmarks=turned), parse, parser))
    parses = masked.parses.copy()
    parses[1, parser.indices("brows")] = 0
    landmarks = masked.landmarks.copy()
    landmarks[:, 2, 0] -= np.array([10, 5, 3, 0, 0], np.float32)  # from turned the other way to as it is
    together, many = DeviceStart(starts[:1], CPU), DeviceStart(starts, CPU)
    shares = together.shares(landmarks, np.zeros(5, int))[:, 1]
    assert shares.max() > 0.9 and shares.min() == 0 and ((shares > 0.1) & (shares < 0.9)).any(), shares
    for device, of in ((together, np.zeros(5, int)), (many, np.array([0, 1, 1, 0, 1]))):
        pictures, kept = device.compose(
            planes(masked.images), torch.from_numpy(landmarks), torch.from_numpy(masked.masks),
            torch.from_numpy(parses), torch.from_numpy(of),
            torch.from_numpy(device.shares(landmarks, of)), 1.0,
        )  # fmt: skip
        for i, index in enumerate(of):
            wanted, held = starts[index].compose_one(
                masked.images[i], landmarks[i], masked.masks[i], parses[i], 1.0
            )
            assert np.abs(kept[i].numpy() - held).max() < 0.05
            away = np.abs(pixels(pictures)[i] - wanted)
            assert away.mean() < 0.2 and away.max() < 12, (i, away.mean(), away.max())
            assert np.abs(wanted - masked.images[i]).mean() > 1


@pytest.mark.parametrize("sources", [1, 3])
def test_a_stage_swaps_alike(
    crops: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace], sources: int
) -> None:
    """Masks to the bit, swaps to a grey level or two, prepared ahead or not."""
    crops = take(crops, np.array([0, 1, 4]))
    chosen = faces[0] if sources == 1 else [faces[i % 2] for i in range(sources)]
    plain, mask = SwapStage(networks, some(), chosen), MaskStage(networks, some())
    one = plain.process(mask.process(crops))
    device = SwapStage(networks, some(), chosen)
    mask.on_device = device.on_device = True
    ready = mask.process(crops)
    assert ready.parses is None
    np.testing.assert_array_equal(ready.masks, one.masks)  # type: ignore[arg-type]
    ahead = device.prepare(ready)
    other = device.match(device.sample(ahead))
    assert one.swapped is not None and other.swapped is not None
    inside = np.asarray(one.masks) > 0.5
    away = np.abs(one.swapped - other.swapped)[inside]
    assert away.mean() < 1 and np.quantile(away, 0.99) < 6, (away.mean(), away.max())
    assert np.abs(one.swapped - crops.images)[inside].mean() > 5
    at_once = device.process(ready)
    np.testing.assert_array_equal(at_once.swapped, other.swapped)  # type: ignore[arg-type]


@pytest.mark.parametrize("on_device", [False, True])
def test_what_is_prepared_ahead_is_what_would_be_made(
    crops: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace], on_device: bool
) -> None:
    mask, swap = MaskStage(networks, some()), SwapStage(networks, some(), faces[0])
    mask.on_device = swap.on_device = on_device
    ahead, whole = prepare_ahead(mask, swap, crops), swap.prepare(mask.process(crops))
    assert ahead.parses is None and ahead.starts is not None
    for name in ("frames", "images", "masks", "starts", "kept"):
        np.testing.assert_array_equal(getattr(ahead, name), getattr(whole, name))
    none = take(crops, np.array([], int))
    assert len(prepare_ahead(mask, swap, none)) == 0


def test_a_loss_that_breaks_is_named_all_the_same(
    masked: Crops, networks: Networks, faces: tuple[SourceFace, SourceFace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that don't look at their losses at once: whose it was is found out afterwards."""
    whole = Identity.loss
    monkeypatch.setattr(
        Identity, "loss", lambda self, x, context: whole(self, x, context) / (1 - context.step)
    )
    stage = SwapStage(networks, some(), faces[0])
    stage.on_device = True
    with pytest.raises(SettingsError, match=r"guidance term identity: at step 1 its loss is not finite"):
        stage.process(take(masked, np.array([0, 1])))


def test_a_constant_is_made_once_and_outlives_its_place() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    first = constants.constant([[0.25, 1], [2, 3]], like)
    assert first.dtype == torch.float64 and first.tolist() == [[0.25, 1], [2, 3]]
    with constants.listed() as asked:
        again = constants.constant(((0.25, 1.0), (2.0, 3.0)), like)
    assert again is first and asked == [first]
    assert constants.constant([[0.25, 1], [2, 3]], like.float()).dtype == torch.float32
    for i in range(constants.MOST):
        constants.constant([i, 0.125], like)
    assert constants.constant([[0.25, 1], [2, 3]], like) is not first
    assert asked == [first]


@gpu
def test_a_gpu_that_was_warmed_up_swaps_the_same(
    crops: Crops, pack: Pack, faces: tuple[SourceFace, SourceFace]
) -> None:
    swapped = []
    for warm in (False, True):
        net = Networks.load(pack, "cuda", "float32")
        if warm:
            warm_up(net, some(), faces[0])
            assert len(net.recorder._recordings) == 1
        ready = prepare_ahead(MaskStage(net, some()), stage := SwapStage(net, some(), faces[0]), crops)
        swapped.append(stage.process(ready).swapped)
        if warm:  # it is what was recorded that ran
            assert len(net.recorder._recordings) == 1
    np.testing.assert_array_equal(*swapped)  # type: ignore[arg-type]


@gpu
@pytest.mark.parametrize("preset", ["fast", "quality", "paper"])
def test_a_recorded_swap_is_the_swap(
    crops: Crops, pack: Pack, faces: tuple[SourceFace, SourceFace], preset: str
) -> None:
    """The bytes of the first, of the recorded and of the replayed batches; near the processor's picture."""
    # The paper's λ in four steps carries a weight's last digit to whole levels of a pixel.
    tame = ("guidance.identity.scale=100",) if preset == "paper" else ()
    chosen = load_settings(preset, assignments=tame, overrides={"batch": 5, "dtype": "float32", "steps": 4})
    swapped = []
    for device in ("cuda", "cpu"):
        net = Networks.load(pack, device, "float32")
        mask, stage = MaskStage(net, chosen), SwapStage(net, chosen, faces[0])
        whole = replace(crops, frames=np.arange(5))
        swapped += [stage.process(mask.process(whole)).swapped for _ in range(3 if device == "cuda" else 1)]
        if device == "cuda":  # another track by the recording of this one, and by its own
            other = mask.process(replace(whole, track=1))
            replayed = stage.process(other).swapped
            assert len(net.recorder._recordings) == 1
            net = Networks.load(pack, device, "float32")
            own = SwapStage(net, chosen, faces[0]).process(MaskStage(net, chosen).process(other)).swapped
            np.testing.assert_array_equal(replayed, own)  # type: ignore[arg-type]
            assert not np.array_equal(np.asarray(replayed), np.asarray(swapped[0]))
    for again in swapped[1:3]:
        np.testing.assert_array_equal(swapped[0], again)  # type: ignore[arg-type]
    away = np.abs(np.asarray(swapped[0]) - np.asarray(swapped[3]))
    assert away.mean() < 2, away.mean()
