"""Arithmetic on frame after frame, spread over the processor's cores by threads.

OpenCV and numpy let other threads run while they compute. A frame's result never depends on the others, so
the number of threads changes no byte. How many there are: ``OMP_NUM_THREADS`` (which Ray sets for its workers
to the cores they were given), else the cores this process may use; ``limited`` takes fewer, and ``spread``
never more than ``MOST``: between operations each holds the interpreter, which whoever feeds a GPU needs too.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")
MOST = 8  # not tuned; a 720p frame takes some 80 ms of one core, from its conversion to its paste
_guard = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}
_limit: int | None = None
_inside = threading.local()


def width() -> int:
    """How many threads compute at once."""
    if _limit is not None:
        return _limit
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


@contextlib.contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Inside, so many threads; None changes nothing."""
    global _limit
    before = _limit
    _limit = threads if threads is not None else before
    try:
        yield
    finally:
        _limit = before


def spread(function: Callable[..., Result], *rows: Iterable[Any]) -> list[Result]:
    """``[function(*row) for row in zip(*rows)]``, computed by several threads.

    The first exception of any row is raised. Within a row, another ``spread`` computes one by one.
    """
    calls = list(zip(*rows, strict=True))
    threads = min(width(), MOST)
    if min(threads, len(calls)) < 2 or getattr(_inside, "row", False):
        return [function(*call) for call in calls]
    return list(_pool(threads).map(lambda call: _row(function, call), calls))


def _row(function: Callable[..., Result], call: tuple[Any, ...]) -> Result:
    _inside.row = True
    try:
        return function(*call)
    finally:
        _inside.row = False


def _pool(threads: int) -> ThreadPoolExecutor:
    with _guard:
        if threads not in _pools:
            _pools[threads] = ThreadPoolExecutor(threads, "ldvid-row")
        return _pools[threads]
