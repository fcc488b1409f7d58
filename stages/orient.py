"""Turn decoded frames upright and into records.

The container's display matrix, any of the eight upright orientations, is applied to the planes. Where
rotated chroma would need another sampling (4:2:2 by 90°), ``native`` is the 4:4:4 format of the same
depth.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from ..errors import InputError
from .colour import Plane, colour_of_clip, convert, has_planes, is_rgb, planes, to_rgb
from .records import U8, ClipInfo, Frame


@dataclass(frozen=True, slots=True)
class Orientation:
    """How to turn a stored picture upright: transpose first, then flip rows, then columns."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @staticmethod
    def of(frame: av.VideoFrame) -> Orientation:
        """From the frame's display matrix, rounded to the nearest right angle."""
        data = cast(Any, frame.side_data.get("DISPLAYMATRIX"))
        if data is None:
            return Orientation()
        # Row-major, points as row vectors: x' = a·x + c·y, y' = b·x + d·y.
        a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(data), np.int32)[:5])
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return Orientation(False, d < 0, a < 0)
        return Orientation(True, b < 0, c < 0)

    def apply(self, array: Plane) -> Plane:
        """An (h, w) or (h, w, c) array turned upright (a view)."""
        out = np.swapaxes(array, 0, 1) if self.transpose else array
        out = out[::-1] if self.flip_rows else out
        return out[:, ::-1] if self.flip_columns else out


def _rotatable_format(pix_fmt: str) -> str:
    """The format itself if turning its planes keeps it, else the 4:4:4 or RGB one of its depth."""
    fmt = av.VideoFormat(pix_fmt)
    if has_planes(pix_fmt):
        wide = {(-(-64 // c.width), -(-64 // c.height)) for c in av.VideoFormat(pix_fmt, 64, 64).components}
        if all(x == y for x, y in wide):
            return pix_fmt
    deep = fmt.components[0].bits > 8
    if is_rgb(pix_fmt):
        return "gbrp10le" if deep else "gbrp"
    return "yuv444p10le" if deep else "yuv444p"


class Upright:
    """Turns decoded frames into records: native planes upright, RGB beside them."""

    def __init__(self, info: ClipInfo) -> None:
        self.info, self.colour = info, colour_of_clip(info)
        self.orientation: Orientation | None = None
        self._own, self._to_planes = threading.local(), VideoReformatter()

    def record(self, index: int, frame: av.VideoFrame) -> Frame:
        """The record of one decoded frame; InputError if its size is not the clip's."""
        if self.orientation is None:
            self.orientation = Orientation.of(frame)
        upright = frame if self.orientation == Orientation() else self._turn(frame, self.orientation)
        if (upright.width, upright.height) != (self.info.width, self.info.height):
            raise InputError(
                f"{self.info.path}: the picture's size changes from {self.info.width}×{self.info.height} to "
                f"{upright.width}×{upright.height} at frame {index}; such clips can't be swapped"
            )
        return Frame(index, partial(self._converted, upright), upright)

    def _converted(self, upright: av.VideoFrame) -> U8:
        if not hasattr(self._own, "reformatter"):  # each keeps a converter, which is one thread's
            self._own.reformatter = VideoReformatter()
        return to_rgb(upright, self.colour, self._own.reformatter)

    def _turn(self, frame: av.VideoFrame, orientation: Orientation) -> av.VideoFrame:
        pix_fmt = _rotatable_format(frame.format.name)
        if pix_fmt != frame.format.name:
            frame = convert(frame, pix_fmt, self.colour, self._to_planes)
        w, h = (frame.height, frame.width) if orientation.transpose else (frame.width, frame.height)
        turned = av.VideoFrame(w, h, pix_fmt)
        for source, target in zip(planes(frame), planes(turned), strict=True):
            target[:] = orientation.apply(source)
        turned.pts, turned.time_base = frame.pts, frame.time_base
        turned.colorspace, turned.color_range = frame.colorspace, frame.color_range
        return turned
