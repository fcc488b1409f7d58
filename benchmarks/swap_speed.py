"""How fast the guided swap is: a naive loop, what each remedy brings, and the presets.

    python benchmarks/swap_speed.py [--device auto] [--what paper presets] [--repeats 2] [--steps 6]
        [--small] [--json FILE]

"paper": one guided step at the paper's sizes (random weights in the layouts of ``celebahq-256``: what a step
costs does not depend on the values). The naive loop is plain code in this file: float32 without TF32, one
frame at a time, Algorithm 1 as it is printed. Each row below it changes one thing of the row above, and
runs the sampler that ships. The floor is 1.74 TFLOP, forward and input gradient, at 790 TFLOP/s, the rate an
H100 was measured to reach in bfloat16. "presets": from aligned crops to swapped crops on the starter pack,
everything included. Every row is measured ``--repeats`` times; the spread is the range of those over their
mean. ``--small`` takes tiny networks, to see that this file runs.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from frame_cost import clock, example
from ldvid.configs import load_settings, preset_names
from ldvid.stages.align import AlignStage
from ldvid.stages.detect import open_detector
from ldvid.stages.mask import MaskStage
from ldvid.stages.source import load_source
from ldvid.stages.swap.blend import downsample_mask
from ldvid.stages.swap.context import Context
from ldvid.stages.swap.guidance import build_terms
from ldvid.stages.swap.networks import Networks, resolve_device
from ldvid.stages.swap.pack import open_pack
from ldvid.stages.swap.repeatable import repeatable
from ldvid.stages.swap.sampler import Sampling, guided_swap
from ldvid.stages.swap.stage import SwapStage
from paper_step import device_name, make_context, peak_memory
from random_pack import write_random_pack
from rich.console import Console
from rich.table import Table
from torch import Tensor

SOURCE = Path(__file__).resolve().parents[1] / "examples/face.png"
FLOOR = 1.74e12 / 790e12 * 1000  # ms a step and frame, at the paper's sizes
PAPER_STEPS = 50


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds a step and frame, memory in GiB."""

    name: str
    batch: int
    milliseconds: float
    spread: float
    frames_per_second: float
    memory: float
    first: float  # seconds of the first run, compilation included
    of_floor: float | None = None


def naive(net: Networks, context: Context, z0: Tensor, m: Tensor, steps: int) -> Tensor:
    """Algorithm 1 of the paper as one would first write it: one gradient a step, through everything."""
    with torch.no_grad():
        parse = net.parse(context.target)
    levels = torch.linspace(0.1, 0.9, steps + 1, device=z0.device)
    z = levels[0] ** 0.5 * z0 + (1 - levels[0]) ** 0.5 * torch.randn_like(z0)
    for alpha_bar, previous in itertools.pairwise(levels):
        z = z.detach().requires_grad_(True)
        noise = net.predict_noise(z, 500)
        x_hat = net.decode((z - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5)
        grid = F.affine_grid(context.to_arcface, [len(z), 3, 112, 112], align_corners=False)
        face = net.embed_aligned(F.grid_sample(x_hat, grid, align_corners=False, padding_mode="border"))
        loss = (1 - (face * context.source).sum(1)).sum() + ((net.parse(x_hat) - parse) ** 2).mean()
        (gradient,) = torch.autograd.grad(loss, z)
        with torch.no_grad():
            noise = noise + (1 - alpha_bar) ** 0.5 * gradient
            clean = (z - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5
            z = previous**0.5 * clean + (1 - previous) ** 0.5 * noise
            behind = previous**0.5 * z0 + (1 - previous) ** 0.5 * torch.randn_like(z0)
            z = m * z + (1 - m) * behind
    return z


def compiled(net: Networks) -> Networks:
    """The same networks through torch.compile; compilation happens at the first call."""
    made = replace(net)
    for name in ("unet", "identity", "parser"):
        setattr(made, name, torch.compile(getattr(net, name)))
    decode, preview = torch.compile(net.decode), net.preview and torch.compile(net.preview)
    made.decode = decode  # type: ignore[method-assign]
    made.preview = cast(Any, preview)
    return made


def timed(run: Callable[[], object], repeats: int, device: torch.device) -> tuple[list[float], float, float]:
    """Seconds of each repeat, of the first run before them, and the peak memory in GiB."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    began = clock(device)
    run()
    first = clock(device) - began
    times = []
    for _ in range(repeats):
        began = clock(device)
        run()
        times.append(clock(device) - began)
    return times, first, peak_memory(device)


def row(
    name: str, run: Callable[[], object], batch: int, steps: int, repeats: int, device: torch.device
) -> Row:
    """A step at the paper's sizes, measured."""
    times, first, memory = timed(run, repeats, device)
    each = [1000 * t / steps / batch for t in times]
    mean = float(np.mean(each))
    return Row(
        name,
        batch,
        mean,
        (max(each) - min(each)) / mean,
        1000 / mean / PAPER_STEPS,
        memory,
        first,
        FLOOR / mean,
    )


def at_papers_sizes(folder: Path, device: torch.device, steps: int, repeats: int, wide: int) -> Iterator[Row]:
    """The naive loop and the rungs after it, at ``wide`` frames a batch where it says so."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    pack = open_pack(str(folder))
    net = Networks.load(pack, device.type, "float32")
    m_of = net.manifest.autoencoder.downscale

    def prepared(net: Networks, batch: int) -> tuple[Context, Tensor, Tensor]:
        context = make_context(net, batch)
        with torch.no_grad():
            return context, net.encode(context.target), downsample_mask(context.mask, m_of)

    def ours(net: Networks, batch: int, gradient: str) -> Callable[[], object]:
        context, z0, m = prepared(net, batch)
        paper = load_settings("paper")
        sampling = Sampling(steps, paper.start_level, gradient=cast(Any, gradient))
        terms = build_terms(paper.guidance)

        def run() -> object:
            with repeatable():
                return guided_swap(context, z0, z0, m, terms, sampling)

        return run

    plain = partial(naive, net, *prepared(net, 1), steps)
    yield row("naive loop, float32", plain, 1, steps, repeats, device)
    yield row("ours, float32", ours(net, 1, "full"), 1, steps, repeats, device)
    yield row("batches", ours(net, wide, "full"), wide, steps, repeats, device)
    del plain
    net = Networks.load(pack, device.type, "bfloat16")
    yield row("bfloat16", ours(net, wide, "full"), wide, steps, repeats, device)
    fast = compiled(net)
    yield row("compiled", ours(fast, wide, "full"), wide, steps, repeats, device)
    yield row("clean gradient", ours(fast, wide, "clean"), wide, steps, repeats, device)


def of_preset(name: str, device: torch.device, repeats: int, frames: int) -> Row:
    """Aligned crops of the example clip to swapped crops, masks and colours included."""
    settings, pack = load_settings(name), open_pack("starter")
    net = Networks.load(pack, device.type, settings.dtype)
    pictures, track = example(pack, settings, frames)
    detector = open_detector(pack, settings.detector_threshold)
    source = load_source(SOURCE, pack, detector, net.embed, None)[0]
    crops = AlignStage(track, pack.manifest.template_points(), pack.manifest.crop_size).process(pictures)
    mask, swap = MaskStage(net, settings), SwapStage(net, settings, source)
    times, first, memory = timed(lambda: swap.process(mask.process(crops)), repeats, device)
    each = [1000 * t / frames / settings.steps for t in times]
    mean = float(np.mean(each))
    spread = (max(each) - min(each)) / mean
    return Row(f"preset {name}", settings.batch, mean, spread, 1000 / mean / settings.steps, memory, first)


def show(rows: list[Row], device: str) -> Table:
    """As a table."""
    table = Table(title=f"The guided swap, {device}")
    table.add_column("row")
    for column in (
        "batch",
        "ms a step and frame",
        "spread",
        "frames/s",
        "of the floor",
        "GiB",
        "first run, s",
    ):
        table.add_column(column, justify="right")
    for r in rows:
        share = "" if r.of_floor is None else f"{r.of_floor:.3f}"
        table.add_row(
            r.name, str(r.batch), f"{r.milliseconds:.2f}", f"{r.spread:.0%}", f"{r.frames_per_second:.2f}",
            share, f"{r.memory:.1f}", f"{r.first:.1f}",
        )  # fmt: skip
    return table


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--what", nargs="+", choices=("paper", "presets"))
    parser.add_argument("--presets", nargs="+", choices=preset_names(), help="default on a GPU: all")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="timed at the paper's sizes")
    parser.add_argument("--batch", type=int, default=32, help="frames a batch at the paper's sizes")
    parser.add_argument("--frames", type=int, help="of the example clip (48; 4 without a GPU)")
    parser.add_argument("--small", action="store_true", help="tiny networks instead of the paper's")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = resolve_device(options.device)
    gpu = device.type == "cuda"
    what = options.what or ["paper", "presets"] if gpu or options.small else options.what or ["presets"]
    presets = options.presets or (preset_names() if gpu else ["cpu"])
    rows: list[Row] = []
    console, began = Console(width=120), time.perf_counter()
    if "paper" in what:
        with tempfile.TemporaryDirectory() as scratch:
            folder = write_random_pack(Path(scratch) / "celebahq-256", full_size=not options.small)
            wide = min(options.batch, 2) if options.small else options.batch
            for made in at_papers_sizes(folder, device, options.steps, options.repeats, wide):
                rows.append(made)
                console.print(f"{made.name}: {made.milliseconds:.2f} ms a step and frame")
    if "presets" in what:
        rows += [of_preset(p, device, options.repeats, options.frames or (48 if gpu else 4)) for p in presets]
    console.print(show(rows, device_name(device)))
    if options.json:
        report = {"device": device_name(device), "torch": torch.__version__, "small": options.small}
        report |= {"seconds": time.perf_counter() - began, "rows": [asdict(r) for r in rows]}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
