"""``colour_match`` for batches that are on a GPU: the same arithmetic in torch, the same to rounding.

Pictures are planes (B, 3, S, S) in [0, 255]; what each step is for is said there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..colour_match import CAST, DARKEST, FLOOR, GAIN, LIGHT_SIGMA, LIMIT, RIDGE, ROUNDS, WELSCH
from .constants import constant
from .filters import area_matrix, blur_matrix, filtered, linear_matrix

WHITE = (0.950456, 1.0, 1.088754)  # D65, as OpenCV's Lab has it
TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
TO_RGB = ((3.240479, -1.53715, -0.498535), (-0.969256, 1.875991, 0.041556), (0.055648, -0.204043, 1.057311))
DARK, SLOPE, OFFSET, LOW = 0.008856, 7.787, 16 / 116, 903.3  # where CIE's cube root gives way to a line


def match_colour(swapped: Tensor, target: Tensor, mask: Tensor, strength: float) -> Tensor:
    """As ``colour_match.match_colour``: (B, 3, S, S) twice, mask (B, S, S) → like ``swapped``."""
    if strength <= 0:
        return swapped
    ours, theirs = to_lab(swapped), to_lab(target)
    our_skin, their_skin = skin_weights(ours, mask), skin_weights(theirs, mask)
    our_mean, contrast = _statistics(ours, our_skin)
    their_mean, wanted = _statistics(theirs, their_skin)
    floor = float(FLOOR[0])
    gain = ((wanted[:, 0] + floor / 2) / (contrast[:, 0] + floor / 2)).clamp(*GAIN)
    our_depth, their_depth = (
        (mean[:, 0] - _darkest(lab[:, 0], mask)).clamp(min=0) + floor
        for mean, lab in ((our_mean, ours), (their_mean, theirs))
    )
    deep = (their_depth / our_depth).clamp(*GAIN).maximum(gain.clamp(max=1))
    off = ours[:, 0] - _wide(our_mean[:, 0])
    feature = (1 - _likeness(ours, our_mean, contrast)) * (off < 0)
    light = off * (_wide(gain) + _wide(deep - gain) * feature) + _wide(their_mean[:, 0])
    matched = torch.cat([light[:, None], _match_chroma(ours[:, 1:], our_mean[:, 1:], their_mean[:, 1:])], 1)
    missing = low_frequencies(theirs - matched, our_skin * their_skin, LIGHT_SIGMA * mask.shape[-1])
    limit = constant(LIMIT.tolist(), mask)[:, None, None]
    matched = matched + limit * torch.tanh(missing / limit)
    result = (swapped + strength * (to_rgb(matched) - to_rgb(ours))).clamp(0, 255)
    return torch.where((mask.sum((1, 2)) > 1)[:, None, None, None], result, swapped)


def low_frequencies(image: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """As ``colour_match.low_frequencies``: (B, C, H, W) and weights (B, H, W) → (B, C, H, W)."""
    height, width = mask.shape[-2:]
    step = max(1, int(sigma / 4))
    small = max(1, height // step), max(1, width // step)
    weighed = torch.cat([image * mask[:, None], mask[:, None]], 1)
    sums = weighed.sum((2, 3))
    mean = sums[:, :-1] / sums[:, -1:].clamp(min=1e-9)
    blurred = filtered(
        weighed,
        ("blurred", height, width, sigma),
        lambda: blur_matrix(small[0], sigma * small[0] / height, "nothing") @ area_matrix(height, small[0]),
        lambda: blur_matrix(small[1], sigma * small[1] / width, "nothing") @ area_matrix(width, small[1]),
    )
    rough = (blurred[:, :-1] + RIDGE * mean[..., None, None]) / (blurred[:, -1:] + RIDGE)
    if step == 1:
        return rough
    return filtered(
        rough,
        ("linear", *small, height, width),
        lambda: linear_matrix(small[0], height),
        lambda: linear_matrix(small[1], width),
    )


def skin_weights(lab: Tensor, mask: Tensor) -> Tensor:
    """As ``colour_match.skin_weights``: (B, 3, S, S), (B, S, S) → (B, S, S)."""
    weight = mask
    for _ in range(ROUNDS):
        weight = mask * _likeness(lab, *_statistics(lab, weight))
    return weight


def _likeness(lab: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """As ``colour_match._likeness``: (B, 3, S, S), (B, 3), (B, 3) → (B, S, S)."""
    scale = 1 / (WELSCH * spread.maximum(constant(FLOOR.tolist(), lab)))
    distance = ((lab - mean[..., None, None]) * scale[..., None, None]) ** 2
    return torch.exp(-0.5 * distance.sum(1))


def to_lab(rgb: Tensor) -> Tensor:
    """(B, 3, S, S) sRGB in [0, 255], clamped → CIE Lab."""
    x = rgb.clamp(0, 255) / 255
    linear = torch.where(x > 0.04045, ((x + 0.055) / 1.055).clamp(min=0) ** 2.4, x / 12.92)
    matrix = constant([[v / w for v in row] for row, w in zip(TO_XYZ, WHITE, strict=True)], rgb)
    x, y, z = torch.einsum("ij,bjhw->ibhw", matrix, linear).unbind(0)
    fx, fy, fz = (torch.where(v > DARK, v.clamp(min=DARK) ** (1 / 3), SLOPE * v + OFFSET) for v in (x, y, z))
    light = torch.where(y > DARK, 116 * fy - 16, LOW * y)
    return torch.stack([light, 500 * (fx - fy), 200 * (fy - fz)], 1)


def to_rgb(lab: Tensor) -> Tensor:
    """The inverse, within [0, 255]."""
    light, a, b = lab.unbind(1)
    dark = light <= DARK * LOW
    y = torch.where(dark, light / LOW, ((light + 16) / 116) ** 3)
    fy = torch.where(dark, SLOPE * y + OFFSET, (light + 16) / 116)
    knee = SLOPE * DARK + OFFSET
    x, z = (torch.where(f <= knee, (f - OFFSET) / SLOPE, f**3) for f in (a / 500 + fy, fy - b / 200))
    matrix = constant([[v * w for v, w in zip(row, WHITE, strict=True)] for row in TO_RGB], lab)
    linear = torch.einsum("ij,bjhw->bihw", matrix, torch.stack([x, y, z], 1)).clamp(0, 1)
    curved = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, 12.92 * linear) * 255


def _match_chroma(chroma: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    shift = CAST * torch.tanh((theirs - ours) / CAST)
    ax, ay = (ours + shift).unbind(1)
    bx, by = theirs.unbind(1)
    size = ax * ax + ay * ay + 25
    real, imaginary = (bx * ax + by * ay + 25) / size, (by * ax - bx * ay) / size
    rest_x, rest_y = bx - (real * ax - imaginary * ay), by - (imaginary * ax + real * ay)
    x, y = chroma[:, 0] + _wide(shift[:, 0]), chroma[:, 1] + _wide(shift[:, 1])
    real, imaginary = _wide(real), _wide(imaginary)
    return torch.stack(
        [real * x - imaginary * y + _wide(rest_x), imaginary * x + real * y + _wide(rest_y)], 1
    )


def _statistics(lab: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation (B, 3) of (B, 3, S, S) weighed by (B, S, S)."""
    total = weight.sum((1, 2)).clamp(min=1e-9)[:, None]
    mean = (lab * weight[:, None]).sum((2, 3)) / total
    variance = ((lab - mean[..., None, None]) ** 2 * weight[:, None]).sum((2, 3)) / total
    return mean, variance.sqrt()


def _darkest(light: Tensor, weight: Tensor) -> Tensor:
    """As ``colour_match._darkest``: (B, S, S) weighed by (B, S, S) → (B,)."""
    least = light.masked_fill(weight <= 0, 100.0).amin((1, 2))
    share = weight * torch.exp((_wide(least) - light) / DARKEST)
    return (light * share).sum((1, 2)) / share.sum((1, 2)).clamp(min=1e-9)


def _wide(x: Tensor) -> Tensor:
    return x[:, None, None]
