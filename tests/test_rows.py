"""Batches of crops: which row of a network call a frame gets depends on the frame alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from ldvid.stages.records import Crops
from ldvid.stages.rows import batches, between, in_order, join, take


@given(frames=st.sets(st.integers(0, 200), max_size=40), size=st.integers(1, 9))
def test_a_frames_row_is_its_own(frames: set[int], size: int) -> None:
    index = np.array(sorted(frames), np.int64)
    seen = []
    for present, rows, slots in batches(index, size):
        assert len(rows) == size and set(rows) <= set(present)  # copies fill up, of nothing else
        np.testing.assert_array_equal(rows[slots], present)
        np.testing.assert_array_equal(slots, index[present] % size)
        assert len({int(f) // size for f in index[present]}) == 1
        seen.append(present)
    np.testing.assert_array_equal(np.concatenate([*seen, np.zeros(0, int)]), np.arange(len(index)))


def crops(frames: list[int]) -> Crops:
    """Rows that say which frame they are of."""
    index = np.array(frames, np.int64)
    own = index[:, None, None].astype(np.float32)
    images = np.broadcast_to(index[:, None, None, None], (len(index), 4, 4, 3)).astype(np.uint8)
    return Crops(
        3,
        index,
        images,
        own * np.ones((1, 2, 3)),
        own * np.ones((1, 5, 2), np.float32),
        own * np.ones((1, 4, 4)),
    )


def same(made: Crops, frames: list[int]) -> None:
    wanted = crops(frames)
    assert made.track == 3 and made.swapped is None
    for name in ("frames", "images", "matrices", "landmarks", "masks"):
        np.testing.assert_array_equal(getattr(made, name), getattr(wanted, name))


@given(frames=st.lists(st.integers(0, 200), unique=True, max_size=12), data=st.data())
def test_rows_keep_what_belongs_to_them(frames: list[int], data: st.DataObject) -> None:
    """Taken, joined and put in order; also where there is nothing to do."""
    keep = data.draw(st.lists(st.booleans(), min_size=len(frames), max_size=len(frames)))
    same(take(crops(frames), np.array(keep, bool)), [f for f, kept in zip(frames, keep, strict=True) if kept])
    same(take(crops(frames), np.arange(len(frames))[::-1]), frames[::-1])
    same(in_order(crops(frames)), sorted(frames))
    cut = data.draw(st.integers(0, len(frames)))
    same(join([crops(frames[:cut]), crops(frames[cut:])]), frames)
    first, last = sorted(data.draw(st.tuples(st.integers(0, 200), st.integers(0, 200))))
    same(between(crops(sorted(frames)), first, last), [f for f in sorted(frames) if first <= f < last])
