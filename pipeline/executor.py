"""Who does the work: this process (``LocalExecutor``), or a Ray cluster (``cluster.executor``).

Both give the same bytes: a segment is a pure function of the work order, and what the CPU's sums depend
on, the number of threads, is part of the job.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

from ..configs import Settings
from ..stages.records import Segment, SourceFace
from ..stages.spread import width
from ..stages.swap.networks import Networks
from ..stages.swap.pack import Pack
from .ahead import warm_up
from .device import compute_device
from .failure import Policy
from .helpers import Far, Helpers, how_many
from .ledger import Ledger
from .local import Renderer, prefetch, run_segments
from .look import Look, look
from .progress import Listener, Stopwatch
from .work import Rendering, View, Work

MOST_WRITERS, CORES_A_WRITER = 4, 4  # segments that threads paste and encode at once beside a GPU


class Looks(Protocol):
    """An iterator of looks; close it when no more are wanted."""

    def __iter__(self) -> Iterator[Look]: ...
    def __next__(self) -> Look: ...
    def close(self) -> None: ...


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

    def looks(self, view: View, pack: Pack, watch: Stopwatch) -> Looks:
        """Looks at all frames of a clip, in order; other processes begin at once."""
        ...

    def warming(
        self, networks: Networks, settings: Settings, source: SourceFace, watch: Stopwatch
    ) -> AbstractContextManager[None]:
        """Have ``networks`` ready for the first batch, while inside others look at the clip."""
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
    """This machine: threads of this process, and beside a GPU processes that help (``helpers``)."""

    def __init__(self, policy: Policy, helpers: Helpers | None = None) -> None:
        """``helpers`` None: if the swap runs on a GPU, as many as there are cores for."""
        self.policy = policy
        self._loaded = Loaded()
        self._helpers = helpers

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        if self._helpers is not None:
            self._helpers.close()

    def device(self, name: str, threads: int | None) -> tuple[str, int | None]:
        """As ``compute_device``."""
        device = compute_device(name, threads)
        if device[0] != "cpu" and self._helpers is None and (count := how_many()):
            self._helpers = Helpers(count)
        return device

    def prepare(self, pack: str, digest: str, dtype: str, compiled: int = 0) -> None:
        """Helpers come up; this process loads the networks for the analysis already."""
        if self._helpers is not None:
            self._helpers.start()

    def networks(self, pack: Pack, device: str, dtype: str, compiled: int = 0) -> Networks:
        """As ``Networks.load``, once."""
        return self._loaded.networks(pack, device, dtype, compiled)

    def looks(self, view: View, pack: Pack, watch: Stopwatch) -> Looks:
        """Helpers look, or a thread of this process does."""
        if self._helpers is not None:
            return self._helpers.looks(view, watch)
        end = view.info.frames
        return prefetch(look(view.info, view.settings, pack, 0, end, watch, tolerant=view.tolerant), 4)

    @contextlib.contextmanager
    def warming(
        self, networks: Networks, settings: Settings, source: SourceFace, watch: Stopwatch
    ) -> Iterator[None]:
        """As ``ahead.warm_up``, in a thread of its own, which has ended in the end."""
        if self._helpers is None:  # who looks is a thread beside this one, which has enough to do
            yield
            return

        def timed() -> None:
            with watch.time("warm up"):
                warm_up(networks, settings, source)

        with ThreadPoolExecutor(1, "ldvid-warm") as thread:
            warm = thread.submit(timed)
            yield
            warm.result()

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
        with contextlib.ExitStack() as stack:
            far, draw, loaders, writers = None, None, 1, 1
            if self._helpers is not None:
                far = partial(Far, self._helpers, stack.enter_context(self._helpers.order(work)), watch)
                draw = self._helpers.draw
                # Writing is most of the work, and takes seconds a segment; masks are waited for.
                loaders = max(1, self._helpers.count // 8)
                writers = max(1, self._helpers.count - loaders - max(1, self._helpers.count // 4))
            elif networks.device.type == "cuda":  # which swaps faster than one thread encodes
                writers = min(MOST_WRITERS, max(1, width() // CORES_A_WRITER))
            renderer = Renderer(work, ledger, networks, listener, watch, self.policy, far, draw)
            parts = renderer.load, renderer.swap, renderer.write
            ahead = (renderer.prepare, renderer.start) if networks.device.type == "cuda" else ()
            run_segments(segments, *parts, ahead, writers, loaders)
        took = time.perf_counter() - began
        share = (_swapping(watch) - before) / max(took, 1e-9)
        return Rendering(took, 1, share, [f.text() for f in renderer.retried])


def _swapping(watch: Stopwatch) -> float:
    return watch.seconds.get("mask", 0.0) + watch.seconds.get("swap", 0.0)
