"""Swap a clip and judge the result: identity, pose, landmarks, and what happened outside the face.

    python benchmarks/swap_quality.py [CLIP SOURCE] [--preset cpu] [--set key=value] [--start S --end S]
        [--identity-judge FILE.onnx --pose-judge FILE.onnx] [--sheet FILE.png] [--keep FILE.mp4]

Identity is *recovered* by (s_swap − s_unrelated) / (s_same − s_unrelated), cosines by a network that did
not guide (``metrics/judge.py``): s_swap of swapped frames to the source, s_unrelated of the original
frames to the source, s_same between frames of the original person half a clip apart or, "by photographs",
between two of one person, as ``ldvid evaluate`` has it. 0 is unchanged, 1 as near as another picture. Pose is
the mean length of the (yaw, pitch, roll) difference between a frame and its original. Landmarks are the
detector's, in per cent of the eye distance. Outside the face the frames are compared with the same encode of
the untouched clip. Warp ratio, identity spread and jitter are those of ``metrics/stillness.py``, of the
longest track. The judges are those of ``ldvid evaluate`` unless other files are given.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from ldvid.configs import Settings, load_settings
from ldvid.metrics.judge import recovery
from ldvid.metrics.judges import open_judges
from ldvid.metrics.stillness import measure
from ldvid.pipeline.plan import Plan
from ldvid.pipeline.request import SwapRequest
from ldvid.pipeline.swap import swap_clip
from ldvid.stages.align import AlignStage
from ldvid.stages.decode import open_reader, probe, read_picture
from ldvid.stages.detect import open_detector
from ldvid.stages.encode import EncodeOptions, EncodeStage, RenderedSegment
from ldvid.stages.mask import MaskStage
from ldvid.stages.paste import paste
from ldvid.stages.records import U8, Frame, Segment, Track
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import open_pack
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
# Cosine between two photographs of one person, the mean of the 31 of ``benchmarks/pairs64.csv``: what
# ``ldvid evaluate`` takes for a source without a second one (its common anchor).
PHOTOGRAPHS = 0.970
EDGE = 8  # pixels around the touched region that the codec may smear into


def frames_of(path: Path, start: float | None = None, end: float | None = None) -> list[Frame]:
    """All frames of a video, or those between two times in seconds; clips here are short."""
    info = probe(path, start=start, end=end)
    reader = open_reader(info, "pyav")
    return list(reader.read(0, info.frames))


def plain_encode(
    clip: Path, start: float | None, end: float | None, settings: Settings, folder: Path
) -> list[U8]:
    """The clip through the same encoder without a swap."""
    info = probe(clip, start=start, end=end)
    stage = EncodeStage(info, EncodeOptions.from_settings(settings, info), folder)
    pictures: list[U8] = []
    frames = frames_of(clip, start, end)
    for number, first in enumerate(range(0, len(frames), settings.segment_frames)):
        part = frames[first : first + settings.segment_frames]
        segment = Segment(number, first, first + len(part))
        path = stage.process(RenderedSegment(segment, part, [f.rgb for f in part], [None] * len(part), 0))
        pictures += [f.rgb for f in frames_of(path)]
    return pictures


def touched_by(track: Track, frames: list[Frame], networks: Networks, settings: Settings) -> dict[int, U8]:
    """Per frame of the track, where the paste may have changed it, (H, W) in 0–255."""
    manifest = networks.manifest
    crops = AlignStage(track, manifest.template_points(), manifest.crop_size).process(frames)
    crops = MaskStage(networks, settings).process(crops)
    assert crops.masks is not None
    result = {}
    for i, index in enumerate(crops.frames):
        shape = frames[int(index)].rgb
        _, alpha = paste(shape, crops.images[i].astype(np.float32), crops.masks[i], crops.matrices[i])
        result[int(index)] = (alpha * 255).astype(np.uint8)
    return result


def psnr(a: U8, b: U8, where: np.ndarray) -> float:
    """PSNR in dB over the pixels ``where``."""
    error = ((a.astype(np.float32) - b) ** 2)[where].mean()
    return float(10 * np.log10(255**2 / max(error, 1e-6)))


def sheet(rows: list[list[U8]], boxes: np.ndarray) -> U8:
    """Rows of pictures cut to the surroundings of the faces, as one."""
    height, width = rows[0][0].shape[:2]
    centre, side = (boxes[:, :2] + boxes[:, 2:]).mean(0) / 2, (boxes[:, 3] - boxes[:, 1]).max() * 1.1
    x0, x1 = int(max(centre[0] - side, 0)), int(min(centre[0] + side, width))
    y0, y1 = int(max(centre[1] - side, 0)), int(min(centre[1] + side, height))
    cut = [[cv2.resize(p[y0:y1, x0:x1], (240, 240 * (y1 - y0) // (x1 - x0))) for p in row] for row in rows]
    return np.vstack([np.hstack(row) for row in cut])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", nargs="?", type=Path, default=ROOT / "examples/clip.mp4")
    parser.add_argument("source", nargs="?", type=Path, default=ROOT / "examples/face.png")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--start", type=float, help="seconds")
    parser.add_argument("--end", type=float, help="seconds")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--identity-judge", type=Path)
    parser.add_argument("--pose-judge", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--keep", type=Path, help="keep the swapped clip here")
    args = parser.parse_args()
    settings = load_settings(args.preset, assignments=args.assignments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        output = args.keep or folder / "swapped.mp4"
        began = time.perf_counter()
        summary = swap_clip(
            SwapRequest(
                args.clip, args.source, settings, output, job=folder / "job", keep_job=True, overwrite=True,
                device=args.device, start=args.start, end=args.end,
            )
        )  # fmt: skip
        took = time.perf_counter() - began
        plan = Plan.from_json((folder / "job/plan.json").read_text(encoding="utf-8"))
        plain = plain_encode(args.clip, args.start, args.end, settings, folder)
        before, after = frames_of(args.clip, args.start, args.end), frames_of(output)
    pack = open_pack(settings.pack)
    networks = Networks.load(pack, args.device)
    detector = open_detector(pack, settings.detector_threshold)
    tracks = [t for t in plan.tracks if t.id in plan.sources]
    figures: dict[str, list[float]] = {}
    outside, landmarks, rows, boxes = [], [], [], []
    for track in tracks:
        touched = touched_by(track, before, networks, settings)
        for row, index in enumerate(int(i) for i in track.frames):
            free = cv2.dilate(touched[index], np.ones((2 * EDGE + 1,) * 2)) == 0
            outside.append(psnr(after[index].rgb, plain[index], free))
            found = detector.detect(after[index].rgb)
            points = track.landmarks[row]
            gap = float(np.linalg.norm(points[1] - points[0]))
            if found:
                nearest = min(found, key=lambda d, p=points: float(np.abs(d.landmarks - p).mean()))
                landmarks.append(100 * float(np.linalg.norm(nearest.landmarks - points, axis=1).mean()) / gap)
            rows.append((index, points, touched[index]))
            boxes.append(track.boxes[row])
    judges = open_judges(pack, identity=args.identity_judge, pose=args.pose_judge)
    judge = judges.identity
    face = detector.detect(read_picture(args.source))[0]
    source = judge.embed(read_picture(args.source), face.landmarks)
    own = np.stack([judge.embed(before[i].rgb, p) for i, p, _ in rows])
    new = np.stack([judge.embed(after[i].rgb, p) for i, p, _ in rows])
    half = max(len(rows) // 2, 1)
    same = np.array([own[i] @ own[(i + half) % len(rows)] for i in range(len(rows))])
    unrelated = own @ source
    figures["identity recovered"] = [recovery(np.array([x]), unrelated, same) for x in new @ source]
    photographs = np.full(len(own), PHOTOGRAPHS)
    figures["the same, by photographs"] = [
        recovery(np.array([x]), unrelated, photographs) for x in new @ source
    ]
    figures["s_swap"], figures["s_unrelated"] = list(new @ source), list(unrelated)
    figures["s_same"] = list(same)
    figures["pose, degrees"] = [
        float(np.linalg.norm(judges.pose.pose(after[i].rgb, p) - judges.pose.pose(before[i].rgb, p)))
        for i, p, _ in rows
    ]
    figures["landmarks, % of eye distance"] = landmarks
    figures["PSNR outside the face, dB"] = outside
    track = max(tracks, key=lambda t: len(t.frames))
    part = slice(int(track.frames[0]), int(track.frames[-1]) + 1)
    still = measure(
        [f.rgb for f in before[part]], [f.rgb for f in after[part]], track.landmarks, judges, source
    )
    table = Table(title=f"{args.clip.name} ← {args.source.name}, preset {args.preset}, {summary.device}")
    for column in ("figure", "mean", "median", "worst"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for key, values in figures.items():
        high = key.startswith(("pose", "landmarks"))
        worst = max(values) if high else min(values)
        table.add_row(key, f"{np.mean(values):.3f}", f"{np.median(values):.3f}", f"{worst:.3f}")
    console = Console(width=100)
    console.print(table)
    console.print(
        f"warp ratio {still.warp_ratio:.2f}; the original's in brackets: "
        f"identity spread {still.identity_spread:.4f} ({still.original_spread:.4f}), "
        f"jitter {still.jitter:.2f} ({still.original_jitter:.2f})"
    )
    console.print(
        f"{summary.frames_swapped} of {summary.frames} frames, {took:.1f} s in all, "
        f"swap {summary.seconds.get('swap', 0):.1f} s, peak {summary.peak_memory / 2**20:.0f} MiB"
    )
    if args.sheet:
        pick = [rows[i] for i in np.linspace(0, len(rows) - 1, 6).round().astype(int)]
        pictures = [
            [before[i].rgb for i, _, _ in pick],
            [after[i].rgb for i, _, _ in pick],
            [np.repeat(m[..., None], 3, 2) for _, _, m in pick],
        ]
        cv2.imwrite(str(args.sheet), sheet(pictures, np.stack(boxes))[..., ::-1])


if __name__ == "__main__":
    main()
