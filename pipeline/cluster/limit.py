"""A time limit on a block of work: a process that exceeds it is ended.

A call that hangs in C can't be broken off, so nothing less will do. Where it hangs is written to stderr,
which is the worker's log.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
from collections.abc import Callable, Iterator

_GRACE = 10.0  # seconds for the last words; a call that holds Python's lock is ended without any


class _Limit:
    def __init__(self, seconds: float, last_words: Callable[[], None]) -> None:
        self._seconds, self._last_words = seconds, last_words
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        self._timer = threading.Timer(self._seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()
        faulthandler.dump_traceback_later(self._seconds + _GRACE, exit=True, file=2)

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        with contextlib.suppress(Exception):
            self._last_words()
        faulthandler.dump_traceback(file=2)
        os._exit(1)


_running: _Limit | None = None  # a worker's process does one thing at a time


@contextlib.contextmanager
def limited(seconds: float | None, last_words: Callable[[], None]) -> Iterator[None]:
    """``last_words`` is called, and the process ended, if the block takes longer; None: it may."""
    global _running
    if seconds is None:
        yield
        return
    _running = _Limit(seconds, last_words)
    _running.start()
    try:
        yield
    finally:
        _running.stop()
        _running = None


@contextlib.contextmanager
def unlimited() -> Iterator[None]:
    """A block within such a block that may take its time; afterwards the time starts anew."""
    limit = _running
    if limit is not None:
        limit.stop()
    yield
    if limit is not None:
        limit.start()
