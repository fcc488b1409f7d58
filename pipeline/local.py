"""The local executor: segments in order on this machine, the stages' work overlapped by threads.

While the networks work on one segment, one thread decodes and aligns the next and another pastes and
encodes the last; at most three segments are in memory. Results do not depend on timing: each
segment is a pure function of the plan, and order is kept.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ..stages.records import Segment

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Worked = TypeVar("Worked")


def run_segments(
    segments: Sequence[Segment],
    load: Callable[[Segment], Loaded],
    work: Callable[[Loaded], Worked],
    write: Callable[[Worked], None],
) -> None:
    """``write(work(load(s)))`` for every segment; ``work`` runs in the calling thread.

    The first exception of any of the three ends the run and is raised here; what was being written
    is finished first, so that on Ctrl-C no finished work is lost.
    """
    if not segments:
        return
    loader = ThreadPoolExecutor(1, "ldvid-load")
    writer = ThreadPoolExecutor(1, "ldvid-write")
    writing: Future[None] | None = None
    try:
        ahead = loader.submit(load, segments[0])
        for following in [*segments[1:], None]:
            loaded = ahead.result()
            if following is not None:
                ahead = loader.submit(load, following)
            worked = work(loaded)
            del loaded
            if writing is not None:
                writing.result()
            writing = writer.submit(write, worked)
            del worked
        if writing is not None:
            writing.result()
    finally:
        loader.shutdown(wait=True, cancel_futures=True)
        writer.shutdown(wait=True)


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
