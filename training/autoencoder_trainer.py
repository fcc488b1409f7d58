"""The autoencoder's training: what a step is made of; see ``autoencoder`` for what it is for."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..stages.swap.compact import CompactAutoencoder
from . import checkpoint
from .augment import colour, jitter
from .config import Section
from .discriminator import PatchDiscriminator, discriminator_loss, generator_loss, same_patch
from .perception import Perception, balanced_gradient, load_tiny, pyramid_loss
from .trainer import (
    as_float,
    at_root,
    autocast,
    average_into,
    draw,
    random_of,
    rate_at,
    restore,
    set_rate,
    state_of,
)


class AutoencoderConfig(Section):
    """``[autoencoder]`` of the recipe. What is called a share is a share of the gradient at the picture."""

    seed: int = 0
    latent_channels: int = 16
    width: int = 128
    blocks: int = 4
    pack: str = "training/start"  # whose identity network and parser are looked through
    tiny: str = "training/start"  # where the tiny autoencoder's files lie

    batch: int = 64
    seconds: float | None = None
    steps: int | None = 1240
    limit: int | None = None
    learning_rate: float = 5e-4
    tuning: float = 0.2  # the tiny layers' rate, as a share of that
    discriminator_rate: float = 2e-4
    warm_up: int = 100
    average: float = 0.998
    save_every: float = 120

    jittered: float = 0.25  # share of a batch that is turned, scaled and relit; all of it is mirrored
    noise: float = 0.1  # largest deviation added to latents, in units of their own
    halved_every: int = 5  # steps; 0: never
    unit: float = 0.1  # share of the gradient at the latents that draws them to mean 0, deviation 1
    patch: int = 128

    pixels: float = 1.0
    pyramid: float = 1.0
    features: float = 0.7
    identity: float = 0.4
    parse: float = 0.2
    adversarial: float = 0.4
    adversarial_from: float = 0.5  # of the budget


@torch.no_grad()
def latent_moments(encoder: nn.Module, images: Tensor, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Mean (C,) and covariance (C, C), float64 on the CPU, of the latents of (N, H, W, 3) uint8."""
    total, square, count = torch.zeros(1), torch.zeros(1), 0
    for begin in range(0, len(images), batch):
        with autocast(images.device):
            rows = (
                encoder(as_float(images[begin : begin + batch]))
                .float()
                .permute(0, 2, 3, 1)
                .flatten(0, 2)
                .double()
                .cpu()
            )
        total, square, count = total + rows.sum(0), square + rows.T @ rows, count + len(rows)
    mean = total / count
    return mean, square / count - mean[:, None] * mean


class Trainer:
    """The networks of this stage, their optimisers, and one step."""

    def __init__(self, config: AutoencoderConfig, device: torch.device, images: Tensor) -> None:
        torch.manual_seed(config.seed)
        c = self.config = config
        self.save_every = c.save_every
        self.device, self.images, self.step, self.spent = device, images, 0, 0.0
        self.tiny = load_tiny(at_root(c.tiny))
        nn.Module.to(self.tiny, device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.perception = Perception(at_root(c.pack), self.tiny).to(device)
        model = CompactAutoencoder(c.latent_channels, c.width, c.blocks)
        some = images[:: max(1, len(images) // 256)]
        model.start_from(self.tiny, *latent_moments(self.tiny.encoder, some))
        self.model, self.critic = model, PatchDiscriminator()
        for net in (self.model, self.critic):
            nn.Module.to(net, device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        fused = device.type == "cuda"
        groups = [
            {"params": [p for part in self.model.bottlenecks for p in part.parameters()],
             "base": c.learning_rate},
            {"params": [p for part in self.model.tiny for p in part.parameters()],
             "base": c.learning_rate * c.tuning},
        ]  # fmt: skip
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-4, fused=fused)
        self.critic_optimiser = torch.optim.AdamW(
            [{"params": list(self.critic.parameters()), "base": c.discriminator_rate}],
            betas=(0.5, 0.95), weight_decay=0.0, fused=fused,
        )  # fmt: skip
        self.encode: Any = self.model.encoder
        self.decode: Any = self.model.decoder

    def compile(self) -> None:
        """Encoder and decoder as compiled graphs, one for each of the two resolutions."""
        self.encode = torch.compile(self.model.encoder, dynamic=False)
        self.decode = torch.compile(self.model.decoder, dynamic=False)

    def batch(self, random: torch.Generator) -> Tensor:
        """(B, 3, 256, 256): mirrored or not; a part of it also moved and lit a little differently."""
        x, _ = draw(self.images, self.config.batch, random)
        count = round(self.config.jittered * len(x))
        mirrored = torch.rand(len(x), 1, 1, 1, generator=random, device=x.device) < 0.5
        x = torch.where(mirrored, x.flip(3), x)
        if count:
            moved = jitter(x[:count], random, scale=0.05, shift=0.02, rotate=4.0, mirror=0.0).images
            moved = colour(moved, random, brightness=0.06, contrast=0.1, gamma=0.15, saturation=0.1)
            x = torch.cat([moved.to(x), x[count:]])
        return x.contiguous(memory_format=torch.channels_last)

    def train_step(self, share: float) -> dict[str, Tensor]:
        """One step of both optimisers at ``share`` of the budget; the losses, on the device."""
        c = self.config
        random = random_of(self.device, c.seed, self.step)
        places = random_of(torch.device("cpu"), c.seed, self.step)
        x = self.batch(random)
        for optimiser in (self.optimiser, self.critic_optimiser):
            set_rate(optimiser, rate_at(share, self.step, c.warm_up))
            optimiser.zero_grad(set_to_none=True)
        with autocast(self.device):
            z = self.encode(x).float()
        leaf = z.detach().requires_grad_(True)
        deviation = leaf.detach().std((0, 2, 3), keepdim=True)
        sigma = torch.rand(len(x), 1, 1, 1, generator=random, device=x.device) * c.noise
        disturbed = leaf + sigma * deviation * torch.randn(leaf.shape, generator=random, device=x.device)
        if c.halved_every and self.step % c.halved_every == c.halved_every - 1:
            disturbed = nn.functional.avg_pool2d(disturbed, 2)
            x = nn.functional.avg_pool2d(x, 2)
        with autocast(self.device):
            made = self.decode(disturbed).float()
        picture = made.detach().requires_grad_(True)
        # 0 until ``adversarial_from``, whole a tenth of the budget later; the critic learns a little earlier.
        ramp = min(1.0, max(0.0, (share - c.adversarial_from) / 0.1)) if c.adversarial else 0.0
        with autocast(self.device):
            losses, shares = self.losses(picture, x, places, ramp)
        made.backward(balanced_gradient(losses, shares, picture))
        assert leaf.grad is not None
        z.backward(leaf.grad + self.towards_unit(leaf, leaf.grad))
        self.optimiser.step()
        if c.adversarial and share >= c.adversarial_from - 0.05:
            real, fake = same_patch(c.patch, places, x, made.detach())
            with autocast(self.device):
                losses["critic"] = discriminator_loss(self.critic(real), self.critic(fake))
            losses["critic"].backward()  # type: ignore[no-untyped-call]
            self.critic_optimiser.step()
        average_into(self.averaged, self.model, c.average, self.step)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def losses(
        self, picture: Tensor, wanted: Tensor, places: torch.Generator, ramp: float
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """What the reconstruction is worth, and the share of each in the gradient."""
        c, see = self.config, self.perception
        near, theirs = same_patch(c.patch, places, picture, wanted)
        compared: dict[str, Callable[[], Tensor]] = {
            "pixels": lambda: (picture - wanted).abs().mean(),
            "pyramid": lambda: pyramid_loss(picture, wanted),
            "features": lambda: see.feature_loss(near, theirs),
            "identity": lambda: see.identity_loss(picture, wanted),
            "parse": lambda: see.parse_loss(picture, wanted),
            "adversarial": lambda: generator_loss(self.critic(near)),
        }
        shares = {name: float(getattr(c, name)) for name in compared}
        shares["adversarial"] *= ramp
        # What has no share is not computed.
        return {name: loss() for name, loss in compared.items() if shares[name] > 0}, shares

    def towards_unit(self, z: Tensor, gradient: Tensor) -> Tensor:
        """A share of the gradient's length towards N(0, 1) per channel (KL); less where that is near."""
        z = z.detach().requires_grad_(True)
        mean, variance = z.mean((0, 2, 3)), z.var((0, 2, 3)).clamp(min=1e-8)
        divergence = (mean**2 + variance - 1 - variance.log()).mean() / 2
        (own,) = torch.autograd.grad(divergence, z)
        length: Tensor = self.config.unit * gradient.norm() * divergence.detach().clamp(max=1)
        towards: Tensor = own * (length / own.norm().clamp(min=1e-12))
        return towards

    def save(self, folder: Path) -> None:
        """``travel``: weights and averages as fp16; on a CPU also ``whole``: everything, to the last bit."""
        facts = {
            "step": self.step,
            "seconds": self.spent,
            "config": json.loads(self.config.model_dump_json()),
        }
        light = state_of({"model": self.model, "averaged": self.averaged, "critic": self.critic}, {})
        checkpoint.save(folder / "travel", {k: v.half() for k, v in light.items()}, facts)
        if self.device.type == "cpu":
            both = {"optimiser": self.optimiser, "critic_optimiser": self.critic_optimiser}
            checkpoint.save(folder / "whole", light | state_of({}, both), facts)

    def load(self, folder: Path) -> None:
        """What ``save`` wrote: the whole if it is there, else what travelled, with new optimisers."""
        whole = checkpoint.exists(folder / "whole")
        tensors, facts = checkpoint.load(folder / ("whole" if whole else "travel"))
        both = {"optimiser": self.optimiser, "critic_optimiser": self.critic_optimiser}
        parts = {"model": self.model, "averaged": self.averaged, "critic": self.critic}
        restore(tensors, parts, both if whole else {})
        self.step, self.spent = int(facts["step"]), float(facts["seconds"])
