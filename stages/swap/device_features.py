"""``features.feature_points`` for batches that are on a GPU: the same in torch, the same to rounding."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .constants import constant
from .features import EXTENTS, HIGH, LANDMARKS, LOW, MIN_MASS, PLACES, RIM, UNSURE
from .filters import filtered
from .manifest import ParserEntry


def part_sum(parse: Tensor, indices: list[int]) -> Tensor:
    """(B, K, S, S) → (B, S, S), the probability of any of these classes."""
    if not indices:
        return torch.zeros_like(parse[:, 0])
    total = parse[:, indices[0]]
    for index in indices[1:]:
        total = total + parse[:, index]
    return total


def feature_points(parse: Tensor, landmarks: Tensor, parser: ParserEntry) -> tuple[Tensor, Tensor]:
    """Points (B, P, 2) float32 and which were seen (B, P) bool.

    Args:
        parse: class probabilities (B, K, S, S) of crops.
        landmarks: (B, 5, 2) in their pixels.
        parser: names the K classes.
    """
    size = parse.shape[-1]
    gap = (landmarks[:, 1] - landmarks[:, 0]).norm(dim=1).clamp(min=1)  # (B,)
    anchors = constant([p.anchor for p in PLACES], landmarks)
    centre = torch.einsum("pl,blc->bpc", anchors, landmarks)
    centre = centre - constant([[0.0, p.raised] for p in PLACES], landmarks) * gap[:, None, None]
    half = constant([[p.half_width, p.half_height] for p in PLACES], landmarks) * gap[:, None, None]
    ticks = torch.arange(size, dtype=landmarks.dtype, device=landmarks.device)
    window = ((half[..., None] - (ticks - centre[..., None]).abs()) / (RIM * size / 256)).clamp(0, 1)
    masses = [part_sum(parse, [i for part in p.parts for i in parser.indices(part)]) for p in PLACES]
    mass = torch.stack(masses, 1) * window[:, :, 1, :, None] * window[:, :, 0, None, :]  # (B, P, S, S)
    columns, rows, total = mass.sum(2), mass.sum(3), mass.sum((2, 3))
    x0, xl, xr, x1 = _quantiles(columns, (LOW, 3 * LOW, 1 - 3 * LOW, HIGH))
    y0, y1 = _quantiles(rows, (LOW, HIGH))

    def mean_y(keep: Tensor) -> Tensor:
        part = torch.einsum("bphw,bpw->bph", mass, keep.to(mass))
        return (part * ticks).sum(2) / part.sum(2).clamp(min=1e-6)

    left, right = mean_y(ticks <= (xl + 1)[..., None]), mean_y(ticks >= (xr - 1)[..., None])
    middle = (columns * ticks).sum(2) / total.clamp(min=1e-9)
    pairs = [(x0, left), (x1, right), (middle, y0), (middle, y1)]
    extents = torch.stack([torch.stack(pair, -1) for pair in pairs], 2)  # (B, P, 4, 2)
    seen = total >= MIN_MASS * (size / 256) ** 2
    extents = torch.where(seen[..., None, None], extents, torch.zeros_like(extents))
    found = torch.cat(
        [torch.ones_like(seen[:, :1]).expand(-1, LANDMARKS), seen.repeat_interleave(EXTENTS, 1)], 1
    )
    sure = torch.arange(found.shape[1], device=found.device) != UNSURE
    return torch.cat([landmarks, extents.flatten(1, 2)], 1), found & sure


def _quantiles(marginal: Tensor, shares: tuple[float, ...]) -> list[Tensor]:
    """Where so much of each marginal (B, P, S) lies before: a (B, P) for each share."""
    size = marginal.shape[-1]
    # A running sum as a product with a triangle: a GPU's own adds up in any order.
    before = filtered(
        marginal.double()[:, :, None],
        ("running sum", size),
        lambda: np.ones((1, 1)),
        lambda: np.tri(size + 1, size, -1),
    )[:, :, 0].contiguous()  # (B, P, S + 1)
    wanted = before[..., -1:] * constant(shares, before)
    high = torch.searchsorted(before, wanted, right=True).clamp(1, size)
    low_value, high_value = before.gather(2, high - 1), before.gather(2, high)
    share = (wanted - low_value) / (high_value - low_value).clamp(min=1e-300)
    return list((high - 1.5 + share.clamp(0, 1)).to(marginal).unbind(2))
