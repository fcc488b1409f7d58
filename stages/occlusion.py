"""Occlusion: what passes in front of a face, so that the mask can leave it alone.

Two tests of one crop, added as log odds, so that neither alone decides where the other is sure:

1. the parser: the odds that a pixel is not face;
2. the residual against the face's own skin: the crop is compared, in CIE Lab, with its skin blurred over
   half an eye distance, in units of the skin's own spread. A microphone, a rim, a strand or a gloved hand
   stand out by their colour to the pixel. Where the parser sees eyes, brows, nose or lips, which stand out
   by nature, it counts little.

What is thin and dark, as rims and strands are, is found as lines besides (``thin``).

A parser that is sure of face outweighs any colour, so beards and shadows stay face. How the weights were
chosen, and what other residuals measured (the autoencoder's own reconstruction, the diffusion model's, the
same face in other frames), is in ``docs/finish.md``. Only the sum of the face classes and the parts every
pack names are used, so a finer parser needs no change here.

A crop's result depends on that crop alone, so the same bytes come out wherever segments end.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from .colour_match import low_frequencies, skin_weights
from .records import F32, U8
from .thin import thin_lines

FEATURES = ("eyes", "brows", "nose", "lips", "mouth")  # parts of a face that differ from its skin by nature
PARSER, RESIDUAL, ON_FEATURES, PRIOR = 1.0, 0.15, 0.05, 0.5  # of the log odds
RIM = 4.0  # pixels of a 256 crop inside the face's hull from which on something lies in front of the face
REACH = 2.0  # pixels of a 256 crop by which what is in front is grown: a rim is half skin at its edges
RAMP = (0.3, 0.45)  # odds at which the mask begins and ends to give way
CERTAIN = 0.002  # a parser is never surer than this
FARTHEST = 8.0  # spreads beyond which a colour is no farther off
LEAST_SPREAD = 3.0  # in Lab: noise is no contrast
LIGHT = 24.0  # σ of the skin's blur, pixels of a 256 crop


def occluders(image: U8, face: F32, features: F32) -> F32:
    """How surely each pixel of a crop is something in front of the face, or beside it.

    Args:
        image: (S, S, 3) uint8 RGB.
        face: (S, S), the probability that a pixel is face.
        features: (S, S), the probability of one of ``FEATURES``.

    Returns:
        (S, S) float32 in [0, 1]: 0 where a mask should stay as it is, 1 where it should be 0.

    Raises:
        ValueError: shapes that differ.
    """
    size = len(face)
    if image.shape != (size, size, 3) or face.shape != (size, size) or features.shape != face.shape:
        raise ValueError(
            f"image must be (S, S, 3), face and features (S, S); got {image.shape}, {face.shape}, "
            f"{features.shape}"
        )
    unit = size / 256
    seen = np.clip(_spread(features, 3 * unit), 0, 1)
    residual = skin_residual(image, face * (1 - seen), unit)
    doubt = np.clip(1 - face, CERTAIN, 1 - CERTAIN)
    odds = PARSER * np.log(doubt / (1 - doubt)) + PRIOR
    odds += residual * (RESIDUAL + (ON_FEATURES - RESIDUAL) * seen)
    sure = _spread((1 / (1 + np.exp(-odds))).astype(np.float32), REACH * unit)
    ramp = np.clip((sure - RAMP[0]) / (RAMP[1] - RAMP[0]), 0, 1)
    inside = _hull(face, unit)
    lines = np.minimum(_spread(thin_lines(image, features, inside), REACH * unit), 1)
    return cast(F32, np.maximum(ramp * ramp * (3 - 2 * ramp) * inside, lines).astype(np.float32))


def _hull(face: F32, unit: float) -> F32:
    """1 well inside the convex hull of a face probability, 0 outside: what doubts a face's outer edge is the
    background, and whatever covers a face leaves a dent or a hole in it."""
    hard = (cv2.GaussianBlur(face, (0, 0), 1.5 * unit) > 0.5).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(hard, connectivity=4)
    if count <= 1:
        return np.zeros_like(face)
    areas = stats[1:, cv2.CC_STAT_AREA]
    large = np.isin(labels, 1 + np.flatnonzero(areas >= min(0.02 * hard.sum(), areas.max())))
    points = np.argwhere(large)[:, ::-1].astype(np.int32)
    inside = np.zeros_like(hard)
    cv2.fillConvexPoly(inside, cv2.convexHull(points), 1)
    depth = cv2.distanceTransform(np.pad(inside, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    return cast(F32, np.clip(depth / (RIM * unit) - 0.5, 0, 1).astype(np.float32))


def skin_residual(image: U8, skin: F32, unit: float) -> F32:
    """Distance of each pixel from the face's own skin beside it, (S, S), in spreads of that skin.

    ``skin`` (S, S) in [0, 1] says where to look for it; of that only what is near its main colour counts.
    """
    lab = cast(F32, cv2.cvtColor(image.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB))
    sure = cast(F32, cv2.erode(skin.astype(np.float32), np.ones((2 * round(4 * unit) + 1,) * 2)))
    weight = skin_weights(lab, sure)
    total = float(weight.sum())
    if total < 1:
        return np.zeros(image.shape[:2], np.float32)
    light = low_frequencies(lab, weight, LIGHT * unit)
    spread = float(np.sqrt(((_length(lab - light) ** 2) * weight).sum() / (3 * total)))
    soft = cv2.GaussianBlur(lab, (0, 0), 0.7 * unit)
    away = _length(soft - light) / max(spread, LEAST_SPREAD)
    return cast(F32, np.minimum(away, FARTHEST).astype(np.float32))


def _length(colours: F32) -> F32:
    """Of (S, S, 3), along the last axis."""
    squares = colours**2
    return cast(F32, np.sqrt(squares[..., 0] + squares[..., 1] + squares[..., 2]))


def _spread(x: F32, reach: float) -> F32:
    """Grown by ``reach`` pixels and softened over half of it."""
    kernel = np.ones((2 * round(reach) + 1,) * 2)
    return cast(F32, cv2.GaussianBlur(cv2.dilate(x, kernel), (0, 0), 0.4 * reach + 0.3))
