"""What a cluster's metrics say of the work: the foreman tells an observer, which tells Ray.

Ray's agent on the foreman's node shows it to Prometheus, each name with ``ray_`` before it; docs/metrics.md
lists names, tags and queries. Nothing here imports Ray before it must, so that the foreman stays free of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from ..work import Work

JOB, NODE = "ldvid_job", "worker_node"  # Prometheus has a "job" of its own, and often a "node"
STAGES = {"load": "decode", "swap": "swap", "write": "encode"}  # what the workers' stages are called there
_KINDS = {"load": "networks"}  # of a worker's seconds
_NAMES = 100  # jobs told apart; a batch of ten thousand clips would drown Prometheus
_OTHER = "other"
_Series = tuple[str, frozenset[tuple[str, str]]]  # a gauge and its tags
_REFRESH = 1.0  # seconds; a gauge that is not set again is left out of the agent's next report


class Observer:
    """Told by the foreman what happens; must return at once and never raise. This one ignores it all.

    ``job`` is a job's key; ``stage`` is ``load``, ``swap`` or ``write``.
    """

    def began(self, job: str, name: str, frames: int) -> None:
        """A job came, with so many frames to render."""

    def frames(self, job: str, stage: str, frames: int) -> None:
        """A stage is through with so many frames more."""

    def busy(self, job: str, node: str, seconds: Mapping[str, float]) -> None:
        """A worker on this node was busy, for so many seconds by kind of work."""

    def segment(self, job: str, state: str) -> None:
        """A segment is ``done``, will be ``retried``, will be ``passed`` through, or ``failed``."""

    def standing(self, job: str, waiting: int, running: Mapping[str, int], out: int) -> None:
        """How many segments wait, are at work by stage, and are out in all."""

    def over(self, job: str, failed: bool) -> None:
        """A job is over and will not be heard of again."""

    def alive(self) -> None:
        """Called often for as long as there are jobs."""


class RayMetrics(Observer):
    """Ray's counters and gauges. Made on the driver, it comes to life in the foreman's process.

    Jobs of one name are shown as one, and so are all after the first hundred names. A gauge shows the sum
    over the jobs that go by its tags; when they are over it is 0 once and then no more.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._names: dict[str, str] = {}
        self._known: set[str] = set()
        self._left: dict[str, int] = {}
        self._mine: dict[str, dict[_Series, float]] = {}  # what each job adds to which gauge
        self._sums: dict[_Series, float] = {}
        self._shown = 0.0
        self._made: dict[str, Any] = {}

    def began(self, job: str, name: str, frames: int) -> None:
        """As ``Observer.began``."""
        if name not in self._known and len(self._known) >= _NAMES:
            name = _OTHER
        self._known.add(name)
        self._names[job], self._left[job], self._mine[job] = name, frames, {}
        self._gauge(job, "frames_left", frames)
        self._gauge(job, "jobs", 1)

    def frames(self, job: str, stage: str, frames: int) -> None:
        """As ``Observer.frames``."""
        self._count(job, "frames_total", frames, stage=STAGES[stage])
        if stage == "write" and job in self._names:
            self._left[job] -= frames
            self._gauge(job, "frames_left", self._left[job])

    def busy(self, job: str, node: str, seconds: Mapping[str, float]) -> None:
        """As ``Observer.busy``."""
        for kind, took in seconds.items():
            self._count(job, "busy_seconds_total", took, stage=_KINDS.get(kind, kind), **{NODE: node})

    def segment(self, job: str, state: str) -> None:
        """As ``Observer.segment``."""
        self._count(job, "segments_total", 1, state=state)

    def standing(self, job: str, waiting: int, running: Mapping[str, int], out: int) -> None:
        """As ``Observer.standing``."""
        self._gauge(job, "segments", waiting, state="waiting")
        self._gauge(job, "segments", out, state="out")
        for stage, name in STAGES.items():
            self._gauge(job, "segments_running", running.get(stage, 0), stage=name)

    def over(self, job: str, failed: bool) -> None:
        """As ``Observer.over``."""
        if job not in self._names:
            return
        self._count(job, "jobs_total", 1, state="failed" if failed else "done")
        del self._names[job]
        del self._left[job]
        shown = {series for mine in (self._mine[k] for k in self._names) for series in mine}
        for series, value in self._mine.pop(job).items():
            self._sums[series] -= value
            self._set(series)
            if series not in shown:
                del self._sums[series]

    def alive(self) -> None:
        """As ``Observer.alive``."""
        if self._names and time.monotonic() - self._shown > _REFRESH:
            self._shown = time.monotonic()
            self._metrics()["swap_workers"].set(self.workers)
            for series in self._sums:
                self._set(series)

    def _count(self, job: str, metric: str, more: float, **tags: str) -> None:
        if more > 0 and job in self._names:
            self._metrics()[metric].inc(more, tags={JOB: self._names[job], **tags})

    def _gauge(self, job: str, metric: str, value: float, **tags: str) -> None:
        if job not in self._names:
            return
        series = (metric, frozenset({JOB: self._names[job], **tags}.items()))
        before = self._mine[job].get(series, 0.0)
        self._mine[job][series] = value
        self._sums[series] = self._sums.get(series, 0.0) + value - before
        self._set(series)

    def _set(self, series: _Series) -> None:
        self._metrics()[series[0]].set(self._sums[series], tags=dict(series[1]))

    def _metrics(self) -> dict[str, Any]:
        if not self._made:
            from ray.util.metrics import Counter, Gauge

            for kind, name, tags, says in (
                (Counter, "frames_total", (JOB, "stage"), "Frames a stage is through with."),
                (Counter, "busy_seconds_total", (JOB, "stage", NODE), "Seconds of work, of all workers."),
                (Counter, "segments_total", (JOB, "state"), "Segments done, retried, passed and failed."),
                (Counter, "jobs_total", (JOB, "state"), "Jobs done and failed."),
                (Gauge, "frames_left", (JOB,), "Frames that are not written yet."),
                (Gauge, "segments", (JOB, "state"), "Segments that wait and that are out."),
                (Gauge, "segments_running", (JOB, "stage"), "Segments that a worker is at."),
                (Gauge, "jobs", (JOB,), "Jobs that are being rendered."),
                (Gauge, "swap_workers", (), "Processes that swap."),
            ):
                self._made[name] = kind(f"ldvid_{name}", description=says, tag_keys=tags)
        return self._made


def job_name(work: Work) -> str:
    """What a job is called in the metrics: its folder's name, without what a default folder adds."""
    name = PurePosixPath(work.urls.job or work.folder).name
    return name.removesuffix(".ldvid-job") or name
