"""Room in the cache of files: what a process uses, what may go, and the lock over both.

Layout and environment variables: see ``file_cache``.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout
from pydantic import ByteSize, TypeAdapter, ValidationError

from ..errors import OutputError, SettingsError
from .files import remove

DEFAULT_LIMIT = "100GB"
USE = ".use"
_KEY = re.compile(r"[0-9a-f]{32}")
_FOREIGN_SECONDS = 24 * 3600.0  # for how long a process of another host is believed to be at work


def home() -> Path:
    """Where ldvid keeps what it has fetched: ``$LDVID_HOME``, or the user's cache folder."""
    given = os.environ.get("LDVID_HOME")
    return Path(given) if given else Path(platformdirs.user_cache_dir("ldvid"))


def release(path: Path) -> None:
    """This process no longer needs what ``localise`` returned: ``trim`` may delete it. Needed only by
    processes that go on for long; nothing happens for a path that is no copy."""
    mark(path.parent).unlink(missing_ok=True)


def trim(cache: Path, keep_bytes: int) -> None:
    """Delete copies, longest unused first, until ``keep_bytes`` are left; never one that a process uses.

    What killed downloads have left goes too.
    """
    if not cache.is_dir():
        return
    for part in cache.glob(".*.part"):
        with contextlib.suppress(Timeout), lock(cache, part.name[1:-5], timeout=0):
            remove(part)
    entries = []
    for entry in cache.iterdir():
        with contextlib.suppress(OSError, ValueError):
            if _KEY.fullmatch(entry.name):
                entries.append((entry.stat().st_mtime, int((entry / USE / "bytes").read_text()), entry))
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries):
        if total <= keep_bytes:
            return
        with contextlib.suppress(Timeout), lock(cache, entry.name, timeout=0):
            if not _in_use(entry):
                part = cache / f".{entry.name}.part"
                entry.rename(part)  # whole or gone, also if this process is killed now
                remove(part)
                total -= size


def mark(entry: Path) -> Path:
    """The file that says that this process uses an entry."""
    return entry / USE / f"{platform.node()}-{os.getpid()}"


def _in_use(entry: Path) -> bool:
    """Whether a living process has it; the marks of the dead are deleted."""
    for mark in (entry / USE).glob("*-*"):
        host, _, pid = mark.name.rpartition("-")
        alive = time.time() - mark.stat().st_mtime < _FOREIGN_SECONDS
        if host == platform.node() and os.name == "posix":
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                alive = False
            except (PermissionError, ValueError):
                alive = True
            else:
                alive = True
        if alive:
            return True
        mark.unlink(missing_ok=True)
    return False


def lock(cache: Path, key: str, timeout: float = -1) -> FileLock:
    """The lock of an entry, not yet taken; seconds to wait for it, -1: as long as it takes."""
    folder = cache / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: can't be made: {error.strerror}; LDVID_HOME names another place"
        ) from error
    return FileLock(folder / f"{key}.lock", timeout=timeout)


def limit() -> int:
    """Bytes that the cache may hold. SettingsError if LDVID_CACHE_LIMIT is no size."""
    text = os.environ.get("LDVID_CACHE_LIMIT") or DEFAULT_LIMIT
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise SettingsError(f"LDVID_CACHE_LIMIT={text}: not a size such as 500MB or 2TB") from error
