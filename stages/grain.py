"""Grain: a swapped face gets as much of the shot's noise as it lacks, and never more.

A diffusion model gives no grain, and an average along the track removes what there was. Two levels are
measured, in luma and chroma, on the frame where the face goes, around it, and on the face that goes there:
the finest (single pixels) and the next octave (2×2 means), each by a robust estimate that edges and shading
leave alone. The variance that is missing is added as Gaussian noise. Compressed clips have next to none
around a face, and get none.

Noise is keyed by (seed, track, frame), so it moves as grain does, and depends on nothing else.
"""

from __future__ import annotations

import hashlib
from typing import cast

import cv2
import numpy as np

from .records import F32, U8

Key = tuple[int, int, int]
QUANTUM = 1 / 12  # variance of rounding to 8 bits, which is no grain
MOST = 24.0  # grey levels
EXPOSED = (12, 243)  # luma between which grain shows
OCTAVES = (1, 2)  # sides of a pixel
SAMPLE = 4096  # pixels looked at
ENOUGH = 1024  # pixels of a surround that may say something
QUARTILE = 0.31864  # of |x|, x standard normal
# Immerkær 1996 (doi 10.1006/cviu.1996.0060): the difference of two Laplacians, blind to edges and slopes;
# this along the rows times this along the columns.
OPERATOR = np.array([1, -2, 1], np.float32) / np.float32(6**0.5)
# RGB → Y, Cb, Cr of BT.601, and back.
TO_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
TO_RGB = np.linalg.inv(TO_YCC.astype(np.float64)).astype(np.float32)


def noise_levels(
    picture: U8 | F32, where: F32, block: int = 1, exposed: tuple[float, float] | None = None
) -> tuple[F32, int]:
    """Standard deviations of the white noise in Y, Cb and Cr of a picture (h, w, 3) RGB, where ``where``
    (h, w) is above one half, and how many pixels say so: (3,) and a count.

    By the lower quartile of absolute values: texture and edges may take three quarters of the pixels. Of a
    large face every so manieth row and column is looked at, enough to know a quartile to a few per cent.

    Args:
        block: the side of what is taken as a pixel, the mean of so many: 2 is the next octave.
        exposed: the luma between which a pixel counts.
    """
    whole = int(np.count_nonzero(where > 0.5)) // block**2
    step = block * max(1, int((whole / SAMPLE) ** 0.5))
    down, across = ((n - 3 * block) // step + 1 for n in where.shape)
    if whole < 64 or min(down, across) < 1:
        return np.zeros(3, np.float32), 0

    def every(first: int, count: int) -> slice:
        return slice(first, first + (count - 1) * step + 1, step)

    weights = np.repeat(OPERATOR, block) / np.float32(block)
    rows = cast(F32, sum(v * picture[every(i, down)] for i, v in enumerate(weights)))
    seen = cast(F32, sum(v * rows[:, every(i, across)] for i, v in enumerate(weights)))
    middle = range(block, 2 * block)
    share = sum(where[every(i, down), every(j, across)] for i in middle for j in middle)
    chosen = np.asarray(share) > 0.5 * block**2
    if exposed is not None:
        luma = picture[every(block, down), every(block, across)] @ TO_YCC[0]
        chosen &= (luma > exposed[0]) & (luma < exposed[1])
    count = int(np.count_nonzero(chosen))
    if count < 16:  # every second line may be black
        return np.zeros(3, np.float32), 0
    found = np.abs(seen[chosen] @ TO_YCC.T)
    quarter = count // 4
    sigma = np.partition(found, quarter, 0)[quarter] / QUARTILE
    return cast(F32, sigma.astype(np.float32)), count * step**2


def levels(picture: U8 | F32, where: F32) -> F32:
    """Noise of a picture (h, w, 3) RGB in [0, 255]: (3, 2), for Y, Cb, Cr the finest and the next octave.

    White noise of σ gives σ and σ/2.
    """
    return np.stack([noise_levels(picture, where, block)[0] for block in OCTAVES], 1)


def shot_levels(frame: U8 | F32, where: F32, wide: U8 | F32, beside: F32) -> F32:
    """Grain of a shot at a face, (3, 2) as ``levels``: the less of the face's own and of what is around it.

    Skin has texture that passes for grain; a background may have none to show. What is nearly black or
    white can't show any, and is left out.

    Args:
        frame, where: (h, w, 3) RGB in [0, 255] and (h, w), the face.
        wide, beside: (h', w', 3) and (h', w'), its surround.
    """
    own = levels(frame, where)
    around = [noise_levels(wide, beside, block, EXPOSED) for block in OCTAVES]
    if min(count for _, count in around) < ENOUGH:
        return own
    return np.minimum(own, np.stack([sigma for sigma, _ in around], 1))


def add_grain(face: F32, bare: F32, there: F32, where: F32, kept: F32, key: Key, strength: float) -> F32:
    """Add what a face lacks of its shot's grain.

    Args:
        face: (h, w, 3) float32 RGB in [0, 255], to be given grain.
        bare: the same, before it was given the frame's detail: what it has of its own.
        there: (3, 2), ``shot_levels``.
        where: (h, w) in [0, 1], the paste's alpha: where ``bare`` is measured.
        kept: (h, w) in [0, 1], the share of the frame's detail that ``face`` was given: so much of its
            grain is there already.
        key: seed, track and frame.
        strength: 0 (none, exactly) to 1 (all that is missing).

    Returns:
        A new picture like ``face``; not clipped.
    """
    if strength <= 0:
        return face
    # Of each octave, less what rounding alone makes of it.
    rounding = QUANTUM * np.array([1, 0.25], np.float32)
    lacking = np.clip(there**2 - rounding - levels(bare, where) ** 2, 0, MOST**2)
    if not lacking.any():
        return face
    rng = np.random.Generator(np.random.PCG64(_seed(*key)))
    height, width = where.shape
    fine = rng.standard_normal((height, width, 3), np.float32)
    coarse = rng.standard_normal(((height + 1) // 2, (width + 1) // 2, 3), np.float32)
    coarse = np.repeat(np.repeat(coarse, 2, 0), 2, 1)[:height, :width]
    # A 2×2 block of one value passes whole to the next octave; of single pixels a quarter of the variance.
    single = lacking[:, 0]
    double = np.clip(lacking[:, 1] - single / 4, 0, None)
    # OPERATOR sees a ninth of the variance of 2×2 blocks (2/6 a direction, against white noise).
    single = np.clip(single - double / 9, 0, None)
    grain = fine * np.sqrt(single) + coarse * np.sqrt(double)
    free = np.sqrt(np.clip(1 - kept**2, 0, 1))[..., None]
    return cast(F32, (face + np.float32(strength) * free * cv2.transform(grain, TO_RGB)).astype(np.float32))


def _seed(seed: int, track: int, frame: int) -> int:
    """As of all noise: SHA-256, so that near keys give unrelated streams."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{track}/grain/{frame}".encode()).digest()[:8], "big")
