"""What there is of packs: which are known, where their files lie, whether they are the right ones."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import PackError
from ..stages.swap.manifest import FileEntry, read_manifest
from ..stages.swap.pack import EMBEDDED, find_pack, known_packs, read_lock, weights_folder
from .download import hash_both
from .hub import page_url
from .transfers import human


@dataclass(frozen=True)
class PackStatus:
    """One line of ``ldvid packs list``. ``size``: bytes on disk, or of all files where the manifest says."""

    name: str
    version: str
    licence: str
    description: str
    folder: Path
    state: str
    files: int
    missing: tuple[str, ...]
    size: int | None


@dataclass(frozen=True)
class FileCheck:
    """One line of ``ldvid packs verify``; ``vouched_by`` as in ``pack.lock``."""

    file: str
    state: Literal["ok", "damaged", "missing", "unrecorded"]
    sha256: str | None
    vouched_by: str | None
    note: str = ""


def list_packs() -> list[PackStatus]:
    """All known packs by name, without hashing anything. One whose manifest can't be read says so."""
    found = []
    for name, home in sorted(known_packs().items()):
        try:
            found.append(_status(name, home))
        except PackError as error:
            found.append(PackStatus(name, "", "", "", home, f"damaged: {error}", 0, (), None))
    return found


def _status(name: str, home: Path) -> PackStatus:
    manifest = read_manifest(home)
    folder = weights_folder(home.resolve(), manifest)
    missing = tuple(f for f in manifest.files if not (folder / f).is_file())
    total = len(manifest.files)
    if not missing:
        state = "embedded" if folder.parent == EMBEDDED.resolve() else "complete"
        size: int | None = sum((folder / f).stat().st_size for f in manifest.files)
    else:
        state = "not downloaded" if len(missing) == total else f"{len(missing)} of {total} files missing"
        sizes = [e.size for e in manifest.files.values() if e.size is not None]
        size = sum(sizes) if len(sizes) == total else None
    return PackStatus(
        name, manifest.version, manifest.licence, manifest.description, folder, state, total, missing, size
    )


def pack_folder(name: str) -> Path:
    """Where a pack's files lie or will lie; PackError if there is no such pack."""
    home = find_pack(name, "pack")
    return weights_folder(home, read_manifest(home))


def verify(name: str) -> list[FileCheck]:
    """Hash every file of a pack again, trusting nothing that was remembered."""
    home = find_pack(name, "pack")
    manifest = read_manifest(home)
    folder = weights_folder(home, manifest)
    lock = read_lock(folder)
    return [
        _check(folder / file, file, entry, lock.sha256.get(file), lock.vouched_by.get(file))
        for file, entry in manifest.files.items()
    ]


def _check(
    path: Path, file: str, entry: FileEntry, recorded: str | None, vouched_by: str | None
) -> FileCheck:
    if not path.is_file():
        return FileCheck(file, "missing", None, None)
    wanted = entry.sha256 or recorded
    by = "manifest" if entry.sha256 else vouched_by
    try:
        sha256 = hash_both(path)[0]
    except OSError as error:
        return FileCheck(file, "damaged", None, by, f"can't be read: {error.strerror or error}")
    if wanted is None:
        return FileCheck(file, "unrecorded", sha256, None, "nothing says what it should be")
    if sha256 != wanted:
        return FileCheck(file, "damaged", sha256, by, f"SHA-256 is {sha256}, should be {wanted}")
    return FileCheck(file, "ok", sha256, by, "placed by hand" if by == "nobody" else "")


def manual(name: str) -> str:
    """How to place by hand what is missing of a pack: each file's address, target, size and hash."""
    home = find_pack(name, "pack")
    manifest = read_manifest(home)
    folder = weights_folder(home, manifest)
    missing = {f: e for f, e in manifest.files.items() if not (folder / f).is_file()}
    again = f"ldvid packs pull {shlex.quote(name)}"
    if not missing:
        return f"All files of {manifest.name} are in {folder}. 'ldvid packs verify {name}' checks them.\n"
    lines = [f"{len(missing)} of {len(manifest.files)} files of {manifest.name} are missing. Get them where"]
    lines += ["there is a connection, and place them so:", ""]
    for file, entry in missing.items():
        lines += [*_place(folder / file, entry), ""]
    lines += [f"Then run '{again}' again: it takes files that lie there, checks them, and fetches the rest."]
    archives = {e.origin.url for e in missing.values() if e.origin and e.origin.member}
    if archives:
        lines += [f"A zip need not be unpacked: placed in {folder}, it is used as it is."]
    return "\n".join(lines) + "\n"


def _place(target: Path, entry: FileEntry) -> list[str]:
    origin = entry.origin
    lines = [f"{target}"]
    if origin is None:
        return [*lines, "  comes with the manifest: install the pack again"]
    if origin.repo is not None and origin.path is not None:
        lines += [f"  from    {page_url(origin.repo, origin.revision, origin.path)}"]
    elif origin.member is not None:
        lines += [f"  from    {origin.url}", f"  member  {origin.member}"]
    else:
        lines += [f"  from    {origin.url}"]
    if entry.size is not None:
        lines += [f"  size    {entry.size} bytes ({human(entry.size)})"]
    if entry.sha256 is not None:
        lines += [f"  sha256  {entry.sha256}"]
    return lines
