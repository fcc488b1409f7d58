"""How sharp a swapped face is beside its surround, against the original; and how much grain it has.

    python benchmarks/sharpness.py [CLIP …] [--source FACE] [--start 20] [--frames 9] [--preset cpu]
        [--pack NAME] [--set key=value] [--sheet FILE.png] [--json FILE]

Frames are swapped once and pasted several times: with ``detail``, ``motion_blur`` and ``grain`` off, with
one of them, and with all. Sharpness is the root mean square of luma less its Gaussian of 2 frame pixels.
*fine* is that of a Laplacian, nearer to single pixels. Both are of the face (mask above 0.9) over its
surround (a box of twice its sides, outside the mask), swapped over original, so 1 is as sharp beside its
surround as the face was. *grain* is the luma noise level of face and original (``stages/grain.py``), *blur*
the largest blur (σ in crop pixels) that a face was given. What of the path is not measured is the encoder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from ldvid.configs import Settings, load_settings
from ldvid.stages.align import scale_of
from ldvid.stages.detail import LUMA
from ldvid.stages.detect import open_detector
from ldvid.stages.grain import levels
from ldvid.stages.mask import MaskStage
from ldvid.stages.motion_blur import blur_between
from ldvid.stages.paste import PasteStage
from ldvid.stages.records import F32, U8, Crops, Frame
from ldvid.stages.source import load_source
from ldvid.stages.steady import steady
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import Pack, open_pack
from ldvid.stages.swap.stage import SwapStage
from occluded_clip import crops_of
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
KEYS = ("detail", "motion_blur", "grain")
WAYS = {"off": (0, 0, 0), "detail": (1, 0, 0), "motion blur": (0, 1, 0), "grain": (0, 0, 1), "all": (1, 1, 1)}


def swapped(clip: Path, source: Path, start: int, count: int, pack: Pack, settings: Settings) -> Crops:
    """Crops of consecutive frames of a clip's largest face, swapped and steadied."""
    networks, detector = Networks.load(pack, "cpu"), open_detector(pack, settings.detector_threshold)
    frames = clip_frames(clip, start, count)
    found = [detector.detect(f.rgb) for f in frames]
    crops = crops_of([f.rgb for f in frames], np.stack([d[0].landmarks for d in found]), pack)
    face = load_source(source, pack, detector, networks.embed, face=None)[0]
    crops = SwapStage(networks, settings, face).process(MaskStage(networks, settings).process(crops))
    return steady(crops, settings.steady, 0, count)


def clip_frames(clip: Path, start: int, count: int) -> list[Frame]:
    """Consecutive frames, numbered from 0."""
    from ldvid.stages.decode import open_reader, probe

    info = probe(clip)
    read = open_reader(info, "pyav").read(start, min(start + count, info.frames))
    return [Frame(i, f.rgb) for i, f in enumerate(read)]


def sharpness(picture: U8, where: np.ndarray) -> tuple[float, float]:
    """Root mean squares of the two high-passes in a region."""
    luma = picture.astype(np.float32) @ LUMA
    passes = (luma - cv2.GaussianBlur(luma, (0, 0), 2), cv2.Laplacian(luma, cv2.CV_32F))
    return float(np.sqrt((passes[0][where] ** 2).mean())), float(np.sqrt((passes[1][where] ** 2).mean()))


def surround(alpha: F32) -> np.ndarray:
    """A box of twice the sides of what is touched, without it."""
    ys, xs = np.nonzero(alpha)
    dy, dx = (ys.max() - ys.min()) // 2, (xs.max() - xs.min()) // 2
    box = np.zeros(alpha.shape, bool)
    box[max(ys.min() - dy, 0) : ys.max() + dy, max(xs.min() - dx, 0) : xs.max() + dx] = True
    return box & (alpha == 0)


def measure(frames: list[Frame], crops: Crops, settings: Settings) -> tuple[dict[str, float], list[U8]]:
    """The figures of one way of pasting, means over the frames, and the pictures."""
    pictures, touched = PasteStage(settings).process((frames, [crops]))
    rows = []
    for frame, picture, alpha in zip(frames, pictures, touched, strict=True):
        assert alpha is not None and picture.dtype == np.uint8
        face, around = alpha > 0.9, surround(alpha)
        new, old = sharpness(picture, face), sharpness(frame.rgb, face)
        beside = [sharpness(p, around) for p in (picture, frame.rgb)]
        grain = [
            float(levels(p.astype(np.float32), face.astype(np.float32))[0, 0]) for p in (picture, frame.rgb)
        ]
        ratio = [(new[i] / beside[0][i]) / (old[i] / beside[1][i]) for i in (0, 1)]
        rows.append([*ratio, *grain])
    mean = np.mean(rows, 0)
    names = ("sharpness", "fine", "grain", "grain, original")
    return dict(zip(names, mean.tolist(), strict=True)), [p for p in pictures if p.dtype == np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="*", type=Path, default=[ROOT / "examples/clip.mp4"])
    parser.add_argument("--source", type=Path, default=ROOT / "examples/face.png")
    parser.add_argument("--start", type=int, default=20)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--pack")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--sheet", type=Path, help="the middle frame: original, then each way")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = load_settings(
        args.preset, overrides={"pack": args.pack} if args.pack else {}, assignments=args.assignments
    )
    pack = open_pack(settings.pack)
    table = Table(title=f"preset {args.preset}, pack {settings.pack}, {' '.join(args.assignments)}")
    for column in (
        "clip",
        "crop px/frame px",
        "way",
        "sharpness",
        "fine",
        "grain",
        "grain, original",
        "blur",
    ):
        table.add_column(column, justify="left" if column in ("clip", "way") else "right")
    rows, cells = [], []
    for clip in args.clips:
        frames = clip_frames(clip, args.start, args.frames)
        crops = swapped(clip, args.source, args.start, len(frames), pack, settings)
        assert crops.swapped is not None and crops.masks is not None
        scale = float(np.mean([scale_of(m) for m in crops.matrices]))
        blur = max(
            float(np.sqrt(np.linalg.eigvalsh(blur_between(s, t, m, scale))[-1].clip(0)))
            for s, t, m in zip(crops.swapped, crops.images, crops.masks, strict=True)
        )
        middle = len(frames) // 2
        shown = [frames[middle].rgb]
        for way, values in WAYS.items():
            figures, pictures = measure(
                frames, crops, settings.model_copy(update=dict(zip(KEYS, map(float, values), strict=True)))
            )
            given = blur if values[1] else 0.0
            rows.append({"clip": clip.stem, "scale": scale, "way": way, **figures, "blur": given})
            table.add_row(
                clip.stem, f"{scale:.2f}", way, *(f"{v:.2f}" for v in figures.values()), f"{given:.1f}"
            )
            shown.append(pictures[middle])
        centre = crops.landmarks[middle].mean(0)
        x, y = np.linalg.solve(crops.matrices[middle][:, :2], centre - crops.matrices[middle][:, 2])
        half = int(90 / scale)
        cut = np.s_[max(int(y) - half, 0) : int(y) + half, max(int(x) - half, 0) : int(x) + half]
        cells.append(
            np.hstack([cv2.resize(p[cut], (400, 400), interpolation=cv2.INTER_CUBIC) for p in shown])
        )
    Console(width=110).print(table)
    if args.sheet:
        cv2.imwrite(str(args.sheet), np.vstack(cells)[..., ::-1])
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
