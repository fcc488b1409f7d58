"""Rendering one segment: load (decode, align), swap (mask, swap), write (paste, encode).

The three are separate (``load``, ``render``, ``write``) so that an executor can overlap them or run them in
different processes and on different machines; between them travel crops, masks and matrices. Full frames do
not: the writer decodes again what the loader saw, unless both run in one process and the segment is small
enough to keep. Both go through a segment frame by frame, so that a large picture does not multiply with the
segment's length.

What is averaged over time (``stages.steady``) looks at frames beyond a segment's ends: the loader cuts
their crops too, the swapper swaps them, and the writer drops them once it has averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..stages.mask import Draw, MaskStage
from ..stages.mask_shape import MaskShape
from ..stages.records import Crops, Segment
from ..stages.rows import batches, in_order, join, take
from ..stages.steady import reach
from ..stages.swap.networks import Networks
from ..stages.swap.stage import SwapStage
from .ahead import masks_ahead, starts_ahead
from .failure import FATAL
from .load import Loaded
from .progress import Stopwatch
from .work import Work


class Swapper:
    """Runs the networks on the crops of each track."""

    def __init__(
        self,
        work: Work,
        networks: Networks,
        watch: Stopwatch,
        progress: Callable[[int], None] | None = None,
        draw: Draw | None = None,
    ) -> None:
        """``draw`` is who draws masks beside a GPU, if not this process."""
        assert work.sources
        self.work, self.watch = work, watch
        self.stage, self.frame = "", None  # type: str, int | None
        self._mask = MaskStage(networks, work.settings, draw or MaskShape.all)
        used = sorted(set(work.plan.sources.values()) or {0})
        self._swaps = {
            i: SwapStage(networks, work.settings, work.sources[i], progress=progress) for i in used
        }
        self._mask.setup()
        with watch.time("swap"):
            for stage in self._swaps.values():
                stage.setup()
        self._progress = progress
        self._held: dict[int, Crops] = {}  # by track: what the next segment may ask for again
        self._ahead: dict[int, NDArray[np.int64]] = {}  # by track: of which frames ``prepare`` expects that

    def listen(self, watch: Stopwatch, progress: Callable[[int], None]) -> None:
        """From now on, seconds go to this watch and frames to this function."""
        self.watch, self._progress = watch, progress

    def prepare(self, loaded: Loaded) -> Loaded:
        """The masks of what a segment will need swapped, in another thread than ``swap`` and ahead of it, so
        that a GPU need not wait. Segments must come in their order.

        Whatever fails here fails again in ``swap``, which says so; as with ``start``.
        """
        try:
            with self.watch.time("prepare"):
                prepared = [masks_ahead(self._mask, self._expected(crops)) for crops in loaded.crops]
        except FATAL:
            raise
        except Exception:
            self._ahead = {}
            return loaded
        far = reach(self.work.settings.steady) + self.work.settings.batch
        self._ahead = {c.track: c.frames[c.frames >= loaded.segment.stop - far] for c in loaded.crops}
        return replace(loaded, prepared=prepared)

    def _expected(self, crops: Crops) -> Crops:
        """Those that the segment before won't have left."""
        ahead = self._ahead.get(crops.track)
        return crops if ahead is None else take(crops, ~np.isin(crops.frames, ahead))

    def start(self, loaded: Loaded) -> Loaded:
        """What the loop starts from, where ``prepare`` has made masks; in a third thread."""
        batch = self.work.settings.batch
        try:
            with self.watch.time("prepare"):
                prepared = [
                    starts_ahead(self._swaps[self.work.plan.sources[crops.track]], crops, batch)
                    for crops in loaded.prepared
                ]
        except FATAL:
            raise
        except Exception:
            return replace(loaded, prepared=[])
        return replace(loaded, prepared=prepared)

    def swap(self, loaded: Loaded) -> Loaded:
        """Fill in the masks and the swapped crops. A neighbour that can't be swapped is done without."""
        notes = dict(loaded.notes)
        done = []
        for number, crops in enumerate(loaded.crops):
            prepared = loaded.prepared[number] if loaded.prepared else None
            done.append(self._swapped(crops, prepared, loaded.segment, notes))
        loaded = replace(loaded, prepared=[])
        self._held = {crops.track: self._last(crops, loaded.segment) for crops in done}
        micro_batch = min(stage.fitting.micro_batch for stage in self._swaps.values())
        if loaded.crops and micro_batch < self.work.settings.batch:
            notes["micro_batch"] = micro_batch
        return replace(loaded, crops=done, notes=notes)

    def _swapped(
        self, crops: Crops, prepared: Crops | None, segment: Segment, notes: dict[str, Any]
    ) -> Crops:
        held = self._held.get(crops.track)
        known = np.zeros(len(crops), bool) if held is None else np.isin(crops.frames, held.frames)
        new = take(crops, ~known)
        if prepared is not None and np.isin(new.frames, prepared.frames).all():
            new = take(prepared, np.isin(prepared.frames, new.frames))
        stage = self._swaps[self.work.plan.sources[crops.track]]
        left = int(((crops.frames >= segment.start) & (crops.frames < segment.stop)).sum())

        def report(count: int) -> None:
            # Neighbours are work, but none of the segment's faces.
            nonlocal left
            now = min(count, left)
            left -= now
            if self._progress is not None and now:
                self._progress(now)

        stage.progress = report
        pieces = [] if held is None else [take(held, np.isin(held.frames, crops.frames))]
        far = reach(self.work.settings.steady)
        own = (new.frames >= segment.start) & (new.frames < segment.stop)
        near = ~own & (new.frames >= segment.start - far) & (new.frames < segment.stop + far)
        try:
            pieces.append(self._made(new, stage))
        except FATAL:
            raise
        except Exception:
            if own.all():
                raise
            pieces.append(self._made(take(new, own), stage))  # else it is the segment's own trouble
            try:
                pieces.append(self._made(take(new, near), stage))
            except FATAL:
                raise
            except Exception:
                alone = sorted({*notes.get("alone", ()), *(int(f) for f in new.frames[near])})
                notes["alone"] = alone
        report(left)
        made = in_order(join(pieces))
        weights = None if crops.weights is None else crops.weights[np.isin(crops.frames, made.frames)]
        return replace(made, weights=weights)

    def _made(self, crops: Crops, stage: SwapStage) -> Crops:
        """Masked and swapped, a batch at a time: what the parser saw is large and needed by both. What was
        masked ahead all at once, so that a GPU has the next batch before the last has left it."""
        if not len(crops):
            return crops
        if crops.masks is not None:
            self.stage = "swap"
            try:
                with self.watch.time("swap"):
                    return stage.process(crops)
            finally:
                self.frame = stage.fitting.at
        made = []
        for present, _, _ in batches(crops.frames, self.work.settings.batch):
            piece = take(crops, present)
            self.stage, self.frame = "mask", int(piece.frames[0])
            with self.watch.time("mask"):
                piece = self._mask.process(piece)
            self.stage = "swap"
            with self.watch.time("swap"):
                made.append(stage.process(piece))
        return join(made)

    def _last(self, crops: Crops, segment: Segment) -> Crops:
        """The rows that the segment after this one can ask for; copies, so that the others can go."""
        settings = self.work.settings
        far = reach(settings.steady)
        return take(crops, crops.frames >= segment.stop - far - settings.batch if far else crops.frames < 0)

    def reset(self) -> None:
        """After a failure: nothing of what was made before is trusted."""
        self._held, self._ahead = {}, {}
