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

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...errors import JobError
from ...stages.records import Segment
from ..failure import Policy
from ..work import Work
from .connect import Size
from .feed import Feed
from .foreman import Busy, Foreman, JobState
from .worker import Load, Station, Swap, Write

_POLL = 0.2  # seconds between two looks at the foreman
_APART = 2**20  # bytes: steps that ask for different things are not run in one process
_PATIENCE = 10.0  # seconds that an execution gets to break off


class Pool:
    """Workers that render segments of jobs; use ``open_pool``."""

    def __init__(self, size: Size, policy: Policy) -> None:
        self.size = size
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        foreman = ray.remote(Foreman).options(
            num_cpus=0, scheduling_strategy=here, max_concurrency=10_000, get_if_exists=False
        )
        # Two segments a worker (one at work, one at hand), one being loaded and one being written.
        self._foreman: Any = foreman.remote(4 * size.workers + 2, policy)
        self._broken: BaseException | None = None
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
                    batch_size=None,
                    batch_format="pyarrow",
                    num_cpus=1,
                    memory=_APART,
                )
                .map_batches(
                    Swap,
                    fn_constructor_args=(station, size.device),
                    compute=ActorPoolStrategy(size=size.workers, max_tasks_in_flight_per_actor=2),
                    batch_size=None,
                    batch_format="pyarrow",
                    num_cpus=size.cpus,
                    num_gpus=size.gpus,
                )
                .map_batches(Write(station), batch_size=None, batch_format="pyarrow", num_cpus=1)
            )

    def _drive(self) -> None:
        try:
            for _ in self._dataset.iter_internal_ref_bundles():
                pass
        except BaseException as error:
            self._broken = error

    def add(self, key: str, work: Work, segments: list[Segment]) -> None:
        """Have these segments of a job rendered; ``key`` is its name from here on."""
        reference = ray.put(work)
        ray.get(self._foreman.add.remote(key, [reference], segments, work.plan.clip.first_frame))

    def states(self) -> dict[str, JobState]:
        """How far every job is.

        Raises:
            JobError: the execution itself broke down.
        """
        if self._broken is not None:
            text = " ".join(str(self._broken).split())[:500]
            raise JobError(f"Ray gave up: {type(self._broken).__name__}: {text}") from self._broken
        states: dict[str, JobState] = ray.get(self._foreman.states.remote())
        return states

    def watch(self, key: str) -> Iterator[JobState]:
        """A job's state again and again until it is over, that one included."""
        while True:
            state = self.states()[key]
            yield state
            if state.over:
                return
            time.sleep(_POLL)

    def busy(self) -> dict[str, Busy]:
        """Seconds by worker."""
        busy: dict[str, Busy] = ray.get(self._foreman.busy.remote())
        return busy

    def close(self) -> None:
        """Let what is out end, then the execution."""
        ray.get(self._foreman.close.remote())
        self._thread.join()
        ray.kill(self._foreman)

    def stop(self) -> None:
        """End it without waiting for what is out: without a foreman the feed breaks off, and with it all."""
        ray.kill(self._foreman)
        self._thread.join(_PATIENCE)


@contextmanager
def open_pool(size: Size, policy: Policy) -> Iterator[Pool]:
    """A pool; whatever goes wrong, nothing of it stays on the cluster."""
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    pool = Pool(size, policy)
    try:
        yield pool
    except BaseException:
        pool.stop()
        raise
    pool.close()
