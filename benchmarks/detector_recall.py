"""How many faces the detector finds, by roll and by size: portraits turned and shrunk on a photograph.

    python benchmarks/detector_recall.py BACKGROUND FACES…

BACKGROUND is a picture or a clip without a face, FACES are pictures with one each. A face counts as found
where the five landmarks are on average within a fifth of the eye distance of where they should be.
Beside recall: the landmarks' median error in eye distances, faces found where there is none, and
milliseconds a picture with one CPU thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from ldvid.stages.decode import open_reader, probe, read_picture
from ldvid.stages.detect import Detector, open_detector
from ldvid.stages.records import F32, F64, U8
from ldvid.stages.swap.pack import open_pack

ROLLS = (0, 30, 45, 60, 75, 90, -60, -90)
EYES = (16, 20, 24, 32)
SIZES = ((1280, 720), (1920, 1080), (3840, 2160))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def background(path: Path) -> U8:
    """The picture, or the clip's first frame."""
    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        return read_picture(path)
    reader = open_reader(probe(path), "pyav")
    return next(iter(reader.read(0, 1))).rgb


def placed(scene: U8, face: U8, matrix: F64) -> U8:
    """The face drawn into the scene, (2, 3) face → scene; what shrinks is low-passed before."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < 1:
        small = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        matrix = matrix @ np.vstack(
            [np.diag([face.shape[1] / small.shape[1], face.shape[0] / small.shape[0], 1])]
        )
        face = small
    size = (scene.shape[1], scene.shape[0])
    inside = cv2.warpAffine(np.ones(face.shape[:2], np.float32), matrix, size)[..., None]
    return (scene * (1 - inside) + cv2.warpAffine(face, matrix, size) * inside).astype(np.uint8)


def main(arguments: list[str]) -> None:
    cv2.setNumThreads(1)
    detector = open_detector(open_pack("starter"), 0.6)
    scene = background(Path(arguments[0]))
    faces = [(p, d[0].landmarks) for a in arguments[1:] if (d := detector.detect(p := read_picture(Path(a))))]
    if not faces:
        sys.exit("no face was found in FACES")
    say(f"{len(faces)} faces\n\n| roll | found | error | ms |\n|---|---|---|---|")
    for roll in ROLLS:
        say(f"| {roll}° | {row(detector, [turned(cv2.resize(scene, (960, 720)), *f, roll) for f in faces])}")
    say("\n| picture | eyes apart | found | error | ms |\n|---|---|---|---|---|")
    for size in SIZES:
        for eyes in EYES:
            rng = np.random.default_rng(1)
            large = cv2.resize(scene, size)
            cases = (shrunk(large, *f, eyes, rng) for f in faces)
            say(f"| {size[0]}×{size[1]} | {eyes} px | {row(detector, cases)}")


def turned(scene: U8, face: U8, landmarks: F32, roll: float) -> tuple[U8, F32]:
    """A face 100 px between the eyes, turned clockwise in the middle of the scene, and its landmarks."""
    scale = 100 / float(np.linalg.norm(landmarks[1] - landmarks[0]))
    middle = landmarks.mean(0)
    matrix = cv2.getRotationMatrix2D((float(middle[0]), float(middle[1])), -roll, scale)
    matrix[:, 2] += np.array([scene.shape[1] / 2, scene.shape[0] / 2]) - middle
    return placed(scene, face, matrix), landmarks @ matrix[:, :2].T + matrix[:, 2]


def shrunk(scene: U8, face: U8, landmarks: F32, eyes: float, rng: np.random.Generator) -> tuple[U8, F32]:
    """A face of ``eyes`` px between the eyes somewhere in the scene."""
    scale = eyes / float(np.linalg.norm(landmarks[1] - landmarks[0]))
    room = np.array(scene.shape[1::-1]) - np.array(face.shape[1::-1]) * scale
    matrix = np.hstack([np.eye(2) * scale, (rng.uniform(0, 1, 2) * room)[:, None]])
    return placed(scene, face, matrix), landmarks @ matrix[:, :2].T + matrix[:, 2]


def row(detector: Detector, cases: Iterable[tuple[U8, F32]]) -> str:
    errors, extra, took, count = [], 0, 0.0, 0
    for picture, wanted in cases:
        began = time.perf_counter()
        found = detector.detect(picture)
        took += time.perf_counter() - began
        eyes = float(np.linalg.norm(wanted[1] - wanted[0]))
        off = [float(np.linalg.norm(d.landmarks - wanted, axis=1).mean()) / eyes for d in found]
        errors += [min(off)] if off and min(off) < 0.2 else []
        extra += sum(e >= 0.2 for e in off)
        count += 1
    middle = f"{np.median(errors):.3f}" if errors else "–"
    more = f" (+{extra} false)" if extra else ""
    return f"{len(errors)}/{count}{more} | {middle} | {1000 * took / count:.0f} |"


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1:])
