"""Frames a second by the number of workers, on one machine: this process alone, then Ray with 1, 2, …

    python benchmarks/scaling.py [--workers 1 2] [--device auto] [--gpu-fraction 1.0] [--threads 1]
        [--seconds 2] [--set key=value] [--preset cpu] [--repeat 1] [--json FILE]

Every row swaps the same clip (examples/clip.mp4 back and forth, 640×360, ``--seconds`` long) in a process
of its own. Ray's workers first swap a short piece, so that starting them and loading networks don't count;
*frames/s* is all frames over the time from the first segment handed out to the last one written: decode,
align, mask, swap, paste and encode. *efficiency* is frames/s by worker against Ray with one worker; *swap
busy* the share of that time in which the swap's workers computed. Outputs must be the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ldvid.configs import load_settings
from ldvid.pipeline.executor import Executor, LocalExecutor
from ldvid.pipeline.failure import Policy
from ldvid.pipeline.request import RayOptions, SwapRequest
from ldvid.pipeline.swap import swap_clip
from ldvid.pipeline.work import Rendering
from long_clip import write_long_clip
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]


def measure(args: argparse.Namespace, workers: int, clip: Path, folder: Path) -> dict[str, Any]:
    """One row; 0 workers are this process alone."""
    settings = load_settings(args.preset, assignments=args.set)
    kept: list[Rendering] = []

    def swap(executor: Executor, name: str, end: float | None) -> dict[str, Any]:
        render = executor.render

        def keeping(*values: Any) -> Rendering:
            kept.append(render(*values))
            return kept[-1]

        executor.render = keeping  # type: ignore[method-assign]
        try:
            request = SwapRequest(
                clip,
                ROOT / "examples" / "face.png",
                settings,
                output=folder / f"{name}.mp4",
                end=end,
                device=args.device,
                threads=args.threads,
            )
            summary = swap_clip(request, executor=executor)
        finally:
            executor.render = render  # type: ignore[method-assign]
        took = kept[-1].seconds
        return {
            "workers": workers,
            "device": summary.device,
            "frames": summary.frames,
            "seconds": round(took, 3),
            "frames_per_second": round(summary.frames / took, 3),
            "swap_busy": round(kept[-1].share, 4),
            "sha256": hashlib.sha256(Path(summary.output).read_bytes()).hexdigest(),
        }

    if not workers:
        executor = LocalExecutor(Policy())
        swap(executor, "warm", 1.0)
        return swap(executor, "whole", None)
    from ldvid.pipeline.cluster.executor import RayExecutor

    gpus = None if args.device == "cpu" else args.gpu_fraction
    options = RayOptions(workers=workers, gpu_fraction=gpus or 1.0)
    with RayExecutor(options, Policy()) as cluster:
        swap(cluster, "warm", float(max(1, workers) * settings.segment_frames) / 25)
        return swap(cluster, "whole", None)


def in_process(row: int, args: argparse.Namespace, clip: Path) -> dict[str, Any]:
    """The same in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="ldvid-scaling-") as folder:
        given = list(sys.argv[1:])
        command = [
            sys.executable,
            __file__,
            *given,
            "--row",
            str(row),
            "--clip",
            str(clip),
            "--folder",
            folder,
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{row} workers: the run failed")
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def show(rows: list[dict[str, Any]], one: float) -> None:
    """The table."""
    table = Table(title=f"{rows[0]['device']}, {os.cpu_count()} CPUs; {rows[0]['frames']} frames")
    for name in ("workers", "frames/s", "efficiency", "swap busy", "seconds"):
        table.add_column(name, justify="right")
    for row in rows:
        n = row["workers"]
        efficiency = f"{row['frames_per_second'] / one / n:.2f}" if n else ""
        table.add_row(
            str(n) if n else "no Ray",
            f"{row['frames_per_second']:.2f}",
            efficiency,
            f"{row['swap_busy']:.0%}",
            f"{row['seconds']:.1f}",
        )
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--gpu-fraction", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--clip", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.set:
        args.set = ["steps=1", "segment_frames=8", "keyframe_interval=8"]
    if args.row is not None:
        print(json.dumps(measure(args, args.row, args.clip, args.folder)))  # noqa: T201
        return
    with tempfile.TemporaryDirectory(prefix="ldvid-scaling-") as folder:
        clip = Path(folder) / "clip.mp4"
        write_long_clip(clip, args.seconds, 640, 360)
        rows = [in_process(n, args, clip) for n in (0, *args.workers) for _ in range(args.repeat)]
    ones = [r["frames_per_second"] for r in rows if r["workers"] == 1] or [rows[-1]["frames_per_second"]]
    show(rows, sum(ones) / len(ones))
    if args.json is not None:
        facts = {
            "machine": platform.platform(),
            "cpus": os.cpu_count(),
            "command": sys.argv[1:],
            "rows": rows,
        }
        args.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if len({r["sha256"] for r in rows}) != 1:
        raise SystemExit("the outputs differ")


if __name__ == "__main__":
    main()
