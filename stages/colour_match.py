"""Colour: the swapped face takes the light and skin tone of the frame it goes into.

Everything is measured in CIE Lab inside the mask, on *skin*: pixels far from the face's main colour
(brows, eyes, teeth, beard, glasses) count little, by a smooth robust weight, since the two faces
differ in just these. First the mean of the skin and, within limits, its contrast are carried over; then
a low-frequency correction lets the face follow the target's shading. What is darker than skin (brows,
lashes, nostrils, a beard) keeps its share of the way down to the darkest there is, so that thick brows
neither turn grey nor take contrast from the skin.

A small difference in chroma is taken for a cast and subtracted everywhere. What is left of a large
one is another skin tone: chroma is then scaled and turned about grey, so that teeth and the white
of the eyes stay white.

Stable over time without looking at other frames: every figure is a smooth function of the crop's own
pixels and mask, with no thresholds, so a small change in gives a small change out, and the result of
a crop does not depend on the crops beside it.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from .records import F32, U8
from .spread import spread

GAIN = (0.6, 1.3)  # how far contrast may be changed
CAST = 6.0  # chroma differences up to about this, in a and b, count as a cast
LIMIT = np.array([25, 8, 8], np.float32)  # of the low-frequency correction, in L, a, b
LIGHT_SIGMA = 1 / 8  # of its blur, as a share of the crop: about half an eye distance
FLOOR = np.array([6, 3, 3], np.float32)  # least spread assumed, in L, a, b: noise is not contrast
DARKEST = 4.0  # of L: a mean that weighs what is so much darker e times as much tells how dark a face gets
ROUNDS, WELSCH = 3, 1.8  # of the estimate of the main colour; how many spreads off a colour may be
RIDGE = 1e-4  # of the mean of the whole in a blur


def match_colour(swapped: F32, target: U8, mask: F32, strength: float) -> F32:
    """Give swapped crops the colours of their targets.

    Args:
        swapped: (N, S, S, 3) float32 RGB in [0, 255].
        target: (N, S, S, 3) uint8 RGB, the original crops.
        mask: (N, S, S) float32 in [0, 1], where the two are compared. The correction is smooth and
            reaches beyond it; a crop with an empty mask is returned unchanged.
        strength: 0 (exactly unchanged) to 1 (full correction).

    Returns:
        A new array like ``swapped``.
    """
    if swapped.shape != target.shape or mask.shape != swapped.shape[:3] or swapped.shape[-1] != 3:
        raise ValueError(
            "swapped and target must be (N, S, S, 3), mask (N, S, S); "
            f"got {swapped.shape}, {target.shape}, {mask.shape}"
        )
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    result = swapped.copy()

    def match(row: int) -> None:
        if float(mask[row].sum()) > 1:
            result[row] = _match(swapped[row], target[row], mask[row], strength)

    if strength > 0:
        spread(match, range(len(result)))
    return result


def low_frequencies(image: F32, mask: F32, sigma: float) -> F32:
    """Gaussian blur of ``sigma`` pixels that counts only what the mask covers.

    ``image`` (H, W, C), C ≤ 3, or (H, W); ``mask`` (H, W), weights ≥ 0; returns the image's shape. Far from
    any weight the result goes over into the weighted mean of the whole.
    """
    flat = image[..., None] if image.ndim == 2 else image
    height, width = mask.shape
    # A wide blur needs no full resolution: a sixteenth of the pixels at σ ≥ 16 changes nothing visible.
    step = max(1, int(sigma / 4))
    size = (max(1, width // step), max(1, height // step))
    stack = np.dstack([flat * mask[..., None], mask]).astype(np.float32)
    sums = np.array(cv2.sumElems(stack)[: stack.shape[-1]])
    mean = sums[:-1] / max(sums[-1], 1e-9)
    small = cv2.resize(stack, size, interpolation=cv2.INTER_AREA) if step > 1 else stack
    small = small.reshape(size[1], size[0], -1)
    sigmas = (sigma * size[0] / width, sigma * size[1] / height)
    small = cv2.GaussianBlur(small, (0, 0), sigmas[0], sigmaY=sigmas[1], borderType=cv2.BORDER_CONSTANT)
    small = (small[..., :-1] + RIDGE * mean.astype(np.float32)) / (small[..., -1:] + RIDGE)
    if step > 1:
        small = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return cast(F32, small.reshape(image.shape).astype(np.float32))


def _match(swapped: F32, target: U8, mask: F32, strength: float) -> F32:
    ours, theirs = _to_lab(swapped), _to_lab(target.astype(np.float32))
    our_skin, their_skin = skin_weights(ours, mask), skin_weights(theirs, mask)
    inside = np.flatnonzero(mask)
    our_planes, their_planes = _planes(ours, inside), _planes(theirs, inside)
    our_mean, our_spread = _statistics(our_planes, our_skin.take(inside))
    their_mean, their_spread = _statistics(their_planes, their_skin.take(inside))
    gain = float(np.clip((their_spread[0] + FLOOR[0] / 2) / (our_spread[0] + FLOOR[0] / 2), *GAIN))
    weight = mask.take(inside)
    our_depth, their_depth = (
        max(float(mean[0]) - _darkest(planes[0], weight), 0.0) + float(FLOOR[0])
        for mean, planes in ((our_mean, our_planes), (their_mean, their_planes))
    )
    deep = max(min(gain, 1.0), float(np.clip(their_depth / our_depth, *GAIN)))  # no paler than skin gets
    matched = np.empty_like(ours)
    off = ours[..., 0] - our_mean[0]
    skin = _likeness(np.moveaxis(ours, -1, 0).reshape(3, -1), our_mean, our_spread).reshape(mask.shape)
    feature = np.where(off < 0, 1 - skin, np.float32(0))
    matched[..., 0] = off * (gain + (deep - gain) * feature) + their_mean[0]
    matched[..., 1:] = _match_chroma(ours[..., 1:], our_mean[1:], their_mean[1:])
    both = our_skin * their_skin
    sigma = LIGHT_SIGMA * len(mask)
    missing = low_frequencies((theirs - matched).astype(np.float32), both, sigma)
    matched = (matched + LIMIT * np.tanh(missing / LIMIT)).astype(np.float32)
    # As a difference, so that the round trip through Lab costs no precision where little changes.
    change = _to_rgb(matched) - _to_rgb(ours)
    return cast(F32, np.clip(swapped + np.float32(strength) * change, 0, 255).astype(np.float32))


def _match_chroma(chroma: F32, ours: F32, theirs: F32) -> F32:
    """(S, S, 2) a and b, and the two skins' means (2,): the means meet, grey moves by the cast only."""
    shift = CAST * np.tanh((theirs - ours) / CAST)
    a, b = complex(*(ours + shift)), complex(*theirs)
    # For skin with hardly any colour of its own (|a| ≲ 5) the turn fades out and a shift takes over.
    turn = (b * a.conjugate() + 25) / (abs(a) ** 2 + 25)
    rest = b - turn * a
    x, y = (chroma[..., i] + np.float32(shift[i]) for i in range(2))
    return np.stack(
        [turn.real * x - turn.imag * y + rest.real, turn.imag * x + turn.real * y + rest.imag], -1
    ).astype(np.float32)


def skin_weights(lab: F32, mask: F32) -> F32:
    """How much each pixel of a masked face is skin: (S, S, 3) Lab, (S, S) → (S, S) in [0, 1].

    A Welsch M-estimate of the main colour, a few rounds from the plain mean.
    """
    inside = np.flatnonzero(mask)
    planes, masked = _planes(lab, inside), mask.ravel()[inside].astype(np.float32)
    weight = masked
    for _ in range(ROUNDS):
        weight = masked * _likeness(planes, *_statistics(planes, weight))
    whole = np.zeros(mask.size, np.float32)
    whole[inside] = weight
    return whole.reshape(mask.shape)


def _likeness(planes: F32, mean: F32, spread: F32) -> F32:
    """How much colours (3, N) are those of this mean and spread, (N,) in [0, 1]."""
    scale = 1 / (WELSCH * np.maximum(spread, FLOOR))
    distance = ((planes - mean[:, None]) * scale[:, None]) ** 2
    return cast(F32, np.exp(np.float32(-0.5) * (distance[0] + distance[1] + distance[2])))


def _planes(lab: F32, inside: NDArray[np.intp]) -> F32:
    """(S, S, 3) → (3, N), of these pixels: arithmetic on whole planes takes a fraction of the time."""
    return np.ascontiguousarray(lab.reshape(-1, 3).take(inside, 0).T)


def _statistics(planes: F32, weight: F32) -> tuple[F32, F32]:
    """Weighted mean and standard deviation of each channel, (3,) each, of (3, N) weighed by (N,)."""
    total = max(float(weight.sum(dtype=np.float64)), 1e-9)
    mean = ((planes * weight).sum(1, dtype=np.float64) / total).astype(np.float32)
    variance = ((planes - mean[:, None]) ** 2 * weight).sum(1, dtype=np.float64) / total
    return mean, np.sqrt(variance).astype(np.float32)


def _darkest(light: F32, weight: F32) -> float:
    """How dark these pixels get, (N,) weighed by (N,): a soft minimum, so that none counts by itself."""
    share = weight * np.exp((light.min() - light) / np.float32(DARKEST))
    return float((light * share).sum(dtype=np.float64) / max(float(share.sum(dtype=np.float64)), 1e-9))


def _to_lab(rgb: F32) -> F32:
    return cast(F32, cv2.cvtColor(np.clip(rgb, 0, 255) / np.float32(255), cv2.COLOR_RGB2LAB))


def _to_rgb(lab: F32) -> F32:
    return cast(F32, cv2.cvtColor(lab, cv2.COLOR_LAB2RGB) * np.float32(255))
