"""Scan a clip: what it is, when each frame is shown, and whether its end is there.

Timestamps come from the packets' headers, without decoding, for formats where a packet is a frame;
otherwise every frame is decoded once. Seconds given to ``start`` and ``end`` count from the clip's
first frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import av

from ..errors import InputError, TruncatedInputError
from .folder import scan_folder
from .records import ClipInfo
from .scan import (
    PACKET_IS_FRAME,
    Scan,
    find_fault,
    find_loss,
    frame_rate,
    open_video,
    scan_frames,
    scan_packets,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_TOLERANCE = Fraction(1, 1_000_000)


def _durations(times: Sequence[int], after: int) -> tuple[int, ...]:
    """Each frame lasts until the next; the last until ``after``."""
    return tuple(b - a for a, b in zip(times, [*times[1:], after], strict=True))


def _trim(info: ClipInfo, start: float | None, end: float | None) -> ClipInfo:
    """The frames shown from ``start`` on and before ``end``, in seconds after the first frame."""
    origin = info.timestamps[0]
    length = (info.timestamps[-1] + info.durations[-1] - origin) * info.time_base
    low = Fraction(str(start or 0))
    high = length if end is None else Fraction(str(end))
    shown = f"the clip is {float(length):.3f} s long"
    if end is not None and high <= low:
        raise InputError(f"--end {end:g}: must be later than --start {start or 0:g}")
    if end is not None and high > length + max(info.durations) * info.time_base:
        raise InputError(f"--end {end:g}: out of range; {shown}")
    low, high = low - _TOLERANCE, high - _TOLERANCE
    inside = [i for i, t in enumerate(info.timestamps) if low <= (t - origin) * info.time_base < high]
    if start is not None and (start < 0 or low > (info.timestamps[-1] - origin) * info.time_base):
        raise InputError(f"--start {start:g}: out of range; {shown}")
    if not inside:
        raise InputError(f"--start {start or 0:g} --end {end:g}: no frame is shown in between")
    i, j = inside[0], inside[-1] + 1
    return replace(
        info,
        first_frame=i,
        timestamps=info.timestamps[i:j],
        durations=info.durations[i:j],
        files=info.files[i:j],
    )


def _describe(path: Path, container: InputContainer, stream: VideoStream) -> ClipInfo:
    """Everything but the times; the first frame is decoded for what only a frame can tell."""
    try:
        frame = next(container.decode(stream), None)
    except av.FFmpegError as error:
        raise InputError(f"{path}: its first frame can't be decoded ({error})") from error
    if frame is None:
        raise InputError(f"{path}: the video holds no frames")
    assert stream.time_base is not None
    context = stream.codec_context
    rotation = round(-frame.rotation / 90) * 90 % 360
    turned, sar = rotation in (90, 270), context.sample_aspect_ratio
    warnings = []
    if frame.rotation % 90:
        warnings.append(f"the picture is turned by {-frame.rotation}°: taken as {rotation}°")
    if frame.interlaced_frame:
        warnings.append(
            f"{path}: is interlaced; its frames are taken as they are, and the output no longer says so. "
            "Deinterlace it first if lines show"
        )
    return ClipInfo(
        path=path,
        kind="video",
        width=frame.height if turned else frame.width,
        height=frame.width if turned else frame.height,
        time_base=stream.time_base,
        rate=frame_rate(stream),
        pix_fmt=frame.format.name,
        codec=context.name,
        rotation=rotation,
        color_range=context.color_range or None,
        colorspace=None if context.colorspace == 2 else context.colorspace,
        color_primaries=None if context.color_primaries in (0, 2) else context.color_primaries,
        color_trc=None if context.color_trc in (0, 2) else context.color_trc,
        sample_aspect_ratio=(1 / sar if turned else sar) if sar else None,
        has_audio=bool(container.streams.audio),
        warnings=tuple(warnings),
    )


def _evenly_spaced(info: ClipInfo, frames: int, base: Fraction) -> ClipInfo:
    """A clip without usable times. Its time base differs from the stream's: readers count frames."""
    step = 1 if 1 / info.rate != base else 2
    return replace(
        info,
        time_base=1 / (info.rate * step),
        timestamps=tuple(range(0, frames * step, step)),
        durations=(step,) * frames,
        warnings=(
            *info.warnings,
            f"{info.path}: its timestamps are missing or repeat; frames are taken as evenly spaced "
            f"at {float(info.rate):g} frames/s",
        ),
    )


def probe(path: Path, *, start: float | None = None, end: float | None = None) -> ClipInfo:
    """What is known of a video file or a folder of frames, with the times of the frames to render.

    ``start`` (inclusive) and ``end`` (exclusive) are seconds after the first frame.

    Raises:
        InputError: no such file, not a video, no frames, ``start`` or ``end`` out of range.
        TruncatedInputError: the file's end is missing and ``end`` does not lie before the damage.
    """
    if path.is_dir():
        return _trim(scan_folder(path), start, end)
    container, stream = open_video(path)
    with container:
        info = _describe(path, container, stream)
    container, stream = open_video(path)  # afresh: not every demuxer can go back
    with container:
        assert stream.time_base is not None
        scan = scan_packets(container, stream, None if end is None else Fraction(str(end)))
        fault = "" if scan.stopped else find_fault(path, container, stream, scan)
        base = stream.time_base
        loss = "" if scan.stopped or fault else find_loss(stream, scan)
    if not scan.times:
        raise InputError(f"{path}: the video holds no frames")
    if loss:
        info = replace(info, warnings=(*info.warnings, f"{path}: {loss}"))
    times = sorted(scan.times)
    after = times[-1] + (scan.times[times[-1]] or max(1, round(1 / (info.rate * base))))
    if fault:
        if info.codec == "gif":
            times = times[:-1]  # the demuxer hands out the cut frame as if it were whole
        times = _before_damage(path, fault, times, scan, base, end)
        after = times[-1] + (scan.times[times[-1]] or 1)
    elif not scan.regular or info.codec not in PACKET_IS_FRAME:
        decoded = scan_frames(path)
        times = [t for t in decoded if t is not None]
        if len(times) < len(decoded) or any(a >= b for a, b in pairwise(times)):
            return _trim(_evenly_spaced(info, len(decoded), base), start, end)
        after = max(after, times[-1] + 1)
    return _trim(replace(info, timestamps=tuple(times), durations=_durations(times, after)), start, end)


def _before_damage(
    path: Path, fault: str, times: list[int], scan: Scan, base: Fraction, end: float | None
) -> list[int]:
    """The frames before the damage, if ``end`` lies there; otherwise the error that says what is left.

    A missing packet is decoded, and so shown, after every packet read: what is shown before the
    last decoding time is complete.
    """
    reached = scan.reached if scan.reached is not None else times[-1] + scan.times[times[-1]]
    safe = [t for t in times if t < reached]
    if not safe:
        raise TruncatedInputError(f"{path}: {fault}; no frame can be read")
    last = min(reached, safe[-1] + max(1, scan.times[safe[-1]]))
    seconds = (last - times[0]) * base
    if end is not None and Fraction(str(end)) <= seconds + _TOLERANCE:
        return safe
    limit = int(seconds * 1000) / 1000
    raise TruncatedInputError(
        f"{path}: {fault}; the first {len(safe)} frames ({float(seconds):.2f} s) could be read. "
        f"Add --end {limit:.3f} to swap just those"
    )
