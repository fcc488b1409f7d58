"""What presets of x264 cost and bring, at ldvid's quality.

    python benchmarks/encoder_presets.py [CLIP ...] [--frames 96] [--presets medium veryfast superfast]

The first frames of each clip are encoded as a segment is (keyframes every 48 frames, two threads, no
macroblock tree) and decoded again. CPU seconds are this process's, user and system, without decoding.
"""

from __future__ import annotations

import argparse
import resource
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from ldvid.stages.codecs import find_encoder, quality_options
from rich.console import Console
from rich.table import Table

CLIP = Path(__file__).resolve().parents[1] / "examples/clip.mp4"
PRESETS = ["medium", "fast", "faster", "veryfast", "superfast"]
KEYFRAMES, THREADS = 48, 2


def seconds() -> float:
    """Of the processor, so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def encoded(frames: list[Any], preset: str) -> tuple[float, int, float]:
    """CPU seconds, bytes, and the mean squared error of luma of what is decoded again."""
    first = frames[0]
    context: Any = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = first.width, first.height, first.format.name
    context.framerate, context.time_base = 30, Fraction(1, 30)
    context.gop_size, context.thread_count = KEYFRAMES, THREADS
    context.options = {**quality_options(find_encoder("libx264"), None)[1], "preset": preset}
    packets: list[Any] = []
    began = seconds()
    for number, frame in enumerate(frames):
        frame.pts, frame.time_base, frame.pict_type = number, context.time_base, 0
        packets += context.encode(frame)
    packets += context.encode(None)
    took = seconds() - began
    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.extradata = context.extradata
    back = [picture for packet in [*packets, None] for picture in decoder.decode(packet)]
    pairs = zip(frames, back, strict=True)
    error = np.mean([np.mean((luma(a) - luma(b)) ** 2) for a, b in pairs])
    return took, sum(packet.size for packet in packets), float(error)


def luma(frame: Any) -> Any:
    """(H, W) float64."""
    return frame.to_ndarray()[: frame.height].astype(np.float64)


def main() -> None:
    """Encode, decode, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path, default=[CLIP])
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    options = parser.parse_args()
    table = Table("clip", "preset", "CPU a frame, ms", "Mbit/s at 30 fps", "luma PSNR, dB")
    for clip in options.clips:
        with av.open(str(clip)) as container:
            frames = list(islice(container.decode(video=0), options.frames))
        for preset in options.presets:
            took, size, error = encoded(frames, preset)
            rate = 8e-6 * size * 30 / len(frames)
            psnr = 10 * np.log10(255**2 / error)
            table.add_row(clip.name, preset, f"{1000 * took / len(frames):.1f}", f"{rate:.2f}", f"{psnr:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
