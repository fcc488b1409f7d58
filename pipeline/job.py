"""The job folder: what makes a long run resumable.

::

    job.json         "identity": clip, source, settings, pack, device and version of ldvid
                     "request": the call that made it, with absolute paths (see ``resume``)
                     "placing": only while the output is being put in place; what it is
    plan.json        see ``plan``
    segments/        one file per finished segment, and beside each its ledger entry (see ``ledger``)
    lock             held by the process that works here

A segment counts as done when its ledger entry names the digest that the plan asks for *and* its file
still has the SHA-256 written there.

"placing" is what makes the last step whole: the output, its record and the end of this folder are three
changes, and whoever finds only the first knows by it that the output is this job's own and complete.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import JobError, OutputError
from ..stages.records import Segment
from .files import remove, sync_folder, write_atomic
from .identity import Identity
from .ledger import Done, Failure, Ledger
from .lock import acquire, release
from .mirror import Mirror
from .plan import Plan

__all__ = ["Done", "Identity", "Job", "JobChangedError", "load_plan", "read_job"]

_OWN = ("segments", "plan.json", "job.json")  # job.json last: without it nothing here is a job's


class JobChangedError(JobError):
    """The folder belongs to a job with another identity; ``changes`` says in words what differs."""

    def __init__(self, folder: Path, changes: list[str]) -> None:
        super().__init__(
            f"{folder} belongs to a job that differs in: {'; '.join(changes)}. "
            "Give --restart to discard what it has done, or --job for another folder"
        )
        self.changes = changes


class Job:
    """An open, locked job folder. Use as a context manager: leaving it releases the lock."""

    def __init__(
        self, folder: Path, identity: Identity, lock: int, *, created: bool, mirror: Mirror | None = None
    ) -> None:
        self.folder, self.identity, self.created, self.mirror = folder, identity, created, mirror
        self._lock: int | None = lock
        self.ledger = Ledger(folder, identity.digest(), mirror)
        self._values: dict[str, Any] = {}

    @property
    def segments_folder(self) -> Path:
        """Where segments and their entries lie."""
        return self.ledger.segments_folder

    @classmethod
    def open(
        cls,
        folder: Path,
        identity: Identity,
        *,
        restart: bool = False,
        request: Mapping[str, Any] | None = None,
        mirror: Mirror | None = None,
    ) -> Job:
        """Create the folder, or go on in it if it belongs to the same job. ``request`` (JSON) is stored
        beside the identity; None leaves an earlier one. With a ``mirror``, ``folder`` is its working copy,
        and what is written here goes there too.

        Raises:
            JobError: it is another job's (says what differs), no job's at all, or in use.
            OutputError: it can't be created.
        """
        try:
            created = not folder.exists()
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: the job folder can't be made: {error.strerror}") from error
        strangers = [p.name for p in folder.iterdir() if p.name != "lock" and not p.name.startswith(".")]
        if strangers and mirror is None and not (folder / "job.json").is_file():
            raise JobError(
                f"--job {folder}: it holds {strangers[0]} and is no job folder; choose another one"
            )
        job = cls(folder, identity, acquire(folder), created=created, mirror=mirror)
        try:
            if restart:
                job._empty()
            job._claim(request)
        except BaseException:
            job.close()
            raise
        return job

    def _claim(self, request: Mapping[str, Any] | None) -> None:
        old: dict[str, Any] = {}
        if (self.folder / "job.json").is_file():
            old = read_job(self.folder)
            if changes := self.identity.differences(old["identity"]):
                raise JobChangedError(self.folder, changes)
        self._values = dict(old)
        self._store(identity=asdict(self.identity), **({} if request is None else {"request": dict(request)}))
        self.segments_folder.mkdir(exist_ok=True)
        sync_folder(self.folder)
        sync_folder(self.folder.absolute().parent)
        for folder in (self.folder, self.segments_folder):  # of runs that were killed
            for stale in folder.glob(".*.tmp"):
                remove(stale)

    def _store(self, **values: Any) -> None:
        """Change keys of job.json; None takes one away. Nothing is written where nothing changes."""
        new = {k: v for k, v in (self._values | values).items() if v is not None}
        new = json.loads(json.dumps(new))
        if new != self._values:
            write_atomic(self.folder / "job.json", json.dumps(new, indent=2, ensure_ascii=False) + "\n")
            self._values = new
            if self.mirror is not None:
                self.mirror.push("job.json")

    def placing(self, values: Mapping[str, Any]) -> None:
        """Write down what is about to be put in place."""
        self._store(placing=dict(values))

    def placed(self) -> None:
        """Output and record are in place."""
        self._store(placing=None)

    def _empty(self) -> None:
        """Delete what a job writes, and nothing that someone else put here."""
        for path in (*self.folder.glob(".*.tmp"), *(self.folder / name for name in _OWN)):
            remove(path)
            sync_folder(self.folder)

    @property
    def has_plan(self) -> bool:
        """Whether the analysis is done; what the plan holds is not looked at."""
        return (self.folder / "plan.json").is_file()

    def load_plan(self) -> Plan | None:
        """The plan of an earlier run, or None. JobError if an edit broke it."""
        return load_plan(self.folder)

    def save_plan(self, plan: Plan) -> Plan:
        """Write the plan and return it as it reads back (rounded).

        Raises:
            JobError: it would not read back; an earlier one is still there.
        """
        file, text = self.folder / "plan.json", plan.to_json()
        loaded = Plan.from_json(text, str(file))
        write_atomic(file, text)
        if self.mirror is not None:
            self.mirror.push("plan.json")
        return loaded

    def finished(self, plan: Plan) -> dict[int, Done]:
        """``Ledger.finished``, unvouched files being deleted; those of a mirror are brought here first."""
        self.ledger.gather(plan)
        return self.ledger.finished(plan)

    def record(self, plan: Plan, segment: Segment, path: Path, frames: Iterable[int], **notes: Any) -> Done:
        """``Ledger.record``."""
        return self.ledger.record(plan, segment, path, frames, **notes)

    def record_failure(
        self, segment: Segment, stage: str, frame: int | None, reason: str, attempts: int
    ) -> None:
        """``Ledger.record_failure``."""
        self.ledger.record_failure(segment, stage, frame, reason, attempts)

    def failures(self) -> list[Failure]:
        """``Ledger.failures``."""
        return self.ledger.failures()

    def discard(self, *, keep_folder: bool = False) -> None:
        """Delete all that the job wrote, and the folder unless it is to be kept or holds something else."""
        self._empty()
        if self.mirror is not None:
            self.mirror.remove()
        (self.folder / "lock").unlink(missing_ok=True)
        if not keep_folder:
            with contextlib.suppress(OSError):
                self.folder.rmdir()
        self.close()

    def close(self) -> None:
        """Release the lock; what is in the folder stays."""
        if self._lock is not None:
            release(self._lock)
            self._lock = None

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_job(folder: Path) -> dict[str, Any]:
    """What ``job.json`` says: "identity" and, where they are known, "request" and "placing".

    Raises:
        JobError: there is none, or it is damaged.
    """
    file = folder / "job.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values["identity"], dict):
            raise ValueError("its identity is no object")
    except FileNotFoundError as error:
        raise JobError(f"{folder}: is no job folder; it has no job.json") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise JobError(f"{file}: damaged; start the job anew with --restart") from error
    return dict(values)


def load_plan(folder: Path) -> Plan | None:
    """The plan in a job folder, or None; JobError if it can't be used."""
    file = folder / "plan.json"
    try:
        return Plan.from_json(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{file}: can't be read: {error}") from error
