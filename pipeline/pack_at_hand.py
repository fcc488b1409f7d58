"""A pack wherever it is needed: what this machine lacks of it is fetched first."""

from __future__ import annotations

from filelock import FileLock

from ..stages.swap.manifest import read_manifest
from ..stages.swap.pack import Pack, find_pack, open_pack, weights_folder
from .pull import pull


def pack_at_hand(name: str) -> Pack:
    """A pack, its weights fetched first if this machine lacks them; processes that ask at the same time
    wait for the one that fetches.

    Raises:
        PackError: as ``open_pack`` and ``pull``.
    """
    home = find_pack(name)
    manifest = read_manifest(home)
    folder = weights_folder(home, manifest)

    def missing() -> bool:
        return any(e.origin is not None and not (folder / f).is_file() for f, e in manifest.files.items())

    if missing():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".at-hand.lock"):
            if missing():
                pull(name)
    return open_pack(name)
