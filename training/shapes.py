"""Signed distances of flat shapes, over a batch: what the synthetic occluders are drawn with.

Distances are in pixels, negative inside. Points are pairs (x, y) of tensors that broadcast to (B, H, W):
the grid, or numbers per sample as (B, 1, 1). y points down. Formulas after Inigo Quilez,
"2D distance functions" (iquilezles.org/articles/distfunctions2d).
"""

from __future__ import annotations

from math import pi

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor

from .augment import coloured_noise, uniform

Point = tuple[Tensor, Tensor]


def pixel_grid(side: int, device: torch.device) -> Point:
    """x, y of the pixel centres, (1, H, W) each; (0, 0) is the top left pixel's."""
    line = torch.arange(side, device=device, dtype=torch.float32)
    return line[None, None, :].expand(1, side, side), line[None, :, None].expand(1, side, side)


def towards(start: Point, angle: Tensor, distance: Tensor | float) -> Point:
    """The point at a distance from ``start``; angle 0 is up, positive turns clockwise (radians)."""
    return start[0] + distance * torch.sin(angle), start[1] - distance * torch.cos(angle)


def local(p: Point, centre: Point, angle: Tensor) -> Point:
    """``p`` seen from ``centre`` in axes turned clockwise by ``angle``."""
    x, y = p[0] - centre[0], p[1] - centre[1]
    cos, sin = torch.cos(angle), torch.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def capsule(p: Point, a: Point, b: Point, wide_a: Tensor, wide_b: Tensor) -> tuple[Tensor, Tensor]:
    """A rod with round ends and radii ``wide_a`` → ``wide_b``: distance, and across: −1 … 1 edge to edge."""
    bx, by = b[0] - a[0], b[1] - a[1]
    px, py = p[0] - a[0], p[1] - a[1]
    square = (bx * bx + by * by).clamp(min=1e-6)
    along = ((px * bx + py * by) / square).clamp(0, 1)
    wide = wide_a + (wide_b - wide_a) * along
    away = torch.sqrt((px - along * bx) ** 2 + (py - along * by) ** 2 + 1e-6)
    across = (px * by - py * bx) / torch.sqrt(square) / wide
    return away - wide, across.clamp(-1, 1)


def rounded_box(p: Point, half: Point, corner: Tensor) -> Tensor:
    """A rectangle around the origin with half sides ``half`` and corners of radius ``corner``."""
    x, y = p[0].abs() - half[0] + corner, p[1].abs() - half[1] + corner
    outer = torch.sqrt(x.clamp(min=0) ** 2 + y.clamp(min=0) ** 2 + 1e-6)
    return outer + torch.maximum(x, y).clamp(max=0) - corner


def ellipse(p: Point, half: Point) -> Tensor:
    """An ellipse around the origin; near the edge the value is a distance, far off only its sign holds."""
    k = torch.sqrt((p[0] / half[0]) ** 2 + (p[1] / half[1]) ** 2 + 1e-9)
    slope = torch.sqrt((p[0] / half[0] ** 2) ** 2 + (p[1] / half[1] ** 2) ** 2 + 1e-9)
    return k * (k - 1) / slope


def cover(distance: Tensor, softness: Tensor | float = 1.0) -> Tensor:
    """Opacity in [0, 1]: 0.5 on the edge, which is ``softness`` pixels wide."""
    t = (0.5 - distance / softness).clamp(0, 1)
    return t * t * (3 - 2 * t)


def wobble(like: Tensor, generator: Generator, factor: int, size: float) -> Tensor:
    """Smooth noise (B, H, W) to add to a distance (B, H, W) or a shade: about ±``size``."""
    return coloured_noise(like[:, None], generator, factor)[:, 0] * size


def soften(opacity: Tensor, width: int = 15) -> Tensor:
    """Two box means over ``width`` (odd) pixels each way: (B, H, W) → the same."""
    x = opacity[:, None]
    for _ in range(2):
        x = F.avg_pool2d(x, (width, 1), 1, (width // 2, 0))
        x = F.avg_pool2d(x, (1, width), 1, (0, width // 2))
    return x[:, 0]


def scalars(generator: Generator, count: int, low: float, high: float) -> Tensor:
    """A number per sample, (B, 1, 1), uniform."""
    return uniform(generator, (count, 1, 1), low, high)


def angles(generator: Generator, count: int) -> Tensor:
    """Any direction, (B, 1, 1) radians."""
    return scalars(generator, count, -pi, pi)
