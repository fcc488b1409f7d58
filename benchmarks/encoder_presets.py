"""What presets of x264 cost and bring, at ldvid's quality.

    python benchmarks/encoder_presets.py [CLIP ...] [--frames 96] [--presets medium veryfast:subme=7 …]

The first frames of each clip are encoded as a segment is (CRF 15, keyframes every 48 frames, two threads, no
macroblock tree), with x264's parameters behind a preset's colon, and decoded again. CPU seconds are
this process's, user and system, without decoding. Warp ratio: how still the face is afterwards, 1 as still as
before (``metrics/stillness.py``).
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
from ldvid.metrics.stillness import StillnessMeter
from ldvid.stages.codecs import find_encoder, quality_options
from ldvid.stages.detect import open_detector
from ldvid.stages.swap.pack import open_pack
from rich.console import Console
from rich.table import Table

CLIP = Path(__file__).resolve().parents[1] / "examples/clip.mp4"
PRESETS = ["medium", "veryfast", "veryfast:subme=6", "veryfast:subme=7", "superfast"]
KEYFRAMES, THREADS = 48, 2


def seconds() -> float:
    """Of the processor, so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def encoded(frames: list[Any], preset: str) -> tuple[float, int, list[Any]]:
    """CPU seconds, bytes, and the frames decoded again."""
    name, _, more = preset.partition(":")
    first = frames[0]
    context: Any = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = first.width, first.height, first.format.name
    context.framerate, context.time_base = 30, Fraction(1, 30)
    context.gop_size, context.thread_count = KEYFRAMES, THREADS
    quality = quality_options(find_encoder("libx264"), None)[1]["crf"]
    parameters = ":".join(["mbtree=0", *([more] if more else [])])
    context.options = {"crf": quality, "preset": name, "x264-params": parameters}
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
    return took, sum(packet.size for packet in packets), back


def warp_ratio(frames: list[Any], back: list[Any], points: list[Any]) -> float:
    """Of the face with these landmarks, each None or (5, 2)."""
    meter = StillnessMeter()
    for number, (before, after, landmarks) in enumerate(zip(frames, back, points, strict=True)):
        if landmarks is not None:
            meter.add(number, before.to_ndarray(format="rgb24"), after.to_ndarray(format="rgb24"), landmarks)
    return meter.result().warp_ratio


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
    detector = open_detector(open_pack("starter"), 0.6)
    table = Table("clip", "preset", "CPU a frame, ms", "Mbit/s at 30 fps", "luma PSNR, dB", "warp ratio")
    for clip in options.clips:
        with av.open(str(clip)) as container:
            frames = list(islice(container.decode(video=0), options.frames))
        found = [detector.detect(frame.to_ndarray(format="rgb24")) for frame in frames]
        points = [faces[0].landmarks if faces else None for faces in found]
        for preset in options.presets:
            took, size, back = encoded(frames, preset)
            error = np.mean([np.mean((luma(a) - luma(b)) ** 2) for a, b in zip(frames, back, strict=True)])
            still = warp_ratio(frames, back, points)
            rate = 8e-6 * size * 30 / len(frames)
            psnr = 10 * np.log10(255**2 / error)
            figures = (1000 * took / len(frames), rate, psnr, still)
            shown = [f"{x:.{digits}f}" for x, digits in zip(figures, (1, 2, 1, 3), strict=True)]
            table.add_row(clip.name, preset, *shown)
    Console().print(table)


if __name__ == "__main__":
    main()
