"""Read a video file's packets: when its frames are shown, and whether its end is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av

from ..errors import InputError, TruncatedInputError
from .structure import declared_size

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Codecs whose every packet, in any container, gives exactly one frame.
PACKET_IS_FRAME = frozenset(
    {
        "h264",
        "hevc",
        "vvc",
        "vp9",
        "av1",
        "libdav1d",
        "mpeg4",
        "mjpeg",
        "prores",
        "dnxhd",
        "ffv1",
        "gif",
        "png",
        "qtrle",
        "rawvideo",
        "huffyuv",
    }
)
_ATTACHED_PICTURE = 0x0400


@dataclass
class Scan:
    """Presentation times and durations of the frames read, in units of the stream's time base."""

    times: dict[int, int] = field(default_factory=dict)
    packets: int = 0
    regular: bool = True  # every packet had its own time, the first was a keyframe shown first
    reached: int | None = None  # frames before this time are all there
    stopped: bool = False  # left off because everything before the end was read
    broken: str = ""


def open_video(path: Path) -> tuple[InputContainer, VideoStream]:
    """Open a video file and its main video stream (cover pictures don't count).

    Raises:
        InputError: no such file, not a video, or no video stream.
        TruncatedInputError: an MP4 or MOV cut off before its index.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        container = av.open(str(path), metadata_errors="replace")
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        if path.is_file() and isinstance(error, av.EOFError) and path.stat().st_size:
            raise InputError(f"{path}: the video holds no frames") from error
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty") from error
        with path.open("rb") as file:
            cut = file.read(12)[4:8] == b"ftyp" and (declared_size(path, "mp4") or 0) > path.stat().st_size
        if cut:
            raise TruncatedInputError(
                f"{path}: the end of the file is missing, and with it the index of its frames; "
                "nothing can be read. Copy or download it again"
            ) from error
        raise InputError(f"{path}: not a video that can be read") from error
    if container.format.name.endswith("_pipe") or container.format.name == "image2":
        container.close()
        if _is_animated_webp(path):
            raise InputError(f"{path}: an animated WebP can't be read; convert it to MP4 or GIF first")
        raise InputError(
            f"{path}: is a still picture of a kind that can't be read; convert it to PNG, JPEG, WebP or TIFF"
        )
    for stream in container.streams.video:
        if not int(stream.disposition) & _ATTACHED_PICTURE and stream.codec_context is not None:
            return container, stream
    container.close()
    raise InputError(f"{path}: has no video stream that can be decoded")


def _is_animated_webp(path: Path) -> bool:
    """By the animation flag of the extended header; FFmpeg reads still ones only."""
    with path.open("rb") as file:
        head = file.read(21)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20:21] and head[20] & 2)


def frame_rate(stream: VideoStream) -> Fraction:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate is not None and 0 < rate <= 1000:
            return Fraction(rate)
    return Fraction(25)


def scan_packets(container: InputContainer, stream: VideoStream, end: Fraction | None) -> Scan:
    """Read packet headers until every frame before ``end`` (seconds after the first) is known."""
    assert stream.time_base is not None
    scan, base = Scan(), stream.time_base
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    first: int | None = None
    limit: int | None = None  # ticks; the least time seen at or after the end
    try:
        for packet in container.demux(stream):
            if not packet.size:  # the flush at the end
                continue
            if packet.is_corrupt:
                scan.broken = scan.broken or "a frame is cut off"
                continue
            scan.packets += 1
            if packet.is_discard:
                continue
            pts = packet.pts
            if pts is None or pts in scan.times:
                scan.regular = False
                pts = max(scan.times, default=-1) + 1
            if first is None:
                first, scan.regular = pts, scan.regular and packet.is_keyframe
            elif pts < first:
                scan.regular = False
            duration = packet.duration or 0
            scan.times[pts] = duration
            dts = packet.dts
            if dts is not None:
                scan.reached = dts + max(1, duration)
            elif scan.packets == 1:
                scan.reached = pts
            if end is not None and (pts - first) * base >= end:
                limit = pts if limit is None else min(limit, pts)
            if limit is not None and dts is not None and dts > limit:
                scan.stopped = True
                break
    except av.FFmpegError as error:
        scan.broken = error.strerror or str(error)
    return scan


def scan_frames(path: Path) -> list[int | None]:
    """Presentation times as decoded, in stream ticks, for formats whose packets don't tell."""
    container, stream = open_video(path)
    stream.thread_type = "AUTO"
    times: list[int | None] = []
    with container:
        try:
            times.extend(frame.pts for frame in container.decode(stream))
        except av.FFmpegError as error:
            seconds = len(times) / frame_rate(stream)
            raise TruncatedInputError(
                f"{path}: damaged after {len(times)} frames ({error.strerror}); "
                f"add --end {float(seconds):.3f} to swap just those"
            ) from error
    return times


def _declared_seconds(stream: VideoStream) -> Fraction | None:
    """The stream's own length by Matroska's DURATION tag, ``hh:mm:ss.fraction``."""
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except ValueError:
        return None


def find_loss(stream: VideoStream, scan: Scan) -> str:
    """What to warn of: a Matroska file damaged inside is read past the damage without a word; only its
    stated length tells. Some tools leave a stale one, so that it is no error."""
    promised, base = _declared_seconds(stream), stream.time_base
    if promised is None or base is None or not scan.times:
        return ""
    last = max(scan.times)
    read = (last + scan.times[last]) * base
    if read + 3 / frame_rate(stream) >= promised:
        return ""
    return (
        f"states {float(promised):.2f} s of video, {float(read):.2f} s could be read; it may be damaged, "
        "and frames be missing from the output"
    )


def find_fault(path: Path, container: InputContainer, stream: VideoStream, scan: Scan) -> str:
    """Why the video is not whole, or "" if every frame that was promised was read.

    A count below MP4's own is no fault by itself: an edit list may leave frames out.
    """
    size = path.stat().st_size
    cut = (declared_size(path, container.format.name) or size) > size
    if not cut and not scan.broken:
        return ""
    if stream.frames and "mov" in container.format.name:
        lost = scan.packets < stream.frames
        return f"only {scan.packets} of its {stream.frames} frames are there" if lost else ""
    promised, base = _declared_seconds(stream), stream.time_base
    if promised is not None and base is not None and scan.times:
        last = max(scan.times)
        if (last + scan.times[last]) * base >= promised - base:
            return ""  # only the tail after the last frame is missing
    return "the end of the file is missing" if cut else f"damaged ({scan.broken})"
