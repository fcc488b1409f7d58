"""The source: the face to put in, from one picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from ..errors import FaceError, InputError
from .align import ARCFACE_TEMPLATE, apply_points, estimate_similarity, warp
from .decode import read_picture
from .detect import Detector
from .records import F32, U8, SourceFace
from .swap.pack import Pack


def load_source(
    path: Path,
    pack: Pack,
    detector: Detector,
    embed: Callable[[U8], F32],
    face: int | None,
) -> tuple[SourceFace, list[str]]:
    """Read a picture and take one face from it.

    Args:
        path: the picture; its EXIF orientation is applied.
        pack: gives the crop's size and template.
        detector: finds the faces.
        embed: aligned faces (N, 112, 112, 3) uint8 RGB → unit embeddings (N, D).
        face: which face to take, by size: 1 is the largest. None takes the largest, with a warning
            if there are others.

    Returns:
        The face, and warnings for the user, a line each.

    Raises:
        InputError: no such file, or not a picture.
        FaceError: no face in it, or not as many as ``face`` asks for.
    """
    rgb = read_picture(path)
    found = detector.detect(rgb)
    if not found:
        raise FaceError(f"{path}: no face found; the source must show a face from the front, not too small")
    if face is not None and not 1 <= face <= len(found):
        have = "1 face" if len(found) == 1 else f"{len(found)} faces"
        raise FaceError(
            f"--source-face {face}: {path} shows {have}; faces are numbered by size, 1 is the largest"
        )
    warnings = []
    if face is None and len(found) > 1:
        warnings.append(
            f"{path}: {len(found)} faces; the largest is used, --source-face N takes another "
            f"(2 is the second largest, up to {len(found)})"
        )
    landmarks = found[(face or 1) - 1].landmarks
    size = pack.manifest.crop_size
    matrix = estimate_similarity(landmarks, pack.manifest.template_points())
    source = SourceFace(
        path=path,
        image=warp(rgb, matrix, size),
        landmarks=apply_points(matrix, landmarks),
        embedding=_embedding(rgb, landmarks, embed),
        sha256=_sha256(path),
    )
    return source, warnings


def _embedding(rgb: U8, landmarks: F32, embed: Callable[[U8], F32]) -> F32:
    """Unit mean of the embeddings of the face and its mirror image: halves what pose and light add."""
    crop = warp(rgb, estimate_similarity(landmarks, ARCFACE_TEMPLATE.astype(np.float32)), 112)
    mean = embed(np.stack([crop, crop[:, ::-1]])).mean(0)
    return cast(F32, (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from error
