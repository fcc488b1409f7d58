"""The source: the face to put in, from one picture or several."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from ..errors import FaceError, InputError
from .align import ARCFACE_TEMPLATE, apply_points, estimate_similarity, warp
from .decode import read_picture
from .detect import Detector
from .records import F32, F64, U8, SourceFace
from .swap.pack import Pack
from .track import frontal

STRANGER = 0.3  # cosine to the other photographs below which one is likely of somebody else


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


def load_average(
    paths: Sequence[Path],
    pack: Pack,
    detector: Detector,
    embed: Callable[[U8], F32],
    face: int | None = None,
) -> tuple[SourceFace, list[str]]:
    """One face from several photographs: the unit mean of their embeddings, and the picture of the best.

    The best is sharp, frontal, and like the mean. Arguments, result and errors are ``load_source``'s.
    ``sha256`` is that of the photographs' hashes, in hex, one after the other.
    """
    loaded = [load_source(path, pack, detector, embed, face) for path in paths]
    sources, warnings = [s for s, _ in loaded], [w for _, messages in loaded for w in messages]
    if len(sources) == 1:
        return sources[0], warnings
    vectors = np.stack([s.embedding for s in sources]).astype(np.float64)
    alike = [float(_unit(np.delete(vectors, i, 0).mean(0)) @ v) for i, v in enumerate(vectors)]
    if strange := [i for i, cosine in enumerate(alike) if cosine < STRANGER]:
        who = ", ".join(str(sources[i].path) for i in strange) if len(sources) > 2 else str(sources[1].path)
        warnings.append(
            f"{who}: may show somebody else than the rest of this source's photographs "
            f"({min(alike):.2f} alike); the mean of two people is neither"
        )
    mean = _unit(vectors.mean(0))
    best = max(range(len(sources)), key=lambda i: (_quality(sources[i]) * float(vectors[i] @ mean), -i))
    sha256 = hashlib.sha256("".join(s.sha256 for s in sources).encode()).hexdigest()
    return replace(sources[best], embedding=mean, sha256=sha256), warnings


def _quality(source: SourceFace) -> float:
    """In [0, 1]: how frontal a face is and, as far as it can be seen in the crop, how sharp."""
    luma = source.image.astype(np.float32).mean(2)
    detail = float(np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean())
    return frontal(source.landmarks) * min(1.0, 0.5 + detail / 16)


def _unit(vector: F32 | F64) -> F32:
    return cast(F32, (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32))


def _embedding(rgb: U8, landmarks: F32, embed: Callable[[U8], F32]) -> F32:
    """Unit mean of the embeddings of the face and its mirror image: halves what pose and light add."""
    crop = warp(rgb, estimate_similarity(landmarks, ARCFACE_TEMPLATE.astype(np.float32)), 112)
    return _unit(embed(np.stack([crop, crop[:, ::-1]])).mean(0))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from error
