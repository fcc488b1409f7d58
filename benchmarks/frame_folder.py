"""python benchmarks/frame_folder.py [--files 3000] [--width 320] [--folder DIR]: time a folder of frames.

Makes a folder of real pictures (a few different ones, each under many names) and times what a swap does
with the whole of it beside the swapping: the scan (headers, numbering), the hash of its contents, the plan
(written and read back, with a face in every frame), the segments (every frame copied, as where no face is)
and the output (copied, and linked as from a job folder that is deleted). Memory is the process's peak so
far: it must not grow with the number of files by more than their names take.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ldvid.configs.settings import Settings
from ldvid.pipeline.files import sha256_of
from ldvid.pipeline.finish import join
from ldvid.pipeline.plan import Plan, cut_segments
from ldvid.pipeline.progress import peak_memory
from ldvid.stages.decode import probe
from ldvid.stages.encode import EncodeOptions, EncodeStage, RenderedSegment
from ldvid.stages.records import ClipInfo, Frame, Track
from rich.console import Console
from rich.table import Table

DIFFERENT = 8


def make(folder: Path, suffix: str, files: int, width: int) -> int:
    """Frames f000001 … of 16:9; returns their bytes."""
    rng = np.random.default_rng(0)
    height = width * 9 // 16
    pictures = []
    for _ in range(DIFFERENT):
        smooth = cv2.resize(rng.integers(0, 256, (9, 16, 3), np.uint8), (width, height))
        done, data = cv2.imencode(suffix, smooth)
        assert done
        pictures.append(data.tobytes())
    folder.mkdir()
    for i in range(files):
        (folder / f"f{i + 1:06d}{suffix}").write_bytes(pictures[i % DIFFERENT])
    return sum(len(pictures[i % DIFFERENT]) for i in range(files))


def plan_of(info: ClipInfo) -> Plan:
    """One face in every frame, no cut."""
    n = info.frames
    rng = np.random.default_rng(0)
    boxes, points = (rng.uniform(0, 300, (n, *s)).astype(np.float32) for s in ((4,), (5, 2)))
    track = Track(0, 0, np.arange(n), boxes, points, np.ones(n, np.float32), np.ones(512, np.float32))
    return Plan(info, ((0, n),), (track,), {0: 0}, cut_segments([(0, n)], 48))


def copied_segments(info: ClipInfo, plan: Plan, folder: Path) -> list[Path]:
    """Every frame as it was."""
    stage = EncodeStage(info, EncodeOptions.from_settings(Settings(), info), folder)
    blank = np.zeros((1, 1, 3), np.uint8)
    made = []
    for s in plan.segments:
        frames = [Frame(i, blank) for i in range(s.start, s.stop)]
        made.append(stage.process(RenderedSegment(s, frames, [blank] * len(frames), [None] * len(frames), 0)))
    return made


def measure(place: Path, suffix: str, files: int, width: int, table: Table) -> None:
    """A row for each step."""
    folder = place / f"frames{suffix}"
    size = make(folder, suffix, files, width)

    def timed(what: str, work: Callable[[], Any], note: str = "") -> Any:
        began = time.perf_counter()
        result = work()
        took = time.perf_counter() - began
        memory = f"{peak_memory() / 2**20:.0f}"
        table.add_row(suffix, what, f"{took:.2f}", f"{files / took:,.0f}", memory, note)
        return result

    info = timed("scan", lambda: probe(folder), f"{size / 2**20:.0f} MiB in {files} files")
    assert info.frames == files and not info.warnings and info.rate == Fraction(25)
    timed("sha256", lambda: sha256_of(folder, info.files))
    plan = plan_of(info)
    text = timed("plan.json, write", plan.to_json)
    read = timed("plan.json, read", lambda: Plan.from_json(text), f"{len(text) / 2**20:.1f} MiB")
    assert read.clip == info
    segments = timed("segments", lambda: copied_segments(info, plan, place / "segments"), "flushed to disk")
    for link in (False, True):
        output = place / "output"
        timed(
            "output, linked" if link else "output, copied",
            lambda o=output, keep=link: join(info, segments, o, {}, overwrite=False, link=keep),
        )
        shutil.rmtree(output)
    shutil.rmtree(folder)
    shutil.rmtree(place / "segments")


def main() -> None:
    """Measure PNG and JPEG, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--folder", type=Path, help="where to make the files; default: the system's own")
    given = parser.parse_args()
    table = Table(
        title=f"{given.files} frames of {given.width}×{given.width * 9 // 16}, {os.cpu_count()} cores"
    )
    for name in ("type", "step", "s", "frames/s", "peak MiB", ""):
        table.add_column(name, justify="left" if name in ("type", "step", "") else "right")
    with tempfile.TemporaryDirectory(prefix="ldvid-bench-", dir=given.folder) as place:
        for suffix in (".png", ".jpg"):
            measure(Path(place), suffix, given.files, given.width, table)
    Console(width=max(100, Console().width)).print(table)


if __name__ == "__main__":
    main()
