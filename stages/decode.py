"""Decode: frames by index, upright, as RGB and in the input's own pixel format.

Two backends behind one interface. ``pyav`` gives RGB and the decoder's own planes, so that pixels
no swap touches need no round trip through RGB. ``decord`` gives RGB only. Frame numbers, times and
pictures are the same; ``benchmarks/decode_backends.py`` measures both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Protocol, cast

import av
import numpy as np

from ..errors import InputError, SettingsError
from . import Resources
from .folder import FolderReader, read_picture
from .orient import Upright
from .probe import probe
from .records import U8, ClipInfo, Frame, Segment
from .scan import open_video
from .spread import width

__all__ = ["DecodeStage", "Reader", "open_reader", "probe", "read_picture"]

# Decoding on is cheaper than seeking back to a keyframe when the target is this near.
_NEAR = 48
MOST_THREADS = 16  # FFmpeg's own limit where it chooses


class Reader(Protocol):
    """Frames of one clip by index in ``ClipInfo``'s numbering."""

    def read(self, start: int, stop: int) -> Iterator[Frame]:
        """Frames [start, stop) in order; InputError where one can't be decoded."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class PyavReader:
    """Exact by timestamp: seeks to the keyframe before, decodes on; reads in sequence never seek."""

    def __init__(self, info: ClipInfo) -> None:
        self.info = info
        self._index_of = {t: i for i, t in enumerate(info.timestamps)}
        self._upright = Upright(info)
        self._next = -1  # index of the frame the decoder gives next; -1: not known
        self._open()
        # Without usable timestamps the scan has chosen another time base: count frames instead.
        self._counting = info.time_base != self._stream.time_base
        self._counted = 0

    def _open(self) -> None:
        self._container, self._stream = open_video(self.info.path)
        self._stream.thread_type = "AUTO"
        # Each decodes one frame more than is asked for, and after a seek all of them anew.
        self._stream.codec_context.thread_count = min(width(), MOST_THREADS)
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

    def frames(self, segment: Segment) -> Iterator[Frame]:
        """Frames [segment.start, segment.stop), each decoded when it is its turn."""
        if self._reader is None:
            self.setup()
        assert self._reader is not None
        return self._reader.read(segment.start, segment.stop)

    def process(self, segment: Segment, /) -> list[Frame]:
        """The same, all at once."""
        return list(self.frames(segment))
