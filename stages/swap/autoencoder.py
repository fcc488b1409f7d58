"""The tiny autoencoder of the starter pack (weights: madebyollin/taesd, the FLUX.2 variant, MIT).

Pictures are RGB in [0, 1], (B, 3, H, W) with H and W multiples of 8; latents are (B, 32, H/8, W/8).
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WIDTH = 64
PREVIEW_LAYERS = 14  # up to the first block at half resolution


class _Block(nn.Module):
    """Three convolutions and a skip; a middle block first adds a globally normalised 1×1 path."""

    def __init__(self, n: int, *, middle: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(n, n, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(n, n, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(n, n, 3, padding=1),
        )
        self.pool: nn.Module | None = None
        if middle:
            self.pool = nn.Sequential(
                nn.Conv2d(n, 4 * n, 1, bias=False),
                nn.GroupNorm(4, 4 * n),
                nn.ReLU(),
                nn.Conv2d(4 * n, n, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class _SoftClamp(nn.Module):
    """Keeps a latent within what the decoder has seen, smoothly."""

    def forward(self, z: Tensor) -> Tensor:
        return 3 * torch.tanh(z / 3)


def _conv(i: int, o: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, stride=stride, padding=1, bias=bias)


def build_encoder(latent_channels: int = 32) -> nn.Sequential:
    """(B, 3, H, W) in [0, 1] → (B, latent_channels, H/8, W/8)."""
    layers: list[nn.Module] = [_conv(3, WIDTH), _Block(WIDTH)]
    for level in range(3):
        layers.append(_conv(WIDTH, WIDTH, stride=2, bias=False))
        layers += [_Block(WIDTH, middle=level == 2) for _ in range(3)]
    return nn.Sequential(*layers, _conv(WIDTH, latent_channels))


def build_decoder(latent_channels: int = 32) -> nn.Sequential:
    """(B, latent_channels, h, w) → (B, 3, 8h, 8w), about [0, 1] and not clamped."""
    layers: list[nn.Module] = [_SoftClamp(), _conv(latent_channels, WIDTH), nn.ReLU()]
    for level in range(3):
        layers += [_Block(WIDTH, middle=level == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*layers, _Block(WIDTH), _conv(WIDTH, 3))


class TinyAutoencoder(nn.Module):
    """Encoder and decoder with the interface the sampler needs."""

    def __init__(self, latent_channels: int = 32) -> None:
        super().__init__()
        self.encoder = build_encoder(latent_channels)
        self.decoder = build_decoder(latent_channels)

    @classmethod
    def load(cls, encoder: Path, decoder: Path, latent_channels: int) -> TinyAutoencoder:
        """Read both halves from safetensors files (fp16 or fp32)."""
        model = cls(latent_channels)
        model.encoder.load_state_dict(load_file(encoder))
        model.decoder.load_state_dict(load_file(decoder))
        return model.eval().requires_grad_(False)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move to ``device`` as ``dtype``."""
        self.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, image: Tensor) -> Tensor:
        """Float32 in and out, whatever the weights are kept in."""
        return cast(Tensor, self.encoder(image.to(self._dtype())).float())

    def decode(self, latent: Tensor) -> Tensor:
        """Float32 in and out, whatever the weights are kept in."""
        return cast(Tensor, self.decoder(latent.to(self._dtype())).float())

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def attach_preview(self, head: Path) -> nn.Sequential:
        """A decoder at half the resolution: the first layers of this one and a fitted linear head.

        The head is one 3×3 convolution from the features of layer ``PREVIEW_LAYERS`` to RGB, fitted
        by least squares to the 2×2 mean of the full decoder's picture (``training/preview_head.py``).
        """
        to_rgb = _conv(WIDTH, 3)
        to_rgb.load_state_dict(load_file(head))
        return nn.Sequential(*self.decoder[:PREVIEW_LAYERS], to_rgb).eval().requires_grad_(False)
