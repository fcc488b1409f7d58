"""What happened to the pixels a swap had no business with."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..stages.records import U8

CAP: Final = 100.0  # dB, stated for identical pixels; one level in one of 10⁴ values is 88


def background_psnr(original: U8, swapped: U8, outside: NDArray[np.bool_]) -> float:
    """PSNR in dB of (H, W, 3) uint8 RGB pictures over the pixels (H, W) that are True; at most ``CAP``.

    Raises:
        ValueError: shapes that differ, or no pixel to compare.
    """
    if original.shape != swapped.shape or outside.shape != original.shape[:2]:
        raise ValueError(f"shapes differ: {original.shape}, {swapped.shape}, mask {outside.shape}")
    if not outside.any():
        raise ValueError("the mask leaves no pixel outside the face")
    error = (original[outside].astype(np.float64) - swapped[outside]) ** 2
    mean = float(error.mean())
    return CAP if mean == 0 else min(CAP, float(10 * np.log10(255**2 / mean)))
