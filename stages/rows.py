"""Rows of crops: taken, joined, put in order, batched. One row is one frame's crop of a track."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .records import Crops

_ARRAYS = (
    "frames", "images", "matrices", "landmarks", "masks", "swapped", "weights", "parses", "starts",
    "kept",
)  # fmt: skip


def between(crops: Crops, start: int, stop: int) -> Crops:
    """The rows of frames [start, stop), as views."""
    a, b = (int(v) for v in np.searchsorted(crops.frames, (start, stop)))
    return _each(crops, lambda v: v[a:b])


def take(crops: Crops, keep: NDArray[Any]) -> Crops:
    """The rows that a mask (N,) bool or indices name: copies, unless a mask names all."""
    if keep.dtype == bool and keep.all():  # as most do, and a segment's rows are some 100 MB
        return crops
    return _each(crops, lambda v: v[keep])


def join(pieces: Sequence[Crops]) -> Crops:
    """Crops of one track as one, in the order given; all have the same of masks, swapped and weights."""
    parts = [p for p in pieces if len(p)] or list(pieces[:1])
    if len(parts) == 1:
        return parts[0]
    held: list[dict[str, Any]] = [{name: getattr(p, name) for name in _ARRAYS} for p in parts]
    joined: dict[str, Any] = {
        name: None if held[0][name] is None else np.concatenate([h[name] for h in held]) for name in _ARRAYS
    }
    return replace(parts[0], **joined)


def in_order(crops: Crops) -> Crops:
    """By frame."""
    if (np.diff(crops.frames) >= 0).all():
        return crops
    return take(crops, np.argsort(crops.frames))


def batches(
    frames: NDArray[np.int64], size: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]]:
    """What a network sees at once: the frames whose index // ``size`` is the same, each in the row of its
    index % ``size``, and copies where a frame is missing. So the numbers a frame sees depend neither on
    where segments end nor on which frames have a face.

    Yields:
        ``present``, which of ``frames`` (N,) they are; ``rows`` (size,), the index each row is filled
        from; ``slots``, the rows of ``present``.
    """
    groups = frames // size
    for group in np.unique(groups):
        present = np.flatnonzero(groups == group)
        slots = frames[present] % size
        rows = np.full(size, present[0])
        rows[slots] = present
        yield present, rows, slots


def _each(crops: Crops, change: Callable[[Any], Any]) -> Crops:
    arrays: dict[str, Any] = {name: getattr(crops, name) for name in _ARRAYS}
    changed: dict[str, Any] = {name: None if v is None else change(v) for name, v in arrays.items()}
    return replace(crops, **changed)
