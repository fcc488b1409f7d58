"""Noise that depends on nothing but (seed, track, purpose, step).

It lives in the aligned crop and is the same for every frame of a track, so that texture made of it
stays on the face; it is drawn on the CPU, so that every device and executor sees the same numbers.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(seed: int, track: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator keyed by its arguments (SHA-256, so that near keys give unrelated streams)."""
    key = hashlib.sha256(f"{seed}/{track}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)


def standard_normal(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Noise of ``shape`` (C, h, w), float32, on the CPU."""
    return torch.randn(shape, generator=random)
