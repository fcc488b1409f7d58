"""Rows of ``swap_speed``'s table: how each is measured, and how they are shown."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from frame_cost import clock
from paper_step import peak_memory
from rich.table import Table

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


@dataclass(frozen=True)
class Bench:
    """How to measure."""

    device: torch.device
    repeats: int
    steps: int
    wide: int
    warm: bool
    profile: Path | None = None
    short: bool = False

    def write_profile(self, name: str, run: Callable[[], object], batch: int) -> None:
        """Into the folder, what the GPU does in a step: microseconds a frame of each kernel."""
        assert self.profile is not None
        self.profile.mkdir(parents=True, exist_ok=True)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            run()
            clock(self.device)
        each = [(e.self_device_time_total / self.steps / batch, e.count // self.steps, e.key)
                for e in seen.key_averages()]  # fmt: skip
        each.sort(reverse=True)
        lines = [f"{sum(t for t, _, _ in each):9.1f} us a step and frame"]
        lines += [f"{took:9.1f} {count:5d} {key[:160]}" for took, count, key in each if took >= 0.5]
        file = self.profile / f"{name.split(',')[0].replace(' ', '-')}.txt"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def timed(self, run: Callable[[], object]) -> tuple[list[float], float, float]:
        """Seconds of each repeat, of the first run before them, and the peak memory in GiB."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        began = clock(self.device)
        run()
        first = clock(self.device) - began
        times = []
        for _ in range(1 if self.warm else self.repeats):
            began = clock(self.device)
            run()
            times.append(clock(self.device) - began)
        return times, first, peak_memory(self.device)

    def row(self, name: str, run: Callable[[], object], batch: int) -> Row:
        """A step at the paper's sizes, measured."""
        times, first, memory = self.timed(run)
        if self.profile is not None:
            self.write_profile(name, run, batch)
        each = [1000 * t / self.steps / batch for t in times]
        mean = float(np.mean(each))
        spread = (max(each) - min(each)) / mean
        return Row(name, batch, mean, spread, 1000 / mean / PAPER_STEPS, memory, first, FLOOR / mean)


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
