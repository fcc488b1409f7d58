"""Batches in pieces that fit into the GPU's memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ..records import F32
from ..rows import batches
from .repeatable import repeatable

Rows = NDArray[np.intp]
Later = Callable[[], F32]
AHEAD = 1  # batches asked for before the one before them has arrived


class Fitting:
    """``micro_batch`` is the number of crops that go through the networks at once: the batch, halved each
    time the memory did not suffice. Halved batches differ in the last bits of their numbers.

    ``at`` is the first frame of the batch that this thread began or waited for last: where it failed, if it
    did. Others may be at theirs.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.batch = self.micro_batch = batch
        self._device = device
        self._own = threading.local()

    @property
    def at(self) -> int | None:
        """See above; None where this thread has begun nothing."""
        return getattr(self._own, "at", None)

    def over(
        self,
        frames: NDArray[np.int64],
        work: Callable[[Rows], F32 | Later],
        done: Callable[[int], None] | None = None,
    ) -> F32 | None:
        """``work`` for each batch that ``rows.batches`` makes of frames (N,): (N, …), or None of no frames.

        Work that gives something to wait for is asked for the next batch meanwhile. ``done`` is told after
        each how many frames it was.
        """
        made: F32 | None = None
        coming: deque[tuple[Rows, NDArray[np.int64], list[F32 | Later]]] = deque()

        def finish() -> None:
            nonlocal made
            present, slots, begun = coming.popleft()
            self._own.at = int(frames[present[0]])
            part = _whole(begun)[slots]
            made = np.empty((len(frames), *part.shape[1:]), np.float32) if made is None else made
            made[present] = part
            if done is not None:
                done(len(present))

        for present, rows, slots in batches(frames, self.batch):
            self._own.at = int(frames[present[0]])
            begun = self.begin(work, rows)
            coming.append((present, slots, begun))
            while len(coming) > (AHEAD if callable(begun[-1]) else 0):
                finish()
        while coming:
            finish()
        return made

    def begin(self, work: Callable[[Rows], F32 | Later], rows: Rows) -> list[F32 | Later]:
        """``work(rows)``, all at once or in pieces; what it computes is repeatable.

        Raises:
            torch.OutOfMemoryError: not even a single row fits.
        """
        while True:
            size = self.micro_batch
            try:
                with repeatable():
                    return [work(rows[i : i + size]) for i in range(0, len(rows), size)]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Out here, where the error no longer holds the tensors of the failed try.
            self.micro_batch = (size + 1) // 2
            if self._device.type == "cuda":
                torch.cuda.empty_cache()


def _whole(begun: list[F32 | Later]) -> F32:
    """The pieces of a batch as one, once they have arrived."""
    parts = [piece() if callable(piece) else piece for piece in begun]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
