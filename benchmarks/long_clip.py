"""A longer clip out of a short one, for benchmarks: its frames back and forth, at any size.

python benchmarks/long_clip.py OUT.mp4 [--seconds 10] [--width 1280 --height 720] [--rate 25] [--clip CLIP]
"""

from __future__ import annotations

import argparse
from itertools import chain, cycle, islice
from pathlib import Path

import av
import cv2
from ldvid.stages.decode import open_reader, probe

ROOT = Path(__file__).resolve().parents[1]


def write_long_clip(
    out: Path,
    seconds: float,
    width: int,
    height: int,
    rate: int = 25,
    clip: Path = ROOT / "examples" / "clip.mp4",
) -> int:
    """Write H.264 at ``rate`` frames a second and return the number of frames. The picture is scaled to
    fit and padded; played back and forth, it has no cuts."""
    info = probe(clip)
    pictures = [frame.rgb for frame in open_reader(info, "pyav").read(0, info.frames)]
    scale = min(width / info.width, height / info.height)
    size = (round(info.width * scale), round(info.height * scale))
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    pad = (top, height - size[1] - top, left, width - size[0] - left)
    fitted = [
        cv2.copyMakeBorder(cv2.resize(p, size, interpolation=cv2.INTER_CUBIC), *pad, cv2.BORDER_CONSTANT)
        for p in pictures
    ]
    count = round(seconds * rate)
    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast"}
        for picture in islice(cycle(chain(fitted, fitted[-2:0:-1])), count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--rate", type=int, default=25)
    parser.add_argument("--clip", type=Path, default=ROOT / "examples" / "clip.mp4")
    args = parser.parse_args()
    if args.out is None:
        parser.print_help()
        return
    frames = write_long_clip(args.out, args.seconds, args.width, args.height, args.rate, args.clip)
    print(f"{args.out}: {frames} frames")  # noqa: T201


if __name__ == "__main__":
    main()
