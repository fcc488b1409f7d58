"""What a GPU job does before its turn: masks and starts of what is swapped next, and a first batch of nothing
in particular while the clip is still being looked at."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache

import numpy as np

from ..configs import Settings
from ..errors import LdvidError
from ..stages.mask import MaskStage
from ..stages.records import Crops, SourceFace
from ..stages.rows import batches, join, take
from ..stages.swap.networks import Networks
from ..stages.swap.stage import SwapStage

_AT_ONCE = 2  # batches: while one waits for the GPU, the other computes
PATIENCE = 10.0  # seconds for the other thread: Ctrl-C may have come before it was asked
TO_RECORD = 2  # runs: ``recorded``
_warming = threading.Lock()


@cache
def _both() -> ThreadPoolExecutor:
    """The same threads for all jobs of this process: cuDNN makes its plans anew for every thread."""
    return ThreadPoolExecutor(_AT_ONCE, "ldvid-ahead")


def masks_ahead(mask: MaskStage, crops: Crops) -> Crops:
    """The crops' masks."""
    if not len(crops):
        return crops
    # All at once: those who draw them beside this process are asked for all before any is waited for, and
    # meanwhile the GPU's threads are free for others.
    return mask.drawn(crops, _both().submit(mask.seen, crops).result())


def starts_ahead(swap: SwapStage, masked: Crops, batch: int) -> Crops:
    """The starts of crops that have masks, two batches at a time."""
    if not len(masked):
        return masked
    # A parse is large, and is made again sooner than memory holds those of a segment.
    masked = replace(masked, parses=None)
    pieces = [take(masked, present) for present, _, _ in batches(masked.frames, batch)]
    return join(list(_both().map(swap.prepare, pieces)))


def prepare_ahead(mask: MaskStage, swap: SwapStage, crops: Crops) -> Crops:
    """Both."""
    return starts_ahead(swap, masks_ahead(mask, crops), mask.settings.batch)


def warm_up(networks: Networks, settings: Settings, source: SourceFace) -> None:
    """Have a GPU load what a job runs there: one batch of the source's own face, made and thrown away.

    A kernel is loaded when it is first used, by one core of the processor; a job uses hundreds. Made twice,
    the batch is recorded, and the job replays that from its first one on. On a
    CPU there is nothing to load. What goes wrong here goes wrong again in its turn, and is said there.
    """
    if networks.device.type != "cuda" or any(term.file is not None for term in settings.guidance):
        return  # of what a user's own term does beside its result, nothing should happen twice
    with _warming:
        if not networks.recorder.used:
            _one_batch(networks, settings, source)


def _one_batch(networks: Networks, settings: Settings, source: SourceFace) -> None:
    size, count = len(source.image), settings.batch
    crops = Crops(
        track=0,
        frames=np.arange(count),
        images=np.broadcast_to(source.image, (count, size, size, 3)),
        matrices=np.zeros((count, 2, 3)),
        landmarks=np.broadcast_to(source.landmarks, (count, 5, 2)),
    )
    mask, swap = MaskStage(networks, settings), SwapStage(networks, settings, source)
    both_are_here = threading.Barrier(_AT_ONCE)

    def prepared(_: int) -> Crops:
        both_are_here.wait(PATIENCE)  # or one thread may take both
        return swap.prepare(mask.process(crops))

    with suppress(LdvidError, RuntimeError, ValueError):  # torch's own, of memory too, are RuntimeErrors
        first, _ = _both().map(prepared, range(_AT_ONCE))
        for _ in range(TO_RECORD):
            swap.sample(first)
