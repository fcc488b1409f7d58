"""Training of the diffusion model: arithmetic, state on disk, and a few real steps through the command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.errors import PackError, SettingsError
from ldvid.stages.records import SourceFace
from ldvid.stages.swap.identity_unet import IdentityUNet
from ldvid.stages.swap.loaders import load_quantised, load_unet
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import Pack, open_pack
from ldvid.training import checkpoint, unet
from ldvid.training.config import Section, read_section
from ldvid.training.diffusion import Average, clean_of, loss_weight, masked_loss, sample, target_of
from ldvid.training.export import to_toml
from ldvid.training.identity_loss import IdentityLoss
from ldvid.training.latents import Embedder, build_bank, companions, open_autoencoder
from ldvid.training.log import Budget
from ldvid.training.quantise import save_quantised
from ldvid.training.shards import Faces, Sample, ShardWriter, read, split_of
from ldvid.training.unet_start import importance, start_from, widened
from ldvid.training.unet_trainer import Trainer, UNetConfig
from safetensors.torch import load_file
from torch import Tensor, nn

SMALL = UNetConfig(
    block_out_channels=(16, 16), attention=(False, True), layers_per_block=1, attention_head_dim=8,
    norm_num_groups=8, batch=4, variants=2, views=2, warm_up=2,
)  # fmt: skip
CHANNELS = 16  # of the latents of pack starter
LEVEL = st.floats(0.001, 0.999)


@pytest.fixture(scope="module")
def shards(faces: tuple[SourceFace, SourceFace], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two portraits and their mirror images, of two sets, all for training; two more held out."""
    folder = tmp_path_factory.mktemp("shards")
    held = [n for n in (f"held-{i}" for i in range(200)) if split_of(n) == "held"][:2]
    trained = [n for n in (f"face-{i}" for i in range(20)) if split_of(n) == "train"][:4]
    with ShardWriter(folder) as writer:
        for index, name in enumerate([*trained, *held]):
            face = faces[index % 2]
            image, points = face.image, face.landmarks
            if index // 2 == 1:
                image = np.ascontiguousarray(image[:, ::-1])
                points = points[[1, 0, 2, 4, 3]] * [-1, 1] + [image.shape[1] - 1, 0]
            done, content = cv2.imencode(".webp", image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 101])
            assert done
            landmarks = points.astype(np.float32)
            kind = "mirror" if index // 2 == 1 else "plain"
            writer.write(Sample(name, kind, content.tobytes(), landmarks, split_of(name)))
    return folder


def training(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "ldvid.training", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


# ---- arithmetic


@settings(deadline=None)
@given(LEVEL, st.sampled_from(["epsilon", "v"]))
def test_what_is_predicted_gives_the_clean_latents_back(level: float, prediction: str) -> None:
    z0, noise = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64).unbind(0)
    a = torch.tensor(level, dtype=torch.float64)
    z = a**0.5 * z0 + (1 - a) ** 0.5 * noise
    torch.testing.assert_close(clean_of(prediction, z, target_of(prediction, z0, noise, a), a), z0)


@settings(deadline=None)
@given(LEVEL, st.floats(0.5, 20))
def test_min_snr_weighs_the_clean_error_alike_whatever_is_predicted(level: float, gamma: float) -> None:
    a = torch.tensor([level], dtype=torch.float64)
    z, right, wrong = torch.randn(3, 1, 4, 4, 4, dtype=torch.float64).unbind(0)
    clean = [(clean_of(p, z, right, a), clean_of(p, z, wrong, a)) for p in ("epsilon", "v")]
    for prediction, (one, other) in zip(("epsilon", "v"), clean, strict=True):
        weighted = loss_weight(prediction, a, gamma) * (right - wrong).square().mean()
        wanted = (a / (1 - a)).clamp(max=gamma) * (one - other).square().mean()
        torch.testing.assert_close(weighted, wanted)


def test_what_lies_outside_the_photo_counts_nothing() -> None:
    said, wanted, weight = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), torch.ones(1)
    covered = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    covered[..., 0] = 0
    wanted[..., 0] = 100
    assert masked_loss(said, wanted, covered, weight) == 0
    wanted[..., 1] = 3  # a third of what counts
    torch.testing.assert_close(masked_loss(said, wanted, covered, weight), torch.tensor(3.0))


def test_the_average_is_the_power_function_of_the_steps() -> None:
    net = nn.Linear(1, 1, bias=False)
    average = Average(net, 0.1)
    values = torch.rand(50, dtype=torch.float64)
    for step, value in enumerate(values, 1):
        with torch.no_grad():
            net.weight.fill_(value)
        average.update(net.parameters(), step)
    steps = torch.arange(1, 51, dtype=torch.float64)
    shares = (steps / 50) ** (average.gamma + 1) - ((steps - 1) / 50) ** (average.gamma + 1)
    # Its recursion weighs step t by t^γ; the integral between steps is that, nearly.
    assert float(average.tensors[0]) == pytest.approx(float((shares * values).sum()), abs=0.01)
    moments = [(steps**average.gamma * (steps / 50) ** k).sum() for k in (0, 1, 2)]
    width = (moments[2] / moments[0] - (moments[1] / moments[0]) ** 2) ** 0.5
    assert float(width) == pytest.approx(0.1, abs=0.01)


def test_companions_are_other_photographs_of_the_same_person() -> None:
    one, other, alone = nn.functional.normalize(torch.randn(3, 64), dim=1)
    people = torch.stack([one, other, one, alone, one, other])
    views = nn.functional.normalize(people[:, None] + 0.02 * torch.randn(6, 3, 64), dim=2)
    found = companions(views, 0.8, most=3)
    assert set(found[0].tolist()) == {0, 2, 4} and set(found[4].tolist()) == {0, 2, 4}
    assert set(found[1].tolist()) == {1, 5} and set(found[3].tolist()) == {3}
    with pytest.raises(ValueError, match="strangers"):
        companions(views, 0.3)


def test_a_budget_ends_by_steps_or_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("ldvid.training.log.time.monotonic", lambda: now[0])
    budget = Budget(10, 100, done=20)
    assert budget.share == 0.2 and budget.left()
    now[0] += 5
    assert budget.share == 0.5 and budget.due(5.0) is not None and budget.due(5.0) is None
    budget.step = 100
    assert not budget.left()


# ---- data


def test_the_bank_holds_what_the_networks_see(shards: Path, pack: Pack) -> None:
    faces, device = read(shards, "train"), torch.device("cpu")
    autoencoder, embedder = open_autoencoder(pack, None), Embedder(pack, device)
    bank = build_bank(
        faces, autoencoder, embedder, torch.Generator().manual_seed(0), variants=3, views=3,
        scale=0.05, shift=0.02, rotate=5.0,
    )  # fmt: skip
    assert bank.latents.shape == (4, 3, CHANNELS, 32, 32) and bank.views.shape == (4, 3, 640)
    images = torch.from_numpy(faces.images).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(bank.latents[:, 0], autoencoder.encode(images))
    assert bank.covered[:, 0].all() and not bank.covered[:, 1:].all(), "moved pictures have borders"
    likeness = bank.views[:, 1:] @ bank.views[:, 0][:, :, None]
    assert likeness.min() > 0.7, "another view is the same person, a mirrored one too"
    z = bank.normalised(torch.arange(4), torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(CHANNELS), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(CHANNELS), rtol=0, atol=1e-3)


def test_weights_choose_sets(shards: Path) -> None:
    faces: Faces = read(shards, "train")
    odds = unet.odds_of(faces, {"mirror": 0.0}, torch.device("cpu"))
    assert odds.tolist() == [0.0 if s == "mirror" else 1.0 for s in faces.sets]
    with pytest.raises(SettingsError, match="no faces of set omy"):
        unet.odds_of(faces, {"omy": 1.0}, torch.device("cpu"))


# ---- state on disk


@settings(max_examples=20, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 7)), min_size=1, max_size=5),
    piece=st.integers(16, 64),
)
def test_a_checkpoint_comes_back_whole(
    shapes: list[tuple[int, int]], piece: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("state")
    kinds = (torch.float32, torch.float16, torch.int64)
    tensors = {f"a.{i}": torch.randint(9, s).to(kinds[i % 3]) for i, s in enumerate(shapes)}
    tensors["scalar"] = torch.tensor(3.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "PIECE", piece)
        checkpoint.save(folder, tensors, {"step": 7})
        back, facts = checkpoint.load(folder)
    assert facts == {"step": 7} and back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)
    for path in folder.glob("*.safetensors"):
        assert sum(t.nbytes for t in load_file(path).values()) <= piece


def test_a_run_killed_while_saving_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, {"w": torch.zeros(8)}, {"step": 1})
    written = checkpoint.save_file

    def killed(tensors: dict[str, Tensor], path: Path) -> None:
        written(tensors, path)
        if len(list(tmp_path.glob("*.safetensors"))) > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", killed)
    monkeypatch.setattr(checkpoint, "PIECE", 16)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, {"w": torch.ones(8)}, {"step": 2})
    state, facts = checkpoint.load(tmp_path)
    assert facts["step"] == 1 and not state["w"].any()


def test_a_damaged_piece_is_named(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"w": torch.zeros(8)}, {})
    (piece,) = tmp_path.glob("*.safetensors")
    piece.write_bytes(piece.read_bytes()[:-1] + b"x")
    with pytest.raises(PackError, match=f"{piece.name}: this piece of the checkpoint is damaged"):
        checkpoint.load(tmp_path)


def test_int8_weights_are_near_what_they_were(tmp_path: Path) -> None:
    weight = torch.randn(64, 32, 3, 3) * torch.rand(64, 1, 1, 1)
    save_quantised({"conv.weight": weight, "conv.bias": torch.randn(64)}, tmp_path / "w.safetensors")
    back = load_quantised(tmp_path / "w.safetensors")
    assert set(back) == {"conv.weight", "conv.bias"}
    relative = (back["conv.weight"] - weight).flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)
    assert relative.max() < 0.011, "each channel has its own scale"
    assert (tmp_path / "w.safetensors").stat().st_size < weight.numel() * 1.1


def test_a_mistyped_key_of_the_recipe_is_named(tmp_path: Path) -> None:
    class Some(Section):
        steps: int = 1

    (tmp_path / "c.toml").write_text("[unet]\nstep = 3\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"unet\.step"):
        read_section(tmp_path / "c.toml", "unet", Some)


# ---- training


def bank_and_odds(shards: Path, pack: Pack) -> tuple[unet.Bank, Tensor, Tensor]:
    faces = read(shards, "train")
    bank = build_bank(
        faces, open_autoencoder(pack, None), Embedder(pack, torch.device("cpu")),
        torch.Generator().manual_seed(1), variants=2, views=2, scale=0.02, shift=0.01, rotate=2.0,
    )  # fmt: skip
    return bank, torch.ones(len(faces)), companions(bank.views, 0.6)


def test_it_learns_and_goes_on_where_it_was(shards: Path, pack: Pack, tmp_path: Path) -> None:
    data = bank_and_odds(shards, pack)
    arguments = SMALL.arguments(CHANNELS, 32)

    def steps(trainer: Trainer, count: int) -> list[float]:
        return [float(trainer.train_step(*trainer.draw(*data), 2e-3)) for _ in range(count)]

    def loss_of(trainer: Trainer) -> float:
        """Over the same draws and noise, whatever was learned: a rate of 0 changes nothing."""
        judge = Trainer(SMALL.model_copy(update={"seed": 5}), arguments, 640, "cpu")
        judge.network.load_state_dict(trainer.network.state_dict())
        return float(np.mean([float(judge.train_step(*judge.draw(*data), 0.0)) for _ in range(12)]))

    whole = Trainer(SMALL, arguments, 640, "cpu")
    before = loss_of(whole)
    steps(whole, 24)
    assert loss_of(whole) < 0.9 * before
    first = Trainer(SMALL, arguments, 640, "cpu")
    steps(first, 10)
    first.save(tmp_path, {"config": json.loads(SMALL.model_dump_json())}, whole=True)
    second = Trainer(SMALL.model_copy(update={"seed": 9}), arguments, 640, "cpu")
    second.load(tmp_path)
    steps(second, 14)
    for a, b in zip(whole.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole.average.tensors, second.average.tensors, strict=True):
        assert torch.equal(a, b)
    # What travels has the same weights, rounded, and a new optimiser.
    shutil.rmtree(tmp_path / "whole")
    third = Trainer(SMALL, arguments, 640, "cpu")
    third.load(tmp_path)
    assert third.step == 10 and third.fresh == 0 and not third.optimiser.state
    with pytest.raises(SettingsError, match="another UNet"):
        other = SMALL.model_copy(update={"block_out_channels": (8, 8)})
        Trainer(other, other.arguments(CHANNELS, 32), 640, "cpu").load(tmp_path)


def test_it_starts_from_what_a_pack_draws(pack: Pack) -> None:
    """A pack told by one network begins one told by two, and draws the same whatever the second says."""
    unet_of = cast(IdentityUNet, load_unet(pack)[0])
    recipe = UNetConfig(batch=2)
    trainer = Trainer(recipe, recipe.arguments(CHANNELS, 32), 640, "cpu")
    start_from(trainer, pack)
    z, who = torch.randn(2, CHANNELS, 32, 32), nn.functional.normalize(torch.randn(2, 640), dim=1)
    t = torch.tensor([300, 700])
    with torch.no_grad():
        ours, theirs = trainer.network(z, t, who), unet_of(z, t, who)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)  # layouts differ, and so does rounding
    for average, parameter in zip(trainer.average.tensors, trainer.network.parameters(), strict=True):
        assert torch.equal(average, parameter)
    weight, first = torch.randn(8, 512), nn.functional.normalize(torch.randn(512), dim=0)
    rest = nn.functional.normalize(torch.randn(128), dim=0)
    both = torch.cat([first, rest]) * 0.5**0.5
    torch.testing.assert_close(widened(weight, 640) @ both * 640**0.5, weight @ first * 512**0.5)
    assert widened(weight, 512) is weight
    with pytest.raises(SettingsError, match="512 numbers"):
        widened(weight, 128)
    with pytest.raises(SettingsError, match="another than the recipe's"):
        start_from(Trainer(SMALL, SMALL.arguments(CHANNELS, 32), 640, "cpu"), pack)


def test_the_face_counts_more_than_what_is_around_it(pack: Pack) -> None:
    weights = importance(pack.manifest, 32, 3.0, torch.device("cpu"))[0, 0]
    points = pack.manifest.template_points() / 8
    for x, y in points:
        assert weights[round(float(y)), round(float(x))] == 3
    corners = weights[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 1).all() and weights.min() >= 1 and weights.max() == 3
    assert (importance(pack.manifest, 32, 1.0, torch.device("cpu")) == 1).all()


def test_being_told_is_asked_to_show(shards: Path, pack: Pack) -> None:
    """The identity loss is 0 for the person's own latents seen whole, and pulls a stranger's towards them."""
    bank, _, _ = bank_and_odds(shards, pack)
    embedder = Embedder(pack, torch.device("cpu"))
    loss = IdentityLoss(pack, embedder, bank.mean, bank.std)
    own = bank.normalised(torch.tensor([0, 1]), torch.tensor([0, 0])).requires_grad_(True)
    who = bank.views[[0, 1], 0]
    alike, swapped = loss(own, who), loss(own, who.flip(0))
    assert (alike < 0.25).all() and (swapped > alike + 0.2).all()
    (gradient,) = torch.autograd.grad(swapped.sum(), own)
    with torch.no_grad():
        nearer = loss(own - 0.5 * gradient / gradient.std(), who.flip(0))
    assert (nearer < swapped).all()
    # Only rows count that were told somebody, at levels that show something.
    chosen = SMALL.model_copy(update={"likeness": 1.0, "likeness_rows": 2})
    trainer = Trainer(chosen, chosen.arguments(CHANNELS, 32), 640, "cpu")
    trainer.likeness = loss
    z, said, a = (own.detach(), torch.zeros_like(own), torch.ones(2, 1, 1, 1))
    none, first = (torch.tensor(c) for c in ([False, False], [True, False]))
    assert float(trainer.unlike(z, said, a, who, none)) == 0
    assert float(trainer.unlike(z, said, a, who, first)) == pytest.approx(float(alike[0].detach()), abs=1e-4)


def test_a_run_becomes_a_pack(tmp_path: Path) -> None:
    chosen = SMALL.model_copy(update={"shift": 3.0})
    trainer = Trainer(chosen, chosen.arguments(CHANNELS, 32), 640, "cpu")
    for parameter, average in zip(trainer.network.parameters(), trainer.average.tensors, strict=True):
        average.copy_(parameter.detach() * 1.01)  # so that it shows which of the two is taken
    facts = {
        "config": json.loads(chosen.model_dump_json()),
        "latent_mean": [0.5] * CHANNELS, "latent_std": [2.0] * CHANNELS,
    }  # fmt: skip
    trainer.save(tmp_path / "run", facts, whole=False)
    done = training("export", "--unet", tmp_path / "run", "--out", tmp_path / "pack", "--name", "mine")
    assert done.returncode == 0, done.stderr
    networks = Networks.load(open_pack(str(tmp_path / "pack")), "cpu")
    assert networks.manifest.name == "mine" and networks.manifest.parser.classes[2] == "skin"
    torch.testing.assert_close(networks.alpha_bar, chosen.levels())
    assert networks.latent_std.flatten().tolist() == [2.0] * CHANNELS
    own, _ = unet.load_average(tmp_path / "run", "cpu")
    z, who = torch.randn(2, CHANNELS, 32, 32), nn.functional.normalize(torch.randn(2, 640), dim=1)
    a = chosen.levels()[400]
    with torch.no_grad():
        wanted = a**0.5 * own(z, torch.tensor([400, 400]), who) + (1 - a) ** 0.5 * z
        got = networks.predict_noise(z, 400, who)
    assert (got - wanted).norm() / wanted.norm() < 0.02
    again = training("export", "--unet", tmp_path / "run", "--out", tmp_path / "pack")
    assert again.returncode == 1 and "exists already" in again.stderr


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=5)
JSONS = st.one_of(
    TEXT,
    st.integers(-9, 9), st.floats(-5, 5), st.booleans(), st.lists(st.integers(0, 5), max_size=3),
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(TEXT, st.one_of(JSONS, st.dictionaries(TEXT, JSONS))))
def test_manifests_are_written_as_they_are_read(table: dict[str, object]) -> None:
    kept = {k: v for k, v in table.items() if v != {}}  # an empty table says nothing
    assert tomllib.loads(to_toml(kept)) == kept


def test_samples_follow_the_seed_and_the_identity(shards: Path, pack: Pack) -> None:
    trainer = Trainer(SMALL, SMALL.arguments(4, 8), 640, "cpu")
    who = nn.functional.normalize(torch.randn(2, 640), dim=1)

    def draw(seed: int, **more: object) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        levels = trainer.alpha_bar
        return sample(trainer.network, (2, 4, 8, 8), levels, "v", generator, steps=4, **more)  # type: ignore[arg-type]

    alone = draw(0)
    assert torch.isfinite(alone).all() and torch.equal(alone, draw(0)) and not torch.equal(alone, draw(1))
    told = draw(0, identity=who, scale=2.0)
    assert (told - alone).abs().max() > 1e-3


def test_the_rate_warms_up_stays_and_falls() -> None:
    trainer = Trainer(SMALL.model_copy(update={"warm_up": 10}), SMALL.arguments(4, 8), 640, "cpu")
    top = SMALL.learning_rate
    assert trainer.learning_rate(0.0, 0.5) == pytest.approx(top / 10)
    trainer.fresh = 100
    assert [trainer.learning_rate(s, 0.5) for s in (0.1, 0.5, 0.75, 1.0)] == pytest.approx(
        [top, top, top / 2, 0]
    )
    assert trainer.learning_rate(1.0, 1.0) == top


def test_the_command_trains_resumes_and_evaluates(shards: Path, tmp_path: Path) -> None:
    recipe = Path(__file__).resolve().parents[1] / "training" / "smoke.toml"
    given = ["--config", recipe, "--data", shards, "--out", tmp_path / "run"]
    run = training("unet", *given)
    assert run.returncode == 0, run.stderr
    assert "done after step 6" in run.stdout
    again = training("unet", *given)
    assert again.returncode == 1 and "--resume" in again.stderr and "Traceback" not in again.stderr
    more = training("unet", *given, "--resume")
    assert more.returncode == 0 and "going on after step 6" in more.stdout, more.stderr
    told = training("evaluate", *given, "--count", "2", "--steps", "2")
    assert told.returncode == 0, told.stderr
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert report["step"] == 6 and report["held"] == 2
    errors = report["clean_error"]["nobody"]
    # Untrained as it is, at high SNR the latents shine through what it says, at low SNR nothing does.
    assert errors["4"] < 0.2 < 0.7 < errors["-6"]
    drawn = cv2.imread(str(tmp_path / "run" / "samples.png"))
    assert drawn is not None and drawn.shape[0] == 256 and drawn[:, :512].std() > 5
