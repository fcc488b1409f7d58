"""Looking at a clip by pieces, on all CPUs of the cluster, handed on in the clip's order."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import ray

from ..look import Look, look
from ..progress import Stopwatch
from ..work import View

_PIECE = 96  # frames a task looks at: a few seconds of work, a few megabytes of faces
_AHEAD = 2  # pieces that wait, beside those being looked at


def looks_of(view: View, watch: Stopwatch) -> Generator[Look, None, None]:
    """Looks at all frames in order; their seconds go to ``watch``.

    Raises:
        LdvidError: whatever a piece raised.
    """
    cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    task: Any = ray.remote(_look_at).options(num_cpus=1, max_retries=3)
    order = ray.put(view)
    starts = deque(range(0, view.info.frames, _PIECE))
    out: deque[Any] = deque()
    try:
        while starts or out:
            while starts and len(out) < cpus + _AHEAD:
                start = starts.popleft()
                out.append(task.remote(order, start, min(start + _PIECE, view.info.frames)))
            looks, seconds, error = pickle.loads(ray.get(out.popleft()))
            for stage, took in seconds.items():
                watch.seconds[stage] = watch.seconds.get(stage, 0.0) + took
            yield from looks
            if error is not None:
                raise error
    finally:
        for reference in out:
            ray.cancel(reference)


def _look_at(view: View, start: int, stop: int) -> bytes:
    """One piece, pickled: the looks as far as they came, seconds by stage, and what ended them early.

    Arrays that Ray hands over itself can't be written to, and hold its memory for as long as one is kept.
    """
    import cv2

    from ..pack_at_hand import pack_at_hand
    from ..storage import localise

    cv2.setNumThreads(1)  # a task has one CPU; the numbers don't depend on it
    watch, looks = Stopwatch(), list[Look]()
    try:
        info = view.info if view.url is None else replace(view.info, path=localise(view.url))
        pack = pack_at_hand(view.pack)
        looks.extend(look(info, view.settings, pack, start, stop, watch, tolerant=view.tolerant))
        found: tuple[Any, ...] = (looks, watch.seconds, None)
    except Exception as error:  # as a value, so that it arrives as it is
        found = (looks, watch.seconds, error)
    return pickle.dumps(found, protocol=4)
