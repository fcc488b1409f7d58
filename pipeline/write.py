"""Writing a segment: averaged over time, pasted, encoded, and entered into the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ..errors import InputError, JobError
from ..stages.encode import EncodeOptions, EncodeStage, Picture, StreamedSegment
from ..stages.overlay import OverlayStage
from ..stages.paste import PasteStage
from ..stages.records import Frame, Segment
from ..stages.rows import between
from ..stages.spread import spread
from ..stages.steady import steady
from .ledger import Ledger
from .load import Loaded, Part, at_once, swapped_frames
from .progress import Stopwatch
from .work import Work


class Writer(Part):
    """Pastes, encodes, and gives the segment's file.

    Raises:
        JobError: a plan whose segments don't begin on whole keyframe intervals.
    """

    def __init__(self, work: Work, watch: Stopwatch, segments: Path) -> None:
        super().__init__(work, watch)
        plan, settings = work.plan, work.settings
        for s in plan.segments:
            if (s.start - plan.shots[s.shot][0]) % settings.keyframe_interval:
                raise JobError(
                    f"{work.folder / 'plan.json'}: segment {s.index} must begin a multiple of "
                    f"keyframe_interval ({settings.keyframe_interval}) frames after its shot"
                )
        self._paste = PasteStage(settings)
        self._overlay = OverlayStage(plan.clip, plan.tracks, plan.sources) if settings.debug_overlay else None
        self._encode = EncodeStage(
            plan.clip, EncodeOptions.from_settings(settings, plan.clip), segments, work.tags
        )

    def write(self, swapped: Loaded) -> Path:
        """The finished segment."""
        segment = swapped.segment
        self.stage, self.frame = "steady", segment.start
        with self.watch.time("steady"):
            sigma = self.work.settings.steady
            crops = [steady(c, sigma, segment.start, segment.stop) for c in swapped.crops]
        swapped = replace(swapped, crops=crops)
        start = self.work.plan.shots[segment.shot][0]
        item = StreamedSegment(segment, self._pasted(swapped), start)
        with self.watch.time("encode"):
            return self._encode.process(item)

    def _pasted(self, swapped: Loaded) -> Iterator[Picture]:
        if swapped.frames:
            frames: Iterator[Frame] = iter(swapped.frames)
        elif swapped.passed is not None:
            frames = self._readable(swapped)
        else:
            frames = self._frames(swapped.segment)

        def finished(frame: Frame) -> Picture | Exception:
            try:
                here = [between(crops, frame.index, frame.index + 1) for crops in swapped.crops]
                (rgb,), (touched,) = self._paste.process(([frame], here))
                if self._overlay is not None:
                    rgb, touched = self._overlay.process((frame, rgb, touched))
                return frame, rgb, touched
            except Exception as error:
                return error

        clip = self.work.plan.clip
        while some := list(islice(frames, at_once(3 * clip.width * clip.height))):
            self.stage, self.frame = "paste", some[0].index
            with self.watch.time("paste"):
                done = spread(finished, some)
            for frame, picture in zip(some, done, strict=True):
                self.frame = frame.index
                if isinstance(picture, Exception):
                    raise picture
                self.stage = "encode"
                yield picture
                self.stage = "paste"

    def _readable(self, passed: Loaded) -> Iterator[Frame]:
        """The segment's frames; one that can't be decoded is replaced by the frame before it."""
        segment = passed.segment
        last: Frame | None = None
        lost: list[int] = []
        for index in range(segment.start, segment.stop):
            try:
                last = next(self._frames(replace(segment, start=index, stop=index + 1)))
            except InputError:
                self.reset()
                lost.append(index)
                if last is None:
                    last = self._first_after(segment, index)
                last = last.at(index)
            yield last
        if lost:
            passed.notes["repeated"] = lost

    def _first_after(self, segment: Segment, index: int) -> Frame:
        for later in range(index + 1, self.work.plan.clip.frames):
            try:
                return next(self._frames(replace(segment, start=later, stop=later + 1)))
            except InputError:
                self.reset()
        raise InputError(f"{self.work.plan.clip.path}: no frame from {index} on can be decoded")


def entered(writer: Writer, ledger: Ledger, swapped: Loaded) -> list[int]:
    """Write a segment and enter it into the ledger; the frames that were swapped."""
    path = writer.write(swapped)
    notes = swapped.notes if swapped.passed is None else {**swapped.notes, "passed": swapped.passed}
    frames = swapped_frames(swapped)
    with writer.watch.time("ledger"):
        ledger.record(writer.work.plan, swapped.segment, path, frames, **notes)
    return frames
