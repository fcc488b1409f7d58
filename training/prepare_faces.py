"""From one picture to its samples: found, aligned, masked, labelled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..stages.align import apply_points, estimate_similarity, invert, warp
from ..stages.detect import Detector
from ..stages.folder import read_picture
from ..stages.records import F32, F64, U8, Detection
from .prepare_border import outside_of_crop
from .prepare_regions import label
from .shards import IGNORE, SIDE, Sample, split_of
from .teacher import Teacher

_OFF = 0.35  # of the distance between the eyes: how far an aligned face's landmarks may be, on average


@dataclass(frozen=True)
class Photo:
    """A file to prepare: its path, the name and the set of its samples."""

    path: Path
    name: str
    set: str


@dataclass(frozen=True)
class Rules:
    """What is kept, and how.

    Attributes:
        template: (5, 2) landmarks in a crop of 256×256.
        aligned: pictures are crops on the template already.
        faces: of a photo with several.
        min_face: shorter side of the detector's box, pixels of the photo.
        max_outside: largest share of a crop that may lie outside its photo.
        quality: WebP quality of crops, 1–100.
    """

    template: F32
    aligned: bool
    faces: Literal["largest", "all"]
    min_face: int
    max_outside: float
    quality: int


@dataclass(frozen=True)
class Dropped:
    """A photo, or a face of it, that gave no sample, and why (a few words, the same for all alike)."""

    path: Path
    why: str


class Maker:
    """Makes samples of pictures; one per thread, since a detector is no more than one thread's."""

    def __init__(self, rules: Rules, detector: Detector, teacher: Teacher | None) -> None:
        self.rules, self._detector, self._teacher = rules, detector, teacher

    def __call__(self, photo: Photo) -> list[Sample | Dropped]:
        """The samples of one picture, largest face first, and what was dropped of it."""
        try:
            picture = read_picture(photo.path)
        except InputError:
            return [Dropped(photo.path, "can't be read")]
        return self._crop(photo, picture) if self.rules.aligned else self._faces(photo, picture)

    def _crop(self, photo: Photo, picture: U8) -> list[Sample | Dropped]:
        """A picture that is a crop: kept as it is, byte for byte if it is WebP of the right size."""
        height, width = picture.shape[:2]
        if height != width or height < SIDE:
            return [Dropped(photo.path, f"no square of at least {SIDE} pixels, as --aligned needs")]
        content = photo.path.read_bytes()
        decoded = _decoded(content) if (height, content[8:12]) == (SIDE, b"WEBP") else None
        if decoded is None or not np.array_equal(decoded, picture):
            if height != SIDE:
                picture = cast(U8, cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
            content = _webp(picture, self.rules.quality)
        template = self.rules.template
        seen = [d.landmarks for d in self._detector.detect(picture)]
        off = [float(np.linalg.norm(points - template, axis=1).mean()) for points in seen]
        if off and min(off) > _OFF * float(np.linalg.norm(template[1] - template[0])):
            return [Dropped(photo.path, "its face is not where the template says")]
        points = seen[int(np.argmin(off))] if off else None
        outside = outside_of_crop(picture)
        found = {"landmarks_from": "template" if points is None else "detector"}
        return [self._sample(photo, photo.name, content, picture, points, outside, found)]

    def _faces(self, photo: Photo, picture: U8) -> list[Sample | Dropped]:
        """The faces of a photo, on the template."""
        found = self._detector.detect(picture)
        if not found:
            return [Dropped(photo.path, "no face")]
        if self.rules.faces == "largest":
            found = found[:1]
        made: list[Sample | Dropped] = []
        for index, face in enumerate(found):
            name = photo.name if self.rules.faces == "largest" else f"{photo.name}-face{index}"
            made.append(self._face(photo, name, picture, face))
        return made

    def _face(self, photo: Photo, name: str, picture: U8, face: Detection) -> Sample | Dropped:
        if (face.box[2:] - face.box[:2]).min() < self.rules.min_face:
            return Dropped(photo.path, f"face smaller than {self.rules.min_face} pixels")
        matrix = estimate_similarity(face.landmarks, self.rules.template)
        outside = outside_of_photo(matrix, picture.shape[:2])
        if outside.mean() > self.rules.max_outside:
            return Dropped(photo.path, "crop lies too far outside the photo")
        crop = warp(picture, matrix, SIDE)
        points = apply_points(matrix, face.landmarks)
        content = _webp(crop, self.rules.quality)
        return self._sample(photo, name, content, crop, points, outside, {"landmarks_from": "detector"})

    def _sample(
        self,
        photo: Photo,
        name: str,
        content: bytes,
        crop: U8,
        points: F32 | None,
        outside: NDArray[np.bool_] | None,
        more: dict[str, str],
    ) -> Sample:
        points = self.rules.template if points is None else points
        outside = outside if outside is not None and outside.any() else None
        labels = None
        if self._teacher is not None:
            labels = label(crop, self._teacher(crop), points)
            if outside is not None:
                labels[outside] = IGNORE
        return Sample(
            name=name,
            set=photo.set,
            picture=content,
            landmarks=points,
            split=split_of(photo.path.stem),
            outside=None if outside is None else png(outside.astype(np.uint8) * 255),
            labels=None if labels is None else png(labels),
            more=dict(more),
        )


def outside_of_photo(matrix: F64, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which pixels of a crop (256, 256) fall outside a photo of (height, width), by photo → crop."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    points = apply_points(invert(matrix), np.stack([x, y], -1))
    # A pixel is a square around its centre: the photo's edge is half a pixel beyond the last centre.
    return cast(
        "NDArray[np.bool_]",
        ((points < -0.5) | (points > np.array([shape[1], shape[0]], np.float32) - 0.5)).any(-1),
    )


def safe_name(text: str) -> str:
    """A sample's name: what a tar of samples can't carry (dots, slashes, spaces, accents) becomes ``_``."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)


def png(pixels: U8) -> bytes:
    """An 8-bit picture of one channel as PNG."""
    return bytes(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1])


def _webp(picture: U8, quality: int) -> bytes:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, quality])[1])


def _decoded(content: bytes) -> U8 | None:
    """As whoever reads the shards will decode it; None if OpenCV can't."""
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return None if bgr is None else cast(U8, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
