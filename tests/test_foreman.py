"""The foreman: whatever workers do, and in whatever order it is heard of, each segment ends exactly once."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.pipeline.cluster.foreman import Foreman, Ticket
from ldvid.pipeline.failure import Policy
from ldvid.stages.records import Segment

STAGES = ("load", "swap", "write")
AT = ("192.0.2.1", "cpu")


def segments(count: int) -> list[Segment]:
    return [Segment(i, 2 * i, 2 * i + 2) for i in range(count)]


class Cluster:
    """Workers as Ray might run them: each row goes through the stages; what happens next is drawn."""

    def __init__(self, foreman: Foreman, data: st.DataObject) -> None:
        self.foreman, self.data = foreman, data
        self.rows: dict[int, tuple[Ticket, int, bool]] = {}  # number: ticket, its stage, whether it runs
        self.seen: list[Ticket] = []
        self.finished: Counter[tuple[str, int]] = Counter()
        self.tries: Counter[tuple[str, int, bool]] = Counter()
        self.feed: asyncio.Task[Ticket | None] | None = None
        self.lost: list[asyncio.Task[Ticket | None]] = []
        self.taken = 0

    async def take(self) -> bool:
        """The feed asks; False if there is nothing for it (yet)."""
        if self.feed is None:
            self.feed = asyncio.ensure_future(self.foreman.take(self.taken))
        for _ in range(5):
            await asyncio.sleep(0)
        if not self.feed.done():
            return False
        ticket, self.feed = self.feed.result(), None
        if ticket is None:
            return False
        assert ticket.number == self.taken, "a feed that was started anew gets what the dead one asked for"
        self.taken += 1
        self.rows[ticket.number] = (ticket, 0, False)
        self.seen.append(ticket)
        return True

    def feed_dies(self) -> None:
        """Its question stays open; the next feed asks it again."""
        if self.feed is not None:
            self.lost.append(self.feed)
            self.feed = None

    async def current(self, ticket: Ticket) -> bool:
        """Whether the foreman still waits for it."""
        again = await self.foreman.take(ticket.number)
        return again == ticket

    async def step(self, number: int, event: str) -> None:
        """Something happens to a row."""
        ticket, at, running = self.rows[number]
        key = (ticket.job, ticket.segment.index, ticket.passed is not None)
        current = await self.current(ticket)
        if not running:
            if await self.foreman.begin(ticket, STAGES[at]):
                assert current, "no work on stale tickets"
                self.rows[number] = (ticket, at, True)
            else:
                assert not await self.current(ticket)
                del self.rows[number]
        elif event == "dies":  # and Ray runs the stage again
            self.tries[key] += current
            self.rows[number] = (ticket, at, False)
        elif event == "lost":  # what was handed on goes with its machine: Ray starts from the first stage
            await self.foreman.end(ticket, STAGES[at], "w", AT, {STAGES[at]: 1.0}, 0)
            self.rows[number] = (ticket, 0, False)
        elif event in ("raises", "fatal"):
            self.tries[key] += current
            await self.foreman.failed(ticket, STAGES[at], 1, "X", "why", event == "fatal")
            assert not await self.current(ticket)
            del self.rows[number]
        else:
            if STAGES[at] == "swap":
                await self.foreman.progress(ticket, 2)
            if STAGES[at] == "write":
                self.finished[key[:2]] += current
                await self.foreman.done(ticket, 2)
            await self.foreman.end(ticket, STAGES[at], "w", AT, {STAGES[at]: 1.0}, 2)
            self.rows[number] = (ticket, at + 1, False)
            if at == 2:
                del self.rows[number]

    async def echo(self) -> None:
        """A worker that was given up for dead says something of an old ticket; the feed is run again."""
        ticket = self.data.draw(st.sampled_from(self.seen))
        if await self.current(ticket):
            return
        assert not await self.foreman.begin(ticket, "swap")
        await self.foreman.progress(ticket, 7)
        await self.foreman.end(ticket, "swap", "w", AT, {}, 0)
        await self.foreman.failed(ticket, "swap", None, "X", "stale", True)
        await self.foreman.done(ticket, 7)


EVENTS = st.sampled_from(["goes on"] * 4 + ["dies", "dies", "raises", "raises", "lost", "fatal"])


@settings(max_examples=300, deadline=None)
@given(
    st.data(),
    st.integers(1, 4),
    st.builds(Policy, st.integers(0, 2), st.sampled_from(["fail", "passthrough"])),
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
)
def test_every_segment_ends_exactly_once(
    data: st.DataObject, window: int, policy: Policy, counts: list[int]
) -> None:
    async def play() -> None:
        foreman = Foreman(window, policy)
        cluster = Cluster(foreman, data)
        for name, count in zip("abc", counts, strict=False):
            await foreman.add(name, [name], segments(count), 100)
        for _ in range(data.draw(st.integers(0, 60))):
            choice = data.draw(st.sampled_from(["take", "take", "step", "step", "step", "echo", "feed dies"]))
            if choice == "take":
                await cluster.take()
            elif choice == "feed dies":
                cluster.feed_dies()
            elif choice == "echo" and cluster.seen:
                await cluster.echo()
            elif cluster.rows:
                await cluster.step(data.draw(st.sampled_from(sorted(cluster.rows))), data.draw(EVENTS))
            out = [t for t in cluster.seen if await cluster.current(t)]
            assert len(out) <= window
            assert len({(t.job, t.segment.index) for t in out}) == len(out), "one ticket a segment"
        await foreman.close()
        while await cluster.take() or cluster.rows:  # from here on all goes well
            for number in list(cluster.rows):
                await cluster.step(number, "goes on")
        assert cluster.feed is None, "the feed ends"
        await asyncio.wait_for(asyncio.gather(*cluster.lost), 1)
        for name, count in zip("abc", counts, strict=False):
            state = await foreman.state(name)
            times = [cluster.finished[name, i] for i in range(count)]
            assert state.over
            assert state.done == sum(times) and state.written == 2 * state.done
            assert state.swapped == 2 * state.done
            if state.failed is None:
                assert times == [1] * count
            else:
                at = state.failed.segment.index
                assert times[at] == 0 and max(times) <= 1
                assert state.fatal or state.failed.attempts == policy.retries + 1
                assert state.fatal or policy.on_error == "fail" or (name, at, True) in cluster.tries
            for failure in state.passed:
                assert policy.on_error == "passthrough"
                assert failure.attempts == policy.retries + 1
                assert state.failed is not None or times[failure.segment.index] == 1
            for failure in [*state.passed, *state.retried]:
                assert failure.frame in (None, 101) and failure.reason != "stale"
        assert all(tries <= policy.retries + 1 for tries in cluster.tries.values())

    asyncio.run(play())


async def through(foreman: Foreman, ticket: Ticket) -> None:
    """A ticket without a fault."""
    for stage in STAGES:
        assert await foreman.begin(ticket, stage)
        await foreman.end(ticket, stage, f"{stage}-1", AT, {stage: 1.0, "load": 5.0}, 2 * (stage == "swap"))
    await foreman.done(ticket, 2)


async def taken(foreman: Foreman, number: int) -> Ticket:
    ticket = await foreman.take(number)
    assert ticket is not None
    return ticket


def test_jobs_take_turns_and_a_short_one_does_not_wait() -> None:
    async def play() -> None:
        foreman = Foreman(2, Policy())
        await foreman.add("long", [], segments(50))
        first = [await taken(foreman, n) for n in (0, 1)]
        await foreman.add("short", [], segments(2))
        order = []
        for number in range(2, 8):
            await through(foreman, first.pop(0))
            first.append(await taken(foreman, number))
            order.append(first[-1].job)
        assert order[:4] in (["long", "short"] * 2, ["short", "long"] * 2)
        assert order[4:] == ["long", "long"]

    asyncio.run(play())


def test_a_worker_that_dies_costs_a_try_and_is_named() -> None:
    async def play() -> None:
        foreman = Foreman(2, Policy(retries=1))
        await foreman.add("job", [], segments(1))
        ticket = await taken(foreman, 0)
        assert await foreman.begin(ticket, "load")
        await foreman.end(ticket, "load", "load-1", AT, {}, 0)
        assert await foreman.begin(ticket, "swap")
        await foreman.progress(ticket, 1)
        assert (await foreman.state("job")).swapped == 1
        assert await foreman.begin(ticket, "swap")
        state = await foreman.state("job")
        assert state.swapped == 0 and not state.over
        assert [f.text() for f in state.retried] == [
            "segment 0, swap: its worker died (killed, out of memory or crashed)"
        ]
        assert not await foreman.begin(ticket, "swap")
        state = await foreman.state("job")
        assert state.over and state.failed is not None
        assert state.failed.text().endswith("crashed) (2 attempts)")

    asyncio.run(play())


def test_a_job_that_failed_calls_back_what_no_worker_is_at() -> None:
    async def play() -> None:
        foreman = Foreman(5, Policy(retries=0))
        await foreman.add("job", [], segments(9))
        a, b, c, d, _ = [await taken(foreman, n) for n in range(5)]
        for ticket, stage in ((a, "swap"), (b, "swap"), (c, "write")):
            assert await foreman.begin(ticket, stage)
        await foreman.failed(a, "swap", 1, "RuntimeError", "why", False)
        assert not await foreman.begin(d, "load")
        await foreman.end(b, "swap", "swap-1", AT, {}, 2)
        assert await foreman.begin(b, "write"), "its work is worth keeping"
        await foreman.done(b, 2)
        await foreman.done(c, 2)
        state = await foreman.state("job")
        assert (state.done, state.over) == (2, False)
        e = await taken(foreman, 4)
        assert not await foreman.begin(e, "load")
        assert (await foreman.state("job")).over

    asyncio.run(play())


def test_seconds_are_kept_by_job_and_loading_is_before_the_first_of_them() -> None:
    async def play() -> None:
        foreman = Foreman(2, Policy())
        for job in ("a", "b"):
            await foreman.add(job, [job], segments(1))
        for number in (0, 1):
            ticket = await taken(foreman, number)
            assert await foreman.spec(ticket.job) == [ticket.job]
            await through(foreman, ticket)
        busy = await foreman.forget("a")
        assert set(busy) == {"load-1", "swap-1", "write-1"}
        swap = busy["swap-1"]
        assert (swap.seconds, swap.frames, swap.device) == ({"swap": 1.0, "load": 5.0}, 2, "cpu")
        assert swap.last - swap.first == pytest.approx(1.0, abs=0.1)
        await foreman.end(replace(ticket, job="a"), "swap", "w", AT, {"swap": 1.0}, 2)  # of a job long over
        assert set(await foreman.forget("b")) == {"load-1", "swap-1", "write-1"}
        await foreman.close()
        assert await foreman.take(2) is None

    asyncio.run(play())
