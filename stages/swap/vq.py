"""The paper's autoencoder: VQGAN (Esser et al. 2021, its reference [28]), as diffusers has it.

Pictures are RGB in [0, 1], (B, 3, H, W); latents are those *before* quantisation, (B, C, H/f, W/f): the
diffusion model was trained on these, and the decoder quantises what it is given.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from .wide_heads import with_wide_heads


class VQAutoencoder(nn.Module):
    """A diffusers ``VQModel`` with the interface the sampler needs.

    ``decode`` is differentiable: the nearest code passes its gradient straight through to the latent it
    stands for (diffusers' ``VectorQuantizer`` adds the difference as a constant).
    """

    def __init__(self, model: Any, scale: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.scale = scale

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move to ``device`` as ``dtype``, the codebook as float32: rounded codes are other codes."""
        if device.type == "cuda":
            with_wide_heads(self.model)
        for name, part in self.model.named_children():
            kept = torch.float32 if name == "quantize" else dtype
            part.to(device, kept, memory_format=torch.channels_last)

    def encode(self, image: Tensor) -> Tensor:
        """E of the paper, float32: diffusers' ``encode`` stops before the codebook."""
        x = (image * 2 - 1).to(self._dtype())
        return cast(Tensor, self.model.encode(x).latents.float() * self.scale)

    def decode(self, latent: Tensor) -> Tensor:
        """D of the paper, float32, about [0, 1] and not clamped."""
        codes = self.model.quantize(latent.float() / self.scale)[0]
        # The two that diffusers' decode calls; it also copies a constant to the GPU and waits for it.
        picture = self.model.decoder(self.model.post_quant_conv(codes.to(self._dtype())))
        return cast(Tensor, picture.float() / 2 + 0.5)

    def _dtype(self) -> torch.dtype:
        return cast(torch.dtype, self.model.quant_conv.weight.dtype)
