"""How well the small decoder stands for the full one: pictures, embeddings, parses, and the gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .autoencoder_report import psnr, write_report, write_sheet
from .log import say
from .perception import Perception

ROWS = 12  # of the sheet


def identity_gradient(decode: nn.Module, z: Tensor, towards: Tensor, see: Perception) -> Tensor:
    """What guidance would do: the gradient of the cosine to ``towards`` (B, D), flat (B, C·h·w)."""
    z = z.detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad((see.embed(decode(z)) * towards).sum(), z)
    return gradient.flatten(1)


@torch.no_grad()
def compare(
    full: nn.Module, small: nn.Module, latents: Tensor, see: Perception, batch: int = 16
) -> dict[str, float]:
    """Means over (N, C, h, w) latents, small against the full decoder's halved picture.

    ``psnr`` in dB, ``identity`` (cosine of the embeddings), ``parse`` (share of pixels of the same class) and
    ``gradient``: the cosine between the two gradients of an identity term, towards the row before.
    """
    found: dict[str, list[Tensor]] = {"psnr": [], "identity": [], "parse": [], "gradient": []}
    for begin in range(0, len(latents), batch):
        z = latents[begin : begin + batch]
        picture, made = full(z), small(z)
        halved = F.avg_pool2d(picture, 2)
        found["psnr"].append(psnr(made.clamp(0, 1), halved.clamp(0, 1)))
        theirs = see.embed(picture)
        found["identity"].append((see.embed(made) * theirs).sum(1))
        same = see.parse(made).argmax(1) == see.parse(halved).argmax(1)
        found["parse"].append(same.float().mean((1, 2)))
        wanted = theirs.roll(1, 0)
        a, b = (identity_gradient(d, z, wanted, see) for d in (full, small))
        found["gradient"].append(F.cosine_similarity(a, b))
    return {name: round(float(torch.cat(v).mean()), 4) for name, v in found.items()}


def report(
    out: Path,
    facts: dict[str, Any],
    full: nn.Module,
    small: nn.Module,
    see: Perception,
    latents: dict[str, Tensor],
) -> None:
    """``report.json`` and ``sheet.png``: for each kind of latents full | small, at the small one's size."""
    columns = []
    for name, z in latents.items():
        facts[name] = compare(full, small, z, see)
        say(f"{name}: {facts[name]}")
        with torch.no_grad():
            pair = F.avg_pool2d(full(z[:ROWS]), 2), small(z[:ROWS])
        for x in pair:
            columns.append((x.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8))
    write_sheet(out / "sheet.png", columns)
    write_report(out / "report.json", facts)
