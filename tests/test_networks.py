"""The pack and its networks: what is checked at load, and that each does what its reference does."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from ldvid.errors import PackError, SettingsError
from ldvid.stages.decode import read_picture
from ldvid.stages.swap.networks import (
    WORTH_COMPILING,
    Networks,
    layout_of,
    resolve_compile,
    resolve_device,
    resolve_dtype,
    to_tensor,
)
from ldvid.stages.swap.pack import EMBEDDED, Pack, find_pack, open_pack


@pytest.fixture(scope="module")
def portraits(example_face: Path) -> torch.Tensor:
    """Both example portraits, (2, 3, 256, 256) in [0, 1]."""
    files = (example_face, example_face.with_name("face-2.png"))
    small = [cv2.resize(read_picture(f), (256, 256), interpolation=cv2.INTER_AREA) for f in files]
    return to_tensor(np.stack(small), torch.device("cpu"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the embedded pack that a test may damage."""
    return Path(shutil.copytree(EMBEDDED / "starter", tmp_path / "starter"))


def test_packs_are_found_by_name_by_path_and_in_the_users_folder(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_pack("starter") == (EMBEDDED / "starter").resolve()
    assert find_pack(str(copy)) == copy.resolve()
    monkeypatch.setenv("LDVID_HOME", str(copy.parent.parent))
    copy.parent.rename(copy.parent.parent / "packs")
    mine = copy.parent.parent / "packs" / "starter"
    mine.rename(mine.with_name("mine"))
    assert find_pack("mine") == mine.with_name("mine").resolve()
    with pytest.raises(PackError, match=r"--pack other: no such pack; there are celebahq-256, mine, starter"):
        find_pack("other")


def test_one_changed_byte_is_refused(copy: Path) -> None:
    weights = copy / "guidance.safetensors"
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(PackError, match=r"guidance\.safetensors is not the file the manifest names"):
        open_pack(str(copy))


def test_a_missing_file_and_a_broken_manifest_are_named(copy: Path) -> None:
    (copy / "fr_feature.onnx").unlink()
    with pytest.raises(PackError, match=r"fr_feature\.onnx is missing"):
        open_pack(str(copy))
    (copy / "pack.toml").write_text("name = 'x'\n", encoding="utf-8")
    with pytest.raises(PackError, match="not a valid manifest"):
        open_pack(str(copy))


def test_files_are_small_enough_and_never_pickled(pack: Pack) -> None:
    files = [f for f in pack.folder.iterdir() if f.suffix not in {".toml", ".md", ".py"} and f.is_file()]
    weights = [f for f in files if not f.name.startswith("LICENSE")]
    assert {f.name for f in weights} == set(pack.manifest.files)
    assert {f.suffix for f in weights} == {".safetensors", ".onnx"}
    assert max(f.stat().st_size for f in weights) < 50e6
    assert all(entry.licence and entry.source for entry in pack.manifest.files.values())


def test_no_cuda_is_said() -> None:
    if torch.cuda.is_available():
        assert resolve_device("cuda").type == "cuda"
    else:
        with pytest.raises(SettingsError, match="--device cuda"):
            resolve_device("cuda")


@torch.no_grad()
def test_the_autoencoder_reconstructs_portraits(networks: Networks, portraits: torch.Tensor) -> None:
    rebuilt = networks.decode(networks.encode(portraits)).clamp(0, 1)
    psnr = -10 * torch.log10(((rebuilt - portraits) ** 2).mean((1, 2, 3)))
    # Grain and hair cost face-2.png a little; ten generated portraits average 31.7 dB.
    assert psnr.mean() > 30 and psnr.min() > 29.5, psnr


@torch.no_grad()
def test_the_preview_is_the_small_picture(networks: Networks, portraits: torch.Tensor) -> None:
    latent = networks.encode(portraits)
    small, full = networks.decode_preview(latent), networks.decode(latent)
    assert small.shape[-1] * 2 == full.shape[-1]
    psnr = -10 * torch.log10(((small - F.avg_pool2d(full, 2)) ** 2).mean((1, 2, 3)))
    assert psnr.min() > 28, psnr


@torch.no_grad()
@pytest.mark.parametrize("which", ["first", "second"])
def test_identity_equals_onnxruntime(networks: Networks, pack: Pack, which: str) -> None:
    entry = pack.manifest.identity if which == "first" else pack.manifest.identity.second
    assert entry is not None
    random = torch.Generator().manual_seed(0)
    x = (torch.rand(3, 3, 112, 112, generator=random) * 255 - entry.mean) / entry.scale
    model = onnx.load(str(pack.path(entry.file)))
    # onnxruntime takes all that is listed as an input for one, quantised weights too.
    first = model.graph.input[0]
    del model.graph.input[:]
    model.graph.input.append(first)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = np.concatenate([session.run(None, {first.name: x[i : i + 1].numpy()})[0] for i in range(3)])
    got = getattr(networks.identity, which).network(x)
    np.testing.assert_allclose(got.flatten(1).numpy(), wanted.reshape(3, -1), atol=1e-4)


def test_an_embedding_is_that_of_both_networks(networks: Networks, portraits: torch.Tensor) -> None:
    """Its cosine is the mean of theirs; people are told apart by the first alone."""
    small = F.interpolate(portraits, (112, 112), mode="bilinear", antialias=True)
    images = (small * 255).round().byte().permute(0, 2, 3, 1).numpy()
    both, first = networks.embed(images), networks.recognise(images)
    assert both.shape == (2, 640) and first.shape == (2, 512)
    with torch.no_grad():
        x = to_tensor(images, torch.device("cpu"))
        each = [getattr(networks.identity, n)(x) for n in ("first", "second")]
        guiding = networks.embed_aligned(x)
    np.testing.assert_allclose(first, each[0].numpy(), atol=1e-6)
    np.testing.assert_allclose(both, guiding.numpy(), atol=1e-6)
    cosines = [float(e[0] @ e[1]) for e in each]
    assert float(both[0] @ both[1]) == pytest.approx(sum(cosines) / 2, abs=1e-6)
    assert abs(cosines[0] - cosines[1]) > 0.01  # two opinions
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, atol=1e-5)


def test_identity_has_a_gradient(networks: Networks) -> None:
    x = torch.rand(2, 3, 112, 112, requires_grad=True)
    (gradient,) = torch.autograd.grad(networks.embed_aligned(x)[:, 0].sum(), x)
    assert torch.isfinite(gradient).all()
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()


@torch.no_grad()
def test_the_parser_knows_a_face(networks: Networks, portraits: torch.Tensor) -> None:
    parse = networks.parse(portraits)
    assert parse.shape == (2, len(networks.manifest.parser.classes), 256, 256)
    torch.testing.assert_close(parse.sum(1), torch.ones(2, 256, 256))
    seen = parse.mean((2, 3))
    parser = networks.manifest.parser
    for name in ("skin", "brows", "eyes", "nose", "lips", "hair"):
        found = seen[:, parser.indices(name)].sum(1)
        assert (found > 0.002).all() and found.numel() == 2, name


def test_embeddings_tell_people_apart_and_know_one_again(networks: Networks, portraits: torch.Tensor) -> None:
    images = (portraits * 255).round().byte().permute(0, 2, 3, 1).numpy()
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    one, other = networks.embed(images), networks.embed(mirrored)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    assert (one * other).sum(1).min() > 0.5
    assert float(one[0] @ one[1]) < 0.4


def test_auto_is_bfloat16_only_where_a_processor_multiplies_it(
    pack: Pack, networks: Networks, portraits: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for able, wanted in (
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({}, "float32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert resolve_dtype("auto", "cpu") == wanted
        assert resolve_dtype("auto", "NVIDIA H100") == "bfloat16"
        assert resolve_dtype("float32", "cpu") == "float32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    rough = Networks.load(pack, "cpu", "auto")
    assert rough.dtype == torch.bfloat16
    with torch.no_grad():
        exact, near = (n.decode(n.encode(portraits)).clamp(0, 1) for n in (networks, rough))
        masks = [n.parse(portraits).argmax(1) for n in (networks, rough)]
    assert (exact - near).abs().mean() < 1 / 255
    assert (masks[0] == masks[1]).float().mean() > 0.99
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as before torch 2.6
    assert resolve_dtype("auto", "cpu") == "float32"
    # A GPU of this machine that is too old; one of another machine can't be asked.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert resolve_dtype("auto", "NVIDIA T4") == "float32"


def test_long_clips_on_a_gpu_are_worth_compiling() -> None:
    assert not resolve_compile("auto", "cpu", 10**6)
    assert not resolve_compile("auto", "NVIDIA H100", WORTH_COMPILING - 1)
    assert resolve_compile("auto", "NVIDIA H100", WORTH_COMPILING)
    assert resolve_compile("on", "NVIDIA H100", 1)
    assert not resolve_compile("off", "NVIDIA H100", 10**6)
    with pytest.raises(SettingsError, match="--compile on"):
        resolve_compile("on", "cpu", 10**6)


def test_channels_lie_last_but_where_cudnn_would_take_seconds_to_plan(pack: Pack, networks: Networks) -> None:
    """Convolutions of a channel by itself, as the starter's identity network has, keep the other layout."""
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    plain = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3))
    grouped = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=8))
    assert layout_of(plain, gpu) == layout_of(networks.unet, gpu) == torch.channels_last
    assert layout_of(grouped, gpu) == layout_of(networks.identity, gpu) == torch.contiguous_format
    assert layout_of(grouped, cpu) == layout_of(networks.identity, cpu) == torch.channels_last


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
    ],
)
def test_a_face_is_known_alone_and_among_others(pack: Pack, portraits: torch.Tensor, device: str) -> None:
    net = Networks.load(pack, device, "float32")
    faces = (portraits.permute(0, 2, 3, 1).repeat(6, 1, 1, 1)[:11] * 255).byte().numpy()
    among = net.embed(faces)
    assert among.shape == (11, 640)
    for i, face in enumerate(faces):
        np.testing.assert_allclose(net.embed(face[None])[0], among[i], atol=1e-5)
