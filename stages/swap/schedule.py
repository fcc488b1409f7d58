"""Noise levels, the timesteps a swap visits, and step-wise λ schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def alpha_bars(
    timesteps: int,
    kind: str,
    beta_start: float | None = None,
    beta_end: float | None = None,
    shift: float = 1.0,
) -> Tensor:
    """ᾱ_t for t = 0 … T−1 as float32 (T,), computed in float64 (§3 of the paper, eq. 2).

    ``scaled_linear`` is linear in √β, as latent diffusion models were trained. ``cosine`` has no β:
    √(ᾱ / (1−ᾱ)) = 1 / (shift · tan(πu/2)) at u = (t + ½) / T, which ends in noise alone; a ``shift`` above 1
    puts more levels where latents of many values are hard to tell (arXiv 2301.11093, eq. 3–5).
    """
    if kind == "cosine":
        u = (torch.arange(timesteps, dtype=torch.float64) + 0.5) / timesteps
        return (1 / (1 + (shift * torch.tan(u * math.pi / 2)) ** 2)).float()
    assert beta_start is not None and beta_end is not None
    if kind == "scaled_linear":
        beta = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64) ** 2
    else:
        beta = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    return torch.cumprod(1 - beta, 0).float()


def timesteps(total: int, start_level: float, steps: int) -> list[int]:
    """The t of Algorithm 1's loop: ``steps`` values from k = start_level·T down, evenly spaced to 0.

    Duplicates (more steps than levels) are dropped, so the list may be shorter than ``steps``.
    """
    k = min(total - 1, max(1, round(start_level * total)))
    values = [round(k * (steps - i) / steps) for i in range(steps)]
    return list(dict.fromkeys(max(1, v) for v in values))


def stepwise(schedule: Sequence[tuple[float, float]], progress: float) -> float:
    """λ's factor at ``progress`` in [0, 1): that of the first pair whose bound lies above it.

    Past the last bound the factor is 0: a term whose schedule ends is over.
    """
    for bound, factor in schedule:
        if progress < bound:
            return factor
    return 0.0
