"""Training of the compact autoencoder and of the guidance decoder, on a few small pictures."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.errors import OutputExistsError, SettingsError
from ldvid.stages.decode import read_picture
from ldvid.stages.swap.compact import CompactAutoencoder, build_guidance_decoder
from ldvid.training import autoencoder, decoder
from ldvid.training.autoencoder_report import psnr, spread, ssim
from ldvid.training.autoencoder_trainer import AutoencoderConfig, Trainer
from ldvid.training.decoder import DecoderConfig, disturb
from ldvid.training.perception import balanced_gradient, edge_loss, pyramid_loss
from ldvid.training.shards import Sample, ShardWriter
from ldvid.training.trainer import SpentBudget, as_float, rate_at, train
from safetensors.torch import load_file

SIDE = 64
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(example_face: Path) -> torch.Tensor:
    """Pieces of both example portraits at two sizes, (10, 64, 64, 3) uint8."""
    pieces = []
    for file in (example_face, example_face.with_name("face-2.png")):
        whole = read_picture(file)
        pieces.append(cv2.resize(whole, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
        half = cv2.resize(whole, (256, 256), interpolation=cv2.INTER_AREA)
        pieces += [half[y : y + SIDE, x : x + SIDE] for y in (80, 140) for x in (64, 128)]
    return torch.from_numpy(np.stack(pieces))


def small(**changes: object) -> AutoencoderConfig:
    values = {"latent_channels": 8, "width": 32, "blocks": 1, "batch": 2, "warm_up": 1, "patch": 32}
    return AutoencoderConfig.model_validate(values | changes)


def rebuilt(model: CompactAutoencoder, images: torch.Tensor) -> float:
    with torch.no_grad():
        x = as_float(images)
        return float(psnr(model.decode(model.encode(x)).clamp(0, 1), x).mean())


def test_a_few_steps_beat_the_linear_projection(images: torch.Tensor) -> None:
    only = {"identity": 0.0, "parse": 0.0, "features": 0.0, "adversarial": 0.0, "halved_every": 0}
    trainer = Trainer(small(**only, batch=4, warm_up=8, average=0.8), CPU, images)
    before = rebuilt(trainer.averaged, images)
    for _ in range(16):
        assert set(trainer.train_step(0.3)) == {"pixels", "pyramid"}
    assert rebuilt(trainer.averaged, images) > before + 0.3, before


@pytest.mark.parametrize("start", [0.0, 0.7])
def test_the_critic_learns_late(images: torch.Tensor, start: float) -> None:
    trainer = Trainer(small(), CPU, images)
    weights = [p.clone() for p in trainer.critic.parameters()]
    losses = trainer.train_step(start)
    moved = any(not torch.equal(a, b) for a, b in zip(weights, trainer.critic.parameters(), strict=True))
    assert moved == (start > 0.5) == ("critic" in losses) == ("adversarial" in losses)


def test_a_resumed_autoencoder_is_the_same(images: torch.Tensor, tmp_path: Path) -> None:
    config = small(adversarial_from=0.4, halved_every=3, parse=0.0)
    whole = Trainer(config, CPU, images)
    train(whole, tmp_path / "whole", None, 4)
    first = Trainer(config, CPU, images)
    while first.step < 2:
        first.train_step(first.step / 4)
    first.save(tmp_path / "parts")
    second = Trainer(config.model_copy(), CPU, images)
    second.load(tmp_path / "parts")
    assert second.step == 2
    train(second, tmp_path / "parts", None, 4)
    for one, other in ((whole.averaged, second.averaged), (whole.critic, second.critic)):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    with pytest.raises(SettingsError, match="--resume: the checkpoint's model has another shape"):
        Trainer(small(latent_channels=12), CPU, images).load(tmp_path / "parts")


def test_what_travels_begins_where_it_ended(images: torch.Tensor, tmp_path: Path) -> None:
    """From a GPU only weights and averages come back, in fp16; the optimisers then begin anew."""
    trainer = Trainer(small(), CPU, images)
    trainer.train_step(0.0)
    trainer.spent = 12.5
    trainer.save(tmp_path)
    (tmp_path / "whole/state.json").unlink()
    other = Trainer(small(seed=1), CPU, images)
    other.load(tmp_path)
    assert (other.step, other.spent) == (1, 12.5)
    for a, b in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    other.train_step(0.1)


@pytest.fixture(scope="module")
def full() -> CompactAutoencoder:
    torch.manual_seed(0)
    return CompactAutoencoder(8, 32, 1).eval().requires_grad_(False)


def test_the_guidance_decoder_learns_and_resumes(full: CompactAutoencoder, tmp_path: Path) -> None:
    latents = torch.randn(8, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    config = DecoderConfig(batch=4, warm_up=1, average=0.5, parse=0.0)

    def fresh() -> decoder.Trainer:
        return decoder.Trainer(config, full, latents)

    whole = fresh()
    losses = [float(whole.train_step(step / 10)["pixels"]) for step in range(10)]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3]), losses
    first = fresh()
    for step in range(3):
        first.train_step(step / 10)
    first.save(tmp_path)
    second = fresh()
    second.load(tmp_path)
    for step in range(3, 10):
        second.train_step(step / 10)
    for a, b in zip(whole.averaged.parameters(), second.averaged.parameters(), strict=True):
        assert torch.equal(a, b)


def test_disturbances(full: CompactAutoencoder) -> None:
    z = torch.randn(16, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    unit = torch.ones(1, 8, 1, 1)

    def done(chance: float, noise: float, seed: int = 0) -> torch.Tensor:
        return disturb(z, unit, torch.Generator().manual_seed(seed), chance, noise)

    assert torch.equal(done(0, 1), z)
    assert torch.equal(done(0.5, 1), done(0.5, 1))
    changed = (done(0.5, 0.5) != z).flatten(1).any(1)
    assert 4 < int(changed.sum()) < 16
    # Without noise every value stays between the rows it was mixed of, and their averages.
    bound = max(float(z.abs().max()), float(z.roll(1, 0).abs().max()))
    assert done(1, 0).abs().max() <= bound + 1e-5


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(0.1, 5))
def test_a_loss_has_its_share_of_the_gradient_whatever_its_scale(scale: float, share: float) -> None:
    picture = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    wanted = torch.zeros_like(picture)

    def gradient(factor: float, own: float) -> torch.Tensor:
        losses = {"a": factor * pyramid_loss(picture, wanted, 2), "b": edge_loss(picture, wanted)}
        return balanced_gradient(losses, {"a": own, "b": 1.0}, picture)

    torch.testing.assert_close(gradient(scale, share), gradient(1.0, share), atol=1e-6, rtol=1e-4)
    alone = gradient(1.0, share) - gradient(1.0, 0.0)
    torch.testing.assert_close(alone.norm(), torch.tensor(share), atol=1e-4, rtol=1e-3)


def test_pictures_are_compared_as_published(images: torch.Tensor) -> None:
    x = as_float(images[:2])
    torch.testing.assert_close(ssim(x, x), torch.ones(2))
    off = x * 0.9
    torch.testing.assert_close(psnr(off, x), -10 * torch.log10(((x * 0.1) ** 2).mean((1, 2, 3))))
    noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    grey = [cv2.cvtColor((p.permute(1, 2, 0).numpy() * 255).clip(0, 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)
            for p in (x[0], off[0])]  # fmt: skip
    assert grey[0].shape == (SIDE, SIDE)
    assert (ssim(noisy, x) < ssim(off, x)).all()
    # Constant pictures: only the luminance factor is left, (2ab + c) / (a² + b² + c).
    flat = ssim(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.25))
    torch.testing.assert_close(flat, torch.tensor([(0.25 + 1e-4) / (0.3125 + 1e-4)]), atol=1e-4, rtol=0)


def test_budgets_count_over_all_runs() -> None:
    budget = SpentBudget(100.0, None, spent=60.0)
    assert 0.6 <= budget.share < 0.7
    assert not SpentBudget(100.0, None, spent=100.0).left()
    rates = [rate_at(share, 1000, 100) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert rates == sorted(rates, reverse=True) and rates[0] == 1 and 0 < rates[-1] < 0.05
    assert rate_at(0, 9, 100) == pytest.approx(0.1)


def test_a_sheet_shows_all_sets() -> None:
    sets = ["omi"] * 50 + ["celebahq"] * 2 + ["youthradio"] * 20
    picked = [sets[i] for i in spread(sets, 12)]
    assert len(picked) == 12 and picked.count("celebahq") == 2 and picked.count("omi") == 5


def test_both_stages_from_shards_to_files(
    example_face: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands themselves with the smoke recipe: files, report, refusal, and going on."""
    template = np.array([[96, 121], [160, 121], [129, 160], [101, 187], [157, 186]], np.float32)
    picture = cv2.resize(read_picture(example_face), (256, 256), interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".webp", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
    with ShardWriter(tmp_path / "shards") as writer:
        writer.write(Sample("one", "omi", encoded, template, "train"))
        writer.write(Sample("two", "omi", encoded, template, "held"))
    config = Path(autoencoder.__file__).with_name("smoke.toml")
    first, second = tmp_path / "a", tmp_path / "d"
    shared = ["--config", str(config), "--data", str(tmp_path / "shards")]
    call(autoencoder, [*shared, "--out", str(first), "--channels", "4"])
    report = json.loads((first / "report.json").read_text(encoding="utf-8"))
    assert report["latent_channels"] == len(report["latent_mean"]) == len(report["latent_std"]) == 4
    assert report["steps"] == 2 and report["compact"]["held"]["omi"]["count"] == 1
    assert 10 < report["compact"]["held"]["all"]["psnr"] < report["tiny"]["held"]["all"]["psnr"]
    sheet = cv2.imread(str(first / "sheet.png"))
    assert sheet is not None and sheet.shape == (3 * 256, 3 * 256, 3)
    x = as_float(torch.from_numpy(picture[None]))
    model = CompactAutoencoder.load(first / "encoder.safetensors", first / "decoder.safetensors")
    wanted = report["compact"]["each"][example_face.name]
    assert rebuilt(model, torch.from_numpy(picture[None])) == pytest.approx(wanted, abs=0.1), x.shape
    with pytest.raises(OutputExistsError, match="--resume goes on with it"):
        call(autoencoder, [*shared, "--out", str(first)])
    call(decoder, [*shared, "--autoencoder", str(first), "--out", str(second)])
    build_guidance_decoder(4).load_state_dict(load_file(second / "guidance.safetensors"))
    report = json.loads((second / "report.json").read_text(encoding="utf-8"))
    assert set(report["photographs"]) == {"psnr", "identity", "parse", "gradient"}
    assert np.isfinite(list(report["disturbed"].values())).all()
    call(decoder, [*shared, "--autoencoder", str(first), "--out", str(second), "--resume"])
    assert "going on after step 2" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="holds no training to go on with"):
        call(decoder, [*shared, "--autoencoder", str(first), "--out", str(tmp_path / "x"), "--resume"])


def call(stage: object, arguments: list[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    stage.add_arguments(parser)  # type: ignore[attr-defined]
    stage.run(parser.parse_args(arguments))  # type: ignore[attr-defined]
