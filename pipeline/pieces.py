"""Looking at a clip by pieces, in other processes, handed on in the clip's order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from .look import Look, look
from .progress import Stopwatch
from .work import View

Asked = TypeVar("Asked")


@dataclass(frozen=True)
class Found:
    """What a piece showed: the looks as far as they came, seconds by stage, and what ended them early."""

    looks: list[Look]
    seconds: dict[str, float]
    error: Exception | None = None


class Crew(Protocol[Asked]):
    """Whoever looks: is asked for a piece, waited for, or told that it is no longer wanted."""

    def ask(self, view: View, start: int, stop: int) -> Asked: ...
    def wait(self, asked: Asked) -> Found: ...
    def forget(self, asked: Asked) -> None: ...


class Pieces(Iterator[Look], Generic[Asked]):
    """Looks at all frames of a clip in order. The first pieces are asked for at once; close it when no
    more are wanted.

    Raises:
        LdvidError: whatever a piece raised.
    """

    def __init__(self, view: View, watch: Stopwatch, crew: Crew[Asked], size: int, at_once: int) -> None:
        """Pieces of ``size`` frames, ``at_once`` of them on their way; seconds go to ``watch``."""
        self._crew, self._size = crew, size
        self._view, self._watch = view, watch
        self._starts = deque(range(0, view.info.frames, size))
        self._at_once = at_once
        self._asked: deque[Asked] = deque()
        self._ask()
        self._looks = self._all()

    def _ask(self) -> None:
        while self._starts and len(self._asked) < self._at_once:
            start = self._starts.popleft()
            stop = min(start + self._size, self._view.info.frames)
            self._asked.append(self._crew.ask(self._view, start, stop))

    def _all(self) -> Iterator[Look]:
        while self._asked:
            found = self._crew.wait(self._asked[0])
            self._asked.popleft()
            self._ask()
            self._watch.add(found.seconds)
            yield from found.looks
            if found.error is not None:
                raise found.error

    def __next__(self) -> Look:
        return next(self._looks)

    def close(self) -> None:
        """No more are wanted."""
        self._starts.clear()
        while self._asked:
            self._crew.forget(self._asked.popleft())


def look_at(view: View, start: int, stop: int) -> Found:
    """One piece, in this process."""
    from .pack_at_hand import pack_at_hand
    from .storage import localise

    watch, looks = Stopwatch(), list[Look]()
    try:
        info = view.info if view.url is None else replace(view.info, path=localise(view.url))
        pack = pack_at_hand(view.pack)
        looks.extend(look(info, view.settings, pack, start, stop, watch, tolerant=view.tolerant))
        return Found(looks, watch.seconds)
    except Exception as error:  # as a value, so that it arrives as it is
        return Found(looks, watch.seconds, error)
