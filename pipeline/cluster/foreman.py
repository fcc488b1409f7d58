"""The foreman: which segment is next, what became of each, who was busy.

One per pool, an actor on the driver's machine. It gives out *tickets*, one per segment and try; a bounded
number is out at a time, which bounds what waits between the stages. Jobs take turns, so that a short
clip is not behind a long one. A ticket is current until its segment is done or has failed; whatever
a worker says of an older one (a task that Ray ran again after its machine was lost) is ignored.

No Ray in here: it is plain asyncio, and tested as that.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ...stages.records import Segment
from ..failure import Policy, SegmentFailure


@dataclass(frozen=True)
class Ticket:
    """One try at one segment. ``passed`` says why its original is to be passed through, if it is."""

    job: str
    segment: Segment
    number: int
    passed: str | None = None


@dataclass
class _Out:
    """A ticket that is out: how often each stage began and ended, and when it began last."""

    ticket: Ticket
    began: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    swapped: int = 0


@dataclass
class JobState:
    """What the driver is told of a job: frames ``swapped`` and ``written`` in this run, segments done
    and failed, what was passed through."""

    total: int
    swapped: int = 0
    written: int = 0
    done: int = 0
    failed: SegmentFailure | None = None
    fatal: bool = False
    passed: list[SegmentFailure] = field(default_factory=list)
    retried: list[SegmentFailure] = field(default_factory=list)
    over: bool = False


@dataclass
class Busy:
    """A worker's seconds by stage, the frames it swapped, where and on what it runs."""

    node: str
    device: str
    seconds: dict[str, float] = field(default_factory=dict)
    frames: int = 0
    first: float = 0.0
    last: float = 0.0


@dataclass
class _Job:
    spec: Any
    first_frame: int
    waiting: deque[tuple[Segment, str | None]]
    state: JobState
    tries: dict[int, int] = field(default_factory=dict)
    swapped: int = 0


class Foreman:
    """See the module. ``window`` is the number of tickets that may be out."""

    def __init__(self, window: int, policy: Policy) -> None:
        self.window, self.policy = window, policy
        self._jobs: dict[str, _Job] = {}
        self._turn: deque[str] = deque()
        self._out: dict[tuple[str, int], _Out] = {}
        self._busy: dict[str, Busy] = {}
        self._numbers = 0
        self._closed = False
        self._changed = asyncio.Condition()

    # the driver's side

    async def add(self, job: str, spec: Any, segments: list[Segment], first_frame: int = 0) -> None:
        """A job and its unfinished segments. ``spec`` is handed to workers as it is
        (a reference in a list, so that it stays one)."""
        async with self._changed:
            waiting: deque[tuple[Segment, str | None]] = deque((s, None) for s in segments)
            state = JobState(len(segments), over=not segments)
            self._jobs[job] = _Job(spec, first_frame, waiting, state)
            self._turn.append(job)
            self._changed.notify_all()

    async def close(self) -> None:
        """No more jobs will come: ``take`` ends when all are over."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def states(self) -> dict[str, JobState]:
        """Of all jobs."""
        for key, job in self._jobs.items():
            now = sum(o.swapped for (k, _), o in self._out.items() if k == key)
            job.state.swapped = job.swapped + now
        return {key: job.state for key, job in self._jobs.items()}

    async def busy(self) -> dict[str, Busy]:
        """Seconds and frames by worker."""
        return self._busy

    # the feed's side

    async def take(self) -> Ticket | None:
        """The next ticket, as soon as one may be out; None when there will be no more."""
        async with self._changed:
            while True:
                if len(self._out) < self.window and (ticket := self._next()) is not None:
                    self._out[ticket.job, ticket.segment.index] = _Out(ticket)
                    return ticket
                if self._closed and not self._out and not any(j.waiting for j in self._jobs.values()):
                    return None
                await self._changed.wait()

    def _next(self) -> Ticket | None:
        for _ in range(len(self._turn)):
            key = self._turn[0]
            self._turn.rotate(-1)
            if waiting := self._jobs[key].waiting:
                segment, passed = waiting.popleft()
                self._numbers += 1
                return Ticket(key, segment, self._numbers, passed)
        return None

    # the workers' side

    async def spec(self, job: str) -> Any:
        """What ``add`` was given."""
        return self._jobs[job].spec

    def _current(self, ticket: Ticket) -> _Out | None:
        out = self._out.get((ticket.job, ticket.segment.index))
        return out if out is not None and out.ticket.number == ticket.number else None

    async def begin(self, ticket: Ticket, stage: str) -> bool:
        """Whether to work on it: not if it is stale, or if it has cost too many workers their lives."""
        async with self._changed:
            if (out := self._current(ticket)) is None:
                return False
            now = time.monotonic()
            begun = out.began.get(stage, 0)
            if begun > out.ended.get(stage, 0):  # a worker began it and was never heard of again
                out.began[stage] = begun - 1
                why = self._death(now - out.since[stage])
                if (tries := self._count(ticket)) > self.policy.retries:
                    self._fail(ticket, stage, None, "JobError", why, False)
                    return False
                failure = SegmentFailure(ticket.segment, stage, None, "JobError", why, tries)
                self._jobs[ticket.job].state.retried.append(failure)
            out.began[stage] = out.began.get(stage, 0) + 1
            out.since[stage] = now
            return True

    def _death(self, seconds: float) -> str:
        limit = self.policy.time_limit
        if limit is not None and seconds >= limit:
            return f"took longer than --time-limit {limit:g} s"
        return "its worker died (killed, out of memory or crashed)"

    async def progress(self, ticket: Ticket, frames: int) -> None:
        """So many frames more of it are swapped."""
        if (out := self._current(ticket)) is not None:
            out.swapped += frames

    async def end(
        self,
        ticket: Ticket,
        stage: str,
        worker: str,
        at: tuple[str, str],
        seconds: dict[str, float],
        frames: int,
    ) -> None:
        """A stage is through: who did it (a name, node and device), in how many seconds of which kind."""
        now = time.monotonic()
        busy = self._busy.setdefault(worker, Busy(*at, first=now - sum(seconds.values())))
        busy.last = now
        busy.frames += frames
        for kind, took in seconds.items():
            busy.seconds[kind] = busy.seconds.get(kind, 0.0) + took
        if (out := self._current(ticket)) is not None:
            out.ended[stage] = out.ended.get(stage, 0) + 1

    async def done(self, ticket: Ticket, swapped: int) -> None:
        """Its segment is in the ledger; ``swapped`` faces of it were."""
        async with self._changed:
            if self._current(ticket) is None:
                return
            del self._out[ticket.job, ticket.segment.index]
            job = self._jobs[ticket.job]
            job.swapped += swapped
            job.state.done += 1
            job.state.written += ticket.segment.stop - ticket.segment.start
            self._settle(job, ticket.job)

    async def failed(
        self, ticket: Ticket, stage: str, frame: int | None, kind: str, reason: str, fatal: bool
    ) -> None:
        """A stage of it raised. ``frame`` counts the job's frames; ``fatal``: no use in trying again."""
        async with self._changed:
            if self._current(ticket) is not None:
                if not fatal:
                    self._count(ticket)
                self._fail(ticket, stage, frame, kind, reason, fatal)

    def _count(self, ticket: Ticket) -> int:
        tries = self._jobs[ticket.job].tries
        tries[ticket.segment.index] = tries.get(ticket.segment.index, 0) + 1
        return tries[ticket.segment.index]

    def _fail(
        self, ticket: Ticket, stage: str, frame: int | None, kind: str, reason: str, fatal: bool
    ) -> None:
        job, index = self._jobs[ticket.job], ticket.segment.index
        del self._out[ticket.job, index]
        tries = job.tries.get(index, 1)
        at = None if frame is None else frame + job.first_frame
        failure = SegmentFailure(ticket.segment, stage, at, kind, reason, tries)
        if not fatal and tries <= self.policy.retries:
            job.state.retried.append(failure)
            job.waiting.appendleft((ticket.segment, ticket.passed))
        elif not fatal and self.policy.on_error == "passthrough" and ticket.passed is None:
            job.state.passed.append(failure)
            job.tries[index] = 0
            job.waiting.appendleft((ticket.segment, failure.text()))
        else:
            if job.state.failed is None:
                job.state.failed, job.state.fatal = failure, fatal
            job.waiting.clear()  # what is out may still end: its work is not lost
        self._settle(job, ticket.job)

    def _settle(self, job: _Job, key: str) -> None:
        job.state.over = not job.waiting and not any(k == key for k, _ in self._out)
        self._changed.notify_all()
