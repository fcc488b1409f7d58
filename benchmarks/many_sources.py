"""How much of a swap's identity depends on whose face is put in: some frames of a clip, many portraits.

    python benchmarks/many_sources.py [CLIP SOURCE …] [--preset quality] [--set key=value]
        [--frames 8] [--end 1.6]

Frames are taken evenly from the clip's beginning and swapped as single pictures, without the average along a
track. Identity is recovered as in ``swap_quality.py``, by two anchors: frames of the same person half the
clip apart ("frames"), which differ in little but expression, and two photographs of one person
("photographs"). "turned" is the angle between the source's head and the target's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ldvid.configs import load_settings
from ldvid.metrics.judge import recovery
from ldvid.metrics.judges import open_judges
from ldvid.stages.align import AlignStage
from ldvid.stages.decode import read_picture
from ldvid.stages.detect import open_detector
from ldvid.stages.mask import MaskStage
from ldvid.stages.paste import PasteStage
from ldvid.stages.records import Track
from ldvid.stages.source import load_source
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import open_pack
from ldvid.stages.swap.stage import SwapStage
from rich.console import Console
from rich.table import Table
from swap_quality import PHOTOGRAPHS, frames_of

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def main() -> None:
    """Parse, swap, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("clip", type=Path, nargs="?", default=EXAMPLES / "clip.mp4")
    examples = [EXAMPLES / "face.png", EXAMPLES / "face-2.png"]
    parser.add_argument("sources", type=Path, nargs="*", default=examples)
    parser.add_argument("--preset", default="quality")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--end", type=float, default=1.6)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    settings = load_settings(options.preset, assignments=options.assignments)
    pack = open_pack(settings.pack)
    net = Networks.load(pack, options.device, settings.dtype)
    detector, judges = open_detector(pack, settings.detector_threshold), open_judges(pack)
    every = frames_of(options.clip, 0, options.end)
    picked = np.linspace(0, len(every) - 1, options.frames).round().astype(int)
    frames = [every[i].at(n) for n, i in enumerate(picked)]
    found = [detector.detect(f.rgb)[0] for f in frames]
    track = Track(
        0, 0, np.arange(len(frames)), np.stack([d.box for d in found]),
        np.stack([d.landmarks for d in found]), np.ones(len(frames), np.float32), np.zeros(0, np.float32),
    )  # fmt: skip
    own = np.stack([judges.identity.embed(f.rgb, d.landmarks) for f, d in zip(frames, found, strict=True)])
    poses = np.stack([judges.pose.pose(f.rgb, d.landmarks) for f, d in zip(frames, found, strict=True)])
    same = (own * np.roll(own, len(own) // 2, 0)).sum(1)
    crops = AlignStage(track, pack.manifest.template_points(), pack.manifest.crop_size).process(frames)
    masked = MaskStage(net, settings).process(crops)
    rows = []
    for path in options.sources:
        photo = read_picture(path)
        points = detector.detect(photo)[0].landmarks
        wanted, pose = judges.identity.embed(photo, points), judges.pose.pose(photo, points)
        source = load_source(path, pack, detector, net.embed, None)[0]
        swapped = SwapStage(net, settings, source).process(masked)
        pictures, _ = PasteStage(settings).process((frames, [swapped]))
        new = np.array(
            [judges.identity.embed(p, d.landmarks) @ wanted for p, d in zip(pictures, found, strict=True)]
        )
        off = [
            np.linalg.norm(judges.pose.pose(p, d.landmarks) - before)
            for p, d, before in zip(pictures, found, poses, strict=True)
        ]
        unrelated = own @ wanted
        turned = np.linalg.norm((poses - pose)[:, :2], axis=1).mean()
        two = np.full(len(new), PHOTOGRAPHS)
        figures = recovery(new, unrelated, same), recovery(new, unrelated, two), np.mean(off)
        rows.append((path.name, turned, unrelated.mean(), *figures))
    table = Table(title=f"{options.clip.name}, preset {options.preset}, s_same of frames {same.mean():.3f}")
    table.add_column("source")
    for column in ("turned, °", "s_unrelated", "recovered, frames", "photographs", "pose, °"):
        table.add_column(column, justify="right")
    for name, *values in [*rows, ("mean", *np.mean([r[1:] for r in rows], 0))]:
        digits = (0, 3, 2, 2, 1)
        table.add_row(name, *(f"{v:.{d}f}" for v, d in zip(values, digits, strict=True)))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
