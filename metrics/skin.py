"""Skin: whether a swap keeps the colour of the target's, and how light or dark that is.

Pictures are compared on the pack's crop of the target, where both show skin: pixels that the parser
calls skin (nose, lips, brows and eyes are classes of their own) in the target *and* in the swapped
picture, inside the mask, and some way from the edge of all that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ..stages.colour_match import low_frequencies, skin_weights
from ..stages.records import F32, U8
from .ciede2000 import ciede2000

EDGE: Final = 4  # pixels of a 256 crop that the region stays away from its edge
LIGHT: Final = 0.04  # σ of the low-pass, as a share of the crop: light and shade stay, creases and pores go
LEAST: Final = 0.005  # of the crop's pixels must be left to compare
# Individual typology angle in degrees, from above which skin is called so (Del Bino and Bernerd 2013).
TONES: Final[tuple[tuple[str, float], ...]] = (
    ("very light", 55),
    ("light", 41),
    ("intermediate", 28),
    ("tan", 10),
    ("brown", -30),
    ("dark", -90),
)


@dataclass(frozen=True, slots=True)
class Skin:
    """The skin of a crop: ``lab`` (S, S, 3) float32 CIE Lab (sRGB, D65), ``where`` (S, S) bool."""

    lab: F32
    where: NDArray[np.bool_]

    @property
    def enough(self) -> bool:
        """Whether there is as much skin as a figure needs."""
        return float(self.where.mean()) >= LEAST


class SkinDifference(NamedTuple):
    """CIEDE2000 between two pictures' skin.

    ``mean``: of each pixel after a Gaussian low-pass, averaged; patches and wrong shading count.
    ``cast``: between the two mean colours; what is wrong everywhere in the same way.
    """

    mean: float
    cast: float


def skin_of(crop: U8, probability: F32, mask: F32) -> Skin:
    """The skin of a crop (S, S, 3) uint8 RGB, from the parser's probability (S, S) and the mask (S, S)."""
    where = ((probability > 0.5) & (mask > 0.5)).astype(np.uint8)
    reach = max(1, round(EDGE * len(where) / 256))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    where = cast(U8, cv2.erode(where, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0))
    return Skin(cast(F32, cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)), where > 0)


def skin_difference(target: Skin, swapped: Skin) -> SkinDifference | None:
    """What a swap did to the skin's colour; None where too little of it is in both pictures.

    Raises:
        ValueError: crops of different sizes.
    """
    if target.lab.shape != swapped.lab.shape:
        raise ValueError(f"crops differ in size: {target.lab.shape} and {swapped.lab.shape}")
    both = Skin(target.lab, target.where & swapped.where)
    if not both.enough:
        return None
    means = [skin.lab[both.where].mean(0, dtype=np.float64) for skin in (target, swapped)]
    weight, sigma = both.where.astype(np.float32), LIGHT * len(both.where)
    smooth = [low_frequencies(skin.lab, weight, sigma)[both.where] for skin in (target, swapped)]
    return SkinDifference(float(ciede2000(*smooth).mean()), float(ciede2000(*means)))


def typology_angle(skin: Skin) -> float | None:
    """The individual typology angle (Chardon et al. 1991) of the main colour, in degrees.

    arctan((L − 50) / b) · 180/π: large is light. The colour is a robust mean, to which a beard or the frame
    of glasses adds little. It is a measure of skin under a standard light; of a photograph it tells skin
    and light together. None where there is too little skin.
    """
    if not skin.enough:
        return None
    weight = skin_weights(skin.lab, skin.where.astype(np.float32)).astype(np.float64)
    lightness, _, yellow = (skin.lab * weight[..., None]).sum((0, 1)) / weight.sum()
    return float(np.degrees(np.arctan2(lightness - 50, max(yellow, 1e-6))))


def tone(angle: float | None) -> str:
    """The name of a typology angle in ``TONES``; empty for None."""
    if angle is None:
        return ""
    return next((name for name, low in TONES if angle > low), TONES[-1][0])
