"""A dense mesh of the face: 468 points by MediaPipe's landmark network, which never guides.

Points follow ``records``: x and y in pixels of the picture given, (0, 0) the centre of the top left pixel;
z in the same pixels, growing away from the camera. Vertex numbers are MediaPipe's; its right is the
person's own, as in ``records``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from ..stages.align import apply_points, estimate_similarity, invert, scale_of, warp
from ..stages.records import F32, F64, U8
from .judge import Network

POINTS: Final = 468
SIDE: Final = 192  # of the network's input
FILLED: Final = 2 / 3  # of the side by the mesh: MediaPipe's region is 1.5 times the face's box
PASSES: Final = 2  # the second crop hangs on the first mesh: half the sensitivity to the landmarks given

# The first crop puts the face as MediaPipe's canonical face (Apache-2.0; 17.665 units high, its middle at
# y = −0.571, y upwards) lies in that region: eye centres, nose tip, mouth corners.
_CANONICAL: F64 = np.array([[-3.151, 2.625], [3.151, 2.625], [0, -0.463], [-2.456, -4.343], [2.456, -4.343]])
TEMPLATE: F64 = (SIDE - 1) / 2 + FILLED * SIDE / 17.665 * (_CANONICAL * [1, -1] - [0, 0.571])

# Vertices on the face's midline; of the others the first 220 are the person's right half, and the last
# 220 the left half in the same order.
MIDLINE: Final = {0, 1, 2, *range(4, 7), *range(8, 20), 94, 151, 152, 164, 168, 175, 195, 197, 199, 200}
_FLIP, _BACK = np.array([-1, 1, 1], np.float32), np.array([SIDE - 1, 0, 0], np.float32)


def mirrored_vertices() -> list[int]:
    """For each vertex, the one that lies on the other side of the face (468)."""
    order = list(range(POINTS))
    for right, left in zip((v for v in range(248) if v not in MIDLINE), range(248, POINTS), strict=True):
        order[right], order[left] = left, right
    return order


class FaceMesh:
    """MediaPipe's face_landmark as ONNX (Kartynnik et al. 2019, arXiv 1907.06724): 192×192 RGB in [0, 1].

    The answers to the picture and to its mirror image are averaged, so that a face and its mirror
    image have the same mesh.
    """

    def __init__(self, path: Path) -> None:
        """Raises PackError if the file can't be loaded."""
        self._net = Network(path)
        self._mirrored = mirrored_vertices()

    def points(self, picture: U8, landmarks: F32) -> F32:
        """Mesh (468, 3) of the face with these landmarks (5, 2) in (H, W, 3) uint8 RGB."""
        matrix = estimate_similarity(landmarks, TEMPLATE)
        mesh = self._measure(picture, matrix)
        for _ in range(PASSES - 1):
            mesh = self._measure(picture, region(mesh))
        return mesh

    def _measure(self, picture: U8, matrix: F64) -> F32:
        crop = warp(picture, matrix, SIDE).astype(np.float32).transpose(2, 0, 1) / 255
        both = np.stack([crop, crop[:, :, ::-1]])
        plain, other = self._net(both)[0]  # points, score
        other = other[self._mirrored] * _FLIP + _BACK
        mean = (plain + other) / 2
        across = apply_points(invert(matrix), mean[:, :2])
        return np.concatenate([across, mean[:, 2:] / np.float32(scale_of(matrix))], axis=1)


def region(mesh: F32) -> F64:
    """Picture → crop matrix (2, 3) under which the mesh fills the middle, its outer eye corners level."""
    right, left = mesh[33, :2], mesh[263, :2]
    cosine, sine = (left - right) / np.linalg.norm(left - right)
    turn = np.array([[cosine, sine], [-sine, cosine]], np.float64)
    turned = mesh[:, :2] @ turn.T
    low, high = turned.min(0), turned.max(0)
    scale = FILLED * SIDE / float((high - low).max())
    shift = (SIDE - 1) / 2 - scale * (low + high) / 2
    return np.hstack([scale * turn, shift[:, None]])
