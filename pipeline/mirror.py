"""A job folder on storage, with a local working copy.

Work is done in the working copy as in any job folder; what others must see is pushed, file by file, and
what others have done is pulled: entries eagerly, for they are small, segments when they are needed.
Whoever pushes a segment pushes its ledger entry after it, never before.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import uuid
from pathlib import Path, PurePosixPath

from ..errors import JobError, OutputError
from .cache_space import home
from .files import remove, sync, sync_folder
from .uploads import delete, put_file, put_folder
from .urls import files_in, filesystem, info_of, join_url, name_of, shown, speaking

_TOP = ("plan.json", "job.json")  # job.json last where things are deleted: without it nothing is a job's
_SEGMENTS = "segments"


class Mirror:
    """``url``: of the job folder. ``folder``: the local working copy; None: in ldvid's cache folder
    (``home() / "jobs"``) under a name made of the URL, on each machine its own. Can be pickled."""

    def __init__(self, url: str, folder: Path | None = None) -> None:
        self.url, self._folder = url, folder

    @property
    def folder(self) -> Path:
        """The local working copy on this machine."""
        if self._folder is not None:
            return self._folder
        url = self.url.rstrip("/")
        return home() / "jobs" / f"{name_of(url, url)}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"

    def pull(self) -> None:
        """Bring job.json, plan.json and the segments' entries here, and delete what the store doesn't have
        (of what a job writes; segments with another size than there, too). No job there is no error.
        Only before work begins here: what isn't pushed yet is a leftover.

        Raises:
            JobError: the store can't be read, or the URL is a file.
            OutputError: the working copy can't be written.
        """
        fs, root = filesystem(self.url)
        with speaking(self.url, JobError, "read"):
            info = info_of(fs, root)
            if info and info["type"] != "directory":
                raise JobError(f"{shown(self.url)}: it is a file; a job needs a folder")
            top = files_in(fs, root, nested=False)
            inside = files_in(fs, f"{root}/{_SEGMENTS}", nested=True)
        there = {n: i.get("size") for n, i in top.items() if n in _TOP}
        there |= {f"{_SEGMENTS}/{n}": i.get("size") for n, i in inside.items()}
        wanted = [n for n in there if n in _TOP or (n.endswith(".json") and n.count("/") == 1)]
        part = self.folder / f".pull-{uuid.uuid4().hex}.tmp"
        try:
            (part / _SEGMENTS).mkdir(parents=True)
            (self.folder / _SEGMENTS).mkdir(exist_ok=True)
            self._delete_leftovers(there)
            if wanted:
                with speaking(self.url, JobError, "read"):
                    fs.get([f"{root}/{n}" for n in wanted], [str(part / n) for n in wanted])
            sync(part)
            for name in sorted(wanted, key=lambda n: n in _TOP):
                (part / name).replace(self.folder / name)
            sync_folder(self.folder / _SEGMENTS)
            if "job.json" not in there:  # a folder with segments alone would be taken for somebody else's
                with contextlib.suppress(OSError):
                    (self.folder / _SEGMENTS).rmdir()
            sync_folder(self.folder)
        except OSError as error:
            raise OutputError(f"{self.folder}: can't be written: {error.strerror or error}") from error
        finally:
            remove(part)

    def push(self, name: str) -> None:
        """Bring a file ("plan.json", "segments/000003.json") or a folder ("segments/000003/") to the store,
        in place of what is there; each file wholly or not at all.

        Raises:
            OutputError: it can't be written there.
            JobError: there is no such file here.
        """
        name = _checked(name)
        path = self.folder / name
        if not path.exists():
            raise JobError(f"{path}: there is nothing to bring to {shown(self.url)}")
        fs, root = filesystem(self.url)
        with speaking(join_url(self.url, name), OutputError, "written"):
            (put_folder if path.is_dir() else put_file)(fs, path, f"{root}/{name}")

    def fetch(self, name: str) -> Path:
        """The local copy of a segment (file or folder), brought here unless its sizes are right already.

        Raises:
            JobError: it isn't there, or can't be read.
            OutputError: the working copy can't be written.
        """
        name = _checked(name)
        url, target = join_url(self.url, name), self.folder / name
        fs, root = filesystem(self.url)
        key = f"{root}/{name}"
        with speaking(url, JobError, "read"):
            info = info_of(fs, key)
            if info is None:
                raise JobError(f"{shown(url)}: there is no such segment")
            folder = info["type"] == "directory"
            sizes = {
                n: i.get("size")
                for n, i in (files_in(fs, key, nested=True) if folder else {"": info}).items()
            }
        if _sizes(target) == sizes:
            return target
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            with speaking(url, JobError, "read"):
                if folder:
                    for file in (part / n for n in sizes):
                        file.parent.mkdir(parents=True, exist_ok=True)
                    fs.get([f"{key}/{n}" for n in sizes], [str(part / n) for n in sizes])
                else:
                    fs.get_file(key, str(part))
            if _sizes(part) != sizes:
                raise JobError(f"{shown(url)}: not all of it came; it may be being written")
            sync(part)
            _replace(part, target, sizes)
        except OSError as error:
            raise OutputError(f"{target}: can't be written: {error.strerror or error}") from error
        finally:
            remove(part)
        return target

    def remove(self) -> None:
        """Delete what a job writes at the URL, nothing else there, and nothing at all if it is no job.

        Raises:
            OutputError: the store refuses.
        """
        fs, root = filesystem(self.url)
        with speaking(self.url, OutputError, "removed"):
            top = files_in(fs, root, nested=False)
            if "job.json" not in top:
                return
            inside = files_in(fs, f"{root}/{_SEGMENTS}", nested=True)
            delete(fs, (f"{root}/{_SEGMENTS}/{n}" for n in inside))
            if inside and (info_of(fs, f"{root}/{_SEGMENTS}") or {}).get("type") == "directory":
                fs.rm(f"{root}/{_SEGMENTS}", recursive=True)
            for name in _TOP:
                if name in top:
                    delete(fs, [f"{root}/{name}"])

    def _delete_leftovers(self, there: dict[str, int | None]) -> None:
        for name in _TOP:
            if name not in there:
                remove(self.folder / name)
        for path in (self.folder / _SEGMENTS).iterdir():
            name = f"{_SEGMENTS}/{path.name}"
            if path.is_dir():
                expected = {n[len(name) + 1 :]: s for n, s in there.items() if n.startswith(f"{name}/")}
            else:
                expected = {"": there[name]} if name in there else {}
            if _sizes(path) != expected:
                remove(path)


def _checked(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise JobError(f"{name}: not a name in a job folder")
    return str(path)


def _sizes(path: Path) -> dict[str, int]:
    """Of a folder's files by relative name, or of a file by ""; empty if there is none."""
    if path.is_dir():
        return {p.relative_to(path).as_posix(): p.stat().st_size for p in path.rglob("*") if p.is_file()}
    return {"": path.stat().st_size} if path.is_file() else {}


def _replace(part: Path, target: Path, sizes: dict[str, int | None]) -> None:
    try:
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)
    except OSError:
        if _sizes(target) != sizes:  # not another process that had it first
            raise
    with contextlib.suppress(OSError):
        sync_folder(target.parent)
