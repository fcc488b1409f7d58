"""Runs of frames that don't touch, measured at the same time."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np

from ..stages.spread import width
from .device import cpu_threads

Hands = TypeVar("Hands")
Result = TypeVar("Result")
MOST = 8


def strands_of(frames: Sequence[int]) -> list[list[int]]:
    """Rising frames as runs without a hole."""
    ends = np.flatnonzero(np.diff(frames) != 1) + 1
    return [run.tolist() for run in np.split(np.asarray(frames, int), ends) if len(run)]


def each_strand(
    strands: Sequence[list[int]],
    along: Callable[[list[int], Hands], Result],
    hands: Hands,
    more: Callable[[], AbstractContextManager[Hands]] | None,
) -> list[Result]:
    """``along`` of each strand, in their order; several at once have each ``more`` hands of their own, and as
    many threads as that leaves them, which is the whole process's affair. None: one after the other."""
    workers = min(width(), MOST, len(strands))
    if workers < 2 or more is None:
        return [along(strand, hands) for strand in strands]
    free: queue.SimpleQueue[Hands] = queue.SimpleQueue()

    def with_some(strand: list[int]) -> Result:
        own = free.get_nowait()
        try:
            return along(strand, own)
        finally:
            free.put(own)

    with contextlib.ExitStack() as stack:
        stack.enter_context(cpu_threads(max(1, width() // workers)))
        for _ in range(workers):
            free.put(stack.enter_context(more()))
        pool = stack.enter_context(ThreadPoolExecutor(workers, "ldvid-report"))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        return list(pool.map(with_some, strands))
