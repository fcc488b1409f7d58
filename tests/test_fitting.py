"""Batches in pieces that fit, the next one asked for before the last has arrived."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.stages.records import F32
from ldvid.stages.swap.fetch import fetch
from ldvid.stages.swap.fitting import Fitting, Rows

CPU = torch.device("cpu")


def value(frames: np.ndarray, rows: Rows) -> F32:
    return np.stack([np.full((2, 3), frames[row], np.float32) for row in rows])


@settings(max_examples=40, deadline=None)
@given(
    frames=st.sets(st.integers(0, 40), min_size=1),
    batch=st.integers(1, 5),
    most=st.integers(1, 5),
    later=st.booleans(),
)
def test_each_frame_gets_its_own_whatever_fits(frames: set[int], batch: int, most: int, later: bool) -> None:
    """Batches of any size, halved or not, waited for or not."""
    numbers, told = np.array(sorted(frames)), list[int]()
    fitting = Fitting(batch, CPU)

    def work(rows: Rows) -> F32 | Callable[[], F32]:
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        made = value(numbers, rows)
        return (lambda: made) if later else made

    made = fitting.over(numbers, work, told.append)
    assert made is not None
    np.testing.assert_array_equal(made, value(numbers, np.arange(len(numbers))))
    assert sum(told) == len(numbers)
    assert fitting.micro_batch <= max(1, most)
    assert fitting.over(np.zeros(0, np.int64), work) is None


def test_the_next_batch_is_asked_for_before_the_last_is_waited_for() -> None:
    numbers, order = np.arange(8), list[str]()
    fitting = Fitting(2, CPU)

    def work(rows: Rows) -> Callable[[], F32]:
        first = int(numbers[rows[0]])
        order.append(f"ask {first}")

        def wait() -> F32:
            order.append(f"get {first}")
            return value(numbers, rows)

        return wait

    fitting.over(numbers, work)
    assert order == ["ask 0", "ask 2", "get 0", "ask 4", "get 2", "ask 6", "get 4", "get 6"]


def test_where_it_failed_is_known() -> None:
    numbers = np.arange(10, 18)
    fitting = Fitting(2, CPU)

    def work(rows: Rows) -> Callable[[], F32]:
        def wait() -> F32:
            if 13 in numbers[rows]:
                raise ValueError("a term is not finite")
            return value(numbers, rows)

        return wait

    with pytest.raises(ValueError, match="finite"):
        fitting.over(numbers, work)
    assert fitting.at == 12
    with ThreadPoolExecutor(1) as other:  # makes the starts of the next segment meanwhile
        other.submit(fitting.over, np.arange(90, 94), lambda rows: value(numbers, rows)).result()
    assert fitting.at == 12


def test_what_is_fetched_from_a_processor_is_there() -> None:
    pictures, verdict = fetch([torch.arange(6.0).reshape(2, 3), torch.tensor(True)])()
    np.testing.assert_array_equal(pictures, np.arange(6, dtype=np.float32).reshape(2, 3))
    assert bool(verdict)
