"""Put a pasted RGB picture back into the frame's own planes.

Outside the touched pixels the decoder's samples are kept bit for bit. Inside, the new sample is
``new + (1 − w)·(native − old)`` with ``new`` and ``old`` the pictures after and before, converted by
the same matrix, and w the mask (for chroma, its mean over the block): what the way through RGB would
lose of the original fades with the original, so that no line shows where the mask begins.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from .colour import Colour, Plane, colour_of_frame, convert, from_rgb, planes
from .records import F32, U8, Frame

_ALIGN = 16  # crop borders lie on whole chroma blocks, clear of the chroma filter's reach


def _blend(native: Plane, new: Plane, old: Plane, weight: F32, chosen: NDArray[np.bool_], top: int) -> None:
    """Write the blend into ``native`` where ``chosen``; samples up to ``top``."""
    if native.ndim == 3:
        weight, chosen = weight[..., None], np.broadcast_to(chosen[..., None], native.shape)
    value = new + (1 - weight) * (native.astype(np.float32) - old)
    np.copyto(native, np.clip(np.rint(value), 0, top).astype(native.dtype), where=chosen)


def _blocks(mask: F32, by: int, bx: int) -> tuple[F32, NDArray[np.bool_]]:
    """Mean of the mask over blocks of (by, bx), and whether any of a block is touched."""
    if by == bx == 1:
        return mask, mask > 0
    h, w = mask.shape
    padded = np.pad(mask, ((0, -h % by), (0, -w % bx)), mode="edge")
    mean: F32 = np.zeros((padded.shape[0] // by, padded.shape[1] // bx), np.float32)
    touched = np.zeros(mean.shape, bool)
    for part in (padded[i::by, j::bx] for i in range(by) for j in range(bx)):
        mean += part
        touched |= part > 0
    return mean / np.float32(by * bx), touched


def _box(mask: F32) -> tuple[int, int, int, int] | None:
    """The touched pixels' box y0, y1, x0, x1, grown to the alignment; None if there are none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    h, w = mask.shape
    y0, x0 = (max(0, (int(v[0]) // _ALIGN - 1) * _ALIGN) for v in (rows, columns))
    y1, x1 = (min(n, (int(v[-1]) // _ALIGN + 2) * _ALIGN) for v, n in ((rows, h), (columns, w)))
    return y0, y1, x0, x1


def _check(frame: Frame, rgb: U8 | F32, touched: F32) -> None:
    if rgb.shape != frame.rgb.shape or touched.shape != rgb.shape[:2]:
        raise ValueError(
            f"frame {frame.index} is {frame.rgb.shape}, but rgb is {rgb.shape} and touched {touched.shape}"
        )


def compose(
    frame: Frame, rgb: U8, touched: F32 | None, pix_fmt: str, colour: Colour | None = None
) -> av.VideoFrame:
    """The frame to encode.

    ``rgb`` (H, W, 3) uint8 is the picture after pasting, ``touched`` (H, W) float32 in [0, 1] the
    pixels that changed (None: none did). ``pix_fmt`` is the encoder's format, one of those
    ``has_planes`` takes. ``colour`` is the clip's matrix and range; None takes the frame's own tags.

    Raises:
        ValueError: shapes that differ from the frame's.
    """
    native = frame.native if isinstance(frame.native, av.VideoFrame) else None
    if colour is None:
        colour = colour_of_frame(native) if native is not None else Colour()
    base = convert(native, pix_fmt, colour) if native is not None else from_rgb(frame.rgb, pix_fmt, colour)
    # A new frame: the decoder's carries a picture type and side data that an encoder would obey.
    out = av.VideoFrame(base.width, base.height, pix_fmt)
    targets = planes(out)
    for target, source in zip(targets, planes(base), strict=True):
        target[:] = source
    if touched is None:
        return out
    _check(frame, rgb, touched)
    if (box := _box(touched)) is None:
        return out
    y0, y1, x0, x1 = box
    new = planes(from_rgb(rgb[y0:y1, x0:x1], pix_fmt, colour))
    old = planes(from_rgb(frame.rgb[y0:y1, x0:x1], pix_fmt, colour))
    mask = touched[y0:y1, x0:x1].astype(np.float32)
    scales, blocks = av.VideoFormat(pix_fmt, 64, 64), cache(lambda by, bx: _blocks(mask, by, bx))
    for i, target in enumerate(targets):
        component = next(c for c in scales.components if c.plane == i)
        if component.is_alpha:
            continue
        bx, by = 64 // component.width, 64 // component.height
        region = target[y0 // by : -(-y1 // by), x0 // bx : -(-x1 // bx)]
        top = (1 << component.bits) - 1 if region.ndim == 2 else np.iinfo(region.dtype).max
        _blend(region, new[i], old[i], *blocks(by, bx), top)
    return out


def compose_array(frame: Frame, rgb: U8 | F32, touched: F32) -> NDArray[Any]:
    """A folder's frame to write: its stored array (alpha, 16 bits, grey) with the pasted pixels, RGB order.

    ``rgb`` (H, W, 3) is the picture after pasting, in [0, 255]; uint8, or float32, whose fractions fill
    the lower 8 of 16 bits. Alpha is not touched. Grey pictures get the BT.601 luma of what was pasted.

    Raises:
        ValueError: shapes that differ from the frame's.
    """
    _check(frame, rgb, touched)
    native = frame.native if isinstance(frame.native, np.ndarray) else frame.rgb
    out = native.copy()
    if (box := _box(touched)) is None:
        return out
    y0, y1, x0, x1 = box
    scale = np.float32(257 if native.dtype == np.uint16 else 1)
    grey = native.ndim == 2 or native.shape[2] == 2
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    here = (a[y0:y1, x0:x1].astype(np.float32) for a in (rgb, frame.rgb))
    new, old = ((a @ weights if grey else a) * scale for a in here)
    region = out[y0:y1, x0:x1]
    colours = region if native.ndim == 2 else region[..., 0] if grey else region[..., :3]
    mask = touched[y0:y1, x0:x1].astype(np.float32)
    _blend(colours, new, old, mask, mask > 0, int(np.iinfo(native.dtype).max))
    return out
