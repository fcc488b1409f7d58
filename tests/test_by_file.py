"""Arrays between processes by way of files."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ldvid.pipeline import by_file
from ldvid.pipeline.by_file import LARGE, place, reducers
from ldvid.pipeline.helpers import Helpers


def message(thing: object, folder: Path) -> bytes:
    """As a pool pickles it."""
    held = io.BytesIO()
    pickler = pickle.Pickler(held, 5)
    table: dict[type, Callable[..., Any]] = reducers(folder)
    pickler.dispatch_table = table  # type: ignore[assignment]
    pickler.dump(thing)
    return held.getvalue()


SHAPES = {
    "pictures": np.random.default_rng(0).integers(0, 256, (9, 256, 256, 3), dtype=np.uint8),
    "masks": np.random.default_rng(1).random((8, 256, 256), np.float32),
    "turned": np.random.default_rng(2).random((3, 512, 256)).transpose(2, 0, 1),
    "every second": np.random.default_rng(3).random((600, 1024))[::2, ::2],
    "small": np.arange(12).reshape(3, 4),
    "none": np.zeros((0, 256, 256, 3), np.float32),
    "one number": np.array(3.5),
    "words": np.array(["a", None] * 200_000, object),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_arrives_is_what_was_sent(name: str, tmp_path: Path) -> None:
    array = SHAPES[name]
    sent = message((name, array), tmp_path)
    by_file_now = array.nbytes >= LARGE and array.dtype != object
    assert len(list(tmp_path.iterdir())) == by_file_now
    if by_file_now:
        assert len(sent) < 1000
    got_name, got = pickle.loads(sent)
    assert (got_name, got.shape, got.dtype) == (name, array.shape, array.dtype)
    assert np.array_equal(got, array)
    assert not list(tmp_path.iterdir())
    got[...] = got  # its own, not a view of something that can't be written


def test_without_room_the_message_holds_it(tmp_path: Path) -> None:
    """A disk that is full, or a folder that is gone."""
    array = SHAPES["masks"]
    sent = message(array, tmp_path / "gone")
    assert len(sent) > array.nbytes
    assert np.array_equal(pickle.loads(sent), array)


def test_a_file_that_was_cut_short_is_an_error(tmp_path: Path) -> None:
    sent = message(SHAPES["masks"], tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(OSError, match="cut short"):
        pickle.loads(sent)


def test_memory_is_used_only_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_file, "_ROOM", 1 << 62)
    assert place() is None
    monkeypatch.setattr(by_file, "_MEMORY", Path("/no/such/folder"))
    assert place() is None


def test_both_ways_through_a_pool_and_nothing_is_left() -> None:
    array = SHAPES["pictures"]
    with Helpers(1) as helpers:
        assert np.array_equal(helpers.run(np.flip, array), np.flip(array))
        folder = helpers._folder
        assert folder is not None and folder.is_dir() and not list(folder.iterdir())
    assert not folder.exists()
    with helpers:  # opened again: a new folder
        assert np.array_equal(helpers.run(np.flip, array), np.flip(array))
        assert helpers._folder is not None and helpers._folder != folder
