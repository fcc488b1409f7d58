"""A small PatchGAN (Isola et al. 2017, arXiv 1611.07004) with the hinge loss, for skin that keeps texture."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """(B, 3, H, W) in [0, 1] → scores (B, 1, H/8 − 2, W/8 − 2), high for photographs; 70 pixels wide each."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for level, stride in ((1, 2), (2, 2), (3, 1)):
            i, o = width << (level - 1), width << level
            layers += [nn.Conv2d(i, o, 4, stride, 1, bias=False), nn.GroupNorm(8, o), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width << 3, 1, 4, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.body(image * 2 - 1).float())


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge: scores of photographs above 1, of reconstructions below −1."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """The less, the more the reconstructions pass for photographs."""
    return -fake.mean()


def same_patch(size: int, random: torch.Generator, *images: Tensor) -> tuple[Tensor, ...]:
    """The same random square of ``size`` pixels of every batch; all of it where pictures are smaller."""
    height, width = images[0].shape[-2:]
    top, left = (
        int(torch.randint(max(n - size, 0) + 1, (), generator=random, device=random.device))
        for n in (height, width)
    )
    return tuple(x[..., top : top + size, left : left + size] for x in images)
