"""Occluders that are worn or grow: strands of hair, spectacles, sunglasses, masks."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from .augment import chance, uniform
from .scene import HAIR, HAIRS, Layer, Scene, any_colour, own_or, texture
from .shapes import angles, cover, ellipse, local, rounded_box, scalars, wobble


def strands(scene: Scene, generator: Generator) -> Layer:
    """Many thin curved lines from the hairline over forehead, eyes or cheek; some are broad locks."""
    n, unit = scene.count, scene.unit
    colour = own_or(generator, scene, HAIR, HAIRS)
    x, y = local(scene.grid, scene.middle, scene.tilt)
    middle = unit * scalars(generator, n, -1.0, 1.0)
    width = unit * scalars(generator, n, 0.2, 1.2)
    slope, bend = scalars(generator, n, -0.7, 0.7), scalars(generator, n, -0.35, 0.35)
    deep = scalars(generator, n, -0.4, 1.6)
    lock = scalars(generator, n, 0, 1) < 0.35
    shade = torch.ones(n, scene.side, scene.side, device=generator.device)
    opacity = torch.zeros_like(shade)
    for _ in range(26):
        top = unit * scalars(generator, n, -1.6, -1.0)
        end = unit * (deep + scalars(generator, n, -0.5, 0.3))
        t = (y - top) / unit
        s, c = slope + scalars(generator, n, -0.25, 0.25), bend + scalars(generator, n, -0.12, 0.12)
        line = middle + width * scalars(generator, n, -1, 1) + unit * t * (s + c * t)
        lean = torch.sqrt(1 + (s + 2 * c * t) ** 2)
        wide = torch.where(lock, scalars(generator, n, 1.0, 5.0), scalars(generator, n, 0.4, 1.1))
        left = ((end - y) / (end - top).clamp(min=1)).clamp(0, 1)  # thins out to its end
        over = cover((x - line).abs() / lean - wide * left.sqrt(), 1.3) * (left > 0) * (t > 0)
        shade = shade + (scalars(generator, n, 0.55, 1.5) - shade) * over
        opacity = torch.maximum(opacity, over)
    paint = colour * shade[:, None] + 0.03 * (shade[:, None] - 1)
    return Layer(paint.clamp(0, 1), opacity, opacity > 0.5, HAIR, shade=0.25)


def _lenses(scene: Scene, generator: Generator) -> tuple[Tensor, Tensor]:
    """Distance to the nearer of two lenses over the eyes, and to bridge and temples (as lines)."""
    n, unit = scene.count, scene.unit
    half = (unit * scalars(generator, n, 0.34, 0.46), unit * scalars(generator, n, 0.22, 0.38))
    roundness = scalars(generator, n, 0.2, 0.98)
    drop = unit * scalars(generator, n, -0.05, 0.12)
    lens: list[Tensor] = []
    for eye in (scene.right, scene.left):
        x, y = local(scene.grid, eye, scene.tilt)
        lens.append(rounded_box((x, y - drop), half, roundness * torch.minimum(*half)))
    x, y = local(scene.grid, scene.middle, scene.tilt)
    y = y - drop + half[1] * scalars(generator, n, 0.1, 0.6)
    gap, far = unit * 0.5 - half[0], unit * 0.5 + half[0]
    bridge = torch.maximum(y.abs(), x.abs() - gap - 1)
    temple = torch.maximum(y.abs(), torch.maximum(far - x.abs() - 1, x.abs() - far - 0.3 * unit))
    return torch.minimum(*lens), torch.minimum(bridge, temple)


def spectacles(scene: Scene, generator: Generator) -> Layer:
    """Rims, bridge and temples; what is seen through the lenses keeps its label, under some glare."""
    n = scene.count
    lens, lines = _lenses(scene, generator)
    wide = scene.unit * scalars(generator, n, 0.006, 0.04)
    rim = cover(torch.minimum(lens.abs(), lines) - wide.clamp(min=0.6), 1.2)
    colour = torch.where(
        chance(generator, n, 0.6)[:, None, None, None],
        uniform(generator, (n, 3, 1, 1), 0.02, 0.15),
        any_colour(generator, n),
    )
    x, _ = local(scene.grid, scene.middle, angles(generator, n))
    stripe = cover((x - scene.unit * scalars(generator, n, -0.5, 0.5)).abs() - 0.12 * scene.unit, 12.0)
    glass = cover(lens, 1.0) * (0.06 + stripe * scalars(generator, n, -0.2, 0.5).clamp(min=0))
    opacity = torch.maximum(rim, glass)
    paint = (1 - rim[:, None]) * 0.9 + rim[:, None] * colour * (1 + 0.3 * torch.tanh(x / scene.unit))[:, None]
    return Layer(paint.clamp(0, 1), opacity, rim > 0.5, shade=0.15)


def sunglasses(scene: Scene, generator: Generator) -> Layer:
    """Dark lenses, darker above, with the sky in them: nothing of the eyes is seen."""
    n = scene.count
    lens, lines = _lenses(scene, generator)
    rim = cover(torch.minimum(lens.abs(), lines) - scene.unit * scalars(generator, n, 0.02, 0.06), 1.2)
    tint = uniform(generator, (n, 3, 1, 1), 0.0, 0.2)
    _, y = local(scene.grid, scene.middle, scene.tilt)
    grading = (1 + scalars(generator, n, 0, 0.9) * torch.tanh(2 * y / scene.unit))[:, None]
    sky = wobble(lens, generator, 32, 0.12).clamp(min=0)[:, None]
    frame = torch.where(chance(generator, n, 0.7)[:, None, None, None], tint, any_colour(generator, n))
    paint = torch.where(rim[:, None] > 0.5, frame, tint * grading + sky)
    opacity = torch.maximum(rim, cover(lens, 1.2) * scalars(generator, n, 0.93, 1.0))
    return Layer(paint.clamp(0, 1), opacity, opacity > 0.5, shade=0.3)


def mask(scene: Scene, generator: Generator) -> Layer:
    """A cloth over nose or mouth down to the chin, folded, with straps to the ears."""
    n, unit = scene.count, scene.unit
    x, y = local(scene.grid, scene.middle, scene.tilt + scalars(generator, n, -0.1, 0.1))
    top, chin = scalars(generator, n, 0.35, 0.95) * unit, scalars(generator, n, 1.85, 2.15) * unit
    half = (scalars(generator, n, 0.9, 1.2) * unit, (chin - top) * 0.62)
    edge = top + scalars(generator, n, 0.0, 0.35) * x * x / unit  # lower at the sides
    body = ellipse((x, y - (top + chin) / 2), half)
    body = torch.maximum(body, edge - y) + wobble(body, generator, 32, 1.0)
    line = (y - top - 0.1 * unit) + scalars(generator, n, 0.1, 0.5) * (x.abs() - 0.8 * unit)
    strap = torch.maximum(line.abs() - 0.03 * unit, 0.7 * unit - x.abs())
    strap = torch.maximum(strap, x.abs() - 1.35 * unit)
    colour = torch.where(
        chance(generator, n, 0.5)[:, None, None, None],
        torch.tensor([0.75, 0.86, 0.92], device=generator.device)[:, None, None]
        * uniform(generator, (n, 1, 1, 1), 0.7, 1.05),
        any_colour(generator, n),
    )
    cloth = texture(generator, scene, colour)
    plain = (scalars(generator, n, 0, 1) < 0.7)[:, None]
    folds = 1 - 0.1 * torch.sin(y * 6.28 / (0.3 * unit)) * scalars(generator, n, 0, 1) - 0.3 * (x / unit) ** 2
    paint = torch.where(plain, colour, cloth) * folds[:, None]
    opacity = torch.maximum(cover(body, 1.6), cover(strap, 1.3))
    return Layer(paint.clamp(0, 1), opacity, opacity > 0.5, shade=0.3)
