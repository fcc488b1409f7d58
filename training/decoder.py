"""Stage ``decoder``: the small decoder that guidance looks through, distilled from the autoencoder's own.

    python -m ldvid.training decoder --config training/config.toml --data SHARDS --autoencoder RUN --out OUT

It learns what the full decoder makes of a latent, at half the resolution: of latents of photographs, and of
latents as guidance meets them, which no photograph has: noisy, smooth, one face inside another. What is seen
in it is to be what is seen in the full picture, so embedding and parse have their shares of the gradient.

``OUT`` then holds ``guidance.safetensors`` (fp16, of the averaged weights), ``report.json``, ``sheet.png``
(full and small decoder of undisturbed latents, then of disturbed ones) and the state of the training.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..stages.swap.compact import CompactAutoencoder, build_guidance_decoder, save_half
from ..stages.swap.loaders import naming
from . import checkpoint
from .config import Section, read_section
from .decoder_report import report
from .log import say
from .perception import Perception, balanced_gradient, edge_loss, load_tiny
from .shards import read
from .trainer import (
    as_float,
    at_root,
    autocast,
    average_into,
    device_of,
    random_of,
    rate_at,
    refuse_mixing,
    restore,
    set_rate,
    state_of,
    train,
)


class DecoderConfig(Section):
    """``[decoder]`` of the recipe. ``pixels`` … ``parse`` are shares of the gradient at the picture."""

    seed: int = 0
    pack: str = "training/start"  # whose identity network and parser look at the pictures
    tiny: str = "training/start"

    batch: int = 96
    seconds: float | None = None
    steps: int | None = 1415
    limit: int | None = None
    learning_rate: float = 1e-3
    warm_up: int = 200
    average: float = 0.998
    save_every: float = 120

    noise: float = 0.6  # largest deviation added, in units of the latents'
    disturbed: float = 0.5  # chance of each kind of disturbance

    pixels: float = 1.0
    edges: float = 0.7
    identity: float = 0.7
    parse: float = 0.4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the stage."""
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder of the stage autoencoder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, help="instead of the recipe's budget, over all runs")
    parser.add_argument("--resume", action="store_true", help="go on with what lies in --out")
    parser.add_argument("--compile", action="store_true", help="torch.compile: slower start, faster steps")


def disturb(z: Tensor, deviation: Tensor, random: torch.Generator, chance: float, noise: float) -> Tensor:
    """Latents as the sampler passes through: (B, C, h, w) → the same, each row differently.

    Each with probability ``chance``: part of another row's face within a soft blob; averaged over 2×2 or
    4×4; noise of up to ``noise`` × ``deviation`` (1, C, 1, 1).
    """
    count, _, height, width = z.shape

    def drawn(low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=random, device=z.device) * (high - low) + low

    blobs = torch.randn(count, 1, 4, 4, generator=random, device=z.device)
    blobs = F.interpolate(blobs, (height, width), mode="bicubic", align_corners=False)
    mask = torch.sigmoid(blobs * drawn(1, 12)) * drawn(0.3, 1.0) * (drawn() < chance)
    z = z + mask * (z.roll(1, 0) - z)
    way = drawn()
    for factor, low, high in ((2, 0.0, 0.7 * chance), (4, 0.7 * chance, chance)):
        smooth = F.interpolate(F.avg_pool2d(z, factor), (height, width), mode="bilinear", align_corners=False)
        z = torch.where((way >= low) & (way < high), smooth, z)
    level = drawn(0, noise) * (drawn() < chance)
    return z + level * deviation * torch.randn(z.shape, generator=random, device=z.device)


@torch.no_grad()
def encode_all(model: CompactAutoencoder, images: Tensor, batch: int = 64) -> Tensor:
    """Latents of (N, H, W, 3) uint8 and of their mirror images, (2 N, C, h, w), float32."""
    rows = []
    for mirrored in (False, True):
        for begin in range(0, len(images), batch):
            x = as_float(images[begin : begin + batch])
            with autocast(images.device):
                rows.append(model.encoder(x.flip(3) if mirrored else x).float())
    return torch.cat(rows)


class Trainer:
    """The small decoder, its optimiser, and one step."""

    def __init__(self, config: DecoderConfig, full: CompactAutoencoder, latents: Tensor) -> None:
        torch.manual_seed(config.seed)
        c = self.config = config
        self.save_every = c.save_every
        self.device, self.latents, self.full, self.step, self.spent = latents.device, latents, full, 0, 0.0
        self.deviation = latents[:2048].std((0, 2, 3), keepdim=True)
        self.perception = Perception(at_root(c.pack), load_tiny(at_root(c.tiny))).to(self.device)
        self.model = build_guidance_decoder(full.latent_channels)
        nn.Module.to(self.model, self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            [{"params": list(self.model.parameters()), "base": c.learning_rate}],
            betas=(0.9, 0.99), weight_decay=1e-4, fused=self.device.type == "cuda",
        )  # fmt: skip
        self.teach: Any = full.decoder
        self.forward: Any = self.model

    def compile(self) -> None:
        """Both decoders as compiled graphs."""
        self.teach = torch.compile(self.full.decoder, dynamic=False)
        self.forward = torch.compile(self.model, dynamic=False)

    def train_step(self, share: float) -> dict[str, Tensor]:
        """One step at ``share`` of the budget; the losses, on the device."""
        c, see = self.config, self.perception
        random = random_of(self.device, c.seed, self.step)
        rows = torch.randint(len(self.latents), (c.batch,), generator=random, device=self.device)
        z = disturb(self.latents[rows], self.deviation, random, c.disturbed, c.noise)
        with torch.no_grad(), autocast(self.device):
            wanted = F.avg_pool2d(self.teach(z).float(), 2)
        set_rate(self.optimiser, rate_at(share, self.step, c.warm_up))
        self.optimiser.zero_grad(set_to_none=True)
        with autocast(self.device):
            made = self.forward(z).float()
            picture = made.detach().requires_grad_(True)
            compared: dict[str, Callable[[], Tensor]] = {
                "pixels": lambda: (picture - wanted).abs().mean(),
                "edges": lambda: edge_loss(picture, wanted),
                "identity": lambda: see.identity_loss(picture, wanted),
                "parse": lambda: see.parse_loss(picture, wanted),
            }
            shares = {name: float(getattr(c, name)) for name in compared}
            # What has no share is not computed.
            losses = {name: loss() for name, loss in compared.items() if shares[name] > 0}
        made.backward(balanced_gradient(losses, shares, picture))
        self.optimiser.step()
        average_into(self.averaged, self.model, c.average, self.step)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def save(self, folder: Path) -> None:
        """``whole``: everything, to the last bit; it is small."""
        facts = {
            "step": self.step,
            "seconds": self.spent,
            "config": json.loads(self.config.model_dump_json()),
        }
        parts = {"model": self.model, "averaged": self.averaged}
        checkpoint.save(folder / "whole", state_of(parts, {"optimiser": self.optimiser}), facts)

    def load(self, folder: Path) -> None:
        """What ``save`` wrote."""
        tensors, facts = checkpoint.load(folder / "whole")
        parts = {"model": self.model, "averaged": self.averaged}
        restore(tensors, parts, {"optimiser": self.optimiser})
        self.step, self.spent = int(facts["step"]), float(facts["seconds"])


def run(args: argparse.Namespace) -> None:
    """The stage."""
    config = read_section(args.config, "decoder", DecoderConfig)
    refuse_mixing(args.out, args.resume)
    device = device_of(args.device)
    halves = args.autoencoder / "encoder.safetensors", args.autoencoder / "decoder.safetensors"
    with naming(args.autoencoder):
        full = CompactAutoencoder.load(*halves)
    full.place(device, torch.float32)
    faces = read(args.data, "train", limit=config.limit)
    trainer = Trainer(config, full, encode_all(full, torch.from_numpy(faces.images).to(device)))
    say(f"{len(trainer.latents)} latents of {full.latent_channels} channels")
    if args.resume:
        trainer.load(args.out)
        say(f"going on after step {trainer.step}")
    if args.compile:
        trainer.compile()
    seconds = args.seconds if args.seconds is not None else config.seconds
    train(trainer, args.out, seconds, None if args.seconds is not None else config.steps)
    save_half(trainer.averaged, args.out / "guidance.safetensors")
    held = read(args.data, "held", limit=config.limit)
    latents = encode_all(full, torch.from_numpy(held.images).to(device))[: len(held)]
    random = random_of(device, config.seed, 1 << 39)
    spoilt = disturb(latents, trainer.deviation, random, config.disturbed, config.noise)
    facts = {"steps": trainer.step, "seconds": round(trainer.spent, 1)}
    given = {"photographs": latents, "disturbed": spoilt}
    report(args.out, facts, full.decoder, trainer.averaged, trainer.perception, given)
