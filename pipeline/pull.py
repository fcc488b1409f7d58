"""``ldvid packs pull``: bring the files of a pack into their folder.

A file that lies there and is the right one is taken as it is. What is missing or damaged is fetched, checked
and put in place one by one, and ``pack.lock`` is written after each, so that a stopped pull goes on.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from ..errors import OutputError, PackError
from ..stages.swap.manifest import FileEntry, Manifest, Origin, read_manifest
from ..stages.swap.pack import find_pack, read_lock, weights_folder
from .archive import extract
from .download import Remote, discard, fetch, hash_both
from .files import write_atomic
from .origins import Origins
from .transfers import Silent, Transfers
from .transport import FetchError, host_of, mirrored

RESERVE = 50_000_000  # bytes of disk left free
_PARTS = ".download"


@dataclass
class Pulled:
    """What a pull did, by file."""

    name: str
    folder: Path
    kept: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    unvouched: list[str] = field(default_factory=list)


def pull(
    name: str, *, force: bool = False, mirrors: tuple[str, ...] = (), show: Transfers | None = None
) -> Pulled:
    """Fetch what is missing of a pack; ``force``: fetch everything again.

    Args:
        mirrors: ``PREFIX=URL`` replacements for URLs (the hub has HF_ENDPOINT).

    Raises:
        PackError: no such pack, another pull at work, files that can't be had or aren't what they should be.
        OutputError: disk full, no permission.
    """
    mirrored("", mirrors)
    home = find_pack(name, "pack")
    manifest = read_manifest(home)
    folder = weights_folder(home, manifest)
    if not any(entry.origin for entry in manifest.files.values()):
        raise PackError(
            f"pack {manifest.name}: comes with its files, nothing of it is fetched; "
            f"'ldvid packs verify {name}' checks them"
        )
    with _held(folder, name):
        return _Pull(name, folder, manifest, mirrors, show or Silent(), force=force).run()


@contextmanager
def _held(folder: Path, name: str) -> Iterator[None]:
    lock = FileLock(folder / ".pull.lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise PackError(f"pack {name}: another 'ldvid packs pull' is at work in {folder}") from error
    except OSError as error:
        raise OutputError(f"{folder}: can't be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


class _Pull:
    def __init__(
        self,
        name: str,
        folder: Path,
        manifest: Manifest,
        mirrors: tuple[str, ...],
        show: Transfers,
        *,
        force: bool,
    ) -> None:
        self.name, self.folder, self.manifest = name, folder, manifest
        self.show, self.force = show, force
        self.lock = read_lock(folder)
        self.origins = Origins(self.lock, mirrors, show.log, anew=force)
        self.done = Pulled(name, folder)
        self.damaged: set[str] = set()
        self.failed: dict[str, str] = {}

    def run(self) -> Pulled:
        wanted: dict[str, Remote] = {}
        for file, entry in self.manifest.files.items():
            if not self.force and self._lies_there(file, entry):
                continue
            if entry.origin is None:
                self.failed[file] = f"{self.folder / file} comes with the manifest, but is missing or damaged"
                continue
            if self.force:
                discard(self._part(file))
            remote = self._locate(file, entry, entry.origin)
            if remote is not None:
                wanted[file] = remote
        self._check_space(wanted)
        archives: dict[str, list[str]] = {}
        for file, remote in wanted.items():
            origin = self.manifest.files[file].origin
            if origin is not None and origin.member is not None:
                archives.setdefault(remote.url, []).append(file)
            else:
                self._fetch_file(file, remote)
        for files in archives.values():
            self._fetch_members(files, wanted[files[0]])
        self._finish()
        return self.done

    def _lies_there(self, file: str, entry: FileEntry) -> bool:
        """Whether the file is there and vouched for, by the manifest or by the pull that brought it."""
        path = self.folder / file
        known = entry.sha256 or self.lock.sha256.get(file)
        if known is None or not path.is_file():
            return False
        by = "manifest" if entry.sha256 else self.lock.vouched_by.get(file, "nobody")
        if hash_both(path)[0] != known:
            self.show.warn(f"{path} is not the file it should be (its SHA-256 differs); it is replaced")
            self.damaged.add(file)
            return False
        if by == "nobody" and entry.origin is not None and entry.origin.repo is not None:
            return False  # the hub may vouch for it today
        self.done.kept.append(file)
        self._record(file, known, by)
        return True

    def _locate(self, file: str, entry: FileEntry, origin: Origin) -> Remote | None:
        """Where to fetch the file from; None if that can't be told or what lies there is taken."""
        path = self.folder / file
        by_hand = entry.sha256 is None and path.is_file() and not self.force and file not in self.damaged
        if by_hand and origin.url is not None:
            self._take(file, "nobody")
            return None
        try:
            remote = self.origins.locate(entry, origin)
        except FetchError as error:
            if by_hand:
                self._take(file, "nobody")
            else:
                self._fail(file, error)
            return None
        if not by_hand:
            return remote
        told = remote.sha256 or remote.git_sha1
        if told is None or told in hash_both(path):
            self._take(file, "nobody" if told is None else "hub")
            return None
        self.show.warn(f"{path} is not the file that the hub has; it is replaced")
        return remote

    def _fetch(self, what: str, remote: Remote, target: Path) -> str | None:
        """Fetch a file or an archive; its SHA-256, or None if that failed."""
        try:
            self.origins.check_url(remote.url)
            self.show.start(what, remote.size)
            part = self._part(target.relative_to(self.folder).as_posix())
            sha256 = fetch(remote, target, part, progress=self.show.advance, log=self.show.log)
        except FetchError as error:
            self.origins.note(host_of(remote.url), error)
            self._fail(what, error)
            return None
        self.show.finish(what)
        return sha256

    def _fetch_file(self, file: str, remote: Remote) -> None:
        sha256 = self._fetch(file, remote, self.folder / file)
        if sha256 is None:
            return
        checked = remote.sha256 or remote.git_sha1
        by = "manifest" if self.manifest.files[file].sha256 else "hub" if checked else "transport"
        self._record(file, sha256, by)
        self.done.fetched.append(file)

    def _fetch_members(self, files: list[str], remote: Remote) -> None:
        """Several files out of one zip, which is fetched once and removed."""
        name = PurePosixPath(remote.url).name
        archive = self.folder / name
        given = archive.is_file() and remote.sha256 is not None and hash_both(archive)[0] == remote.sha256
        if not given:  # else somebody placed it there: use it and leave it
            tag = hashlib.sha256(remote.url.encode()).hexdigest()[:8]
            archive = self.folder / _PARTS / f"{tag}-{name}"
            if self._fetch(name, remote, archive) is None:
                reason = self.failed.pop(name)
                self.failed.update(dict.fromkeys(files, reason))
                return
        try:
            for file in files:
                entry = self.manifest.files[file]
                member = (entry.origin and entry.origin.member) or file
                try:
                    sha256 = extract(archive, member, self.folder / file, self._part(file), entry.sha256)
                except FetchError as error:
                    self._fail(file, error)
                    continue
                self._record(file, sha256, "manifest" if entry.sha256 or remote.sha256 else "transport")
                self.done.fetched.append(file)
        finally:
            if not given:
                archive.unlink(missing_ok=True)

    def _fail(self, what: str, error: FetchError) -> None:
        if str(error) not in self.failed.values():  # a host that is away need not be named for each file
            self.show.fail(what, str(error))
        self.failed[what] = str(error)

    def _take(self, file: str, by: str) -> None:
        """Take a file that was placed by hand as it is."""
        self._record(file, hash_both(self.folder / file)[0], by)
        self.done.kept.append(file)
        if by == "nobody":
            self.done.unvouched.append(file)
            self.show.warn(f"{self.folder / file} is taken as it is: nothing vouches for its contents")

    def _record(self, file: str, sha256: str, by: str) -> None:
        self.lock.sha256[file] = sha256
        self.lock.vouched_by[file] = by
        write_atomic(self.folder / "pack.lock", self.lock.model_dump_json(indent=1) + "\n")

    def _part(self, file: str) -> Path:
        return self.folder / _PARTS / file.replace("/", "__")

    def _check_space(self, wanted: dict[str, Remote]) -> None:
        """OutputError now rather than an hour later."""
        fetched = sum({remote.url: remote.size or 0 for remote in wanted.values()}.values())
        entries = [self.manifest.files[file] for file in wanted]
        unpacked = sum(e.size or 0 for e in entries if e.origin is not None and e.origin.member is not None)
        if wanted:
            self.show.total(fetched)
        parts = self.folder / _PARTS
        there = sum(p.stat().st_size for p in parts.iterdir()) if parts.is_dir() else 0
        free = shutil.disk_usage(self.folder).free
        if (need := fetched + unpacked - there + RESERVE) > free:
            raise OutputError(
                f"{self.folder}: too little disk space: {need / 1e9:.2f} GB are needed, "
                f"{free / 1e9:.2f} GB are free; LDVID_HOME names another place"
            )

    def _finish(self) -> None:
        parts = self.folder / _PARTS
        if parts.is_dir() and not any(parts.iterdir()):
            parts.rmdir()
        if not self.failed:
            return
        reasons = list(dict.fromkeys(self.failed.values()))
        raise PackError(
            f"pack {self.name}: could not fetch {', '.join(self.failed)} ({'; '.join(reasons)}); what "
            f"came is kept, and 'ldvid packs pull {self.name} --manual' says how to place the rest by hand"
        )
