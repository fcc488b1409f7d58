"""The same bytes from the same numbers, where sums are otherwise taken in the order of arrival.

cuDNN's and torch's own operations have deterministic variants, chosen inside ``repeatable``. Sampling a
picture has none (its gradient adds to pixels atomically), so there is one here.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from .constants import constant

_guard = threading.Lock()
_depth = 0
_before = (False, False, True)


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Inside, results depend on their inputs alone (on a CPU: and on the number of threads).

    An operation that has no such variant, in a user's guidance term, still runs, and torch warns of it.
    On a CPU what we evaluate is repeatable anyway; the gradient of a term that picks pixels by index isn't.
    """
    global _depth, _before
    memory: Any = torch.utils.deterministic
    # torch's switch is the whole process's, and threads come and go in any order: the last one puts it back.
    with _guard:
        _depth += 1
        if _depth == 1:
            _before = (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
                memory.fill_uninitialized_memory,
            )
            torch.use_deterministic_algorithms(True, warn_only=True)
            memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        with _guard:
            _depth -= 1
            if _depth == 0:
                torch.use_deterministic_algorithms(_before[0], warn_only=_before[1])
                memory.fill_uninitialized_memory = _before[2]


def tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on ``device``.

    numpy's own memory begins at any multiple of 16 bytes, and matrix products on a CPU may round by that;
    torch's begins at multiples of 64.
    """
    return torch.tensor(array, device=device)


def prepare() -> None:
    """To be called before the first matrix product on a GPU: cuBLAS takes its workspace then."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def sample_bilinear(image: Tensor, grid: Tensor) -> Tensor:
    """``grid_sample`` (bilinear, border, ``align_corners=False``) with a gradient that is repeatable.

    ``image`` (B, C, H, W), ``grid`` (B, h, w, 2) in [−1, 1], x first; gives (B, C, h, w). The gradient
    is with respect to the picture alone.
    """
    size = constant([image.shape[3], image.shape[2]], grid)
    at = (((grid.detach() + 1) * size - 1) / 2).clamp(min=0).minimum(size - 1)
    low = at.floor()
    share = (at - low)[..., None]  # (B, h, w, 2, 1)
    x0, y0 = low.long().unbind(-1)
    x1, y1 = (x0 + 1).clamp(max=image.shape[3] - 1), (y0 + 1).clamp(max=image.shape[2] - 1)
    row = torch.arange(len(image), device=image.device)[:, None, None]
    pixels = image.permute(0, 2, 3, 1)  # indexing adds up its gradient in a fixed order
    dx, dy = share[..., 0, :], share[..., 1, :]
    top = pixels[row, y0, x0] * (1 - dx) + pixels[row, y0, x1] * dx
    bottom = pixels[row, y1, x0] * (1 - dx) + pixels[row, y1, x1] * dx
    return (top * (1 - dy) + bottom * dy).permute(0, 3, 1, 2)
