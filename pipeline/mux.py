"""One output file from segments and the input's other streams, by copying packets.

Times
    Frames are shown exactly when the input shows them (in Matroska to its millisecond). A clip cut by
    ``--start`` begins at 0; audio and subtitles move with it, whole packets from the first frame's time
    to the last frame's end. MPEG-TS counts from an arbitrary origin: its outputs begin at 0 as well.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av

from ..errors import JobError, SettingsError
from ..stages.records import ClipInfo
from ..stages.scan import open_video

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream

_FILE_TAGS = frozenset({"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "rotate"})
_STATISTICS = ("DURATION", "BPS", "NUMBER_OF_", "_STATISTICS")


def _tags(metadata: Mapping[str, str]) -> dict[str, str]:
    """Tags that describe the content, not the file that held it."""
    return {
        k: v
        for k, v in metadata.items()
        if k.lower() not in _FILE_TAGS and not k.upper().startswith(_STATISTICS)
    }


def _marked(theirs: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """The input's tags and ours; where both have a word to say (a comment), ours first. Keys count
    without case, as FFmpeg takes them: Matroska's are in capitals."""
    merged = dict(theirs)
    for key, value in ours.items():
        before = [merged.pop(k) for k in list(merged) if k.lower() == key.lower()]
        others = [text for text in before if text and value not in text] if key == "comment" else []
        merged[key] = "\n".join([value, *others])
    return merged


def refusal(stream: Stream, muxer: str) -> bool:
    """Whether the container turns the stream down: tried, on a header in memory."""
    try:
        with av.open(io.BytesIO(), "w", format=muxer) as trial:
            if stream.type == "attachment":
                return muxer != "matroska"
            trial.add_stream_from_template(stream, opaque=True)
            trial.start_encoding()
    except (ValueError, av.FFmpegError):
        return True
    return False


class Muxer:
    """One output file from segments and the input's other streams."""

    def __init__(self, info: ClipInfo, paths: Sequence[Path], target: Path, muxer: str) -> None:
        self.info, self.paths, self.target, self.muxer = info, paths, target, muxer
        self.warnings: list[str] = []
        self.orders = [_shown_order(p) for p in paths]
        found = sum(map(len, self.orders))
        if found != info.frames:
            raise JobError(
                f"the segments hold {found} frames, the clip has {info.frames}; delete the job folder"
            )
        self.shift = Fraction(0)  # seconds taken off every time

    def write(self, metadata: Mapping[str, str]) -> list[str]:
        source, main = open_video(self.info.path)
        with source:
            if self.info.first_frame:
                self.shift = self.info.timestamps[0] * self.info.time_base
            elif source.format.name in ("mpegts", "mpeg"):
                self.shift = Fraction(source.start_time or 0, av.time_base)
            options = {"movflags": "+faststart+use_metadata_tags"} if self.muxer in ("mp4", "mov") else {}
            with (
                av.open(str(self.paths[0])) as first,
                av.open(str(self.target), "w", format=self.muxer, container_options=options) as out,
            ):
                out.flags |= cast(int, av.container.Flags.bitexact.value)
                video = self._add_video(out, first.streams.video[0], main)
                copies = self._add_others(out, source, main)
                out.metadata.update(_marked(_tags(source.metadata), metadata))
                chapters = self._chapters(source)
                if chapters:
                    out.set_chapters(chapters)
                out.start_encoding()
                streams = [self._video_packets(video), self._other_packets(source, copies)]
                for _, packet in heapq.merge(*streams, key=lambda item: item[0]):
                    out.mux(packet)
        return self.warnings

    def _add_video(self, out: OutputContainer, template: Any, main: Any) -> Stream:
        if refusal(template, self.muxer):
            raise SettingsError(
                f"codec {template.codec_context.name}: can't be stored in {self.muxer}; "
                + (
                    "use --set codec=libvpx-vp9, or another -o"
                    if self.muxer == "webm"
                    else "choose another -o"
                )
            )
        stream: Any = out.add_stream_from_template(template, opaque=True)
        stream.time_base = self.info.time_base
        if self.info.sample_aspect_ratio is not None:
            stream.codec_context.sample_aspect_ratio = self.info.sample_aspect_ratio
            self._check_aspect(template.codec_context.name)
        stream.metadata.update(_tags(main.metadata))
        stream.disposition = main.disposition
        return cast("Stream", stream)

    def _check_aspect(self, codec: str) -> None:
        aspect = self.info.sample_aspect_ratio
        if aspect != 1 and self.muxer in ("matroska", "webm") and codec not in ("h264", "hevc"):
            # These codecs don't carry it, and the muxer is not told it.
            self.warnings.append(
                f"the pixels' aspect ratio {aspect} is lost with {codec} in {self.muxer}; an .mp4 keeps it"
            )

    def _add_others(self, out: OutputContainer, source: InputContainer, main: Any) -> dict[int, Stream]:
        copies: dict[int, Stream] = {}
        for stream in source.streams:
            if stream is main:
                continue
            kind, context = stream.type, stream.codec_context
            codec = context.codec.canonical_name if context else "unknown codec"
            if kind == "video" and not int(stream.disposition) & 0x0400:
                self.warnings.append(
                    f"video stream {stream.index} ({codec}): only the first is swapped; dropped"
                )
            elif kind == "data" and "mov" in source.format.name and source.chapters():
                continue  # the track that holds the chapters, which are kept
            elif refusal(stream, self.muxer):
                self.warnings.append(
                    f"{kind} stream {stream.index} ({codec}) can't be stored in {self.muxer}: dropped"
                )
            else:
                copy = out.add_stream_from_template(stream, opaque=True)
                copy.metadata.update(_tags(stream.metadata))
                copy.disposition = stream.disposition
                copies[stream.index] = copy
        return copies

    # times

    def _time(self, index: int) -> int:
        """Ticks at which frame ``index`` is shown; before frame 0 it goes on evenly."""
        base = self.info.time_base
        origin = self.info.timestamps[max(index, 0)] - round(self.shift / base)
        return origin + min(index, 0) * max(1, self.info.durations[0])

    def _video_packets(self, stream: Stream) -> Iterator[tuple[Fraction, Packet[Any]]]:
        """Packets in decoding order. Decoding times follow the frames' own rhythm, late by the
        encoder's reordering, so that they increase and never pass the time a frame is shown."""
        delay, before = 0, 0
        for order in self.orders:
            delay = max([delay, *(n - p for n, p in enumerate(order))])
        for path, order in zip(self.paths, self.orders, strict=True):
            with av.open(str(path)) as segment:
                packets: Iterator[Any] = (p for p in segment.demux(video=0) if p.size)
                for n, packet in enumerate(packets):
                    shown = before + order[n]
                    packet.stream, packet.time_base = stream, self.info.time_base
                    packet.pts, packet.dts = self._time(shown), self._time(before + n - delay)
                    packet.duration = self.info.durations[shown]
                    yield packet.dts * self.info.time_base, packet
            before += len(order)

    def _end(self) -> Fraction | None:
        """The last frame's end in the input's seconds, if the input goes on after it."""
        info = self.info
        source, main = open_video(info.path)
        with source, suppress(av.FFmpegError):
            others: list[Any] = [s for s in source.streams if s is not main]
            for other in others:
                other.discard = av.stream.Discard.all
            count = 0
            for packet in source.demux(main):
                count += bool(packet.size) and not packet.is_discard
                if count > info.first_frame + info.frames:
                    return (info.timestamps[-1] + info.durations[-1]) * info.time_base
        return None

    def _other_packets(
        self, source: InputContainer, copies: dict[int, Stream]
    ) -> Iterator[tuple[Fraction, Packet[Any]]]:
        if not copies:
            return
        begin = self.shift if self.info.first_frame else None
        end = self._end()
        latest: dict[int, Fraction] = {}
        try:
            for packet in source.demux([s for s in source.streams if s.index in copies]):
                at = packet.pts if packet.pts is not None else packet.dts
                if not packet.size or at is None:
                    continue
                base, index = packet.time_base, packet.stream.index
                picture = packet.stream.type == "video"  # a cover, wherever it lies
                seconds = at * base
                if not picture and (
                    (begin is not None and seconds < begin) or (end is not None and seconds >= end)
                ):
                    continue
                ticks = round(self.shift / base) if not picture else 0
                packet.pts = None if packet.pts is None else packet.pts - ticks
                packet.dts = None if packet.dts is None else packet.dts - ticks
                packet.stream = copies[index]
                # heapq.merge wants each run sorted; streams are interleaved only roughly.
                latest[0] = max(latest.get(0, seconds), seconds)
                yield latest[0] - self.shift, packet
        except av.FFmpegError as error:
            self.warnings.append(f"{self.info.path}: audio and subtitles end early: {error.strerror}")

    def _chapters(self, source: InputContainer) -> list[Any]:
        """The input's chapters, cut and moved with the frames."""
        if not (chapters := source.chapters()):
            return []
        info, kept = self.info, []
        last = (info.timestamps[-1] + info.durations[-1]) * info.time_base - self.shift
        end = last if self._end() is not None else None
        for chapter in chapters:
            base = chapter["time_base"] or Fraction(1, 1000)
            low, high = (chapter[k] * base - self.shift for k in ("start", "end"))
            if (self.info.first_frame and high <= 0) or (end is not None and low >= end):
                continue
            low = max(low, Fraction(0)) if self.info.first_frame else low
            high = min(high, end) if end is not None else high
            kept.append({**chapter, "start": round(low / base), "end": round(high / base)})
        return kept


def _shown_order(path: Path) -> list[int]:
    """Per packet of a segment, in decoding order, the place of its frame in the order shown."""
    try:
        with av.open(str(path)) as segment:
            times = [p.pts for p in segment.demux(video=0) if p.size]
    except (av.FFmpegError, OSError, IndexError) as error:
        raise JobError(
            f"{path}: the segment can't be read back ({error}); delete it and run again"
        ) from error
    if any(t is None for t in times):
        raise JobError(f"{path}: the segment states no times; delete it and run again")
    rank = {t: i for i, t in enumerate(sorted(t for t in times if t is not None))}
    return [rank[t] for t in times if t is not None]
