"""How long threads that make masks wait for one that asks a GPU for one small thing after another.

    python benchmarks/hand_over.py [--threads 2 8] [--masks 48]

A mask is dozens of short calls of OpenCV and numpy, each of which gives up the interpreter. Whoever wants
it back waits up to Python's switch interval (5 ms unless set) if another thread never gives it up by itself.
Here that thread only fills dictionaries, as launching kernels from Python is mostly that. Seconds are those
of a CPU, so only their ratios say anything.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from ldvid.stages.align import AlignStage
from ldvid.stages.decode import open_reader, probe
from ldvid.stages.detect import open_detector
from ldvid.stages.mask_shape import soft_mask
from ldvid.stages.occlusion import occluders
from ldvid.stages.oval import face_oval
from ldvid.stages.records import Crops, Track
from ldvid.stages.swap.pack import open_pack
from rich.console import Console
from rich.table import Table

CLIP = Path(__file__).resolve().parents[1] / "examples/clip.mp4"
INTERVALS = (5e-3, 5e-4, 2e-4, 1e-4)


def one_crop() -> Crops:
    """The aligned face of the example clip's first frame."""
    pack = open_pack("starter")
    frame = next(open_reader(probe(CLIP), "pyav").read(0, 1))
    face = open_detector(pack, 0.6).detect(frame.rgb)[0]
    one, nobody = np.ones(1, np.float32), np.zeros(0, np.float32)
    track = Track(0, 0, np.zeros(1, np.int64), face.box[None], face.landmarks[None], one, nobody)
    return AlignStage(track, pack.manifest.template_points(), pack.manifest.crop_size).process([frame])


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--masks", type=int, default=48)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    crop = one_crop()
    image, landmarks = crop.images[0], crop.landmarks[0]
    face = face_oval(landmarks, len(image))

    def mask(_: int) -> None:
        soft_mask(face, 4, 6) * face_oval(landmarks, len(image)) * (1 - occluders(image, face, face * 0))

    def timed(threads: int) -> float:
        with ThreadPoolExecutor(threads) as pool:
            began = time.perf_counter()
            list(pool.map(mask, range(options.masks)))
            return 1000 * (time.perf_counter() - began) / options.masks

    table = Table(title=f"ms a mask; alone, with one thread: {timed(1):.1f}")
    for column in ("switch interval, ms", *(f"{n} threads" for n in options.threads)):
        table.add_column(column, justify="right")
    for interval in INTERVALS:
        sys.setswitchinterval(interval)
        row = []
        for threads in options.threads:
            done = threading.Event()

            def ask(done: threading.Event = done) -> None:
                while not done.is_set():
                    {str(i): i for i in range(20)}

            asking = threading.Thread(target=ask)
            asking.start()
            row.append(f"{timed(threads):.1f}")
            done.set()
            asking.join()
        table.add_row(f"{1000 * interval:g}", *row)
    Console().print(table)


if __name__ == "__main__":
    main()
