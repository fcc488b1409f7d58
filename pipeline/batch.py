"""``ldvid batch``: many clips as one job, on one executor.

On a Ray cluster several clips are open at once. Each is checked, analysed and put together by a thread of its
own here; their segments take turns on the one pool of workers, so that a short clip is not behind
a long one. In this process there is one clip after another, and the networks are loaded once.

What a batch has done is what is there: an output with a record that says it was made of the same clip,
source, settings and pack is done, a job folder holds the finished segments of one that isn't.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Interrupted, JobError, OutputError
from .batch_look import looking, one_line
from .batch_places import JOBS, RECORD
from .batch_progress import BatchProgress, ClipListener
from .batch_report import Record, Result, counted
from .batch_request import BatchRequest, swap_requests
from .device import cpu_threads
from .executor import Executor, LocalExecutor
from .files import remove, size_of
from .job_report import made_report
from .lock import acquire, release
from .request import SwapRequest
from .swap import swap_clip
from .work import compiled_for

if TYPE_CHECKING:
    from .cluster.executor import RayExecutor

_PATIENCE = 10.0  # seconds that open clips get to break off


def run_batch(request: BatchRequest, progress: BatchProgress | None = None) -> list[Result]:
    """Swap all clips; what became of each, in the order of the list. A clip that fails doesn't stop others.

    Raises:
        SettingsError: the list asks for what can't be, outputs would be in each other's way, or no cluster.
        InputError: the source of all clips can't be read.
        OutputError: the folder can't be written.
        OutputExistsError: something else has the name of ``batch.json``.
        PackError: no clip's pack can be used.
        JobError: another batch is at work in the folder.
        Interrupted: Ctrl-C.
    """
    progress = progress if progress is not None else BatchProgress(None)
    try:
        swaps = swap_requests(request)
        with _folder(request.output):
            return _Batch(request, swaps, progress).run()
    finally:
        progress.close()


@contextlib.contextmanager
def _folder(output: Path) -> Iterator[None]:
    """The folder of the outputs and that of the jobs, held against other batches."""
    jobs = output / JOBS
    try:
        jobs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"-o {output}: the folder can't be made: {error.strerror or error}") from error
    try:
        lock = acquire(jobs)
    except JobError as error:
        raise JobError(
            f"-o {output}: another batch is at work in it; wait for it, or choose another folder"
        ) from error
    try:
        yield
    finally:
        if [p.name for p in jobs.iterdir()] == ["lock"]:
            (jobs / "lock").unlink()
        release(lock)
        with contextlib.suppress(OSError):
            jobs.rmdir()


class _Batch:
    """One call of ``run_batch``."""

    def __init__(self, request: BatchRequest, swaps: list[SwapRequest], progress: BatchProgress) -> None:
        self.request, self.swaps, self.progress = request, swaps, progress
        self.record = Record(request.output / RECORD)
        self.results = [Result(str(s.clip), str(s.output)) for s in swaps]
        self.stop = threading.Event()
        self._warned = False

    def run(self) -> list[Result]:
        """Look at all, then work on what is left, small clips first."""
        self.record.write(self.results, last=True)
        try:
            with looking(self.request, self.swaps, self.results) as looked:
                self.results = list(looked)
            left = [i for i, result in enumerate(self.results) if result.state == "waiting"]
            left.sort(key=self._size)
            self.progress.start(len(self.results), len(self.results) - len(left))
            for result in self.results:
                if result.state == "failed":
                    self.progress.log(f"{result.clip}: failed: {result.reason}")
            if left:
                self._work(left)
        except KeyboardInterrupt as error:
            raise self._interrupted() from error
        except Interrupted as error:
            raise self._interrupted() from error
        finally:
            self._write(last=True)
        return self.results

    def _interrupted(self) -> Interrupted:
        self.results = [replace(r, state="waiting") if r.state == "running" else r for r in self.results]
        done = sum(r.state in ("done", "done before") for r in self.results)
        return Interrupted(
            f"stopped; {done} of {len(self.results)} clips are done ({counted(self.results)}); "
            "run the same command again to go on"
        )

    def _write(self, *, last: bool = False) -> None:
        try:
            self.record.write(self.results, last=last)
        except OutputError as error:  # the clips matter more; a full disk will show itself there
            if not self._warned:
                self.progress.log(f"warning: {error}")
            self._warned = True

    def _size(self, index: int) -> tuple[int, float, int]:
        swap = self.swaps[index]
        span = float("inf") if swap.end is None else swap.end - (swap.start or 0)
        try:
            return size_of(swap.clip), span, index
        except OSError:
            return 0, span, index

    # the work

    def _work(self, indices: list[int]) -> None:
        request = self.request
        with contextlib.ExitStack() as stack:
            executor: Executor
            if request.ray is None:
                executor = stack.enter_context(LocalExecutor(request.policy))
            else:
                from .cluster.executor import RayExecutor  # Ray is imported for this alone

                executor = ray = stack.enter_context(RayExecutor(request.ray, request.policy))
            # Once for all, as each clip's run sets the number for the whole process and puts it back.
            device, threads = executor.device(request.device, request.threads)
            threads = threads or request.threads
            stack.enter_context(cpu_threads(threads))
            self.swaps = [replace(swap, threads=threads) for swap in self.swaps]
            if request.ray is None:
                for index in indices:
                    self._began(index)
                    self._ended(index, self._swap(index, executor))
            else:
                self._together(indices, ray, device)

    def _together(self, indices: list[int], executor: RayExecutor, device: str) -> None:
        """Several at once, each in a thread of its own; this one keeps the books."""
        from ..stages.swap.networks import resolve_dtype
        from ..stages.swap.pack import open_pack

        ended: queue.SimpleQueue[tuple[int, Result]] = queue.SimpleQueue()
        waiting = deque(indices)

        def drive() -> None:
            while not self.stop.is_set():
                try:
                    index = waiting.popleft()
                except IndexError:
                    return
                self._began(index)
                with contextlib.suppress(Interrupted):
                    ended.put((index, self._swap(index, executor)))

        first = self.swaps[indices[0]].settings
        dtype = resolve_dtype(first.dtype, device)
        executor.prepare(first.pack, open_pack(first.pack).digest(), dtype, compiled_for(first))
        at_once = self.request.at_once or executor.pool().size.workers + 2
        drivers = [
            threading.Thread(target=drive, name=f"ldvid-clip-{n}", daemon=True)
            for n in range(min(at_once, len(indices)))
        ]
        for driver in drivers:
            driver.start()
        try:
            for _ in indices:
                self._ended(*ended.get())
        finally:
            self.stop.set()
            until = time.monotonic() + _PATIENCE
            for driver in drivers:
                driver.join(max(0.0, until - time.monotonic()))
            while not ended.empty():
                self._ended(*ended.get())

    def _swap(self, index: int, executor: Executor) -> Result:
        """One clip; Interrupted is all that it raises."""
        swap, result = self.swaps[index], self.results[index]
        assert swap.job is not None
        began = time.monotonic()
        try:
            summary = swap_clip(swap, ClipListener(self.progress, str(swap.clip), self.stop), executor)
            if not self.request.keep_jobs:
                remove(swap.job)
            if self.request.report:
                listener = ClipListener(self.progress, str(swap.clip), self.stop)
                made_report(swap, summary, listener, asked=None, alone=False)
            return result.done(summary, time.monotonic() - began)
        except (Interrupted, KeyboardInterrupt):
            raise
        except BaseException as error:
            if self.stop.is_set():  # what it ran on was taken away under it
                raise Interrupted("stopped") from error
            if self.request.debug:
                self.progress.log("".join(traceback.format_exception(error)))
            return result.failed(one_line(error), time.monotonic() - began)

    def _began(self, index: int) -> None:
        self.results[index] = replace(self.results[index], state="running")

    def _ended(self, index: int, result: Result) -> None:
        self.results[index] = result
        self.progress.ended(result)
        self._write()
