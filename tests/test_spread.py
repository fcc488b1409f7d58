"""Rows over threads: the same results in the same order, however many threads."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.configs import load_settings
from ldvid.pipeline.device import cpu_threads
from ldvid.pipeline.look import Look, look
from ldvid.pipeline.progress import Stopwatch
from ldvid.stages.colour_match import match_colour
from ldvid.stages.decode import probe
from ldvid.stages.records import Crops
from ldvid.stages.spread import limited, spread, width
from ldvid.stages.steady import steady
from ldvid.stages.swap.pack import Pack


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.integers(-9, 9), max_size=40), threads=st.integers(1, 9))
def test_rows_come_back_in_order(values: list[int], threads: int) -> None:
    def slow(a: int, b: int) -> tuple[int, int]:
        time.sleep(0.0005 * (a % 3))
        return a, b

    with limited(threads):
        assert spread(slow, values, values[::-1]) == list(zip(values, values[::-1], strict=True))


def test_rows_are_computed_at_once_and_rows_within_rows_are_not() -> None:
    meeting = threading.Barrier(3, timeout=20)
    inner: set[int] = set()

    def outside(_: int) -> int:
        meeting.wait()  # broken unless three are here at the same time
        names = spread(lambda _: threading.get_ident(), range(4))
        assert set(names) == {threading.get_ident()}
        inner.update(names)
        return len(names)

    with limited(3):
        assert spread(outside, range(3)) == [4, 4, 4]
    assert len(inner) == 3


def test_the_first_rows_error_is_the_one_told() -> None:
    def failing(row: int) -> None:
        if row:
            raise ValueError(f"row {row}")

    with limited(4), pytest.raises(ValueError, match="row 1"):
        spread(failing, range(4))
    with limited(4):
        assert spread(abs, [-1, 2]) == [1, 2], "and the threads go on"


def test_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert width() == 7
    for nonsense in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert width() >= 1
    with cpu_threads(3):
        assert width() == 3
        with cpu_threads(None):
            assert width() == 3


def test_threads_change_no_byte(pack: Pack, example_clip: Path) -> None:
    """Looks at real frames, and arithmetic on them as if they had been swapped."""
    info, chosen = probe(example_clip, end=20 / 12), load_settings("cpu")
    made = []
    for threads in (1, 5):
        with limited(threads):
            looks = list(look(info, chosen, pack, 3, info.frames, Stopwatch()))
            images = np.stack([seen.crops[0] for seen in looks])
            random = np.random.default_rng(0)
            swapped = (images + random.normal(0, 9, images.shape)).clip(0, 255).astype(np.float32)
            masks = np.zeros(images.shape[:3], np.float32)
            masks[:, 20:90, 20:90] = 1
            matched = match_colour(swapped, images, masks, 1.0)
            n = len(images)
            points = np.zeros((n, 5, 2), np.float32)
            crops = Crops(0, np.arange(3, 3 + n), images, np.zeros((n, 2, 3)), points, masks, matched)
            still = steady(crops, 1.2, 5, 3 + n)
            made.append((looks, matched, still))
    (one, first, calm), (many, second, calmer) = made
    assert [seen.index for seen in one] == list(range(3, info.frames))
    for a, b in zip(one, many, strict=True):
        assert _flat(a) == _flat(b)
    np.testing.assert_array_equal(first, second)
    assert calm.swapped is not None and calmer.swapped is not None
    assert calm.masks is not None and calmer.masks is not None
    np.testing.assert_array_equal(calm.swapped, calmer.swapped)
    np.testing.assert_array_equal(calm.masks, calmer.masks)
    assert len(calm) == n - 2 and np.abs(calm.swapped - first[2:]).max() > 1


def _flat(seen: Look) -> tuple[object, ...]:
    assert len(seen.faces) == 1 == len(seen.crops)
    face = seen.faces[0]
    return face.box.tobytes(), face.landmarks.tobytes(), face.score, seen.crops[0].tobytes()
