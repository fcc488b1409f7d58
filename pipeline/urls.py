"""URLs of files elsewhere, the filesystem that each belongs to, and what to say when one fails.

fsspec does the talking; here its many exceptions become the few of ``errors``, with the URL in them.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.core import strip_protocol, url_to_fs
from fsspec.registry import known_implementations

from ..errors import InputError, LdvidError, OutputError, SettingsError

# Two letters at least: C:// is a drive.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://")
_LOCAL = ("file", "local")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run 'gcloud auth application-default login'",
}
# By name, so that no driver is imported for the sake of its errors.
_NO_CREDENTIALS = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
    *("TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "DefaultCredentialsError"),
}
_UNREACHABLE = {
    "HTTPClientError",
    "ClientConnectorError",
    "FSTimeoutError",
    "ConnectionError",
    "TimeoutError",
}
_FULL = {errno.ENOSPC, errno.EDQUOT}


def is_url(text: str) -> bool:
    """Whether a text is a URL (``s3://…``, ``memory://…``, ``file:///…``) and not a local path."""
    return _SCHEME.match(text) is not None


def local_path(text: str) -> Path | None:
    """The path that a plain path or a ``file://`` URL stands for; None for what lies elsewhere."""
    if not is_url(text):
        return Path(text)
    return Path(strip_protocol(text)) if _protocol(text) in _LOCAL else None


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a URL, or of a local path, and the URL's path in it; nothing is remembered of
    earlier listings.

    Raises:
        SettingsError: unknown protocol, or its driver isn't installed (says what to install).
        InputError: the driver refuses to start.
    """
    protocol = _protocol(url)
    try:
        with speaking(url, InputError, "opened"):
            fs, path = url_to_fs(url)
    except InputError as error:
        if isinstance(error.__cause__, ImportError):
            raise SettingsError(f"{shown(url)}: {_driver(protocol)}") from error
        if isinstance(error.__cause__, ValueError) and protocol not in fsspec.available_protocols():
            raise SettingsError(
                f"{shown(url)}: {protocol}:// is no protocol that is known here; s3://, gs:// and file:// are"
            ) from error
        raise
    fs.invalidate_cache()
    return fs, path


def join_url(url: str, *names: str) -> str:
    """``join_url("s3://b/job/", "segments", "000003.mkv")`` → ``s3://b/job/segments/000003.mkv``."""
    stem = url if url.endswith("://") else url.rstrip("/")
    for name in names:
        stem = f"{stem}{'' if stem.endswith('/') else '/'}{name.strip('/')}"
    return stem


def exists(url: str) -> bool:
    """Whether there is a file or a folder at a URL, or at a local path.

    Raises:
        InputError: the store could not be asked (no permission, no credentials, no connection).
        SettingsError: as ``filesystem``.
    """
    fs, path = filesystem(url)
    with speaking(url, InputError, "looked at"):
        return info_of(fs, path) is not None


def info_of(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """What the store says of a file or folder ("type", "size", …), None if there is none.

    Not ``fs.exists``: to that, a store that can't be reached is a file that is not there.
    """
    try:
        info: dict[str, Any] = fs.info(path)
    except FileNotFoundError:
        return None
    return info


def files_in(fs: fsspec.AbstractFileSystem, path: str, *, nested: bool) -> dict[str, dict[str, Any]]:
    """The files of a folder, by name relative to it, with what the store says of each; empty if there is
    no folder. With ``nested`` those of its folders too.

    Raises:
        InputError: a name that would lie outside the folder once it is copied.
    """
    try:
        found = fs.find(path, detail=True).values() if nested else fs.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    prefix = path.rstrip("/") + "/"
    files = {}
    for info in found:
        key = info["name"]
        if info["type"] != "file" or key.endswith("/") or not key.startswith(prefix):
            continue  # object stores hold empty objects that stand for folders
        name = key[len(prefix) :]
        if not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise InputError(f"{key}: a file of that name can't be copied to this machine")
        files[name] = info
    return dict(sorted(files.items()))


def shown(url: str) -> str:
    """A URL for messages: without its password, and without the query, which may be a signature."""
    url = re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", url)
    return url.split("?", 1)[0] if _protocol(url) in ("http", "https") else url


def name_of(url: str, path: str) -> str:
    """The file's or folder's own name."""
    return (
        (urlsplit(url).path if _protocol(url) in ("http", "https") else path).rstrip("/").rsplit("/", 1)[-1]
    )


@contextlib.contextmanager
def speaking(url: str, kind: type[LdvidError], verb: str) -> Iterator[None]:
    """Turns whatever fsspec and its drivers raise into ``kind``: ``URL: can't be VERB: why; what to do``."""
    try:
        yield
    except LdvidError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) in _FULL:
            raise OutputError(f"{shown(url)}: can't be {verb}: the disk is full") from error
        raise kind(f"{shown(url)}: can't be {verb}: {_reason(error, url)}") from error


def _reason(error: BaseException, url: str) -> str:
    detail = " ".join(str(error).split()).replace(url, shown(url))
    names: set[str] = set()
    link: BaseException | None = error
    while link is not None:
        names.update(c.__name__ for c in type(link).__mro__)
        link = link.__cause__ or link.__context__
    protocol = _EXTRAS.get(_protocol(url), "")
    if names & _NO_CREDENTIALS:
        return f"no credentials; {_CREDENTIALS.get(protocol, 'see docs/storage.md')}"
    if names & _UNREACHABLE:
        return f"the store can't be reached ({detail or type(error).__name__})"
    if isinstance(error, FileNotFoundError):
        return (
            f"there is no such file or folder ({detail})"
            if " " in detail
            else "there is no such file or folder"
        )
    if isinstance(error, PermissionError):
        return f"no permission ({detail}); {_CREDENTIALS.get(protocol, 'check the credentials')}"
    return f"{detail} ({type(error).__name__})" if detail else type(error).__name__


def _driver(protocol: str) -> str:
    if protocol in _EXTRAS:
        return f"{protocol}:// needs the extra: pip install 'ldvid[{_EXTRAS[protocol]}]'"
    hint = known_implementations.get(protocol, {}).get("err")
    return f"{protocol}:// needs a driver" + (f": {hint}" if hint else " that isn't installed")


def _protocol(url: str) -> str:
    found = _SCHEME.match(url)
    return found[1].lower() if found else "file"
