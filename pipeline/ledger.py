"""The ledger: which segments are done, which failed and why. One file a segment, no lock needed.

::

    segments/000123.mkv            the segment (a folder of that number for a folder of frames)
    segments/000123.json           vouches for it: {"digest", "file", "sha256", "size", "swapped", "notes"}
    segments/000123.failed.json    why it failed last: {"segment", "stage", "frame", "reason", "attempts"}

``digest`` names what the plan asked for (``Plan.segment_digest``), ``swapped`` holds inclusive ranges of
frames, ``notes`` what the executor found worth keeping, ``size`` is in bytes. An entry is written after
its segment has reached the disk, and atomically: a crash at any moment costs at most that segment. As
workers never share a file, any number of processes, on any host that sees the folder, may write at once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..stages.records import Segment
from .files import remove, sha256_of, size_of, sync, write_atomic
from .mirror import Mirror
from .plan import Plan, frame_ranges


@dataclass(frozen=True)
class Done:
    """A finished segment: its file, the frames that were swapped as inclusive ranges, and notes."""

    segment: Segment
    path: Path
    swapped: tuple[tuple[int, int], ...]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a segment failed: at which stage, at which frame if known, after how many attempts."""

    segment: int
    stage: str
    frame: int | None
    reason: str
    attempts: int


@dataclass(frozen=True)
class Ledger:
    """The entries of the job in ``folder``, whose identity has the digest ``identity``. Can be pickled.

    With a ``mirror``, ``folder`` is the working copy of a job elsewhere, and what is recorded goes there.
    """

    folder: Path
    identity: str
    mirror: Mirror | None = None

    @property
    def segments_folder(self) -> Path:
        """Where segments and their entries lie."""
        return self.folder / "segments"

    def record(self, plan: Plan, segment: Segment, path: Path, frames: Iterable[int], **notes: Any) -> Done:
        """Enter a finished segment; what it failed of before is forgotten.

        ``path`` lies in the segments' folder, ``frames`` are those that were swapped, ``notes`` (JSON) come
        back in ``Done.notes``. OutputError if it can't be written.
        """
        done = Done(segment, path, tuple(frame_ranges(frames)), notes)
        sync(path)  # its name is brought to the disk with the entry's, in the same folder
        entry = {
            "digest": plan.segment_digest(segment, self.identity),
            "file": path.name,
            "sha256": sha256_of(path),
            "size": size_of(path),
            "swapped": done.swapped,
            "notes": notes,
        }
        write_atomic(self._path(segment.index), json.dumps(entry) + "\n")
        with contextlib.suppress(OSError):
            self._failed(segment.index).unlink(missing_ok=True)
        if self.mirror is not None:
            self.mirror.push(f"segments/{path.name}")
            self.mirror.push(f"segments/{segment.index:06d}.json")
        return done

    def gather(self, plan: Plan) -> None:
        """Bring here the segments that a mirror's entries vouch for; nothing to do without one."""
        if self.mirror is None:
            return
        reasons = [(p.name, p.read_bytes()) for p in self.segments_folder.glob("*.failed.json")]
        self.mirror.pull()
        for name, text in reasons:  # they stay on the machine that found them
            (self.segments_folder / name).write_bytes(text)
        wanted = []
        for segment in plan.segments:
            found = self._read(segment)
            if found is not None and found["digest"] == plan.segment_digest(segment, self.identity):
                wanted.append(f"segments/{found['file']}")
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(self.mirror.fetch, wanted))

    def entry(self, plan: Plan, segment: Segment) -> Done | None:
        """What vouches for a segment: its entry, if it is what the plan asks for and the file is there with
        the size written down. Cheap, so for showing only: ``finished`` reads the file itself."""
        found = self._read(segment)
        if found is None or found["digest"] != plan.segment_digest(segment, self.identity):
            return None
        path = self.segments_folder / found["file"]
        try:
            # The pictures of a folder are not counted: there may be thousands.
            if not path.is_dir() and path.stat().st_size != found["size"]:
                return None
            return Done(segment, path, _ranges(found["swapped"]), dict(found["notes"]))
        except (OSError, TypeError, ValueError):
            return None

    def finished(self, plan: Plan, *, clean: bool = True) -> dict[int, Done]:
        """The segments that need no work, by index: every file is read and compared with its entry's hash.

        With ``clean``, files that nothing vouches for are deleted, but for the reasons why unfinished
        segments failed; so never while workers write.
        """
        done: dict[int, Done] = {}
        for segment in plan.segments:
            entry = self.entry(plan, segment)
            if entry is not None and _sha256_if_there(entry.path) == self._sha256(segment):
                done[segment.index] = entry
        if clean:
            left = [s.index for s in plan.segments if s.index not in done]
            keep = {self._path(index).name for index in done} | {d.path.name for d in done.values()}
            keep |= {self._failed(index).name for index in left}
            for path in self.segments_folder.iterdir():
                if path.name not in keep:
                    remove(path)
        return done

    def record_failure(
        self, segment: Segment, stage: str, frame: int | None, reason: str, attempts: int
    ) -> None:
        """Write down why a segment failed; a later success clears it. OutputError if it can't be written."""
        failure = Failure(segment.index, stage, frame, reason, attempts)
        write_atomic(self._failed(segment.index), json.dumps(asdict(failure), ensure_ascii=False) + "\n")

    def failures(self) -> list[Failure]:
        """Why segments failed last, by index; unreadable ones are passed over."""
        found = []
        for path in sorted(self.segments_folder.glob("*.failed.json")):
            with contextlib.suppress(OSError, ValueError, TypeError):
                found.append(Failure(**json.loads(path.read_text(encoding="utf-8"))))
        return found

    def _path(self, index: int) -> Path:
        return self.segments_folder / f"{index:06d}.json"

    def _failed(self, index: int) -> Path:
        return self.segments_folder / f"{index:06d}.failed.json"

    def _sha256(self, segment: Segment) -> str | None:
        entry = self._read(segment)
        return None if entry is None else entry["sha256"]

    def _read(self, segment: Segment) -> dict[str, Any] | None:
        try:
            entry = json.loads(self._path(segment.index).read_text(encoding="utf-8"))
            complete = {"digest", "file", "sha256", "size", "swapped", "notes"} <= entry.keys()
            return entry if complete and Path(entry["file"]).name == entry["file"] else None
        except (OSError, ValueError, AttributeError, TypeError):
            return None


def _ranges(values: Iterable[Iterable[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((int(a), int(b)) for a, b in values)


def _sha256_if_there(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:
        return None
