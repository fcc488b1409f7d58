"""Blurs and changes of size as matrices, so that a GPU takes whole batches through them in two products.

Borders, kernel lengths and pixel centres are OpenCV's: what ``colour_match`` and ``start`` do on a processor
comes out here to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

from ..records import F64
from .constants import held

Border = Literal["reflect", "nothing"]


def blur_matrix(n: int, sigma: float, border: Border) -> F64:
    """(n, n): ``cv2.GaussianBlur`` of float pictures along one axis; beyond the border the picture is
    reflected about its last pixel, or there is nothing."""
    reach = (round(sigma * 8 + 1) | 1) // 2
    taps = np.exp(-((np.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    taps /= taps.sum()
    at = np.arange(n)[:, None] + np.arange(-reach, reach + 1)
    inside = (at >= 0) & (at < n)
    if border == "reflect":
        at = np.abs(at) % max(2 * (n - 1), 1)
        at, inside = np.where(at >= n, 2 * (n - 1) - at, at), np.ones_like(inside)
    matrix = np.zeros((n, n))
    rows = np.broadcast_to(np.arange(n)[:, None], at.shape)
    np.add.at(matrix, (rows[inside], at[inside]), np.broadcast_to(taps, at.shape)[inside])
    return matrix


def area_matrix(n: int, small: int) -> F64:
    """(small, n): the mean of what each of fewer pixels covers (``cv2.INTER_AREA``)."""
    edges = np.linspace(0, n, small + 1)
    low, high = edges[:-1, None], edges[1:, None]
    covered = np.clip(np.minimum(high, np.arange(n) + 1) - np.maximum(low, np.arange(n)), 0, None)
    return cast(F64, covered / covered.sum(1, keepdims=True))


def linear_matrix(small: int, n: int, *, corners: bool = False) -> F64:
    """(n, small): linear interpolation between pixel centres (``cv2.INTER_LINEAR``).

    With ``corners`` the first of both, and the last of both, fall together.
    """
    at = np.linspace(0, small - 1, n) if corners else (np.arange(n) + 0.5) * small / n - 0.5
    at = np.clip(at, 0, small - 1)
    low = np.minimum(at.astype(int), max(small - 2, 0))
    matrix = np.zeros((n, small))
    np.add.at(matrix, (np.arange(n), low), 1 - (at - low))
    np.add.at(matrix, (np.arange(n), np.minimum(low + 1, small - 1)), at - low)
    return matrix


def filtered(
    x: Tensor, key: tuple[object, ...], rows: Callable[[], F64], columns: Callable[[], F64]
) -> Tensor:
    """rows · x · columnsᵀ of each plane of x (…, H, W); the matrices are made once for each ``key``."""

    def matrix(side: str, make: Callable[[], F64]) -> Tensor:
        return held(
            (*key, side, x.dtype, x.device),
            lambda: torch.tensor(make(), dtype=x.dtype, device=x.device),
        )

    return matrix("rows", rows) @ x @ matrix("columns", columns).T


def enlarged(x: Tensor, height: int, width: int) -> Tensor:
    """Every plane of (…, h, w) enlarged, as ``F.interpolate`` does it (bilinear, ``align_corners=False``).

    The gradient of that, made repeatable, sorts pixels on a GPU and takes many times as long.
    """
    h, w = x.shape[-2:]
    key = ("linear", h, w, height, width)
    return filtered(x, key, lambda: linear_matrix(h, height), lambda: linear_matrix(w, width))


def gaussian(x: Tensor, sigma: float, border: Border = "reflect") -> Tensor:
    """Every plane of (…, H, W), blurred by ``sigma`` pixels."""
    height, width = x.shape[-2:]
    return filtered(
        x,
        ("gaussian", height, width, sigma, border),
        lambda: blur_matrix(height, sigma, border),
        lambda: blur_matrix(width, sigma, border),
    )


def dilate(x: Tensor, size: int) -> Tensor:
    """The largest of ``size`` × ``size`` pixels, (B, C, H, W), ``size`` odd."""
    return F.max_pool2d(x, size, 1, size // 2)
