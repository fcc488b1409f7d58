"""Stage ``evaluate``: how well the UNet knows faces, by noise level, and what it draws when left alone.

    python -m ldvid.training evaluate --config training/config.toml --data SHARDS --out RUN [--device cuda]

Writes ``evaluation.json`` and sheets into the run's folder: ``samples.png`` of nobody in particular,
``told.png`` held-out faces in the first row and below each what the UNet draws of its identity.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor

from ..metrics.frechet import frechet_distance
from ..stages.swap.autoencoder import TinyAutoencoder
from ..stages.swap.identity_unet import IdentityUNet
from . import unet
from .config import read_section
from .diffusion import clean_of, masked_loss, sample
from .latents import Bank, Embedder, base_pack, build_bank, open_autoencoder
from .log import say
from .shards import read
from .unet_trainer import UNetConfig

LOG_SNRS = (4.0, 2.0, 0.0, -2.0, -4.0, -6.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the stage: those of ``unet`` where they mean the same."""
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--pack", default="packs/starter")
    parser.add_argument("--autoencoder", type=Path)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--count", type=int, default=48, help="samples on the sheets and for the distance")
    parser.add_argument("--steps", type=int, default=50, help="of DDIM")
    parser.add_argument("--limit", type=int, help="held-out faces to measure on; default all")


@torch.no_grad()
def losses_by_level(
    network: IdentityUNet, bank: Bank, config: UNetConfig, facts: dict[str, object], batch: int = 64
) -> dict[str, dict[str, float]]:
    """Mean squared error of ẑ_0 on the held-out latents, told whose face it is and not, by log SNR.

    Of ẑ_0 in units of the latents' deviation, at the level next to each of ``LOG_SNRS``: so runs compare
    whatever their noise levels and predictions are, as long as their latents are the same.
    """
    device = bank.latents.device
    alpha_bar = config.levels().to(device)
    mean, std = (torch.tensor(facts[k], device=device)[:, None, None] for k in ("latent_mean", "latent_std"))
    found: dict[str, dict[str, float]] = {"told": {}, "nobody": {}}
    for level in LOG_SNRS:
        t = int((torch.log(alpha_bar / (1 - alpha_bar)) - level).abs().argmin())
        a = alpha_bar[t]
        generator = Generator(device).manual_seed(t)
        totals = {"told": 0.0, "nobody": 0.0}
        for begin in range(0, len(bank.latents), batch):
            z0 = (bank.latents[begin : begin + batch, 0].float() - mean) / std
            covered = bank.covered[begin : begin + batch, 0]
            noise = torch.randn(z0.shape, generator=generator, device=device)
            z = a**0.5 * z0 + (1 - a) ** 0.5 * noise
            step = torch.full((len(z),), t, device=device)
            # Another view than the latent's own pixels, as a source is another picture than the target.
            for name, who in (("told", bank.views[begin : begin + batch, -1]), ("nobody", None)):
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    said = network(z, step, who).float()
                clean = clean_of(config.prediction, z, said, a)
                loss = masked_loss(clean, z0, covered, torch.ones(len(z), device=device))
                totals[name] += float(loss) * len(z)
        for name, total in totals.items():
            found[name][f"{level:g}"] = round(total / len(bank.latents), 5)
    return found


def pictures(autoencoder: TinyAutoencoder, z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B, 3, S, S) RGB in [0, 1] of normalised latents."""
    parts = [autoencoder.decode(part * std + mean) for part in z.split(16)]  # type: ignore[no-untyped-call]
    return torch.cat(parts).clamp(0, 1)


def sheet(images: Tensor, columns: int, path: Path) -> None:
    """A contact sheet as PNG: (N, 3, S, S) RGB in [0, 1], row by row."""
    rows = math.ceil(len(images) / columns)
    blank = images.new_zeros((rows * columns - len(images), *images.shape[1:]))
    grid = torch.cat([images, blank]).reshape(rows, columns, *images.shape[1:])
    side = images.shape[-1]
    whole = grid.permute(0, 3, 1, 4, 2).reshape(rows * side, columns * side, 3)
    cv2.imwrite(str(path), (whole.cpu().numpy()[..., ::-1] * 255).round().astype(np.uint8))


@torch.no_grad()
def run(args: argparse.Namespace) -> None:
    """The stage."""
    config = read_section(args.config, "unet", UNetConfig)
    device = torch.device(args.device)
    network, facts = unet.load_average(args.out, args.device)
    config = UNetConfig.model_validate(facts["config"])
    pack = base_pack(args.pack)
    autoencoder, embedder = open_autoencoder(pack, args.autoencoder), Embedder(pack, device)
    faces = read(args.data, "held", limit=args.limit)
    bank = build_bank(
        faces, autoencoder, embedder, Generator(device).manual_seed(7), variants=1, views=2,
        scale=0.0, shift=0.0, rotate=0.0,
    )  # fmt: skip
    report: dict[str, object] = {
        "step": facts["step"],
        "held": len(faces),
        "clean_error": losses_by_level(network, bank, config, facts),
    }
    mean, std = (torch.tensor(facts[k], device=device)[:, None, None] for k in ("latent_mean", "latent_std"))
    template = torch.tensor(pack.manifest.template, device=device)[None]
    shape, levels = tuple(bank.latents.shape[2:]), config.levels().to(device)
    drawn = []
    for begin in range(0, args.count, 48):
        some = min(48, args.count - begin)
        z = sample(
            network, (some, *shape), levels, config.prediction,
            Generator(device).manual_seed(100 + begin), steps=args.steps,
        )  # fmt: skip
        drawn.append(pictures(autoencoder, z, mean, std))
    alone = torch.cat(drawn)
    sheet(alone[:48], 8, args.out / "samples.png")
    held = torch.from_numpy(faces.images).to(device).permute(0, 3, 1, 2).float() / 255
    features = embedder(alone, template.expand(len(alone), 5, 2))
    report["distance"] = {
        "samples": len(alone),
        "identity_features": round(
            frechet_distance(features.cpu().numpy(), bank.views[:, 0].cpu().numpy()), 4
        ),
    }
    # Faces spread over the sets: the shards' order is that of a hash.
    chosen = slice(0, 8)
    rows, likeness = [F.interpolate(held[chosen], shape[-1] * 8)], {}
    for scale in (1.0, 2.0, 4.0):
        z = sample(
            network, (len(rows[0]), *shape), levels, config.prediction, Generator(device).manual_seed(5),
            steps=args.steps, identity=bank.views[chosen, -1], scale=scale,
        )  # fmt: skip
        rows.append(pictures(autoencoder, z, mean, std))
        who = embedder(rows[-1], template.expand(len(z), 5, 2))
        likeness[f"{scale:g}"] = round(float((who * bank.views[chosen, 0]).sum(1).mean()), 4)
    sheet(torch.cat(rows), len(rows[0]), args.out / "told.png")
    report["likeness_by_scale"] = likeness
    text = json.dumps(report, indent=1)
    (args.out / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    say(text)
