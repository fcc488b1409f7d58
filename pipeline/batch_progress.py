"""Progress of a batch: clips done, frames analysed and rendered, over all clips that are open at once."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from .batch_report import Result
from .progress import clock

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SHOWN = {"analyse": "analysed", "encode": "rendered"}  # stages that count every frame of a clip once
_INTERVAL = 10.0  # seconds between two lines


@dataclass
class _Count:
    done: int = 0
    total: int = 0


class BatchProgress:
    """Bars on a terminal, lines elsewhere, nothing if ``stream`` is None. For several threads."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._guard = threading.Lock()
        self._counts = {"clips": _Count(), **{name: _Count() for name in _SHOWN.values()}}
        self._said = time.monotonic()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if stream is not None and stream.isatty():
            self._bars = _bars(stream)

    def start(self, clips: int, before: int) -> None:
        """So many clips, of which ``before`` need no work."""
        self._counts["clips"] = _Count(before, clips)
        if self._bars is not None:
            self._bars.start()
            for name, count in self._counts.items():
                self._tasks[name] = self._bars.add_task(name, total=count.total, completed=count.done)

    def count(self, name: str, done: int, total: int) -> None:
        """So many more are done, and so many more are known of."""
        with self._guard:
            count = self._counts[name]
            count.done += done
            count.total += total
            if self._bars is not None and name in self._tasks:
                self._bars.update(self._tasks[name], completed=count.done, total=count.total)
            elif self._stream is not None and time.monotonic() - self._said >= _INTERVAL:
                self._print(", ".join(f"{n} {c.done}/{c.total}" for n, c in self._counts.items() if c.total))

    def totals(self) -> dict[str, tuple[int, int]]:
        """What is done, of how many that are known of: clips, frames analysed, frames rendered."""
        with self._guard:
            return {name: (count.done, count.total) for name, count in self._counts.items()}

    def ended(self, result: Result) -> None:
        """A clip is done, or failed."""
        self.count("clips", 1, 0)
        count = self._counts["clips"]
        said = (
            f"{result.frames} frames, {clock(result.seconds or 0)}"
            if result.reason is None
            else result.reason
        )
        self.log(f"[{count.done}/{count.total}] {result.clip}: {result.state}: {said}")

    def log(self, message: str) -> None:
        """Something worth knowing."""
        with self._guard:
            self._print(message)

    def _print(self, message: str) -> None:
        self._said = time.monotonic()
        if self._bars is not None:
            from rich.markup import escape

            self._bars.console.print(f"ldvid: {escape(message)}", highlight=False, soft_wrap=True)
        elif self._stream is not None:
            self._stream.write(f"ldvid: {message}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the terminal clean."""
        if self._bars is not None:
            self._bars.stop()


class ClipListener:
    """Tells a batch's progress of one clip; once ``stop`` is set, breaks its work off as Ctrl-C would.

    The run itself calls it from the thread it runs in, at least for every frame or a few times a second;
    the last step, in which the output is put in place, is left whole.
    """

    def __init__(self, progress: BatchProgress, clip: str, stop: threading.Event) -> None:
        self._progress, self._clip, self._stop = progress, clip, stop
        self._open: dict[str, _Count] = {}

    def _check(self, stage: str) -> None:
        if stage != "finish" and self._stop.is_set():
            raise KeyboardInterrupt

    def start(self, stage: str, total: int, done: int = 0) -> None:
        self._check(stage)
        if stage in _SHOWN:
            self._open[stage] = _Count(done, total)
            self._progress.count(_SHOWN[stage], done, total)

    def advance(self, stage: str, frames: int = 1) -> None:
        self._check(stage)
        if stage in _SHOWN:
            self._open[stage].done += frames
            self._progress.count(_SHOWN[stage], frames, 0)

    def finish(self, stage: str) -> None:
        self._check(stage)

    def log(self, message: str) -> None:
        self._progress.log(f"{self._clip}: {message}")

    def warn(self, message: str) -> None:
        named = message if message.startswith(self._clip) else f"{self._clip}: {message}"
        self._progress.log(f"warning: {named}")

    def close(self) -> None:
        """What the clip will not do any more is no longer counted as to be done."""
        for stage, count in self._open.items():
            self._progress.count(_SHOWN[stage], 0, count.done - count.total)
        self._open.clear()


def _bars(stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(file=stream),
    )


def open_progress(*, quiet: bool) -> BatchProgress:
    """On stderr, or nowhere."""
    return BatchProgress(None if quiet else sys.stderr)
