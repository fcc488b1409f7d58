"""Many at once, or one alone: for what a whole process has one of."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Quiet:
    """Threads that use something, and one that wants nobody else to.

    A GPU while its work is recorded: some of what others call then (a solver's library, say) fails. Networks
    while one of them is compiled: a compiler takes over what *any* call of a module does. A thread must not
    ask for one inside the other, nor twice.
    """

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._users, self._wanted = 0, 0

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Inside, nobody is alone."""
        with self._change:
            self._change.wait_for(lambda: not self._wanted)
            self._users += 1
        try:
            yield
        finally:
            with self._change:
                self._users -= 1
                self._change.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, nobody else uses it; they wait. One at a time: who asks sees to that."""
        with self._change:
            self._wanted += 1  # no more may begin
            self._change.wait_for(lambda: not self._users)
        try:
            yield
        finally:
            with self._change:
                self._wanted -= 1
                self._change.notify_all()
