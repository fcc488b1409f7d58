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
from .oval import face_oval
from .records import F32, U8, Crops
from .spread import spread
from .swap.device_features import part_sum
from .swap.features import part_mass
from .swap.fitting import Fitting
from .swap.manifest import ParserEntry
from .swap.networks import Networks, to_tensor

BORDER = 24  # pixels of a 256 crop over which a mask fades to 0 towards the edge


def face_probability(parse: F32, parser: ParserEntry) -> F32:
    """Sum of the pack's face classes: (K, h, w) → (h, w) in [0, 1]."""
    return cast(F32, parse[[parser.classes.index(name) for name in parser.face]].sum(0))


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


class MaskStage:
    """Crops → the same crops with ``masks``, and the parse's probabilities for whoever comes next."""

    name: ClassVar[str] = "mask"
    resources: ClassVar[Resources] = Resources(cpus=1, gpus=1)

    def __init__(self, networks: Networks, settings: Settings) -> None:
        self.networks, self.settings = networks, settings
        self.fitting = Fitting(settings.batch, networks.device)
        self.on_device = networks.device.type == "cuda"

    def setup(self) -> None:
        """Networks arrive loaded."""

    def process(self, item: Crops, /) -> Crops:
        """Masks (N, S, S) float32 in [0, 1], and, but on a GPU, the parses they were made of.

        Crops are parsed in the batches of ``rows.batches``; else each mask depends on its own crop only.
        """
        work = self._planes if self.on_device else self.networks.parse_crops
        seen = self.fitting.over(item.frames, lambda part: work(item.images[part]))
        masks = np.zeros(item.images.shape[:3], np.float32)
        if seen is not None:
            one = self._mask if self.on_device else self._mask_of_parse
            masks[:] = spread(one, item.images, item.landmarks, seen)
        return replace(item, masks=masks, parses=None if self.on_device else seen)

    @torch.no_grad()
    def _planes(self, images: U8) -> F32:
        """(N, 2, p, p): how surely each pixel is face, and one of ``FEATURES``. All that leaves a GPU, which
        makes a whole parse again sooner than it is brought here and back."""
        net, parser = self.networks, self.networks.manifest.parser
        face = [parser.classes.index(name) for name in parser.face]
        features = [i for part in FEATURES for i in parser.indices(part)]
        with net.beside():
            parse = net.parse(to_tensor(images, net.device))
            planes = torch.stack([part_sum(parse, face), part_sum(parse, features)], 1)
            return cast(F32, planes.cpu().numpy())

    def _mask_of_parse(self, image: U8, landmarks: F32, parse: F32) -> F32:
        """(S, S) of one crop with its landmarks (5, 2) and parse (K, p, p)."""
        parser = self.networks.manifest.parser
        face, features = face_probability(parse, parser), part_mass(parse, parser, *FEATURES)
        return self._mask(image, landmarks, (face, features))

    def _mask(self, image: U8, landmarks: F32, seen: F32 | tuple[F32, F32]) -> F32:
        """(S, S) of one crop, of what ``_planes`` says."""
        size = len(image)
        probability = _at_size(seen[0], size)
        mask = soft_mask(probability, self.settings.mask_grow, self.settings.mask_feather)
        mask = mask * face_oval(landmarks, size)
        if self.settings.occlusion > 0:
            hidden = occluders(image, probability, _at_size(seen[1], size))
            mask = mask * (1 - np.float32(self.settings.occlusion) * hidden)
        return mask


def _at_size(probability: F32, size: int) -> F32:
    """A map of the parser's, as large as the crop."""
    if probability.shape[0] == size:
        return probability
    return cast(F32, cv2.resize(probability, (size, size), interpolation=cv2.INTER_LINEAR))
