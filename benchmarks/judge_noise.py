"""How much the judges of ``ldvid evaluate`` vary where nothing was swapped: the noise floor of its tables.

    python benchmarks/judge_noise.py [CLIP …] [--portraits FOLDER]

Four comparisons, each by the three judges: a frame with itself saved as JPEG of quality 90; a frame with
itself where every landmark is off by a normal error of 2 % of the eye distance; successive frames; frames
half a clip apart. Faces are the largest found in each frame, measured anew in each. Then landmarks and
skin, which are measured where two pictures coincide: a frame with itself as JPEG, and moved by half a
pixel. With portraits, each measure's standard deviation within a talking person is set against that
between people.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from ldvid.configs import load_settings
from ldvid.metrics.expression import FEATURES, WEIGHTS, expression_error
from ldvid.metrics.judges import Judges, open_judges
from ldvid.metrics.pair import landmark_error
from ldvid.metrics.skin import skin_difference
from ldvid.pipeline.bench import Bench
from ldvid.stages.decode import open_reader, probe, read_picture
from ldvid.stages.detect import open_detector
from ldvid.stages.records import F32, U8
from ldvid.stages.swap.pack import open_pack
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
Measured = tuple[F32, F32, F32]


def measure(judges: Judges, picture: U8, landmarks: F32) -> Measured:
    """Identity (128,), pose (3,), expression (E,)."""
    return (
        judges.identity.embed(picture, landmarks),
        judges.pose.pose(picture, landmarks),
        judges.expression(picture, landmarks),
    )


def differ(a: Measured, b: Measured) -> tuple[float, float, float]:
    """1 − cosine, degrees, and the expression error."""
    return float(1 - a[0] @ b[0]), float(np.linalg.norm(a[1] - b[1])), expression_error(a[2], b[2])


def places(bench: Bench, picture: U8) -> dict[str, tuple[float, float, float]] | None:
    """Landmark error in %, skin ΔE2000 and its cast of a frame against itself; None without a face."""
    found = bench.base.detector.detect(picture)
    if not found:
        return None
    points, crops = found[0].landmarks, bench.crops(picture, found[0])
    skin, result = bench.skin(picture, crops), {}
    half = np.float32([[1, 0, 0.5], [0, 1, 0.5]])
    size = picture.shape[1], picture.shape[0]
    moved = cv2.warpAffine(picture, half, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    others = {"as JPEG": (recompressed(picture), 0.0), "moved by half a pixel": (moved.astype(np.uint8), 0.5)}
    for name, (other, by) in others.items():
        there, made = bench.points(other, points), bench.skin(other, crops)
        difference = None if skin is None or made is None else skin_difference(skin, made)
        if there is not None and difference is not None:
            result[name] = (landmark_error(there - np.float32(by), points), *difference)
    return result


def recompressed(picture: U8) -> U8:
    """The picture after a JPEG of quality 90."""
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="*", type=Path, default=[ROOT / "examples/clip.mp4"])
    parser.add_argument("--portraits", type=Path, help="a folder of pictures of different people")
    args = parser.parse_args()
    pack, console = open_pack("starter"), Console(width=100)
    detector, judges = open_detector(pack, 0.6), open_judges(pack)
    noise = np.random.default_rng(0)
    bench = Bench(load_settings("cpu"), "cpu")
    inside, means = [], []
    for clip in args.clips:
        info = probe(clip)
        own, jpeg, moved, placed = [], [], [], []
        for frame in open_reader(info, "pyav").read(0, info.frames):
            found = detector.detect(frame.rgb)
            if not found:
                continue
            points = found[0].landmarks
            placed.append(places(bench, frame.rgb) or {})
            off = 0.02 * np.linalg.norm(points[1] - points[0]) * noise.normal(size=(5, 2))
            own.append(measure(judges, frame.rgb, points))
            jpeg.append(differ(own[-1], measure(judges, recompressed(frame.rgb), points)))
            moved.append(differ(own[-1], measure(judges, frame.rgb, points + off.astype(np.float32))))
        half = len(own) // 2
        rows = {
            "the same frame as JPEG": jpeg,
            "landmarks off by 2 %": moved,
            "successive frames": [differ(a, b) for a, b in pairwise(own)],
            "half a clip apart": [differ(a, b) for a, b in zip(own, own[half:], strict=False)],
        }
        table = Table(title=f"{clip.name}, {len(own)} faces: median (95th percentile)")
        for column in ("", "identity, 1 − cosine", "pose, degrees", "expression"):
            table.add_column(column, justify="right" if column else "left")
        for name, values in rows.items():
            median, high = np.median(values, 0), np.percentile(values, 95, axis=0)
            table.add_row(name, *(f"{m:.3f} ({h:.3f})" for m, h in zip(median, high, strict=True)))
        console.print(table)
        table = Table(title=f"{clip.name}, the same frame: median (95th percentile)")
        for column in ("", "landmarks, %", "skin ΔE2000", "cast"):
            table.add_column(column, justify="right" if column else "left")
        for name in dict.fromkeys(name for row in placed for name in row):
            array = np.array([row[name] for row in placed if name in row])
            median, high = np.median(array, 0), np.percentile(array, 95, axis=0)
            table.add_row(name, *(f"{m:.2f} ({h:.2f})" for m, h in zip(median, high, strict=True)))
        console.print(table)
        inside.append(np.var([m[2] for m in own], axis=0))
        means.append(np.mean([m[2] for m in own], axis=0))
    if args.portraits:
        for path in sorted(p for p in args.portraits.rglob("*") if p.suffix in (".jpg", ".png", ".webp")):
            picture = read_picture(path)
            for face in detector.detect(picture)[:1]:
                means.append(judges.expression(picture, face.landmarks))
        within, between = np.sqrt(np.mean(inside, axis=0)), np.std(means, axis=0)
        table = Table(title=f"standard deviations, {len(inside)} clips and {len(means)} people")
        for column in ("measure", "within", "between", "ratio", "weight"):
            table.add_column(column, justify="left" if column == "measure" else "right")
        for name, w, b in zip(FEATURES, within, between, strict=True):
            table.add_row(name, f"{w:.2f}", f"{b:.2f}", f"{w / b:.2f}", f"{WEIGHTS[name]:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
