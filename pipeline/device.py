"""What the networks compute on, as far as it decides the bytes: the kind of device, the CPU's threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


def compute_device(name: str, threads: int | None) -> tuple[str, int | None]:
    """``("cpu", threads)`` or ``("NVIDIA H200", None)`` for ``auto``, ``cpu`` or ``cuda``.

    Sums are split among threads, so another number of them rounds differently in the last bit; None is the
    number that torch would use. A GPU's results don't depend on it.

    Raises:
        SettingsError: CUDA is asked for where there is none.
    """
    import torch

    from ..stages.swap.networks import resolve_device

    device = resolve_device(name)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device), None
    return device.type, threads if threads is not None else torch.get_num_threads()


@contextlib.contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """The networks use so many CPU threads inside; None leaves torch as it is."""
    if threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
