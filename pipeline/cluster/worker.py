"""What runs on the cluster: load as tasks, swap as actors, write as tasks.

Each takes a row (a ticket, and the segment so far), works, tells the foreman, and hands the row on; a
row without a payload is passed along untouched. Nothing raises into Ray: what a stage raises is
reported, and the foreman decides. What kills the process is Ray's to notice: it runs the task again,
and the foreman counts. What takes too long ends its own process, for a call that hangs in C can't be ended
otherwise.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import pyarrow as pa
import ray

from ...errors import LdvidError, PackError
from ..device import limit_gpu_memory
from ..failure import FATAL, Policy, reason_of
from ..load import Loaded, Loader, swapped_frames
from ..progress import Stopwatch
from ..render import Swapper
from ..work import Work, at_hand, compiled_for
from ..write import Writer, entered
from .feed import table
from .foreman import Ticket
from .limit import limited, unlimited

_KEPT = 8  # jobs whose readers and source stay open in a process
_orders: OrderedDict[str, Work] = OrderedDict()
_parts: OrderedDict[tuple[str, str], Any] = OrderedDict()


@dataclass(frozen=True)
class Station:
    """What every stage needs to know: whom to tell, and for how long it may work."""

    foreman: Any
    policy: Policy

    def run(
        self, row: pa.Table, stage: str, work: Callable[[Ticket, Loaded | None, Stopwatch], Any]
    ) -> pa.Table:
        """One row through ``work``, which gives the payload to hand on."""
        cv2.setNumThreads(1)  # a task has one CPU, and OpenCV would take all
        pickled, payload = row["ticket"][0].as_py(), row["payload"][0]
        ticket: Ticket = pickle.loads(pickled)
        so_far = None if stage == "load" else payload.as_buffer()
        if (stage != "load" and so_far is None) or not self._ask("begin", ticket, stage):
            return table(pickled, None)
        watch, handed = Stopwatch(), None
        broken = False
        try:
            with limited(self.policy.time_limit, lambda: self._too_long(ticket, stage)):
                handed = work(ticket, None if so_far is None else pickle.loads(so_far), watch)
        except Exception as error:
            part = _parts.get((ticket.job, stage))
            at, frame = _whereabouts(part, stage)
            fatal = isinstance(error, FATAL) or (isinstance(error, LdvidError) and part is None)
            self._ask("failed", ticket, at, frame, type(error).__name__, reason_of(error), fatal)
            _parts.pop((ticket.job, stage), None)
            broken = _spoils_the_process(error)
        else:
            frames = len(swapped_frames(handed)) if stage == "swap" else 0
            me = f"{stage}-{socket.gethostname()}-{os.getpid()}"
            self._ask("end", ticket, stage, me, (_node(), _device(stage)), watch.seconds, frames)
        if broken:
            os._exit(1)  # Ray starts another
        return table(
            pickled, None if handed is None else pickle.dumps(handed, protocol=4)
        )  # 5's arrays could not be written to

    def _too_long(self, ticket: Ticket, stage: str) -> None:
        at, frame = _whereabouts(_parts.get((ticket.job, stage)), stage)
        why = f"took longer than --time-limit {self.policy.time_limit:g} s"
        self._ask("failed", ticket, at, frame, "JobError", why, False)

    def _ask(self, method: str, *values: Any) -> Any:
        return ray.get(getattr(self.foreman, method).remote(*values))

    def part(self, ticket: Ticket, stage: str, make: Callable[[Work], Any]) -> Any:
        """The job's Loader, Swapper or Writer in this process, made when first asked for."""
        key = (ticket.job, stage)
        if key not in _parts:
            _parts[key] = make(self._order(ticket.job))
            while len(_parts) > _KEPT:
                _parts.popitem(last=False)
        _parts.move_to_end(key)
        return _parts[key]

    def _order(self, job: str) -> Work:
        if job not in _orders:
            (reference,) = self._ask("spec", job)
            _orders[job] = at_hand(ray.get(reference))
            while len(_orders) > _KEPT:
                _orders.popitem(last=False)
        return _orders[job]


@dataclass(frozen=True)
class Load:
    """Ticket → crops."""

    station: Station

    def __call__(self, row: pa.Table) -> pa.Table:
        return self.station.run(row, "load", self._load)

    def _load(self, ticket: Ticket, _: Loaded | None, watch: Stopwatch) -> Loaded:
        if ticket.passed is not None:
            return Loaded(ticket.segment, [], passed=ticket.passed)
        loader = self.station.part(ticket, "load", lambda work: Loader(work, watch, keep=False))
        loader.watch = watch
        loaded: Loaded = loader.load(ticket.segment)
        return loaded


@dataclass(frozen=True)
class Warm:
    """Networks that a worker can load before it has work: pack (name or folder), digest, precision, and the
    batch to compile for, 0 for not at all."""

    pack: str
    digest: str
    dtype: str
    compiled: int = 0


class Swap:
    """Crops → swapped crops. One process holds the networks of the last packs it met."""

    def __init__(self, station: Station, device: str, warm: Warm | None = None) -> None:
        self.station, self.device = station, device
        self._networks: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
        if warm is not None:
            with contextlib.suppress(Exception):  # the first segment meets it again, and says it
                self._loaded(warm, Stopwatch())

    def __call__(self, row: pa.Table) -> pa.Table:
        return self.station.run(row, "swap", self._swap)

    def _swap(self, ticket: Ticket, loaded: Loaded | None, watch: Stopwatch) -> Loaded:
        assert loaded is not None
        if not loaded.crops:
            return loaded
        swapper = self.station.part(ticket, "swap", lambda work: self._swapper(work, watch))
        swapper.listen(watch, lambda n: self.station.foreman.progress.remote(ticket, n))
        swapped: Loaded = swapper.swap(loaded)
        return swapped

    def _swapper(self, work: Work, watch: Stopwatch) -> Swapper:
        import torch

        if self.device == "cpu" and work.threads is not None:
            torch.set_num_threads(work.threads)
        limit_gpu_memory(work.max_memory)
        settings = work.settings
        warm = Warm(work.pack, work.pack_digest, settings.dtype, compiled_for(settings))
        return Swapper(work, self._loaded(warm, watch), watch)

    def _loaded(self, warm: Warm, watch: Stopwatch) -> Any:
        from ...stages.swap.networks import Networks
        from ..pack_at_hand import pack_at_hand

        key = (warm.digest, warm.dtype, warm.compiled)
        if key not in self._networks:
            with watch.time("load"), unlimited():
                pack = pack_at_hand(warm.pack)
                if pack.digest() != warm.digest:
                    raise PackError(f"pack {warm.pack} is another one on this machine: its files differ")
                self._networks[key] = Networks.load(pack, self.device, warm.dtype, warm.compiled)
            while len(self._networks) > 2:
                self._networks.popitem(last=False)
        return self._networks[key]


@dataclass(frozen=True)
class Write:
    """Swapped crops → a segment in the ledger."""

    station: Station

    def __call__(self, row: pa.Table) -> pa.Table:
        return self.station.run(row, "write", self._write)

    def _write(self, ticket: Ticket, swapped: Loaded | None, watch: Stopwatch) -> None:
        assert swapped is not None
        writer = self.station.part(
            ticket, "write", lambda work: Writer(work, watch, work.ledger().segments_folder)
        )
        writer.watch = watch
        frames = entered(writer, writer.work.ledger(), swapped)
        self.station._ask("done", ticket, len(frames))


def _whereabouts(part: Any, stage: str) -> tuple[str, int | None]:
    """The stage and the frame that a Loader, Swapper or Writer is at, if there is one."""
    return getattr(part, "stage", "") or stage, getattr(part, "frame", None)


def _spoils_the_process(error: BaseException) -> bool:
    """After an error on the GPU other than a full memory, nothing works there in this process any more."""
    import torch

    return isinstance(error, torch.AcceleratorError)


def _node() -> str:
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def _device(stage: str) -> str:
    if stage != "swap":
        return "cpu"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
