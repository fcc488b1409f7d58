"""Fréchet distance of identity features: how far two crowds of faces are apart, as an identity network sees.

Not FID: those features are Inception's. The figure depends on the network and on the number of faces (few
faces make it larger), so only figures of equally many faces by the same network compare.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from ..stages.records import F32, F64


def _factor(features: F32 | F64) -> tuple[F64, F64]:
    """Mean (D,), and R (min(N, D), D) with RᵀR the sample covariance (N − 1 in the denominator)."""
    values = np.asarray(features, np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"a Gaussian fit needs features (N, D) of at least two faces, got {values.shape}")
    mean = values.mean(0)
    return mean, cast(F64, np.linalg.qr((values - mean) / np.sqrt(len(values) - 1), mode="r"))


def frechet_distance(a: F32 | F64, b: F32 | F64) -> float:
    """|μ_a − μ_b|² + tr(C_a + C_b − 2 (C_a C_b)^½) of Gaussian fits to features (N, D) and (M, D).

    Dowson and Landau 1982 (the Wasserstein-2 distance squared). With C = RᵀR the last trace is the sum of
    the singular values of R_a R_bᵀ: exact and stable, also where N or M is below D and C is singular. For
    features of length 1 the distance lies in [0, 4]; equal sets give 0.

    Raises:
        ValueError: fewer than two faces in a set, or features of different length.
    """
    (mean_a, a_r), (mean_b, b_r) = _factor(a), _factor(b)
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"features differ in length: {mean_a.size} and {mean_b.size}")
    overlap = np.linalg.svd(a_r @ b_r.T, compute_uv=False).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + (a_r**2).sum() + (b_r**2).sum() - 2 * overlap
    return max(float(distance), 0.0)  # rounding may leave a negative of 1e-16
