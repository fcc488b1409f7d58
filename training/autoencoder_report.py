"""How good an autoencoder is: PSNR, SSIM and identity by set, and a sheet to look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..stages.align import ARCFACE_TEMPLATE
from ..stages.swap.autoencoder import TinyAutoencoder
from ..stages.swap.views import arcface_theta
from .log import say
from .perception import Perception
from .shards import SIDE, Faces
from .trainer import ROOT, as_float

U8 = NDArray[np.uint8]
Rebuild = Callable[[Tensor], Tensor]
ROWS = 14  # of a sheet


def psnr(image: Tensor, wanted: Tensor) -> Tensor:
    """(B,) in dB of (B, 3, H, W) in [0, 1]."""
    return -10 * torch.log10(((image - wanted) ** 2).mean((1, 2, 3)).clamp(min=1e-10))


def ssim(image: Tensor, wanted: Tensor) -> Tensor:
    """(B,) mean structural similarity (Wang et al. 2004): 11×11 Gaussian of σ 1.5, per channel."""
    taps = torch.arange(-5, 6, device=image.device, dtype=image.dtype)
    line = torch.exp(-(taps**2) / 4.5)
    window = torch.outer(line, line)[None, None].repeat(3, 1, 1, 1) / line.sum() ** 2

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=3)

    a, b = mean(image), mean(wanted)
    va, vb = mean(image**2) - a**2, mean(wanted**2) - b**2
    cov = mean(image * wanted) - a * b
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * a * b + c1) * (2 * cov + c2) / ((a**2 + b**2 + c1) * (va + vb + c2))
    return value.mean((1, 2, 3))


def read_portraits(more: Path | None) -> tuple[list[str], U8]:
    """``examples/face*.png`` and a folder's pictures at 256×256, not aligned: names, (N, 256, 256, 3) RGB."""
    files = sorted((ROOT / "examples").glob("face*.png"))
    files += sorted(f for f in more.iterdir() if f.suffix.lower() in (".jpg", ".png")) if more else []
    rows = []
    for file in files:
        picture = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if picture is None:
            raise InputError(f"{file}: can't be read as a picture")
        small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        rows.append(cv2.cvtColor(small, cv2.COLOR_BGR2RGB).astype(np.uint8))
    return [f.name for f in files], np.stack(rows)


@torch.no_grad()
def measure(
    rebuild: Rebuild, images: U8, landmarks: NDArray[np.float32] | None, see: Perception, batch: int = 32
) -> tuple[dict[str, NDArray[np.float64]], U8]:
    """PSNR (dB), SSIM and, given landmarks, identity (cosine) of each picture; and what was rebuilt."""
    size = see.manifest.identity.size
    template = (ARCFACE_TEMPLATE * (size / 112)).astype(np.float32)
    found: dict[str, list[Tensor]] = {"psnr": [], "ssim": []}
    pictures = []
    for begin in range(0, len(images), batch):
        some = slice(begin, begin + batch)
        x = as_float(torch.from_numpy(images[some]).to(see.theta.device))
        made = rebuild(x).clamp(0, 1)
        found["psnr"].append(psnr(made, x))
        found["ssim"].append(ssim(made, x))
        if landmarks is not None:
            theta = arcface_theta(landmarks[some], template, SIDE, size).to(x)
            found.setdefault("identity", []).append((see.embed(made, theta) * see.embed(x, theta)).sum(1))
        pictures.append((made * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return {k: torch.cat(v).double().cpu().numpy() for k, v in found.items()}, np.concatenate(pictures)


def by_set(values: dict[str, NDArray[np.float64]], sets: list[str]) -> dict[str, dict[str, float]]:
    """Means of each set, and of all."""
    groups = {"all": np.ones(len(sets), bool)} | {s: np.array(sets) == s for s in sorted(set(sets))}
    return {
        name: {"count": int(rows.sum())} | {k: round(float(v[rows].mean()), 4) for k, v in values.items()}
        for name, rows in groups.items()
    }


def spread(sets: list[str], count: int) -> list[int]:
    """Up to ``count`` positions, dealt out over the sets in turn."""
    queues = [[i for i, s in enumerate(sets) if s == name] for name in sorted(set(sets))]
    turns = [queue[turn] for turn in range(count) for queue in queues if turn < len(queue)]
    return sorted(turns[:count])


def write_sheet(path: Path, columns: list[U8]) -> None:
    """Columns of (N, H, W, 3) RGB side by side as a PNG, renamed when it is whole."""
    picture = np.concatenate([np.concatenate(list(c)) for c in columns], 1)
    done, content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content.tobytes())
    part.replace(path)


def write_report(path: Path, facts: dict[str, Any]) -> None:
    """JSON, renamed when it is whole."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def report(
    out: Path,
    facts: dict[str, Any],
    model: TinyAutoencoder,
    tiny: TinyAutoencoder,
    see: Perception,
    held: Faces,
    portraits: Path | None,
) -> None:
    """``report.json`` and ``sheet.png`` (original | tiny | this): held-out faces by set, and portraits."""
    names, pictures = read_portraits(portraits)
    shown = spread(held.sets, ROWS - 2)
    columns = [[pictures[:2], held.images[shown]]]
    for name, autoencoder in (("tiny", tiny), ("compact", model)):

        def rebuild(x: Tensor, autoencoder: TinyAutoencoder = autoencoder) -> Tensor:
            return autoencoder.decode(autoencoder.encode(x))

        values, made = measure(rebuild, held.images, held.landmarks, see)
        own, other = measure(rebuild, pictures, None, see)
        facts[name] = {
            "held": by_set(values, held.sets),
            "portraits": {k: round(float(v.mean()), 4) for k, v in own.items()},
            "each": {n: round(float(v), 2) for n, v in zip(names, own["psnr"], strict=True)},
        }
        say(f"{name}: held {facts[name]['held']['all']}, {len(names)} portraits {facts[name]['portraits']}")
        columns.append([other[:2], made[shown]])
    write_sheet(out / "sheet.png", [np.concatenate(c) for c in columns])
    write_report(out / "report.json", facts)
