"""Masks: what of a crop is face, as a soft mask that never reaches the crop's border.

What passes in front of it is left out (``occlusion``), to the strength the setting of that name asks for.
A network says what is where; ``mask_shape`` draws the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, cast

import numpy as np
import torch

from ..configs import Settings
from . import Resources
from .mask_shape import MaskShape
from .occlusion import FEATURES
from .records import F32, U8, Crops
from .spread import spread
from .swap.device_features import part_sum
from .swap.features import part_mass
from .swap.fetch import fetch
from .swap.fitting import Fitting, Later
from .swap.manifest import ParserEntry
from .swap.networks import Networks
from .swap.repeatable import tensor

Draw = Callable[[MaskShape, U8, F32, F32], F32]  # ``MaskShape.all``, wherever


def face_probability(parse: F32, parser: ParserEntry) -> F32:
    """Sum of the pack's face classes: (K, h, w) → (h, w) in [0, 1]."""
    return cast(F32, parse[[parser.classes.index(name) for name in parser.face]].sum(0))


class MaskStage:
    """Crops → the same crops with ``masks``, and the parse's probabilities for whoever comes next."""

    name: ClassVar[str] = "mask"
    resources: ClassVar[Resources] = Resources(cpus=1, gpus=1)

    def __init__(self, networks: Networks, settings: Settings, draw: Draw = MaskShape.all) -> None:
        """``draw`` is used where a GPU parses."""
        self.networks, self.settings = networks, settings
        self._shape, self._draw = MaskShape.from_settings(settings), draw
        self.fitting = Fitting(settings.batch, networks.device)
        self.on_device = networks.device.type == "cuda"

    def setup(self) -> None:
        """Networks arrive loaded."""

    def process(self, item: Crops, /) -> Crops:
        """Masks (N, S, S) float32 in [0, 1], and, but on a GPU, the parses they were made of.

        Crops are parsed in the batches of ``rows.batches``; else each mask depends on its own crop only.
        """
        return self.drawn(item, self.seen(item))

    def seen(self, item: Crops) -> F32 | None:
        """What the networks have to say of crops, None of none: what ``drawn`` needs."""
        work = self._planes if self.on_device else self.networks.parse_crops
        return self.fitting.over(item.frames, lambda part: work(item.images[part]))

    def drawn(self, item: Crops, seen: F32 | None) -> Crops:
        """As ``process``, of what was seen; no network is used."""
        masks = np.zeros(item.images.shape[:3], np.float32)
        if seen is not None and self.on_device:
            masks = self._draw(self._shape, item.images, item.landmarks, seen)
        elif seen is not None:
            masks[:] = spread(self._mask_of_parse, item.images, item.landmarks, seen)
        return replace(item, masks=masks, parses=None if self.on_device else seen)

    @torch.no_grad()
    def _planes(self, images: U8) -> Later:
        """What gives (N, 2, p, p): how surely each pixel is face, and one of ``FEATURES``. All that leaves a
        GPU, which makes a whole parse again sooner than it is brought here and back."""
        net, parser = self.networks, self.networks.manifest.parser
        face = [parser.classes.index(name) for name in parser.face]
        features = [i for part in FEATURES for i in parser.indices(part)]
        with net.beside():
            parse = net.parse(tensor(images, net.device).permute(0, 3, 1, 2).float() / 255)
            arrived = fetch([torch.stack([part_sum(parse, face), part_sum(parse, features)], 1)])
        return lambda: cast(F32, arrived()[0])

    def _mask_of_parse(self, image: U8, landmarks: F32, parse: F32) -> F32:
        """(S, S) of one crop with its landmarks (5, 2) and parse (K, p, p)."""
        parser = self.networks.manifest.parser
        face, features = face_probability(parse, parser), part_mass(parse, parser, *FEATURES)
        return self._shape.one(image, landmarks, (face, features))
