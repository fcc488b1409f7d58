"""Decode: frames by index, upright, as RGB and in the input's own pixel format.

Two backends behind one interface. ``pyav`` gives RGB and the decoder's own planes, so that pixels
no swap touches need no round trip through RGB. ``decord`` gives RGB only. Frame numbers, times and
pictures are the same; ``benchmarks/decode_backends.py`` measures both.

Rotation
    The container's display matrix, any of the eight upright orientations, is applied to the planes.
    Where rotated chroma would need another sampling (4:2:2 by 90°), ``native`` is the 4:4:4 format of
    the same depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from ..errors import InputError, SettingsError
from . import Resources
from .colour import Plane, colour_of_clip, convert, has_planes, is_rgb, planes, to_rgb
from .folder import FolderReader, read_picture
from .probe import probe
from .records import U8, ClipInfo, Frame, Segment
from .scan import open_video

__all__ = ["DecodeStage", "Reader", "open_reader", "probe", "read_picture"]

# Decoding on is cheaper than seeking back to a keyframe when the target is this near.
_NEAR = 48


class Reader(Protocol):
    """Frames of one clip by index in ``ClipInfo``'s numbering."""

    def read(self, start: int, stop: int) -> Iterator[Frame]:
        """Frames [start, stop) in order; InputError where one can't be decoded."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


@dataclass(frozen=True, slots=True)
class Orientation:
    """How to turn a stored picture upright: transpose first, then flip rows, then columns."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @staticmethod
    def of(frame: av.VideoFrame) -> Orientation:
        """From the frame's display matrix, rounded to the nearest right angle."""
        data = frame.side_data.get("DISPLAYMATRIX")
        if not data:
            return Orientation()
        # Row-major, points as row vectors: x' = a·x + c·y, y' = b·x + d·y.
        a, b, _, c, d = (int(v) for v in np.frombuffer(data, np.int32)[:5])
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


class _Upright:
    """Turns decoded frames into records: native planes upright, RGB beside them."""

    def __init__(self, info: ClipInfo) -> None:
        self.info, self.colour = info, colour_of_clip(info)
        self.orientation: Orientation | None = None
        self._to_rgb, self._to_planes = VideoReformatter(), VideoReformatter()

    def record(self, index: int, frame: av.VideoFrame) -> Frame:
        if self.orientation is None:
            self.orientation = Orientation.of(frame)
        upright = frame if self.orientation == Orientation() else self._turn(frame, self.orientation)
        if (upright.width, upright.height) != (self.info.width, self.info.height):
            raise InputError(
                f"{self.info.path}: the picture's size changes from {self.info.width}×{self.info.height} to "
                f"{upright.width}×{upright.height} at frame {index}; such clips can't be swapped"
            )
        return Frame(index, to_rgb(upright, self.colour, self._to_rgb), upright)

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


class PyavReader:
    """Exact by timestamp: seeks to the keyframe before, decodes on; reads in sequence never seek."""

    def __init__(self, info: ClipInfo) -> None:
        self.info = info
        self._index_of = {t: i for i, t in enumerate(info.timestamps)}
        self._upright = _Upright(info)
        self._next = -1  # index of the frame the decoder gives next; -1: not known
        self._open()
        # Without usable timestamps the scan has chosen another time base: count frames instead.
        self._counting = info.time_base != self._stream.time_base
        self._counted = 0

    def _open(self) -> None:
        self._container, self._stream = open_video(self.info.path)
        self._stream.thread_type = "AUTO"
        self._frames = self._decode()

    def _decode(self, packet: Any = None) -> Iterator[av.VideoFrame]:
        if packet is not None:
            yield from cast("list[av.VideoFrame]", packet.decode())
        yield from self._container.decode(self._stream)

    def _rewind(self) -> None:
        self.close()
        self._open()
        self._counted, self._next = 0, -1

    def _seek(self, index: int) -> None:
        """Go to a keyframe that is shown no later than frame ``index``, or to the start."""
        target, back = self.info.timestamps[index], 0
        self._next = -1
        if self._counting:
            self._rewind()
            return
        while back >= 0:
            try:
                self._container.seek(target - back, stream=self._stream, backward=True)
                packet = next(self._container.demux(self._stream))
            except (av.FFmpegError, StopIteration):
                break
            # Containers index by decoding time: the keyframe found may be shown after the target.
            if packet.pts is not None and packet.pts <= target and packet.is_keyframe:
                self._frames = self._decode(packet)
                return
            if target - back <= self.info.timestamps[0] - 1:
                break
            back = max(2 * back, round(1 / self.info.time_base))
        self._rewind()

    def _index(self, frame: av.VideoFrame) -> int | None:
        if self._counting:
            self._counted += 1
            return self._counted - 1 - self.info.first_frame
        return self._index_of.get(frame.pts) if frame.pts is not None else None

    def read(self, start: int, stop: int) -> Iterator[Frame]:
        """Frames [start, stop) in order."""
        if start >= stop:
            return
        if not 0 <= self._next <= start < self._next + _NEAR:
            self._seek(start)
        wanted = start
        while wanted < stop:
            try:
                frame = next(self._frames, None)
            except av.FFmpegError as error:
                raise self._lost(wanted, error.strerror or "damaged data") from error
            if frame is None:
                raise self._lost(wanted, "the video ends before it")
            index = self._index(frame)
            if index is None or index < wanted:
                continue
            if index > wanted:
                raise self._lost(wanted, "damaged data")
            wanted = self._next = index + 1
            yield self._upright.record(index, frame)

    def _lost(self, index: int, why: str) -> InputError:
        self._next = -1
        seconds = (self.info.timestamps[index] - self.info.timestamps[0]) * self.info.time_base
        return InputError(
            f"{self.info.path}: frame {self.info.first_frame + index}, {float(seconds):.3f} s on, can't be "
            f"decoded ({why}); an --end before it leaves it out"
        )

    def close(self) -> None:
        """Close the file."""
        self._container.close()


class DecordReader:
    """RGB by decord. Its own numbering is matched to ours by time, once, when opening."""

    def __init__(self, info: ClipInfo) -> None:
        try:
            import decord
        except ImportError as error:
            raise SettingsError("decoder = decord: not installed; pip install 'ldvid[decord]'") from error
        self.info = info
        if info.rotation:
            raise self._unsuited("garbles turned video")
        container, stream = open_video(info.path)
        with container:
            matched = info.time_base == stream.time_base
        try:
            self._video = decord.VideoReader(str(info.path), num_threads=1)
            starts = self._video.get_frame_timestamp(range(len(self._video)))[:, 0]
        except Exception as error:  # decord raises its own untyped errors
            raise self._unsuited("can't read it") from error
        ours = np.array([float(t * info.time_base) for t in info.timestamps])
        if matched:
            self._rows = np.searchsorted((starts[:-1] + starts[1:]) / 2, ours).astype(int)
            off = np.abs(starts[self._rows] - ours).max()
            if off > 0.5 * float(info.time_base) + 1e-3 or len(set(self._rows)) < info.frames:
                raise self._unsuited(f"numbers its frames differently (times are off by {off:.4f} s)")
        else:
            self._rows = np.arange(info.frames) + info.first_frame

    def _unsuited(self, why: str) -> InputError:
        return InputError(f"{self.info.path}: decord {why}; use --set decoder=pyav")

    def read(self, start: int, stop: int) -> Iterator[Frame]:
        """Frames [start, stop) in order, ``native`` None."""
        for index in range(start, stop):
            try:
                rgb = self._video[int(self._rows[index])].asnumpy()
            except Exception as error:
                raise self._unsuited(f"can't decode frame {index}") from error
            if rgb.shape != (self.info.height, self.info.width, 3):
                raise self._unsuited(f"gives a picture of shape {rgb.shape}")
            yield Frame(index, cast(U8, rgb))

    def close(self) -> None:
        """Close the file."""
        del self._video


def open_reader(info: ClipInfo, backend: str) -> Reader:
    """A reader of the clip by ``pyav`` or ``decord``; a folder is always read as pictures.

    Raises:
        InputError: the file can't be read (any more), or not by this backend.
        SettingsError: no such backend, or not installed.
    """
    if backend not in ("pyav", "decord"):
        raise SettingsError(f"decoder {backend}: no such backend; there are pyav and decord")
    if info.kind == "folder":
        return FolderReader(info)
    return PyavReader(info) if backend == "pyav" else DecordReader(info)


class DecodeStage:
    """A segment → its frames. Segments read in order share one pass over the file."""

    name: ClassVar[str] = "decode"
    resources: ClassVar[Resources] = Resources(cpus=1)

    def __init__(self, info: ClipInfo, backend: str) -> None:
        self.info, self.backend = info, backend
        self._reader: Reader | None = None

    def setup(self) -> None:
        """Open the file."""
        self._reader = open_reader(self.info, self.backend)

    def process(self, segment: Segment, /) -> list[Frame]:
        """Frames [segment.start, segment.stop)."""
        if self._reader is None:
            self.setup()
        assert self._reader is not None
        return list(self._reader.read(segment.start, segment.stop))
