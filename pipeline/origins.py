"""From what a manifest says of a file's origin to what can be fetched now."""

from __future__ import annotations

from collections.abc import Callable

from ..stages.swap.manifest import FileEntry, Origin
from ..stages.swap.pack import Lock
from .download import Remote
from .hub import COMMIT, look_up
from .transport import FetchError, host_of, mirrored


class Origins:
    """Finds files for one pull. Remembers hosts that are away, and the commits that revisions stand for.

    Args:
        lock: commits found are entered here; those an earlier pull found are kept to unless ``anew``.
        mirrors: ``PREFIX=URL`` replacements for URLs.
        log: told why there is another attempt.
    """

    def __init__(
        self, lock: Lock, mirrors: tuple[str, ...], log: Callable[[str], None], *, anew: bool
    ) -> None:
        self._lock, self._mirrors, self._log = lock, mirrors, log
        self._commits = {} if anew else dict(lock.revisions)
        self._away: dict[str, str] = {}

    def locate(self, entry: FileEntry, origin: Origin) -> Remote:
        """The file, or the archive it is in, with all that is known of it.

        Raises:
            FetchError: the hub is away, or has no such file or another one than the manifest names.
        """
        if origin.repo is not None and origin.path is not None:
            return self._on_hub(entry, origin.repo, origin.revision, origin.path)
        assert origin.url is not None
        url = mirrored(origin.url, self._mirrors)
        if origin.member is not None:
            return Remote(url, origin.archive_size, origin.archive_sha256)
        return Remote(url, entry.size, entry.sha256)

    def _on_hub(self, entry: FileEntry, repo: str, revision: str, path: str) -> Remote:
        key = f"{repo}@{revision}"
        fixed = COMMIT.fullmatch(revision) is not None
        # All files of a repository come from one commit, also when a pull was stopped in between.
        at = revision if fixed else self._commits.get(key, revision)
        self.check("hub")
        try:
            found = look_up(repo, at, path, self._log)
        except FetchError as error:
            self.note("hub", error)
            raise
        self._commits[key] = self._lock.revisions[key] = found.commit
        remote = found.remote
        if entry.sha256 is not None and remote.sha256 not in (None, entry.sha256):
            raise FetchError(
                f"{remote.url}: the hub has another file than the manifest names (SHA-256 {remote.sha256})"
            )
        return Remote(
            remote.url,
            entry.size or remote.size,
            entry.sha256 or remote.sha256,
            remote.git_sha1,
            remote.headers,
        )

    def check(self, host: str) -> None:
        """FetchError if the host was away a moment ago: every file would wait for it again."""
        if host in self._away:
            raise FetchError(self._away[host])

    def check_url(self, url: str) -> None:
        """``check`` for the host of a URL."""
        self.check(host_of(url))

    def note(self, host: str, error: FetchError) -> None:
        """Remember a host as away if that is what the error says."""
        if error.unreachable:
            self._away[host] = str(error)
