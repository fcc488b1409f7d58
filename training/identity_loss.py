"""Whether clean estimates look like whom the UNet was told: eq. 3 as a part of training.

The squared error asks for the mean of all pictures that a noisy one may have been, in which much of what
makes a face somebody's is lost. What the guiding networks see of the estimate says how much is left.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..stages.swap.identity import IdentityNetworks
from ..stages.swap.loaders import load_autoencoder
from ..stages.swap.pack import Pack
from ..stages.swap.views import arcface_theta, arcface_view
from .latents import Embedder


class IdentityLoss(nn.Module):
    """1 − cos(D_I(D(ẑ_0)), told) per picture, through a pack's guidance decoder.

    Args:
        pack: its crops' template, and its guidance decoder.
        embedder: the identity networks.
        mean, std: (C,) of the latents.
    """

    mean: Tensor
    std: Tensor
    theta: Tensor

    def __init__(self, pack: Pack, embedder: Embedder, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        decoder = load_autoencoder(pack)[1]
        if decoder is None:
            raise ValueError(f"{pack.folder}: has no guidance decoder")
        self.decoder: nn.Module = decoder.to(mean.device).eval().requires_grad_(False)
        self.networks: IdentityNetworks = embedder.network
        self.size = embedder.entry.size
        points = pack.manifest.template_points().astype(np.float32)
        theta = arcface_theta(points[None], embedder.template, pack.manifest.crop_size, self.size)
        self.register_buffer("theta", theta.to(mean.device))
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])

    def forward(self, clean: Tensor, who: Tensor) -> Tensor:
        """Normalised ẑ_0 (B, C, h, w), unit embeddings (B, D) → (B,) in [0, 2]."""
        picture = self.decoder(clean * self.std + self.mean).float()
        view = arcface_view(picture, self.theta.expand(len(picture), 2, 3), self.size)
        # Every other one as in a mirror: what a face is recognised by is there too.
        mirrored = torch.arange(len(view), device=view.device) % 2 == 1
        view = torch.where(mirrored[:, None, None, None], view.flip(3), view)
        seen: Tensor = self.networks(view).float()
        return 1 - (seen * who).sum(1)
