"""``ldvid jobs``: how far jobs are, read from their folders. Nothing is locked, written or hashed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TextIO

from ..errors import JobError
from .files import size_of
from .identity import Identity
from .job import load_plan, read_job
from .ledger import Failure, Ledger
from .lock import held
from .progress import clock
from .provenance import report_path

State = Literal["running", "finished", "rendered", "stopped", "not analysed", "damaged", "no job"]


@dataclass(frozen=True)
class JobInfo:
    """One job, as its folder tells it.

    ``state`` is "running" while a process holds the lock; "finished" when all segments are done and the
    output with its record is there and not older than they are; "rendered" when only the segments are;
    "stopped" when some are missing; "not analysed" without a plan. ``idle`` is the number of seconds since
    the last progress, ``size`` in bytes, ``problem`` what is wrong with a folder that is damaged or no job.
    Numbers are None where they aren't known yet.
    """

    path: Path
    state: State
    clip: str | None = None
    output: str | None = None
    segments_done: int | None = None
    segments: int | None = None
    frames_done: int | None = None
    frames: int | None = None
    faces: int | None = None
    preset: str | None = None
    pack: str | None = None
    version: str | None = None
    idle: float | None = None
    size: int | None = None
    failures: tuple[Failure, ...] = ()
    problem: str | None = None

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "path": str(self.path)}


def list_jobs(folders: Iterable[Path]) -> list[JobInfo]:
    """The jobs in these folders, which are job folders or hold some, one level deep."""
    return [job_info(folder) for given in folders for folder in _jobs_in(given)]


def _jobs_in(folder: Path) -> Sequence[Path]:
    if (folder / "job.json").is_file() or not folder.is_dir():
        return [folder]
    inside = sorted(p for p in folder.iterdir() if p.is_dir())
    return [p for p in inside if (p / "job.json").is_file() or p.name.endswith(".ldvid-job")] or [folder]


def job_info(folder: Path) -> JobInfo:
    """State of the job in one folder; never raises for what is in it."""
    if not (folder / "job.json").is_file():
        missing = "no such folder" if not folder.exists() else "it has no job.json"
        return JobInfo(folder, "no job", problem=missing)
    info = JobInfo(folder, "damaged", idle=_idle(folder), size=_size(folder))
    try:
        values = read_job(folder)
        identity = Identity.from_values(values["identity"])
        request = values.get("request") or {}
        info = replace(
            info,
            clip=str(request.get("clip", identity.clip)),
            output=request.get("output"),
            preset=identity.settings.get("preset"),
            pack=identity.pack,
            version=identity.version,
        )
        return _progress(replace(info, state="not analysed"), Ledger(folder, identity.digest()))
    except (JobError, OSError, ValueError, TypeError, AttributeError) as error:
        return replace(info, state="damaged", problem=" ".join(str(error).split()))


def _progress(info: JobInfo, ledger: Ledger) -> JobInfo:
    plan, running = load_plan(info.path), held(info.path)
    if plan is None:
        return replace(info, state="running") if running else info
    done = [d for s in plan.segments if (d := ledger.entry(plan, s)) is not None]
    state: State = "stopped" if len(done) < len(plan.segments) else "rendered"
    if state == "rendered" and info.output is not None and _made(Path(info.output), ledger):
        state = "finished"
    finished = {d.segment.index for d in done}
    return replace(
        info,
        state="running" if running else state,
        segments_done=len(done),
        segments=len(plan.segments),
        frames_done=sum(d.segment.stop - d.segment.start for d in done),
        frames=plan.clip.frames,
        faces=len(plan.tracks),
        failures=tuple(f for f in ledger.failures() if f.segment not in finished),
    )


def _made(output: Path, ledger: Ledger) -> bool:
    """Whether output and record are there, made of the segments that are there now."""
    report = report_path(output)
    if not output.exists() or not report.is_file():
        return False
    entries = [p.stat().st_mtime_ns for p in ledger.segments_folder.glob("*.json")]
    return report.stat().st_mtime_ns >= max(entries, default=0)


def _idle(folder: Path) -> float:
    files = [folder / "job.json", folder / "plan.json", *(folder / "segments").glob("*.json")]
    return max(0.0, time.time() - max((p.stat().st_mtime for p in files if p.exists()), default=time.time()))


def _size(folder: Path) -> int:
    try:
        return size_of(folder)
    except OSError:  # a file that a running job has just renamed
        return 0


def print_jobs(jobs: Sequence[JobInfo], stream: TextIO) -> None:
    """A rich table on a terminal, tab-separated lines with a heading elsewhere."""
    heading = ("job", "state", "segments", "frames", "faces", "preset", "pack", "ldvid", "idle", "size",
               "clip", "output", "problem")  # fmt: skip
    rows = [_row(job) for job in jobs]
    if not stream.isatty():
        stream.writelines("\t".join(" ".join(v.split()) for v in row) + "\n" for row in (heading, *rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = [i for i, name in enumerate(heading) if name != "clip" and any(row[i] for row in rows)]
    table = Table()
    for i in shown:
        table.add_column(heading[i], overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[i]) for i in shown))
    Console(file=stream).print(table)


def _row(job: JobInfo) -> list[str]:
    def share(done: int | None, whole: int | None) -> str:
        return "" if whole is None else f"{done}/{whole}"

    return [
        str(job.path),
        job.state,
        share(job.segments_done, job.segments),
        share(job.frames_done, job.frames),
        "" if job.faces is None else str(job.faces),
        job.preset or "",
        job.pack or "",
        job.version or "",
        "" if job.idle is None else clock(job.idle),
        "" if job.size is None else f"{job.size / 2**20:.1f} MiB",
        job.clip or "",
        job.output or "",
        job.problem or "; ".join(map(_failure, job.failures)),
    ]


def _failure(failure: Failure) -> str:
    where = failure.stage if failure.frame is None else f"{failure.stage}, frame {failure.frame}"
    times = f" ({failure.attempts} attempts)" if failure.attempts > 1 else ""
    return f"segment {failure.segment}: {where}: {failure.reason}{times}"
