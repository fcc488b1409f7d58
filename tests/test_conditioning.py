"""A UNet that is told whose face it draws: noise levels, v, classifier-free guidance, the pack's entry."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ldvid.configs import load_settings
from ldvid.errors import PackError, SettingsError
from ldvid.stages.records import Crops, SourceFace
from ldvid.stages.swap.identity_unet import IdentityUNet
from ldvid.stages.swap.manifest import ScheduleEntry
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import Pack, hash_file, open_pack
from ldvid.stages.swap.schedule import alpha_bars
from ldvid.stages.swap.stage import SwapStage
from safetensors.torch import save_file
from torch import Tensor

CHANNELS = 16  # of the embedded pack's latents
ARGUMENTS = {
    "sample_size": 32, "in_channels": CHANNELS, "out_channels": CHANNELS, "layers_per_block": 1,
    "norm_num_groups": 8,
    "block_out_channels": [16, 16], "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"], "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip


@pytest.fixture(scope="module")
def told_pack(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded pack with a small random UNet in the place of its own: told identities, v, cosine."""
    folder = tmp_path_factory.mktemp("packs") / "told"
    folder.mkdir()
    torch.manual_seed(0)
    unet = IdentityUNet(ARGUMENTS, 640)
    # diffusers begins with last layers of zeros nowhere, so this one predicts something.
    state = {k: v.half() for k, v in unet.state_dict().items()}
    state |= {"latent_mean": torch.zeros(CHANNELS), "latent_std": torch.ones(CHANNELS)}
    save_file(state, folder / "unet.safetensors")
    for file in pack.manifest.files:
        if not file.startswith("unet"):
            shutil.copy(pack.folder / file, folder / file)
    values = json.loads(pack.manifest.model_dump_json(exclude_none=True))
    values["name"] = "told"
    values["unet"] = {
        "kind": "file", "file": "unet.safetensors", "arguments": ARGUMENTS, "condition": "identity",
    }  # fmt: skip
    values["schedule"] = {"timesteps": 1000, "beta_schedule": "cosine", "shift": 2.0, "prediction": "v"}
    values["files"] = {k: v for k, v in values["files"].items() if not k.startswith("unet")}
    values["files"]["unet.safetensors"] = {
        "sha256": hash_file(folder / "unet.safetensors"), "source": "a test", "licence": "none",
    }  # fmt: skip
    (folder / "pack.toml").write_text(_toml(values), encoding="utf-8")
    return folder


def _toml(table: dict[str, object], prefix: str = "") -> str:
    """Tables of scalars, lists and tables, as TOML (JSON's scalars and lists are TOML's)."""
    plain = [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in table.items() if not isinstance(v, dict)]
    text = "\n".join(plain) + "\n"
    for key, value in table.items():
        if isinstance(value, dict):
            name = f"{prefix}.{json.dumps(key)}" if prefix else json.dumps(key)
            text += f"[{name}]\n{_toml(value, name)}"
    return text


@pytest.fixture(scope="module")
def told(told_pack: Path) -> Networks:
    return Networks.load(open_pack(str(told_pack)), "cpu")


def swap(networks: Networks, face: SourceFace, source: SourceFace, **settings: object) -> np.ndarray:
    chosen = load_settings("cpu", overrides={"batch": 1, "steps": 2, **settings})
    mask = np.zeros((1, 256, 256), np.float32)
    mask[:, 64:232, 56:200] = 1
    crops = Crops(
        0, np.array([0]), face.image[None], np.eye(2, 3, dtype=np.float32)[None], face.landmarks[None], mask
    )
    swapped = SwapStage(networks, chosen, source).process(crops).swapped
    assert swapped is not None
    return swapped


# ---- noise levels


def test_cosine_levels_are_the_published_ones() -> None:
    levels = alpha_bars(1000, "cosine").double()
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    torch.testing.assert_close(levels, torch.cos(u * math.pi / 2) ** 2, rtol=1e-5, atol=1e-7)
    assert levels[0] > 0.999 and levels[-1] < 1e-6, "from the picture to noise alone"


@given(st.floats(0.2, 8))
def test_a_shift_moves_every_level_by_as_much(shift: float) -> None:
    plain, moved = (alpha_bars(1000, "cosine", shift=s).double() for s in (1.0, shift))
    assert (moved[1:] < moved[:-1]).all()
    moves = torch.log(moved / (1 - moved)) - torch.log(plain / (1 - plain))
    # Where 1 − ᾱ still has digits in float32.
    torch.testing.assert_close(
        moves[50:950], torch.full((900,), -2 * math.log(shift), dtype=torch.float64), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize(
    "values",
    [{"beta_schedule": "cosine", "beta_start": 0.1, "beta_end": 0.2}, {"beta_schedule": "linear"}],
)
def test_a_schedule_has_betas_or_is_cosine(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="beta_start and beta_end"):
        ScheduleEntry(timesteps=1000, **values)  # type: ignore[arg-type]


# ---- what is predicted


def test_v_is_turned_into_noise(told: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    z0, noise = torch.randn(2, 2, CHANNELS, 32, 32).unbind(0)
    for t in (3, 400, 999):
        a = told.alpha_bar[t]
        z, v = a**0.5 * z0 + (1 - a) ** 0.5 * noise, a**0.5 * noise - (1 - a) ** 0.5 * z0
        monkeypatch.setattr(told.unet, "forward", lambda *_, v=v: v)
        torch.testing.assert_close(told.predict_noise(z, t), noise, rtol=0, atol=1e-5)


def test_scale_leads_from_nobody_to_somebody(told: Networks) -> None:
    z, who = torch.randn(2, CHANNELS, 32, 32), torch.nn.functional.normalize(torch.randn(2, 640))
    with torch.no_grad():
        nobody, somebody = told.predict_noise(z, 500), told.predict_noise(z, 500, who)
        assert (nobody - somebody).abs().max() > 1e-3, "it must have been told"
        for scale in (0.0, 1.0, 2.5):
            torch.testing.assert_close(
                told.predict_noise(z, 500, who, scale),
                nobody + scale * (somebody - nobody),
                rtol=0,
                atol=2e-5,
            )


def test_rows_that_drop_the_identity_know_nothing_of_it(told: Networks) -> None:
    z, t = torch.randn(2, CHANNELS, 32, 32), torch.tensor([7, 7])
    who = torch.nn.functional.normalize(torch.randn(2, 640))
    assert isinstance(told.unet, IdentityUNet)
    with torch.no_grad():
        mixed = told.unet(z, t, who, torch.tensor([True, False]))
        torch.testing.assert_close(mixed[:1], told.unet(z[:1], t[:1], None))
        torch.testing.assert_close(mixed[1:], told.unet(z[1:], t[1:], who[1:]))
        assert (mixed[:1] - told.unet(z[:1], t[:1], who[:1])).abs().max() > 1e-3


# ---- the swap


def test_cfg_follows_the_source_without_a_backward_pass(
    told: Networks, faces: tuple[SourceFace, SourceFace], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("a backward pass")

    one, other = faces
    with monkeypatch.context() as patched:
        patched.setattr(torch.autograd, "grad", refuse)
        # From the target, so that the source shows in nothing but what the UNet is told.
        cfg = [swap(told, one, s, conditioning="cfg", cfg_scale=2.0, start="target") for s in faces]
    assert np.abs(cfg[0] - cfg[1]).max() > 1
    again = swap(told, one, other, conditioning="cfg", cfg_scale=2.0, start="target")
    np.testing.assert_array_equal(again, cfg[1])


def test_both_is_neither_alone(told: Networks, faces: tuple[SourceFace, SourceFace]) -> None:
    one, other = faces
    made = [swap(told, one, other, conditioning=c, start="target") for c in ("gradient", "cfg", "both")]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(made[i] - made[j]).max() > 0.5


def test_gradient_alone_tells_nobody(told: Networks, faces: tuple[SourceFace, SourceFace]) -> None:
    one, other = faces
    stranger = replace(one, embedding=-one.embedding)
    made = [
        swap(told, one, s, conditioning="gradient", start="target", guidance=[]) for s in (other, stranger)
    ]
    np.testing.assert_array_equal(*made)


# ---- what is refused


def test_a_pack_that_takes_no_identity_is_refused_at_once(
    ldvid: Callable[..., subprocess.CompletedProcess[str]],
    networks: Networks,
    faces: tuple[SourceFace, SourceFace],
    told_pack: Path,
    example_clip: Path,
    example_face: Path,
    tmp_path: Path,
) -> None:
    deaf = networks.manifest.unet.model_copy(update={"condition": None})
    with pytest.raises(SettingsError, match=r"conditioning=cfg.*not trained to be told"):
        swap(
            replace(networks, manifest=networks.manifest.model_copy(update={"unet": deaf})),
            faces[0],
            faces[1],
            conditioning="cfg",
        )
    pack, out = shutil.copytree(told_pack, tmp_path / "pack"), tmp_path / "out"
    out.mkdir()
    text = (pack / "pack.toml").read_text(encoding="utf-8").replace('"condition" = "identity"\n', "")
    (pack / "pack.toml").write_text(text, encoding="utf-8")
    run = ldvid(
        "swap", example_clip, "-s", example_face, "-o", out / "out.mp4", "--pack", pack,
        "--set", "conditioning=cfg",
    )  # fmt: skip
    assert run.returncode == 2
    assert "conditioning=cfg" in run.stderr and not list(out.iterdir())


def test_weights_of_another_kind_are_named(told_pack: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(told_pack, tmp_path / "broken")
    text = (broken / "pack.toml").read_text(encoding="utf-8").replace('"condition" = "identity"\n', "")
    (broken / "pack.toml").write_text(text, encoding="utf-8")
    with pytest.raises(PackError, match=r"unet\.safetensors: can't be loaded"):
        Networks.load(open_pack(str(broken)), "cpu")


def test_guidance_parses_at_its_own_size(
    told: Networks, faces: tuple[SourceFace, SourceFace], monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = told.manifest.parser.model_copy(update={"guidance_size": 128})
    smaller = replace(told, manifest=told.manifest.model_copy(update={"parser": parser}))
    sizes: list[tuple[int, int]] = []
    parse = Networks.parse

    def seen(self: Networks, image: Tensor, size: int | None = None) -> Tensor:
        found = parse(self, image, size)
        sizes.append((image.shape[-1], found.shape[-1]))
        return found

    monkeypatch.setattr(Networks, "parse", seen)
    terms = [{"term": "segmentation", "scale": 1.0}]
    made = swap(smaller, faces[0], faces[1], guidance=terms, guidance_decoder="preview", start="target")
    # The target for guidance, then each step's preview.
    assert sizes == [(256, 128), (128, 128), (128, 128)]
    sizes.clear()
    full = swap(smaller, faces[0], faces[1], guidance=terms, guidance_decoder="full", start="target")
    assert sizes == [(256, 256)] * 3
    assert np.abs(full - made).max() > 0.5
