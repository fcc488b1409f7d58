"""Peak memory by the clip's length: the same for 10 seconds and for 3 minutes of the same 720p video.

    python benchmarks/memory.py [--seconds 2 6] [--executor local ray] [--device auto] [--workers 1]
        [--rate 12] [--set key=value] [--json FILE]

Each row is ``ldvid swap`` in a process of its own on a 1280×720 clip (examples/clip.mp4 scaled, back and
forth, ``--rate`` frames a second). The peaks are the kernel's own (VmHWM) of the driver and of every
process it started, the largest of a kind; with Ray they count the shared object store wherever it is
mapped. *ratio* is the longest clip's peak over the shortest's. docs/scaling.md has it for 10 s and 3 min.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from long_clip import write_long_clip
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
_KINDS = {
    "MapWorker": "swap worker",
    "ray::": "task worker",
    "raylet": "Ray's own",
    "gcs_server": "Ray's own",
}


def descendants(root: int) -> list[int]:
    """A process and all that it started, and those started."""
    children = defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children[parent].append(int(folder.name))
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def peak_of(pid: int) -> tuple[str, int]:
    """What a process is, and the most memory it held, in bytes."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "", 0
    kind = next((name for mark, name in _KINDS.items() if mark in command), "")
    held = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
    return kind, held * 1024


def measure(args: argparse.Namespace, executor: str, seconds: float, folder: Path) -> dict[str, Any]:
    """One row: the peaks by kind of process."""
    clip = folder / f"{seconds:g}.mp4"
    frames = write_long_clip(clip, seconds, 1280, 720, args.rate)
    command = [sys.executable, "-m", "ldvid", "swap", str(clip), "--source", str(ROOT / "examples/face.png")]
    command += ["-o", str(folder / f"{executor}-{seconds:g}.mp4"), "--device", args.device, "--quiet"]
    command += [part for value in args.set for part in ("--set", value)]
    if executor == "ray":
        command += ["--executor", "ray", "--workers", str(args.workers)]
    began = time.perf_counter()
    running = subprocess.Popen(command)
    peaks: dict[str, int] = defaultdict(int)
    while running.poll() is None:
        for pid in descendants(running.pid):
            kind, held = peak_of(pid)
            kind = "driver" if pid == running.pid else kind
            peaks[kind] = max(peaks[kind], held)
        time.sleep(0.2)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {running.returncode}")
    took = time.perf_counter() - began
    return {
        "executor": executor,
        "seconds": seconds,
        "frames": frames,
        "wall": round(took, 1),
        "peaks": dict(peaks),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The table: one line an executor and kind of process."""
    lengths = sorted({r["seconds"] for r in rows})
    table = Table(title=f"Peak memory, MiB; {os.cpu_count()} CPUs")
    table.add_column("executor")
    table.add_column("process")
    for s in lengths:
        table.add_column(f"{s:g} s", justify="right")
    table.add_column("ratio", justify="right")
    for executor in dict.fromkeys(r["executor"] for r in rows):
        here = {r["seconds"]: r["peaks"] for r in rows if r["executor"] == executor}
        for kind in ("driver", "swap worker", "task worker", "Ray's own"):
            held = [here[s].get(kind, 0) for s in lengths]
            if all(held):
                cells = [f"{h / 2**20:.0f}" for h in held]
                table.add_row(executor, kind, *cells, f"{held[-1] / held[0]:.2f}")
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 6.0])
    parser.add_argument("--executor", nargs="+", default=["local", "ray"], choices=("local", "ray"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rate", type=int, default=12)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.set = args.set or ["steps=1"]
    with tempfile.TemporaryDirectory(prefix="ldvid-memory-") as folder:
        rows = [measure(args, e, s, Path(folder)) for e in args.executor for s in args.seconds]
    show(rows)
    if args.json is not None:
        facts = {
            "machine": platform.platform(),
            "cpus": os.cpu_count(),
            "command": sys.argv[1:],
            "rows": rows,
        }
        args.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
