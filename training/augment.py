"""Augmentations of whole batches on their device: pure torch, one generator, no loop over samples.

Pictures are (B, 3, H, W) float RGB in [0, 1]; every generator lives on the pictures' device and alone
decides what is drawn, so that the same generator state makes the same batch. Sizes are shares of the
side, angles degrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, radians

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor

from .shards import IGNORE, MIRRORED


def uniform(generator: Generator, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
    """Float32 in [low, high) on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def chance(generator: Generator, count: int, probability: float) -> Tensor:
    """(count,) bool, each true with that probability."""
    return torch.rand(count, generator=generator, device=generator.device) < probability


@dataclass(frozen=True)
class Jittered:
    """A batch after ``jitter``; what was not given is None.

    Attributes:
        images: (B, 3, H, W) as given, sampled bilinearly; reflected where the picture ends.
        matrix: (B, 2, 3) float32, ``affine_grid``'s theta: output → input, both in [−1, 1].
        mirrored: (B,) bool.
        inside: (B, H, W) uint8, 1 inside the photo and inside the crop as it was.
        labels: (B, H, W) uint8, nearest; right and left exchanged where mirrored, 255 beyond the crop.
        extra: (B, C, H, W), sampled as the images are.
    """

    images: Tensor
    matrix: Tensor
    mirrored: Tensor
    inside: Tensor | None = None
    labels: Tensor | None = None
    extra: Tensor | None = None


def jitter(
    images: Tensor,
    generator: Generator,
    *,
    scale: float = 0.05,
    shift: float = 0.02,
    rotate: float = 4.0,
    mirror: float = 0.5,
    inside: Tensor | None = None,
    labels: Tensor | None = None,
    extra: Tensor | None = None,
) -> Jittered:
    """Scale, turn, shift and mirror each picture, and what lies on it, alike.

    Args:
        images: (B, 3, H, W) float, square.
        generator: on the same device.
        scale: largest enlargement or reduction, 0.2 for 1/1.2 … 1.2 (log-uniform).
        shift: largest shift along each axis, share of the side.
        rotate: largest angle either way, degrees.
        mirror: probability of a mirror.
        inside: (B, H, W) uint8 or bool, 1 inside the photo.
        labels: (B, H, W) uint8 indices of ``shards.CLASSES``, 255 = ignore.
        extra: (B, C, H, W) float, anything else that moves with the picture.
    """
    count, side = len(images), images.shape[-1]
    if images.shape[-2] != side:
        raise ValueError(f"images must be square, got {tuple(images.shape)}")
    factor = torch.exp(uniform(generator, (count,), -1, 1) * log(1 + scale))
    angle = uniform(generator, (count,), -1, 1) * radians(rotate)
    moved = uniform(generator, (count, 2), -2, 2) * shift  # the grid spans 2
    mirrored = chance(generator, count, mirror)
    cos, sin = torch.cos(angle) / factor, torch.sin(angle) / factor
    flip = 1 - 2 * mirrored.float()
    rows = [torch.stack([cos * flip, -sin, moved[:, 0]], 1), torch.stack([sin * flip, cos, moved[:, 1]], 1)]
    matrix = torch.stack(rows, 1)  # (B, 2, 3)
    grid = F.affine_grid(matrix, [count, 1, side, side], align_corners=False)

    def smooth(x: Tensor) -> Tensor:
        return F.grid_sample(
            x.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
        ).to(x.dtype)

    def nearest(x: Tensor) -> Tensor:
        planes = x[:, None].float()
        return F.grid_sample(planes, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0]

    found = None
    if labels is not None:
        found = (nearest(labels.short() + 1) - 1).long()  # 0 is what nearest puts beyond the crop
        found = torch.where(found < 0, IGNORE, found).to(torch.uint8)
        found = torch.where(mirrored[:, None, None], mirror_labels(found), found)
    return Jittered(
        images=smooth(images),
        matrix=matrix,
        mirrored=mirrored,
        inside=None if inside is None else nearest(inside).to(torch.uint8),
        labels=found,
        extra=None if extra is None else smooth(extra),
    )


def mirror_labels(labels: Tensor) -> Tensor:
    """The person's right becomes left: uint8 of any shape → the same; 255 stays. Moves no pixel."""
    table = torch.arange(IGNORE + 1, dtype=torch.uint8, device=labels.device)
    table[: len(MIRRORED)] = torch.tensor(MIRRORED, dtype=torch.uint8, device=labels.device)
    return table[labels.long()]


def colour(
    images: Tensor,
    generator: Generator,
    *,
    brightness: float = 0.1,
    contrast: float = 0.15,
    gamma: float = 0.25,
    saturation: float = 0.15,
    tint: float = 0.0,
) -> Tensor:
    """Other light, hardly another hue. Each argument is the largest change either way; result in [0, 1].

    Gamma is log-uniform in 1/(1 + gamma) … 1 + gamma; ``tint`` is added per channel (keep it near 0
    where a model learns to draw: it would learn the tint too).
    """
    count = len(images)

    def draw(width: float, channels: int = 1) -> Tensor:
        return uniform(generator, (count, channels, 1, 1), -width, width)

    x = images.clamp(0, 1) ** torch.exp(draw(log(1 + gamma)))
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * (1 + draw(contrast)) + draw(brightness) + draw(tint, 3)
    grey = x.mean(1, keepdim=True)
    return (grey + (x - grey) * (1 + draw(saturation))).clamp(0, 1)


def blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Gaussian of its own σ for each picture, (B,) in pixels; ``reach`` taps to each side, 3 σ is ample."""
    count, channels, height, width = images.shape
    taps = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (taps / sigma.clamp(min=0.05)[:, None]) ** 2)  # (B, K)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(images.dtype).repeat_interleave(channels, 0)
    x = images.reshape(1, count * channels, height, width)
    x = F.pad(x, (reach, reach, reach, reach), mode="reflect")
    x = F.conv2d(x, kernel[:, None, None, :], groups=count * channels)
    x = F.conv2d(x, kernel[:, None, :, None], groups=count * channels)
    return x.reshape(images.shape)


def low_resolution(images: Tensor, factor: int) -> Tensor:
    """Averaged over ``factor``² pixels and enlarged again, bilinearly."""
    small = F.avg_pool2d(images, factor)
    return F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)


def coloured_noise(like: Tensor, generator: Generator, factor: int) -> Tensor:
    """Noise of unit variance at 1/``factor`` of the resolution, enlarged: (B, C, H, W) as ``like``."""
    count, channels, height, width = like.shape
    small = torch.randn(
        (count, channels, height // factor, width // factor), generator=generator, device=generator.device
    )
    return F.interpolate(small, (height, width), mode="bicubic", align_corners=False)


def degrade(images: Tensor, generator: Generator, *, share: float = 0.5) -> Tensor:
    """What cameras and codecs do: on a ``share`` of the batch each, light blur, half resolution, noise."""
    count = len(images)
    x = blur(images, uniform(generator, (count,), 0, 1.6) * chance(generator, count, share), reach=5)
    halved = chance(generator, count, share * 0.5)[:, None, None, None]
    x = torch.where(halved, low_resolution(x, 2), x)
    level = (
        uniform(generator, (count, 1, 1, 1), 0, 0.05) * chance(generator, count, share)[:, None, None, None]
    )
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return (x + level * noise).clamp(0, 1)


def early_estimate(images: Tensor, generator: Generator, *, share: float = 0.3) -> Tensor:
    """On a ``share`` of the batch, what the clean estimate x̂ of an early diffusion step looks like.

    Strong blur or a resolution of 1/4 to 1/8, less contrast (an estimate under noise shrinks to the
    mean of its data), and the blotches of a latent at 1/8 of the side that is not yet settled.
    """
    count = len(images)
    sigma = torch.exp(uniform(generator, (count,), log(1.0), log(7.0)))
    x = blur(images, sigma, reach=18)
    way = torch.rand((count, 1, 1, 1), generator=generator, device=x.device)
    x = torch.where(way < 0.25, low_resolution(images, 4), x)
    x = torch.where(way < 0.1, low_resolution(images, 8), x)
    mean = x.mean((2, 3), keepdim=True)
    x = mean + (x - mean) * uniform(generator, (count, 1, 1, 1), 0.6, 1.05)
    for factor, most in ((8, 0.05), (4, 0.02)):
        level = uniform(generator, (count, 1, 1, 1), 0, most)
        # mostly light, a little hue
        noise = coloured_noise(x[:, :1], generator, factor) + 0.3 * coloured_noise(x, generator, factor)
        x = x + level * noise
    chosen = chance(generator, count, share)[:, None, None, None]
    return torch.where(chosen, x.clamp(0, 1), images)
