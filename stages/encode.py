"""Encode: one rendered segment → one file, the same bytes however the clip was cut into segments.

The encoder starts afresh every ``keyframe_interval`` frames of a shot, with a fixed number of threads
and no version or time stamps, so that a chunk's packets depend on its frames alone. A segment file is
Matroska with the frames evenly spaced: only their order counts, ``pipeline.finish`` sets the times.
Segments of a folder of frames are folders of files with the input's names; swapped ones are marked.
"""

from __future__ import annotations

import os
import platform
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, cast

import av
from av.codec.context import CodecContext, Flags
from av.video.codeccontext import VideoCodecContext

from ..configs.settings import Settings
from ..errors import OutputError
from . import Resources
from .codecs import choose_pix_fmt, find_encoder, quality_options
from .colour import Colour, colour_of_clip, is_rgb
from .compose import compose, compose_array
from .picture_tags import tag_picture
from .picture_write import copy_picture, encode_picture
from .records import F32, U8, ClipInfo, Frame, Segment

__all__ = ["EncodeOptions", "EncodeStage", "Picture", "RenderedSegment", "StreamedSegment", "encode_picture"]

# Fixed, as the output depends on it. Segments are encoded side by side instead.
_THREADS = 2
Picture = tuple[Frame, U8 | F32, F32 | None]
_ROOM = 64  # frames of room for reordering, so that decoding times never precede zero


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What the encoder is given. Tags are FFmpeg's codes, None where the input states none."""

    codec: str
    quality: float | None
    pix_fmt: str
    keyframe_interval: int
    colour: Colour = field(default_factory=Colour)
    color_range: int | None = None
    colorspace: int | None = None
    color_primaries: int | None = None
    color_trc: int | None = None

    @classmethod
    def from_settings(cls, settings: Settings, info: ClipInfo) -> EncodeOptions:
        """Check codec, quality and pixel format against this FFmpeg; fill in what is None.

        Raises:
            SettingsError: an encoder that is not there, or a quality or pixel format it doesn't take.
        """
        colour = colour_of_clip(info)
        if info.kind == "folder":  # written as pictures: no codec is used
            return cls(settings.codec, settings.quality, info.pix_fmt, settings.keyframe_interval, colour)
        codec = find_encoder(settings.codec)
        quality, _ = quality_options(codec, settings.quality)
        pix_fmt = choose_pix_fmt(codec, settings.pix_fmt, info)
        tags = (info.color_range, info.colorspace, info.color_primaries, info.color_trc)
        if is_rgb(pix_fmt):
            tags = (2, 0, info.color_primaries, info.color_trc)
        elif is_rgb(info.pix_fmt):  # sRGB by nature; the matrix is ours to choose, and to state
            tags = (1, 1 if colour.matrix == 1 else 6, info.color_primaries or 1, info.color_trc or 13)
        elif colour.full_range:
            tags = (2, *tags[1:])
        return cls(codec.name, quality, pix_fmt, settings.keyframe_interval, colour, *tags)


@dataclass(frozen=True, slots=True)
class RenderedSegment:
    """A segment ready to be written.

    Per frame i: ``rgb[i]`` (H, W, 3) uint8 after pasting (float32 in [0, 255] for pictures of 16 bits) and
    ``touched[i]`` (H, W) float32 in [0, 1], the pixels that changed, or None if none did. ``shot_start``
    is the first frame of its shot.
    """

    segment: Segment
    frames: list[Frame]
    rgb: list[U8 | F32]
    touched: list[F32 | None]
    shot_start: int

    @property
    def pictures(self) -> Iterator[Picture]:
        """Frame, picture and what changed in it, one after the other."""
        return zip(self.frames, self.rgb, self.touched, strict=True)


@dataclass(frozen=True, slots=True)
class StreamedSegment:
    """The same, each frame made when it is its turn, so that no more than a few are in memory.
    ``pictures`` is gone through once."""

    segment: Segment
    pictures: Iterator[Picture]
    shot_start: int


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


class EncodeStage:
    """A rendered segment → ``folder/000123.mkv``, or ``folder/000123/`` for a folder of frames."""

    name: ClassVar[str] = "encode"
    resources: ClassVar[Resources] = Resources(cpus=1)

    def __init__(
        self, info: ClipInfo, options: EncodeOptions, folder: Path, tags: Mapping[str, str] | None = None
    ) -> None:
        """``tags`` mark each swapped frame of a folder; a video is marked when it is finished."""
        self.info, self.options, self.folder, self.tags = info, options, folder, tags or {}

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, item: RenderedSegment | StreamedSegment, /) -> Path:
        """Write the segment under a temporary name, flush it to disk, rename it.

        Raises:
            OutputError: writing failed; nothing of the segment is left.
            ValueError: the segment does not begin on a whole keyframe interval of its shot.
        """
        segment = item.segment
        if (segment.start - item.shot_start) % self.options.keyframe_interval:
            raise ValueError(
                f"segment {segment.index} begins at frame {segment.start}, {segment.start - item.shot_start} "
                f"into its shot: not a multiple of keyframe_interval ({self.options.keyframe_interval})"
            )
        suffix, write = (".mkv", self._write_video) if self.info.kind == "video" else ("", self._write_files)
        final = self.folder / f"{segment.index:06d}{suffix}"
        mine = f"{platform.node()[:32]}-{os.getpid()}-{threading.get_ident():x}"  # hosts may share the folder
        temporary = self.folder / f".{segment.index:06d}.{mine}.part{suffix}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(item, temporary)
            if final.is_dir():
                shutil.rmtree(final)  # left by an earlier run of the same segment
            temporary.replace(final)
        except (OSError, av.FFmpegError) as error:
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise OutputError(f"{final}: can't be written: {why}") from error
        finally:
            _remove(temporary)
        return final

    # video

    def _configure(self, context: VideoCodecContext) -> None:
        o, info = self.options, self.info
        context.width, context.height, context.pix_fmt = info.width, info.height, o.pix_fmt
        context.framerate, context.time_base = info.rate, 1 / info.rate
        context.gop_size, context.thread_count, context.bit_rate = o.keyframe_interval, _THREADS, 0
        context.flags |= int(Flags.global_header | Flags.bitexact | Flags.closed_gop)
        context.options = quality_options(find_encoder(o.codec), o.quality)[1]
        if info.sample_aspect_ratio is not None:
            context.sample_aspect_ratio = info.sample_aspect_ratio
        for tag in ("color_range", "colorspace", "color_primaries", "color_trc"):
            value = getattr(o, tag)
            if value is not None:
                setattr(context, tag, value)

    def _frames(self, pictures: Iterable[Picture]) -> Iterator[av.VideoFrame]:
        for i, (frame, rgb, touched) in enumerate(pictures):
            picture = compose(frame, cast(U8, rgb), touched, self.options.pix_fmt, self.options.colour)
            picture.pts, picture.time_base = i, 1 / self.info.rate
            picture.color_range = self.options.color_range or 0
            picture.colorspace = 2 if self.options.colorspace is None else self.options.colorspace
            yield picture

    def _write_video(self, item: RenderedSegment | StreamedSegment, path: Path) -> None:
        interval, n = self.options.keyframe_interval, item.segment.stop - item.segment.start
        pictures = item.pictures
        step = max(Fraction(1000) / self.info.rate, Fraction(1))  # milliseconds, Matroska's clock
        with av.open(str(path), "w", format="matroska") as container:
            container.flags |= cast(int, av.container.Flags.bitexact.value)
            stream = container.add_stream(self.options.codec, rate=self.info.rate)
            context = cast(VideoCodecContext, stream.codec_context)
            self._configure(context)
            written = 0
            for first in range(0, n, interval):
                if first:
                    context = cast(VideoCodecContext, CodecContext.create(self.options.codec, "w"))
                    self._configure(context)
                for packet in self._encode(context, islice(pictures, min(interval, n - first))):
                    packet.stream = stream
                    packet.time_base = Fraction(1, 1000)
                    assert packet.pts is not None
                    packet.pts = round((first + packet.pts + _ROOM) * step)
                    packet.dts = round(written * step)
                    packet.duration = round(step)
                    container.mux(packet)
                    written += 1
        if written != n:
            raise OSError(0, f"{self.options.codec} made {written} packets of {n} frames")
        _sync(path)

    def _encode(self, context: VideoCodecContext, pictures: Iterable[Picture]) -> Iterator[Any]:
        for picture in self._frames(pictures):
            yield from context.encode(picture)
        yield from context.encode(None)

    # folders of frames

    def _write_files(self, item: RenderedSegment | StreamedSegment, folder: Path) -> None:
        folder.mkdir()
        for frame, rgb, touched in item.pictures:
            name = self.info.files[frame.index]
            original, target = self.info.path / name, folder / name
            if touched is None or not touched.any():
                copy_picture(original, target)  # the very file: no second JPEG loss
            else:
                data = encode_picture(compose_array(frame, rgb, touched), target.suffix, original)
                target.write_bytes(tag_picture(data, target.suffix, self.tags, original))
        for target in folder.iterdir():  # all at once: the disk writes them together
            _sync(target)


def _sync(path: Path) -> None:
    with path.open("rb") as file, suppress(OSError):
        # Filesystems without fsync exist; a full disk has shown itself before.
        os.fsync(file.fileno())
