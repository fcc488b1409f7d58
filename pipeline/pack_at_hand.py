"""A pack wherever it is needed: what this machine lacks is fetched first, once for all its processes."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from ..errors import OutputError
from ..stages.swap.manifest import Manifest, read_manifest
from ..stages.swap.pack import Pack, find_pack, open_pack, read_lock, weights_folder


def pack_at_hand(name: str) -> Pack:
    """A pack, its weights fetched first if this machine lacks them.

    Processes that ask at the same time wait for the one that fetches, or for an ``ldvid packs pull``; one
    that is killed leaves to the next what it had. Machines that share LDVID_HOME fetch once for all.

    Raises:
        PackError: as ``open_pack`` and ``pull``.
        OutputError: the weights' folder can't be written.
    """
    from .pull import pull  # what downloads takes a while to import, and mostly there is nothing to fetch

    home = find_pack(name)
    manifest = read_manifest(home)
    folder = weights_folder(home, manifest)
    if _lacks(folder, manifest):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".at-hand.lock"):
                with FileLock(folder / ".pull.lock"):  # a person's pull ends first
                    lacks = _lacks(folder, manifest)
                if lacks:
                    pull(name)
        except OSError as error:
            raise OutputError(f"{folder}: can't be written: {error.strerror or error}") from error
    return open_pack(name)


def _lacks(folder: Path, manifest: Manifest) -> bool:
    """Whether something has still to be fetched. A file is entered into ``pack.lock`` after it is in place,
    so that one whose hash is found only there is not believed before."""
    fetched = {file: entry for file, entry in manifest.files.items() if entry.origin is not None}
    if any(not (folder / file).is_file() for file in fetched):
        return True
    known = read_lock(folder).sha256 if fetched else {}
    return any(not entry.sha256 and file not in known for file, entry in fetched.items())
