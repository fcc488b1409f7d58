"""The pack ``celebahq-256`` in its real files' layouts, with random weights: loads, runs, is refused."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from ldvid.configs import load_settings
from ldvid.errors import PackError
from ldvid.metrics.hopenet import SIDE, HopenetPose, head_crop
from ldvid.stages.detect import open_detector
from ldvid.stages.mask import MaskStage, face_probability
from ldvid.stages.records import Crops, SourceFace
from ldvid.stages.scrfd import Scrfd
from ldvid.stages.swap.context import Context, SourcePicture
from ldvid.stages.swap.features import feature_points, merge_parts
from ldvid.stages.swap.guidance import build_terms
from ldvid.stages.swap.loaders import load_folder, load_state
from ldvid.stages.swap.manifest import ParserEntry
from ldvid.stages.swap.networks import Networks, to_tensor
from ldvid.stages.swap.pack import Pack, open_pack
from ldvid.stages.swap.sampler import Sampling, guided_swap
from ldvid.stages.swap.stage import SwapStage
from ldvid.stages.swap.start import SourceStart
from ldvid.stages.swap.views import arcface_theta
from ldvid.stages.swap.vq import VQAutoencoder
from torch import Tensor

CPU = torch.device("cpu")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def random_pack() -> ModuleType:
    """``benchmarks/random_pack.py``, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("random_pack", BENCHMARKS / "random_pack.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["random_pack"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def small(random_pack: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    """Tiny networks in the real layouts, verified."""
    folder = random_pack.write_random_pack(tmp_path_factory.mktemp("packs") / "celebahq-256", full_size=False)
    yield open_pack(str(folder))
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def net(small: Pack) -> Networks:
    return Networks.load(small, "cpu")


def of(pack: Pack, face: SourceFace, net: Networks) -> SourceFace:
    """A face of the starter's fixtures for another pack: same crop template, its own embedding."""
    assert pack.manifest.crop_size == face.image.shape[0]
    return replace(face, embedding=net.embed(face.image[None])[0])


def make_context(net: Networks, target: SourceFace, source: SourceFace) -> Context:
    """One target, with a box for a mask."""
    image = to_tensor(target.image[None], CPU)
    mask = torch.zeros(1, 1, 256, 256)
    mask[:, :, 64:232, 56:200] = 1
    with torch.no_grad():
        parse = net.parse(image)
    return Context(
        networks=net,
        source=torch.from_numpy(source.embedding)[None],
        target=image,
        target_parse=parse,
        mask=mask,
        to_arcface=arcface_theta(target.landmarks[None], net.identity_template(), 256, 112),
        landmarks=torch.from_numpy(target.landmarks[None]),
        source_picture=SourcePicture(to_tensor(source.image[None], CPU), source.landmarks[None]),
    )


def one_step(net: Networks, target: SourceFace, source: SourceFace) -> tuple[Tensor, Tensor, Tensor]:
    """z_0 of the target, and of one unguided and one guided step of Algorithm 1."""
    context = make_context(net, target, source)
    sampling = Sampling(steps=1, start_level=0.5, gradient="full")
    with torch.no_grad():
        z0 = net.encode(context.target)
    m = torch.nn.functional.avg_pool2d(context.mask, net.manifest.autoencoder.downscale)
    terms = build_terms(load_settings("paper").guidance)
    assert [t.name for t in terms] == ["identity", "segmentation"]
    free = guided_swap(context, z0, z0, m, [], sampling)
    led = guided_swap(context, z0, z0, m, terms, sampling)
    return z0, free, led


def test_the_manifest_is_the_real_packs_but_for_the_files(small: Pack, random_pack: ModuleType) -> None:
    from ldvid.stages.swap.manifest import read_manifest

    real = read_manifest(random_pack.MANIFEST.parent)
    assert small.manifest.model_copy(update={"files": real.files}) == real
    assert set(small.manifest.files) == set(real.files)


@pytest.mark.parametrize("folder", ["unet", "vqvae"])
def test_the_old_names_of_attention_weights_are_converted(folder: str, small: Pack, net: Networks) -> None:
    """What was saved as ``query`` is ``to_q`` now, and so on; nothing else changed its name."""
    old = load_state(small.path(f"{folder}/diffusion_pytorch_model.bin"))
    assert not any(".to_q." in name for name in old)
    assert not any(
        "scaling_factor" in line for line in small.path(f"{folder}/config.json").read_text().split()
    )
    module: Any = net.unet if folder == "unet" else net.autoencoder
    new = module.state_dict() if folder == "unet" else module.model.state_dict()
    now = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    seen = set()
    for name, value in old.items():
        parts = name.split(".")
        for before, after in now.items():
            if before in parts:
                seen.add(before)
                name = name.replace(f".{before}.", f".{after}.")
        assert torch.equal(new[name], value), name
    assert seen == set(now) and len(new) == len(old)


def test_loading_is_quiet_whatever_else_an_old_config_says(small: Pack, tmp_path: Path) -> None:
    from diffusers import UNet2DModel
    from diffusers.utils import logging as remarks

    folder = Path(shutil.copytree(small.path("unet"), tmp_path / "unet"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"num_head_channels": 32, "image_size": 64}  # long gone
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    library, level = logging.getLogger("diffusers"), remarks.get_verbosity()
    library.addHandler(handler)
    try:
        model = load_folder(UNet2DModel, folder)
    finally:
        library.removeHandler(handler)
    assert not said
    assert remarks.get_verbosity() == level
    assert model.config.in_channels == 3


def test_safetensors_are_taken_where_the_folder_has_them(small: Pack, tmp_path: Path) -> None:
    from diffusers import VQModel
    from safetensors.torch import save_file

    folder = Path(shutil.copytree(small.path("vqvae"), tmp_path / "vqvae"))
    state = load_state(folder / "diffusion_pytorch_model.bin")
    state["quant_conv.bias"] = state["quant_conv.bias"] + 1
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    assert torch.equal(load_folder(VQModel, folder).quant_conv.bias, state["quant_conv.bias"])


@torch.no_grad()
def test_encode_and_decode_are_diffusers_own(
    small: Pack, net: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    from diffusers import VQModel

    x = to_tensor(np.stack([f.image for f in faces]), CPU)
    model: Any = load_folder(VQModel, small.path("vqvae")).eval()
    assert model.config.scaling_factor == 0.18215  # diffusers' default, which is not this model's
    z = net.encode(x)
    assert z.shape == (2, 3, 64, 64) and z.dtype == torch.float32
    assert 0.3 < z.std() < 3
    torch.testing.assert_close(z, model.encode(x * 2 - 1).latents, atol=1e-4, rtol=1e-4)
    picture = net.decode(z)
    assert picture.shape == x.shape
    assert -3 < picture.min() < 0.4 and 0.6 < picture.max() < 4
    wanted = model.decode(z).sample / 2 + 0.5
    assert (picture - wanted).abs().mean() < 1e-3  # a latent between two codes may fall to either side
    assert torch.equal(net.decode_preview(z), picture)  # no such head
    half = VQAutoencoder(net.autoencoder.model, 0.5)
    torch.testing.assert_close(half.encode(x), z * 0.5)
    torch.testing.assert_close(half.decode(z * 0.5), picture)


def test_the_decoder_quantises_and_passes_the_gradient_straight_through(net: Networks) -> None:
    assert isinstance(net.autoencoder, VQAutoencoder)
    model = net.autoencoder.model
    codes = model.quantize.embedding.weight
    index = torch.randint(len(codes), (1, 16, 16), generator=torch.Generator().manual_seed(0))
    exact = codes[index].permute(0, 3, 1, 2)
    gap = torch.pdist(codes).min() / 4
    near = (exact + gap * torch.nn.functional.normalize(torch.randn_like(exact), dim=1)).requires_grad_(True)
    picture = net.decode(near)
    torch.testing.assert_close(picture, net.decode(exact), atol=1e-5, rtol=0)
    weight = torch.randn_like(picture)
    (through,) = torch.autograd.grad((picture * weight).sum(), near)
    plain = exact.clone().requires_grad_(True)
    unquantised = model.decoder(model.post_quant_conv(plain)) / 2 + 0.5
    (wanted,) = torch.autograd.grad((unquantised * weight).sum(), plain)
    assert through.abs().max() > 0
    torch.testing.assert_close(through, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-3)


@torch.no_grad()
def test_bfloat16_keeps_the_codebook_exact(
    small: Pack, net: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    half = Networks.load(small, "cpu", "bfloat16")
    assert isinstance(half.autoencoder, VQAutoencoder) and isinstance(net.autoencoder, VQAutoencoder)
    assert {p.dtype for p in half.unet.parameters()} == {torch.bfloat16}
    book = half.autoencoder.model.quantize.embedding.weight
    assert torch.equal(book, net.autoencoder.model.quantize.embedding.weight)
    z = net.encode(to_tensor(faces[0].image[None], CPU))
    full, rough = net.decode(z), half.decode(z)
    assert rough.dtype == torch.float32
    assert 0 < (full - rough).abs().mean() < 0.02 * full.std() + 0.01
    assert half.predict_noise(z, 300).dtype == half.encode(to_tensor(faces[0].image[None], CPU)).dtype


def test_one_guided_step(small: Pack, net: Networks, faces: tuple[SourceFace, SourceFace]) -> None:
    target, source = (of(small, f, net) for f in faces)
    z0, free, led = one_step(net, target, source)
    assert torch.isfinite(led).all()
    inside, outside = np.s_[:, :, 24:48, 20:44], np.s_[:, :, :12]
    assert (led - free)[inside].abs().mean() > 1e-3
    assert torch.equal(led[outside], z0[outside])  # eq. 6, at the last level


@pytest.mark.parametrize(("preset", "start"), [("paper", "target"), ("cpu", "source")])
def test_masks_and_the_whole_stage_run(
    preset: str, start: str, small: Pack, net: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    """Crop in, picture out, with a 512-pixel parse of 19 classes; from either start."""
    target, source = (of(small, f, net) for f in faces)
    settings = load_settings(
        preset, overrides={"steps": 1, "batch": 1, "start": start, "conditioning": "gradient"}
    )
    crops = Crops(
        0, np.array([0]), target.image[None], np.eye(2, 3)[None], target.landmarks[None].astype(np.float32)
    )
    masked = MaskStage(net, settings).process(crops)
    assert masked.masks is not None and masked.masks.shape == (1, 256, 256)
    box = np.zeros((1, 256, 256), np.float32)  # a random parser's mask may be empty
    box[:, 64:232, 56:200] = 1
    done = SwapStage(net, settings, source).process(replace(masked, masks=box)).swapped
    assert done is not None and done.shape == (1, 256, 256, 3)
    assert np.isfinite(done).all() and np.abs(done[0] - target.image)[box[0] > 0].mean() > 2


def test_the_detector_opens_and_runs(small: Pack, faces: tuple[SourceFace, SourceFace]) -> None:
    """``det_10g.onnx``'s interface: two shapes in, nine outputs decoded; the scores are noise."""
    detector = open_detector(small, 0.6)
    assert isinstance(detector, Scrfd)
    for picture in (faces[0].image, faces[0].image[:180]):
        for found in detector.detect(picture):
            assert 0.6 <= found.score <= 1 and found.landmarks.shape == (5, 2)
            assert np.isfinite(found.box).all()
            assert (found.box[2:] > found.box[:2]).all()


# Hopenet


def test_hopenet_measures_what_its_network_says(small: Pack, faces: tuple[SourceFace, SourceFace]) -> None:
    import cv2
    from facexlib.headpose import HopeNet

    path = small.path("headpose_hopenet.pth")
    judge, face = HopenetPose(path), faces[0]
    pose = judge.pose(face.image, face.landmarks)
    assert pose.shape == (3,) and pose.dtype == np.float32
    assert np.isfinite(pose).all() and np.abs(pose).max() <= 99
    network = HopeNet("resnet", [3, 4, 6, 3], 66)
    network.load_state_dict(torch.load(path, weights_only=True)["params"])
    view = cv2.warpAffine(
        face.image,
        head_crop(face.landmarks),
        (SIDE, SIDE),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    x = torch.from_numpy(view).permute(2, 0, 1)[None] / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    with torch.no_grad():
        wanted = torch.cat(network.eval()(x)).numpy()
    np.testing.assert_allclose(pose, wanted, atol=0.05)
    turned = cv2.rotate(face.image, cv2.ROTATE_90_CLOCKWISE)
    points = np.stack([255 - face.landmarks[:, 1], face.landmarks[:, 0]], 1)
    assert np.abs(judge.pose(turned, points) - pose).max() > 0.5  # it is not turned upright first


def test_the_head_crop_follows_the_face_and_never_turns(faces: tuple[SourceFace, SourceFace]) -> None:
    points = faces[0].landmarks.astype(np.float64)
    crop = head_crop(points)
    assert crop[0, 1] == crop[1, 0] == 0 and crop[0, 0] == crop[1, 1] > 0
    eyes = points[:2] @ crop[:, :2].T + crop[:, 2]
    assert 60 < np.hypot(*(eyes[1] - eyes[0])) <= SIDE / 3.1 + 1e-6
    assert abs(eyes[:, 0].mean() - SIDE / 2) < 8 and 70 < eyes[:, 1].mean() < 105
    moved = head_crop(points * 2 + [30, -7])
    np.testing.assert_allclose(moved[:, :2] * 2, crop[:, :2])
    np.testing.assert_allclose(moved[:, :2] @ [30, -7] + moved[:, 2], crop[:, 2])
    profile = points.copy()  # turned: the eyes close up, the height stays, and so does the scale
    profile[1, 0] = profile[0, 0] + 15
    assert abs(head_crop(profile)[0, 0] / crop[0, 0] - 1) < 0.1


# Parts


THERE = {
    "right_brow": "r_brow", "left_brow": "l_brow", "right_eye": "r_eye", "left_eye": "l_eye",
    "upper_lip": "u_lip", "lower_lip": "l_lip",
}  # fmt: skip


def retold(parse: np.ndarray, own: ParserEntry, other: ParserEntry) -> np.ndarray:
    """A parse of the starter's 11 classes as one of facexlib's 19."""
    out = np.zeros((len(other.classes), *parse.shape[1:]), np.float32)
    for name, mass in zip(own.classes, parse, strict=True):
        out[other.classes.index(THERE.get(name, name))] = mass
    return out


def test_a_finer_parser_means_the_same_by_its_parts(
    networks: Networks, net: Networks, faces: tuple[SourceFace, SourceFace]
) -> None:
    """The starter's parse, told in facexlib's 19 classes, starts the loop from the same picture."""
    coarse, fine = networks.manifest.parser, net.manifest.parser
    assert len(fine.classes) == 19 and fine.indices("eyes") == [4, 5] and fine.indices("mouth") == [11]
    source, target = faces
    with torch.no_grad():
        parses = networks.parse(to_tensor(np.stack([f.image for f in faces]), CPU)).numpy()
    told = [retold(parse, coarse, fine) for parse in parses]
    for parse, split, face in zip(parses, told, faces, strict=True):
        points, found = feature_points(parse, face.landmarks, coarse)
        again, seen = feature_points(split, face.landmarks, fine)
        assert found[:21].all() and np.array_equal(found, seen)
        np.testing.assert_allclose(again, points, atol=1e-3)
        merged = merge_parts(split, fine)
        assert len(merged) == 19 - 3 and len(merge_parts(parse, coarse)) == 11 - 3
        np.testing.assert_allclose(merged.sum(0), 1, atol=1e-5)
        mass, known = face_probability(split, fine), face_probability(parse, coarse)
        np.testing.assert_allclose(mass, known, atol=1e-5)
    starts = [
        SourceStart(source, p[0], e).compose(
            target.image[None], target.landmarks[None], np.ones((1, 256, 256), np.float32), p[1][None], 1.0
        )
        for p, e in ((parses, coarse), (told, fine))
    ]
    np.testing.assert_allclose(starts[1][1], starts[0][1], atol=1e-4)  # what was kept
    np.testing.assert_allclose(starts[1][0], starts[0][0], atol=0.05)
    assert starts[0][1].max() > 0.9 and np.abs(starts[0][0][0] - target.image).mean() > 2


# Refusals


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def own(path: Path) -> bytes:
    """The contents of a linked file, and the link gone, so that a new one can be written in its place."""
    data = path.read_bytes()
    path.unlink()
    return data


def drop_key(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.bin"
    state = torch.load(io.BytesIO(own(path)), weights_only=True)
    del state["conv_in.weight"]
    torch.save(state, path)


def cut(file: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = own(folder / file)
        (folder / file).write_bytes(data[: len(data) // 2])

    return damage


def trap(file: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        own(folder / file)
        torch.save({"params": Trap(folder / "sprung")}, folder / file)

    return damage


def configure(file: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads(own(folder / file)) | values
        (folder / file).write_text(json.dumps(config), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_key, r"unet/diffusion_pytorch_model\.bin: does not fit .* 1 missing keys, .* conv_in\.weight"),
        (cut("unet/diffusion_pytorch_model.bin"), r"unet/diffusion_pytorch_model\.bin"),
        (cut("vqvae/diffusion_pytorch_model.bin"), r"vqvae/diffusion_pytorch_model\.bin"),
        (cut("vqvae/config.json"), r"vqvae/config\.json"),
        (cut("w600k_r50.onnx"), r"w600k_r50\.onnx"),
        (cut("parsing_bisenet.pth"), r"parsing_bisenet\.pth"),
        (trap("parsing_bisenet.pth"), r"parsing_bisenet\.pth: damaged, or holds more than tensors"),
        (trap("unet/diffusion_pytorch_model.bin"), r"unet/diffusion_pytorch_model\.bin"),
        (configure("unet/config.json", _class_name="VQModel"), r"unet/config\.json: describes a VQModel"),
        (configure("vqvae/config.json", latent_channels=4), r"vqvae"),
        (
            configure("unet/config.json", layers_per_block=2),
            r"unet/diffusion_pytorch_model\.bin: .* size mismatch",
        ),
        (configure("unet/config.json", in_channels=4), r"unet"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(
    damage: Callable[[Path], None],
    message: str,
    small: Pack,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A pack whose files pass the manifest's hashes and are wrong all the same; no code is run."""
    folder = Path(shutil.copytree(small.folder, tmp_path / "pack", copy_function=os.symlink))
    damage(folder)
    with pytest.raises(PackError, match=message) as caught:
        Networks.load(Pack(folder, small.manifest, {}), "cpu")
    assert not (folder / "sprung").exists()
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_manifest_that_says_otherwise_than_the_config_is_refused(small: Pack) -> None:
    entry = small.manifest.autoencoder.model_copy(update={"downscale": 8})
    wrong = Pack(small.folder, small.manifest.model_copy(update={"autoencoder": entry}), {})
    with pytest.raises(PackError, match=r"vqvae/config\.json: 3 latent channels at 1/4, .* says 3 at 1/8"):
        Networks.load(wrong, "cpu")


def test_hopenets_file_is_checked(small: Pack, tmp_path: Path) -> None:
    wrong = tmp_path / "headpose_hopenet.pth"
    shutil.copy(small.path("parsing_bisenet.pth"), wrong)
    with pytest.raises(PackError, match=r"headpose_hopenet\.pth"):
        HopenetPose(wrong)
    trap("headpose_hopenet.pth")(tmp_path)
    with pytest.raises(PackError, match=r"headpose_hopenet\.pth"):
        HopenetPose(wrong)
    assert not (tmp_path / "sprung").exists()


# Full size


@pytest.mark.slow
def test_the_full_size_pack_loads_and_takes_a_guided_step(
    random_pack: ModuleType, tmp_path: Path, faces: tuple[SourceFace, SourceFace]
) -> None:
    """The paper's sizes (UNet 274 M, VQ-f4, R50, BiSeNet at 512) on the CPU in less than 16 GB."""
    folder = random_pack.write_random_pack(tmp_path / "celebahq-256")
    try:
        pack = open_pack(str(folder))
        begin = time.perf_counter()
        net = Networks.load(pack, "cpu")
        loaded = time.perf_counter() - begin
        count = {
            "unet": sum(p.numel() for p in net.unet.parameters()),
            "vqvae": sum(p.numel() for p in net.autoencoder.parameters()),
            "identity": sum(b.numel() for b in net.identity.buffers()),
        }
        assert abs(count["unet"] - 274.06e6) < 0.01e6
        assert abs(count["vqvae"] - 55.3e6) < 0.1e6
        assert abs(count["identity"] - 43.6e6) < 0.1e6
        target, source = (of(pack, f, net) for f in faces)
        begin = time.perf_counter()
        z0, free, led = one_step(net, target, source)
        took = time.perf_counter() - begin
        assert torch.isfinite(led).all()
        assert (led - free)[:, :, 24:48, 20:44].abs().mean() > 1e-4
        assert torch.equal(led[:, :, :12], z0[:, :, :12])
        pose = HopenetPose(pack.path("headpose_hopenet.pth")).pose(target.image, target.landmarks)
        assert np.isfinite(pose).all()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        assert peak < 16, f"{peak:.1f} GB"
        sys.stdout.write(f"loaded in {loaded:.1f} s, both steps in {took:.1f} s, peak {peak:.1f} GB\n")
    finally:
        shutil.rmtree(folder)
