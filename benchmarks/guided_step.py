"""Where the time of one guided step goes: UNet, decoder, identity network, parser, and the whole.

    python benchmarks/guided_step.py [--pack starter] [--preset cpu] [--batch 1 4] [--threads 2] [--repeats 5]

Each part is timed by itself on pictures of noise, forward and, where guidance needs it, backward to its
input; "step" is the sampler's own, with the preset's terms and its gradient. Medians, in milliseconds for
the whole batch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from ldvid.configs import load_settings
from ldvid.stages.swap.guidance import build_terms
from ldvid.stages.swap.networks import DTYPES, Networks
from ldvid.stages.swap.pack import open_pack
from ldvid.stages.swap.sampler import Sampling, guidance_gradient
from paper_step import device_name, make_context
from rich.console import Console
from rich.table import Table
from torch import Tensor

Run = Callable[[], object]


def back(function: Callable[[Tensor], Tensor], x: Tensor) -> Run:
    """``function`` forward, and the gradient of its sum with respect to ``x``."""

    def run() -> object:
        wrt = x.detach().requires_grad_(True)
        return torch.autograd.grad(function(wrt).sum(), wrt)

    return run


def parts(net: Networks, preset: str, batch: int) -> dict[str, Run]:
    """Every part, and the step as ``preset`` has it, by name."""
    settings, context, side = load_settings(preset), make_context(net, batch), net.manifest.crop_size
    with torch.no_grad():
        z = net.encode(context.target)
    size = net.manifest.identity.size
    large, half = torch.rand(batch, 3, side, side), torch.rand(batch, 3, side // 2, side // 2)
    view = torch.rand(batch, 3, size, size)
    large, half, view = (x.to(net.device) for x in (large, half, view))
    network, p = net.parser, net.manifest.parser

    def unet() -> object:
        with torch.no_grad():
            return net.predict_noise(z, 500)

    def parser_alone(x: Tensor) -> Tensor:
        logits: Tensor = network(x.to(net.dtype))[0].float()
        return logits

    def step(*, preview: bool) -> Run:
        sampling = Sampling(
            steps=settings.steps,
            start_level=settings.start_level,
            gradient=settings.gradient,
            step_size=settings.step_size,
            preview=preview,
        )
        terms = build_terms(settings.guidance)
        return lambda: guidance_gradient(z, 500, net.alpha_bar[500], context, terms, sampling, 0.0)

    runs = {
        "UNet": unet,
        "decoder, both ways": back(net.decode, z),
        "preview, both ways": back(net.decode_preview, z),
        "identity, both ways": back(net.embed_aligned, view),
        f"parser at {p.size}, both ways": back(parser_alone, torch.rand(batch, 3, p.size, p.size).to(z)),
        "parser at half, both ways": back(parser_alone, half),
        "step through the decoder": step(preview=False),
        "step through the preview": step(preview=True),
    }
    if net.preview is None:
        del runs["preview, both ways"], runs["step through the preview"]
    return runs


def median(run: Run, repeats: int, device: torch.device) -> float:
    """Milliseconds, after one run that does not count."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[1:])


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pack", default="starter", help="a pack's name or folder")
    parser.add_argument("--preset", default="cpu", help="whose guidance terms a step has")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net = Networks.load(open_pack(options.pack), options.device, options.dtype)
    table = Table(title=f"One guided step, pack {options.pack}, preset {options.preset}, {options.dtype}")
    table.add_column("part, ms")
    columns = []
    for batch in options.batch:
        table.add_column(f"batch {batch}", justify="right")
        runs = parts(net, options.preset, batch)
        columns.append({name: median(run, options.repeats, net.device) for name, run in runs.items()})
    for name in columns[0]:
        table.add_row(name, *(f"{column[name]:.0f}" for column in columns))
    Console().print(table)
    Console().print(device_name(net.device))


if __name__ == "__main__":
    main()
