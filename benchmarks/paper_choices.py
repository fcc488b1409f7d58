"""What the paper leaves open, tried: each row is preset ``paper`` with one choice made otherwise.

    python benchmarks/paper_choices.py [PAIRS.csv --root DIR] [--device cuda] [--set KEY=VALUE]
        [--only NAME ...] [--json FILE]

Measures as ``ldvid evaluate``'s. Without arguments: two steps on the two example portraits, which
shows that it runs and nothing else. ``--set`` moves the point from which the choices depart. Two rows
can't be had by settings, since nobody should want them: line 16 as printed (α_k for every background)
and a mask that is thresholded before it is made small.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch.nn.functional as F  # noqa: N812 - torch's own custom
from ldvid.configs import load_settings
from ldvid.metrics.report import MEASURES
from ldvid.pipeline.evaluate import EvaluateRequest, evaluate
from ldvid.pipeline.progress import open_listener
from ldvid.stages.swap import loop
from ldvid.stages.swap.sampler import Sampling
from rich.console import Console
from rich.table import Table
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
CONSTANT = "[[1.0, 1.0]]"
CHOICES: dict[str, tuple[str, ...]] = {
    "paper": (),
    "k = 0.3 T": ("start_level=0.3",),
    "k = 0.4 T": ("start_level=0.4",),
    "k = 0.6 T": ("start_level=0.6",),
    "k = 0.7 T": ("start_level=0.7",),
    "λ_id = 120": ("guidance.identity.scale=120.0",),
    "λ_id = 360": ("guidance.identity.scale=360.0",),
    "λ_id = 2500": ("guidance.identity.scale=2500.0",),
    "λ_seg = 0": ("guidance.segmentation.scale=0.0",),
    "λ_seg = 2.5": ("guidance.segmentation.scale=2.5",),
    "λ_seg = 10": ("guidance.segmentation.scale=10.0",),
    "λ_seg = 60": ("guidance.segmentation.scale=60.0",),
    "λ constant": (f"guidance.identity.schedule={CONSTANT}", f"guidance.segmentation.schedule={CONSTANT}"),
    "η = 0.5": ("eta=0.5",),
    "η = 1": ("eta=1.0",),
    "25 steps": ("steps=25",),
    "100 steps": ("steps=100",),
    "clean gradient": ("gradient='clean'",),
    "line 16 as printed": (),
    "hard latent mask": (),
}


def hard_mask(mask: Tensor, factor: int) -> Tensor:
    """A latent is replaced if most of its pixels are face."""
    return (F.avg_pool2d((mask > 0.5).float(), factor) > 0.5).to(mask)


@contextmanager
def as_chosen(name: str) -> Iterator[None]:
    """The two choices that no setting makes."""
    if name == "line 16 as printed":
        with mock.patch.object(loop, "Sampling", partial(Sampling, background="start")):
            yield
    elif name == "hard latent mask":
        with mock.patch.object(loop, "downsample_mask", hard_mask):
            yield
    else:
        yield


def example_pairs(folder: Path) -> Path:
    """A list of the two portraits that ship, each on the other."""
    faces = [str(ROOT / "examples" / name) for name in ("face.png", "face-2.png")]
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("source", "target"), faces, faces[::-1]])
    return folder / "pairs.csv"


def measure(name: str, pairs: Path, args: argparse.Namespace, extra: tuple[str, ...]) -> dict[str, Any]:
    """The figures of one row."""
    settings = load_settings(args.preset, assignments=(*args.assignments, *CHOICES[name], *extra))
    request = EvaluateRequest(variants=((name, settings),), pairs=pairs, root=args.root, device=args.device)
    with as_chosen(name):
        table = evaluate(request, open_listener(quiet=True))
    found: dict[str, Any] = {**table["variants"][0], "device": table["device"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="?", type=Path)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--only", nargs="+", choices=CHOICES, metavar="NAME", default=list(CHOICES))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        trial = args.pairs is None
        pairs = example_pairs(Path(folder)) if trial else args.pairs
        for name in args.only:
            if trial and name.endswith("steps"):
                continue
            rows.append(measure(name, pairs, args, ("steps=2",) if trial else ()))
            if args.json:  # what there is, should the rest not come
                args.json.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    measures = [m for m in MEASURES if any(r["figures"][m.key] for r in rows)]
    table = Table(title=f"{rows[0]['pairs']} pairs, preset {args.preset}, {rows[0]['device']}")
    for heading in ("", *(m.heading for m in measures)):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        cells = [row["figures"][m.key] for m in measures]
        shown = [
            "–" if c is None else f"{c['mean']:.{m.digits}f}" for c, m in zip(cells, measures, strict=True)
        ]
        table.add_row(row["name"], *shown)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
