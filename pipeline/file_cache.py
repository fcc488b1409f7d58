"""Local copies of files that lie elsewhere: fetched once a machine, shared by its processes.

::

    FILES/KEY/clip.mp4       a whole copy, or a folder of frames; KEY: hash of the URL and of what the store
                             says of the content, so that a changed object is another entry
    FILES/KEY/.use/          ``bytes``: its size; ``HOST-PID``: that process uses it, until it ends or
                             calls ``release``
    FILES/.KEY.part          being fetched; left by a killed process, deleted by the next
    FILES/locks/KEY.lock     held while fetching or deleting

FILES is ``$LDVID_HOME/files``, or ``files`` in the user's cache folder. What was used longest ago goes
when the whole passes ``$LDVID_CACHE_LIMIT`` (default 100GB).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from ..errors import InputError, OutputError
from .cache_space import USE, home, limit, lock, mark, trim
from .files import remove, size_of, sync, sync_folder
from .urls import files_in, filesystem, local_path, name_of, shown, speaking

_ATTEMPTS = 3
# What stores call the content's hash or version, and, where they know none, its time.
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "Content-MD5", "Digest", "checksum")
_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified", "created")


def localise(url: str, cache: Path | None = None) -> Path:
    """A local copy of a file, or of a folder with the files directly in it; under its own name.

    Fetched if the machine has no copy of the present content yet; several processes and threads that
    want it share one download. For a local path or ``file://`` it is the path itself. ``cache`` None is
    ``home() / "files"``. The copy stays until this process ends or says ``release``, then until the
    space is needed.

    Raises:
        InputError: there is nothing at the URL, it can't be read, or changes all the time.
        OutputError: the cache can't be written, or its disk is full.
        SettingsError: as ``urls.filesystem``; or LDVID_CACHE_LIMIT is no size.
    """
    if (here := local_path(url)) is not None:
        if not here.exists():
            raise InputError(f"{url}: there is no such file or folder")
        return here
    cache = home() / "files" if cache is None else cache
    for _ in range(_ATTEMPTS):
        fs, path = filesystem(url)
        content = _Content.of(fs, path, url)
        if (copy := _at_hand(content, cache)) is not None:
            return copy
        trim(cache, max(0, limit() - content.bytes))
        if (copy := _fetched(content, fs, path, cache)) is not None:
            return copy
    raise InputError(f"{shown(url)}: it changes while it is being read; try again when it is complete")


@dataclass(frozen=True)
class _Content:
    """What lies at a URL: a file (``files`` has the one name "") or a folder's files, with their sizes."""

    url: str
    name: str
    folder: bool
    files: dict[str, int | None]
    key: str

    @classmethod
    def of(cls, fs: AbstractFileSystem, path: str, url: str) -> _Content:
        with speaking(url, InputError, "read"):
            info = fs.info(path)
            folder = info["type"] == "directory"
            infos = files_in(fs, path, nested=False) if folder else {"": info}
        if not infos:
            raise InputError(f"{shown(url)}: the folder holds no files")
        whole = hashlib.sha256(url.rstrip("/").encode())
        for name, one in infos.items():
            whole.update(f"\0{name}\0{one.get('size')}\0{_version(one)}".encode())
        sizes = {name: one.get("size") for name, one in infos.items()}
        return cls(url, name_of(url, path) or "files", folder, sizes, whole.hexdigest()[:32])

    @property
    def bytes(self) -> int:
        return sum(size or 0 for size in self.files.values())


def _version(info: dict[str, Any]) -> str:
    for key in (*_VERSIONS, *_TIMES):
        if value := info.get(key):
            # A time may come as a date or as seconds, from a listing or from the object itself.
            return str(value.timestamp() if hasattr(value, "timestamp") else value)
    return ""


def _at_hand(content: _Content, cache: Path) -> Path | None:
    """The copy, marked as used, if it is there and whole; waits for whoever is fetching it."""
    entry = cache / content.key
    if not entry.is_dir():
        return None
    with lock(cache, content.key):
        return _used(entry, content)


def _fetched(content: _Content, fs: AbstractFileSystem, path: str, cache: Path) -> Path | None:
    """The copy, marked as used, fetched unless another was faster; None if the content has changed."""
    entry, part = cache / content.key, cache / f".{content.key}.part"
    with lock(cache, content.key):
        if (copy := _used(entry, content)) is not None:
            return copy
        remove(entry)
        remove(part)
        free = shutil.disk_usage(cache).free
        if content.bytes > free:
            raise OutputError(
                f"{shown(content.url)}: it has {content.bytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are "
                f"free in {cache}; LDVID_HOME names another place"
            )
        try:
            (part / USE).mkdir(parents=True)
            _get(content, fs, path, part / content.name)
            fs.invalidate_cache()
            if _Content.of(fs, path, content.url).key != content.key:
                return None
            (part / USE / "bytes").write_text(str(size_of(part / content.name)))
            sync(part)
            part.rename(entry)
            sync_folder(cache)
        except OSError as error:
            raise OutputError(f"{cache}: can't be written: {error.strerror or error}") from error
        finally:
            remove(part)
        return _used(entry, content)


def _get(content: _Content, fs: AbstractFileSystem, path: str, target: Path) -> None:
    with speaking(content.url, InputError, "read"):
        if content.folder:
            target.mkdir()
            fs.get(
                [f"{path.rstrip('/')}/{n}" for n in content.files], [str(target / n) for n in content.files]
            )
        else:
            fs.get_file(path, str(target))
    for name, size in content.files.items():
        here = (target / name).stat().st_size
        if size is not None and here != size:
            raise InputError(
                f"{shown(content.url)}: {here} bytes of {size} came{f' of {name}' if name else ''}"
            )


def _used(entry: Path, content: _Content) -> Path | None:
    """The copy in ``entry``, marked; None if it isn't there or someone has damaged it. Under the lock."""
    copy = entry / content.name
    for name, size in content.files.items():
        file = copy / name if name else copy
        if not file.is_file() or (size is not None and file.stat().st_size != size):
            return None
    mark(entry).touch()
    os.utime(entry)
    return copy
