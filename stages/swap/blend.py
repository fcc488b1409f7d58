"""Latent blending (§4.3, eq. 6)."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor


def downsample_mask(mask: Tensor, factor: int) -> Tensor:
    """M → m (line 5): (B, 1, S, S) in [0, 1] → (B, 1, S/factor, S/factor), by area.

    A soft mask stays soft: hard latent masks show as blocks of ``factor`` pixels at the seam.
    """
    return F.avg_pool2d(mask, factor)


def blend(foreground: Tensor, background: Tensor, m: Tensor) -> Tensor:
    """Eq. 6 (line 17): ``fg ⊙ m + bg ⊙ (1 − m)``, exact where m is 0 or 1."""
    return foreground * m + background * (1 - m)


def at_level(z0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Eq. 2: q(z_t | z_0) with given noise, √ᾱ z_0 + √(1−ᾱ) ε."""
    return alpha_bar**0.5 * z0 + (1 - alpha_bar) ** 0.5 * noise
