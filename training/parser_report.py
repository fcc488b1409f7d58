"""What a parser is worth: IoU by class on held-out faces, beside the pack's own parser.

On clean crops, on what early diffusion steps look like, and with each kind of synthetic occluder; at
256 and at 128 pixels; by set. A coarser parser (brows, eyes, lips undivided) is compared on its own
classes, to which the finer ones are merged.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from facexlib.parsing.bisenet import BiSeNet
from torch import Tensor, nn

from ..errors import OutputError
from ..stages.swap.loaders import load_quantised, naming
from ..stages.swap.manifest import read_manifest
from .augment import early_estimate
from .bisenet import normalised, resized
from .occluders import KINDS, occlude
from .overlap import FACE_FROM, MERGED, confusion, face_iou, iou, merge_table, merged
from .shards import CLASSES, Faces
from .trainer import as_float, autocast, random_of

SIZES = (256, 128)
BATCH = 32
# RGB of the overlay, by class
_COLOURS = np.array(
    [(0, 0, 0), (200, 60, 60), (230, 200, 120), (90, 210, 90), (30, 120, 30), (110, 170, 255), (20, 50, 220),
     (250, 140, 60), (250, 90, 180), (170, 20, 120), (255, 255, 255)], np.uint8
)  # fmt: skip

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Baseline:
    """The pack's parser: its name, and (B, 3, H, W) in [0, 1] → (B, H, W) indices of ``MERGED``."""

    name: str
    predict: Predict


def load_baseline(folder: Path, device: torch.device) -> Baseline:
    """The parser of the pack in ``folder``; PackError if it can't be read."""
    manifest = read_manifest(folder)
    entry, path = manifest.parser, folder / manifest.parser.file
    net = cast(nn.Module, BiSeNet(num_class=len(entry.classes)))
    with naming(path):
        net.load_state_dict(load_quantised(path))
    net = net.to(device).eval().requires_grad_(False)
    table = torch.tensor(merge_table(entry.classes), device=device)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (entry.mean, entry.std))

    def predict(images: Tensor) -> Tensor:
        with autocast(images.device):
            logits = net((images - mean) / std)[0]
        return table[logits.argmax(1)]

    return Baseline(f"{manifest.name} {manifest.version}", predict)


def predictor(net: nn.Module) -> Predict:
    """(B, 3, H, W) in [0, 1] → (B, H, W) int64 indices of ``CLASSES``, of a network in eval mode."""

    def predict(images: Tensor) -> Tensor:
        with autocast(images.device):
            logits = cast(Tensor, net(normalised(images).contiguous(memory_format=torch.channels_last))[0])
        return logits.argmax(1)

    return predict


class _Tally:
    """Sums over batches: confusions by set, and how much of what covers is called face."""

    def __init__(self) -> None:
        self.counts: dict[str, Tensor] = {}
        self.base: Tensor | None = None
        self.covered = torch.zeros(3, dtype=torch.float64)  # pixels, called face by ours, by the baseline

    def add(self, name: str, fine: Tensor, coarse: Tensor) -> None:
        self.counts[name] = self.counts[name] + fine if name in self.counts else fine
        self.base = coarse if self.base is None else self.base + coarse

    def facts(self, baseline: str) -> dict[str, Any]:
        total = torch.stack(list(self.counts.values())).sum(0)
        base = cast(Tensor, self.base)
        fine, few = iou(total), iou(merged(total))
        known = [v for v in fine if v is not None]
        facts: dict[str, Any] = {
            "iou": dict(zip(CLASSES, fine, strict=True)),
            "mean": round(sum(known) / max(len(known), 1), 4),
            "face": face_iou(total),
            "merged": dict(zip(MERGED, few, strict=True)),
            "sets": {n: dict(zip(CLASSES, iou(c), strict=True)) for n, c in sorted(self.counts.items())},
            baseline: {"merged": dict(zip(MERGED, iou(base), strict=True)), "face": face_iou(base)},
        }
        pixels, ours, theirs = self.covered.tolist()
        if pixels:
            facts["called_face"] = round(ours / pixels, 4)
            facts[baseline]["called_face"] = round(theirs / pixels, 4)
        return facts


@torch.no_grad()
def _variant(
    predict: Predict,
    baseline: Baseline,
    faces: Faces,
    device: torch.device,
    seed: int,
    variant: str,
    size: int,
) -> dict[str, Any]:
    """Facts of one variant ("clean", "early" or a kind of occluder) at one size."""
    assert faces.labels is not None
    tally = _Tally()
    table = torch.tensor([*merge_table(CLASSES), *[255] * (256 - len(CLASSES))], device=device)
    for start in range(0, len(faces), BATCH):
        rows = slice(start, start + BATCH)
        random = random_of(device, seed, start)
        images = as_float(torch.from_numpy(faces.images[rows]).to(device))
        labels = torch.from_numpy(np.where(faces.inside[rows] > 0, faces.labels[rows], 255)).to(device)
        covered = torch.zeros_like(labels)
        if variant == "early":
            images = early_estimate(images, random, share=1.0)
        elif variant != "clean":
            hidden = occlude(images, labels, random, {variant: 1.0})
            images, labels, covered = hidden.images, hidden.labels, hidden.covered.to(torch.uint8)
        small, wanted = resized(images, labels, size)
        over = F.interpolate(covered[:, None].float(), (size, size), mode="nearest-exact")[:, 0] > 0
        ours, theirs = predict(small), baseline.predict(small)
        coarse = table[wanted.long()]
        for name in set(sets := faces.sets[rows]):
            of = torch.tensor([s == name for s in sets], device=device)
            tally.add(
                name,
                confusion(ours[of], wanted[of], len(CLASSES)).cpu(),
                confusion(theirs[of], coarse[of], len(MERGED)).cpu(),
            )
        called = [(over & (p >= FACE_FROM)).sum().double() for p in (ours, theirs)]
        tally.covered += torch.stack([over.sum().double(), *called]).cpu()
    return tally.facts(baseline.name)


def measure(
    net: nn.Module, baseline: Baseline, faces: Faces, device: torch.device, seed: int = 0
) -> dict[str, Any]:
    """All figures: {"256": {"clean": …, "early": …, "occluded": {kind: …}}, "128": …}."""
    predict = predictor(net)
    facts: dict[str, Any] = {"faces": len(faces), "baseline": baseline.name}
    for size in SIZES:

        def of(variant: str, size: int = size) -> dict[str, Any]:
            return _variant(predict, baseline, faces, device, seed, variant, size)

        kinds = {kind: of(kind) for kind in KINDS}
        facts[str(size)] = {"clean": of("clean"), "early": of("early"), "occluded": kinds}
    return facts


def table_of(facts: dict[str, Any]) -> list[str]:
    """The figures as lines of text, in percent."""

    def percent(value: float | None) -> str:
        return "    –" if value is None else f"{100 * value:5.1f}"

    base = facts["baseline"]
    lines = [f"{facts['faces']} held-out faces, IoU in percent; baseline: {base}"]
    for size in map(str, SIZES):
        for variant in ("clean", "early"):
            v = facts[size][variant]
            lines.append(f"{size} px, {variant}: mean {percent(v['mean'])}, face {percent(v['face'])}")
            sets = list(v["sets"])
            lines.append(f"  {'':12}  all  " + "".join(f"{s[:10]:>12}" for s in sets))
            for name in CLASSES:
                row = "".join(f"{percent(v['sets'][s][name]):>12}" for s in sets)
                lines.append(f"  {name:12}{percent(v['iou'][name])}  {row}")
            lines.append("  merged      ours  baseline")
            lines += [f"  {n:12}{percent(v['merged'][n])}  {percent(v[base]['merged'][n])}" for n in MERGED]
        lines.append(f"{size} px, occluded: face IoU and share of the occluder called face, ours | baseline")
        for kind, v in facts[size]["occluded"].items():
            ours = f"{percent(v['face'])} {percent(v.get('called_face'))}"
            theirs = f"{percent(v[base]['face'])} {percent(v[base].get('called_face'))}"
            lines.append(f"  {kind:12}{ours}  |  {theirs}")
    return lines


def overlay(images: np.ndarray[Any, Any], classes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Class colours over uint8 RGB (N, H, W, 3), half and half."""
    return cast("np.ndarray[Any, Any]", (images // 2 + _COLOURS[classes] // 2).astype(np.uint8))


@torch.no_grad()
def sheet(net: nn.Module, faces: Faces, device: torch.device, count: int = 24) -> np.ndarray[Any, Any]:
    """RGB contact sheet: picture and parse of ``count`` faces, spread evenly over the sets."""
    order = sorted(range(len(faces)), key=lambda i: (faces.sets[: i + 1].count(faces.sets[i]), faces.sets[i]))
    rows = order[:count]
    images = faces.images[rows]
    classes = predictor(net)(as_float(torch.from_numpy(images).to(device))).cpu().numpy()
    pairs = np.concatenate([images, overlay(images, classes)], 2)
    blank = np.zeros_like(pairs[0])
    tiles = [*pairs, *[blank] * (-len(pairs) % 4)]
    return np.concatenate([np.concatenate(tiles[i : i + 4], 1) for i in range(0, len(tiles), 4)], 0)


def write_report(
    out: Path, net: nn.Module, baseline: Baseline, faces: Faces, device: torch.device, seed: int = 0
) -> list[str]:
    """``report.json``, ``report.txt`` and ``faces.png`` in ``out``; the table's lines.

    Raises:
        OutputError: one can't be written.
    """
    facts = measure(net, baseline, faces, device, seed)
    lines = table_of(facts)
    _, png = cv2.imencode(".png", cv2.cvtColor(sheet(net, faces, device), cv2.COLOR_RGB2BGR))
    contents = {
        "report.json": json.dumps(facts, indent=1).encode() + b"\n",
        "report.txt": ("\n".join(lines) + "\n").encode(),
        "faces.png": png.tobytes(),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            part = out / f"{name}.part"
            part.write_bytes(content)
            part.replace(out / name)
    except OSError as error:
        raise OutputError(f"--out {out}: the report can't be written: {error}") from error
    return lines
