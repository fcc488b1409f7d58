"""How fast the guided swap is: a naive loop, what each remedy brings, and the presets.

    python benchmarks/swap_speed.py [--device auto] [--what exact fast presets memory]
        [--repeats 2] [--steps 6] [--warm] [--until ROW] [--small] [--json FILE]

"exact": one guided step at the paper's sizes (random weights in the layouts of ``celebahq-256``: what a step
costs does not depend on the values). The naive loop is plain code (``exact_path``): float32 without TF32, one
frame at a time, Algorithm 1 as it is printed. Each row below it changes one thing of the row above, and
runs the sampler that ships. The floor is 1.74 TFLOP, forward and input gradient, at 790 TFLOP/s, the rate an
H100 was measured to reach in bfloat16. "fast": preset ``fast`` from aligned crops to swapped crops with
networks of the paper's sizes, the parser of ``starter`` and a small decoder to guide through. "presets": the
same on the starter pack. Both are timed as a job runs them: masks and starts made a segment ahead, masks by
helpers.
"memory": preset ``paper`` at the paper's sizes, on a GPU of which less may be used (``--max-memory``).

Every row is measured ``--repeats`` times; the spread is the range of those over their mean. ``--warm`` only
compiles what the rows need, in one step each. ``--small`` takes tiny networks, to see that this file runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from exact_path import exact
from frame_cost import example
from ldvid.configs import Settings, load_settings, preset_names
from ldvid.pipeline.ahead import prepare_ahead
from ldvid.pipeline.device import cpu_threads, limit_gpu_memory
from ldvid.pipeline.helpers import Helpers, how_many
from ldvid.stages.align import AlignStage
from ldvid.stages.detect import open_detector
from ldvid.stages.mask import MaskStage
from ldvid.stages.records import Crops
from ldvid.stages.rows import take
from ldvid.stages.source import load_source
from ldvid.stages.swap.networks import Networks, resolve_device, resolve_dtype
from ldvid.stages.swap.pack import Pack, open_pack
from ldvid.stages.swap.stage import SwapStage
from paper_step import device_name
from random_pack import write_random_pack
from rich.console import Console
from speed_rows import PAPER_STEPS, Bench, Row, show

SOURCE = Path(__file__).resolve().parents[1] / "examples/face.png"


def crops_of(pack: Pack, settings: Settings, count: int) -> Crops:
    """Aligned faces of the example clip, again and again where it has fewer frames."""
    pictures, track = example(pack, settings, min(count, 48))
    crops = AlignStage(track, pack.manifest.template_points(), pack.manifest.crop_size).process(pictures)
    crops = take(crops, np.arange(count) % len(crops))
    return replace(crops, frames=np.arange(count, dtype=np.int64))


def as_a_job(mask: MaskStage, swap: SwapStage, crops: Crops, size: int) -> None:
    """Segments of ``size`` frames, masks and starts made a segment ahead."""
    parts = [take(crops, np.arange(i, min(i + size, len(crops)))) for i in range(0, len(crops), size)]
    with ThreadPoolExecutor(1) as ahead:
        for coming in [ahead.submit(prepare_ahead, mask, swap, part) for part in parts]:
            swap.process(coming.result())


def of_preset(name: str, pack: Pack, settings: Settings, bench: Bench, frames: int) -> Row:
    """Aligned crops of the example clip to swapped crops, masks and colours included."""
    compiled = settings.batch if settings.compile == "on" else 0
    net = Networks.load(pack, bench.device.type, resolve_dtype(settings.dtype, bench.device.type), compiled)
    detector = open_detector(pack, settings.detector_threshold)
    source = load_source(SOURCE, pack, detector, net.embed, None)[0]
    crops = crops_of(pack, settings, frames)
    swap = SwapStage(net, settings, source)
    with cpu_threads(None), Helpers(how_many() if bench.device.type == "cuda" else 0) as helpers:
        mask = MaskStage(net, settings, helpers.draw) if helpers.count else MaskStage(net, settings)
        times, first, memory = bench.timed(lambda: as_a_job(mask, swap, crops, settings.segment_frames))
    each = [1000 * t / frames / settings.steps for t in times]
    mean = float(np.mean(each))
    spread = (max(each) - min(each)) / mean
    return Row(name, settings.batch, mean, spread, 1000 / mean / settings.steps, memory, first)


def in_memory(pack: Pack, bench: Bench, sizes: list[float], dtype: str) -> Iterator[Row]:
    """Preset ``paper`` with batches as large as fit into so many GB."""
    settings = load_settings("paper").model_copy(
        update={"steps": 2, "batch": bench.wide, "dtype": dtype, "segment_frames": 2 * bench.wide}
    )
    for size in sizes:
        limit_gpu_memory(int(size * 1e9))
        net = Networks.load(pack, bench.device.type, dtype)
        faces = open_pack("starter")  # random weights find none
        detector = open_detector(faces, settings.detector_threshold)
        source = load_source(SOURCE, faces, detector, net.embed, None)[0]
        masked = MaskStage(net, settings).process(crops_of(faces, settings, bench.wide))
        swap = SwapStage(net, settings, source)
        times, first, memory = bench.timed(lambda swap=swap, masked=masked: swap.process(masked))
        each = [1000 * t / bench.wide / settings.steps for t in times]
        mean = float(np.mean(each))
        spread = (max(each) - min(each)) / mean
        name = f"paper, {dtype}, --max-memory {size:g}GB"
        yield Row(name, swap.fitting.micro_batch, mean, spread, 1000 / mean / PAPER_STEPS, memory, first)
        del net, swap, masked
        gc.collect()  # recordings and what they record know each other
        torch.cuda.empty_cache()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--what", nargs="+", choices=("exact", "fast", "presets", "memory"))
    parser.add_argument("--presets", nargs="+", choices=preset_names(), help="on a GPU: all but paper")
    parser.add_argument("--set", action="append", default=[], dest="assignments", help="of the presets")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="timed of the exact path")
    parser.add_argument("--batch", type=int, default=32, help="frames a batch at the paper's sizes")
    parser.add_argument("--frames", type=int, help="of the example clip (384; 4 without a GPU)")
    parser.add_argument("--max-memory", nargs="+", type=float, default=[8, 12, 24], help="GB")
    parser.add_argument("--memory-dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--warm", action="store_true", help="only compile")
    parser.add_argument("--short", action="store_true", help="of the exact path no row in float32")
    parser.add_argument("--until", help="the name of the last row wanted")
    parser.add_argument("--small", action="store_true", help="tiny networks instead of the paper's")
    parser.add_argument("--profile", type=Path, help="a folder for what the GPU does in each exact row")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = resolve_device(options.device)
    gpu = device.type == "cuda"
    what = options.what or (["exact", "fast", "presets", "memory"] if gpu else ["presets"])
    presets = options.presets or ([p for p in preset_names() if p != "paper"] if gpu else ["cpu"])
    wide = min(options.batch, 2) if options.small else options.batch
    steps = 1 if options.warm else options.steps
    bench = Bench(device, options.repeats, steps, wide, options.warm, options.profile, options.short)
    frames = options.frames or (384 if gpu else 4)
    console, began = Console(width=120), time.perf_counter()

    def rows() -> Iterator[Row]:
        with tempfile.TemporaryDirectory() as scratch:
            made = {}
            for kind in ("paper", "fast"):
                if {"exact", "memory" if kind == "paper" else "fast"} & set(what):
                    folder = Path(scratch) / kind
                    write_random_pack(folder, full_size=not options.small, fast=kind == "fast")
                    made[kind] = open_pack(str(folder))
            if "exact" in what:
                yield from exact(made["paper"], made["fast"], bench)
            if "fast" in what:
                changes = {"conditioning": "gradient", "batch": wide, "segment_frames": 3 * wide}
                changes |= {"keyframe_interval": 3 * wide}
                fast = load_settings("fast", overrides=changes)
                for compiled in ("off", "on") if not bench.warm else ("on",):
                    if compiled == "on" and not gpu:
                        continue
                    settings = fast.model_copy(update={"compile": compiled})
                    title = f"fast, {'compiled' if compiled == 'on' else 'eager'}"
                    yield of_preset(title, made["fast"], settings, bench, frames)
            if "memory" in what and gpu and not bench.warm:
                for dtype in options.memory_dtypes:
                    yield from in_memory(made["paper"], bench, options.max_memory, dtype)
                torch.cuda.set_per_process_memory_fraction(1.0)
        if "presets" in what:
            for name in presets:
                settings = load_settings(name, assignments=options.assignments)
                title = f"starter, {name}{', compiled' if settings.compile == 'on' else ''}"
                yield of_preset(title, open_pack("starter"), settings, bench, frames)

    done = []
    for row in rows():
        done.append(row)
        console.print(f"{row.name}: {row.milliseconds:.2f} ms a step and frame, first run {row.first:.1f} s")
        if options.json:  # after each: hours on a GPU should not be lost with the last row
            report = {"device": device_name(device), "torch": torch.__version__, "small": options.small}
            report |= {"seconds": time.perf_counter() - began, "rows": [asdict(r) for r in done]}
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if row.name == options.until:
            break
    console.print(show(done, device_name(device)))


if __name__ == "__main__":
    main()
