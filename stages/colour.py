"""YUV ↔ RGB with the clip's own matrix and range, the same in both directions.

Convention
    The matrix is the one the input is tagged with. Untagged video is BT.601, limited range, whatever
    its size: that is what FFmpeg's converter and the tools built on it do. ``yuvj`` formats are full
    range. Input that is RGB itself (GIF, frames) is written with BT.709 from 720 lines on, with BT.601
    below, and tagged so.
    Accurate rounding, full chroma interpolation and the bit-exact C path: a colour that goes to RGB and back
    keeps its luma, and two machines get the same bytes. Chroma is made bicubic; enlarged for RGB it is
    bilinear, which takes half the time and differs by two levels at most on a 720p clip, by 0.03 in the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from .records import U8, ClipInfo

# AVColorSpace → SWS_CS_*: what the converter takes.
_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_BT601, _BT709 = 5, 1
_EXACT = int(
    Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
_TO_YUV, _TO_RGB = _EXACT | int(Interpolation.BICUBIC), _EXACT | int(Interpolation.BILINEAR)
_LIMITED, _FULL = 1, 2

Plane = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Colour:
    """Matrix (FFmpeg's ``SWS_CS`` code) and range of a YUV picture."""

    matrix: int = _BT601
    full_range: bool = False

    @property
    def range_code(self) -> int:
        """FFmpeg's ``AVColorRange`` code."""
        return _FULL if self.full_range else _LIMITED


def is_rgb(pix_fmt: str) -> bool:
    """Whether a pixel format holds RGB (or a palette of it) rather than YUV or grey."""
    return pix_fmt == "pal8" or av.VideoFormat(pix_fmt).is_rgb


def _colour(pix_fmt: str, height: int, colorspace: int | None, color_range: int | None) -> Colour:
    if is_rgb(pix_fmt):
        return Colour(_BT709 if height >= 720 else _BT601, False)
    full = color_range == _FULL or pix_fmt.startswith("yuvj")
    return Colour(_MATRIX.get(colorspace if colorspace is not None else 2, _BT601), full)


def colour_of_clip(info: ClipInfo) -> Colour:
    """The colour to decode with, and to encode with again."""
    return _colour(info.pix_fmt, info.height, info.colorspace, info.color_range)


def colour_of_frame(frame: av.VideoFrame) -> Colour:
    """The same from the tags of one decoded frame."""
    return _colour(frame.format.name, frame.height, frame.colorspace, frame.color_range)


def plain_format(pix_fmt: str) -> str:
    """``yuvj420p`` and its kin by their modern name (the range is a tag, not a format)."""
    return pix_fmt.replace("yuvj", "yuv")


def convert(
    frame: av.VideoFrame, pix_fmt: str, colour: Colour, reformatter: VideoReformatter | None = None
) -> av.VideoFrame:
    """The frame in another pixel format of the same size; RGB is always full range."""
    source, target = is_rgb(frame.format.name), is_rgb(pix_fmt)
    return (reformatter or VideoReformatter()).reformat(
        frame,
        format=pix_fmt,
        src_colorspace=colour.matrix,
        dst_colorspace=colour.matrix,
        src_color_range=_FULL if source else colour.range_code,
        dst_color_range=_FULL if target else colour.range_code,
        interpolation=_TO_RGB if target else _TO_YUV,
        threads=1,
    )


def to_rgb(frame: av.VideoFrame, colour: Colour, reformatter: VideoReformatter | None = None) -> U8:
    """A decoded frame as (H, W, 3) uint8 RGB."""
    return cast(U8, convert(frame, "rgb24", colour, reformatter).to_ndarray())


def from_rgb(
    rgb: U8, pix_fmt: str, colour: Colour, reformatter: VideoReformatter | None = None
) -> av.VideoFrame:
    """(H, W, 3) uint8 RGB as a frame of ``pix_fmt``."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    return convert(frame, pix_fmt, colour, reformatter)


def has_planes(pix_fmt: str) -> bool:
    """Whether ``planes`` can give the samples: whole bytes, one sampling per plane, no palette."""
    if pix_fmt == "pal8":
        return False
    fmt = av.VideoFormat(pix_fmt)
    if fmt.is_bit_stream or fmt.is_big_endian or not fmt.components:
        return False
    per_plane: dict[int, set[tuple[int, int]]] = {}
    for c in fmt.components:
        per_plane.setdefault(c.plane, set()).add((c.width, c.height))
    wide = fmt.components[0].bits > 8
    packed = len(per_plane) == 1 and len(fmt.components) > 1
    sound = {c.bits for c in fmt.components} == {fmt.components[0].bits} and fmt.components[0].bits >= 8
    whole = not packed or fmt.padded_bits_per_pixel == len(fmt.components) * (16 if wide else 8)
    return sound and whole and all(len(sizes) == 1 for sizes in per_plane.values())


def planes(frame: av.VideoFrame) -> list[Plane]:
    """Writable views of the samples: per plane (h, w) or, interleaved, (h, w, c); uint8 or uint16."""
    fmt = frame.format
    dtype = np.dtype(np.uint16 if fmt.components[0].bits > 8 else np.uint8)
    views: list[Plane] = []
    for i, plane in enumerate(frame.planes):
        components = [c for c in fmt.components if c.plane == i]
        if not components:  # a palette
            continue
        n, w, h = len(components), components[0].width, components[0].height
        rows = np.frombuffer(cast(Any, plane), np.uint8)[: plane.line_size * h].reshape(h, plane.line_size)
        view = rows[:, : w * n * dtype.itemsize].view(dtype)
        views.append(view if n == 1 else view.reshape(h, w, n))
    return views
