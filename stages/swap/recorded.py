"""Work that is the same for batch after batch, recorded once and replayed (CUDA graphs).

A guided swap of a few steps is some thousand small operations. Asked for one by one, the processor is slower
at asking than a GPU at answering, and while it asks, it holds the interpreter that the stages beside it need.
Recorded, a batch is a single call. The kernels, and so the bytes, are those of the first run.

Recording takes about as long as running once, so the first batch runs as it is, the second is recorded, and a
short clip loses nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .constants import listed
from .quiet import Quiet

MOST = 4  # recordings kept; their memory is shared
Shared = TypeVar("Shared")
Work = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class _Recording:
    graph: Any
    inputs: dict[str, Tensor]
    outputs: tuple[Tensor, ...]
    # Kept alive: the graph knows only the addresses of what it reads.
    constants: list[Tensor]
    work: Work


class Recorder:
    """Runs work, from the third time on by replaying it. On a CPU it just runs it.

    Work that can't be recorded (it waits for the GPU, or memory does not suffice for both) runs as it is.
    Safe to use from several threads; one at a time is run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._guard, self.quiet = device, threading.Lock(), Quiet()
        self._met: OrderedDict[Hashable, None] = OrderedDict()
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._refused: set[Hashable] = set()
        self._shared: OrderedDict[Hashable, Any] = OrderedDict()
        self._place: tuple[Any, Any] | None = None  # the pool of memory, the stream to record on

    @property
    def used(self) -> bool:
        """Whether anything was run."""
        return bool(self._met)

    def shared(self, name: Hashable, make: Callable[[], Shared]) -> Shared:
        """What was made under this name, so that whoever does the same may do it with the same; one of the
        last ``4 * MOST`` names, as what it holds may lie on the GPU."""
        with self._guard:
            if name not in self._shared:
                self._shared[name] = make()
            self._shared.move_to_end(name)
            if len(self._shared) > 4 * MOST:
                self._shared.popitem(last=False)
            return cast(Shared, self._shared[name])

    def run(
        self,
        key: Hashable,
        work: Work,
        inputs: dict[str, Tensor],
        before: Callable[[], None] | None = None,
    ) -> tuple[Tensor, ...]:
        """``work(inputs)``; what it returns may be changed, and stays as it is when the next one runs.

        Args:
            key: the same only for work that does the same with its inputs, whatever numbers are in them.
            work: must not wait for the GPU, nor copy to it, once it ran.
            inputs: tensors on the device.
            before: what to do each time before the work, and never recorded.
        """
        if self._device.type != "cuda":
            if before is not None:
                before()
            return work(inputs)
        shapes = tuple((name, t.shape, t.dtype) for name, t in sorted(inputs.items()))
        whole = (key, shapes)
        with self._guard:
            if before is not None:
                before()
            if whole not in self._met or whole in self._refused:
                return self._first(whole, work, inputs)
            recording = self._recordings.get(whole)
            if recording is None:
                recording = self._record(whole, work, inputs)
                if recording is None:
                    return self._first(whole, work, inputs)
            self._recordings.move_to_end(whole)
            for name, value in inputs.items():
                recording.inputs[name].copy_(value)
            recording.graph.replay()
            return tuple(t.clone() for t in recording.outputs)

    def _first(self, key: Hashable, work: Work, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] | None = None
        try:
            result = work(inputs)
        except torch.OutOfMemoryError:
            if not self._recordings:
                raise
        if result is None:  # out here, where the error no longer holds the tensors of the failed try
            self._forget()
            result = work(inputs)
        self._met[key] = None
        if len(self._met) > 64 * MOST:
            self._met.popitem(last=False)
        return result

    def _record(self, key: Hashable, work: Work, inputs: dict[str, Tensor]) -> _Recording | None:
        if self._place is None:
            cuda: Any = torch.cuda
            self._place = cuda.graph_pool_handle(), cuda.Stream(self._device)
        pool, stream = self._place
        graph: Any = torch.cuda.CUDAGraph()
        try:
            own = {name: value.clone() for name, value in inputs.items()}
            recording = torch.cuda.graph(graph, pool, stream, "thread_local")
            with self.quiet.alone(), listed() as constants, recording:
                outputs = work(own)
        except RuntimeError:
            self._refused.add(key)
            del graph
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
            return None
        made = _Recording(graph, own, outputs, constants, work)
        self._recordings[key] = made
        if len(self._recordings) > MOST:
            torch.cuda.synchronize(self._device)  # none may be destroyed while it runs
            gone, _ = self._recordings.popitem(last=False)
            self._met.pop(gone, None)
        return made

    def _forget(self) -> None:
        torch.cuda.synchronize(self._device)
        self._recordings.clear()
        self._met.clear()
        self._place = None
        torch.cuda.empty_cache()
