"""Time one step of Algorithm 1 as preset ``paper`` runs it, at the paper's network sizes.

    python benchmarks/paper_step.py [--device auto] [--batch 16] [--steps 10] [--dtype float32]
        [--pack FOLDER]

The weights are random numbers in the layouts of ``celebahq-256`` (benchmarks/random_pack.py, 1.6 GB in a
temporary folder): what a step costs does not depend on the values. A step is UNet, decoder, identity network
and parser, the gradient back through all of them, the DDIM step and the blend. On a machine without a GPU
one step is timed, for one picture.
"""

from __future__ import annotations

import argparse
import gc
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ldvid.configs import load_settings
from ldvid.stages.swap.blend import downsample_mask
from ldvid.stages.swap.context import Context, SourcePicture
from ldvid.stages.swap.guidance import build_terms
from ldvid.stages.swap.networks import DTYPES, Networks, resolve_device, to_tensor
from ldvid.stages.swap.pack import open_pack
from ldvid.stages.swap.sampler import Sampling, guided_swap
from ldvid.stages.swap.views import arcface_theta
from random_pack import write_random_pack
from rich.console import Console
from rich.table import Table


def device_name(device: torch.device) -> str:
    """The processor's or the GPU's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def make_context(net: Networks, batch: int) -> Context:
    """``batch`` pictures of noise with a face's landmarks and a box for a mask."""
    size, random = net.manifest.crop_size, np.random.default_rng(0)
    images = random.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    landmarks = np.repeat(net.manifest.template_points()[None], batch, 0)
    target = to_tensor(images, net.device)
    mask = torch.zeros(batch, 1, size, size, device=net.device)
    mask[:, :, size // 4 : -size // 8, size // 4 : -size // 4] = 1
    with torch.no_grad():
        parse = net.parse(target)
    theta = arcface_theta(landmarks, net.identity_template(), size, net.manifest.identity.size)
    return Context(
        networks=net,
        source=torch.from_numpy(net.embed(images[:1])).to(net.device).expand(batch, -1),
        target=target,
        target_parse=parse,
        mask=mask,
        to_arcface=theta.to(net.device),
        landmarks=torch.from_numpy(landmarks).to(net.device),
        source_picture=SourcePicture(target[:1], landmarks[:1]),
    )


def milliseconds(net: Networks, batch: int, steps: int, warm: int) -> list[float]:
    """Milliseconds of each of ``steps`` steps after ``warm`` others, for the whole batch."""
    paper = load_settings("paper")
    context = make_context(net, batch)
    with torch.no_grad():
        z0 = net.encode(context.target)
    m = downsample_mask(context.mask, net.manifest.autoencoder.downscale)
    ticks = []

    def tick(_step: int, _z: torch.Tensor) -> None:
        if net.device.type == "cuda":
            torch.cuda.synchronize()
        ticks.append(time.perf_counter())

    sampling = Sampling(steps=warm + steps, start_level=paper.start_level, eta=paper.eta, gradient="full")
    tick(-1, z0)
    guided_swap(context, z0, z0, m, build_terms(paper.guidance), sampling, tick)
    return [1000 * (b - a) for a, b in zip(ticks[warm:], ticks[warm + 1 :], strict=False)]


def peak_memory(device: torch.device) -> float:
    """GB: what torch held at most on the GPU since the last reset, or what the process ever had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def measure(folder: Path, device: torch.device, dtype: str, batches: list[int], steps: int) -> Table:
    """Load the pack and time each batch size."""
    net = Networks.load(open_pack(str(folder)), device.type, dtype)
    warm = 3 if device.type == "cuda" else 0
    table = Table(title=f"One guided step, paper's sizes and settings, {dtype}\n{device_name(device)}")
    for column in (
        "batch",
        "ms per step and frame",
        "50 steps, s per frame",
        "steps timed",
        "peak memory, GB",
    ):
        table.add_column(column, justify="right")
    for batch in batches:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        each = np.array(milliseconds(net, batch, steps, warm)) / batch
        spread = f" ({each.min():.1f}–{each.max():.1f})" if steps > 1 else ""
        middle = float(np.median(each))
        table.add_row(
            str(batch),
            f"{middle:.1f}{spread}",
            f"{middle * 50 / 1000:.2f}",
            str(steps),
            f"{peak_memory(device):.1f}",
        )
    return table


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch", type=int, help="also this many pictures at once (16 on a GPU)")
    parser.add_argument("--steps", type=int, help="steps timed (10 on a GPU, 1 without)")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--pack", type=Path, help="a pack's folder instead of random weights")
    options = parser.parse_args()
    device = resolve_device(options.device)
    gpu = device.type == "cuda"
    steps, batch = options.steps or (10 if gpu else 1), options.batch or (16 if gpu else 1)
    batches = sorted({1, batch})
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.pack or write_random_pack(Path(scratch) / "celebahq-256")
        table = measure(folder, device, options.dtype, batches, steps)
    console = Console()
    console.print(table)
    weights = "those of the pack" if options.pack else "random: the cost does not depend on the values"
    console.print(f"Weights: {weights}.")


if __name__ == "__main__":
    main()
