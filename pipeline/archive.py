"""Files out of a zip that has been fetched."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ..errors import OutputError
from .download import hash_both
from .transport import FetchError


def extract(archive: Path, member: str, target: Path, part: Path, sha256: str | None) -> str:
    """Put one file of a zip at ``target`` and return its SHA-256; ``target`` is untouched until all is well.

    Args:
        member: the file's name, in whatever folder of the archive it lies.
        part: where it is unpacked first; on the same file system as ``target``.
        sha256: what it must hash to, if that is known.

    Raises:
        FetchError: no zip, a damaged one, no such file in it or another one than is wanted.
        OutputError: disk full, no permission.
    """
    try:
        with zipfile.ZipFile(archive) as zipped, zipped.open(_member(zipped, member)) as source:
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
        got = hash_both(part)[0]
        if sha256 not in (None, got):
            raise FetchError(
                f"{archive.name}: its {member} is not the file it should be (its SHA-256 is {got})"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        return got
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise FetchError(f"{archive.name}: {error or 'is damaged'}") from error
    except OSError as error:
        raise OutputError(f"{target}: can't be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _member(zipped: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    files = [i for i in zipped.infolist() if not i.is_dir()]
    exact = [i for i in files if i.filename == name]
    found = exact or [i for i in files if PurePosixPath(i.filename).name == name]
    if len(found) != 1:
        raise zipfile.BadZipFile(f"holds {len(found) or 'no'} files named {name}")
    return found[0]
