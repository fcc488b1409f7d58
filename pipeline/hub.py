"""Files of the Hugging Face hub: where they are, and what the hub says they hash to.

The questions are asked with huggingface_hub, so that HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and a mirror's
oddities mean here what they mean everywhere. The bytes come by our own downloader: ``hf_hub_download``
(2.4) keeps nothing of a download that was stopped, and compares sizes, not hashes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from .download import Remote
from .transport import FetchError, Transient, host_of, judge_status, retry

COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
PUBLIC = "https://huggingface.co"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at one commit."""

    remote: Remote
    commit: str


def page_url(repo: str, revision: str, path: str) -> str:
    """Where a browser gets the file, whatever HF_ENDPOINT says."""
    return f"{PUBLIC}/{repo}/resolve/{quote(revision, safe='')}/{quote(path)}"


def look_up(repo: str, revision: str, path: str, log: Callable[[str], None]) -> HubFile:
    """Ask the hub for a file's commit, size and hash: SHA-256 of large files, git's SHA-1 of small ones.

    Raises:
        FetchError: the hub can't be reached, or has no such file.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    endpoint = os.environ.get("HF_ENDPOINT") or None
    url = hf_hub_url(repo, path, revision=revision, endpoint=endpoint)

    def ask() -> HubFile:
        try:
            found = get_hf_file_metadata(url)
        except OfflineModeIsEnabled as error:
            raise FetchError(f"{host_of(url)}: HF_HUB_OFFLINE is set", unreachable=True) from error
        except Exception as error:  # of httpx or requests, as the hub library's version has it
            raise _failure(url, error) from error
        commit, etag = found.commit_hash, found.etag or ""
        if commit is None:
            raise FetchError(f"{url}: the answer is not one of a Hugging Face hub (no commit is named)")
        git = etag if COMMIT.fullmatch(etag) else None
        return HubFile(
            Remote(
                url=hf_hub_url(repo, path, revision=commit, endpoint=endpoint),
                size=found.size,
                sha256=etag if _SHA256.fullmatch(etag) else None,
                git_sha1=git,
                headers=build_hf_headers(library_name="ldvid"),
            ),
            commit,
        )

    return retry(url, ask, log)


def _failure(url: str, error: Exception) -> Exception:
    answer = getattr(error, "response", None)
    status = getattr(answer, "status_code", None)
    if isinstance(status, int):
        try:
            judge_status(url, status, getattr(answer, "headers", {}).get("Retry-After"))
        except (FetchError, Transient) as meaning:
            return meaning
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    if isinstance(error, ValueError):  # a repository or file name that can't be one
        return FetchError(f"{url}: {reason}")
    return Transient(f"can't be reached ({reason})", unreachable=status is None)
