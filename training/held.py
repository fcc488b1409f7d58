"""Occluders that are held: hands, microphones, cards and cups, odd things, pieces of other pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor

from .augment import uniform
from .scene import BACKGROUND, HAIR, SKIN, TONES, Layer, Scene, any_colour, near_face, own_or, texture
from .shapes import (
    Point,
    angles,
    capsule,
    cover,
    ellipse,
    local,
    rounded_box,
    scalars,
    soften,
    towards,
    wobble,
)


def hand(scene: Scene, generator: Generator) -> Layer:
    """Forearm, palm, thumb and four fingers of two links each, shaded like rods, from some side."""
    n, unit = scene.count, scene.unit * scalars(generator, scene.count, 0.75, 1.1)
    sign = torch.where(scalars(generator, n, 0, 1) < 0.5, -1.0, 1.0)
    angle = torch.where(
        scalars(generator, n, 0, 1) < 0.8, scalars(generator, n, -1.2, 1.2), angles(generator, n)
    )
    tips = near_face(generator, scene, 1.1)
    wrist = towards(tips, angle, -unit * scalars(generator, n, 0.7, 2.4))
    knuckles = towards(wrist, angle, unit * 1.15)
    softness = scalars(generator, n, 1.0, 3.0)
    light = scalars(generator, n, -0.5, 0.5)
    shade = torch.zeros(n, scene.side, scene.side, device=generator.device)
    opacity = torch.zeros_like(shade)

    def rod(a: Point, b: Point, wide_a: Tensor, wide_b: Tensor, flat: float) -> None:
        nonlocal shade, opacity
        distance, across = capsule(scene.grid, a, b, wide_a, wide_b)
        over = cover(distance, softness)
        # a rod's normal: darker to the rim, and to the side away from the light
        bright = 1 - flat * (1 - torch.sqrt(1.001 - across * across)) + 0.5 * flat * light * across
        shade = shade + (bright - shade) * over
        opacity = torch.maximum(opacity, over)

    rod(towards(wrist, angle, -4.5 * unit), wrist, unit * 0.62, unit * 0.42, 0.35)
    rod(wrist, towards(wrist, angle, unit * 0.75), unit * 0.45, unit * 0.56, 0.2)
    # spread, and folded as a whole between a fist and a flat hand
    spread, folded = scalars(generator, n, 0.02, 0.16), scalars(generator, n, 0.35, 1.0)
    for finger, length in enumerate((0.9, 1.05, 0.98, 0.75)):
        place = (finger - 1.5) * sign
        turn = angle + place * spread + scalars(generator, n, -0.06, 0.06)
        side = (
            knuckles[0] + 0.29 * unit * place * torch.cos(angle),
            knuckles[1] + 0.29 * unit * place * torch.sin(angle),
        )
        root = towards(side, angle, -0.35 * unit)
        reach = length * unit * folded * scalars(generator, n, 0.8, 1.1)
        joint = towards(root, turn, 0.35 * unit + 0.5 * reach)
        wide = 0.15 * unit * scalars(generator, n, 0.9, 1.1)
        rod(root, joint, wide * 1.1, wide, 0.5)
        rod(
            joint,
            towards(joint, turn + scalars(generator, n, -0.35, 0.35), 0.5 * reach),
            wide,
            wide * 0.8,
            0.5,
        )
    turn = angle - sign * scalars(generator, n, 0.3, 1.1)
    side = (
        wrist[0] - 0.35 * unit * sign * torch.cos(angle),
        wrist[1] - 0.35 * unit * sign * torch.sin(angle),
    )
    joint = towards(side, turn, 0.65 * unit)
    rod(side, joint, unit * 0.24, unit * 0.18, 0.45)
    rod(
        joint,
        towards(joint, turn + sign * scalars(generator, n, -0.2, 0.6), 0.5 * unit),
        unit * 0.18,
        unit * 0.13,
        0.45,
    )
    tone = own_or(generator, scene, SKIN, TONES)
    sleeve = cover(
        local(scene.grid, towards(wrist, angle, -unit * scalars(generator, n, 0.15, 2.5)), angle)[1] * -1, 2.0
    )
    shade = shade * (1 + wobble(shade, generator, 8, 0.05) + wobble(shade, generator, 2, 0.02))
    cloth = any_colour(generator, n)
    paint = (tone + (cloth - tone) * sleeve[:, None]) * shade[:, None]
    return Layer(paint.clamp(0, 1), opacity, opacity > 0.5)


def microphone(scene: Scene, generator: Generator) -> Layer:
    """A ball of metal mesh or foam near the mouth, on a stick that leaves downwards or sideways."""
    n, unit = scene.count, scene.unit
    head = (
        scene.mouth[0] + unit * scalars(generator, n, -0.7, 0.7),
        scene.mouth[1] + unit * scalars(generator, n, -0.15, 0.9),
    )
    angle = scalars(generator, n, -1.2, 1.2)
    wide = unit * scalars(generator, n, 0.22, 0.55)
    p = local(scene.grid, head, angle)
    ball = ellipse(p, (wide, wide * scalars(generator, n, 1.0, 1.4)))
    end = towards(head, angle, -5 * unit)
    stick, across = capsule(scene.grid, head, end, wide * scalars(generator, n, 0.4, 0.75), wide * 0.35)
    softness = scalars(generator, n, 1.0, 3.0)
    over, rod = cover(ball, softness), cover(stick, softness)
    foam = scalars(generator, n, 0, 1) < 0.5
    mesh = 0.25 * torch.sin(p[0] * 1.6) * torch.sin(p[1] * 1.6)
    grain = torch.where(foam, wobble(ball, generator, 2, 0.12), mesh)
    round_ = (1 + ball / wide).clamp(0, 1)  # 0 in the middle, 1 at the rim
    lit = (1.15 - 0.6 * round_**2 + 0.3 * (-p[0] - p[1]) / wide * 0.3 + grain)[:, None]
    dark = uniform(generator, (n, 1, 1, 1), 0.04, 0.4).expand(-1, 3, -1, -1)
    colour = torch.where(
        (foam & (scalars(generator, n, 0, 1) < 0.5))[:, None], any_colour(generator, n), dark
    )
    metal = uniform(generator, (n, 1, 1, 1), 0.03, 0.6) * (1.1 - 0.6 * across.abs())[:, None]
    paint = metal + (colour * lit - metal) * over[:, None]
    opacity = torch.maximum(over, rod)
    return Layer(paint.clamp(0, 1), opacity, opacity > 0.5)


def card(scene: Scene, generator: Generator) -> Layer:
    """A phone, a cup, a book: a rounded rectangle, often with a screen or a band on it."""
    n, unit = scene.count, scene.unit
    centre = near_face(generator, scene)
    p = local(scene.grid, centre, scalars(generator, n, -0.6, 0.6))
    half = (unit * scalars(generator, n, 0.35, 0.9), unit * scalars(generator, n, 0.5, 1.2))
    p = (p[0] * (1 + 0.25 * scalars(generator, n, -1, 1) * (p[1] / half[1]).clamp(-1, 1)), p[1])  # tapers
    box = rounded_box(p, half, unit * scalars(generator, n, 0.03, 0.2))
    inner = rounded_box(p, (half[0] * 0.9, half[1] * scalars(generator, n, 0.3, 0.9)), unit * 0.05)
    colour, second = texture(generator, scene, any_colour(generator, n)), any_colour(generator, n)
    shown = cover(inner, 1.5) * (scalars(generator, n, 0, 1) < 0.6)
    turned = 1 - scalars(generator, n, 0, 0.5) * (p[0] / half[0]).clamp(-1, 1) ** 2  # a cup is round
    paint = (colour + (second - colour) * shown[:, None]) * turned[:, None]
    opacity = cover(box, scalars(generator, n, 1.0, 3.0))
    return Layer(paint.clamp(0, 1), opacity, opacity > 0.5)


def _blob(scene: Scene, generator: Generator, size: tuple[float, float]) -> Tensor:
    """Distance to an odd shape on the face: a box joined with or cut by an ellipse, wobbled."""
    n, unit = scene.count, scene.unit
    centre = near_face(generator, scene)
    p = local(scene.grid, centre, angles(generator, n))
    half = (unit * scalars(generator, n, *size), unit * scalars(generator, n, *size))
    box = rounded_box(p, half, torch.minimum(*half) * scalars(generator, n, 0.05, 0.9))
    shift = (p[0] - half[0] * scalars(generator, n, -1, 1), p[1] - half[1] * scalars(generator, n, -1, 1))
    disc = ellipse(shift, (half[0] * 0.7, half[1] * 0.9))
    which = scalars(generator, n, 0, 1)
    shape = torch.where(which < 0.4, torch.minimum(box, disc), torch.maximum(box, -disc))
    return torch.where(which < 0.7, shape, box) + wobble(box, generator, 32, 3.0)


def thing(scene: Scene, generator: Generator) -> Layer:
    """An odd shape, plain or patterned."""
    distance = _blob(scene, generator, (0.25, 1.0))
    opacity = cover(distance, scalars(generator, scene.count, 1.0, 5.0))
    round_ = (1 + 0.35 * torch.tanh(-distance / (0.3 * scene.unit)) - 0.2)[:, None]
    paint = texture(generator, scene, any_colour(generator, scene.count)) * round_
    return Layer(paint.clamp(0, 1), opacity, opacity > 0.5)


def patch(scene: Scene, generator: Generator) -> Layer:
    """A piece of another picture, cut from its background and hair, which keep their labels."""
    n = scene.count
    images, labels = scene.others
    angle = uniform(generator, (n,), -3.14, 3.14)
    zoom = uniform(generator, (n,), 0.5, 1.2)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    moved = uniform(generator, (n, 2), -0.8, 0.8)
    matrix = torch.stack(
        [torch.stack([cos, -sin, moved[:, 0]], 1), torch.stack([sin, cos, moved[:, 1]], 1)], 1
    )
    grid = F.affine_grid(matrix, [n, 1, scene.side, scene.side], align_corners=False)
    paint = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    found = F.grid_sample(
        labels[:, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False
    )[:, 0]
    free = (found == BACKGROUND) | (found == HAIR)
    distance = _blob(scene, generator, (0.4, 1.3))
    # the cut along the other face is blurred as the edge of the shape is
    opacity = cover(distance, scalars(generator, n, 1.0, 4.0)) * soften(free.float(), 3)
    return Layer(paint, opacity, (opacity > 0.5) & free, found.to(torch.uint8))
