"""The diffusion model's recipe, and one step of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from ..errors import SettingsError
from ..stages.swap.identity_unet import IdentityUNet
from ..stages.swap.schedule import alpha_bars
from . import checkpoint
from .config import Section
from .diffusion import Average, clean_of, loss_weight, masked_loss, target_of
from .identity_loss import IdentityLoss
from .latents import Bank


class UNetConfig(Section):
    """``[unet]`` of the recipe."""

    seed: int = 0
    block_out_channels: tuple[int, ...] = (128, 256, 384)
    attention: tuple[bool, ...] = (False, True, True)
    layers_per_block: int = 2
    attention_head_dim: int = 32
    norm_num_groups: int = 32

    beta_schedule: Literal["scaled_linear", "linear", "cosine"] = "cosine"
    beta_start: float | None = None
    beta_end: float | None = None
    shift: float = 2.0
    timesteps: int = 1000
    prediction: Literal["epsilon", "v"] = "v"
    min_snr: float = 5.0

    batch: int = 512
    steps: int | None = 8600
    seconds: float | None = None
    learning_rate: float = 6e-4
    warm_up: int = 400
    decay: float = 0.6
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    average: float = 0.07
    save_every: float = 240.0

    weights: dict[str, float] = Field(default_factory=dict, description="how often a set is drawn, default 1")
    limit: int | None = None
    variants: int = 12
    views: int = 6
    scale: float = 0.05
    shift_by: float = 0.02
    rotate: float = 5.0
    drop_identity: float = 0.15
    swap_photograph: float = 0.5
    same_person: float = 0.6
    likeness: float = Field(default=0.0, ge=0, description="weight of the identity loss")
    likeness_rows: int = Field(default=128, ge=1, description="how many of a batch it is computed of")
    likeness_from: float = Field(default=-3.0, description="least log SNR at which it counts")
    face_weight: float = Field(default=1.0, ge=1, description="how often the face counts")

    def arguments(self, channels: int, side: int) -> dict[str, Any]:
        """Of ``UNet2DModel``, as they stand in a pack's manifest."""
        down = ["AttnDownBlock2D" if a else "DownBlock2D" for a in self.attention]
        up = ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(self.attention)]
        return {
            "sample_size": side, "in_channels": channels, "out_channels": channels,
            "layers_per_block": self.layers_per_block,
            "block_out_channels": list(self.block_out_channels),
            "down_block_types": down, "up_block_types": up,
            "attention_head_dim": self.attention_head_dim, "norm_num_groups": self.norm_num_groups,
            "resnet_time_scale_shift": "scale_shift",
        }  # fmt: skip

    def levels(self) -> Tensor:
        """ᾱ_t, (T,)."""
        return alpha_bars(self.timesteps, self.beta_schedule, self.beta_start, self.beta_end, self.shift)


class Trainer:
    """The UNet, its optimiser and averages, and where it stands."""

    def __init__(self, config: UNetConfig, arguments: dict[str, Any], dimensions: int, device: str) -> None:
        torch.manual_seed(config.seed)
        self.config, self.arguments, self.dimensions = config, arguments, dimensions
        self.device = torch.device(device)
        self.network = IdentityUNet(arguments, dimensions)
        nn.Module.to(self.network, self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, betas=config.betas,
            weight_decay=config.weight_decay, fused=device == "cuda",
        )  # fmt: skip
        self.average = Average(self.network, config.average)
        self.generator = Generator(self.device).manual_seed(config.seed)
        self.alpha_bar = config.levels().to(self.device)
        self.forward: Any = self.network
        self.importance = torch.ones(1, 1, 1, 1, device=self.device)  # of each latent (``unet_start``)
        self.likeness: IdentityLoss | None = None
        self.step = 0
        self.fresh = 0  # steps since the optimiser last began anew

    def learning_rate(self, share: float, decay: float) -> float:
        """Linear warm-up, a plateau, and from ``decay`` of the budget on a cosine to nothing."""
        c = self.config
        warm = min(1.0, (self.fresh + 1) / max(1, c.warm_up))
        fall = max(0.0, (share - decay) / (1 - decay)) if decay < 1 else 0.0
        return c.learning_rate * warm * 0.5 * (1 + float(np.cos(np.pi * fall)))

    def draw(self, bank: Bank, odds: Tensor, friends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A batch: normalised latents, what of them counts, and embeddings of whom they show."""
        c, g = self.config, self.generator
        index = torch.multinomial(odds, c.batch, replacement=True, generator=g)

        def any_of(count: int) -> Tensor:
            return torch.randint(count, (c.batch,), generator=g, device=self.device)

        variant = any_of(bank.latents.shape[1])
        other = friends[index, any_of(friends.shape[1])]
        swapped = torch.rand(c.batch, generator=g, device=self.device) < c.swap_photograph
        who = bank.views[torch.where(swapped, other, index), any_of(bank.views.shape[1])]
        return bank.normalised(index, variant), bank.covered[index, variant], who

    def train_step(self, z0: Tensor, covered: Tensor, who: Tensor, rate: float) -> Tensor:
        """One step of the optimiser; returns the loss, on the device."""
        c, g = self.config, self.generator
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        t = torch.randint(c.timesteps, (len(z0),), generator=g, device=self.device)
        noise = torch.randn(z0.shape, generator=g, device=self.device)
        dropped = torch.rand(len(z0), generator=g, device=self.device) < c.drop_identity
        a = self.alpha_bar[t][:, None, None, None]
        z = (a**0.5 * z0 + (1 - a) ** 0.5 * noise).contiguous(memory_format=torch.channels_last)
        wanted = target_of(c.prediction, z0, noise, a)
        weight = loss_weight(c.prediction, self.alpha_bar[t], c.min_snr)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            said = self.forward(z, t, who, dropped)
        loss = masked_loss(said.float(), wanted, covered * self.importance, weight)
        if self.likeness is not None:
            counts = ~dropped & (self.alpha_bar[t].logit() > c.likeness_from)
            loss = loss + c.likeness * self.unlike(z, said.float(), a, who, counts)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), c.clip)
        self.optimiser.step()
        self.step += 1
        self.fresh += 1
        self.average.update(self.network.parameters(), self.step)
        return loss.detach()

    def unlike(self, z: Tensor, said: Tensor, a: Tensor, who: Tensor, counts: Tensor) -> Tensor:
        """The identity loss of the first rows of a batch, mean over those that ``counts``."""
        assert self.likeness is not None
        some = slice(self.config.likeness_rows)
        clean = clean_of(self.config.prediction, z[some], said[some], a[some])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            found: Tensor = self.likeness(clean, who[some])
        told = counts[some].float()
        return (found * told).sum() / told.sum().clamp(min=1)

    def save(self, folder: Path, facts: dict[str, Any], *, whole: bool) -> None:
        """``folder/travel``: weights and averages as fp16. ``whole``: ``folder/whole``, to the last bit."""
        names = [name for name, _ in self.network.named_parameters()]
        weights = {f"weights.{n}": p for n, p in self.network.named_parameters()}
        averages = {f"average.{n}": p for n, p in zip(names, self.average.tensors, strict=True)}
        facts = {**facts, "step": self.step, "arguments": self.arguments, "dimensions": self.dimensions}
        checkpoint.save(folder / "travel", {k: v.half() for k, v in (weights | averages).items()}, facts)
        if whole:
            state = weights | averages | {"generator": self.generator.get_state()}
            for name, p in self.network.named_parameters():
                for key, value in self.optimiser.state[p].items():
                    state[f"optimiser.{key}.{name}"] = value
            checkpoint.save(folder / "whole", state, {**facts, "fresh": self.fresh})

    def load(self, folder: Path) -> None:
        """What ``save`` wrote: the whole if it is there, else what travelled, with a new optimiser."""
        whole = checkpoint.exists(folder / "whole")
        state, facts = checkpoint.load(folder / ("whole" if whole else "travel"))
        if facts["arguments"] != self.arguments:
            raise SettingsError(f"{folder}: the checkpoint is of another UNet than the recipe's")
        with torch.no_grad():
            for (name, p), average in zip(self.network.named_parameters(), self.average.tensors, strict=True):
                p.copy_(state[f"weights.{name}"])
                average.copy_(state[f"average.{name}"])
        self.step = int(facts["step"])
        if not whole:
            return
        self.fresh = int(facts["fresh"])
        self.generator.set_state(state["generator"])
        for name, p in self.network.named_parameters():
            keys = ("step", "exp_avg", "exp_avg_sq")
            values = {k: state[f"optimiser.{k}.{name}"] for k in keys}
            self.optimiser.state[p] = {
                k: v.to(self.device) if k != "step" or self.device.type == "cuda" else v
                for k, v in values.items()
            }
