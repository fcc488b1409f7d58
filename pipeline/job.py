"""The job folder: what makes a long run resumable.

::

    job.json         identity: the clip, the source, the settings, the pack and the version of ldvid
    plan.json        see ``plan``
    segments/        one file per finished segment, and beside each its ledger entry, ``NNNNNN.json``
    lock             held by the process that works here

A segment counts as done when its ledger entry names the digest that the plan asks for *and* its file
still has the SHA-256 written there. Entries are written after the file and atomically, one per
segment, so that workers never share a file and a crash at any moment costs at most one segment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import JobError, OutputError
from ..stages.records import Segment
from .files import remove, sha256_of, write_atomic
from .plan import Plan, frame_ranges

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock; two runs in one job are then not noticed
    fcntl = None  # type: ignore[assignment]

_OWN = ("job.json", "plan.json", "segments")
_LOCKED_BY_ANOTHER = "another ldvid is at work in it; wait for it or choose another folder with --job"


@dataclass(frozen=True)
class Identity:
    """What a job is: two runs with equal identities make the same bytes (on the same device)."""

    clip: str
    clip_sha256: str
    start: float | None
    end: float | None
    source_sha256: str
    source_face: int | None
    settings: dict[str, Any]
    settings_digest: str
    pack: str
    pack_digest: str
    version: str

    def digest(self) -> str:
        """SHA-256 over what decides the picture (not the clip's name)."""
        values = {k: v for k, v in asdict(self).items() if k not in ("clip", "settings")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def differences(self, old: dict[str, Any]) -> list[str]:
        """What changed since ``old``, in words, for example ``steps: 12 → 20``."""
        named = {
            "clip_sha256": "the clip's content",
            "source_sha256": "the source picture",
            "pack_digest": "the files of the pack",
        }
        changes = [words for key, words in named.items() if old.get(key) != getattr(self, key)]
        plain = {"start": "--start", "end": "--end", "source_face": "--source-face", "version": "ldvid"}
        for key, words in plain.items():
            if old.get(key) != getattr(self, key):
                changes.append(f"{words}: {_show(old.get(key))} → {_show(getattr(self, key))}")
        before, after = _flat(old.get("settings") or {}), _flat(json.loads(json.dumps(self.settings)))
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                changes.append(f"{key}: {_show(before.get(key))} → {_show(after.get(key))}")
        return changes


@dataclass(frozen=True)
class Done:
    """A finished segment: its file and the frames that were swapped, as inclusive ranges."""

    segment: Segment
    path: Path
    swapped: tuple[tuple[int, int], ...]


class Job:
    """An open, locked job folder. Use as a context manager: leaving it releases the lock."""

    def __init__(self, folder: Path, identity: Identity, lock: int, *, created: bool) -> None:
        self.folder, self.identity, self.created = folder, identity, created
        self._lock: int | None = lock
        self.segments_folder = folder / "segments"

    @classmethod
    def open(cls, folder: Path, identity: Identity, *, restart: bool = False) -> Job:
        """Create the folder, or go on in it if it belongs to the same job.

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
        if strangers and not (folder / "job.json").is_file():
            raise JobError(
                f"--job {folder}: it holds {strangers[0]} and is no job folder; choose another one"
            )
        job = cls(folder, identity, _acquire(folder), created=created)
        try:
            if restart:
                job._empty()
            job._claim()
        except BaseException:
            job.close()
            raise
        return job

    def _claim(self) -> None:
        file = self.folder / "job.json"
        if file.is_file():
            try:
                old = json.loads(file.read_text(encoding="utf-8"))["identity"]
            except (ValueError, KeyError, OSError) as error:
                raise JobError(f"{file}: damaged; start the job anew with --restart") from error
            if changes := self.identity.differences(old):
                raise JobError(
                    f"{self.folder} belongs to a job that differs in: {'; '.join(changes)}. "
                    "Give --restart to discard what it has done, or --job for another folder"
                )
        else:
            write_atomic(file, json.dumps({"identity": asdict(self.identity)}, indent=2) + "\n")
        self.segments_folder.mkdir(exist_ok=True)

    def _empty(self) -> None:
        """Delete what a job writes, and nothing that someone else put here."""
        for path in (*self.folder.glob(".*.tmp"), *(self.folder / name for name in _OWN)):
            remove(path)

    def load_plan(self) -> Plan | None:
        """The plan of an earlier run, or None. JobError if an edit broke it."""
        file = self.folder / "plan.json"
        return Plan.from_json(file.read_text(encoding="utf-8"), str(file)) if file.is_file() else None

    def save_plan(self, plan: Plan) -> Plan:
        """Write the plan and return it as it reads back (rounded)."""
        write_atomic(self.folder / "plan.json", plan.to_json())
        loaded = self.load_plan()
        assert loaded is not None
        return loaded

    def finished(self, plan: Plan) -> dict[int, Done]:
        """The segments that need no work, by index; files that no entry vouches for are deleted."""
        done: dict[int, Done] = {}
        for segment in plan.segments:
            if (entry := self._entry(segment)) is None:
                continue
            path = self.segments_folder / entry["file"]
            if entry["digest"] == self._digest(plan, segment) and _sha256_if_there(path) == entry["sha256"]:
                swapped = tuple((int(a), int(b)) for a, b in entry["swapped"])
                done[segment.index] = Done(segment, path, swapped)
        keep = {name for d in done.values() for name in (d.path.name, self._ledger(d.segment).name)}
        for path in self.segments_folder.iterdir():
            if path.name not in keep:
                remove(path)
        return done

    def record(self, plan: Plan, segment: Segment, path: Path, frames: Iterable[int]) -> Done:
        """Enter a finished segment into the ledger. ``frames`` are those that were swapped."""
        done = Done(segment, path, tuple(frame_ranges(frames)))
        entry = {
            "digest": self._digest(plan, segment),
            "file": path.name,
            "sha256": sha256_of(path),
            "swapped": done.swapped,
        }
        write_atomic(self._ledger(segment), json.dumps(entry) + "\n")
        return done

    def _digest(self, plan: Plan, segment: Segment) -> str:
        return plan.segment_digest(segment, self.identity.digest())

    def _ledger(self, segment: Segment) -> Path:
        return self.segments_folder / f"{segment.index:06d}.json"

    def _entry(self, segment: Segment) -> dict[str, Any] | None:
        try:
            entry = json.loads(self._ledger(segment).read_text(encoding="utf-8"))
            complete = {"digest", "file", "sha256", "swapped"} <= entry.keys()
            return entry if complete and Path(entry["file"]).name == entry["file"] else None
        except (OSError, ValueError, AttributeError, TypeError):
            return None

    def discard(self, *, keep_folder: bool = False) -> None:
        """Delete all that the job wrote, and the folder unless it is to be kept or holds something else."""
        self._empty()
        (self.folder / "lock").unlink(missing_ok=True)
        if not keep_folder:
            with contextlib.suppress(OSError):
                self.folder.rmdir()
        self.close()

    def close(self) -> None:
        """Release the lock; what is in the folder stays."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sha256_if_there(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:
        return None


def _acquire(folder: Path) -> int:
    path = folder / "lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(f"{folder}: the job folder can't be written: {error.strerror}") from error
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have deleted the folder between our open and our lock.
            if not path.exists() or os.fstat(handle).st_ino != path.stat().st_ino:
                raise BlockingIOError
    except BlockingIOError as error:
        os.close(handle)
        raise JobError(f"{folder}: {_LOCKED_BY_ANOTHER}") from error
    return handle


def _show(value: Any) -> str:
    return "none" if value is None else json.dumps(value) if isinstance(value, dict | list) else str(value)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat = {k: v for k, v in settings.items() if k != "guidance"}
    for term in settings.get("guidance", ()):
        flat |= {f"guidance.{term['term']}.{k}": v for k, v in term.items() if k != "term"}
    return flat
