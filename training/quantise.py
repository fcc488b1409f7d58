"""Weights as int8 with a scale for each output channel, the way ``loaders.load_quantised`` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

LEAST = 4096  # numbers; smaller tensors cost little and hold biases, norms and statistics
CANDIDATES = torch.linspace(0.7, 1.0, 16)  # of the largest weight: clipping it may lose less than rounding


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(O, …) → int8 of that shape, and the scale (O, 1, …) in float16 that gives the least squared error."""
    flat = weight.detach().float().reshape(len(weight), -1)
    largest = flat.abs().amax(1, keepdim=True).clamp(min=1e-8)
    best = torch.full_like(largest, float("inf"))
    chosen = torch.zeros_like(largest)
    for share in CANDIDATES:
        # Rounded to float16 first, so that the integers are made for the scale that is stored.
        scale = (largest * share / 127).half().float().clamp(min=6e-8)
        error = ((flat / scale).round().clamp(-127, 127) * scale - flat).square().sum(1, keepdim=True)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, scale, chosen)
    values = (flat / chosen).round().clamp(-127, 127).to(torch.int8)
    return values.reshape(weight.shape), chosen.half().reshape(-1, *[1] * (weight.ndim - 1))


def save_quantised(state: Mapping[str, Tensor], path: Path) -> None:
    """A state dict: large weights of two and more dimensions become int8, other floats float16."""
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() >= LEAST:
            stored[f"{name}.int8"], stored[f"{name}.scale"] = (t.contiguous() for t in quantise(tensor))
        else:
            stored[name] = tensor.half() if tensor.is_floating_point() else tensor
    part = path.with_name(f"{path.name}.part")
    save_file(stored, part)
    part.replace(path)
