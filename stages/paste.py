"""Paste: swapped crops back into their frames, and what makes them belong there (``Finish``).

Convention
    Matrices are those of ``align``: frame pixels → crop pixels, (0, 0) the centre of the top left pixel.
    Each frame pixel looks up where it lies in the crop, so the frame keeps its own resolution.
    Where the mask is 0 the frame's bytes are untouched. Blending is done in float and rounded once, for
    frames of 16 bits not here but when they are written.
    When the crop is finer than the frame (scale above 1), it is low-passed first, so that detail the
    frame can't hold does not flicker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar, cast

import cv2
import numpy as np

from ..configs import Settings
from . import Resources
from .align import apply_points, invert, scale_of
from .detail import agreement, restore
from .grain import add_grain, shot_levels
from .motion_blur import match_blur
from .records import F32, F64, U8, Crops, Frame

# An alpha below this changes no 8-bit value by rounding; treating it as 0 keeps the frame exact there.
_LEAST = 1 / 512

Region = tuple[int, int, int, int]  # x0, y0, x1, y1, exclusive
Picture = TypeVar("Picture", U8, F32)


@dataclass(frozen=True)
class Finish:
    """What a pasted face takes over of its shot, each from 0 (nothing) to 1: the settings of these names."""

    detail: float = 0.0
    motion_blur: float = 0.0
    grain: float = 0.0
    seed: int = 0

    @classmethod
    def from_settings(cls, settings: Settings) -> Finish:
        return cls(settings.detail, settings.motion_blur, settings.grain, settings.seed)


@dataclass(frozen=True)
class Shot:
    """What a face is finished by: the frame (H, W, 3) before anything was pasted, RGB in [0, 255], the
    target's own crop (S, S, 3), and (track, frame) for the noise."""

    frame: U8 | F32
    crop: U8
    key: tuple[int, int] = (0, 0)


def paste(
    frame_rgb: Picture,
    swapped: F32,
    mask: F32,
    matrix: F64,
    finish: Finish | None = None,
    shot: Shot | None = None,
) -> tuple[Picture, F32]:
    """Blend one crop into a frame.

    Args:
        frame_rgb: (H, W, 3) RGB, uint8 or float32 in [0, 255]; not changed.
        swapped: (S, S, 3) float RGB in [0, 255]; values outside are clipped.
        mask: (S, S) float in [0, 1], 1 where the crop replaces the frame.
        matrix: (2, 3), frame → crop. The face may lie partly or wholly outside the frame.
        finish, shot: what to do to the face on the way, and by what; None: nothing.

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
    scale, size = scale_of(matrix), (x1 - x0, y1 - y0)
    finish = finish if shot is not None and finish is not None else Finish()
    if shot is not None and finish.motion_blur > 0:
        swapped = match_blur(swapped, shot.crop, mask, scale, finish.motion_blur)
    face = _warp(_low_pass(swapped, scale), local, size)
    # Linear: a cubic kernel would overshoot at the feather and put alpha where the mask has none.
    alpha = _warp_mask(_low_pass(mask, scale, cv2.BORDER_CONSTANT), local, size)
    alpha[alpha < _LEAST] = 0
    if shot is not None and (finish.detail > 0 or finish.grain > 0):
        face = _finished(face, swapped, alpha, local, region, finish, shot)
    under = frame_rgb[y0:y1, x0:x1].astype(np.float32)
    blend = under + alpha[..., None] * (np.clip(face, 0, 255) - under)
    picture[y0:y1, x0:x1] = np.rint(blend) if picture.dtype == np.uint8 else blend
    touched[y0:y1, x0:x1] = alpha
    return picture, touched


def _region(mask: F32, matrix: F64, shape: tuple[int, ...]) -> Region | None:
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


def _finished(
    face: F32, swapped: F32, alpha: F32, local: F64, region: Region, finish: Finish, shot: Shot
) -> F32:
    """The face (h, w, 3) with the frame's detail and grain."""
    x0, y0, x1, y1 = region
    frame = shot.frame[y0:y1, x0:x1]
    scale, size = scale_of(local), (x1 - x0, y1 - y0)
    bare, kept = face, np.zeros_like(alpha)
    where = alpha / max(float(alpha.max()), _LEAST)  # a face that fades is measured as one that doesn't
    if finish.detail > 0:
        own = _warp(_low_pass(shot.crop.astype(np.float32), scale), local, size)
        weight = _warp_mask(agreement(swapped, shot.crop), local, size)
        face = restore(face, own, frame.astype(np.float32), weight, where, scale, finish.detail)
        kept = weight * np.float32(finish.detail)
    if finish.grain > 0:
        wide, beside = _surround(shot.frame, alpha, region)
        there = shot_levels(frame, where, wide, beside)
        face = add_grain(face, bare, there, where, kept, (finish.seed, *shot.key), finish.grain)
    return face


def _surround(frame: U8 | F32, alpha: F32, region: Region) -> tuple[U8 | F32, F32]:
    """The frame in a box of twice the region's sides, and where nothing is pasted there."""
    x0, y0, x1, y1 = region
    dx, dy = (x1 - x0) // 2, (y1 - y0) // 2
    left, top = max(x0 - dx, 0), max(y0 - dy, 0)
    wide = frame[top : y1 + dy, left : x1 + dx]
    beside = np.ones(wide.shape[:2], np.float32)
    beside[y0 - top : y1 - top, x0 - left : x1 - left] = alpha == 0
    return wide, beside


def _warp(crop: F32, local: F64, size: tuple[int, int]) -> F32:
    """A crop's picture (S, S, 3) at the frame's pixels, (h, w, 3); ``size`` is (w, h)."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cast(F32, cv2.warpAffine(crop, local, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))


def _warp_mask(mask: F32, local: F64, size: tuple[int, int]) -> F32:
    """A map (S, S) in [0, 1] at the frame's pixels, (h, w), 0 beyond the crop."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    spread = cv2.warpAffine(mask, local, size, flags=flags, borderMode=cv2.BORDER_CONSTANT)
    return np.clip(spread, 0, 1).astype(np.float32)


def _low_pass(picture: F32, scale: float, border: int = cv2.BORDER_REPLICATE) -> F32:
    """A crop's picture or mask without the detail that a frame at 1/scale of its sampling can't hold."""
    # The same rule as in align, seen from the other side: σ in crop pixels.
    sigma = 0.5 * (scale - 1)
    return picture if sigma <= 0.1 else cast(F32, cv2.GaussianBlur(picture, (0, 0), sigma, borderType=border))


class PasteStage:
    """Frames of a segment and the swapped crops of its tracks → finished pictures.

    With ``settings``, faces take over detail, blur and grain of their frame as those say; without, nothing.
    """

    name: ClassVar[str] = "paste"
    resources: ClassVar[Resources] = Resources(cpus=1)

    def __init__(self, settings: Settings | None = None) -> None:
        self._finish = None if settings is None else Finish.from_settings(settings)

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
        work: dict[int, list[tuple[F32, F32, F64, U8, int]]] = {}
        for each in sorted(crops, key=lambda c: c.track):
            if len(each) and (each.swapped is None or each.masks is None):
                raise ValueError(
                    f"track {each.track}: crops must have been swapped and masked before pasting"
                )
            for i, index in enumerate(each.frames.tolist()):
                assert each.swapped is not None and each.masks is not None
                weight = 1.0 if each.weights is None else float(each.weights[i])
                mask = each.masks[i] if weight == 1 else each.masks[i] * np.float32(weight)
                work.setdefault(index, []).append(
                    (each.swapped[i], mask, each.matrices[i], each.images[i], each.track)
                )
        pictures: list[U8 | F32] = []
        touched: list[F32 | None] = []
        for frame in frames:
            picture: U8 | F32 = frame.rgb
            alpha: F32 | None = None
            if frame.index in work and getattr(frame.native, "dtype", None) == np.uint16:
                picture = picture.astype(np.float32)
            before = picture
            for swapped, mask, matrix, crop, track in work.get(frame.index, ()):
                shot = Shot(before, crop, (track, frame.index))
                # F32 or U8: the same is returned
                picture, one = paste(cast(F32, picture), swapped, mask, matrix, self._finish, shot)
                alpha = one if alpha is None else 1 - (1 - alpha) * (1 - one)
            pictures.append(picture)
            touched.append(alpha)
        return pictures, touched
