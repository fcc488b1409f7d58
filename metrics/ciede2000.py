"""CIEDE2000: how different two colours look (CIE 142-2001, ISO/CIE 11664-6)."""

from __future__ import annotations

import numpy as np

from ..stages.records import F32, F64


def ciede2000(a: F32 | F64, b: F32 | F64) -> F64:
    """ΔE₀₀ of CIE Lab colours (..., 3) and (..., 3), broadcast: (...); about 1 is just noticeable.

    L in [0, 100]; k_L = k_C = k_H = 1. After Sharma, Wu and Dalal 2005, "The CIEDE2000 color-difference
    formula: implementation notes", whose numbers are the equations'. Symmetric; 0 for equal colours.

    Raises:
        ValueError: arrays whose last axis is not of length 3.
    """
    if a.shape[-1:] != (3,) or b.shape[-1:] != (3,):
        raise ValueError(f"colours must be (..., 3), got {a.shape} and {b.shape}")
    l1, a1, b1 = np.moveaxis(np.asarray(a, np.float64), -1, 0)
    l2, a2, b2 = np.moveaxis(np.asarray(b, np.float64), -1, 0)
    mean7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    stretch = 1.5 - 0.5 * np.sqrt(mean7 / (mean7 + 25.0**7))  # 1 + G: reds' axis, near grey (4, 5)
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1 = np.degrees(np.arctan2(b1, stretch * a1)) % 360
    h2 = np.degrees(np.arctan2(b2, stretch * a2)) % 360
    grey = c1 * c2 == 0  # a grey has no hue: no difference of it, and the other's counts (10, 14)
    turn = h2 - h1
    turn = np.where(grey, 0, turn - 360 * np.sign(turn) * (np.abs(turn) > 180))
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    apart = np.abs(h1 - h2) > 180
    middle = (h1 + h2) / 2 + np.where(apart, np.where(h1 + h2 < 360, 180, -180), 0)
    hue = np.radians(np.where(grey, h1 + h2, middle))
    weight = (
        1
        - 0.17 * np.cos(hue - np.radians(30))
        + 0.24 * np.cos(2 * hue)
        + 0.32 * np.cos(3 * hue + np.radians(6))
        - 0.20 * np.cos(4 * hue - np.radians(63))
    )  # T (15)
    off = (lightness - 50) ** 2
    dl = (l2 - l1) / (1 + 0.015 * off / np.sqrt(20 + off))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn) / 2) / (1 + 0.015 * chroma * weight)
    blue = np.radians(60) * np.exp(-(((np.degrees(hue) - 275) / 25) ** 2))  # 2Δθ (16)
    rotation = -np.sin(blue) * 2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))  # R_T (17, 21)
    result: F64 = np.sqrt(np.maximum(dl**2 + dc**2 + dh**2 + rotation * dc * dh, 0))
    return result
