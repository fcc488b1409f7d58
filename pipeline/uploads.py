"""Bringing finished files to where a URL points: whole, and over nothing that is there unasked."""

from __future__ import annotations

import contextlib
import glob
import uuid
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec import AbstractFileSystem

from ..errors import InputError, OutputError, OutputExistsError, SettingsError
from .urls import files_in, filesystem, info_of, shown, speaking

# Their put shows the object when all of it is there; elsewhere a file grows under its name.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss"}


def upload(path: Path, url: str, *, overwrite: bool) -> None:
    """Copy a file, or a folder of files, to a URL (or a local path).

    Each file is there wholly or not at all. A folder appears file after file: one that fails is taken
    away again, but with ``overwrite`` what it had replaced by then stays replaced, which the error says.
    Only a file replaces a file, and a folder replaces only one whose files have the names (suffix aside)
    of its own.

    Raises:
        InputError: there is nothing at ``path``.
        SettingsError: the URL names no file, or as ``filesystem``.
        OutputExistsError: something is there that is not to be replaced.
        OutputError: anything else that fails.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder to bring to {shown(url)}")
    fs, key = filesystem(url)
    if path.is_file() and (url.endswith("/") or (_is_object_store(fs) and "/" not in key)):
        raise SettingsError(f"{shown(url)}: that is a folder; name the file that is to be made in it")
    with speaking(url, OutputError, "written"):
        there = info_of(fs, key)
        old = files_in(fs, key, nested=True) if there and there["type"] == "directory" else {}
        if there and there["type"] == "directory" and not old:
            there = None  # an empty folder is in nobody's way
        _refuse(there, url, "file" if path.is_file() else "directory", overwrite=overwrite)
        if path.is_file():
            put_file(fs, path, key)
            return
    new = _local_files(path)
    stems = {_stem(name) for name in new}
    if others := [name for name in old if _stem(name) not in stems]:
        raise OutputExistsError(
            f"{shown(url)} holds {others[0]}, which is no frame of {path.name}; replacing the folder would "
            "delete it. Choose another one"
        )
    put: list[str] = []
    try:
        with speaking(url, OutputError, "written"):
            for name, file in new.items():
                put_file(fs, file, f"{key}/{name}")
                put.append(name)
            delete(fs, (f"{key}/{name}" for name in old if name not in new))
    except BaseException as error:
        with contextlib.suppress(Exception):
            delete(fs, (f"{key}/{name}" for name in put if name not in old))
        if replaced := sum(name in old for name in put):
            error.add_note(f"{replaced} of {len(new)} files at {shown(url)} had been replaced by then")
        raise


def put_file(fs: AbstractFileSystem, path: Path, key: str) -> None:
    """Copy a local file to ``key``, in place of what is there, wholly or not at all.

    Raises what fsspec does.
    """
    if _is_object_store(fs):
        fs.put_file(str(path), key)
        return
    parent = key.rpartition("/")[0]
    fs.makedirs(parent, exist_ok=True)
    part = f"{parent}/.{uuid.uuid4().hex}.ldvid-part"
    try:
        fs.put_file(str(path), part)
        if type(fs).mv is AbstractFileSystem.mv:  # it would take brackets in a name for a pattern
            fs.cp_file(part, key)
            fs.rm_file(part)
        else:
            fs.mv(part, key)
    except BaseException:
        with contextlib.suppress(Exception):
            fs.rm_file(part)
        raise


def put_folder(fs: AbstractFileSystem, path: Path, key: str) -> None:
    """Copy a local folder's files to the folder ``key``, which then holds these and no others."""
    old = files_in(fs, key, nested=True)
    new = _local_files(path)
    for name, file in new.items():
        put_file(fs, file, f"{key}/{name}")
    delete(fs, (f"{key}/{name}" for name in old if name not in new))


def delete(fs: AbstractFileSystem, keys: Iterable[str]) -> None:
    """Delete files; many at once where the store can."""
    keys = list(keys)
    if len(keys) > 1 and not any(glob.has_magic(k) for k in keys):  # brackets would be taken for a pattern
        fs.rm(keys)
        return
    for key in keys:
        fs.rm_file(key)


def _is_object_store(fs: AbstractFileSystem) -> bool:
    return not _OBJECT_STORES.isdisjoint((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _local_files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def _refuse(there: dict[str, Any] | None, url: str, kind: str, *, overwrite: bool) -> None:
    if there is None:
        return
    if not overwrite:
        raise OutputExistsError(
            f"{shown(url)} exists; give --overwrite to replace it, or another name with -o"
        )
    if there["type"] != kind:
        words = ("a file", "a folder") if kind == "directory" else ("a folder", "a file")
        raise OutputExistsError(f"{shown(url)} is {words[0]} and the output {words[1]}; choose another name")
