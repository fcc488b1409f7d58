"""Who does the work: this process (``LocalExecutor``), or a Ray cluster (``cluster.executor``).

Both give the same bytes: a segment is a pure function of the work order, and what the CPU's sums depend
on, the number of threads, is part of the job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from typing import Protocol

from ..stages.records import Segment
from ..stages.spread import width
from ..stages.swap.networks import Networks
from ..stages.swap.pack import Pack
from .device import compute_device
from .failure import Policy
from .ledger import Ledger
from .local import Renderer, prefetch, run_segments
from .look import Look, look
from .progress import Listener, Stopwatch
from .work import Rendering, View, Work

MOST_WRITERS, CORES_A_WRITER = 4, 4  # segments that are pasted and encoded at once beside a GPU


class Executor(Protocol):
    """What ``swap_clip`` needs done for it. Safe to use from several threads."""

    policy: Policy

    def device(self, name: str, threads: int | None) -> tuple[str, int | None]:
        """What the swap computes on (``compute_device``), for ``auto``, ``cpu`` or ``cuda``."""
        ...

    def prepare(self, pack: str, digest: str, dtype: str, compiled: int = 0) -> None:
        """Segments of jobs with this pack (name or folder), precision and compilation (as ``Networks.load``)
        will come: workers may be started. After ``device``; returns at once."""
        ...

    def networks(self, pack: Pack, device: str, dtype: str, compiled: int = 0) -> Networks:
        """The networks that this process looks at the source and the clip with."""
        ...

    def looks(self, view: View, pack: Pack, watch: Stopwatch) -> Generator[Look, None, None]:
        """Looks at all frames of a clip, in order; close it when no more are wanted."""
        ...

    def render(
        self,
        work: Work,
        ledger: Ledger,
        segments: Sequence[Segment],
        networks: Networks,
        listener: Listener,
        watch: Stopwatch,
    ) -> Rendering:
        """Have all these segments in the ledger; the LdvidError that kept one out else."""
        ...


class Loaded:
    """Networks by pack, device, precision and compilation, loaded once a process."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str, str, int], Networks] = {}
        self._guard = threading.Lock()

    def networks(self, pack: Pack, device: str, dtype: str, compiled: int = 0) -> Networks:
        """As ``Networks.load``."""
        key = (pack.digest(), device, dtype, compiled)
        with self._guard:
            if key not in self._held:
                self._held[key] = Networks.load(pack, device, dtype, compiled)
            return self._held[key]


class LocalExecutor:
    """Threads of this process: one loads, one swaps, one writes."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._loaded = Loaded()

    def device(self, name: str, threads: int | None) -> tuple[str, int | None]:
        """As ``compute_device``."""
        return compute_device(name, threads)

    def prepare(self, pack: str, digest: str, dtype: str, compiled: int = 0) -> None:
        """Nothing: this process loads the networks for the analysis already."""

    def networks(self, pack: Pack, device: str, dtype: str, compiled: int = 0) -> Networks:
        """As ``Networks.load``, once."""
        return self._loaded.networks(pack, device, dtype, compiled)

    def looks(self, view: View, pack: Pack, watch: Stopwatch) -> Generator[Look, None, None]:
        """A thread looks ahead."""
        end = view.info.frames
        return prefetch(look(view.info, view.settings, pack, 0, end, watch, tolerant=view.tolerant), 4)

    def render(
        self,
        work: Work,
        ledger: Ledger,
        segments: Sequence[Segment],
        networks: Networks,
        listener: Listener,
        watch: Stopwatch,
    ) -> Rendering:
        """One segment after another."""
        if not segments:
            return Rendering()
        before = _swapping(watch)
        began = time.perf_counter()
        renderer = Renderer(work, ledger, networks, listener, watch, self.policy)
        if networks.device.type == "cuda":
            # A GPU swaps faster than one thread encodes.
            writers = min(MOST_WRITERS, max(1, width() // CORES_A_WRITER))
            run_segments(segments, renderer.load, renderer.swap, renderer.write, renderer.prepare, writers)
        else:
            run_segments(segments, renderer.load, renderer.swap, renderer.write)
        took = time.perf_counter() - began
        share = (_swapping(watch) - before) / max(took, 1e-9)
        return Rendering(took, 1, share, [f.text() for f in renderer.retried])


def _swapping(watch: Stopwatch) -> float:
    return watch.seconds.get("mask", 0.0) + watch.seconds.get("swap", 0.0)
