"""Loading a segment: its frames decoded one by one, its crops cut.

What is averaged over time (``stages.steady``) looks at frames beyond a segment's ends: their crops are cut
too, as far as that goes, within the shot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from ..errors import InputError
from ..stages.align import AlignStage
from ..stages.decode import DecodeStage
from ..stages.fade import fade_weights
from ..stages.records import F32, NEIGHBOURS, Crops, Frame, Segment, Track
from ..stages.rows import join
from ..stages.spread import spread, width
from ..stages.steady import reach
from .progress import Stopwatch
from .work import Work

KEEP_BYTES = 256 * 2**20  # a segment's frames are kept from load to write below this size
AT_ONCE_BYTES = 64 * 2**20  # of frames that are aligned or pasted at once; pasting takes a few times as much


@dataclass(frozen=True)
class Loaded:
    """A segment on its way: its crops, one item per track, and its frames if they were kept. Until they are
    written, crops go on beyond the segment's ends as far as the average over time looks.

    ``passed`` says why the original is passed through instead of a swap. ``notes`` goes into the
    segment's ledger entry: ``alone`` names frames beyond its ends that the average had to do without.
    ``prepared`` holds, for each of ``crops``, those rows of it whose masks and starts were made ahead.
    """

    segment: Segment
    crops: list[Crops]
    frames: list[Frame] = field(default_factory=list)
    passed: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    prepared: list[Crops] = field(default_factory=list)


def swapped_frames(done: Loaded) -> list[int]:
    """The frames of a segment that were swapped."""
    start, stop = done.segment.start, done.segment.stop
    return [int(i) for crops in done.crops for i in crops.frames if start <= i < stop]


def at_once(size: int) -> int:
    """How many frames of ``size`` bytes to work on at once: as many as there are threads, but not more than
    fit into some memory."""
    return max(1, min(width(), AT_ONCE_BYTES // size))


class Part:
    """One of the three: what it works with, and where it is, for whoever has to say what failed."""

    def __init__(self, work: Work, watch: Stopwatch) -> None:
        self.work, self.watch = work, watch
        self.stage, self.frame = "", None  # type: str, int | None
        self._decode = DecodeStage(work.plan.clip, work.settings.decoder)

    def _frames(self, segment: Segment) -> Iterator[Frame]:
        """Its frames, decoded one by one; the time they take counts as decoding."""
        frames = self._decode.frames(segment)
        self.frame = segment.start
        while True:
            self.stage = "decode"
            with self.watch.time("decode"):
                frame = next(frames, None)
            if frame is None:
                self.frame = None
                return
            yield frame
            self.frame = frame.index + 1

    def reset(self) -> None:
        """After a failure: the next try opens the clip anew."""
        self._decode = DecodeStage(self.work.plan.clip, self.work.settings.decoder)


class Loader(Part):
    """Decodes a segment and cuts its crops."""

    def __init__(self, work: Work, watch: Stopwatch, *, keep: bool, whole: bool | None = None) -> None:
        """``keep`` frames for the writer. Neighbours come in ``whole`` batches (None: as ``keep``) where one
        process swaps all segments, one after the other, and so has them for the next."""
        super().__init__(work, watch)
        self._keep, self._whole = keep, keep if whole is None else whole
        self._weights: dict[int, F32] = {}  # by track

    def load(self, segment: Segment) -> Loaded:
        """A segment without a face to swap is not decoded yet."""
        tracks = self.work.plan.swapped_tracks(segment, NEIGHBOURS + self.work.settings.batch)
        if not tracks:
            return Loaded(segment, [])
        stages = [self._aligned(t, segment) for t in tracks]
        pieces: list[list[Crops]] = [[] for _ in stages]
        kept: list[Frame] | None = [] if self._keep else None
        held = 0
        lost: list[int] = []
        size = 3 * self.work.plan.clip.width * self.work.plan.clip.height
        frames = self._with_neighbours(segment, lost)
        while some := list(islice(frames, at_once(size))):
            self.stage = "align"
            with self.watch.time("align"):
                cut = spread(partial(_cut, stages), some)
            for frame, rows in zip(some, cut, strict=True):
                self.frame = frame.index
                if isinstance(rows, Exception):
                    raise rows
                for piece, row in zip(pieces, rows, strict=True):
                    piece.append(row)
            for frame in some:
                if not segment.start <= frame.index < segment.stop:
                    continue
                held += size + int(getattr(frame.native, "nbytes", size // 2))
                if held > KEEP_BYTES:
                    kept = None
                if kept is not None:
                    kept.append(frame)
        crops = [joined for piece in pieces if len(joined := join(piece))]
        return Loaded(segment, crops, kept or [], notes={"alone": lost} if lost else {})

    def _aligned(self, track: Track, segment: Segment) -> AlignStage:
        plan, settings = self.work.plan, self.work.settings
        shot = plan.shots[segment.shot]
        size = (plan.clip.width, plan.clip.height)
        whole = next(t for t in plan.tracks if t.id == track.id)  # which alone knows where it begins and ends
        if track.id not in self._weights:
            self._weights[track.id] = fade_weights(
                whole, shot, size, settings.detector_threshold, settings.fade_frames
            )
        here = np.isin(whole.frames, track.frames)
        return AlignStage(track, self.work.template, self.work.crop_size, self._weights[track.id][here])

    def _with_neighbours(self, segment: Segment, lost: list[int]) -> Iterator[Frame]:
        """The segment's frames and those about it. One of those that can't be decoded is ``lost``; one
        of its own is the caller's trouble."""
        at, stop = self._range(segment)
        while at < stop:
            try:
                for frame in self._frames(replace(segment, start=at, stop=stop)):
                    at = frame.index + 1
                    yield frame
                return
            except InputError:
                if segment.start <= at < segment.stop:
                    raise
                super().reset()
                lost.append(at)
                at += 1

    def _range(self, segment: Segment) -> tuple[int, int]:
        """Frames [start, stop) to cut crops of: of the segment's shot alone."""
        settings = self.work.settings
        first, last = self.work.plan.shots[segment.shot]
        far = reach(settings.steady)
        start, stop = segment.start - far, segment.stop + far
        if self._whole and far:
            # Whole batches: they cost the networks nothing more, and the next segment needs the rest.
            start, stop = (
                start // settings.batch * settings.batch,
                -(-stop // settings.batch) * settings.batch,
            )
        return max(start, first), min(stop, last)


def _cut(stages: list[AlignStage], frame: Frame) -> list[Crops] | Exception:
    """The frame's crops of each track; here it is converted to RGB. An exception is the caller's to raise,
    once all before it are through."""
    try:
        return [stage.process([frame]) for stage in stages]
    except Exception as error:
        return error
