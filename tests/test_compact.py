"""The compact autoencoder: where it begins, its files, and a pack that has one."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from ldvid.configs import load_settings
from ldvid.errors import PackError
from ldvid.stages.decode import read_picture
from ldvid.stages.records import Crops, SourceFace
from ldvid.stages.swap.autoencoder import TinyAutoencoder
from ldvid.stages.swap.compact import CompactAutoencoder, build_guidance_decoder, save_half
from ldvid.stages.swap.networks import Networks, to_tensor
from ldvid.stages.swap.pack import EMBEDDED, Pack, open_pack
from ldvid.stages.swap.stage import SwapStage
from safetensors.torch import load_file, save_file

CHANNELS = 8


@pytest.fixture(scope="module")
def tiny() -> TinyAutoencoder:
    folder = Path(__file__).parents[1] / "training/start"
    return TinyAutoencoder.load(
        folder / "taef2_encoder.safetensors", folder / "taef2_decoder.safetensors", 32
    )


@pytest.fixture(scope="module")
def portraits(example_face: Path) -> torch.Tensor:
    """Both example portraits, (2, 3, 128, 128) in [0, 1]."""
    files = (example_face, example_face.with_name("face-2.png"))
    small = [cv2.resize(read_picture(f), (128, 128), interpolation=cv2.INTER_AREA) for f in files]
    return to_tensor(np.stack(small), torch.device("cpu"))


@pytest.fixture(scope="module")
def rows(tiny: TinyAutoencoder, portraits: torch.Tensor) -> torch.Tensor:
    """Their tiny latents, one row a position, (512, 32)."""
    return tiny.encode(portraits).permute(0, 2, 3, 1).reshape(-1, 32)


def begun(tiny: TinyAutoencoder, rows: torch.Tensor, channels: int, **sizes: int) -> CompactAutoencoder:
    model = CompactAutoencoder(channels, **sizes).eval().requires_grad_(False)
    model.start_from(tiny, rows.mean(0), torch.cov(rows.T, correction=0))
    return model


@pytest.mark.parametrize("channels", [8, 16, 32])
def test_it_begins_as_the_best_linear_projection(
    tiny: TinyAutoencoder, portraits: torch.Tensor, rows: torch.Tensor, channels: int
) -> None:
    model = begun(tiny, rows, channels)
    latent = model.encode(portraits)
    assert latent.shape == (2, channels, 16, 16)
    centred = (rows - rows.mean(0)).double().numpy()
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    values[channels:] = 0
    projected = torch.from_numpy((left * values) @ right).float() + rows.mean(0)
    wanted = tiny.decode(projected.reshape(2, 16, 16, 32).permute(0, 3, 1, 2))
    torch.testing.assert_close(model.decode(latent), wanted, atol=2e-3, rtol=0)
    deviation = latent.permute(1, 0, 2, 3).flatten(1).std(1, correction=0)
    torch.testing.assert_close(deviation, torch.ones(channels), atol=1e-2, rtol=0)


def test_files_say_their_own_width(
    tiny: TinyAutoencoder, rows: torch.Tensor, portraits: torch.Tensor, tmp_path: Path
) -> None:
    model = begun(tiny, rows, CHANNELS, width=32, blocks=2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    halves = tmp_path / "encoder.safetensors", tmp_path / "decoder.safetensors"
    model.save(*halves)
    assert {t.dtype for half in halves for t in load_file(half).values()} == {torch.float16}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(h.name for h in halves)
    again = CompactAutoencoder.load(*halves)
    assert again.latent_channels == CHANNELS
    latent = again.encode(portraits)
    torch.testing.assert_close(latent, model.encode(portraits), atol=0.02, rtol=0.02)
    torch.testing.assert_close(again.decode(latent), model.decode(latent), atol=0.02, rtol=0)


def test_the_guidance_decoder_gives_half_the_size() -> None:
    net = build_guidance_decoder(CHANNELS)
    z = torch.randn(2, CHANNELS, 32, 32, requires_grad=True)
    picture = net(z)
    assert picture.shape == (2, 3, 128, 128)
    (gradient,) = torch.autograd.grad(picture[0].sum(), z)
    assert (gradient[0].abs().sum((1, 2)) > 0).all() and not gradient[1].any()


@pytest.fixture(scope="module")
def compact_pack(tiny: TinyAutoencoder, rows: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded pack with a compact autoencoder, a UNet of random numbers, and a guidance decoder."""
    from diffusers import UNet2DModel

    folder = tmp_path_factory.mktemp("packs") / "compact"
    folder.mkdir()
    kept = "bisenet.int8.safetensors", "fr_feature.onnx", "face_recognition_sface_2021dec_int8bq.onnx"
    for name in (*kept, "face_detection_yunet_2023mar_int8bq.onnx"):
        shutil.copyfile(EMBEDDED / "starter" / name, folder / name)
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "sample_size": 32, "in_channels": CHANNELS, "out_channels": CHANNELS, "layers_per_block": 1,
        "block_out_channels": [16, 16], "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"], "norm_num_groups": 8,
    }  # fmt: skip
    begun(tiny, rows, CHANNELS, width=32, blocks=1).save(
        folder / "encoder.safetensors", folder / "decoder.safetensors"
    )
    save_half(build_guidance_decoder(CHANNELS), folder / "guidance.safetensors")
    state = dict(cast(Any, UNet2DModel)(**arguments).state_dict())
    state |= {"latent_mean": torch.full((CHANNELS,), 0.5), "latent_std": torch.full((CHANNELS,), 2.0)}
    save_file(state, folder / "unet.safetensors")
    write_manifest(folder, arguments)
    return folder


def write_manifest(folder: Path, arguments: dict[str, Any], channels: int = CHANNELS) -> None:
    text = (EMBEDDED / "starter/pack.toml").read_text(encoding="utf-8")
    values = "\n".join(f"{key} = {json.dumps(value)}" for key, value in arguments.items())
    parts = {
        "autoencoder": (
            'kind = "compact"\nencoder = "encoder.safetensors"\ndecoder = "decoder.safetensors"\n'
            f'guidance = "guidance.safetensors"\nlatent_channels = {channels}\n'
        ),
        "unet": f'kind = "file"\nfile = "unet.safetensors"\n\n[unet.arguments]\n{values}\n',
    }
    head, *sections = text.split("\n[")
    taken = "schedule", "identity", "identity.second", "parser", "detector", "pose"
    kept = [s for s in sections if s.split("]")[0] in taken]
    lines = [head, *(f"\n[{name}]\n{body}" for name, body in parts.items()), *(f"\n[{s}" for s in kept)]
    for file in sorted(p for p in folder.iterdir() if p.name != "pack.toml"):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        lines.append(
            f'\n[files."{file.name}"]\nsha256 = "{digest}"\nsource = "a test"\nlicence = "CC0-1.0"\n'
        )
    (folder / "pack.toml").write_text("\n".join(lines), encoding="utf-8")


@torch.no_grad()
def test_a_pack_with_a_compact_autoencoder(compact_pack: Path, portraits: torch.Tensor) -> None:
    net = Networks.load(open_pack(str(compact_pack)), "cpu")
    z = net.encode(portraits)
    assert z.shape == (2, CHANNELS, 16, 16)
    torch.testing.assert_close(z * 2 + 0.5, net.autoencoder.encode(portraits))
    assert net.decode(z).shape == (2, 3, 128, 128)
    assert net.preview is not None
    torch.testing.assert_close(net.decode_preview(z), net.preview(z * 2 + 0.5))
    assert net.decode_preview(z).shape == (2, 3, 64, 64)


def test_a_guided_step_through_its_guidance_decoder(
    compact_pack: Path, faces: tuple[SourceFace, SourceFace], pack: Pack
) -> None:
    net = Networks.load(open_pack(str(compact_pack)), "cpu")
    target = faces[1]
    mask = np.zeros((1, 256, 256), np.float32)
    mask[:, 90:220, 80:180] = 1
    crops = Crops(
        0, np.array([0]), target.image[None], np.eye(2, 3)[None], target.landmarks[None], masks=mask
    )
    settings = load_settings("cpu", overrides={"steps": 1, "batch": 1, "conditioning": "gradient"})
    calls = []
    assert net.preview is not None
    net.preview.register_full_backward_hook(lambda *_: calls.append(1))
    swapped = SwapStage(net, settings, faces[0]).process(crops).swapped
    assert swapped is not None and swapped.shape == (1, 256, 256, 3) and np.isfinite(swapped).all()
    assert calls  # a gradient that is not finite is a SettingsError


def test_channels_that_are_not_the_files(compact_pack: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(compact_pack, tmp_path / "other"))
    text = (folder / "pack.toml").read_text(encoding="utf-8")
    (folder / "pack.toml").write_text(
        text.replace(f"latent_channels = {CHANNELS}", "latent_channels = 12"), encoding="utf-8"
    )
    with pytest.raises(PackError, match=r"other: can't be loaded: .*linear\.weight"):
        Networks.load(open_pack(str(folder)), "cpu")
