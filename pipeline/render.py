"""Rendering one segment: load (decode, align), swap (mask, swap), write (paste, encode).

The three are separate so that an executor can overlap them or run them on different machines;
between them travel crops, masks and matrices. Full frames do not: ``write`` decodes again what
``load`` saw, unless the segment is small enough to keep. Both go through a segment frame by frame,
so that a large picture does not multiply with the segment's length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..configs import Settings
from ..errors import JobError
from ..stages.align import AlignStage
from ..stages.decode import DecodeStage
from ..stages.encode import EncodeOptions, EncodeStage, Picture, StreamedSegment
from ..stages.mask import MaskStage
from ..stages.paste import PasteStage
from ..stages.records import Crops, Frame, Segment, SourceFace
from ..stages.swap.networks import Networks
from ..stages.swap.stage import SwapStage
from .job import Job
from .plan import Plan
from .progress import Listener, Stopwatch

KEEP_BYTES = 256 * 2**20  # a segment's frames are kept from load to write below this size


@dataclass(frozen=True)
class Loaded:
    """A segment on its way: its crops, one item per track, and its frames if they were kept."""

    segment: Segment
    crops: list[Crops]
    frames: list[Frame] = field(default_factory=list)


class Renderer:
    """The stages of one job, with what they need; safe to use from the executor's three threads."""

    def __init__(
        self,
        job: Job,
        plan: Plan,
        settings: Settings,
        networks: Networks,
        source: SourceFace,
        listener: Listener,
        watch: Stopwatch,
        tags: Mapping[str, str],
    ) -> None:
        self._job, self._plan, self._listener, self._watch = job, plan, listener, watch
        manifest = networks.manifest
        self._template, self._size = manifest.template_points(), manifest.crop_size
        self._decode = DecodeStage(plan.clip, settings.decoder)
        self._decode_again = DecodeStage(plan.clip, settings.decoder)
        self._mask = MaskStage(networks, settings)
        self._swap = SwapStage(networks, settings, source, progress=lambda n: listener.advance("swap", n))
        self._paste = PasteStage()
        options = EncodeOptions.from_settings(settings, plan.clip)
        self._encode = EncodeStage(plan.clip, options, job.segments_folder, tags)
        for s in plan.segments:
            if (s.start - plan.shots[s.shot][0]) % settings.keyframe_interval:
                raise JobError(
                    f"{job.folder / 'plan.json'}: segment {s.index} must begin a multiple of "
                    f"keyframe_interval ({settings.keyframe_interval}) frames after its shot"
                )
        for stage in (self._decode, self._decode_again, self._mask, self._swap, self._paste, self._encode):
            stage.setup()

    def load(self, segment: Segment) -> Loaded:
        """Decode a segment and cut its crops; a segment without a face to swap is not decoded yet."""
        tracks = self._plan.swapped_tracks(segment)
        if not tracks:
            return Loaded(segment, [])
        stages = [AlignStage(t, self._template, self._size) for t in tracks]
        pieces: list[list[Crops]] = [[] for _ in stages]
        kept: list[Frame] | None = []
        held = 0
        for frame in self._timed(self._decode.frames(segment)):
            with self._watch.time("align"):
                for stage, piece in zip(stages, pieces, strict=True):
                    piece.append(stage.process([frame]))
            held += frame.rgb.nbytes
            if held > KEEP_BYTES:
                kept = None
            if kept is not None:
                kept.append(frame)
        crops = [joined for piece in pieces if len(joined := _join(piece))]
        return Loaded(segment, crops, kept or [])

    def _timed(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """The same frames; the time they take counts as decoding."""
        while True:
            with self._watch.time("decode"):
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    def swap(self, loaded: Loaded) -> Loaded:
        """Run the networks on the crops of each track."""
        done = []
        for crops in loaded.crops:
            with self._watch.time("mask"):
                crops = self._mask.process(crops)
            with self._watch.time("swap"):
                done.append(self._swap.process(crops))
        return replace(loaded, crops=done)

    def write(self, swapped: Loaded) -> None:
        """Paste, encode, and enter the segment into the ledger."""
        segment = swapped.segment
        shot_start = self._plan.shots[segment.shot][0]
        item = StreamedSegment(segment, self._pasted(swapped), shot_start)
        with self._watch.time("encode"):
            path: Path = self._encode.process(item)
        faces = (int(i) for crops in swapped.crops for i in crops.frames)
        self._job.record(self._plan, segment, path, faces)
        self._listener.advance("encode", segment.stop - segment.start)

    def _pasted(self, swapped: Loaded) -> Iterator[Picture]:
        frames = iter(swapped.frames) if swapped.frames else self._decode_again.frames(swapped.segment)
        for frame in self._timed(frames):
            with self._watch.time("paste"):
                here = [_rows(crops, frame.index) for crops in swapped.crops]
                (rgb,), (touched,) = self._paste.process(([frame], here))
            yield frame, rgb, touched


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
