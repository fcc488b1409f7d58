"""Paste: swapped crops back into their frames.

Convention
    Matrices are those of ``align``: frame pixels → crop pixels, (0, 0) the centre of the top left pixel.
    Each frame pixel looks up where it lies in the crop, so the frame keeps its own resolution.
    Where the mask is 0 the frame's bytes are untouched. Blending is done in float and rounded once, for
    frames of 16 bits not here but when they are written.
    When the crop is finer than the frame (scale above 1), it is low-passed first, so that detail the
    frame can't hold does not flicker.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar, cast

import cv2
import numpy as np

from . import Resources
from .align import apply_points, invert, scale_of
from .records import F32, F64, U8, Crops, Frame

# An alpha below this changes no 8-bit value by rounding; treating it as 0 keeps the frame exact there.
_LEAST = 1 / 512

Picture = TypeVar("Picture", U8, F32)


def paste(frame_rgb: Picture, swapped: F32, mask: F32, matrix: F64) -> tuple[Picture, F32]:
    """Blend one crop into a frame.

    Args:
        frame_rgb: (H, W, 3) RGB, uint8 or float32 in [0, 255]; not changed.
        swapped: (S, S, 3) float RGB in [0, 255]; values outside are clipped.
        mask: (S, S) float in [0, 1], 1 where the crop replaces the frame.
        matrix: (2, 3), frame → crop. The face may lie partly or wholly outside the frame.

    Returns:
        The picture (H, W, 3) of the same type, rounded if that is uint8, and the alpha it was blended
        with, (H, W) float32 in [0, 1], exactly 0 where the frame is untouched.
    """
    side = len(mask)
    if swapped.shape != (side, side, 3) or mask.shape != (side, side) or matrix.shape != (2, 3):
        raise ValueError(
            "swapped must be (S, S, 3), mask (S, S), matrix (2, 3); "
            f"got {swapped.shape}, {mask.shape}, {matrix.shape}"
        )
    picture, touched = frame_rgb.copy(), np.zeros(frame_rgb.shape[:2], np.float32)
    region = _region(mask, matrix, frame_rgb.shape[:2])
    if region is None:
        return picture, touched
    x0, y0, x1, y1 = region
    local = matrix.copy()
    local[:, 2] += matrix[:, :2] @ [x0, y0]
    face, alpha = _low_pass(swapped, mask, scale_of(matrix))
    size, inverse = (x1 - x0, y1 - y0), cv2.WARP_INVERSE_MAP
    face = cast(
        F32,
        cv2.warpAffine(face, local, size, flags=cv2.INTER_CUBIC | inverse, borderMode=cv2.BORDER_REPLICATE),
    )
    # Linear: a cubic kernel would overshoot at the feather and put alpha where the mask has none.
    spread = cv2.warpAffine(
        alpha, local, size, flags=cv2.INTER_LINEAR | inverse, borderMode=cv2.BORDER_CONSTANT
    )
    alpha = np.clip(spread, 0, 1).astype(np.float32)
    alpha[alpha < _LEAST] = 0
    under = frame_rgb[y0:y1, x0:x1].astype(np.float32)
    blend = under + alpha[..., None] * (np.clip(face, 0, 255) - under)
    picture[y0:y1, x0:x1] = np.rint(blend) if picture.dtype == np.uint8 else blend
    touched[y0:y1, x0:x1] = alpha
    return picture, touched


def _region(mask: F32, matrix: F64, shape: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """The frame pixels the mask can reach, x0, y0, x1, y1 (exclusive); None if there are none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    x, y = columns[[0, -1]] + [-1.0, 1.0], rows[[0, -1]] + [-1.0, 1.0]
    corners = apply_points(invert(matrix), np.array([[x[i], y[j]] for i in (0, 1) for j in (0, 1)]))
    # Two more pixels: the low-pass widens the mask a little.
    low = np.floor(corners.min(0)).astype(int) - 2
    high = np.ceil(corners.max(0)).astype(int) + 3
    x0, y0 = (int(v) for v in np.maximum(low, 0))
    x1, y1 = min(int(high[0]), shape[1]), min(int(high[1]), shape[0])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _low_pass(swapped: F32, mask: F32, scale: float) -> tuple[F32, F32]:
    """Picture and mask without the detail that a frame at 1/scale of the crop's sampling can't hold."""
    # The same rule as in align, seen from the other side: σ in crop pixels.
    sigma = 0.5 * (scale - 1)
    if sigma <= 0.1:
        return swapped, mask
    face = cv2.GaussianBlur(swapped, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    alpha = cv2.GaussianBlur(mask, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    return cast(F32, face), cast(F32, alpha)


class PasteStage:
    """Frames of a segment and the swapped crops of its tracks → finished pictures."""

    name: ClassVar[str] = "paste"
    resources: ClassVar[Resources] = Resources(cpus=1)

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, item: tuple[list[Frame], list[Crops]], /) -> tuple[list[U8 | F32], list[F32 | None]]:
        """Pictures in the order of the frames, and for each the alpha of everything pasted into it.

        A frame without a crop comes back as the very array it was, with None. One whose ``native`` array
        has 16 bits gets a float32 picture, not rounded. Crops are pasted by track number, the highest on
        top. ``weights``, where given, scale the masks.

        Raises:
            ValueError: crops without ``swapped`` or ``masks``.
        """
        frames, crops = item
        work: dict[int, list[tuple[F32, F32, F64]]] = {}
        for each in sorted(crops, key=lambda c: c.track):
            if len(each) and (each.swapped is None or each.masks is None):
                raise ValueError(
                    f"track {each.track}: crops must have been swapped and masked before pasting"
                )
            for i, index in enumerate(each.frames.tolist()):
                assert each.swapped is not None and each.masks is not None
                weight = 1.0 if each.weights is None else float(each.weights[i])
                mask = each.masks[i] if weight == 1 else each.masks[i] * np.float32(weight)
                work.setdefault(index, []).append((each.swapped[i], mask, each.matrices[i]))
        pictures: list[U8 | F32] = []
        touched: list[F32 | None] = []
        for frame in frames:
            picture: U8 | F32 = frame.rgb
            alpha: F32 | None = None
            if frame.index in work and getattr(frame.native, "dtype", None) == np.uint16:
                picture = picture.astype(np.float32)
            for swapped, mask, matrix in work.get(frame.index, ()):
                picture, one = paste(cast(F32, picture), swapped, mask, matrix)  # or U8: the same is returned
                alpha = one if alpha is None else 1 - (1 - alpha) * (1 - one)
            pictures.append(picture)
            touched.append(alpha)
        return pictures, touched
