"""The lock of a job folder: held by the process that works there, and who that is."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from pathlib import Path

from ..errors import JobError, OutputError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock; two runs in one job are then not noticed
    fcntl = None  # type: ignore[assignment]

_LOCKED_BY_ANOTHER = "another ldvid is at work in it; wait for it or choose another folder with --job"


def acquire(folder: Path) -> int:
    """Take the lock of a job folder; the handle to give to ``release``.

    Raises:
        JobError: another process has it.
        OutputError: the folder can't be written.
    """
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
    holder = {"host": platform.node(), "pid": os.getpid(), "began": _began(os.getpid())}
    with contextlib.suppress(OSError):  # only for showing; a full disk is met where it matters
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(holder).encode())
    return handle


def release(handle: int) -> None:
    """Give it back; the file stays, empty."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
    os.close(handle)


def held(folder: Path) -> bool:
    """Whether a process works in a job folder, by what it wrote into the lock; the lock isn't touched.

    A run of another host is taken at its word: it can't be seen whether it was killed.
    """
    try:
        holder = json.loads((folder / "lock").read_text(encoding="utf-8"))
        return bool(
            holder["host"] != platform.node()
            or (_alive(holder["pid"]) and holder["began"] == _began(holder["pid"]))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _began(pid: int) -> str | None:
    """When a process began, so that another one of that number isn't taken for it; None if not known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
