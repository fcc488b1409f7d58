"""What makes a swapped face match its shot: the source's share by yaw, motion blur found, light followed.

    python benchmarks/shot_match.py [CLIP …] [--source FACE …] [--every 4] [--steps 2] [--json FILE]

*profile*: how much of the start picture is the source's (``SourceStart.shares``) at the yaw of the target's
head, by the pose judge. *blur*: streaks of 12 and 18 crop pixels in six directions are laid over a target,
and looked for (``blur_between``) against a swap of the sharp frame: the variance found over the streak's own
(L²/12), and how far the direction is off. *light*: a target's light goes from half to 1.25 times, and warmer;
how far the masked face's mean Lab is from the target's, with ``match_colour`` and without.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
from ldvid.configs import load_settings
from ldvid.metrics.judges import open_judges
from ldvid.stages.colour_match import match_colour
from ldvid.stages.detect import open_detector
from ldvid.stages.mask import MaskStage
from ldvid.stages.motion_blur import DEADBAND, blur_between
from ldvid.stages.records import F32, Crops, SourceFace
from ldvid.stages.rows import take
from ldvid.stages.source import load_source
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import Pack, open_pack
from ldvid.stages.swap.stage import SwapStage
from ldvid.stages.swap.start import SourceStart
from occluded_clip import crops_of, read_frames
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
YAWS = (0, 10, 20, 30, 40, 90)
LENGTHS, ANGLES = (12, 18), range(0, 180, 30)
LIGHTS = (0.5, 0.75, 1.0, 1.25)
WARMER = np.array([1.06, 1.0, 0.9], np.float32)
PER_CLIP = 4  # frames that are swapped
Pairs = list[tuple[float, float]]


def profile(crops: Crops, sources: list[SourceFace], networks: Networks, pack: Pack) -> Pairs:
    """(yaw, share) of each crop and source."""
    pose, parser = open_judges(pack).pose, networks.manifest.parser
    starts = [SourceStart(s, networks.parse_crops(s.image[None])[0], parser) for s in sources]
    found = []
    for image, points in zip(crops.images, crops.landmarks, strict=True):
        yaw = abs(float(pose.pose(image, points)[0]))
        found += [(yaw, float(start.shares(points)[1])) for start in starts]
    return found


def streaked(image: F32, length: int, angle: float) -> F32:
    """A picture under a straight streak of so many pixels, sampled finely."""
    total = np.zeros_like(image)
    places = np.linspace(-0.5, 0.5, 4 * length) * length
    for place in places:
        shift = np.array([[1, 0, place * np.cos(angle)], [0, 1, place * np.sin(angle)]], np.float32)
        total += cv2.warpAffine(image, shift, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101)
    return total / len(places)


def blur(crops: Crops) -> Pairs:
    """(variance found over the streak's own, degrees off) of each crop and streak."""
    assert crops.swapped is not None and crops.masks is not None
    found = []
    for image, swapped, mask in zip(crops.images, crops.swapped, crops.masks, strict=True):
        for length in LENGTHS:
            for degrees in ANGLES:
                target = streaked(image.astype(np.float32), length, np.radians(degrees))
                values, vectors = np.linalg.eigh(
                    blur_between(swapped, np.rint(target).astype(np.uint8), mask)
                )
                angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
                off = abs((angle - degrees + 90) % 180 - 90)
                found.append(((values[1] + DEADBAND) / (length**2 / 12), off))
    return found


def light(crops: Crops) -> Pairs:
    """(Lab units from the target's mean with ``match_colour``, without) of each crop and light."""
    assert crops.swapped is not None and crops.masks is not None
    found = []
    for gain in LIGHTS:
        lit = np.clip(crops.images * (gain * WARMER ** (gain > 1)), 0, 255)
        targets = np.rint(lit).astype(np.uint8)
        matched = match_colour(crops.swapped, targets, crops.masks, 1.0)
        for row, mask in enumerate(crops.masks):
            want, ours, plain = (_mean(p[row], mask) for p in (targets, matched, crops.swapped))
            found.append((float(np.linalg.norm(ours - want)), float(np.linalg.norm(plain - want))))
    return found


def _mean(picture: F32, mask: F32) -> F32:
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return (lab * mask[..., None]).sum((0, 1)) / mask.sum()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path, default=[ROOT / "examples/clip.mp4"])
    parser.add_argument("--source", type=Path, nargs="+", default=[ROOT / "examples/face.png"])
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = load_settings("cpu", overrides={"steps": options.steps})
    pack = open_pack(settings.pack)
    networks, detector = Networks.load(pack, "cpu", settings.dtype), open_detector(pack, 0.6)
    sources = [load_source(path, pack, detector, networks.embed, None)[0] for path in options.source]
    yaws, blurs, lights = [], [], []
    for clip in options.clips:
        pictures, points = read_frames(clip, 10**6, options.every, pack)
        crops = crops_of(pictures, points, pack)
        yaws += profile(crops, sources, networks, pack)
        few = take(crops, np.linspace(0, len(crops) - 1, PER_CLIP).round().astype(int))
        few = SwapStage(networks, settings, sources[0]).process(MaskStage(networks, settings).process(few))
        blurs += blur(few)
        lights += light(few)
    table = Table(
        title=f"{len(options.clips)} clips, {len(sources)} sources, preset cpu, {options.steps} steps"
    )
    for column in ("", "of", "mean", "least", "most"):
        table.add_column(column)
    rows: list[tuple[str, np.ndarray]] = [
        (f"share, yaw {low} to {high}°", np.array([s for y, s in yaws if low <= y < high]))
        for low, high in itertools.pairwise(YAWS)
    ]
    for number, name in enumerate(("streak's variance found", "direction off, °")):
        rows.append((name, np.array([b[number] for b in blurs])))
    for number, name in enumerate(("light, Lab units off", "the same, colours not matched")):
        rows.append((name, np.array([b[number] for b in lights])))
    rows = [(name, values) for name, values in rows if len(values)]
    for name, values in rows:
        table.add_row(name, str(len(values)), *(f"{f(values):.2f}" for f in (np.mean, np.min, np.max)))
    Console(width=100).print(table)
    if options.json:
        text = json.dumps({name: values.round(4).tolist() for name, values in rows}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
