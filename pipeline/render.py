"""Rendering one segment: load (decode, align), swap (mask, swap), write (paste, encode).

The three are separate so that an executor can overlap them or run them on different machines;
between them travel crops, masks and matrices. Full frames do not: ``write`` decodes again what
``load`` saw, unless the segment is small enough to keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..configs import Settings
from ..errors import JobError
from ..stages.align import AlignStage
from ..stages.decode import DecodeStage
from ..stages.encode import EncodeOptions, EncodeStage, RenderedSegment
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
        with self._watch.time("decode"):
            frames = self._decode.process(segment)
        with self._watch.time("align"):
            crops = [AlignStage(t, self._template, self._size).process(frames) for t in tracks]
        small = sum(f.rgb.nbytes for f in frames) <= KEEP_BYTES
        return Loaded(segment, [c for c in crops if len(c)], frames if small else [])

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
        segment, frames = swapped.segment, swapped.frames
        if not frames:
            with self._watch.time("decode"):
                frames = self._decode_again.process(segment)
        with self._watch.time("paste"):
            rgb, touched = self._paste.process((frames, swapped.crops))
        with self._watch.time("encode"):
            shot_start = self._plan.shots[segment.shot][0]
            path: Path = self._encode.process(RenderedSegment(segment, frames, rgb, touched, shot_start))
        faces = (int(i) for crops in swapped.crops for i in crops.frames)
        self._job.record(self._plan, segment, path, faces)
        self._listener.advance("encode", segment.stop - segment.start)
