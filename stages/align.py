"""Alignment: from frame pixels to a pack's crop and back by a 5-point similarity.

Convention
    A matrix is (2, 3) float64 and maps *frame* pixels to *crop* pixels: ``p_crop = A @ [x, y, 1]``.
    (0, 0) is the centre of the top left pixel, as in OpenCV; no half-pixel shift anywhere.
    Only scale, rotation and shift: no reflection, no shear. Outside the frame, a crop repeats the
    border pixel.
    When the frame holds more detail than the crop can (scale below 1), it is low-passed first, so
    that texture does not alias into flicker.
"""

from __future__ import annotations

from typing import ClassVar, cast

import cv2
import numpy as np

from . import Resources
from .records import F32, F64, U8, Crops, Frame, Track

# Right eye, left eye, nose tip, mouth corners at 112×112 (insightface's arcface_dst).
ARCFACE_TEMPLATE: F64 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def estimate_similarity(source: F32 | F64, target: F32 | F64) -> F64:
    """Least-squares similarity A (2, 3) with ``A @ source ≈ target`` (Umeyama 1991); points (N, 2).

    Raises:
        ValueError: fewer than two distinct points, or shapes that differ.
    """
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2:
        raise ValueError(f"points must both be (N, 2), got {source.shape} and {target.shape}")
    src, dst = np.asarray(source, np.float64), np.asarray(target, np.float64)
    src_mean, dst_mean = src.mean(0), dst.mean(0)
    a, b = src - src_mean, dst - dst_mean
    spread = float((a**2).sum())
    if spread < 1e-12:
        raise ValueError("the source points coincide: no similarity is defined")
    # As complex numbers the rotation and scale are one quotient; a reflection can't be expressed.
    real = float((a * b).sum()) / spread
    imag = float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / spread
    linear = np.array([[real, -imag], [imag, real]])
    return np.hstack([linear, (dst_mean - linear @ src_mean)[:, None]])


def invert(matrix: F64) -> F64:
    """The inverse map of a (2, 3) affine matrix, (2, 3)."""
    linear = np.linalg.inv(matrix[:, :2])
    return cast(F64, np.hstack([linear, -linear @ matrix[:, 2:]]))


def apply_points(matrix: F64, points: F32 | F64) -> F32:
    """Map points (..., 2) by a (2, 3) matrix."""
    return cast(F32, (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32))


def scale_of(matrix: F64) -> float:
    """Crop pixels per frame pixel."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))


def warp(image: U8, matrix: F64, size: int) -> U8:
    """The crop (size, size, 3) uint8 of a frame (H, W, 3) uint8 RGB under a frame → crop matrix.

    Only the crop's neighbourhood is worked on: the cost does not grow with the frame.
    """
    scale = scale_of(matrix)
    # Anti-alias: σ such that the frame's detail fits the crop's sampling (0.5/scale − 0.5 px).
    sigma = 0.5 * (1 / scale - 1) if scale < 1 else 0.0
    height, width = image.shape[:2]
    corners = apply_points(invert(matrix), np.array([[x, y] for x in (0.0, size) for y in (0.0, size)]))
    reach = int(np.ceil(4 * sigma)) + 4  # of the blur's kernel and the cubic's
    last = np.array([width - 1, height - 1])
    low = np.maximum(np.clip(np.floor(corners.min(0)).astype(int), 0, last) - reach, 0)
    high = np.minimum(np.clip(np.ceil(corners.max(0)).astype(int), 0, last) + reach, last) + 1
    near = image[low[1] : high[1], low[0] : high[0]]
    local = matrix.copy()
    local[:, 2] += matrix[:, :2] @ low
    if sigma > 0.1:
        near = cast(U8, cv2.GaussianBlur(near, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE))
    return cast(
        U8,
        cv2.warpAffine(near, local, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE),
    )


class AlignStage:
    """Frames of one segment → aligned crops of one track, in frame order."""

    name: ClassVar[str] = "align"
    resources: ClassVar[Resources] = Resources(cpus=1)

    def __init__(self, track: Track, template: F32, size: int, weights: F32 | None = None) -> None:
        """``weights`` (N,) are those of the track's rows (``fade``); None shows all swaps whole."""
        self.track, self.template, self.size, self.weights = track, template, size, weights
        self._row = {int(f): i for i, f in enumerate(track.frames)}

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, item: list[Frame], /) -> Crops:
        """Crops of the frames in which the track has a face; may be empty (N = 0)."""
        present = [(frame, self._row[frame.index]) for frame in item if frame.index in self._row]
        points = [self.track.landmarks[row] for _, row in present]
        matrices = [estimate_similarity(p, self.template) for p in points]
        images = [warp(f.rgb, m, self.size) for (f, _), m in zip(present, matrices, strict=True)]
        n, s = len(present), self.size
        return Crops(
            track=self.track.id,
            frames=np.array([f.index for f, _ in present], np.int64),
            images=np.stack(images) if n else np.zeros((0, s, s, 3), np.uint8),
            matrices=np.stack(matrices) if n else np.zeros((0, 2, 3)),
            landmarks=np.stack([apply_points(m, p) for m, p in zip(matrices, points, strict=True)])
            if n
            else np.zeros((0, 5, 2), np.float32),
            weights=None if self.weights is None else self.weights[[row for _, row in present]],
        )
