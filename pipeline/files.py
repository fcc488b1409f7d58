"""Files that are there wholly or not at all, hashed, and gone when they should be."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from ..errors import OutputError


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that it is there wholly or not at all, also after a power cut; when this
    returns, it is on the disk. Several processes and hosts may do so at once: the last one wins.

    Raises:
        OutputError: disk full, no permission.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(f"{path}: can't be written: {error.strerror or error}") from error


def temporary_name(name: str) -> str:
    """``.NAME.HOST-PID-THREAD.tmp``: hidden, and nobody else's, on a disk that hosts share too."""
    return f".{name}.{platform.node()[:32]}-{os.getpid()}-{threading.get_ident():x}.tmp"


def sync(path: Path) -> None:
    """Bring a file, or all files of a folder, to the disk; nothing where the filesystem can't."""
    if path.is_dir():
        for inside in sorted(path.iterdir()):
            sync(inside)
        sync_folder(path)
    else:
        _fsync(path)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: a file just made or renamed is not there before."""
    if os.name == "posix":  # elsewhere a folder can't be opened
        _fsync(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(
            OSError
        ):  # filesystems without it exist; a full disk has shown itself before
            os.fsync(handle)
    finally:
        os.close(handle)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def copy_file(source: Path, target: Path) -> None:
    """The same bytes under another name; OutputError if that fails."""
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise OutputError(f"{target}: can't be written: {error.strerror or error}") from error


def sha256_of(path: Path, files: Sequence[str] | None = None) -> str:
    """SHA-256 of a file, or of a folder: over its files' (or ``files``') names and hashes."""
    if not path.is_dir():
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    if files is None:
        files = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    whole = hashlib.sha256()
    for name in files:
        whole.update(f"{name}\0{sha256_of(path / name)}\n".encode())
    return whole.hexdigest()


def remove(path: Path) -> None:
    """Delete a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
