"""Small tensors that many steps ask for, made once: numbers of a term, noise of a track.

Each copy to a GPU waits until all that was asked of it is done, and none may happen while its work is
recorded (``recorded``). Whoever gets one must not change it in place.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

MOST = 1024
_guard = threading.Lock()
_held: OrderedDict[Hashable, Tensor] = OrderedDict()
_listener = threading.local()


def constant(values: Sequence[Any], like: Tensor) -> Tensor:
    """Numbers, nested as they are, with the type and the device of ``like``."""
    key = (_frozen(values), like.dtype, like.device)
    return held(key, lambda: torch.tensor(values, dtype=like.dtype, device=like.device))


def held(key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """``make()``, once for each key; the ``MOST`` asked for last are kept."""
    with _guard:
        value = _held.get(key)
        if value is None:
            value = _held[key] = make()
            if len(_held) > MOST:
                _held.popitem(last=False)
        else:
            _held.move_to_end(key)
    listening: list[Tensor] | None = getattr(_listener, "tensors", None)
    if listening is not None:
        listening.append(value)
    return value


@contextlib.contextmanager
def listed() -> Iterator[list[Tensor]]:
    """What this thread asks for inside, so that whoever needs it longer can keep it alive."""
    before = getattr(_listener, "tensors", None)
    found: list[Tensor] = []
    _listener.tensors = found
    try:
        yield found
    finally:
        _listener.tensors = before


def _frozen(values: Any) -> Hashable:
    return tuple(_frozen(v) for v in values) if isinstance(values, (list, tuple)) else float(values)
