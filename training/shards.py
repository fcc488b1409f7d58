"""Shards: aligned faces in plain tar files, at most 15 MiB each (the layout of webdataset).

A sample is a run of members that share a name::

    NAME.webp         the crop, 256×256 RGB, aligned to the pack's template
    NAME.outside.png  8-bit, 255 where the crop lies outside its photo; left out where nothing does
    NAME.labels.png   8-bit class index, see ``CLASSES``; left out without a teacher
    NAME.json         {"set": "omi", "landmarks": [[x, y] × 5], "split": "train" | "held"}

Pixel centres are whole numbers, (0, 0) is the top left pixel's. A piece is written under another
name and renamed when it is whole; the same samples make the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, SettingsError
from .prepare_tar import PIECE_BYTES, Sample, ShardWriter, pieces, stored

__all__ = [
    "CLASSES",
    "IGNORE",
    "MIRRORED",
    "PIECE_BYTES",
    "SIDE",
    "Faces",
    "Sample",
    "ShardWriter",
    "Split",
    "pieces",
    "read",
    "split_of",
    "stored",
]

SIDE = 256
IGNORE = 255  # a label that trains nothing
# Right and left are the person's: the right eye has the smaller x in an upright picture.
CLASSES = (
    "background",
    "hair",
    "skin",
    "right_brow",
    "left_brow",
    "right_eye",
    "left_eye",
    "nose",
    "upper_lip",
    "lower_lip",
    "mouth",
)
# The index of each class in a mirrored picture.
MIRRORED = (0, 1, 2, 4, 3, 6, 5, 7, 8, 9, 10)

Split = Literal["train", "held", "all"]
U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


def split_of(name: str) -> Literal["train", "held"]:
    """Which half a sample belongs to: 5 % are held out, by the hash of the name alone.

    Held out if the first 8 hex digits of SHA-256(name), as a number, are divisible by 20.
    """
    return "held" if int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 20 == 0 else "train"


@dataclass(frozen=True)
class Faces:
    """Decoded samples, in the shards' order (which is that of a hash: any prefix is a fair sample).

    Attributes:
        names: N names.
        sets: the set each is from.
        images: (N, 256, 256, 3) uint8 RGB.
        inside: (N, 256, 256) uint8, 1 inside the photo, 0 outside.
        labels: (N, 256, 256) uint8 indices of ``CLASSES``, 255 = ignore; None unless asked for.
        landmarks: (N, 5, 2) float32 x, y: right eye, left eye, nose tip, right and left mouth corner.
    """

    names: list[str]
    sets: list[str]
    images: U8
    inside: U8
    labels: U8 | None
    landmarks: F32

    def __len__(self) -> int:
        return len(self.names)


def read(
    folder: Path,
    split: Split,
    *,
    labels: bool = False,
    sets: Collection[str] | None = None,
    limit: int | None = None,
) -> Faces:
    """Decode the shards of a folder into memory, on all cores.

    ``split`` chooses the half, ``sets`` the sets (all), ``limit`` the first so many of what is left.
    Samples without labels have 255 everywhere.

    Raises:
        InputError: no shards there, nothing left, a damaged member, or labels asked for where no
            sample has any.
        SettingsError: a split or a set that is not there.
    """
    if split not in ("train", "held", "all"):
        raise SettingsError(f"split {split!r}: say train, held or all")
    if not pieces(folder):
        raise InputError(f"{folder}: no shards (faces-000.tar …); make them with the stage prepare")
    chosen: list[tuple[str, dict[str, bytes], dict[str, Any]]] = []
    known: set[str] = set()
    for name, sample in stored(folder):
        facts = _facts(folder, name, sample)
        known.add(facts["set"])
        if split in ("all", facts["split"]) and (sets is None or facts["set"] in sets):
            chosen.append((name, sample, facts))
            if limit is not None and len(chosen) >= limit and sets is None:
                break
    if sets is not None and (lost := set(sets) - known):
        raise SettingsError(
            f"{folder}: no set {', '.join(sorted(lost))}; there are {', '.join(sorted(known))}"
        )
    chosen = chosen[:limit]
    if not chosen:
        raise InputError(f"{folder}: no sample of the split {split!r} is left; prepare more pictures")
    if labels and not any("labels.png" in sample for _, sample, _ in chosen):
        raise InputError(f"{folder}: no sample has labels; prepare the shards with --teacher")
    return _decode(folder, chosen, labels)


def _facts(folder: Path, name: str, sample: dict[str, bytes]) -> dict[str, Any]:
    try:
        facts = json.loads(sample["json"])
        if np.shape(facts["landmarks"]) != (5, 2) or facts["split"] not in ("train", "held"):
            raise ValueError("landmarks or split")
        return {"set": str(facts["set"]), **facts}
    except (KeyError, ValueError) as error:
        raise InputError(f"{folder}: the facts of {name} are damaged ({error}); prepare it again") from error


def _decode(folder: Path, chosen: list[tuple[str, dict[str, bytes], dict[str, Any]]], labels: bool) -> Faces:
    """The pictures, by a pool of threads: OpenCV lets go of the interpreter while it decodes."""
    count = len(chosen)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    inside = np.ones((count, SIDE, SIDE), np.uint8)
    maps = np.full((count, SIDE, SIDE), IGNORE, np.uint8) if labels else None

    def one(index: int) -> None:
        name, sample, _ = chosen[index]
        try:
            cv2.cvtColor(_pixels(sample["webp"], cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB, dst=images[index])
            if "outside.png" in sample:
                inside[index] = _pixels(sample["outside.png"], cv2.IMREAD_GRAYSCALE) < 128
            if maps is not None and "labels.png" in sample:
                maps[index] = _pixels(sample["labels.png"], cv2.IMREAD_GRAYSCALE)
        except (KeyError, ValueError, cv2.error) as error:
            raise InputError(f"{folder}: {name} is damaged ({error}); prepare it again") from error

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(one, range(count)))
    return Faces(
        names=[name for name, _, _ in chosen],
        sets=[facts["set"] for _, _, facts in chosen],
        images=images,
        inside=inside,
        labels=maps,
        landmarks=np.array([facts["landmarks"] for _, _, facts in chosen], np.float32),
    )


def _pixels(content: bytes, mode: int) -> U8:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), mode)
    if pixels is None or pixels.shape[:2] != (SIDE, SIDE):
        raise ValueError(f"not a picture of {SIDE}×{SIDE}")
    return cast(U8, pixels)
