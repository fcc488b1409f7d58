"""Occluders that move over a face, with known mattes: how much of them does a swap leave alone?

    python benchmarks/occluded_clip.py [CLIP …] [--kind hand …] [--frames 16] [--every 4] [--source FACE]
        [--pack NAME] [--preset cpu] [--set key=value] [--out FOLDER] [--json FILE]

Hands, microphones and cards sweep over the face, spectacles and strands of hair are worn (drawn by
``training.occluders``). The frames are written as PNG, swapped by ``ldvid swap`` as any folder of frames,
and compared without loss. *kept* is the share of the occluder's pixels (matte above one half) over the
face that are within 8 grey levels of the original in every channel, *kept, all* the share of all its
pixels; *face* is the share of the free face (clean mask above one half, matte below 0.02) that the swap
covered at least half, by its mask: what was paid for it. The clean mask is that of the frame without the
occluder. ``--out`` keeps frames, mattes and a sheet.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from ldvid.configs import load_settings
from ldvid.pipeline.plan import Plan
from ldvid.pipeline.request import SwapRequest
from ldvid.pipeline.swap import swap_clip
from ldvid.stages.align import AlignStage, estimate_similarity
from ldvid.stages.decode import open_reader, probe, read_picture
from ldvid.stages.detect import open_detector
from ldvid.stages.mask import MaskStage
from ldvid.stages.records import F32, U8, Crops, Frame, Track
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import Pack, open_pack
from ldvid.training.occluders import KINDS
from ldvid.training.scene import Scene
from ldvid.training.shards import CLASSES
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
WITHIN = 8  # grey levels
MOVING, WORN = ("hand", "microphone", "card"), ("spectacles", "strands")
SIDE, EYES = 768, ((330.0, 300.0), (437.0, 300.0))  # the canvas an occluder is drawn on, 107 pixels = 1 unit
COVERS = {"hand": (0.15, 0.5), "microphone": (0.1, 0.4), "card": (0.15, 0.5)}


@dataclass(frozen=True)
class Occluded:
    """Frames (N, H, W, 3) uint8 RGB before and after, and the occluder's matte (N, H, W) in [0, 1]."""

    clean: list[U8]
    frames: list[U8]
    mattes: list[F32]


def sprite(picture: U8, landmarks: F32, kind: str, seed: int) -> tuple[F32, F32]:
    """An occluder as drawn for a face: colour (SIDE, SIDE, 3) in [0, 255] and opacity (SIDE, SIDE)."""
    eyes = np.array(EYES)
    matrix = estimate_similarity(landmarks[:2], eyes)
    canvas = cv2.warpAffine(picture, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT)
    ys, xs = np.mgrid[0:SIDE, 0:SIDE]
    face = np.hypot((xs - eyes[:, 0].mean()) / 118, (ys - 365) / 155) < 1
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[face] = CLASSES.index("skin")
    labels[220:240] = np.where(face[220:240], CLASSES.index("hair"), 0)
    for name, (x, y) in zip(("right_eye", "left_eye"), EYES, strict=True):
        labels[int(y) - 5 : int(y) + 6, int(x) - 8 : int(x) + 9] = CLASSES.index(name)
    labels[470:490, 360:408] = CLASSES.index("mouth")
    image = torch.from_numpy(canvas.astype(np.float32) / 255).permute(2, 0, 1)[None]
    label = torch.from_numpy(labels)[None]
    low, high = COVERS.get(kind, (0.0, 1.0))
    for attempt in range(200):
        generator = torch.Generator().manual_seed(1000 * seed + attempt)
        layer = KINDS[kind](Scene(image, label, (image, label)), generator)
        opacity = layer.opacity[0].numpy()
        if low <= float((opacity[face] > 0.5).mean()) <= high:
            break
    paint = layer.paint.expand(1, 3, SIDE, SIDE)[0].permute(1, 2, 0).numpy() * 255
    return np.ascontiguousarray(paint), np.ascontiguousarray(opacity)


def occlude(pictures: list[U8], landmarks: F32, kind: str, seed: int) -> Occluded:
    """Lay one occluder over a clip (pictures of one size; ``landmarks`` (N, 5, 2) of the face).

    What moves follows an ellipse through the middle of its way, in the frame; what is worn follows the
    face, hair swaying by a tenth of the eye distance. Deterministic.
    """
    paint, opacity = sprite(pictures[len(pictures) // 2], landmarks[len(landmarks) // 2], kind, seed)
    height, width = pictures[0].shape[:2]
    middle = landmarks[:, :2].mean(0)
    unit = float(np.linalg.norm(middle[1] - middle[0]))
    side = 1.0 if seed % 2 else -1.0
    frames, mattes = [], []
    for i, (picture, points) in enumerate(zip(pictures, landmarks, strict=True)):
        angle = 2 * np.pi * i / len(pictures)
        if kind in MOVING:
            eyes = middle + unit * np.array([1.3 * side * np.cos(angle), 0.5 * np.sin(angle)])
        else:
            sway = 0.1 if kind == "strands" else 0.0
            eyes = points[:2] + unit * np.array([sway * np.sin(angle), 0.0])
        matrix = estimate_similarity(np.array(EYES), eyes)
        # Half the canvas's resolution is lost on most faces: low-passed first, as a camera would.
        sigma = max(0.5 * (107 / unit - 1), 0.0) + 0.3
        soft_paint, soft = (cv2.GaussianBlur(a, (0, 0), sigma) for a in (paint, opacity))
        colour = cv2.warpAffine(soft_paint, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        matte = cv2.warpAffine(soft, matrix, (width, height))
        matte[matte < 1 / 255] = 0
        mixed = picture + (colour - picture) * matte[..., None]
        frames.append(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))
        mattes.append(matte)
    return Occluded(pictures, frames, mattes)


def read_frames(clip: Path, count: int, every: int, pack: Pack) -> tuple[list[U8], F32]:
    """Every so many frames of a clip, with the largest face's landmarks; frames without one are left out."""
    info = probe(clip)
    detector = open_detector(pack, 0.6)
    pictures, points = [], []
    for frame in open_reader(info, "pyav").read(0, min(count * every, info.frames)):
        if frame.index % every == 0 and (found := detector.detect(frame.rgb)):
            pictures.append(frame.rgb)
            points.append(found[0].landmarks)
    return pictures, np.stack(points)


def crops_of(pictures: list[U8], landmarks: F32, pack: Pack) -> Crops:
    """Aligned crops of one face."""
    n = len(pictures)
    track = Track(
        0, 0, np.arange(n), np.zeros((n, 4), np.float32), landmarks, np.ones(n, np.float32),
        np.zeros(0, np.float32),
    )  # fmt: skip
    frames = [Frame(i, p) for i, p in enumerate(pictures)]
    return AlignStage(track, pack.manifest.template_points(), pack.manifest.crop_size).process(frames)


def in_frame(masks: F32, matrices: np.ndarray, shape: tuple[int, ...]) -> list[F32]:
    """Masks of crops, seen in their frames."""
    size, flags = (shape[1], shape[0]), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return [cv2.warpAffine(m, a, size, flags=flags) for m, a in zip(masks, matrices, strict=True)]


def measure(
    occluded: Occluded, after: list[U8], clean_masks: list[F32], masks: list[F32 | None]
) -> dict[str, float]:
    """The three figures of the module's text."""
    kept = total = kept_all = total_all = covered = free = 0
    for before, now, matte, face, mask in zip(
        occluded.frames, after, occluded.mattes, clean_masks, masks, strict=True
    ):
        same = np.abs(now.astype(int) - before).max(-1) <= WITHIN
        there = matte > 0.5
        over = there & (face > 0.05)
        kept_all, total_all = kept_all + int((same & there).sum()), total_all + int(there.sum())
        kept, total = kept + int((same & over).sum()), total + int(over.sum())
        own = (face > 0.5) & (matte < 0.02)
        free += int(own.sum())
        covered += 0 if mask is None else int((own & (mask > 0.5)).sum())
    return {
        "kept": kept / max(total, 1),
        "kept, all": kept_all / max(total_all, 1),
        "face": covered / max(free, 1),
    }


def write_frames(folder: Path, pictures: list[U8]) -> Path:
    """PNG files, numbered from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"{i:06d}.png"), np.ascontiguousarray(picture[..., ::-1]))
    return folder


def masks_used(plan: Plan, frames: list[U8], networks: Networks, settings: object) -> list[F32 | None]:
    """The swap's own masks, in the frames; None where it swapped nothing."""
    result: list[F32 | None] = [None] * len(frames)
    manifest = networks.manifest
    for track in (t for t in plan.tracks if t.id in plan.sources):
        crops = AlignStage(track, manifest.template_points(), manifest.crop_size).process(
            [Frame(i, f) for i, f in enumerate(frames)]
        )
        crops = MaskStage(networks, settings).process(crops)  # type: ignore[arg-type]
        assert crops.masks is not None
        for index, mask in zip(
            crops.frames, in_frame(crops.masks, crops.matrices, frames[0].shape), strict=True
        ):
            result[int(index)] = mask
    return result


def box_of(points: F32, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns around a face for the sheet."""
    unit = float(np.linalg.norm(points[1] - points[0]))
    x, y = points.mean(0)
    return (
        slice(max(int(y - 2.2 * unit), 0), min(int(y + 2.2 * unit), shape[0])),
        slice(max(int(x - 2.2 * unit), 0), min(int(x + 2.2 * unit), shape[1])),
    )


def sheet(occluded: Occluded, after: list[U8], masks: list[F32 | None], points: F32) -> U8:
    """Before, mask, after, for five frames around the face."""
    rows: list[list[U8]] = [[], [], []]
    for i in np.linspace(0, len(after) - 1, 6).round().astype(int)[:5]:
        cut = box_of(points[i], after[i].shape)
        mask = masks[i] if masks[i] is not None else np.zeros(after[i].shape[:2], np.float32)
        shown = np.repeat((np.asarray(mask)[..., None] * 255).astype(np.uint8), 3, 2)
        for row, picture in zip(rows, (occluded.frames[i], shown, after[i]), strict=True):
            row.append(cv2.resize(picture[cut], (256, 256), interpolation=cv2.INTER_AREA))
    return np.vstack([np.hstack(row) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="*", type=Path, default=[ROOT / "examples/clip.mp4"])
    parser.add_argument("--kind", nargs="+", default=[*MOVING, *WORN], choices=[*MOVING, *WORN])
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", type=Path, default=ROOT / "examples/face.png")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--pack")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    overrides = {"min_track_frames": 1, "cut_threshold": 1.0, **({"pack": args.pack} if args.pack else {})}
    settings = load_settings(args.preset, overrides=overrides, assignments=args.assignments)
    pack = open_pack(settings.pack)
    networks = Networks.load(pack, "cpu")
    rows: list[dict[str, object]] = []
    for clip in args.clips:
        pictures, points = read_frames(clip, args.frames, args.every, pack)
        crops = MaskStage(networks, settings).process(crops_of(pictures, points, pack))
        assert crops.masks is not None
        clean = in_frame(crops.masks, crops.matrices, pictures[0].shape)
        for kind in args.kind:
            occluded = occlude(pictures, points, kind, args.seed)
            with tempfile.TemporaryDirectory() as name:
                folder = (args.out / f"{clip.stem}-{kind}") if args.out else Path(name)
                given = write_frames(folder / "frames", occluded.frames)
                swap_clip(
                    SwapRequest(given, args.source, settings, folder / "swapped", job=folder / "job",
                                keep_job=True, overwrite=True, device="cpu")
                )  # fmt: skip
                plan = Plan.from_json((folder / "job/plan.json").read_text(encoding="utf-8"))
                after = [read_picture(p) for p in sorted((folder / "swapped").glob("*.png"))]
                masks = masks_used(plan, occluded.frames, networks, settings)
                if args.out:
                    write_frames(folder / "mattes", [np.repeat((m * 255).astype(np.uint8)[..., None], 3, 2)
                                                     for m in occluded.mattes])  # fmt: skip
                    picture = sheet(occluded, after, masks, points)
                    cv2.imwrite(str(folder / "sheet.png"), picture[..., ::-1])
            rows.append({"clip": clip.stem, "kind": kind, **measure(occluded, after, clean, masks)})
    table = Table(title=f"preset {args.preset}, pack {settings.pack}, {' '.join(args.assignments)}")
    for column in ("clip", "occluder", "kept", "kept, all", "face"):
        table.add_column(column)
    for row in rows:
        figures = (f"{100 * float(str(row[k])):.1f} %" for k in ("kept", "kept, all", "face"))
        table.add_row(str(row["clip"]), str(row["kind"]), *figures)
    Console(width=100).print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
