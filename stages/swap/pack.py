"""Packs on disk: where they lie, and the check that their files are what the manifest says.

Manifests ship with ldvid or lie in the user's folder. Weights lie beside the manifest or, for packs too
large to ship, in the user's folder of that name, where ``ldvid packs pull`` puts them.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ...errors import PackError
from .manifest import Manifest, read_manifest

EMBEDDED = Path(__file__).resolve().parents[2] / "packs"


class Pack:
    """A manifest and the folder of its weights, which have been checked against it."""

    def __init__(self, folder: Path, manifest: Manifest, hashes: dict[str, str]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.hashes = hashes

    def path(self, file: str) -> Path:
        """Path of a file the manifest lists, or of a folder of them; PackError if it lists none."""
        if file not in self.manifest.files and not any(f.startswith(f"{file}/") for f in self.manifest.files):
            raise PackError(f"pack {self.manifest.name}: its manifest uses {file} but lists no such file")
        return self.folder / file

    def digest(self) -> str:
        """SHA-256 over the manifest's contents and the hashes of all files."""
        contents = [self.manifest.model_dump(mode="json"), sorted(self.hashes.items())]
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def user_folder() -> Path:
    """Where packs are downloaded to: ``$LDVID_HOME/packs``, or the user's cache folder."""
    import platformdirs  # only here: what trains on a bare machine opens packs by their folders

    home = os.environ.get("LDVID_HOME")
    return (Path(home) if home else Path(platformdirs.user_cache_dir("ldvid"))) / "packs"


def known_packs() -> dict[str, Path]:
    """Name → the folder that holds its manifest; the user's own after the embedded ones."""
    folders = [EMBEDDED, user_folder()]
    found = [p.parent for f in folders if f.is_dir() for p in sorted(f.glob("*/pack.toml"))]
    return {p.name: p for p in reversed(found)}


def find_pack(name: str, flag: str = "--pack") -> Path:
    """The folder of a pack's manifest: a path to one, an embedded one, or one of the user's.

    Raises:
        PackError: no such pack; ``flag`` is what the message calls the argument.
    """
    known = known_packs()
    if name in known:
        return known[name].resolve()
    if (Path(name) / "pack.toml").is_file():
        return Path(name).resolve()
    raise PackError(f"{flag} {name}: no such pack; there are {', '.join(sorted(known)) or 'none'}")


def weights_folder(folder: Path, manifest: Manifest) -> Path:
    """Where a pack's files lie: beside the manifest, or in the user's folder for packs that are fetched."""
    fetched = any(entry.origin is not None for entry in manifest.files.values())
    if fetched and folder.parent == EMBEDDED.resolve():
        return user_folder() / folder.name
    return folder


class Lock(BaseModel):
    """``pack.lock``: what came when the pack was fetched, and who vouched for it.

    ``sha256`` maps file → hash; ``revisions`` maps ``REPO@REVISION`` → commit; ``vouched_by`` maps file →
    "manifest", "hub", "transport" (an encrypted connection, no hash) or "nobody" (placed by hand).
    """

    model_config = ConfigDict(extra="ignore")

    sha256: dict[str, str] = {}
    revisions: dict[str, str] = {}
    vouched_by: dict[str, str] = {}


def read_lock(folder: Path) -> Lock:
    """What ``ldvid packs pull`` recorded in a folder of weights; empty where it has not run."""
    path = folder / "pack.lock"
    try:
        return Lock.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Lock()
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise PackError(f"{path}: can't be read: {first}; delete it and pull again") from error


@lru_cache(maxsize=64)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, remembered while size and time of change stay the same."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


def open_pack(name: str) -> Pack:
    """Find a pack, read its manifest, and verify every file's SHA-256.

    Raises:
        PackError: no such pack, a manifest that can't be read, a missing or altered file.
    """
    home = find_pack(name)
    manifest = read_manifest(home)
    folder = weights_folder(home, manifest)
    lock = read_lock(folder)
    pull = f"run 'ldvid packs pull {name}'"
    missing = [file for file in manifest.files if not (folder / file).is_file()]
    if missing and all(manifest.files[file].origin is not None for file in missing):
        if len(missing) == len(manifest.files):
            raise PackError(f"pack {manifest.name}: not downloaded yet; {pull}")
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise PackError(f"pack {manifest.name}: {folder / missing[0]} is missing{more}; {pull}")
    hashes = {}
    for file, entry in manifest.files.items():
        path = folder / file
        if not path.is_file():
            raise PackError(f"pack {manifest.name}: {path} is missing")
        wanted = entry.sha256 or lock.sha256.get(file)
        hashes[file] = hash_file(path)
        if wanted is None:
            raise PackError(
                f"pack {manifest.name}: nothing vouches for {path}; {pull}, "
                "which takes files that lie there and records what they are"
            )
        if hashes[file] != wanted:
            what = "the manifest names" if entry.sha256 else "that was fetched"
            fix = "install the pack again" if entry.origin is None else pull
            raise PackError(
                f"pack {manifest.name}: {path} is not the file {what} (its SHA-256 differs); "
                f"it is damaged or was replaced, {fix}"
            )
    return Pack(folder, manifest, hashes)
