"""What a frame costs, part by part: the networks' and the arithmetic's share of one swapped frame.

    python benchmarks/frame_cost.py [--preset cpu] [--set key=value] [--pack starter] [--device cpu]
        [--frames 8] [--repeats 3] [--json FILE]

The first frames of the example clip, swapped with its portrait. Each part is timed by itself as the stages
call it, in the preset's batches, after one run that does not count; medians, in milliseconds a frame. Below
"swap" is what it is made of (two encodes where the loop starts from the source), and "frame" is the sum of
the stages, which a job overlaps where it can. On a GPU, parts timed one by one are asked for one by one;
"all, recorded" is the swap as a job repeats it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from guided_step import Run
from ldvid.configs import Settings, load_settings
from ldvid.stages.align import AlignStage
from ldvid.stages.colour_match import match_colour
from ldvid.stages.decode import open_reader, probe
from ldvid.stages.detect import open_detector
from ldvid.stages.mask import MaskStage
from ldvid.stages.paste import PasteStage
from ldvid.stages.records import Frame, Track
from ldvid.stages.source import load_source
from ldvid.stages.steady import steady
from ldvid.stages.swap import sampler
from ldvid.stages.swap.networks import Networks, to_tensor
from ldvid.stages.swap.pack import Pack, open_pack
from ldvid.stages.swap.stage import SwapStage
from paper_step import device_name
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
CLIP, SOURCE = ROOT / "examples/clip.mp4", ROOT / "examples/face.png"


def example(pack: Pack, settings: Settings, count: int) -> tuple[list[Frame], Track]:
    """The first frames of the example clip and the face in them."""
    frames = list(open_reader(probe(CLIP), settings.decoder).read(0, count))
    detector = open_detector(pack, settings.detector_threshold)
    found = [detector.detect(f.rgb)[0] for f in frames]
    track = Track(
        0, 0, np.arange(count), np.stack([d.box for d in found]), np.stack([d.landmarks for d in found]),
        np.array([d.score for d in found], np.float32), np.zeros(0, np.float32),
    )  # fmt: skip
    return frames, track


def stages(
    pack: Pack, net: Networks, settings: Settings, count: int
) -> tuple[dict[str, Run], dict[str, Run]]:
    """The stages of a frame, and what the swap is made of, by name."""
    frames, track = example(pack, settings, count)
    detector = open_detector(pack, settings.detector_threshold)
    source = load_source(SOURCE, pack, detector, net.embed, None)[0]
    align = AlignStage(track, pack.manifest.template_points(), pack.manifest.crop_size)
    mask, swap, paste = MaskStage(net, settings), SwapStage(net, settings, source), PasteStage(settings)
    crops = align.process(frames)
    masked = mask.process(crops)
    swapped = swap.process(masked)
    assert swapped.swapped is not None and swapped.masks is not None
    whole = {
        "detect": lambda: [detector.detect(f.rgb) for f in frames],
        "align": lambda: align.process(frames),
        "mask": lambda: mask.process(crops),
        "swap": lambda: swap.process(masked),
        "steady": lambda: steady(swapped, settings.steady, 0, count),
        "paste": lambda: paste.process((frames, [swapped])),
    }
    batches = [slice(i, i + settings.batch) for i in range(0, count, settings.batch)]
    pictures = [to_tensor(crops.images[b], net.device) for b in batches]
    with torch.no_grad():
        latents = [net.encode(p) for p in pictures]
    start, ready = swap._starts[0] if swap._starts else None, masked

    def each(function: Callable[[torch.Tensor], object], items: list[torch.Tensor]) -> Run:
        def run() -> object:
            with torch.no_grad():
                return [function(x) for x in items]

        return run

    parts = {
        "parse (of mask)": each(net.parse, pictures),
        "encode, once": each(net.encode, pictures),
        "decode": each(net.decode, latents),
    }
    if swap.on_device:
        replayed = SwapStage(net, settings, source)
        replayed.process(masked)
        return whole, parts | {
            "start pictures": lambda: replayed.prepare(masked),
            "all, recorded": lambda: replayed.process(masked),
        }
    made, masks = swapped.swapped, swapped.masks
    parts["colour"] = lambda: match_colour(made, crops.images, masks, settings.colour_match)
    if start is not None and ready.parses is not None:
        parts["start picture"] = lambda: start.compose(
            crops.images, crops.landmarks, ready.masks, ready.parses, settings.start_keep
        )
    return whole, parts


def clock(device: torch.device) -> float:
    """Seconds, once everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def steps(swap: Run, device: torch.device) -> tuple[Run, dict[str, list[float]]]:
    """The swap, and where it keeps the seconds of the UNet and of guidance, a number for each run."""
    seconds: dict[str, list[float]] = {"UNet, all steps": [], "guidance, all steps": []}
    predict, gradient = sampler.predicted_noise, sampler.guidance_gradient

    def timed_predict(*values: object) -> object:
        began = clock(device)
        try:
            return predict(*values)  # type: ignore[arg-type]
        finally:
            seconds["UNet, all steps"][-1] += clock(device) - began

    def timed_gradient(*values: object) -> object:
        began, before = clock(device), seconds["UNet, all steps"][-1]
        try:
            return gradient(*values)  # type: ignore[arg-type]
        finally:
            unet = seconds["UNet, all steps"][-1] - before
            seconds["guidance, all steps"][-1] += clock(device) - began - unet

    def run() -> object:
        for kept in seconds.values():
            kept.append(0.0)
        sampler.predicted_noise, sampler.guidance_gradient = timed_predict, timed_gradient  # type: ignore[assignment]
        try:
            return swap()
        finally:
            sampler.predicted_noise, sampler.guidance_gradient = predict, gradient

    return run, seconds


def medians(runs: dict[str, Run], repeats: int, device: torch.device) -> dict[str, float]:
    """Milliseconds by name, after one run that does not count."""
    found = {}
    for name, run in runs.items():
        times = []
        for _ in range(repeats + 1):
            began = clock(device)
            run()
            times.append(1000 * (clock(device) - began))
        found[name] = statistics.median(times[1:])
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pack", default="starter")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings, pack = load_settings(options.preset, assignments=options.assignments), open_pack(options.pack)
    compiled = settings.batch if settings.compile == "on" else 0
    net = Networks.load(pack, options.device, settings.dtype, compiled)
    whole, parts = stages(pack, net, settings, options.frames)
    whole["swap"], seconds = steps(whole["swap"], net.device)
    figures = medians(whole, options.repeats, net.device)
    inside = medians(parts, options.repeats, net.device)
    inside |= {name: 1000 * statistics.median(kept[1:]) for name, kept in seconds.items()}
    figures, inside = ({k: v / options.frames for k, v in d.items()} for d in (figures, inside))
    dtype = str(net.dtype).removeprefix("torch.")
    table = Table(title=f"One frame, preset {options.preset}, {dtype}, {device_name(net.device)}")
    table.add_column("part")
    table.add_column("ms a frame", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.0f}")
        for part, took in inside.items() if name == "swap" else ():
            table.add_row(f"  {part}", f"{took:.0f}")
    table.add_row("frame", f"{sum(figures.values()):.0f}")
    Console(width=100).print(table)
    if options.json:
        report = {"device": device_name(net.device), "preset": options.preset, "dtype": dtype}
        text = json.dumps(report | {"stages": figures, "swap": inside}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
