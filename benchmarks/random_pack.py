"""Write a pack of random weights in exactly the layouts of ``celebahq-256``, to test and time its loading.

    python benchmarks/random_pack.py [FOLDER] [--small] [--seed 0]

Names, formats, architectures and the old names of attention weights are those of the real files; the
numbers are drawn. What a step costs does not depend on them. Without a folder, a small pack is written to a
temporary one and listed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import tempfile
import tomllib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from ldvid.stages.swap.compact import build_guidance_decoder, save_half
from rich.console import Console
from torch import Tensor, nn

MANIFEST = Path(__file__).resolve().parents[1] / "packs/celebahq-256/pack.toml"
DETECTOR_OUTPUTS = ("448", "471", "494", "451", "474", "497", "454", "477", "500")
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
# Fields that a config.json of 2022 does not have.
YOUNGER = {
    "attn_norm_num_groups", "class_embed_type", "downsample_type", "dropout", "force_upcast",
    "lookup_from_codebook", "mid_block_add_attention", "mid_block_type", "norm_type", "num_class_embeds",
    "num_train_timesteps", "scaling_factor", "time_embedding_dim", "upsample_type",
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Widths of the networks; everything else is the same in both packs."""

    unet: tuple[int, ...] = (224, 448, 672, 896)
    unet_head: int = 32
    unet_layers: int = 2
    vq: tuple[int, ...] = (128, 256, 512)
    vq_layers: int = 2
    codes: int = 8192
    identity: tuple[int, ...] = (3, 4, 14, 3)
    identity_width: int = 64


SMALL = Sizes((32, 32, 64, 64), 8, 1, (32, 32, 64), 1, 512, (1, 1, 1, 1), 16)


class _IBasic(nn.Module):
    """IResNet's block: normalise, convolve, PReLU, convolve, and a skip."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(i, eps=1e-5),
            nn.Conv2d(i, o, 3, 1, 1, bias=False),
            nn.BatchNorm2d(o, eps=1e-5),
            nn.PReLU(o),
            nn.Conv2d(o, o, 3, stride, 1, bias=False),
            nn.BatchNorm2d(o, eps=1e-5),
        )
        self.skip = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o, eps=1e-5))
        self.same = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.body(x) + (x if self.same else self.skip(x)))


class IResNet(nn.Module):
    """insightface's recognition network; 3, 4, 14, 3 blocks are R50. (B, 3, 112, 112) → (B, 512)."""

    def __init__(self, blocks: Sequence[int] = (3, 4, 14, 3), width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width, eps=1e-5),
            nn.PReLU(width),
        ]
        channels = width
        for level, count in enumerate(blocks):
            for block in range(count):
                out = width << level
                layers.append(_IBasic(channels, out, 2 if block == 0 else 1))
                channels = out
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels, eps=1e-5))
        self.head = nn.Sequential(nn.Linear(channels * 49, 512), nn.BatchNorm1d(512, eps=1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(torch.flatten(self.features(x), 1)))


class _Detector(nn.Module):
    """SCRFD's interface and nothing of its skill: nine outputs, strides 8, 16, 32, two anchors a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.down = nn.ModuleList([nn.Conv2d(16, 16, 2, 2), nn.Conv2d(16, 16, 2, 2)])
        self.heads = nn.ModuleList([nn.Conv2d(16, 2 * n, 1) for n in (1, 4, 10)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        levels = [torch.relu(self.stem(x))]
        for down in self.down:
            levels.append(torch.relu(down(levels[-1])))
        outputs = []
        for head, n in zip(self.heads, (1, 4, 10), strict=True):
            for level in levels:
                raw = head(level).permute(0, 2, 3, 1).reshape(-1, n)
                outputs.append(torch.sigmoid(raw) if n == 1 else F.softplus(raw) if n == 4 else raw)
        return tuple(outputs)


def pictures(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Patches with some grain, (count, 3, size, size) of mean 0 and deviation about 1."""
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    grain = torch.randn(count, 3, size, size, generator=generator)
    return F.interpolate(coarse, (size, size), mode="bicubic") * 1.2 + grain * 0.3


@torch.no_grad()
def settle(net: nn.Module, x: Tensor, generator: torch.Generator) -> nn.Module:
    """Random gains, slopes and, from one pass over ``x``, the statistics a trained network would have."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            module.weight.copy_(torch.rand(module.weight.shape, generator=generator) * 0.4 + 0.8)
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
        if isinstance(module, nn.PReLU):
            module.weight.copy_(torch.rand(module.weight.shape, generator=generator) * 0.4)
    net.train()(x)
    return net.eval()


def export(net: nn.Module, example: Tensor, path: Path, outputs: Sequence[str], axes: dict[int, str]) -> None:
    """As insightface did it: torch.onnx, opset 11, input ``input.1``, outputs called by numbers."""
    named = [f"out{name}" for name in outputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the old one
        torch.onnx.export(
            net, (example,), str(path), opset_version=11, dynamo=False, input_names=["input.1"],
            output_names=named, dynamic_axes={"input.1": axes, **({n: {0: "n"} for n in named})},
        )  # fmt: skip
    model = onnx.load(str(path))
    short = dict(zip(named, outputs, strict=True))  # torch refuses names that are numbers
    for node in model.graph.node:
        node.output[:] = [short.get(n, n) for n in node.output]
    for output in model.graph.output:
        output.name = short[output.name]
    onnx.save(model, str(path))


def _save_folder(model: Any, folder: Path) -> None:
    """As diffusers of 2022 saved it: an old config and a pickle with the attention's old names."""
    folder.mkdir()
    config = {k: v for k, v in model.config.items() if not k.startswith("_") and k not in YOUNGER}
    head = {"_class_name": type(model).__name__, "_diffusers_version": "0.1.2"}
    (folder / "config.json").write_text(json.dumps(head | config, indent=2) + "\n", encoding="utf-8")
    state = {}
    for key, value in model.state_dict().items():
        for new, old in OLD_NAMES.items():
            key = key.replace(f".{new}.", f".{old}.")
        state[key] = value
    torch.save(state, folder / "diffusion_pytorch_model.bin")


@torch.no_grad()
def _write_vq(folder: Path, sizes: Sizes, generator: torch.Generator) -> None:
    from diffusers import VQModel

    model: Any = cast(Any, VQModel)(
        block_out_channels=sizes.vq, layers_per_block=sizes.vq_layers, latent_channels=3, sample_size=256,
        num_vq_embeddings=sizes.codes, norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    ).eval()  # fmt: skip
    # Latents of unit deviation among codes of the same, and pictures that fill [−1, 1].
    x = pictures(1, 64, generator).clamp(-1, 1)
    latents = model.encode(x).latents
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    model.quant_conv.bias.copy_((model.quant_conv.bias - mean) / std)
    model.quant_conv.weight.div_(std[:, None, None, None])
    model.quantize.embedding.weight.normal_(generator=generator)
    out = model.decode(model.encode(x).latents).sample
    last = model.decoder.conv_out
    last.bias.sub_(out.mean((0, 2, 3)))
    for parameter in (last.weight, last.bias):
        parameter.mul_(0.4 / out.std())
    _save_folder(model, folder)


def _write_unet(folder: Path, sizes: Sizes) -> None:
    from diffusers import UNet2DModel

    model: Any = cast(Any, UNet2DModel)(
        sample_size=64, in_channels=3, out_channels=3, layers_per_block=sizes.unet_layers,
        block_out_channels=sizes.unet, attention_head_dim=sizes.unet_head,
        down_block_types=("DownBlock2D", *("AttnDownBlock2D",) * 3),
        up_block_types=(*("AttnUpBlock2D",) * 3, "UpBlock2D"),
    )  # fmt: skip
    _save_folder(model, folder)


def _write_scheduler(folder: Path) -> None:
    folder.mkdir()
    values = {
        "_class_name": "DDIMScheduler", "_diffusers_version": "0.1.2", "beta_end": 0.0195,
        "beta_schedule": "scaled_linear", "beta_start": 0.0015, "clip_sample": False,
        "num_train_timesteps": 1000, "timestep_values": None, "trained_betas": None,
    }  # fmt: skip
    (folder / "scheduler_config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _write_faces(folder: Path, sizes: Sizes, generator: torch.Generator) -> None:
    """The recogniser, the detector, the parser and the pose network."""
    from facexlib.headpose.hopenet_arch import HopeNet
    from facexlib.parsing.bisenet import BiSeNet

    identity = settle(IResNet(sizes.identity, sizes.identity_width), pictures(8, 112, generator), generator)
    export(identity, torch.zeros(1, 3, 112, 112), folder / "w600k_r50.onnx", ["683"], {0: "None"})
    detector = _Detector().eval()
    example = torch.zeros(1, 3, 640, 640)
    export(detector, example, folder / "det_10g.onnx", DETECTOR_OUTPUTS, {2: "?", 3: "?"})
    parser = settle(BiSeNet(num_class=19), pictures(4, 128, generator), generator)
    torch.save(parser.state_dict(), folder / "parsing_bisenet.pth")
    pose = settle(HopeNet("resnet", [3, 4, 6, 3], 66), pictures(4, 224, generator), generator)
    torch.save({"params": pose.state_dict()}, folder / "headpose_hopenet.pth")


GUIDANCE = "guidance.safetensors"
STARTER = MANIFEST.parents[1] / "starter"


def _write_fast(folder: Path) -> str:
    """What ``celebahq-256`` lacks for preset ``fast``: a small decoder to guide through, and a parser and a
    detector at work, those of ``starter``. The manifest that goes with it."""
    save_half(build_guidance_decoder(3), folder / GUIDANCE)
    text = MANIFEST.read_text(encoding="utf-8")
    theirs = (STARTER / "pack.toml").read_text(encoding="utf-8")
    for section in ("parser", "detector"):
        text = _without(text, section).replace("[files.", _section(theirs, section) + "\n\n[files.", 1)
    for file in tomllib.loads(theirs)["parser"]["file"], tomllib.loads(theirs)["detector"]["file"]:
        shutil.copyfile(STARTER / file, folder / file)
        text += f'\n[files."{file}"]\n'
    text += f'\n[files."{GUIDANCE}"]\n'
    text = re.sub(r"guidance_size = \d+", "guidance_size = 256", text)
    return text.replace('kind = "vq"', f'kind = "vq"\nguidance = "{GUIDANCE}"')


def _blocks(text: str) -> list[str]:
    return re.split(r"\n(?=\[)", text)


def _section(text: str, name: str) -> str:
    return "\n".join(b for b in _blocks(text) if b.startswith((f"[{name}]", f"[{name}.")))


def _without(text: str, name: str) -> str:
    return "\n".join(b for b in _blocks(text) if not b.startswith((f"[{name}]", f"[{name}.")))


def _write_manifest(folder: Path, text: str) -> None:
    """A manifest with what was written here in place of the files' hashes and origins."""
    files = tomllib.loads(text)["files"]
    head = text[: text.index("[files.")].rstrip().splitlines()
    while head[-1].startswith("#"):  # what is said of the real files' hashes
        head.pop()
    lines = ["\n".join(head).rstrip()]
    for file in files:
        path = folder / file
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        lines += ["", f'[files."{file}"]', f'sha256 = "{digest}"', f"size = {path.stat().st_size}",
                  'source = "random numbers"', 'licence = "CC0-1.0"']  # fmt: skip
    (folder / "pack.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_random_pack(folder: Path, *, full_size: bool = True, seed: int = 0, fast: bool = False) -> Path:
    """Write the pack into ``folder``, which must not exist or be empty; returns it.

    ``full_size`` makes the UNet, the autoencoder and the recogniser as large as the paper's (1.6 GB of
    files in all); otherwise they are tiny, which their own config.json and graph say. Parser and pose
    network are facexlib's, whose sizes are fixed. ``fast`` adds what ``celebahq-256`` lacks for preset
    ``fast``: a small decoder to guide through, and parser and detector of ``starter``, which are no random
    numbers, so that there are faces and masks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder}: is not empty")
    sizes = Sizes() if full_size else SMALL
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _write_vq(folder / "vqvae", sizes, generator)
        _write_unet(folder / "unet", sizes)
        _write_scheduler(folder / "scheduler")
        _write_faces(folder, sizes, generator)
        text = _write_fast(folder) if fast else MANIFEST.read_text(encoding="utf-8")
    _write_manifest(folder, text)
    return folder


def main() -> None:
    """Parse, write, list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true", help="tiny networks of the same layouts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "celebahq-256"
        small = options.small or options.folder is None
        write_random_pack(folder, full_size=not small, seed=options.seed)
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            Console().print(f"{path.stat().st_size / 1e6:9.2f} MB  {path.relative_to(folder)}")


if __name__ == "__main__":
    main()
