"""Masks by parsers of other sizes and other class lists than the embedded one's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ldvid.configs import Settings
from ldvid.stages.mask import MaskStage, face_probability
from ldvid.stages.records import F32, Crops
from ldvid.stages.swap.networks import Networks

FINER = (
    "background", "hair", "skin", "left_brow", "right_brow", "left_eye", "right_eye", "nose", "upper_lip",
    "lower_lip", "mouth",
)  # fmt: skip
PARTS = {
    "brows": ("left_brow", "right_brow"),
    "eyes": ("left_eye", "right_eye"),
    "lips": ("upper_lip", "lower_lip"),
}


class Stub:
    """Networks whose parse is drawn: skin in a disc, a dark bar over it that the parser doubts a little."""

    def __init__(self, networks: Networks, size: int, *, finer: bool) -> None:
        parser = networks.manifest.parser
        if finer:
            names = {"classes": FINER, "face": FINER[2:], "parts": PARTS, "size": size}
            parser = parser.model_copy(update=names)
        self.manifest = networks.manifest.model_copy(update={"parser": parser})
        self.device, self.size = networks.device, size

    _beside = None
    beside, parse_crops = Networks.beside, Networks.parse_crops

    def parse(self, image: torch.Tensor) -> torch.Tensor:
        classes = self.manifest.parser.classes
        ticks = (np.arange(self.size) + 0.5) * 256 / self.size - 0.5
        face = (np.hypot(ticks[None] - 128, ticks[:, None] - 140) < 70).astype(np.float32)
        bar = face * ((np.abs(ticks[None] - 128) < 12) & (ticks[:, None] > 150))
        eye = face * (np.hypot(ticks[None] - 100, ticks[:, None] - 120) < 10)
        out = np.zeros((len(image), len(classes), self.size, self.size), np.float32)
        # An eye may be of either of two classes: only their sum is sure.
        eyes = self.manifest.parser.indices("eyes")
        for i in eyes:
            out[:, i] = eye / len(eyes)
        out[:, classes.index("skin")] = face * (1 - 0.3 * bar) * (1 - eye)
        out[:, 0] = 1 - out.sum(1)
        return torch.from_numpy(out)


def crops() -> Crops:
    image = np.full((256, 256, 3), (200, 150, 130), np.uint8)
    image[150:, 116:141] = (30, 40, 60)
    image[110:131, 90:111] = (60, 40, 30)
    landmarks = np.array([[96, 121], [160, 121], [129, 160], [101, 187], [157, 187]], np.float32)
    return Crops(0, np.zeros(1, np.int64), image[None], np.eye(2, 3)[None], landmarks[None])


def made(networks: Networks, size: int, finer: bool, occlusion: float) -> F32:
    stub = Stub(networks, size, finer=finer)
    masks = MaskStage(stub, Settings(occlusion=occlusion)).process(crops()).masks  # type: ignore[arg-type]
    assert masks is not None
    return masks[0]


@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize("finer", [False, True])
def test_any_class_list_and_any_size(networks: Networks, size: int, finer: bool) -> None:
    mask = made(networks, size, finer, 1.0)
    assert mask.shape == (256, 256)
    assert mask[165:195, 122:135].max() < 0.05  # the bar
    assert mask[165:185, [95, 160]].min() > 0.95  # both sides of it
    assert mask[116:124, 96:104].min() > 0.95  # an eye is no occluder, however many classes it has
    assert made(networks, size, finer, 0.0)[160:180, 122:135].min() > 0.95


def test_the_finer_list_says_the_same(networks: Networks) -> None:
    few, many = (made(networks, 256, finer, 1.0) for finer in (False, True))
    assert np.abs(few - many).max() < 1e-6


def test_face_probability_is_the_sum_of_the_packs_face_classes(networks: Networks) -> None:
    stub = Stub(networks, 64, finer=True)
    parse = stub.parse(torch.zeros(1, 3, 64, 64))[0].numpy()
    face = face_probability(parse, stub.manifest.parser)
    np.testing.assert_allclose(face, 1 - parse[0], atol=1e-6)
    assert face.max() == 1


def test_no_crops_are_no_masks(networks: Networks) -> None:
    none = replace(
        crops(), frames=np.zeros(0, np.int64), images=np.zeros((0, 256, 256, 3), np.uint8),
        matrices=np.zeros((0, 2, 3)), landmarks=np.zeros((0, 5, 2), np.float32),
    )  # fmt: skip
    done = MaskStage(networks, Settings(occlusion=1.0)).process(none)
    assert done.masks is not None and done.masks.shape == (0, 256, 256)
