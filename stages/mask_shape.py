"""What a mask is made of once a crop was parsed: arithmetic of OpenCV and numpy, one crop by itself.

No network is needed here, so whoever has cores to spare may do it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np

from ..configs import Settings
from .occlusion import occluders
from .oval import face_oval
from .records import F32, U8
from .spread import spread

BORDER = 24  # pixels of a 256 crop over which a mask fades to 0 towards the edge


def soft_mask(probability: F32, grow: float, feather: float) -> F32:
    """A face probability (S, S) → a mask (S, S) in [0, 1].

    The largest connected piece, holes filled (a parser's doubt about glasses is not a hole in a
    face), moved outwards by ``grow`` and blurred over ``feather`` pixels of a 256 crop, and faded
    to 0 at the crop's border so that paste never shows a line there. The level set is taken from
    a signed distance, so a mask moves smoothly when the probability does.
    """
    size = probability.shape[0]
    unit = size / 256
    smooth = cv2.GaussianBlur(probability, (0, 0), 1.5 * unit)
    hard = (smooth > 0.5).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(hard, connectivity=4)
    if count <= 1:
        return np.zeros_like(probability)
    hard = (labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)
    outside = np.pad(1 - hard, 1, constant_values=1)
    cv2.floodFill(outside, None, (0, 0), 2)
    hard = (outside[1:-1, 1:-1] != 2).astype(np.uint8)
    inner = cv2.distanceTransform(hard, cv2.DIST_L2, 5)
    outer = cv2.distanceTransform(1 - hard, cv2.DIST_L2, 5)
    # Each transform counts to the nearest pixel of the other kind: half a pixel beyond the edge itself.
    distance = np.where(hard > 0, inner - 0.5, 0.5 - outer) + grow * unit
    width = max(feather * unit, 0.5)
    ramp = np.clip(0.5 + distance / (2 * width), 0, 1)
    mask = ramp * ramp * (3 - 2 * ramp)
    edge = np.clip((np.arange(size, dtype=np.float32) + 0.5) / (BORDER * unit), 0, 1)
    edge = np.minimum(edge, edge[::-1])
    fade = np.minimum.outer(edge, edge)
    return cast(F32, (mask * fade * fade * (3 - 2 * fade)).astype(np.float32))


@dataclass(frozen=True)
class MaskShape:
    """How masks are drawn: the settings ``mask_grow``, ``mask_feather`` and ``occlusion``."""

    grow: float
    feather: float
    occlusion: float

    @classmethod
    def from_settings(cls, settings: Settings) -> MaskShape:
        return cls(settings.mask_grow, settings.mask_feather, settings.occlusion)

    def all(self, images: U8, landmarks: F32, seen: F32) -> F32:
        """(N, S, S) float32 in [0, 1] of crops (N, S, S, 3) RGB with landmarks (N, 5, 2) and ``seen``
        (N, 2, p, p), how surely each pixel is face, and one of ``occlusion.FEATURES``."""
        masks = np.zeros(images.shape[:3], np.float32)
        masks[:] = spread(self.one, images, landmarks, seen)
        return masks

    def one(self, image: U8, landmarks: F32, seen: F32 | tuple[F32, F32]) -> F32:
        """As ``all``, (S, S) of one crop."""
        size = len(image)
        probability = _at_size(seen[0], size)
        mask = soft_mask(probability, self.grow, self.feather) * face_oval(landmarks, size)
        if self.occlusion > 0:
            hidden = occluders(image, probability, _at_size(seen[1], size))
            mask = mask * (1 - np.float32(self.occlusion) * hidden)
        return mask


def _at_size(probability: F32, size: int) -> F32:
    """A map of the parser's, as large as the crop."""
    if probability.shape[0] == size:
        return probability
    return cast(F32, cv2.resize(probability, (size, size), interpolation=cv2.INTER_LINEAR))
