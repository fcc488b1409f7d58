"""Noise that depends on nothing but (seed, track, purpose, step).

It lives in the aligned crop and is the same for every frame of a track, so that texture made of it
stays on the face; it is drawn on the CPU, so that every device and executor sees the same numbers.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from .constants import held


def generator(seed: int, track: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator keyed by its arguments (SHA-256, so that near keys give unrelated streams)."""
    key = hashlib.sha256(f"{seed}/{track}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)


def latent_noise(
    shape: tuple[int, ...], device: torch.device, *, seed: int, track: int, purpose: str, step: int = 0
) -> Tensor:
    """Standard normal noise of ``shape`` (C, h, w), float32; not to be changed in place."""

    def drawn() -> Tensor:
        return torch.randn(shape, generator=generator(seed, track, purpose, step)).to(device)

    return drawn() if device.type == "cpu" else held((shape, device, seed, track, purpose, step), drawn)
