"""Rendering one segment: load (decode, align), swap (mask, swap), write (paste, encode).

The three are separate so that an executor can overlap them or run them on different machines;
between them travel crops, masks and matrices. Full frames do not: ``write`` decodes again what
``load`` saw, unless both run in one process and the segment is small enough to keep. Both go through
a segment frame by frame, so that a large picture does not multiply with the segment's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, JobError
from ..stages.align import AlignStage
from ..stages.decode import DecodeStage
from ..stages.encode import EncodeOptions, EncodeStage, Picture, StreamedSegment
from ..stages.mask import MaskStage
from ..stages.paste import PasteStage
from ..stages.records import Crops, Frame, Segment
from ..stages.swap.networks import Networks
from ..stages.swap.stage import SwapStage
from .progress import Stopwatch
from .work import Work

KEEP_BYTES = 256 * 2**20  # a segment's frames are kept from load to write below this size


@dataclass(frozen=True)
class Loaded:
    """A segment on its way: its crops, one item per track, and its frames if they were kept.

    ``passed`` says why the original is passed through instead of a swap. ``notes`` goes into the
    segment's ledger entry.
    """

    segment: Segment
    crops: list[Crops]
    frames: list[Frame] = field(default_factory=list)
    passed: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class _Part:
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


class Loader(_Part):
    """Decodes a segment and cuts its crops."""

    def __init__(self, work: Work, watch: Stopwatch, *, keep: bool) -> None:
        super().__init__(work, watch)
        self._keep = keep

    def load(self, segment: Segment) -> Loaded:
        """A segment without a face to swap is not decoded yet."""
        tracks = self.work.plan.swapped_tracks(segment)
        if not tracks:
            return Loaded(segment, [])
        stages = [AlignStage(t, self.work.template, self.work.crop_size) for t in tracks]
        pieces: list[list[Crops]] = [[] for _ in stages]
        kept: list[Frame] | None = [] if self._keep else None
        held = 0
        for frame in self._frames(segment):
            self.stage = "align"
            with self.watch.time("align"):
                for stage, piece in zip(stages, pieces, strict=True):
                    piece.append(stage.process([frame]))
            held += frame.rgb.nbytes + int(getattr(frame.native, "nbytes", frame.rgb.nbytes // 2))
            if held > KEEP_BYTES:
                kept = None
            if kept is not None:
                kept.append(frame)
        crops = [joined for piece in pieces if len(joined := _join(piece))]
        return Loaded(segment, crops, kept or [])


class Swapper:
    """Runs the networks on the crops of each track."""

    def __init__(
        self, work: Work, networks: Networks, watch: Stopwatch, progress: Callable[[int], None] | None = None
    ) -> None:
        assert work.source is not None
        self.work, self.watch = work, watch
        self.stage, self.frame = "", None  # type: str, int | None
        self._mask = MaskStage(networks, work.settings)
        self._swap = SwapStage(networks, work.settings, work.source, progress=progress)
        self._mask.setup()
        with watch.time("swap"):
            self._swap.setup()

    def listen(self, watch: Stopwatch, progress: Callable[[int], None]) -> None:
        """From now on, seconds go to this watch and frames to this function."""
        self.watch, self._swap.progress = watch, progress

    def swap(self, loaded: Loaded) -> Loaded:
        """Fill in the masks and the swapped crops."""
        done = []
        for crops in loaded.crops:
            self.stage, self.frame = "mask", int(crops.frames[0])
            with self.watch.time("mask"):
                crops = self._mask.process(crops)
            self.stage = "swap"
            with self.watch.time("swap"):
                done.append(self._swap.process(crops))
        notes = dict(loaded.notes)
        if loaded.crops and self._swap.micro_batch < self._swap.settings.batch:
            notes["micro_batch"] = self._swap.micro_batch
        return replace(loaded, crops=done, notes=notes)

    def reset(self) -> None:
        """Nothing is held from one segment to the next."""


class Writer(_Part):
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
        self._paste = PasteStage()
        self._encode = EncodeStage(
            plan.clip, EncodeOptions.from_settings(settings, plan.clip), segments, work.tags
        )

    def write(self, swapped: Loaded) -> Path:
        """The finished segment."""
        segment = swapped.segment
        start = self.work.plan.shots[segment.shot][0]
        item = StreamedSegment(segment, self._pasted(swapped), start)
        with self.watch.time("encode"):
            return self._encode.process(item)

    def _pasted(self, swapped: Loaded) -> Iterator[Picture]:
        if swapped.frames:
            frames = iter(swapped.frames)
        elif swapped.passed is not None:
            frames = self._readable(swapped)
        else:
            frames = self._frames(swapped.segment)
        for frame in frames:
            self.stage, self.frame = "paste", frame.index
            with self.watch.time("paste"):
                here = [_rows(crops, frame.index) for crops in swapped.crops]
                (rgb,), (touched,) = self._paste.process(([frame], here))
            self.stage = "encode"
            yield frame, rgb, touched

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
                last = replace(last, index=index)
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


def swapped_frames(done: Loaded) -> list[int]:
    """The frames of a segment that were swapped."""
    return [int(i) for crops in done.crops for i in crops.frames]


def _join(pieces: list[Crops]) -> Crops:
    """Crops of one track, frame after frame, as one; before masks and swap."""
    parts = [p for p in pieces if len(p)] or pieces[:1]
    return replace(
        parts[0],
        frames=np.concatenate([p.frames for p in parts]),
        images=np.concatenate([p.images for p in parts]),
        matrices=np.concatenate([p.matrices for p in parts]),
        landmarks=np.concatenate([p.landmarks for p in parts]),
    )


def _rows(crops: Crops, frame: int) -> Crops:
    """The rows of one frame (views; none or one)."""
    a, b = (int(v) for v in np.searchsorted(crops.frames, (frame, frame + 1)))
    masks, swapped, weights = (
        None if v is None else v[a:b] for v in (crops.masks, crops.swapped, crops.weights)
    )
    return replace(
        crops,
        frames=crops.frames[a:b],
        images=crops.images[a:b],
        matrices=crops.matrices[a:b],
        landmarks=crops.landmarks[a:b],
        masks=masks,
        swapped=swapped,
        weights=weights,
    )
