"""Arrays on their way from a GPU: whoever asked for them may ask for more before they have arrived."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = list[NDArray[Any]]


def fetch(tensors: Sequence[Tensor]) -> Callable[[], Arrays]:
    """What waits for copies of these tensors in the processor's memory, and gives them.

    They are asked for now, right behind what makes them: work that comes later does not hold them up.
    """
    if not any(t.is_cuda for t in tensors):
        return lambda: [t.numpy() for t in tensors]
    # Only into memory that stays where it is does a GPU copy by itself.
    copies = [
        torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in tensors
    ]
    cuda: Any = torch.cuda
    here = cuda.Event()
    here.record()

    def wait() -> Arrays:
        here.synchronize()
        return [copy.numpy() for copy in copies]

    return wait
