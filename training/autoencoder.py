"""Stage ``autoencoder``: the tiny autoencoder, tuned to faces, around a bottleneck of few channels.

    python -m ldvid.training autoencoder --config training/config.toml --data SHARDS --out RUN --device cuda

It begins as the best linear projection of the tiny autoencoder's latents. Pixels, a Laplacian pyramid, the
features of frozen networks and, in the second half, a discriminator each have a fixed share of the gradient.
Latents are disturbed by noise before they are decoded, as a diffusion model's are, and every so often
decoded at half the size (Kouzelis et al. 2025, arXiv 2502.09509), which makes them smoother to model.

``RUN`` then holds ``encoder.safetensors`` and ``decoder.safetensors`` (fp16, of the averaged weights),
``report.json`` (latent mean and deviation, PSNR, SSIM, identity by set), ``sheet.png``, and the training's
state: ``travel`` in fp16 and, on a CPU, ``whole`` to the last bit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from .autoencoder_report import report
from .autoencoder_trainer import AutoencoderConfig, Trainer, latent_moments
from .config import read_section
from .log import say
from .shards import read
from .trainer import device_of, refuse_mixing, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the stage."""
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--channels", type=int, help="instead of the recipe's latent_channels")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, help="instead of the recipe's budget, over all runs")
    parser.add_argument("--resume", action="store_true", help="go on with what lies in --out")
    parser.add_argument("--compile", action="store_true", help="torch.compile: slower start, faster steps")
    parser.add_argument("--portraits", type=Path, help="further pictures to report on (examples/face*.png)")


def run(args: argparse.Namespace) -> None:
    """The stage."""
    config = read_section(args.config, "autoencoder", AutoencoderConfig)
    if args.channels is not None:
        config = config.model_copy(update={"latent_channels": args.channels})
    refuse_mixing(args.out, args.resume)
    device, began = device_of(args.device), time.monotonic()
    faces = read(args.data, "train", limit=config.limit)
    images = torch.from_numpy(faces.images).to(device)
    trainer = Trainer(config, device, images)
    say(
        f"{len(faces)} faces, {config.latent_channels} channels, ready after {time.monotonic() - began:.0f} s"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    if args.resume:
        trainer.load(args.out)
        say(f"going on after step {trainer.step}")
    if args.compile:
        trainer.compile()
    seconds = args.seconds if args.seconds is not None else config.seconds
    train(trainer, args.out, seconds, None if args.seconds is not None else config.steps)
    trainer.averaged.save(args.out / "encoder.safetensors", args.out / "decoder.safetensors")
    mean, covariance = latent_moments(trainer.averaged.encoder, images)
    held = read(args.data, "held", limit=config.limit)
    facts = {
        "latent_channels": config.latent_channels,
        "latent_mean": mean.tolist(),
        "latent_std": covariance.diagonal().sqrt().tolist(),
        "steps": trainer.step,
        "seconds": round(trainer.spent, 1),
    }
    report(args.out, facts, trainer.averaged, trainer.tiny, trainer.perception, held, args.portraits)
