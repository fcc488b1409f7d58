"""What a download tells while it works: bytes by file and in all, and lines worth reading."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Transfers(Protocol):
    """Told by a download how far it is; must return quickly."""

    def total(self, size: int) -> None:
        """So many bytes will come in all, as far as is known."""

    def start(self, name: str, size: int | None) -> None:
        """A file begins."""

    def advance(self, size: int) -> None:
        """So many more of its bytes are here; negative: so many were useless."""

    def finish(self, name: str) -> None:
        """It is there."""

    def fail(self, name: str, reason: str) -> None:
        """It could not be had."""

    def log(self, message: str) -> None:
        """Something worth knowing."""

    def warn(self, message: str) -> None:
        """Something the user should look at."""

    def close(self) -> None:
        """All is over, well or badly; leave the terminal clean."""


class Silent:
    """Shows nothing."""

    def total(self, size: int) -> None: ...
    def start(self, name: str, size: int | None) -> None: ...
    def advance(self, size: int) -> None: ...
    def finish(self, name: str) -> None: ...
    def fail(self, name: str, reason: str) -> None: ...
    def log(self, message: str) -> None: ...
    def warn(self, message: str) -> None: ...
    def close(self) -> None: ...


class Lines:
    """Plain lines for logs: one a file when it is over, and one every ``interval`` seconds of it."""

    def __init__(self, stream: TextIO, interval: float = 10.0) -> None:
        self._stream, self._interval = stream, interval
        self._name = ""
        self._size: int | None = None
        self._done, self._shown = 0, 0.0

    def total(self, size: int) -> None:
        self.log(f"{human(size)} to fetch")

    def start(self, name: str, size: int | None) -> None:
        self._name, self._size, self._done, self._shown = name, size, 0, time.monotonic()

    def advance(self, size: int) -> None:
        self._done += size
        if time.monotonic() - self._shown >= self._interval:
            self._shown = time.monotonic()
            of = f" of {human(self._size)}" if self._size else ""
            self.log(f"{self._name}: {human(self._done)}{of}")

    def finish(self, name: str) -> None:
        self.log(f"{name}: {human(self._done)}, done")

    def fail(self, name: str, reason: str) -> None:
        self.warn(f"{name}: {reason}")

    def log(self, message: str) -> None:
        self._stream.write(f"ldvid: {message}\n")
        self._stream.flush()

    def warn(self, message: str) -> None:
        self.log(f"warning: {message}")

    def close(self) -> None: ...


class Bars:
    """A rich bar for the file and one for all: bytes, speed, time left."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=stream),
        )
        self._all: TaskID | None = None
        self._file: TaskID | None = None

    def total(self, size: int) -> None:
        self._progress.start()
        self._all = self._progress.add_task("all", total=size)

    def start(self, name: str, size: int | None) -> None:
        self._file = self._progress.add_task(name, total=size)

    def advance(self, size: int) -> None:
        for task in (self._all, self._file):
            if task is not None:
                self._progress.advance(task, size)

    def finish(self, name: str) -> None:
        self._drop()
        self.log(f"{name}: done")

    def fail(self, name: str, reason: str) -> None:
        self._drop()
        self.warn(f"{name}: {reason}")

    def _drop(self) -> None:
        if self._file is not None:
            self._progress.remove_task(self._file)
            self._file = None

    def log(self, message: str) -> None:
        from rich.markup import escape

        self._progress.console.print(f"ldvid: {escape(message)}", highlight=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        self.log(f"warning: {message}")

    def close(self) -> None:
        self._progress.stop()


def open_transfers(*, quiet: bool = False, stream: TextIO | None = None) -> Transfers:
    """Bars on a terminal, lines elsewhere, nothing when ``quiet``. Writes to stderr."""
    out = stream if stream is not None else sys.stderr
    if quiet:
        return Silent()
    return Bars(out) if out.isatty() else Lines(out)


def human(size: int) -> str:
    """``486 bytes``, ``53.3 MB``, ``1.1 GB`` (decimal, as the hubs' pages give sizes)."""
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError
