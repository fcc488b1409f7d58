"""Helpers: processes of this machine that decode, detect, align, draw masks, paste and encode beside a GPU.

Threads of one process share one interpreter. Where a GPU takes a few milliseconds a frame, all that they do
between two calls of OpenCV or numpy adds up to more than one interpreter has; it then feeds neither
the GPU nor the cores. A helper has an interpreter of its own. Between it and this process travel looks,
crops, masks and matrices, never frames; it decodes a segment again when it writes it.

Bytes don't depend on whether there are helpers, nor on how many: what they run is what runs here without.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from ..errors import JobError
from ..stages.mask_shape import MaskShape
from ..stages.records import F32, U8, Segment
from ..stages.spread import width
from . import helper_tasks
from .by_file import place, reducers
from .load import Loaded
from .pieces import Found, Pieces
from .progress import Stopwatch
from .work import View, Work

Result = TypeVar("Result")
_PIECE = 48  # frames a helper looks at before it is asked again
_CROPS = 2  # whose masks a helper draws before it is asked again
_AHEAD = 4  # pieces asked for a helper: nobody takes any while torch is imported and networks are loaded
FEWEST_CORES = 4  # with fewer, helpers would only take turns with what they help
MOST, THREADS = 16, 2


def how_many() -> int:
    """Helpers for this machine: one for each core, 0 where there are too few. This process comes first
    (``helper_tasks.LATER``), and a helper often waits for it."""
    cores = width()
    return 0 if cores < FEWEST_CORES else min(MOST, cores)


@dataclass(frozen=True)
class Asked(Generic[Result]):
    """What a helper of this pool was asked to do."""

    future: Future[Result]
    pool: Any
    task: Callable[..., Result]
    values: tuple[Any, ...]


def gpu_in_sight() -> bool:
    """Whether this machine seems to have an NVIDIA GPU, told without torch, which takes seconds to import."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))


class Helpers:
    """So many processes, started when first asked for something. Safe to use from several threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._guard, self._alone = threading.Lock(), threading.Lock()
        self._pool: Any = None
        self._files = contextlib.ExitStack()
        self._folder: Path | None = None

    def __enter__(self) -> Helpers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Have them come up while there is nothing for them to do yet."""
        for _ in range(self.count):
            self._ask(os.getpid)

    def close(self) -> None:
        """End them, whatever they do."""
        with self._guard:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, kill_workers=True)
        self._files.close()
        self._folder = None

    def run(self, task: Callable[..., Result], *values: Any) -> Result:
        """``task(*values)`` by a helper.

        Raises:
            JobError: the helper died of it.
        """
        return self._answer(self._ask(task, *values))

    def _ask(self, task: Callable[..., Result], *values: Any) -> Asked[Result]:
        while True:
            with self._guard:
                if self._pool is None:
                    self._pool = self._pool_of(self.count)
                pool = self._pool
            try:
                return Asked(pool.submit(task, *values), pool, task, values)
            except BrokenExecutor:
                self._drop(pool)

    def _answer(self, asked: Asked[Result]) -> Result:
        with contextlib.suppress(BrokenExecutor):
            return asked.future.result()
        self._drop(asked.pool)
        # Which of those that were at work ended the process can't be told; by itself, it shows.
        with self._alone:
            single = self._pool_of(1)
            try:
                result: Result = single.submit(asked.task, *asked.values).result()
                return result
            except BrokenExecutor as error:
                raise JobError("a helper process died of it; was there too little memory?") from error
            finally:
                single.shutdown(wait=True, kill_workers=True)

    def _drop(self, broken: Any) -> None:
        with self._guard:
            if self._pool is broken:
                self._pool = None
        broken.shutdown(wait=False, kill_workers=True)

    def _pool_of(self, count: int) -> Any:
        from loky.process_executor import ProcessPoolExecutor

        if self._folder is None:
            folder = tempfile.TemporaryDirectory(prefix="ldvid-", dir=place())
            self._folder = Path(self._files.enter_context(folder))
        # Not one thread each (``spread.width``): few are at work when a clip begins and when it ends.
        threads = {"OMP_NUM_THREADS": str(THREADS), "OPENBLAS_NUM_THREADS": "1"}
        return ProcessPoolExecutor(
            count,
            initializer=helper_tasks.begin,
            initargs=(os.getpid(), self._folder),
            env=threads,
            job_reducers=reducers(self._folder),
        )

    # looks: a ``pieces.Crew``

    def looks(self, view: View, watch: Stopwatch) -> Pieces[Asked[Found]]:
        """Looks at all frames of the clip in order; their seconds go to ``watch``."""
        return Pieces(view, watch, self, _PIECE, _AHEAD * self.count)

    def ask(self, view: View, start: int, stop: int) -> Asked[Found]:
        """Have a piece of a clip looked at."""
        return self._ask(helper_tasks.look_at, view, start, stop)

    def wait(self, asked: Asked[Found]) -> Found:
        """What it shows."""
        return self._answer(asked)

    def forget(self, asked: Asked[Found]) -> None:
        """The piece is no longer wanted."""
        asked.future.cancel()

    # parts

    def draw(self, shape: MaskShape, images: U8, landmarks: F32, seen: F32) -> F32:
        """As ``MaskShape.all``, a few crops to each helper."""
        parts = [slice(i, i + _CROPS) for i in range(0, len(images), _CROPS)]
        asked = [self._ask(helper_tasks.draw, shape, images[p], landmarks[p], seen[p]) for p in parts]
        return np.concatenate([self._answer(each) for each in asked])

    @contextlib.contextmanager
    def order(self, work: Work) -> Iterator[Path]:
        """A file from which helpers read this work order, while inside."""
        with tempfile.TemporaryDirectory(prefix="ldvid-") as folder:
            path = Path(folder) / "work"
            path.write_bytes(pickle.dumps(work))
            yield path


class Far:
    """A Loader or a Writer for one segment, in a helper: ``stage`` and ``frame`` are where it failed."""

    def __init__(self, helpers: Helpers, order: Path, watch: Stopwatch, stage: str) -> None:
        self._helpers, self._order, self._watch = helpers, order, watch
        self._at = stage
        self.stage, self.frame = stage, None  # type: str, int | None

    def load(self, segment: Segment) -> Loaded:
        """As ``Loader.load``."""
        return self._run(helper_tasks.load, segment)

    def write(self, swapped: Loaded) -> Loaded:
        """As ``write.entered``."""
        self._run(helper_tasks.write, replace(swapped, frames=[], prepared=[]))
        return swapped

    def _run(self, task: Callable[..., helper_tasks.Outcome], item: Any) -> Loaded:
        self.stage, self.frame = self._at, None
        outcome = self._helpers.run(task, self._order, item)
        self._watch.add(outcome.seconds)
        if outcome.error is not None:
            self.stage, self.frame = outcome.stage, outcome.frame
            raise outcome.error
        assert outcome.result is not None
        return outcome.result

    def reset(self) -> None:
        """The helper has done so already."""
