"""Motion blur and focus: a swapped face that is sharper than its target is blurred like it.

Both crops are blurred pictures of a face, so the ratio of their power spectra tells the blur: for a Gaussian
of covariance C it is exp(−4π² fᵀC f) at the spatial frequency f. C and a constant (one face may have more
texture than the other) are fitted by weighted least squares over the frequencies at which both have signal,
and again over those that the fit says the blur lets through.
Motion makes C long in its direction, a lost focus makes it round. Only blur is ever added: negative parts
of C are dropped, and so is what is within the fit's own error (``DEADBAND``), so a sharp shot stays as it is.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from .detail import luma_of
from .records import F32, F64, U8

BAND = (0.012, 0.22)  # cycles per pixel of a 256 crop between which spectra are compared
NOISE = 1.5  # grey levels of noise assumed in both: ratios of noise tell nothing
DEADBAND = 0.8  # squared pixels of a 256 crop: variance of the blur that two sharp faces may differ by
MOST = 64.0  # squared pixels of a 256 crop
SPAN, ROUNDS = 4.0, 5  # of the fit


def blur_between(swapped: F32, target: U8, mask: F32, scale: float = 1.0) -> F64:
    """The covariance C (2, 2), in squared crop pixels, of the blur that the target has and the swapped lacks.

    Args:
        swapped, target: crops (S, S, 3) in [0, 255].
        mask: (S, S) in [0, 1], where the two are compared.
        scale: crop pixels per frame pixel.

    Returns:
        Symmetric and positive semidefinite; zeros where the target is at least as sharp.
    """
    size = len(mask)
    unit = size / 256
    total = float(mask.sum())
    if total < (16 * unit) ** 2:
        return np.zeros((2, 2))
    window = cast(F32, cv2.GaussianBlur(mask, (0, 0), 4 * unit))
    ours, theirs = (_spectrum(luma_of(p.astype(np.float32)), window) for p in (swapped, target))
    fy, fx = np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij")
    radius = np.hypot(fx, fy) * unit
    high = BAND[1] / max(scale / unit, 1.0)  # a coarse frame's own band ends below the crop's
    inside = (radius > BAND[0]) & (radius < max(high, 1.5 * BAND[0]))
    floor = NOISE**2 * float((window**2).sum())
    # Where either is noise the logarithm of the ratio goes to 0, and so must its weight.
    weight = (np.minimum(ours, theirs) / (np.minimum(ours, theirs) + floor))[inside] / radius[inside]
    ratio = np.log((ours + floor) / (theirs + floor))[inside]
    x, y = fx[inside], fy[inside]
    columns = np.stack([x * x, 2 * x * y, y * y, np.full_like(x, 1 / (4 * np.pi**2))], 1) * 4 * np.pi**2
    values, vectors = np.zeros(2), np.eye(2)
    for _ in range(ROUNDS):
        # Streaks are Gaussian in their first moments only: the longer, the lower the frequencies that count.
        along = np.stack([x, y], 1) @ vectors
        near = weight * np.exp(-SPAN * np.pi**2 * (along**2 @ values))
        weighted = columns * near[:, None]
        solved = np.linalg.solve(weighted.T @ columns + 1e-9 * np.eye(4), weighted.T @ ratio)
        values, vectors = np.linalg.eigh(np.array([[solved[0], solved[1]], [solved[1], solved[2]]]))
        values = np.clip(values, 0, MOST * unit**2)
    over = np.clip(values - DEADBAND * unit**2, 0, None)
    return (vectors * over) @ vectors.T


def blur_by(picture: F32, covariance: F64) -> F32:
    """A picture (S, S, 3) under a Gaussian of this covariance, in squared pixels."""
    if float(np.trace(covariance)) < 1e-3:
        return picture
    reach = int(np.ceil(3 * np.sqrt(np.linalg.eigvalsh(covariance)[-1]))) + 1
    # A kernel thinner than a pixel can't be sampled; of next to no blur nothing must come of that.
    thinnest = 0.1 + 0.2 * min(1.0, float(np.trace(covariance)))
    inverse = np.linalg.inv(covariance + thinnest * np.eye(2))
    ys, xs = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    points = np.stack([xs, ys], -1)
    kernel = np.exp(-0.5 * np.einsum("yxi,ij,yxj->yx", points, inverse, points))
    return cast(F32, cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101))


def match_blur(swapped: F32, target: U8, mask: F32, scale: float, strength: float) -> F32:
    """The swapped crop (S, S, 3), blurred as its target is; ``strength`` 0 (unchanged) to 1."""
    if strength <= 0:
        return swapped
    return blur_by(swapped, strength * blur_between(swapped, target, mask, scale))


def _spectrum(luma: F32, window: F32) -> F64:
    """Power of a windowed picture around its mean, smoothed over neighbouring frequencies."""
    mean = float((luma * window).sum() / window.sum())
    power = np.abs(np.fft.rfft2((luma - mean) * window)) ** 2
    # rfft keeps half of the columns: rows wrap around, columns are mirrored at 0.
    rows = np.concatenate([power[-2:], power, power[:2]])
    padded = np.pad(rows, ((0, 0), (2, 2)), mode="reflect")
    return cast(F64, cv2.blur(padded, (5, 5))[2:-2, 2:-2])
