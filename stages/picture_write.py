"""Write one picture: an array → a PNG, JPEG, WebP or TIFF file in memory; or a copy of a file as it is."""

from __future__ import annotations

import io
import os
import shutil
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
from av.codec.context import CodecContext
from numpy.typing import NDArray
from PIL import Image

from .picture_read import open_regular

_NONE, _LZW, _DEFLATE, _PACKBITS = 1, 5, 8, 32773  # TIFF's compressions that every reader knows
_PILLOW = {_NONE: "raw", _LZW: "tiff_lzw", _DEFLATE: "tiff_adobe_deflate", _PACKBITS: "packbits"}


def encode_picture(array: NDArray[Any], suffix: str, original: Path | None = None) -> bytes:
    """An array in RGB order as a file: PNG, TIFF, WebP lossless, JPEG at quality 95 in 4:4:4.

    ``array`` is (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) or (H, W, 4), uint8 or uint16. A TIFF is
    compressed as ``original`` is, if that is one, with LZW where its compression is rare or lossy.

    Raises:
        OSError: the type can't hold such a picture.
    """
    suffix = {".jpeg": ".jpg", ".tiff": ".tif"}.get(suffix.lower(), suffix.lower())
    channels = 1 if array.ndim == 2 else array.shape[2]
    possible = {".jpg": (1, 3), ".webp": (1, 3, 4), ".png": (1, 2, 3, 4)}.get(suffix, (1, 3, 4))
    grey_alpha_tiff = suffix == ".tif" and channels == 2 and array.dtype == np.uint8
    deep = array.dtype != np.uint8 and suffix not in (".png", ".tif")
    if deep or (channels not in possible and not grey_alpha_tiff):
        raise OSError(0, f"{suffix} can't hold a picture of {array.shape} {array.dtype}")
    if grey_alpha_tiff:
        return _pillow(array, "TIFF", compression=_PILLOW[_compression(original)])
    if channels == 2:
        return _grey_alpha_png(array)
    if suffix == ".webp":
        return _pillow(array, "WEBP", lossless=True, exact=True, quality=50)  # exact: colours under alpha 0
    parameters = {
        ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111],
        ".tif": [cv2.IMWRITE_TIFF_COMPRESSION, _compression(original) if suffix == ".tif" else _LZW],
    }
    stored = array if array.ndim == 2 else array[..., [2, 1, 0, 3][:channels]]
    done, data = cv2.imencode(suffix, np.ascontiguousarray(stored), parameters.get(suffix, []))
    if not done:
        raise OSError(0, f"{suffix} can't hold a picture of {array.shape} {array.dtype}")
    return data.tobytes()


def copy_picture(original: Path, target: Path) -> None:
    """The same bytes in a file of its own, sharing the disk's blocks where the file system can.

    Raises:
        InputError: the original has gone or is no regular file.
        OSError: writing failed.
    """
    with open_regular(original) as source, target.open("wb") as copy:
        if hasattr(os, "copy_file_range"):
            with suppress(OSError):  # not on this file system; what was copied stays copied
                while os.copy_file_range(source.fileno(), copy.fileno(), 2**30):
                    pass
        shutil.copyfileobj(source, copy, 2**20)


def _compression(original: Path | None) -> int:
    if original is None:
        return _LZW
    with open_regular(original) as file, Image.open(file) as image:
        tags = cast("dict[int, int]", getattr(image, "tag_v2", {}))
        found = {32946: _DEFLATE}.get(tags.get(259, _LZW), tags.get(259, _LZW))
    return found if found in _PILLOW else _LZW


def _pillow(array: NDArray[Any], kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def _grey_alpha_png(array: NDArray[Any]) -> bytes:
    """By FFmpeg: OpenCV and (for 16 bits) Pillow write no grey with alpha."""
    height, width = array.shape[:2]
    pix_fmt, dtype = ("ya8", np.dtype(np.uint8)) if array.dtype == np.uint8 else ("ya16be", np.dtype(">u2"))
    frame = av.VideoFrame(width, height, pix_fmt)
    plane = frame.planes[0]
    rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(height, plane.line_size)
    samples = np.ascontiguousarray(array.astype(dtype)).view(np.uint8).reshape(height, -1)
    rows[:, : samples.shape[1]] = samples
    context = CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = width, height, pix_fmt
    context.time_base, context.thread_count = Fraction(1, 25), 1
    data = b"".join(bytes(packet) for packet in (*context.encode(frame), *context.encode(None)))
    # Only what a PNG must have (a capital first letter): FFmpeg states a pixel size of its own.
    needed = [data[:8]]
    at = 8
    while at < len(data):
        after = at + 12 + int.from_bytes(data[at : at + 4], "big")
        needed += [data[at:after]] if data[at + 4 : at + 5].isupper() else []
        at = after
    return b"".join(needed)
