"""Detail beyond the model's resolution: the target's own, where the two faces agree.

A crop of 256 pixels can't hold what a close-up shows, and a decoder blurs the last octave of what it could.
So the band above the crop's is taken from the frame itself: with G a Gaussian of ``SIGMA`` crop pixels,
s the swapped face and b the *target's* crop, both as they come out of the paste, and f the frame,

    out = s + w·((f − G b) − (s − G s)) + (1 − w)·k·(s − G s)

Where the weight w is 1 the whole band is the frame's: a swap that returns the target's own crop returns the
target's own frame. w falls where swapped and target features differ, seen an octave below (brows, lids,
lips, a beard): there the band stays the swapped face's own, lifted by k until the whole face has as much of
the band as the frame had, so that eyes are not softer than cheeks, nor mixtures than either.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from .records import F32, U8

SIGMA = 1.2  # of G, in crop pixels: what it takes away begins in the crop's last octave
LEAST = 0.6  # the same in frame pixels, below which nothing is left of the band
FEATURES = (1.0, 6.0)  # pixels of a 256 crop: the octaves in which features are compared
POOL = 3.0  # the same, over which a difference spreads
TOLERANCE = 14.0  # grey levels of difference at which the weight is at 1/e
LIFT = 1.0  # the most that k may be
ENOUGH = 0.01  # squared grey levels of the face's own band below which there is nothing to lift
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def agreement(swapped: F32, target: U8) -> F32:
    """Where two crops (S, S, 3) in [0, 255] show the same features: (S, S) in [0, 1], 1 where they are equal.

    Light and skin tone don't count, being coarser than what is compared.
    """
    unit = len(swapped) / 256
    difference = luma_of(swapped - target)
    fine, coarse = (cv2.GaussianBlur(difference, (0, 0), sigma * unit) for sigma in FEATURES)
    energy = cv2.GaussianBlur((fine - coarse) ** 2, (0, 0), POOL * unit)
    return cast(F32, np.exp(-energy / TOLERANCE**2).astype(np.float32))


def restore(face: F32, own: F32, frame: F32, weight: F32, where: F32, scale: float, strength: float) -> F32:
    """Give a pasted face the detail of its frame.

    Args:
        face, own: (h, w, 3) float32, the swapped face and the target's own crop as the paste warps them.
        frame: (h, w, 3) float32, the frame there.
        weight: (h, w), ``agreement`` as the paste warps it.
        where: (h, w) in [0, 1], the paste's alpha: what of the face is seen.
        scale: crop pixels per frame pixel.
        strength: 0 (the face as it was) to 1.

    Returns:
        A new picture like ``face``; not clipped.
    """
    sigma = max(SIGMA / scale, LEAST)
    fine, own_low = face - _blur(face, sigma), _blur(own, sigma)
    band = frame - own_low
    w = weight[..., None]
    theirs, ours = w * band, (1 - w) * fine
    lifted = theirs + (1 + _lift(ours, theirs, band, where)) * ours
    return cast(F32, (face + np.float32(strength) * (lifted - fine)).astype(np.float32))


def _lift(ours: F32, theirs: F32, band: F32, where: F32) -> float:
    """k, so that ``theirs + (1 + k)·ours`` has the energy of ``band`` in the face; 0 to ``LIFT``."""
    x, y, z = (luma_of(picture) for picture in (ours, theirs, band))
    a, b, c = (float((v * where).sum()) for v in (x * x, 2 * x * y, y * y - z * z))
    if a < ENOUGH * float(where.sum()) or c >= 0:
        return 0.0
    return float(np.clip((np.sqrt(b * b - 4 * a * c) - b) / (2 * a) - 1, 0, LIFT))


def luma_of(picture: F32) -> F32:
    """(h, w, 3) RGB → (h, w), in a tenth of the time of numpy's product."""
    return cast(F32, cv2.transform(picture, LUMA[None]))


def _blur(picture: F32, sigma: float) -> F32:
    return cast(F32, cv2.GaussianBlur(picture, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101))
