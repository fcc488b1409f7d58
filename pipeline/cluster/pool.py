"""The driver's side: one streaming execution, which any number of jobs share.

::

    feed ──► load (tasks) ──► swap (actors, a fixed number) ──► write (tasks) ──► ledger
      ▲                                                            │
      └──────────── foreman: tickets out ≤ window ◄────────────────┘

Ray Data keeps no order, retries the death of a worker but not an exception, and would take any number of
segments in at once. So segments are named, exceptions are caught and counted by the foreman, and
no more tickets are out than ``window``: that bounds memory, whatever the clip's length.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...errors import JobError
from ...stages.records import Segment
from ..failure import Policy
from ..work import Work
from .connect import Size
from .feed import Feed
from .foreman import Busy, Foreman, JobState
from .metrics import RayMetrics, job_name
from .worker import Load, Station, Swap, Warm, Write

_POLL = 0.2  # seconds between two looks at the foreman
_APART = 2**20  # bytes: steps that ask for different things are not run in one process
_PATIENCE = 10.0  # seconds that an execution gets to break off


class Pool:
    """Workers that render segments of jobs; use ``open_pool``."""

    def __init__(self, size: Size, policy: Policy, warm: Warm | None = None) -> None:
        self.size, self._warm = size, warm
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        foreman = ray.remote(Foreman).options(
            num_cpus=0, scheduling_strategy=here, max_concurrency=10_000, get_if_exists=False
        )
        # Two segments a worker (one at work, one at hand), one being loaded and one being written.
        self._foreman: Any = foreman.remote(4 * size.workers + 2, policy, RayMetrics(size.workers))
        self._broken: BaseException | None = None
        self._ended = threading.Event()
        self._dataset = self._plan(Station(self._foreman, policy), here)
        self._thread = threading.Thread(target=self._drive, name="ldvid-ray", daemon=True)
        self._thread.start()

    def _plan(self, station: Station, here: Any) -> Any:
        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # a row a block: one segment a task
        context.target_min_block_size = 0
        # How much waits where is the foreman's to bound; Ray Data's own budgets, shares of the cluster's
        # CPUs and memory for each step, starve the last step when workers take nearly all CPUs.
        context.op_resource_reservation_enabled = False
        context.set_config("backpressure_policies.enabled", [])
        size = self.size
        with DataContext.current(context):
            feed = Feed(self._foreman)
            dataset = ray.data.read_datasource(
                feed, override_num_blocks=1, num_cpus=0, scheduling_strategy=here
            )
            return (
                dataset.map_batches(
                    Load(station),
                    batch_size=1,
                    batch_format="pyarrow",
                    num_cpus=1,
                    memory=_APART,
                )
                .map_batches(
                    Swap,
                    fn_constructor_args=(station, size.device, self._warm),
                    compute=ActorPoolStrategy(size=size.workers, max_tasks_in_flight_per_actor=2),
                    batch_size=1,
                    batch_format="pyarrow",
                    num_cpus=size.cpus,
                    num_gpus=size.gpus,
                )
                .map_batches(Write(station), batch_size=1, batch_format="pyarrow", num_cpus=1)
            )

    def _drive(self) -> None:
        try:
            for _ in self._dataset.iter_internal_ref_bundles():
                pass
        except BaseException as error:
            # Without its frames: they hold the workers, which go when nobody holds them any more.
            self._broken = error.with_traceback(None)
            error.__cause__ = error.__context__ = None
        finally:
            self._dataset = None
            self._ended.set()

    def add(self, key: str, work: Work, segments: list[Segment]) -> None:
        """Have these segments of a job rendered; ``key`` is its name from here on."""
        reference = ray.put(work)
        self._ask("add", key, [reference], segments, work.plan.clip.first_frame, job_name(work))

    def watch(self, key: str) -> Iterator[JobState]:
        """A job's state again and again until it is over, that one included.

        Raises:
            JobError: the execution itself broke down.
        """
        while True:
            state: JobState = self._ask("state", key)
            yield state
            if state.over:
                return
            if not self._ended.wait(_POLL):
                continue
            if not self._ask("state", key).over:
                raise self._breakdown(self._broken)

    def forget(self, key: str) -> dict[str, Busy]:
        """A job that is over: seconds by worker."""
        busy: dict[str, Busy] = self._ask("forget", key)
        return busy

    def missing(self) -> str:
        """What the cluster has free, and what the pool needs: for when nothing moves."""
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        size, kinds = self.size, {"CPU": self.size.cpus, "GPU": self.size.gpus}
        each = " and ".join(f"{n:g} {kind}" for kind, n in kinds.items() if n)
        there = " and ".join(f"{free.get(kind, 0):g} {kind}" for kind, n in kinds.items() if n)
        return f"of the cluster {there} are free, each of {size.workers} workers takes {each}"

    def _ask(self, method: str, *values: Any) -> Any:
        try:
            return ray.get(getattr(self._foreman, method).remote(*values))
        except RayError as error:
            raise self._breakdown(self._broken or error) from error

    def _breakdown(self, error: BaseException | None) -> JobError:
        """Ray's own words: the last line of its error says what it was."""
        lines = [" ".join(line.split()) for line in str(error or "").splitlines() if line.strip()]
        kind = type(error).__name__ if error is not None else "it ended early"
        return JobError(f"Ray gave up: {kind}: {lines[-1][:300] if lines else 'no reason given'}")

    def close(self) -> None:
        """Let what is out end, then the execution."""
        self._ask("close")
        self._thread.join()
        ray.kill(self._foreman)

    def stop(self) -> None:
        """End it without waiting for what is out: without a foreman the feed breaks off, and with it all."""
        ray.kill(self._foreman)
        self._thread.join(_PATIENCE)
        gc.collect()  # workers go with their last handle, and what broke off is full of cycles that hold some


@contextmanager
def open_pool(size: Size, policy: Policy, warm: Warm | None = None) -> Iterator[Pool]:
    """A pool; its workers load ``warm`` at once. Whatever goes wrong, nothing of it stays on the cluster."""
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    pool = Pool(size, policy, warm)
    try:
        yield pool
    except BaseException:
        pool.stop()
        raise
    pool.close()
