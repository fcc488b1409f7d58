"""A UNet that can be told whom to draw: the source's identity embedding beside the timestep.

Trained with the embedding left out now and then, it knows p(z) and p(z | identity) at once, and the
difference of the two steers without a backward pass (classifier-free guidance, arXiv 2207.12598; §5.2 of the
paper names it as its next step).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from .unet import build_unet


class IdentityUNet(nn.Module):
    """A UNet with a projected embedding added to the timestep's.

    Args:
        arguments: of ``build_unet``, as in a pack's manifest.
        dimensions: D of the identity network's embeddings.
    """

    def __init__(self, arguments: dict[str, Any], dimensions: int) -> None:
        super().__init__()
        width = 4 * int(arguments["block_out_channels"][0])
        self.unet = build_unet(arguments, class_embed_type="identity")
        self.project = nn.Sequential(nn.Linear(dimensions, width), nn.SiLU(), nn.Linear(width, width))
        self.nobody = nn.Parameter(torch.zeros(width))

    @property
    def dimensions(self) -> int:
        """D of the embeddings it was trained with."""
        return cast(nn.Linear, self.project[0]).in_features

    def forward(self, z: Tensor, t: Tensor, identity: Tensor | None, dropped: Tensor | None = None) -> Tensor:
        """What it was trained to predict of z_t (B, C, h, w) at timesteps t (B,).

        ``identity`` (B, D) are unit embeddings, None: nobody in particular, as where ``dropped`` (B,) bool.
        """
        condition = self.nobody.expand(len(z), -1)
        if identity is not None:
            # Unit vectors have components of 1/√D, a linear layer's weights are made for 1.
            scaled = (identity * self.dimensions**0.5).to(self.nobody.dtype)
            told = self.project(scaled)
            condition = told if dropped is None else torch.where(dropped[:, None], condition, told)
        return cast(Tensor, self.unet(z, t, condition).sample)
