"""Synthetic occluders: what covers a face is not face.

Each kind is drawn for a whole batch at once from signed distances (``shapes``), in the proportions of
the face it covers (the unit is the distance between the eyes, taken from the labels), and labelled
background; strands are labelled hair, pieces of other pictures keep what they were, shadows change no
label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor

from .augment import chance
from .held import card, hand, microphone, patch, thing
from .scene import Layer, Scene, near_face
from .shapes import angles, cover, ellipse, local, scalars, soften, wobble
from .worn import mask, spectacles, strands, sunglasses

# How often each kind is drawn, independently: about 6 pictures in 10 get at least one besides shadows.
USUAL = {
    "shadow": 0.3,
    "strands": 0.16,
    "spectacles": 0.1,
    "sunglasses": 0.05,
    "mask": 0.06,
    "microphone": 0.12,
    "card": 0.08,
    "object": 0.08,
    "patch": 0.1,
    "hand": 0.2,
}


@dataclass(frozen=True)
class Occluded:
    """A batch with occluders: images, labels, and (B, H, W) bool of the pixels they took."""

    images: Tensor
    labels: Tensor
    covered: Tensor


def shadow(scene: Scene, generator: Generator) -> Layer:
    """Light that falls unevenly: a soft edge, a bar or a spot, mostly darker, now and then brighter."""
    n, unit = scene.count, scene.unit
    centre = near_face(generator, scene)
    p = local(scene.grid, centre, angles(generator, n))
    which = scalars(generator, n, 0, 1)
    bar = p[0].abs() - unit * scalars(generator, n, 0.1, 0.6)
    spot = ellipse(p, (unit * scalars(generator, n, 0.4, 1.5), unit * scalars(generator, n, 0.4, 1.5)))
    distance = torch.where(which < 0.5, p[0], torch.where(which < 0.7, bar, spot))
    distance = distance + wobble(distance, generator, 32, 4.0)
    opacity = cover(distance, scalars(generator, n, 3.0, 50.0)) * scalars(generator, n, 0.2, 0.7)
    bright = (scalars(generator, n, 0, 1) < 0.2)[:, None]
    paint = torch.where(bright, (scene.images * 1.6).clamp(max=1), scene.images * 0.15)
    return Layer(paint, opacity, torch.zeros_like(opacity, dtype=torch.bool), shade=0.0)


# In the order they are laid over each other.
KINDS: dict[str, Callable[[Scene, Generator], Layer]] = {
    "shadow": shadow, "strands": strands, "spectacles": spectacles, "sunglasses": sunglasses, "mask": mask,
    "microphone": microphone, "card": card, "object": thing, "patch": patch, "hand": hand,
}  # fmt: skip


@torch.no_grad()
def occlude(
    images: Tensor, labels: Tensor, generator: Generator, chances: Mapping[str, float] = USUAL
) -> Occluded:
    """Lay occluders over a batch.

    Args:
        images: (B, 3, H, W) float32 RGB in [0, 1].
        labels: (B, H, W) uint8; 255 under an occluder becomes the occluder's label.
        generator: on the same device.
        chances: kind → probability per picture, each drawn independently.

    Raises:
        KeyError: a kind that is not in ``KINDS``.
    """
    if unknown := set(chances) - set(KINDS):
        raise KeyError(f"no such occluder: {', '.join(sorted(unknown))}")
    images, labels = images.clone(), labels.clone()
    originals = images.clone(), labels.clone()
    covered = torch.zeros_like(labels, dtype=torch.bool)
    count = len(images)
    for kind, draw in KINDS.items():
        share = chances.get(kind, 0.0)
        # a fixed number is drawn and each used with what is left of the probability: nothing waits
        # for the device to say how many
        some = min(ceil(share * count), count)
        if not some:
            continue
        order = torch.randperm(count, generator=generator, device=generator.device)
        chosen = order[:some]
        others = originals[0][order.roll(1)[:some]], originals[1][order.roll(1)[:some]]
        layer = draw(Scene(images[chosen], originals[1][chosen], others), generator)
        used = chance(generator, some, share * count / some)[:, None, None]
        opacity, takes = layer.opacity * used, layer.takes & used
        below = images[chosen]
        if layer.shade:
            thrown = F.pad(soften(opacity), (4, -4, 6, -6))  # down and to the right
            below = below * (1 - layer.shade * thrown)[:, None]
        images[chosen] = (below + (layer.paint - below) * opacity[:, None]).clamp(0, 1)
        labels[chosen] = torch.where(takes, layer.label, labels[chosen]).to(torch.uint8)
        covered[chosen] = covered[chosen] | takes
    return Occluded(images, labels, covered)
