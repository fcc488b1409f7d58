"""What the loops of autoencoder and guidance decoder share: budget, averages, states, batches."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import OutputExistsError, SettingsError
from . import checkpoint
from .log import Budget, say

ROOT = Path(__file__).resolve().parents[1]


class SpentBudget(Budget):
    """A budget part of which earlier runs have spent: seconds and steps count over all of them."""

    def __init__(self, seconds: float | None, steps: int | None, *, done: int = 0, spent: float = 0) -> None:
        self._spent = spent
        super().__init__(seconds, steps, done=done)

    @property
    def elapsed(self) -> float:
        """Seconds spent in all runs."""
        return self._spent + super().elapsed


def at_root(path: str) -> Path:
    """A path of the recipe: relative ones start at the repository."""
    return ROOT / path


def device_of(name: str) -> torch.device:
    """The device, made ready for convolutions of fixed shapes.

    Raises:
        SettingsError: CUDA asked for where there is none.
    """
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise SettingsError(f"--device {name}: torch finds no CUDA device; use --device cpu")
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    return torch.device(name)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def random_of(device: torch.device, seed: int, step: int) -> torch.Generator:
    """A step's own random numbers: a run that is resumed draws what one without a break draws."""
    return torch.Generator(device).manual_seed((seed << 40) + step)


def draw(images: Tensor, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` of (N, H, W, 3) uint8 as (count, 3, H, W) float32 in [0, 1], and which they are."""
    rows = torch.randint(len(images), (count,), generator=random, device=images.device)
    return as_float(images[rows]), rows


def as_float(images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32 in [0, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def rate_at(share: float, step: int, warm_up: int, last: float = 0.02) -> float:
    """The learning rate's factor: a linear rise over ``warm_up`` steps, then a cosine to ``last``."""
    return min(1.0, (step + 1) / max(warm_up, 1)) * (
        last + (1 - last) * 0.5 * (1 + math.cos(math.pi * share))
    )


def set_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Each group's own ``base`` rate times ``factor``."""
    for group in optimiser.param_groups:
        group["lr"] = group["base"] * factor


@torch.no_grad()
def average_into(averaged: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of the weights; shorter at the beginning."""
    decay = min(decay, (step + 1) / (step + 10))
    own, new = ([p.detach() for p in m.parameters()] for m in (averaged, model))
    torch._foreach_lerp_(own, new, 1 - decay)


def state_of(
    parts: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Weights and the optimisers' moments as one flat dict, for ``checkpoint.save``."""
    tensors = {f"{name}/{key}": v for name, part in parts.items() for key, v in part.state_dict().items()}
    for name, optimiser in optimisers.items():
        for index, values in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{key}": torch.as_tensor(v) for key, v in values.items()}
    return tensors


def restore(
    tensors: Mapping[str, Tensor],
    parts: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """What ``state_of`` gave, back into networks and optimisers of the same shapes.

    Raises:
        SettingsError: another architecture's state.
    """
    for name, part in parts.items():
        mine = {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}
        try:
            part.load_state_dict(mine)
        except RuntimeError as error:
            raise SettingsError(
                f"--resume: the checkpoint's {name} has another shape than the recipe says; "
                f"resume with the recipe it began with ({str(error).splitlines()[0]})"
            ) from error
    for name, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"{name}/"):
                index, what = key.removeprefix(f"{name}/").split("/")
                state.setdefault(int(index), {})[what] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        for parameter, values in optimiser.state.items():
            for what, value in values.items():  # laid out as the weights are: the fused kernel wants that
                if value.shape == parameter.shape:
                    values[what] = torch.empty_like(parameter).copy_(value)


class Trains(Protocol):
    """What ``train`` runs: ``spent`` is the seconds of all runs so far."""

    step: int
    spent: float
    save_every: float

    def train_step(self, share: float) -> dict[str, Tensor]: ...

    def save(self, folder: Path) -> None: ...


def train(trainer: Trains, out: Path, seconds: float | None, steps: int | None) -> None:
    """Steps until the budget of all runs is spent; a line now and then; saves now and then and at the end."""
    budget = SpentBudget(seconds, steps, done=trainer.step, spent=trainer.spent)
    saved = time.monotonic()
    while budget.left():
        losses = trainer.train_step(budget.share)
        budget.step, trainer.spent = trainer.step, budget.elapsed
        if (line := budget.due()) is not None:
            left = f"  {seconds - budget.elapsed:.0f} s left" if seconds is not None else ""
            say(f"{line}{left}  " + "  ".join(f"{name} {float(v):.4f}" for name, v in losses.items()))
        if time.monotonic() - saved > trainer.save_every:
            trainer.save(out)
            saved = time.monotonic()
    trainer.save(out)


def refuse_mixing(out: Path, resume: bool) -> None:
    """Whether ``out`` suits a new training, or one that goes on.

    Raises:
        OutputExistsError: it holds a training that nobody asked to go on with.
        SettingsError: it holds none to go on with.
    """
    found = any(checkpoint.exists(out / name) for name in ("travel", "whole"))
    if found and not resume:
        raise OutputExistsError(f"--out {out}: holds a training already; --resume goes on with it")
    if resume and not found:
        raise SettingsError(f"--resume: {out} holds no training to go on with")
