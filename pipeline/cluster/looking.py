"""Looking at a clip by pieces, on all CPUs of the cluster."""

from __future__ import annotations

import pickle
from typing import Any, cast

import ray

from ..pieces import Found, Pieces, look_at
from ..progress import Stopwatch
from ..work import View

_PIECE = 96  # frames a task looks at: a few seconds of work, a few megabytes of faces
_AHEAD = 2  # pieces that wait, beside those being looked at


class _Cluster:
    """Tasks of the cluster."""

    def __init__(self, view: View) -> None:
        self._task: Any = ray.remote(_look_at).options(num_cpus=1, max_retries=3)
        self._order = ray.put(view)

    def ask(self, view: View, start: int, stop: int) -> Any:
        return self._task.remote(self._order, start, stop)

    def wait(self, asked: Any) -> Found:
        return cast(Found, pickle.loads(ray.get(asked)))

    def forget(self, asked: Any) -> None:
        ray.cancel(asked)


def looks_of(view: View, watch: Stopwatch) -> Pieces[Any]:
    """Looks at all frames in order; their seconds go to ``watch``."""
    cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    return Pieces(view, watch, _Cluster(view), _PIECE, cpus + _AHEAD)


def _look_at(view: View, start: int, stop: int) -> bytes:
    """One piece, pickled: arrays that Ray hands over itself can't be written to, and hold its memory for as
    long as one is kept."""
    import cv2

    cv2.setNumThreads(1)  # a task has one CPU; the numbers don't depend on it
    return pickle.dumps(look_at(view, start, stop), protocol=4)
