"""What occluders are drawn on, and what they are drawn with: faces' places, tones, textures.

Pictures are (n, 3, H, W) RGB in [0, 1], labels (n, H, W) uint8 of ``shards.CLASSES``; numbers per
picture are (n, 1, 1), so that they broadcast over the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .augment import chance, uniform
from .shapes import Point, angles, local, pixel_grid, scalars, wobble
from .shards import CLASSES

BACKGROUND, HAIR, SKIN = (CLASSES.index(name) for name in ("background", "hair", "skin"))
# Skin from the lightest to the darkest, sRGB; a drawn tone lies between two neighbours.
TONES = (
    (0.96, 0.83, 0.75), (0.91, 0.73, 0.62), (0.82, 0.61, 0.48), (0.70, 0.48, 0.35), (0.53, 0.35, 0.25),
    (0.37, 0.24, 0.17), (0.24, 0.15, 0.11),
)  # fmt: skip
HAIRS = (
    (0.06, 0.05, 0.05), (0.13, 0.09, 0.07), (0.27, 0.18, 0.12), (0.45, 0.30, 0.18), (0.72, 0.56, 0.36),
    (0.55, 0.27, 0.14), (0.68, 0.67, 0.65),
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """Something to lay over n pictures.

    Attributes:
        paint: (n, 3, H, W) colour, or what broadcasts to it.
        opacity: (n, H, W) in [0, 1].
        takes: (n, H, W) bool: these pixels get ``label``.
        label: (n, H, W) uint8, or one class for all.
        shade: how dark a shadow it throws, 0 for none.
    """

    paint: Tensor
    opacity: Tensor
    takes: Tensor
    label: Tensor | int = BACKGROUND
    shade: float = 0.4


class Scene:
    """n pictures and where their faces are: eyes and mouth as points, the unit, tones; all (n, 1, 1)."""

    def __init__(self, images: Tensor, labels: Tensor, others: tuple[Tensor, Tensor]) -> None:
        self.images, self.labels, self.others = images, labels, others
        self.count, self.side = len(images), images.shape[-1]
        self.grid = pixel_grid(self.side, images.device)
        # where the pack's template has them, for a face whose eyes or mouth are not labelled
        right = self._centre(("right_eye",), (96.2, 121.1))
        left = self._centre(("left_eye",), (160.6, 120.5))
        self.mouth = self._centre(("upper_lip", "lower_lip", "mouth"), (129.0, 187.0))
        self.right, self.left = right, left
        self.middle = ((right[0] + left[0]) / 2, (right[1] + left[1]) / 2)
        dx, dy = left[0] - right[0], left[1] - right[1]
        self.tilt = torch.atan2(dy, dx.abs() + 1e-3).clamp(-0.7, 0.7)
        self.unit = torch.sqrt(dx * dx + dy * dy).clamp(0.14 * self.side, 0.4 * self.side)

    def _centre(self, names: tuple[str, ...], otherwise: tuple[float, float]) -> Point:
        found = torch.zeros_like(self.labels, dtype=torch.float32)
        for name in names:
            found += self.labels == CLASSES.index(name)
        area = found.sum((1, 2), keepdim=True)
        scale = self.side / 256
        x, y = ((found * axis).sum((1, 2), keepdim=True) / area.clamp(min=1) for axis in self.grid)
        seen = area >= 20 * scale * scale
        return torch.where(seen, x, otherwise[0] * scale), torch.where(seen, y, otherwise[1] * scale)

    def tone(self, label: int) -> tuple[Tensor, Tensor]:
        """Mean colour (n, 3, 1, 1) of a class, and (n, 1, 1, 1) bool: whether there is enough of it."""
        found = (self.labels == label)[:, None].float()
        area = found.sum((2, 3), keepdim=True)
        return (self.images * found).sum((2, 3), keepdim=True) / area.clamp(min=1), area > 300


def tone_of(generator: Generator, count: int, table: tuple[tuple[float, ...], ...]) -> Tensor:
    """A colour between two neighbours of a table, (n, 3, 1, 1)."""
    tones = torch.tensor(table, device=generator.device)
    place = uniform(generator, (count,), 0, len(table) - 1.001)
    low = place.long()
    share = (place - low)[:, None]
    return (tones[low] * (1 - share) + tones[low + 1] * share)[:, :, None, None]


def any_colour(generator: Generator, count: int) -> Tensor:
    """Half greys from black to white, half of any hue, (n, 3, 1, 1)."""
    grey = uniform(generator, (count, 1, 1, 1), 0.02, 0.95).expand(-1, 3, -1, -1)
    hue = uniform(generator, (count, 3, 1, 1), 0.03, 0.95)
    return torch.where(chance(generator, count, 0.5)[:, None, None, None], grey, hue)


def own_or(generator: Generator, scene: Scene, label: int, table: tuple[tuple[float, ...], ...]) -> Tensor:
    """Half of the time the person's own colour, a little off; else one of the table."""
    own, enough = scene.tone(label)
    own = own * uniform(generator, (scene.count, 1, 1, 1), 0.75, 1.2)
    use = enough & chance(generator, scene.count, 0.5)[:, None, None, None]
    return torch.where(use, own, tone_of(generator, scene.count, table)).clamp(0, 1)


def texture(generator: Generator, scene: Scene, colour: Tensor) -> Tensor:
    """A surface: light from one side, perhaps stripes or a pattern of a second colour: (n, 3, H, W)."""
    n = scene.count
    x, y = local(scene.grid, scene.middle, angles(generator, n))
    light = 1 + 0.35 * scalars(generator, n, 0, 1) * torch.tanh(x / scene.unit)
    wave = torch.sin(x * 6.28 / (scene.unit * scalars(generator, n, 0.08, 0.7)))
    checks = wave * torch.sin(y * 6.28 / (scene.unit * scalars(generator, n, 0.08, 0.7)))
    which = scalars(generator, n, 0, 1)
    pattern = torch.where(
        which < 0.25, wave, torch.where(which < 0.4, checks, wobble(x + y, generator, 8, 1))
    )
    second = torch.sigmoid(4 * pattern)[:, None] * (which < 0.55)[:, None]
    base = colour + (any_colour(generator, n) - colour) * second
    return (base * light[:, None] + wobble(x + y, generator, 2, 0.02)[:, None]).clamp(0, 1)


def near_face(generator: Generator, scene: Scene, wide: float = 1.3) -> Point:
    """A point on or beside the face."""
    x = scene.middle[0] + scene.unit * scalars(generator, scene.count, -wide, wide)
    return x, scene.middle[1] + scene.unit * scalars(generator, scene.count, -0.9, 1.9)
