"""What the networks compute on, as far as it decides the bytes: the kind of device, the CPU's threads."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from ..errors import SettingsError

HAND_OVER = 2e-4  # seconds after which a thread lets another have the interpreter
DRIVER_BYTES = 600_000_000  # what CUDA takes beside torch: its context, cuDNN, cuBLAS


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
    """Networks and arithmetic use so many CPU threads inside; None leaves them as they are.

    OpenCV uses none of its own meanwhile: frames go over the cores one by one (``stages.spread``), and
    threads that wake threads for a millisecond's work spend more on that than on the work. Each also gives up
    the interpreter dozens of times a frame, and would wait 5 ms to have it back from one that asks a GPU for
    one small thing after another: threads hand over sooner here.
    """
    import cv2

    opencv, interval = cv2.getNumThreads(), sys.getswitchinterval()
    cv2.setNumThreads(1)
    sys.setswitchinterval(min(HAND_OVER, interval))
    try:
        if threads is None:
            yield
            return
        import torch

        from ..stages.spread import limited

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with limited(threads):
                yield
        finally:
            torch.set_num_threads(before)
    finally:
        cv2.setNumThreads(opencv)
        sys.setswitchinterval(interval)


def limit_gpu_memory(limit: int | None) -> None:
    """This process takes at most ``limit`` bytes of its GPU's memory; None: as much as there is.

    What does not fit then is tried in smaller batches (``stages.swap.fitting``), which is what a smaller GPU
    would do. Nothing happens where there is no GPU.

    Raises:
        SettingsError: not even the driver's own share fits.
    """
    import torch

    if limit is None or not torch.cuda.is_available():
        return
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    share = (limit - DRIVER_BYTES) / total
    if share <= 0:
        raise SettingsError(
            f"--max-memory: the GPU's driver alone takes {DRIVER_BYTES / 1e9:.1f} GB; give several GB"
        )
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
