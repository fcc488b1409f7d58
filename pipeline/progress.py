"""What a run tells while it works: a listener gets stages and frames, and shows them or not."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from .request import Summary


class Listener(Protocol):
    """Told by a run how far it is. Called from several threads; must return quickly."""

    def start(self, stage: str, total: int, done: int = 0) -> None:
        """A stage begins: ``total`` frames, of which ``done`` were finished by an earlier run."""

    def advance(self, stage: str, frames: int = 1) -> None:
        """So many frames more are done."""

    def finish(self, stage: str) -> None:
        """The stage is over."""

    def log(self, message: str) -> None:
        """Something worth knowing."""

    def warn(self, message: str) -> None:
        """Something the user should look at."""

    def close(self) -> None:
        """The run is over, well or badly; leave the terminal clean."""


class Silent:
    """Shows nothing."""

    def start(self, stage: str, total: int, done: int = 0) -> None: ...
    def advance(self, stage: str, frames: int = 1) -> None: ...
    def finish(self, stage: str) -> None: ...
    def log(self, message: str) -> None: ...
    def warn(self, message: str) -> None: ...
    def close(self) -> None: ...


class Warnings(Silent):
    """Shows warnings alone, on stderr: for what is over before there is progress to show."""

    def warn(self, message: str) -> None:
        sys.stderr.write(f"ldvid: warning: {message}\n")


@dataclass
class _Count:
    total: int
    before: int
    since: float
    shown: float
    done: int = 0

    def line(self, stage: str, now: float, unit: str) -> str:
        rate = self.done / max(now - self.since, 1e-9)
        at = self.before + self.done
        left = f", {clock((self.total - at) / rate)} left" if rate and at < self.total else ""
        speed = f", {rate:.2f} {unit}/s" if rate else ""
        return f"{stage}: {at}/{self.total} {unit}{speed}{left}"


class Lines:
    """Plain lines for logs: at most one every ``interval`` seconds and stage, one when it ends."""

    def __init__(self, stream: TextIO, interval: float = 5.0, unit: str = "frames") -> None:
        self._stream, self._interval, self._unit = stream, interval, unit
        self._counts: dict[str, _Count] = {}
        self._guard = threading.Lock()

    def _print(self, text: str) -> None:
        self._stream.write(f"ldvid: {text}\n")
        self._stream.flush()

    def start(self, stage: str, total: int, done: int = 0) -> None:
        now = time.monotonic()
        with self._guard:
            self._counts[stage] = _Count(total, done, now, now)

    def advance(self, stage: str, frames: int = 1) -> None:
        now = time.monotonic()
        with self._guard:
            count = self._counts[stage]
            count.done += frames
            if now - count.shown >= self._interval:
                count.shown = now
                self._print(count.line(stage, now, self._unit))

    def finish(self, stage: str) -> None:
        now = time.monotonic()
        with self._guard:
            if (count := self._counts.pop(stage, None)) is not None:
                self._print(f"{count.line(stage, now, self._unit)}, {clock(now - count.since)}")

    def log(self, message: str) -> None:
        with self._guard:
            self._print(message)

    def warn(self, message: str) -> None:
        self.log(f"warning: {message}")

    def close(self) -> None: ...


class Bars:
    """One rich bar per stage, on a terminal: frames (or another unit) done, frames/s, time left."""

    def __init__(self, stream: TextIO, unit: str = "frames") -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:.2f} {unit}/s" if speed else "", style="progress.data.speed")

        self._progress: Progress = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(file=stream),
        )
        self._tasks: dict[str, TaskID] = {}

    def start(self, stage: str, total: int, done: int = 0) -> None:
        self._progress.start()
        self._tasks[stage] = self._progress.add_task(stage, total=total, completed=done)

    def advance(self, stage: str, frames: int = 1) -> None:
        self._progress.advance(self._tasks[stage], frames)

    def finish(self, stage: str) -> None:
        self._progress.stop_task(self._tasks[stage])

    def log(self, message: str) -> None:
        from rich.markup import escape

        self._progress.console.print(f"ldvid: {escape(message)}", highlight=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        self.log(f"warning: {message}")

    def close(self) -> None:
        self._progress.stop()


def open_listener(*, quiet: bool = False, stream: TextIO | None = None, unit: str = "frames") -> Listener:
    """Bars on a terminal, lines elsewhere, nothing when ``quiet``. Writes to stderr."""
    out = stream if stream is not None else sys.stderr
    if quiet:
        return Silent()
    return Bars(out, unit) if out.isatty() else Lines(out, unit=unit)


@dataclass
class Stopwatch:
    """Seconds by stage, summed over threads."""

    seconds: dict[str, float] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _local: threading.local = field(default_factory=threading.local)

    def add(self, seconds: Mapping[str, float]) -> None:
        """What another watch measured."""
        with self._guard:
            for stage, took in seconds.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + took

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the duration of the block to a stage, also when it fails. What a block inside it (in the
        same thread) counts as its own is not counted twice."""
        inside: list[float] | None = getattr(self._local, "inside", None)
        within = self._local.inside = [0.0]
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self._local.inside = inside
            if inside is not None:
                inside[0] += took
            with self._guard:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + took - within[0]


def peak_memory() -> int:
    """Bytes of main memory that the process held at most; 0 where the system does not say."""
    try:
        # Linux: getrusage would count what the parent held when it started us.
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def clock(seconds: float) -> str:
    """``4.2 s``, ``3:07`` or ``1:02:09``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def print_summary(summary: Summary, stream: TextIO) -> None:
    """The closing table: a rich one on a terminal, ``name: value`` lines elsewhere."""
    rows = [
        ("faces found", str(summary.faces)),
        ("frames swapped", f"{summary.frames_swapped} of {summary.frames}"),
        ("segments", f"{summary.segments} ({summary.segments_resumed} from an earlier run)"),
        ("device", summary.device + (f" ({summary.workers} workers)" if summary.workers > 1 else "")),
        *((("tried again", why)) for why in summary.retried),
        *((("passed through", why)) for why in summary.passed_through),
        *((f"time: {stage}", clock(seconds)) for stage, seconds in summary.seconds.items()),
        ("swap's share", f"{summary.swap_share:.0%} of the rendering's time"),
        ("peak memory", f"{summary.peak_memory / 2**20:.0f} MiB"),
        ("record", str(summary.report)),
        ("output", str(summary.output)),
    ]
    if not stream.isatty():
        stream.writelines(f"{name}: {value}\n" for name, value in rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    for name, value in rows:
        table.add_row(name, Text(value, overflow="fold"))
    Console(file=stream).print(table)
