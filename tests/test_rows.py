"""Batches of crops: which row of a network call a frame gets depends on the frame alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from ldvid.stages.rows import batches


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
