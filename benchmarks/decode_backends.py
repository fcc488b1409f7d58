"""Time the decoders on a clip, and check that they give the same frames.

    python benchmarks/decode_backends.py [CLIP] [--segment 48] [--repeats 3]

Two ways of reading: the whole clip in order, and segments in shuffled order (what workers on several
machines do). Rates are the best of the repeats and mean little on a busy machine: compare CPU time.
Exact: every frame read out of order equals the one read in order;
frame numbers agree: each decord frame is nearest to the pyav frame of its own number. The control is the
same check with decord's frames moved by one on purpose: it must fail, or the clip is too still to tell.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ldvid.errors import LdvidError
from ldvid.stages.decode import open_reader, probe
from ldvid.stages.records import ClipInfo
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("pyav", "decord")


def cpu() -> str:
    """Model and number of cores, as the system names them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def in_order(info: ClipInfo, backend: str) -> None:
    """Read the whole clip."""
    reader = open_reader(info, backend)
    for _ in reader.read(0, info.frames):
        pass
    reader.close()


def shuffled(info: ClipInfo, backend: str, length: int) -> None:
    """Read every segment, in an order that is random but the same each time."""
    starts = list(range(0, info.frames, length))
    random.Random(0).shuffle(starts)
    reader = open_reader(info, backend)
    for start in starts:
        for _ in reader.read(start, min(start + length, info.frames)):
            pass
    reader.close()


def measure(work: Callable[[], None], frames: int, repeats: int) -> str:
    """Best wall rate, and median (least–most) CPU time of all threads: other load sways it less."""
    wall, busy = [], []
    for _ in range(repeats):
        begin, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - begin)
        busy.append(1000 * (time.process_time() - used) / frames)
    low, middle, high = min(busy), statistics.median(busy), max(busy)
    return f"{frames / min(wall):.0f} frames/s, {middle:.1f} ({low:.1f}–{high:.1f}) CPU ms"


def small(info: ClipInfo, backend: str) -> np.ndarray:
    """All frames, every fourth pixel, (N, h, w, 3)."""
    return np.stack([f.rgb[::4, ::4] for f in open_reader(info, backend).read(0, info.frames)])


def exact(info: ClipInfo, backend: str, through: np.ndarray) -> bool:
    """Whether frames read one by one, out of order, equal those read through."""
    reader = open_reader(info, backend)
    picks = random.Random(1).sample(range(info.frames), min(12, info.frames))
    return all((next(reader.read(i, i + 1)).rgb[::4, ::4] == through[i]).all() for i in picks)


def nearest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of frames whose nearest of the seven around it bears its own number.

    The converters differ by a constant colour offset, larger than the motion of a still scene: it is
    taken off first, per pixel, or it would decide which neighbour is nearest.
    """
    a = ours.astype(np.float32)
    b = theirs.astype(np.float32)
    b -= (b - a).mean(0)
    n = len(a)
    hits = [
        min(range(max(0, i - 3), min(n, i + 4)), key=lambda j, i=i: float(((a[i] - b[j]) ** 2).mean())) == i  # type: ignore[misc]
        for i in range(n)
    ]
    return float(np.mean(hits))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("clip", nargs="?", type=Path, default=ROOT / "examples/clip.mp4")
    parser.add_argument("--segment", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    console = Console()
    info = probe(options.clip)
    clip = f"{options.clip.name}: {info.frames} frames, {info.width}×{info.height}, {info.codec}"
    table = Table(title=f"{clip}\n{cpu()}, load {os.getloadavg()[0]:.1f}")
    table.add_column("backend")
    shuffled_title = f"segments of {options.segment}, shuffled"
    for column in ("in order", shuffled_title, "exact", "numbers agree", "control", "mean difference"):
        table.add_column(column, justify="right")
    reference: np.ndarray | None = None
    for backend in BACKENDS:
        try:
            pictures = small(info, backend)
        except LdvidError as error:
            table.add_row(backend, str(error), *[""] * 6)
            continue
        reference = pictures if reference is None else reference
        error = float(np.abs(reference.astype(int) - pictures).mean())
        same, control = nearest(reference, pictures), nearest(reference[:-1], pictures[1:])
        ordered = measure(lambda b=backend: in_order(info, b), info.frames, options.repeats)  # type: ignore[misc]
        mixed = measure(
            lambda b=backend: shuffled(info, b, options.segment),  # type: ignore[misc]
            info.frames,
            options.repeats,
        )
        table.add_row(
            backend,
            ordered,
            mixed,
            "yes" if exact(info, backend, pictures) else "NO",
            f"{same:.0%}",
            f"{control:.0%}",
            f"{error:.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
