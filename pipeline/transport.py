"""What a network failure means, and whether to try again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NameResolutionError, NewConnectionError

from ..errors import PackError, SettingsError

ATTEMPTS = 5  # in a row that brought nothing
CONNECT_ATTEMPTS = 3  # where no connection could be made at all: a firewall does not change its mind
DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds; doubled after each failure
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
T = TypeVar("T")
_MIRROR = re.compile(r"(https?://[^=]+)=(https?://.+)")


class FetchError(PackError):
    """A file that could not be fetched; ``unreachable``: nor will others of the same host be."""

    def __init__(self, message: str, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


class Transient(Exception):  # noqa: N818 - never leaves the retries
    """Worth another attempt, after so many seconds if the server says when.

    ``progressed``: something came before it failed, so the count of failures starts again.
    """

    progressed = False

    def __init__(self, reason: str, *, after: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.after, self.unreachable = after, unreachable


def host_of(url: str) -> str:
    """Host and port, as a message names them."""
    return urlsplit(url).netloc.rpartition("@")[2]


def mirrored(url: str, mirrors: tuple[str, ...]) -> str:
    """The URL with the longest matching PREFIX of ``PREFIX=URL`` replaced.

    Raises:
        SettingsError: another notation.
    """
    pairs = []
    for text in mirrors:
        match = _MIRROR.fullmatch(text.strip())
        if match is None:
            raise SettingsError(
                f"--mirror {text}: write it as PREFIX=URL, "
                "for example --mirror https://github.com/=https://mirror.example.org/github/"
            )
        pairs.append((match[1], match[2]))
    for prefix, other in sorted(pairs, key=lambda p: -len(p[0])):
        if url.startswith(prefix):
            return other + url.removeprefix(prefix)
    return url


def retry(url: str, attempt: Callable[[], T], log: Callable[[str], None]) -> T:
    """What ``attempt`` returns, which raises ``Transient`` to be called again after a while.

    Raises:
        FetchError: it failed too often in a row, or for good.
    """
    failures = 0
    while True:
        try:
            return attempt()
        except Transient as error:
            failures = 1 if error.progressed else failures + 1
            if failures >= (CONNECT_ATTEMPTS if error.unreachable else ATTEMPTS):
                raise FetchError(f"{host_of(url)}: {error}", unreachable=error.unreachable) from error
            wait = min(DELAY * 2 ** (failures - 1) if error.after is None else error.after, LONGEST_DELAY)
            log(f"{host_of(url)}: {error}; trying again in {wait:.1f} s")
            time.sleep(wait)


def judge_status(url: str, status: int, retry_after: str | None = None) -> None:
    """Raise what an HTTP status of 400 and above means: ``Transient`` or ``FetchError``."""
    if status < 400:
        return
    if status in RETRIED:
        after = float(retry_after) if retry_after and retry_after.isdigit() else None
        raise Transient(f"the server answers {status}", after=after)
    meaning = {
        401: "it wants an account; for the Hugging Face hub set HF_TOKEN",
        403: "access is refused; for the Hugging Face hub set HF_TOKEN and accept the licence on its page",
        404: "there is no such file",
        410: "the file has been removed",
    }.get(status, "")
    raise FetchError(f"{url}: the server answers {status}{meaning and f' ({meaning})'}")


def lost(error: requests.RequestException) -> Transient:
    """What an error in the middle of an answer means."""
    return Transient(f"the connection was lost ({_short(error)})")


def unreached(url: str, error: requests.RequestException) -> Exception:
    """What an error without an answer means: worth another attempt, or final."""
    if isinstance(error, requests.exceptions.SSLError):
        return FetchError(f"{host_of(url)}: no trusted connection ({_short(error)})", unreachable=True)
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        cause = error.args[0] if error.args else None
        cause = cause.reason if isinstance(cause, MaxRetryError) else cause
        never = isinstance(cause, NewConnectionError | ConnectTimeoutError)
        proxy = isinstance(error, requests.exceptions.ProxyError)
        return Transient(f"can't be reached ({_short(error)})", unreachable=never or proxy)
    return FetchError(f"{url}: {_short(error)}", unreachable=True)


def _short(error: BaseException) -> str:
    """The reason in a few words: libraries wrap it in several layers of their own."""
    cause: object = error
    while isinstance(cause, BaseException):
        if isinstance(cause, NameResolutionError):
            return "its name can't be resolved"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        inner = getattr(cause, "reason", None) or cause.__cause__ or cause.__context__
        if not isinstance(inner, BaseException):
            break
        cause = inner
    text = str(cause)
    return "timed out" if "timed out" in text else text[:120]
