"""Batches in pieces that fit into the GPU's memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ..records import F32
from ..rows import batches
from .repeatable import repeatable


class Fitting:
    """``micro_batch`` is the number of crops that go through the networks at once: the batch, halved each
    time the memory did not suffice. Halved batches differ in the last bits of their numbers."""

    def __init__(self, batch: int, device: torch.device) -> None:
        self.batch = self.micro_batch = batch
        self._device = device

    def over(
        self,
        frames: NDArray[np.int64],
        work: Callable[[NDArray[np.intp]], F32],
        done: Callable[[int], None] | None = None,
    ) -> F32 | None:
        """``run`` for each batch that ``rows.batches`` makes of frames (N,): (N, …), or None of no frames.

        ``done`` is told after each how many frames it was.
        """
        made: F32 | None = None
        for present, rows, slots in batches(frames, self.batch):
            part = self.run(work, rows)[slots]
            made = np.zeros((len(frames), *part.shape[1:]), np.float32) if made is None else made
            made[present] = part
            if done is not None:
                done(len(present))
        return made

    def run(self, work: Callable[[NDArray[np.intp]], F32], rows: NDArray[np.intp]) -> F32:
        """``work(rows)``, (len(rows), …), all at once or in pieces; what it computes is repeatable.

        Raises:
            torch.OutOfMemoryError: not even a single row fits.
        """
        while True:
            size = self.micro_batch
            try:
                with repeatable():
                    parts = [work(rows[i : i + size]) for i in range(0, len(rows), size)]
                return parts[0] if len(parts) == 1 else np.concatenate(parts)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Out here, where the error no longer holds the tensors of the failed try.
            self.micro_batch = (size + 1) // 2
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
