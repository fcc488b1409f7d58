"""What a batch tells: a result for each clip, the table of them, ``batch.json``, the exit code."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from .. import __version__
from ..errors import OutputExistsError
from .files import write_atomic
from .progress import clock
from .request import Summary

State = Literal["waiting", "running", "done", "done before", "failed"]

_FIRST_CODE, _MOST = 100, 25  # 126 and above mean something to shells, 130 is Ctrl-C


@dataclass(frozen=True)
class Result:
    """What became of a clip. ``seconds`` are those of the wall clock, ``finished`` is ISO 8601 in UTC."""

    clip: str
    output: str
    state: State = "waiting"
    frames: int | None = None
    frames_swapped: int | None = None
    seconds: float | None = None
    reason: str | None = None
    warnings: tuple[str, ...] = ()
    finished: str | None = None

    def done(self, summary: Summary, seconds: float) -> Result:
        """Swapped in this run."""
        passed = (f"passed through: {why}" for why in summary.passed_through)
        return replace(
            self,
            state="done",
            frames=summary.frames,
            frames_swapped=summary.frames_swapped,
            seconds=round(seconds, 3),
            warnings=(*summary.warnings, *passed),
            finished=_now(),
        )

    def done_before(self, record: dict[str, Any]) -> Result:
        """Swapped by an earlier run, as its record says."""
        return replace(
            self,
            state="done before",
            frames=record["frames"],
            frames_swapped=sum(b - a + 1 for a, b in record["frames_swapped"]),
            warnings=tuple(f"passed through: {p['reason']}" for p in record.get("passed_through", ())),
            finished=record["created"],
        )

    def failed(self, reason: str, seconds: float | None = None) -> Result:
        """Not swapped."""
        took = None if seconds is None else round(seconds, 3)
        why = reason.removeprefix(f"{self.clip}: ")  # which stands beside it
        return replace(self, state="failed", reason=why, seconds=took, finished=_now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def exit_code(results: Sequence[Result]) -> int:
    """0, or 100 and the number of clips that failed: 101 to 125, which is 25 and more."""
    failed = sum(r.state == "failed" for r in results)
    return _FIRST_CODE + min(failed, _MOST) if failed else 0


def counted(results: Sequence[Result]) -> str:
    """``3 done, 1 done before, 2 failed``."""
    often = Counter(r.state for r in results)
    states: tuple[State, ...] = ("done", "done before", "failed", "running", "waiting")
    return ", ".join(f"{often[s]} {s}" for s in states if often[s] or s in ("done", "failed"))


class Record:
    """``batch.json``: the state of every clip, rewritten whenever one ends."""

    def __init__(self, path: Path) -> None:
        """OutputExistsError if something else has that name."""
        self.path = path
        self._next = 0.0
        try:
            if path.exists() and "clips" not in json.loads(path.read_text(encoding="utf-8")):
                raise ValueError
        except (OSError, ValueError, TypeError) as error:
            raise OutputExistsError(
                f"{path} is in the way and no batch wrote it; choose another folder with -o"
            ) from error

    def write(self, results: Sequence[Result], *, last: bool = False) -> None:
        """OutputError if it can't be. Of a large batch's hasty endings some are left for the next time,
        so that writing takes no more than a small share of the time; never the last."""
        began = time.monotonic()
        if began < self._next and not last:
            return
        values = {
            "ldvid": __version__,
            "updated": _now(),
            "counts": dict(Counter(r.state for r in results)),
            "clips": [asdict(r) for r in results],
        }
        write_atomic(self.path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
        took = time.monotonic() - began
        self._next = began + 20 * took if took > 0.1 else 0.0


def print_results(results: Sequence[Result], stream: TextIO) -> None:
    """A rich table and a line that counts on a terminal, tab-separated lines with a heading elsewhere."""
    heading = ("clip", "state", "frames", "swapped", "time", "output", "reason", "warnings")
    rows = [_row(result) for result in results]
    if not stream.isatty():
        stream.writelines("\t".join(" ".join(v.split()) for v in row) + "\n" for row in (heading, *rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = [i for i, _ in enumerate(heading) if any(row[i] for row in rows)]
    table = Table()
    for i in shown:
        table.add_column(heading[i], overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[i]) for i in shown), style="red" if row[1] == "failed" else None)
    console = Console(file=stream)
    console.print(table)
    console.print(counted(results), highlight=False)


def _row(result: Result) -> list[str]:
    def number(value: int | None) -> str:
        return "" if value is None else str(value)

    return [
        result.clip,
        result.state,
        number(result.frames),
        number(result.frames_swapped),
        "" if result.seconds is None else clock(result.seconds),
        result.output,
        result.reason or "",
        "; ".join(result.warnings),
    ]
