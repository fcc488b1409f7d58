"""The local executor: segments in order on this machine, the stages' work overlapped.

While the networks work on one segment, one thread decodes and aligns the next and another pastes and
encodes the last; at most three segments are in memory. With a GPU, one more makes masks and another the
starts of those that come next, and several segments are loaded and written at once, by ``helpers`` where
there are any. Results do not depend on timing: each segment is a pure function of the plan, and order is
kept.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from ..stages.mask import Draw
from ..stages.records import Segment
from ..stages.swap.networks import Networks
from .failure import FATAL, Policy, SegmentFailure
from .helpers import Far
from .ledger import Ledger
from .load import Loaded, Loader
from .progress import Listener, Stopwatch
from .render import Swapper
from .work import Work
from .write import Writer, entered

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Worked = TypeVar("Worked")


class Renderer:
    """The three parts of rendering on this machine, each tried a bounded number of times.

    A segment that fails for good ends the run, or goes through as it was (``Policy.on_error``).
    """

    def __init__(
        self,
        work: Work,
        ledger: Ledger,
        networks: Networks,
        listener: Listener,
        watch: Stopwatch,
        policy: Policy,
        far: Callable[[str], Far] | None = None,
        draw: Draw | None = None,
    ) -> None:
        """``far`` gives what loads ("load") and writes ("write") a segment in another process, ``draw`` has
        masks drawn there."""
        self._work, self._ledger, self._listener, self._policy = work, ledger, listener, policy
        self.retried: list[SegmentFailure] = []
        self._far = far
        self._loader = Loader(work, watch, keep=True)
        self._watch = watch
        self._writers: queue.SimpleQueue[Writer] = queue.SimpleQueue()  # those that write nothing just now
        self._swapper = (
            Swapper(work, networks, watch, lambda n: listener.advance("swap", n), draw)
            if work.sources
            else None
        )

    def load(self, segment: Segment) -> Loaded:
        """Decode and align."""
        loader = self._loader if self._far is None else self._far("load")
        return self._tried(loader, loader.load, segment, Loaded(segment, []))

    def prepare(self, loaded: Loaded) -> Loaded:
        """What can be done ahead of a swap on a GPU; on a CPU nobody asks, as it would only take turns."""
        return loaded if self._swapper is None else self._swapper.prepare(loaded)

    def start(self, prepared: Loaded) -> Loaded:
        """More of the same, once ``prepare`` is through."""
        return prepared if self._swapper is None else self._swapper.start(prepared)

    def swap(self, loaded: Loaded) -> Loaded:
        """Mask and swap."""
        if not loaded.crops or self._swapper is None:
            return loaded
        return self._tried(self._swapper, self._swapper.swap, loaded, replace(loaded, crops=[]))

    def write(self, swapped: Loaded) -> None:
        """Paste, encode, and enter the segment into the ledger."""
        original = replace(swapped, crops=[], frames=[])
        with self._writing() as (writer, written):
            if swapped.passed is None:
                swapped = self._tried(writer, written, swapped, original)
            if swapped.passed is not None:
                self._tried(writer, written, swapped, None)
        self._listener.advance("encode", swapped.segment.stop - swapped.segment.start)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tuple[Writer | Far, Callable[[Loaded], Loaded]]]:
        """Somebody who writes nothing else just now, and what writes."""
        if self._far is not None:
            far = self._far("write")
            yield far, far.write
            return
        try:
            writer = self._writers.get_nowait()
        except queue.Empty:
            writer = Writer(self._work, self._watch, self._ledger.segments_folder)

        def written(swapped: Loaded) -> Loaded:
            entered(writer, self._ledger, swapped)
            return swapped

        try:
            yield writer, written
        finally:
            self._writers.put(writer)

    def _tried(
        self,
        part: Loader | Swapper | Writer | Far,
        call: Callable[[Item], Loaded],
        item: Item,
        original: Loaded | None,
    ) -> Loaded:
        """``call(item)``, or ``original`` to pass through where that is asked for and possible."""
        if isinstance(item, Loaded) and item.passed is not None and original is not None:
            return item
        segment = item.segment if isinstance(item, Loaded) else item
        assert isinstance(segment, Segment)
        for attempt in range(1, self._policy.retries + 2):
            try:
                return call(item)
            except FATAL:
                raise
            except Exception as error:
                failure = SegmentFailure.of(error, segment, part, self._work.plan.clip.first_frame, attempt)
                cause = error
                part.reset()
                if attempt <= self._policy.retries:
                    self.retried.append(failure)
        self._ledger.record_failure(segment, failure.stage, failure.frame, failure.reason, failure.attempts)
        if original is None or self._policy.on_error == "fail":
            raise failure.error() from cause
        self._listener.warn(f"{failure.text()}; the original is passed through")
        return replace(original, passed=failure.text())


def run_segments(
    segments: Sequence[Segment],
    load: Callable[[Segment], Ready],
    work: Callable[[Ready], Worked],
    write: Callable[[Worked], None],
    ahead: Sequence[Callable[[Ready], Ready]] = (),
    writers: int = 1,
    loaders: int = 1,
) -> None:
    """``write(work(…(load(s))))`` for every segment; ``work`` runs in the calling thread, each step ``ahead``
    of it in another, segment after segment in their order, ``load`` and ``write`` in as many as ``loaders``
    and ``writers``.

    The first exception of any of the three ends the run and is raised here; what was being written
    is finished first, so that on Ctrl-C no finished work is lost.
    """
    if not segments:
        return
    loader = ThreadPoolExecutor(loaders, "ldvid-load")
    before = [(ThreadPoolExecutor(1, f"ldvid-ahead-{i}"), step) for i, step in enumerate(ahead)]
    writer = ThreadPoolExecutor(writers, "ldvid-write")
    writing: deque[Future[None]] = deque()
    try:
        # How many segments are ahead of the one at work.
        steps = loaders + len(ahead)
        coming: deque[Future[Ready]] = deque()
        waiting = iter(segments)

        def bring() -> None:
            segment = next(waiting, None)
            if segment is None:
                return
            ready = loader.submit(load, segment)
            for thread, step in before:
                ready = thread.submit(_after, step, ready)
            coming.append(ready)

        for _ in range(steps):
            bring()
        while coming:
            loaded = coming.popleft().result()
            bring()
            worked = work(loaded)
            del loaded
            while len(writing) >= writers or (writing and writing[0].done()):
                writing.popleft().result()
            writing.append(writer.submit(write, worked))
            del worked
        while writing:
            writing.popleft().result()
    finally:
        loader.shutdown(wait=True, cancel_futures=True)
        for thread, _ in before:
            thread.shutdown(wait=True, cancel_futures=True)
        writer.shutdown(wait=True)


def _after(step: Callable[[Ready], Ready], ready: Future[Ready]) -> Ready:
    return step(ready.result())


_END = object()


def prefetch(items: Iterable[Item], size: int) -> Generator[Item, None, None]:
    """The same items, up to ``size`` of them made ahead by a thread.

    Closing the generator stops the thread; an exception of ``items`` is raised at its place.
    """
    ready: queue.Queue[object] = queue.Queue(size)
    stop = threading.Event()
    failure: list[BaseException] = []

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
        except BaseException as error:
            failure.append(error)
        finally:
            put(_END)

    thread = threading.Thread(target=fill, name="ldvid-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            yield item  # type: ignore[misc]
        if failure:
            raise failure[0]
    finally:
        stop.set()
        thread.join()
