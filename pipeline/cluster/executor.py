"""``RayExecutor``: renders jobs on a Ray cluster."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any

import ray

from ...configs import Settings
from ...stages.records import Segment, SourceFace
from ...stages.swap.networks import Networks
from ...stages.swap.pack import Pack
from ..device import compute_device
from ..executor import Loaded, Looks
from ..failure import Policy
from ..ledger import Ledger
from ..progress import Listener, Stopwatch
from ..request import RayOptions
from ..work import Rendering, View, Work
from .connect import Size, connected
from .foreman import Busy, JobState
from .looking import looks_of
from .pool import Pool, open_pool
from .worker import Warm

_SWAP = "swap-"  # the names of workers that swap begin so
_SILENCE = 60.0  # seconds without a word of any worker, after which the user is told


class RayExecutor:
    """Connects when it first must, and gives one pool of workers to all its jobs."""

    def __init__(self, options: RayOptions, policy: Policy) -> None:
        self.options, self.policy = options, policy
        self._stack = ExitStack()
        self._guard = threading.Lock()
        self._size: Size | None = None
        self._pool: Pool | None = None
        self._gpu: str | None = None
        self._loaded = Loaded()

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def device(self, name: str, threads: int | None) -> tuple[str, int | None]:
        """The kind of device of the cluster's workers, and their threads if it is the CPU."""
        with self._guard:
            if self._size is None:
                cores = compute_device("cpu", threads)[1]
                self._size = self._stack.enter_context(connected(self.options, name, cores))
            if self._size.device == "cuda" and self._gpu is None:
                # Asked once: when the next job asks, the pool may have all GPUs.
                gpu = ray.remote(_gpu_name).options(num_gpus=self._size.gpus, num_cpus=0)
                self._gpu = str(ray.get(gpu.remote()))
        return compute_device("cpu", threads) if self._gpu is None else (self._gpu, None)

    def networks(self, pack: Pack, device: str, dtype: str, compiled: int = 0) -> Networks:
        """For this process: on its own GPU if it has one, whatever the workers have; it swaps nothing."""
        return self._loaded.networks(pack, "cpu" if device == "cpu" else "auto", dtype)

    def prepare(self, pack: str, digest: str, dtype: str, compiled: int = 0) -> None:
        """Start the workers, who load these networks while the driver looks at the clip."""
        self.pool(Warm(pack, digest, dtype, compiled))

    def pool(self, warm: Warm | None = None) -> Pool:
        """The workers, started when first asked for."""
        with self._guard:
            assert self._size is not None, "device() comes first"
            if self._pool is None:
                self._pool = self._stack.enter_context(open_pool(self._size, self.policy, warm))
            return self._pool

    def looks(self, view: View, pack: Pack, watch: Stopwatch) -> Looks:
        """Pieces of the clip are looked at all over the cluster."""
        return looks_of(view, watch)

    def warming(
        self, networks: Networks, settings: Settings, source: SourceFace, watch: Stopwatch
    ) -> AbstractContextManager[None]:
        """Nothing: these networks only look, and the cluster's workers are still on their way."""
        return nullcontext()

    def render(
        self,
        work: Work,
        ledger: Ledger,
        segments: Sequence[Segment],
        networks: Networks,
        listener: Listener,
        watch: Stopwatch,
    ) -> Rendering:
        """Hand the segments to the pool and tell the listener how far they are."""
        if not segments:
            return Rendering()
        pool, began = self.pool(), time.monotonic()
        for note in self._notes():
            listener.log(note)
        # A folder may come again in the life of a pool, with another plan: workers keep orders by this name.
        key = f"{work.folder} {uuid.uuid4().hex[:8]}"
        pool.add(key, work, list(segments))
        swapped = written = 0
        state = JobState(0)
        warned = False
        for state in pool.watch(key):
            if work.plan.sources and state.swapped > swapped:  # a try that failed takes its frames back
                listener.advance("swap", state.swapped - swapped)
                swapped = state.swapped
            if state.written > written:
                listener.advance("encode", state.written - written)
                written = state.written
            if state.silence > _SILENCE and not warned:
                listener.warn(f"no worker has been heard of for {state.silence:.0f} s: {pool.missing()}")
            warned = state.silence > _SILENCE
        busy = pool.forget(key)
        for failure in state.passed:
            listener.warn(f"{failure.text()}; the original is passed through")
        if (failed := state.failed) is not None:
            ledger.record_failure(failed.segment, failed.stage, failed.frame, failed.reason, failed.attempts)
            raise failed.error()
        return self._rendering(busy, time.monotonic() - began, state, watch)

    def _notes(self) -> tuple[str, ...]:
        """What the user should know of the connection, once."""
        with self._guard:
            assert self._size is not None
            notes, self._size = self._size.notes, replace(self._size, notes=())
        return notes

    def _rendering(self, busy: dict[str, Busy], took: float, state: JobState, watch: Stopwatch) -> Rendering:
        """What the workers were busy with. The swap's share counts from its first segment to its last."""
        for worker in busy.values():
            for stage, seconds in worker.seconds.items():
                watch.seconds[stage] = watch.seconds.get(stage, 0.0) + seconds
        swappers = [b for name, b in busy.items() if name.startswith(_SWAP) and b.frames]
        assert self._size is not None
        share = 0.0
        if swappers:
            span = max(b.last for b in swappers) - min(b.first for b in swappers)
            at_work = sum(b.seconds.get("mask", 0.0) + b.seconds.get("swap", 0.0) for b in swappers)
            share = at_work / max(span * self._size.workers, 1e-9)
        devices = sorted({b.device for b in swappers})
        return Rendering(took, self._size.workers, share, [f.text() for f in state.retried], devices)


def _gpu_name() -> Any:
    import torch

    return torch.cuda.get_device_name()
