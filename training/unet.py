"""Stage ``unet``: the diffusion model, on latents of faces, told in most steps whose face it is.

    python -m ldvid.training unet --config training/config.toml --data SHARDS --out RUN
        --device cuda --compile --seconds 1500

Noise levels are shifted towards noise (latents of a whole face are told apart long after their values drown),
it predicts v, losses are weighted by min-SNR, its weights are averaged. A run that was stopped goes on with
``--resume``; ``--decay`` says at which share of this run the learning rate begins to fall, 1: not at all, for
a run that another one is to continue.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from ..errors import SettingsError
from ..stages.swap.identity_unet import IdentityUNet
from . import checkpoint
from .config import read_section
from .identity_loss import IdentityLoss
from .latents import Bank, Embedder, base_pack, build_bank, companions, open_autoencoder
from .log import Budget, say
from .shards import Faces, read
from .trainer import device_of, refuse_mixing
from .unet_start import importance, start_from
from .unet_trainer import Trainer, UNetConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the stage."""
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--pack", default="packs/starter", help="whose autoencoder and identity network")
    parser.add_argument("--autoencoder", type=Path, help="folder of a compact one instead")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--start", help="folder of a pack whose UNet to start from, instead of from nothing")
    parser.add_argument("--seconds", type=float, help="instead of the recipe's budget")
    parser.add_argument("--decay", type=float, help="instead of the recipe's")
    parser.add_argument("--resume", action="store_true", help="go on with what lies in --out")
    parser.add_argument("--compile", action="store_true", help="torch.compile: slower start, faster steps")


def odds_of(faces: Faces, weights: dict[str, float], device: torch.device) -> Tensor:
    """How often each face is drawn, (N,).

    Raises:
        SettingsError: a weight names a set that isn't there, or nothing is left.
    """
    unknown = set(weights) - set(faces.sets)
    if unknown:
        raise SettingsError(f"[unet] weights: no faces of set {', '.join(sorted(unknown))}")
    odds = torch.tensor([weights.get(s, 1.0) for s in faces.sets], device=device)
    if not odds.sum() > 0:
        raise SettingsError("[unet] weights: every set has weight 0")
    return odds


def run(args: argparse.Namespace) -> None:
    """The stage."""
    began = time.monotonic()
    config = read_section(args.config, "unet", UNetConfig)
    refuse_mixing(args.out, args.resume)
    device = device_of(args.device)
    faces = read(args.data, "train", limit=config.limit)
    pack = base_pack(args.pack)
    say(f"{len(faces)} faces read after {time.monotonic() - began:.0f} s")
    embedder = Embedder(pack, device)
    bank = build_bank(
        faces, open_autoencoder(pack, args.autoencoder), embedder,
        Generator(device).manual_seed(config.seed + 1), variants=config.variants, views=config.views,
        scale=config.scale, shift=config.shift_by, rotate=config.rotate,
    )  # fmt: skip
    friends = companions(bank.views, config.same_person)
    paired = (friends != torch.arange(len(friends), device=device)[:, None]).any(1).sum()
    say(
        f"{tuple(bank.latents.shape)} latents after {time.monotonic() - began:.0f} s; of {int(paired)} faces "
        "there is another photograph of the same person"
    )
    trainer = Trainer(
        config,
        config.arguments(bank.latents.shape[2], bank.latents.shape[-1]),
        bank.views.shape[-1],
        args.device,
    )
    trainer.importance = importance(pack.manifest, bank.latents.shape[-1], config.face_weight, device)
    if config.likeness and args.autoencoder is not None:
        raise SettingsError(
            "[unet] likeness looks through the pack's guidance decoder: leave --autoencoder out"
        )
    if config.likeness:
        trainer.likeness = IdentityLoss(pack, embedder, bank.mean, bank.std)
    if args.start and not args.resume:
        start_from(trainer, base_pack(args.start))
        say(f"starting from {args.start}")
    if args.resume:
        trainer.load(args.out)
        say(f"going on after step {trainer.step}")
    if args.compile:
        trainer.forward = torch.compile(trainer.network, dynamic=False)
    facts = {
        "config": json.loads(config.model_dump_json()),
        "latent_mean": bank.mean.tolist(),
        "latent_std": bank.std.tolist(),
    }
    train(trainer, bank, odds_of(faces, config.weights, device), friends, args, facts)


def train(
    trainer: Trainer,
    bank: Bank,
    odds: Tensor,
    friends: Tensor,
    args: argparse.Namespace,
    facts: dict[str, Any],
) -> None:
    """Steps until the budget is spent; saves now and then, and at the end."""
    config = trainer.config
    seconds = args.seconds if args.seconds is not None else config.seconds
    budget = Budget(seconds, None if args.seconds else config.steps, done=trainer.step)
    decay = config.decay if args.decay is None else args.decay
    total, count, saved = torch.zeros((), device=trainer.device), 0, time.monotonic()
    while budget.left():
        rate = trainer.learning_rate(budget.share, decay)
        total += trainer.train_step(*trainer.draw(bank, odds, friends), rate)
        count, budget.step = count + 1, trainer.step
        if (line := budget.due()) is not None:
            say(f"{line}  loss {float(total) / count:.4f}  rate {rate:.2e}")
            total.zero_()
            count = 0
        if time.monotonic() - saved > config.save_every:
            trainer.save(args.out, facts, whole=trainer.device.type == "cpu")
            saved = time.monotonic()
    trainer.save(args.out, facts, whole=trainer.device.type == "cpu")
    say(f"done after step {trainer.step}, {budget.elapsed:.0f} s")


def load_average(folder: Path, device: str) -> tuple[IdentityUNet, dict[str, Any]]:
    """The averaged UNet of a run, ready for use, and the run's facts; PackError if there is none."""
    state, facts = checkpoint.load(folder / "travel")
    network = IdentityUNet(facts["arguments"], facts["dimensions"])
    network.load_state_dict(
        {k.removeprefix("average."): v.float() for k, v in state.items() if k.startswith("average.")}
    )
    return network.to(device).eval().requires_grad_(False), facts
