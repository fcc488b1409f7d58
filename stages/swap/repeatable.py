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

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from .constants import constant

_guard = threading.Lock()
_depth = {False: 0, True: 0}  # of ``repeatable`` and of ``strict``
_before = (0, True)


@contextlib.contextmanager
def repeatable(*, strict: bool = False) -> Iterator[None]:
    """Inside, results depend on their inputs alone (on a CPU: and on the number of threads).

    An operation that has no such variant, in a user's guidance term, still runs, and torch warns of it;
    unless ``strict``: then it is an error. The gradient of attention has one, which torch takes if ``strict``
    only. On a CPU what we evaluate is repeatable anyway; the gradient of a term that picks pixels by index
    isn't.
    """
    global _before
    memory: Any = torch.utils.deterministic
    # torch's switch is the whole process's, and threads come and go in any order: the last one puts it back.
    with _guard:
        if not any(_depth.values()):
            _before = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
            memory.fill_uninitialized_memory = False
        _depth[strict] += 1
        _switch()
    try:
        yield
    finally:
        with _guard:
            _depth[strict] -= 1
            if any(_depth.values()):
                _switch()
            else:
                torch.set_deterministic_debug_mode(_before[0])
                memory.fill_uninitialized_memory = _before[1]


def _switch() -> None:
    """torch's own switch, by the one of its two names that doesn't import a compiler, which takes seconds."""
    torch.set_deterministic_debug_mode("error" if _depth[True] else "warn")


def tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on ``device``.

    numpy's own memory begins at any multiple of 16 bytes, and matrix products on a CPU may round by that;
    torch's begins at multiples of 64. A GPU takes it when it comes to it; nobody waits for that.
    """
    if device.type != "cuda":
        return torch.tensor(array, device=device)
    kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
    staged = torch.empty(array.shape, dtype=kind, pin_memory=True)
    staged.numpy()[...] = array
    return staged.to(device, non_blocking=True)


def prepare() -> None:
    """To be called before the first matrix product on a GPU: cuBLAS takes its workspace then."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def sample_bilinear(image: Tensor, grid: Tensor) -> Tensor:
    """``grid_sample`` (bilinear, border, ``align_corners=False``) with a gradient that is repeatable.

    ``image`` (B, C, H, W), ``grid`` (B, h, w, 2) in [−1, 1], x first; gives (B, C, h, w). The gradient
    is with respect to the picture alone.
    """
    sampled: Tensor = _Sampling.apply(image, grid.detach())
    return sampled


class _Sampling(torch.autograd.Function):
    """The gradient adds up whole numbers, for which order does not matter, pixel after pixel: sorted by the
    pixel they belong to, what each gets is the difference of two running sums."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.size = image.shape[2:]
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        height, width = ctx.size
        pixel, share = _corners(grid.flatten(1, 2), height, width)  # (B, 4 · h · w)
        pixel, order = pixel.sort(dim=1, stable=True)
        ends = torch.arange(height * width + 1, dtype=pixel.dtype, device=pixel.device)
        ends = torch.searchsorted(pixel, ends.expand(len(pixel), -1).contiguous())
        parts = gradient.flatten(2).repeat(1, 1, 4) * share[:, None]
        parts = parts.double().gather(2, order[:, None].expand_as(parts))
        most = parts.abs().amax((1, 2), keepdim=True)
        # As large as running sums allow.
        unit = most / 2.0 ** (62 - parts.shape[2].bit_length())
        whole = (parts / torch.where(unit > 0, unit, 1)).round().long()
        sums = F.pad(whole.cumsum(2), (1, 0)).gather(2, ends[:, None].expand(-1, parts.shape[1], -1))
        summed = sums.diff(dim=2).double() * unit + most * 0  # what isn't finite stays so
        return summed.to(gradient.dtype).view(*gradient.shape[:2], height, width), None


def _corners(grid: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(B, N, 2) in [−1, 1] → the four pixels about each point as numbers y · W + x, and their shares, both
    (B, 4 · N)."""
    size = constant([width, height], grid)
    at = (((grid + 1) * size - 1) / 2).clamp(min=0).minimum(size - 1)
    low = at.floor()
    (dx, dy), (x0, y0) = (at - low).unbind(-1), low.int().unbind(-1)
    x1, y1 = (x0 + 1).clamp(max=width - 1), (y0 + 1).clamp(max=height - 1)
    pixels = [y0 * width + x0, y0 * width + x1, y1 * width + x0, y1 * width + x1]
    shares = [(1 - dx) * (1 - dy), dx * (1 - dy), (1 - dx) * dy, dx * dy]
    return torch.cat(pixels, 1), torch.cat(shares, 1)
