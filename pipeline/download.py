"""One file over HTTP: resumed, checked, and in place only when it is the right one.

A part that has come lies at a hidden name beside a note of which version of the file it belongs to. The
next attempt, of this run or of a later one, asks for the rest only (``Range``), and only if the file is
still that version (``If-Range``). Proxies and certificates are taken from the environment by requests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import requests

from ..errors import OutputError
from .transport import FetchError, Transient, judge_status, lost, retry, unreached

TIMEOUT = (10.0, 30.0)  # seconds to connect, and between two pieces
CHUNK = 1 << 16  # what a broken connection loses at most


@dataclass(frozen=True)
class Remote:
    """A file as somebody serves it, and what is known of it beforehand."""

    url: str
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def fetch(
    remote: Remote,
    target: Path,
    part: Path,
    *,
    progress: Callable[[int], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
) -> str:
    """Bring a file to ``target`` and return its SHA-256; ``target`` is untouched until all is well.

    Args:
        part: where what has come so far is kept; on the same file system as ``target``.
        progress: told the bytes that came, or a negative number when some turned out useless.
        log: told why there is another attempt.

    Raises:
        FetchError: it can't be had, or what came is not the file that is wanted (nothing of it is kept).
        OutputError: disk full, no permission; the part is kept.
    """
    best = _resumable(remote, part)
    resumed = best > 0
    progress(best)

    def attempt() -> None:
        nonlocal best
        try:
            _attempt(session, remote, part, progress)
        except Transient as error:
            length = part.stat().st_size if part.exists() else 0
            # Beginning again and again is no progress.
            error.progressed, best = length > best, max(best, length)
            raise

    with requests.Session() as session:
        while True:
            if remote.size is None or best != remote.size:
                retry(remote.url, attempt, log)
            try:
                return _accept(remote, part, target)
            except FetchError as error:
                progress(-part.stat().st_size)
                discard(part)
                if not resumed:
                    raise
                # What an earlier run left may have been damaged; the file itself may be well.
                log(f"{error}; fetching it from the beginning")
                resumed, best = False, 0


def discard(part: Path) -> None:
    """Forget what has come of a file."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _resumable(remote: Remote, part: Path) -> int:
    """Bytes of the same file that lie there already; anything else that lies there is dropped."""
    try:
        note, length = json.loads(_note(part).read_text(encoding="utf-8")), part.stat().st_size
        same = note["url"] == remote.url and note["sha256"] == remote.sha256
        checkable = note["validator"] or remote.sha256 or remote.git_sha1
        if same and checkable and (remote.size is None or length <= remote.size):
            return length
    except (OSError, ValueError, KeyError, TypeError):
        pass
    discard(part)
    return 0


def _attempt(session: requests.Session, remote: Remote, part: Path, progress: Callable[[int], None]) -> None:
    """Ask for what is missing and append it; Transient if less came than was promised."""
    offset = _resumable(remote, part)
    validator = json.loads(_note(part).read_text(encoding="utf-8"))["validator"] if offset else None
    headers = {**remote.headers, "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator:
            headers["If-Range"] = validator
    try:
        answer = session.get(remote.url, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.RequestException as error:
        raise unreached(remote.url, error) from error
    with answer:
        if offset and not _continues(answer, offset, validator):
            progress(-offset)
            discard(part)
            offset = 0
            if answer.status_code in (206, 416):  # not the beginning of anything: ask again without a range
                raise Transient("the file has changed", after=0.0)
        judge_status(remote.url, answer.status_code, answer.headers.get("Retry-After"))
        plain = answer.headers.get("Content-Encoding", "identity") == "identity"
        length = answer.headers.get("Content-Length", "")
        total = offset + int(length) if plain and length.isdigit() else None
        if remote.size is not None and total is not None and total != remote.size:
            raise FetchError(f"{remote.url}: serves {total} bytes instead of the expected {remote.size}")
        _receive(answer, remote, part, offset, total, progress)


def _continues(answer: requests.Response, offset: int, validator: str | None) -> bool:
    """Whether the answer is the rest of what lies there. Not every server honours ``If-Range``."""
    if answer.status_code >= 400 and answer.status_code != 416:
        return True  # an error, which says nothing about the file
    tag = answer.headers.get("ETag")
    changed = bool(validator and validator.startswith('"') and tag and tag != validator)
    begins = answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
    return answer.status_code == 206 and begins and not changed


def _receive(
    answer: requests.Response,
    remote: Remote,
    part: Path,
    offset: int,
    total: int | None,
    progress: Callable[[int], None],
) -> None:
    came = 0
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        if not offset:
            tag = answer.headers.get("ETag", "")
            validator = tag if tag.startswith('"') else answer.headers.get("Last-Modified")
            note = {"url": remote.url, "sha256": remote.sha256, "validator": validator}
            _note(part).write_text(json.dumps(note), encoding="utf-8")
        with part.open("ab" if offset else "wb") as handle:
            pieces = answer.iter_content(CHUNK)
            while True:
                try:  # requests' errors are OSErrors too: they must not be taken for the disk's
                    piece = next(pieces, None)
                except requests.RequestException as error:
                    raise lost(error) from error
                if piece is None:
                    break
                handle.write(piece)
                came += len(piece)
                progress(len(piece))
    except OSError as error:
        raise OutputError(f"{part}: can't be written: {error.strerror or error}") from error
    if total is not None and offset + came != total:
        raise Transient(f"the connection ended after {came} bytes")


def _accept(remote: Remote, part: Path, target: Path) -> str:
    """Check the whole file and put it in place; FetchError if it isn't the one that is wanted."""
    size = part.stat().st_size
    if remote.size is not None and size != remote.size:
        raise FetchError(f"{remote.url}: gave {size} bytes instead of {remote.size}; nothing was kept")
    sha256, git = hash_both(part)
    wanted, got = (remote.sha256, sha256) if remote.sha256 else (remote.git_sha1, git)
    if wanted is not None and got != wanted:
        kind = "SHA-256" if remote.sha256 else "git SHA-1"
        raise FetchError(
            f"{remote.url}: is not the file it should be (its {kind} is {got}, not {wanted}); "
            "nothing of it was kept"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        _note(part).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{target}: can't be written: {error.strerror or error}") from error
    return sha256


def hash_both(path: Path) -> tuple[str, str]:
    """SHA-256 of a file, and the SHA-1 under which git stores it."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as handle:
        while piece := handle.read(CHUNK):
            sha256.update(piece)
            git.update(piece)
    return sha256.hexdigest(), git.hexdigest()
