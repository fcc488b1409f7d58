"""Masks: what of a crop is face, as a soft mask that never reaches the crop's border.

What passes in front of it is left out (``occlusion``), to the strength the setting of that name asks for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, cast

import cv2
import numpy as np
import torch

from ..configs import Settings
from . import Resources
from .occlusion import FEATURES, occluders
from .records import F32, Crops
from .swap.features import part_mass
from .swap.networks import Networks, to_tensor
from .swap.repeatable import repeatable

# The oval's centre and half axes, in eye-to-mouth distances (height) and eye distances (width).
OVAL_CENTRE, OVAL_HEIGHT, OVAL_WIDTH = 0.42, 1.36, 1.13
BORDER = 24  # pixels of a 256 crop over which a mask fades to 0 towards the edge


def face_probability(networks: Networks, parse: torch.Tensor) -> torch.Tensor:
    """Sum of the pack's face classes: (B, K, h, w) → (B, h, w) in [0, 1]."""
    p = networks.manifest.parser
    return parse[:, [p.classes.index(name) for name in p.face]].sum(1)


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
    edge = np.clip((np.arange(size) + 0.5) / (BORDER * unit), 0, 1)
    edge = np.minimum(edge, edge[::-1])
    fade = np.minimum.outer(edge, edge)
    return cast(F32, (mask * fade * fade * (3 - 2 * fade)).astype(np.float32))


def face_oval(landmarks: F32, size: int) -> F32:
    """A soft oval around the five landmarks (5, 2), (S, S) in [0, 1]: keeps neck and ears out.

    A parser of photographs calls them skin. The oval hangs on eyes and mouth, so it turns with them.
    """
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    down = (mouth - eyes).astype(np.float64)
    height = max(float(np.hypot(*down)), 1e-3)
    down /= height
    width = max(float(np.hypot(*(landmarks[1] - landmarks[0]))), height * 0.8)
    centre = eyes + down * height * OVAL_CENTRE
    ys, xs = np.mgrid[0:size, 0:size]
    along = (xs - centre[0]) * down[0] + (ys - centre[1]) * down[1]
    across = (xs - centre[0]) * down[1] - (ys - centre[1]) * down[0]
    radius = np.sqrt((along / (height * OVAL_HEIGHT)) ** 2 + (across / (width * OVAL_WIDTH)) ** 2)
    ramp = np.clip((1.06 - radius) / 0.12, 0, 1)
    return cast(F32, (ramp * ramp * (3 - 2 * ramp)).astype(np.float32))


class MaskStage:
    """Crops → the same crops with ``masks``, and the parse's probabilities for whoever comes next."""

    name: ClassVar[str] = "mask"
    resources: ClassVar[Resources] = Resources(cpus=1, gpus=1)

    def __init__(self, networks: Networks, settings: Settings) -> None:
        self.networks, self.settings = networks, settings

    def setup(self) -> None:
        """Networks arrive loaded."""

    @torch.no_grad()
    def process(self, item: Crops, /) -> Crops:
        """Masks (N, S, S) float32 in [0, 1]; each depends on its own crop only."""
        size = item.images.shape[1]
        masks = np.zeros((len(item), size, size), np.float32)
        strength = np.float32(self.settings.occlusion)
        for i in range(len(item)):
            with repeatable():
                parse = self.networks.parse(to_tensor(item.images[i : i + 1], self.networks.device))
            probability = _at_size(face_probability(self.networks, parse)[0].cpu().numpy(), size)
            mask = soft_mask(probability, self.settings.mask_grow, self.settings.mask_feather)
            masks[i] = mask * face_oval(item.landmarks[i], size)
            if strength > 0:
                parts = part_mass(parse[0].cpu().numpy(), self.networks.manifest.parser, *FEATURES)
                hidden = occluders(item.images[i], probability, _at_size(parts, size))
                masks[i] *= 1 - strength * hidden
        return replace(item, masks=masks)


def _at_size(probability: F32, size: int) -> F32:
    """A map of the parser's, as large as the crop."""
    if probability.shape[0] == size:
        return probability
    return cast(F32, cv2.resize(probability, (size, size), interpolation=cv2.INTER_LINEAR))
