"""The face parser: facexlib's BiSeNet with eleven classes, on the shards' labels.

    python -m ldvid.training parser --config training/config.toml --data SHARDS --out RUN [--device cuda]

It must hold at 256 and at 128 pixels (guidance parses the half-size preview), on the blurred estimates
of early diffusion steps, and must not call face what covers a face. Hence: another size for each batch,
``augment.early_estimate``, ``occluders.occlude``. Loss: weighted cross-entropy of the three heads
(1, ½, ½; Yu et al. 2018, arXiv 1808.00897, section 3.3) plus a soft Dice term of the first
(Milletari et al. 2016, arXiv 1606.04797), which small classes need. An average of the weights is kept;
it is what is reported on and exported.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from ..errors import OutputExistsError, SettingsError
from . import checkpoint
from .augment import colour, degrade, early_estimate, jitter
from .bisenet import initial, load_trained, loss_of, normalised, placed, read_state, resized
from .config import Section, read_section
from .log import say
from .occluders import KINDS, USUAL, occlude
from .parser_report import Baseline, load_baseline, write_report
from .shards import CLASSES, IGNORE, Faces, read
from .trainer import (
    SpentBudget,
    as_float,
    at_root,
    autocast,
    device_of,
    random_of,
    rate_at,
    restore,
    set_rate,
    state_of,
)

# In the cross-entropy; 1 where nothing is said.
WEIGHTS = {
    "right_brow": 2.0, "left_brow": 2.0, "right_eye": 3.0, "left_eye": 3.0, "nose": 1.2,
    "upper_lip": 2.5, "lower_lip": 2.5, "mouth": 3.0,
}  # fmt: skip


class ParserConfig(Section):
    """``[parser]``. ``sets`` are shares of a batch, drawn with return; without any, all pictures alike."""

    seed: int = 0
    seconds: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=3020, gt=0)
    batch: int = Field(default=96, ge=2)  # one picture alone leaves BatchNorm no variance
    sizes: tuple[int, ...] = (128, 160, 192, 256)
    rate: float = 1e-3
    weight_decay: float = 1e-3
    warm_up: int = 100
    average: float = Field(default=0.998, ge=0, lt=1)
    init: Literal["pack", "scratch"] = "pack"
    pack: str = "training/start"
    sets: dict[str, float] = Field(default_factory=dict)
    class_weights: dict[str, float] = Field(default_factory=lambda: dict(WEIGHTS))
    dice: float = 0.5
    scale: float = 0.25
    shift: float = 0.08
    rotate: float = 20.0
    occluders: dict[str, float] = Field(default_factory=lambda: dict(USUAL))
    degraded: float = 0.4
    early: float = 0.3
    save_every: float = 120.0
    limit: int | None = None
    evaluate: int | None = None  # so many held-out faces; all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the stage."""
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of shards with labels")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, help="instead of the recipe's budget, over all runs")
    parser.add_argument("--resume", action="store_true", help="go on with what lies in --out")
    parser.add_argument("--compile", action="store_true", help="torch.compile: slower start, faster steps")
    parser.add_argument("--evaluate-only", action="store_true", help="only the report on what lies in --out")


def augmented(
    images: Tensor, labels: Tensor, generator: Generator, config: ParserConfig, size: int
) -> tuple[Tensor, Tensor]:
    """(B, 3, 256, 256) in [0, 1] and labels → the same at ``size``, as the parser may meet them."""
    c = config
    moved = jitter(images, generator, scale=c.scale, shift=c.shift, rotate=c.rotate, labels=labels)
    hidden = occlude(moved.images, cast(Tensor, moved.labels), generator, c.occluders)
    x = colour(hidden.images, generator, saturation=0.3, tint=0.03)
    x = early_estimate(degrade(x, generator, share=c.degraded), generator, share=c.early)
    return resized(x, hidden.labels, size)


def shares(sets: list[str], wanted: dict[str, float]) -> Tensor:
    """How likely each picture is to be drawn, (N,) float32; sets that are not there are left out.

    Raises:
        SettingsError: a set without a share, or none with any.
    """
    if not wanted:
        return torch.full((len(sets),), 1 / len(sets))
    if lost := sorted(set(sets) - set(wanted)):
        raise SettingsError(f"[parser.sets]: no share for {', '.join(lost)}; add it, or 0 to leave it out")
    counts = {name: sets.count(name) for name in set(sets)}
    odds = torch.tensor([wanted[name] / counts[name] for name in sets])
    if not odds.sum() > 0:
        raise SettingsError("[parser.sets]: no set of these shards has a share above 0")
    return odds / odds.sum()


class Trainer:
    """Network, average, optimiser, data on the device; ``take`` is one step."""

    def __init__(self, config: ParserConfig, device: torch.device, faces: Faces) -> None:
        assert faces.labels is not None
        self.config, self.device, self.step, self.spent = config, device, 0, 0.0
        if unknown := sorted(set(config.class_weights) - set(CLASSES)):
            raise SettingsError(f"[parser.class_weights]: no class {', '.join(unknown)}")
        if unknown := sorted(set(config.occluders) - set(KINDS)):
            raise SettingsError(f"[parser.occluders]: no kind {', '.join(unknown)}")
        self.images = torch.from_numpy(faces.images).to(device)
        # what lies outside a photo is filled in somehow: it says nothing
        labels = np.where(faces.inside > 0, faces.labels, np.uint8(IGNORE))
        self.labels = torch.from_numpy(labels).to(device)
        self.odds = shares(faces.sets, config.sets).to(device)
        self.weights = torch.tensor([config.class_weights.get(n, 1.0) for n in CLASSES], device=device)
        self.net = placed(
            initial(at_root(config.pack) if config.init == "pack" else None, config.seed), device
        ).train()
        self.averaged = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), config.rate, weight_decay=config.weight_decay, fused=device.type == "cuda"
        )
        for group in self.optimiser.param_groups:
            group["base"] = config.rate
        self._forward: nn.Module = self.net
        floats = [
            [t for t in n.state_dict().values() if t.is_floating_point()] for n in (self.averaged, self.net)
        ]
        self._own, self._new = floats

    def compile(self) -> None:
        """Compile the network; each size compiles once."""
        self._forward = cast(nn.Module, torch.compile(self.net))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The pictures and labels of a step, which depend on seed and step alone."""
        c, random = self.config, random_of(self.device, self.config.seed, step)
        rows = torch.multinomial(self.odds, c.batch, replacement=True, generator=random)
        size = c.sizes[int(np.random.default_rng((c.seed, step)).integers(len(c.sizes)))]
        with torch.no_grad():
            return augmented(as_float(self.images[rows]), self.labels[rows], random, c, size)

    def take(self, share: float) -> Tensor:
        """One step at this share of the budget; the loss, still on the device."""
        images, labels = self.batch(self.step)
        set_rate(self.optimiser, rate_at(share, self.step, self.config.warm_up))
        with autocast(self.device):
            heads = self._forward(normalised(images).contiguous(memory_format=torch.channels_last))
        loss = loss_of(heads, labels, self.weights, self.config.dice)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimiser.step()
        # BatchNorm's statistics are averaged as the weights are
        decay = min(self.config.average, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(self._own, self._new, 1 - decay)
        self.step += 1
        return loss.detach()

    def save(self, folder: Path) -> None:
        """State and average, in pieces."""
        tensors = state_of({"net": self.net, "averaged": self.averaged}, {"optimiser": self.optimiser})
        facts = {"stage": "parser", "classes": CLASSES, "step": self.step, "seconds": round(self.spent, 2)}
        checkpoint.save(folder, tensors, {**facts, "config": self.config.model_dump(mode="json")})

    def load(self, folder: Path) -> None:
        """What ``save`` wrote. SettingsError where it is another stage's."""
        tensors, facts = read_state(folder)
        restore(tensors, {"net": self.net, "averaged": self.averaged}, {"optimiser": self.optimiser})
        self.step, self.spent = int(facts["step"]), float(facts["seconds"])


def train(trainer: Trainer, out: Path, seconds: float | None, steps: int | None) -> None:
    """Steps until the budget, earlier runs included, is spent; saved now and then, and at the end.

    Raises:
        SettingsError: the loss is no number any more.
    """
    budget = SpentBudget(seconds, steps, done=trainer.step, spent=trainer.spent)
    saved = time.monotonic()
    while budget.left():
        loss = trainer.take(budget.share)
        budget.step, trainer.spent = trainer.step, budget.elapsed
        if line := budget.due():
            if not torch.isfinite(loss):
                raise SettingsError(f"step {trainer.step}: the loss is {float(loss)}; lower [parser] rate")
            left = f"  {max(seconds - budget.elapsed, 0):.0f} s left" if seconds else ""
            say(f"{line}  loss {float(loss):.4f}{left}")
        if time.monotonic() - saved > trainer.config.save_every:
            trainer.save(out)
            saved = time.monotonic()
    trainer.save(out)


def run(args: argparse.Namespace) -> None:
    """The stage."""
    config = read_section(args.config, "parser", ParserConfig)
    if checkpoint.exists(args.out) and not (args.resume or args.evaluate_only):
        raise OutputExistsError(f"--out {args.out}: holds a run; go on with --resume, or name another folder")
    device = device_of(args.device)
    held = read(args.data, "held", labels=True, limit=config.evaluate)
    if not args.evaluate_only:
        faces = read(args.data, "train", labels=True, limit=config.limit)
        trainer = Trainer(config, device, faces)
        say(f"{len(faces)} faces of {len(set(faces.sets))} sets on {device}")
        args.out.mkdir(parents=True, exist_ok=True)
        if args.resume:
            trainer.load(args.out)
            say(f"going on after step {trainer.step}, {trainer.spent:.0f} s")
        if args.compile:
            trainer.compile()
        seconds = args.seconds if args.seconds is not None else config.seconds
        train(trainer, args.out, seconds, None if args.seconds is not None else config.steps)
        say(f"{trainer.step} steps in {trainer.spent:.0f} s")
        del trainer
    baseline: Baseline = load_baseline(at_root(config.pack), device)
    for line in write_report(args.out, load_trained(args.out, device), baseline, held, device, config.seed):
        say(line)
