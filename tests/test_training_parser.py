"""Training of the face parser: what is done to pictures and labels, the loss, and stopping and going on."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import cv2
import numpy as np
import pytest
import torch
from facexlib.parsing.bisenet import BiSeNet
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.errors import OutputExistsError, SettingsError
from ldvid.stages.records import SourceFace
from ldvid.stages.swap.loaders import load_parser
from ldvid.stages.swap.networks import Networks
from ldvid.training import augment, bisenet, overlap, parser
from ldvid.training.latents import base_pack
from ldvid.training.occluders import KINDS, occlude
from ldvid.training.shards import CLASSES, IGNORE, MIRRORED, Faces, Sample, ShardWriter
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
PAIRS = [(CLASSES.index(f"right_{p}"), CLASSES.index(f"left_{p}")) for p in ("brow", "eye")]


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def labelled(faces: tuple[SourceFace, SourceFace], networks: Networks) -> Faces:
    """The example portraits and their mirror images, labelled by the pack's parser and the midline."""
    images = np.stack([f.image for f in faces])
    images = np.concatenate([images, images[:, :, ::-1]])
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    names = networks.manifest.parser.classes
    coarse = networks.parse(scaled).argmax(1).numpy()
    right = np.arange(256)[None, None, :] < 128
    upper = np.arange(256)[None, :, None] < 187
    labels = np.zeros(coarse.shape, np.uint8)
    for index, name in enumerate(CLASSES):
        of = names.index(bisenet.PARENTS.get(name, name)) if "brows" in names else index
        where = coarse == of
        if name.startswith(("right_", "left_")):
            where &= right if name.startswith("right_") else ~right
        if name.endswith("_lip"):
            where &= upper if name.startswith("upper") else ~upper
        labels[where] = index
    assert set(np.unique(labels)) >= set(range(10))  # every part is in there, but perhaps the mouth
    points = np.tile(
        np.array([[96, 121], [160, 121], [129, 160], [101, 187], [157, 187]], np.float32), (4, 1, 1)
    )
    return Faces(list("abcd"), ["one", "two"] * 2, images, np.ones(labels.shape, np.uint8), labels, points)


@pytest.fixture(scope="module")
def batch(labelled: Faces) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(labelled.images).permute(0, 3, 1, 2).float() / 255
    return images, torch.from_numpy(cast(np.ndarray, labelled.labels))


def small(**values: object) -> parser.ParserConfig:
    return parser.ParserConfig.model_validate(
        {"steps": 6, "seconds": None, "batch": 4, "sizes": [64], "warm_up": 1, **values}
    )


# ------------------------------------------------------------------------------------ pictures and labels


def test_mirror_swaps_sides(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    done = augment.jitter(images, random(0), scale=0, shift=0, rotate=0, mirror=1, labels=labels)
    assert torch.allclose(done.images, images.flip(-1), atol=1e-5)
    found = cast(Tensor, done.labels)
    for right, left in PAIRS:
        assert torch.equal(found == right, (labels == left).flip(-1))
        assert torch.equal(found == left, (labels == right).flip(-1))
    assert torch.equal(found == CLASSES.index("nose"), (labels == CLASSES.index("nose")).flip(-1))


def test_the_mirror_table_is_the_names() -> None:
    swapped = [n.replace("right", "?").replace("left", "right").replace("?", "left") for n in CLASSES]
    assert [CLASSES[i] for i in MIRRORED] == swapped
    everything = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(augment.mirror_labels(augment.mirror_labels(everything)), everything)
    assert augment.mirror_labels(everything)[IGNORE] == IGNORE


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(0, 0.4),
    shift=st.floats(0, 0.2),
    rotate=st.floats(0, 45),
    mirror=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_labels_move_as_pictures_do(
    seed: int, scale: float, shift: float, rotate: float, mirror: float
) -> None:
    """A picture that shows its own labels still does so after any jitter, and says what left the crop."""
    labels = torch.zeros(3, 64, 64, dtype=torch.uint8)
    labels[:, 10:30, 8:40] = CLASSES.index("skin")
    labels[:, 34:60, 30:50] = CLASSES.index("nose")
    images = labels[:, None].expand(-1, 3, -1, -1).float() / 10
    done = augment.jitter(
        images, random(seed), scale=scale, shift=shift, rotate=rotate, mirror=mirror,
        inside=torch.ones_like(labels), labels=labels, extra=images[:, :1],
    )  # fmt: skip
    found = cast(Tensor, done.labels)
    assert torch.equal(found != IGNORE, cast(Tensor, done.inside) == 1)
    flat = torch.nn.functional.max_pool2d(done.images, 3, 1, 1) == -torch.nn.functional.max_pool2d(
        -done.images, 3, 1, 1
    )
    sure = flat[:, 0] & (found != IGNORE)  # not on an edge, where bilinear and nearest differ
    assert sure.float().mean() > 0.2
    assert torch.equal((done.images[:, 0] * 10).round().to(torch.uint8)[sure], found[sure])
    assert torch.equal(cast(Tensor, done.extra)[:, 0], done.images[:, 0])
    # the largest change is what was asked for
    size = torch.linalg.det(done.matrix[:, :, :2]).abs().sqrt()
    assert bool((size <= (1 + scale) * 1.001).all()) and bool((size >= 0.999 / (1 + scale)).all())
    assert bool((done.matrix[:, :, 2].abs() <= 2 * shift + 1e-6).all())
    turn = torch.atan2(-done.matrix[:, 0, 1], done.matrix[:, 1, 1]).abs()
    assert bool((turn <= math.radians(rotate) + 1e-5).all())


def test_light_changes_no_hue_and_early_estimates_lose_detail(batch: tuple[Tensor, Tensor]) -> None:
    images, _ = batch
    grey = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    lit = augment.colour(grey, random(1))
    assert torch.allclose(lit[:, 0], lit[:, 2], atol=1e-6)
    assert float((lit - grey).abs().mean()) > 0.01
    early = augment.early_estimate(images, random(1), share=1)
    fine = images - augment.low_resolution(images, 4)
    kept = (fine * (early - augment.low_resolution(early, 4))).mean() / (fine * fine).mean()
    assert float(kept) < 0.5
    assert torch.equal(augment.early_estimate(images, random(1), share=0), images)
    for x in (lit, early, augment.degrade(images, random(2))):
        assert x.shape == images.shape and 0 <= float(x.min()) <= float(x.max()) <= 1


def test_each_blur_has_its_own_sigma() -> None:
    images = torch.zeros(2, 3, 65, 65)
    images[:, :, 32, 32] = 1
    done = augment.blur(images, torch.tensor([1.0, 4.0]), reach=16)
    rows = torch.arange(65.0) - 32
    variance = (done[:, 0].sum(1) * rows**2).sum(1)
    assert torch.allclose(variance, torch.tensor([1.0, 16.0]), rtol=0.05)


# ---------------------------------------------------------------------------------------------- occluders


@pytest.mark.parametrize("kind", KINDS)
def test_what_covers_is_not_face(kind: str, batch: tuple[Tensor, Tensor]) -> None:
    """Covered pixels are background (strands and pieces of pictures: or hair), all others as they were."""
    images, labels = batch
    labels = labels.clone()
    labels[:, :40] = IGNORE
    face, covered = 0.0, 0.0
    for seed in range(3):
        done = occlude(images, labels, random(seed), {kind: 1.0})
        assert done.images.shape == images.shape and done.labels.dtype == torch.uint8
        assert 0 <= float(done.images.min()) <= float(done.images.max()) <= 1
        assert torch.equal(done.labels[~done.covered], labels[~done.covered])
        allowed = {"strands": {1}, "patch": {0, 1}}.get(kind, {0})
        assert set(done.labels[done.covered].unique().tolist()) <= allowed
        assert float((done.images - images).abs().mean()) > 1e-3
        covered += float(done.covered.float().mean()) / 3
        face += float((done.covered & (labels >= 2) & (labels != IGNORE)).float().mean()) / 3
        if kind != "shadow":  # what is taken looks otherwise than before
            assert float((done.images - images).abs().amax(1)[done.covered].mean()) > 0.05
    if kind == "shadow":
        assert covered == 0
    else:
        assert 0.002 < face <= covered < 0.6


def test_spectacles_leave_the_eyes(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    eyes = (labels == 5) | (labels == 6)
    bare = [
        occlude(images, labels, random(s), {k: 1.0}).covered & eyes for s in range(4) for k in ("spectacles",)
    ]
    dark = [occlude(images, labels, random(s), {"sunglasses": 1.0}).covered & eyes for s in range(4)]
    assert sum(int(b.sum()) for b in bare) < 0.35 * 4 * int(eyes.sum())
    assert sum(int(d.sum()) for d in dark) > 0.9 * 4 * int(eyes.sum())


def test_occluders_come_as_often_as_asked(batch: tuple[Tensor, Tensor]) -> None:
    images, labels = (x[:1].repeat_interleave(10, 0)[..., ::4, ::4] for x in batch)
    hit = [occlude(images, labels, random(s), {"object": 0.12}).covered.any(2).any(1) for s in range(60)]
    assert 0.07 < float(torch.stack(hit).float().mean()) < 0.16  # 2 of 10 are drawn, 6 in 10 of them used
    nothing = occlude(images, labels, random(0), {})
    assert torch.equal(nothing.images, images) and not bool(nothing.covered.any())
    with pytest.raises(KeyError, match="parrot"):
        occlude(images, labels, random(0), {"parrot": 1.0})


def test_the_seed_decides(batch: tuple[Tensor, Tensor]) -> None:
    def once(seed: int) -> tuple[Tensor, Tensor]:
        return parser.augmented(*batch, random(seed), small(), 128)

    first, again, other = once(1), once(1), once(2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])
    assert first[0].shape == (4, 3, 128, 128) and first[1].shape == (4, 128, 128)
    assert first[1].dtype == torch.uint8


@pytest.mark.parametrize("size", [128, 160, 192, 256])
def test_resized_labels_lie_on_their_pictures(size: int) -> None:
    """Without a shift either way: the centres of gravity agree to a twentieth of a pixel."""
    labels = torch.zeros(60, 256, 256, dtype=torch.uint8)
    corners = torch.randint(20, 120, (60, 2), generator=random(0)).tolist()
    for one, (x, y) in zip(labels, corners, strict=True):
        one[y : y + 2 * x // 3 + 9, x : x + y] = 9
    images = labels[:, None].float().expand(-1, 3, -1, -1) / 9
    smaller, found = bisenet.resized(images, labels, size)
    assert smaller.shape == (60, 3, size, size) and found.dtype == torch.uint8
    mass = torch.stack([smaller[:, 0], found.float() / 9])
    for dim in (2, 3):
        line = torch.arange(float(size)).reshape([-1, 1] if dim == 2 else [1, -1])
        centre = (mass * line).sum((2, 3)) / mass.sum((2, 3))
        assert abs(float((centre[0] - centre[1]).mean())) < 0.05
    assert set(found.unique().tolist()) == {0, 9}
    assert bool((bisenet.resized(images, torch.full_like(labels, IGNORE), size)[1] == IGNORE).all())


# --------------------------------------------------------------------------------------------- the network


def test_the_start_is_the_older_parser(batch: tuple[Tensor, Tensor]) -> None:
    """Split classes begin as equals, and their sum is the older class, before the softmax doubles it."""
    start = base_pack("training/start")
    names = start.manifest.parser.classes
    assert len(names) == 8
    net = bisenet.initial(start.folder, seed=0).eval()
    with torch.no_grad():
        x = bisenet.normalised(batch[0][:1])
        ours, theirs = net(x), BiSeNet.forward(load_parser(start).eval(), x)  # all its heads
    for mine, coarse in zip(ours, theirs, strict=True):
        assert mine.shape == (1, 11, 256, 256)
        for index, name in enumerate(CLASSES):
            parent = names.index(bisenet.PARENTS.get(name, name))
            assert torch.allclose(mine[:, index], coarse[:, parent], atol=1e-4)


def test_a_start_from_nothing_is_seeded() -> None:
    before = torch.get_rng_state()
    one, two, three = (
        bisenet.initial(None, seed).state_dict()["conv_out.conv_out.weight"] for seed in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, three)
    assert torch.equal(before, torch.get_rng_state())


def test_ignored_pixels_train_nothing(batch: tuple[Tensor, Tensor]) -> None:
    labels = batch[1][:2, ::4, ::4].clone()
    labels[:, :32] = IGNORE
    logits = torch.randn(2, 11, 64, 64, generator=random(0)).requires_grad_()
    bisenet.loss_of((logits,) * 3, labels, torch.ones(11), 0.5).backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, :32].any() and bool(logits.grad[:, :, 32:].any())


def test_dice_is_0_for_a_perfect_parse_and_weighs_classes_alike() -> None:
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, :2, :2] = 5
    perfect = 100 * torch.nn.functional.one_hot(labels, 11).permute(0, 3, 1, 2).float()
    assert float(bisenet.soft_dice(perfect, labels)) < 1e-3
    missed = torch.zeros_like(perfect)
    missed[:, 0] = 100  # 4 pixels of 1,024 are wrong, and half of the loss is lost
    assert float(bisenet.soft_dice(missed, labels)) == pytest.approx((1 - 1 / 5 + 4 / 2045) / 2, abs=0.01)


def test_steps_lower_the_loss(labelled: Faces) -> None:
    plain = {
        "occluders": {}, "degraded": 0, "early": 0, "scale": 0, "shift": 0, "rotate": 0, "rate": 5e-4,
        "init": "scratch", "steps": 10,
    }  # fmt: skip
    trainer = parser.Trainer(small(**plain), torch.device("cpu"), labelled)
    losses = [float(trainer.take(0.0)) for _ in range(10)]
    assert np.mean(losses[-3:]) < 0.85 * losses[0]
    assert trainer.step == 10


def test_what_lies_outside_a_photo_is_ignored(labelled: Faces) -> None:
    inside = labelled.inside.copy()
    inside[:, 200:] = 0
    trainer = parser.Trainer(small(), torch.device("cpu"), replace(labelled, inside=inside))
    assert bool((trainer.labels[:, 200:] == IGNORE).all()) and bool((trainer.labels[:, :200] != IGNORE).all())


def test_a_resumed_run_equals_one_without_a_break(labelled: Faces, tmp_path: Path) -> None:
    config, cpu = small(steps=4), torch.device("cpu")
    whole = parser.Trainer(config, cpu, labelled)
    parser.train(whole, tmp_path / "whole", None, 4)
    first = parser.Trainer(config, cpu, labelled)
    for _ in range(2):
        first.take(first.step / 4)
    first.save(tmp_path / "broken")
    second = parser.Trainer(config, cpu, labelled)
    second.load(tmp_path / "broken")
    assert second.step == 2
    parser.train(second, tmp_path / "broken", None, 4)
    one, two = (bisenet.read_state(tmp_path / f)[0] for f in ("whole", "broken"))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    net = bisenet.load_trained(tmp_path / "broken")
    assert not net.training
    assert torch.equal(
        net.state_dict()["cp.resnet.conv1.weight"], whole.averaged.state_dict()["cp.resnet.conv1.weight"]
    )
    assert not torch.equal(one["net/conv_out.conv_out.weight"], one["averaged/conv_out.conv_out.weight"])


def test_sets_get_their_shares() -> None:
    odds = parser.shares(["men"] * 30 + ["women"] * 10, {"men": 0.5, "women": 0.5, "absent": 3.0})
    assert float(odds[:30].sum()) == pytest.approx(0.5) and float(odds[30:].sum()) == pytest.approx(0.5)
    assert torch.allclose(parser.shares(["a", "b", "b"], {}), torch.full((3,), 1 / 3))
    with pytest.raises(SettingsError, match="women"):
        parser.shares(["men", "women"], {"men": 1.0})
    with pytest.raises(SettingsError, match="above 0"):
        parser.shares(["men"], {"men": 0.0})


# ---------------------------------------------------------------------------------------------- the report


def test_iou_of_a_perfect_and_of_a_shifted_parse() -> None:
    labels = torch.zeros(1, 40, 40, dtype=torch.uint8)
    labels[:, 10:20, 10:30] = 2
    labels[:, 0] = IGNORE
    perfect = overlap.confusion(labels.where(labels != IGNORE, 7), labels, 11)
    found = overlap.iou(perfect)
    assert found[0] == found[2] == 1 and found[1] is None and found[7] is None
    assert overlap.face_iou(perfect) == 1
    shifted = labels.where(labels != IGNORE, 0).roll(5, 2)  # 15 of 20 columns are kept, of 25
    counts = overlap.confusion(shifted, labels, 11)
    assert overlap.iou(counts)[2] == overlap.face_iou(counts) == 0.6
    assert int(counts.sum()) == 39 * 40
    assert overlap.confusion(torch.zeros_like(labels), labels, 11)[2, 0] == 200  # [label, prediction]


def test_classes_are_merged_by_name() -> None:
    assert [overlap.MERGED[i] for i in overlap.merge_table(CLASSES)] == [
        "background", "hair", "skin", "brows", "brows", "eyes", "eyes", "nose", "lips", "lips", "mouth",
    ]  # fmt: skip
    assert overlap.merge_table(overlap.MERGED) == list(range(8))
    counts = torch.arange(121).reshape(11, 11)
    merged = overlap.merged(counts)
    assert merged[3, 4] == counts[3:5, 5:7].sum() and merged.sum() == counts.sum()


def shards(folder: Path, faces: Faces) -> None:
    """The four faces as shards, half of them held out."""

    def png(x: np.ndarray) -> bytes:
        return cv2.imencode(".png", x)[1].tobytes()

    with ShardWriter(folder) as writer:
        for i, name in enumerate(faces.names):
            _, picture = cv2.imencode(".webp", faces.images[i][:, :, ::-1], [cv2.IMWRITE_WEBP_QUALITY, 101])
            split: Literal["train", "held"] = "held" if i < 2 else "train"
            labels = png(cast(np.ndarray, faces.labels)[i])
            points = faces.landmarks[i]
            writer.write(Sample(name, faces.sets[i], picture.tobytes(), points, split, labels=labels))


def test_the_stage_trains_reports_and_goes_on(labelled: Faces, tmp_path: Path) -> None:
    """As a user runs it, with the recipe for smoke tests, small sizes apart."""
    shards(tmp_path / "data", labelled)
    config = tmp_path / "recipe.toml"
    config.write_text('[parser]\nsteps = 2\nbatch = 2\nsizes = [64]\npack = "packs/starter"\n')
    command = argparse.ArgumentParser()
    parser.add_arguments(command)
    flags = ["--config", str(config), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    parser.run(command.parse_args(flags))
    facts = json.loads((tmp_path / "run/report.json").read_text())
    assert facts["faces"] == 2
    for size in ("256", "128"):
        assert set(facts[size]["occluded"]) == set(KINDS)
        assert 0 <= facts[size]["occluded"]["hand"]["called_face"] <= 1
        assert set(facts[size]["clean"]["sets"]) == {"one", "two"}
        # two steps at 64 pixels leave most of what the pack's parser, the labeller, knew
        assert facts[size]["clean"]["iou"]["skin"] > 0.5
    labels_from = facts["baseline"]
    assert facts["256"]["clean"][labels_from]["merged"]["skin"] > 0.99
    text = (tmp_path / "run/report.txt").read_text()
    assert f"{100 * facts['256']['clean']['iou']['nose']:5.1f}" in text
    picture = cv2.imread(str(tmp_path / "run/faces.png"))
    assert picture is not None and picture.shape == (256, 4 * 512, 3)
    assert np.abs(picture[:, :256, ::-1].astype(int) - labelled.images[0]).max() == 0
    with pytest.raises(OutputExistsError, match="--resume"):
        parser.run(command.parse_args(flags))
    before = (tmp_path / "run/state.json").read_bytes()
    parser.run(command.parse_args([*flags, "--evaluate-only"]))
    assert (tmp_path / "run/state.json").read_bytes() == before
    assert json.loads((tmp_path / "run/report.json").read_text()) == facts
    shutil.rmtree(tmp_path / "run")  # 0.2 GB
