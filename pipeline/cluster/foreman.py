"""The foreman: which segment is next, what became of each, who was busy.

One per pool, an actor on the driver's machine. It gives out *tickets*, one per segment and try; a bounded
number is out at a time, which bounds what waits between the stages. Jobs take turns, so that a short
clip is not behind a long one. A ticket is current until its segment is done or has failed; whatever
a worker says of an older one (a task that Ray ran again after its machine was lost) is ignored.
When a job has failed, what is being swapped or written still ends, as its work is worth keeping; the rest
is called back.

No Ray in here: it is plain asyncio, and tested as that.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any

from ...stages.records import Segment
from ..failure import Policy, SegmentFailure
from .metrics import Observer

_DEATH = "its worker died (killed, out of memory or crashed)"


@dataclass(frozen=True)
class Ticket:
    """One try at one segment. ``number`` counts all tickets of the foreman, from 0. ``passed`` says why the
    segment's original is to be passed through, if it is."""

    job: str
    segment: Segment
    number: int
    passed: str | None = None


@dataclass
class _Out:
    """A ticket that is out: the stages that a worker is at with it, and the frames swapped so far."""

    ticket: Ticket
    running: dict[str, bool] = field(default_factory=dict)
    swapped: int = 0


@dataclass
class JobState:
    """What the driver is told of a job: frames ``swapped`` and ``written`` in this run, segments done
    and failed, what was passed through, and for how many seconds no worker has been heard of, whatever
    the job."""

    total: int
    swapped: int = 0
    written: int = 0
    done: int = 0
    failed: SegmentFailure | None = None
    fatal: bool = False
    passed: list[SegmentFailure] = field(default_factory=list)
    retried: list[SegmentFailure] = field(default_factory=list)
    over: bool = False
    silence: float = 0.0


@dataclass
class Busy:
    """A worker's seconds by stage, the frames it swapped, where and on what it runs, and when it was at it
    first and last (loading the networks is before that)."""

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
    busy: dict[str, Busy] = field(default_factory=dict)


class Foreman:
    """See the module. ``window`` is the number of tickets that may be out; ``observer`` is told of all."""

    def __init__(self, window: int, policy: Policy, observer: Observer | None = None) -> None:
        self.window, self.policy = window, policy
        self._observer = observer if observer is not None else Observer()
        self._jobs: dict[str, _Job] = {}
        self._turn: deque[str] = deque()
        self._out: dict[tuple[str, int], _Out] = {}
        self._numbers = 0
        self._heard = time.monotonic()
        self._closed = False
        self._changed = asyncio.Condition()

    # the driver's side

    async def add(
        self, job: str, spec: Any, segments: list[Segment], first_frame: int = 0, name: str = ""
    ) -> None:
        """A job and its unfinished segments. ``spec`` is handed to workers as it is
        (a reference in a list, so that it stays one); ``name`` is for people."""
        async with self._changed:
            waiting: deque[tuple[Segment, str | None]] = deque((s, None) for s in segments)
            state = JobState(len(segments), over=not segments)
            self._jobs[job] = _Job(spec, first_frame, waiting, state)
            self._turn.append(job)
            self._observer.began(job, name or job, sum(s.stop - s.start for s in segments))
            self._tell(job)
            self._changed.notify_all()

    async def close(self) -> None:
        """No more jobs will come: ``take`` ends when all are over."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def state(self, job: str) -> JobState:
        """How far a job is."""
        found = self._jobs[job]
        now = sum(o.swapped for (key, _), o in self._out.items() if key == job)
        silence = time.monotonic() - self._heard
        self._observer.alive()
        return replace(found.state, swapped=found.swapped + now, silence=silence)

    async def forget(self, job: str) -> dict[str, Busy]:
        """Seconds and frames of a job by worker; from here on it is unknown.

        What a task that Ray believed lost may still say of it is ignored."""
        forgotten = self._jobs.pop(job)
        self._observer.over(job, forgotten.state.failed is not None)
        return forgotten.busy

    # the feed's side

    async def take(self, number: int) -> Ticket | None:
        """The ticket of that number, as soon as it may be out; None when there will be no more.

        A feed that died and was started anew asks for the same ones again and gets them; those that are
        over by now are stale, as all are that nobody knows.
        """
        async with self._changed:
            while number >= self._numbers:  # a dead feed's question may be open still, and be answered
                if len(self._out) < self.window and (ticket := self._next()) is not None:
                    self._out[ticket.job, ticket.segment.index] = _Out(ticket)
                    return ticket
                if self._closed and not self._out and not any(j.waiting for j in self._jobs.values()):
                    return None
                await self._changed.wait()
            again = (o.ticket for o in self._out.values() if o.ticket.number == number)
            return next(again, Ticket("", Segment(0, 0, 0, 0), number))

    def _next(self) -> Ticket | None:
        for _ in range(len(self._turn)):
            key = self._turn.popleft()
            if (job := self._jobs.get(key)) is None:
                continue
            self._turn.append(key)
            if job.waiting:
                segment, passed = job.waiting.popleft()
                ticket = Ticket(key, segment, self._numbers, passed)
                self._numbers += 1
                return ticket
        return None

    # the workers' side

    async def spec(self, job: str) -> Any:
        """What ``add`` was given."""
        return self._jobs[job].spec

    def _current(self, ticket: Ticket) -> _Out | None:
        out = self._out.get((ticket.job, ticket.segment.index))
        return out if out is not None and out.ticket.number == ticket.number else None

    async def begin(self, ticket: Ticket, stage: str) -> bool:
        """Whether to work on it: not if it is stale, of a job that failed meanwhile, or if it has cost too
        many workers their lives."""
        async with self._changed:
            self._heard = time.monotonic()
            if (out := self._current(ticket)) is None:
                return False
            job = self._jobs[ticket.job]
            if out.running.get(stage):  # a worker began it and was never heard of again
                if (tries := self._count(ticket)) > self.policy.retries:
                    self._fail(ticket, stage, None, "JobError", _DEATH, False)
                    return False
                job.state.retried.append(
                    SegmentFailure(ticket.segment, stage, None, "JobError", _DEATH, tries)
                )
                self._observer.segment(ticket.job, "retried")
            if job.state.failed is not None and stage != "write":
                del self._out[ticket.job, ticket.segment.index]
                self._settle(job, ticket.job)
                return False
            out.running[stage] = True
            if stage == "swap":
                out.swapped = 0
            self._tell(ticket.job)
            return True

    async def progress(self, ticket: Ticket, frames: int) -> None:
        """So many frames more of it are swapped."""
        self._heard = time.monotonic()
        if (out := self._current(ticket)) is not None:
            out.swapped += frames
            self._observer.frames(ticket.job, "swap", frames)

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
        now = self._heard = time.monotonic()
        if (job := self._jobs.get(ticket.job)) is not None:
            took = sum(seconds.values()) - seconds.get("load", 0.0)
            busy = job.busy.setdefault(worker, Busy(*at, first=now - took))
            busy.last = now
            busy.frames += frames
            for kind, more in seconds.items():
                busy.seconds[kind] = busy.seconds.get(kind, 0.0) + more
            self._observer.busy(ticket.job, at[0], seconds)
        if (out := self._current(ticket)) is not None:
            out.running[stage] = False
            if stage == "load":
                self._observer.frames(ticket.job, stage, ticket.segment.stop - ticket.segment.start)
            self._tell(ticket.job)

    async def done(self, ticket: Ticket, swapped: int) -> None:
        """Its segment is in the ledger; ``swapped`` faces of it were."""
        async with self._changed:
            self._heard = time.monotonic()
            if self._current(ticket) is None:
                return
            del self._out[ticket.job, ticket.segment.index]
            job = self._jobs[ticket.job]
            job.swapped += swapped
            job.state.done += 1
            job.state.written += ticket.segment.stop - ticket.segment.start
            self._observer.frames(ticket.job, "write", ticket.segment.stop - ticket.segment.start)
            self._observer.segment(ticket.job, "done")
            self._settle(job, ticket.job)

    async def failed(
        self, ticket: Ticket, stage: str, frame: int | None, kind: str, reason: str, fatal: bool
    ) -> None:
        """A stage of it raised. ``frame`` counts the job's frames; ``fatal``: no use in trying again."""
        async with self._changed:
            self._heard = time.monotonic()
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
            self._observer.segment(ticket.job, "retried")
        elif not fatal and self.policy.on_error == "passthrough" and ticket.passed is None:
            job.state.passed.append(failure)
            job.tries[index] = 0
            job.waiting.appendleft((ticket.segment, failure.text()))
            self._observer.segment(ticket.job, "passed")
        else:
            if job.state.failed is None:
                job.state.failed, job.state.fatal = failure, fatal
            self._observer.segment(ticket.job, "failed")
            job.waiting.clear()  # what is out may still end: its work is not lost
        self._settle(job, ticket.job)

    def _settle(self, job: _Job, key: str) -> None:
        job.state.over = not job.waiting and not any(k == key for k, _ in self._out)
        self._tell(key)
        self._changed.notify_all()

    def _tell(self, key: str) -> None:
        """Let the observer know how a job's segments stand."""
        if (job := self._jobs.get(key)) is None:
            return
        out = [o for (k, _), o in self._out.items() if k == key]
        running = Counter(stage for o in out for stage, at_it in o.running.items() if at_it)
        self._observer.standing(key, len(job.waiting), running, len(out))
