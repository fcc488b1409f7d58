"""Recording: what is run, recorded, replayed, refused and let go; a stand-in where there is no GPU."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ldvid.stages.swap import constants
from ldvid.stages.swap.recorded import MOST, Quiet, Recorder
from torch import Tensor

CPU = torch.device("cpu")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_on_a_processor_nothing_is_recorded() -> None:
    recorder, calls = Recorder(CPU), []

    def work(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        calls.append(1)
        return (inputs["x"] * 2,)

    for value in range(4):
        assert recorder.run("key", work, {"x": torch.full((2,), value)})[0].tolist() == [2 * value] * 2
    assert len(calls) == 4


class Graph:
    """What CUDA does with a graph, as far as a recorder sees it: steps are noted, then run again."""

    noting: Graph | None = None

    def __init__(self) -> None:
        self.steps: list[Callable[[], object]] = []

    def replay(self) -> None:
        for step in self.steps:
            step()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A stand-in for a GPU, which no machine that runs these tests has."""

    @contextlib.contextmanager
    def graph(made: Graph, *_: object) -> Iterator[None]:
        Graph.noting = made
        try:
            yield
        finally:
            Graph.noting = None

    stand_ins = {
        "CUDAGraph": Graph, "graph": graph, "graph_pool_handle": lambda: 0, "Stream": lambda *_: None,
        "synchronize": lambda *_: None, "empty_cache": lambda: None,
    }  # fmt: skip
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return torch.device("cuda")


class Doubling:
    """Work that doubles, and knows how often it was asked to."""

    def __init__(self) -> None:
        self.calls, self.trouble = 0, []  # type: int, list[BaseException]

    def __call__(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        self.calls += 1
        if self.trouble:
            raise self.trouble.pop()
        out = inputs["x"] * 2
        if Graph.noting is not None:
            Graph.noting.steps.append(lambda: out.copy_(inputs["x"] * 2))
            out.zero_()  # nothing is computed while it is recorded
        return (out,)


def test_the_second_batch_is_recorded_and_the_rest_replayed(cuda: torch.device) -> None:
    recorder, work = Recorder(cuda), Doubling()
    made = [recorder.run("key", work, {"x": torch.full((2,), float(v))})[0] for v in range(6)]
    assert [m.tolist() for m in made] == [[2.0 * v] * 2 for v in range(6)] and work.calls == 2
    for n in (3, 2):  # another shape is other work
        for v in range(3):
            assert recorder.run("key", work, {"x": torch.full((n,), float(v))})[0].tolist() == [2.0 * v] * n
    assert work.calls == 4
    for key in range(MOST):  # those used last are kept
        for _ in range(2):
            recorder.run(key, work, {"x": torch.ones(2)})
    before = work.calls
    recorder.run(MOST - 1, work, {"x": torch.ones(2)})
    assert work.calls == before
    for n, value in enumerate((7.0, 8.0), 1):  # the others are forgotten whole: run first, then recorded
        assert recorder.run("key", work, {"x": torch.full((2,), value)})[0].tolist() == [2 * value] * 2
        assert work.calls == before + n and Graph.noting is None
    assert sum(key[0] == "key" for key in recorder._recordings) == 1


def test_what_comes_before_is_done_each_time_and_not_recorded(cuda: torch.device) -> None:
    recorder, done = Recorder(cuda), []
    for v in range(4):
        recorder.run("key", Doubling(), {"x": torch.ones(2)}, lambda v=v: done.append((v, Graph.noting)))
    assert done == [(v, None) for v in range(4)]


def test_what_is_shared_is_made_once(cuda: torch.device) -> None:
    recorder = Recorder(cuda)
    first = recorder.shared("a", object)
    assert recorder.shared("a", object) is first and recorder.shared("b", object) is not first
    for n in range(4 * MOST):
        recorder.shared(n, object)
    assert recorder.shared("a", object) is not first


def test_what_cant_be_recorded_runs_as_it_is(cuda: torch.device) -> None:
    recorder, work = Recorder(cuda), Doubling()
    recorder.run("key", work, {"x": torch.ones(2)})
    work.trouble = [RuntimeError("cannot wait while a stream is capturing")]
    for v in range(4):
        assert recorder.run("key", work, {"x": torch.full((2,), float(v))})[0].tolist() == [2.0 * v] * 2
    assert work.calls == 6
    work.trouble = [ValueError("its own")]
    with pytest.raises(ValueError, match="its own"):
        recorder.run("key", work, {"x": torch.ones(2)})


def test_recordings_go_where_a_first_batch_needs_their_memory(cuda: torch.device) -> None:
    recorder, work = Recorder(cuda), Doubling()
    work.trouble = [torch.OutOfMemoryError("none to let go")]
    with pytest.raises(torch.OutOfMemoryError):
        recorder.run("key", work, {"x": torch.ones(2)})
    for _ in range(2):
        recorder.run("key", work, {"x": torch.ones(2)})
    work.trouble = [torch.OutOfMemoryError("held by recordings")]
    assert recorder.run("other", work, {"x": torch.ones(3)})[0].tolist() == [2, 2, 2]
    before = work.calls
    for v in range(3):  # the first one begins anew
        assert recorder.run("key", work, {"x": torch.full((2,), float(v))})[0].tolist() == [2.0 * v] * 2
    assert work.calls == before + 2


@gpu
def test_a_recording_does_what_was_recorded() -> None:
    recorder, calls = Recorder(torch.device("cuda")), []

    def work(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        calls.append(1)
        return (constants.constant([3.0], inputs["x"]) * inputs["x"],)

    kept = [
        recorder.run("key", work, {"x": torch.full((n,), float(v), device="cuda")})[0]
        for n in (2, 5) for v in range(6)
    ]  # fmt: skip
    assert [k.tolist() for k in kept] == [[3.0 * v] * n for n in (2, 5) for v in range(6)]
    assert len(calls) == 4  # for each shape once as it is, once to be recorded

    def waits(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (inputs["x"] + float(inputs["x"].sum()),)

    for _ in range(3):
        assert recorder.run("other", waits, {"x": torch.ones(2, device="cuda")})[0].tolist() == [3, 3]
    assert recorder.run("key", work, {"x": torch.ones(2, device="cuda")})[0].tolist() == [3, 3]


def test_nobody_else_is_at_work_while_something_is_recorded() -> None:
    quiet = Quiet()
    events: list[str] = []
    ready = threading.Event()

    def record() -> None:
        ready.wait()
        with quiet.alone():
            events.append("begin")
            time.sleep(0.05)
            events.append("end")

    def use() -> None:
        for _ in range(40):
            with quiet.use():
                events.append("use")
                time.sleep(0.002)
            ready.set()

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(record), *(threads.submit(use) for _ in range(3))]:
            done.result()
    assert events[events.index("begin") + 1] == "end" and events.count("use") == 120
