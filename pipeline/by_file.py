"""Large arrays between processes of one machine: as files beside the message, not in it.

A message goes through a pipe, copied several times by a thread that holds the interpreter meanwhile, and all
messages of a pool through the same one. Files are written and read while other threads run.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

LARGE = 2**20  # bytes
_MEMORY, _ROOM = Path("/dev/shm"), 4 * 2**30


def place() -> Path | None:
    """Where such files should lie: in memory where there is room, else (None) with other temporary files."""
    return _MEMORY if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ROOM else None


def reducers(folder: Path) -> dict[type, Callable[..., Any]]:
    """For a pool's messages, each way; ``folder`` is there as long as the pool."""
    return {np.ndarray: partial(_reduced, folder)}


def _reduced(folder: Path, array: NDArray[Any]) -> Any:
    """How an array is pickled: by file if it is large, and the disk not full."""
    if array.nbytes < LARGE or array.dtype.hasobject:
        return array.__reduce_ex__(5)
    whole = np.ascontiguousarray(array)
    path = folder / uuid.uuid4().hex
    try:
        with path.open("wb", buffering=0) as file:
            _through(file.write, whole)
    except OSError:
        path.unlink(missing_ok=True)
        return array.__reduce_ex__(5)
    return _read, (path, array.shape, array.dtype)


def _read(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array, and its file is gone."""
    array = np.empty(shape, dtype)
    try:
        with path.open("rb", buffering=0) as file:
            _through(file.readinto, array)
    finally:
        path.unlink(missing_ok=True)
    return array


def _through(call: Callable[[memoryview], int | None], array: NDArray[Any]) -> None:
    """All bytes of an array; one call takes at most some 2 GB."""
    left = memoryview(cast(Any, array.reshape(-1).view(np.uint8)))
    while left:
        count = call(left)
        if not count:
            raise OSError("an array's file is cut short")
        left = left[count:]
