"""Finish: segments → the output, without encoding anything again.

The output is upright: no rotation tag. Everything is written to a temporary name beside the output and
renamed when it is complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import av

from ..errors import JobError, OutputError, OutputExistsError, SettingsError
from ..stages.picture_write import copy_picture
from ..stages.records import ClipInfo
from .mux import Muxer

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}


def container_of(output: Path) -> str:
    """FFmpeg's muxer for the output's suffix.

    Raises:
        SettingsError: a suffix that is no container for this.
    """
    try:
        return CONTAINERS[output.suffix.lower()]
    except KeyError:
        raise SettingsError(f"-o {output}: name it {', '.join(CONTAINERS)} to choose the container") from None


def check_output(info: ClipInfo, output: Path, *, overwrite: bool) -> None:
    """Fail early: what ``join`` would refuse for the output's name and place.

    Raises:
        OutputExistsError: something is there that ``overwrite`` does not cover.
        OutputError: its folder does not exist.
        SettingsError: a suffix that is no container for this.
    """
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder; make it, or choose another -o")
    if info.kind == "video":
        container_of(output)
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise OutputExistsError(f"{output}: is already there; --overwrite replaces it")
    if output.resolve() == info.path.resolve():
        raise OutputExistsError(f"{output}: is the input itself; choose another -o")
    if info.kind == "video" and output.is_dir():
        raise OutputExistsError(f"{output}: is a folder; choose another -o")
    if info.kind == "folder":
        others = sorted({f.name for f in output.iterdir()} - set(info.files)) if output.is_dir() else [""]
        if others:
            held = f"holds {others[0]}, which is no frame of this clip" if others[0] else "is a file"
            raise OutputExistsError(f"{output}: {held}; choose another -o")


def join(
    info: ClipInfo,
    segment_paths: Sequence[Path],
    output: Path,
    metadata: Mapping[str, str],
    *,
    overwrite: bool,
    link: bool = False,
) -> list[str]:
    """Put the segments, in order, together with the input's other streams, chapters and tags.

    ``metadata`` is added to the container's tags. Returns warnings: what could not be kept. For a
    folder of frames the output is a folder with the same names, whose swapped frames are marked already;
    ``link``: they may share their files with segments that are about to be deleted, instead of a copy.

    Raises:
        OutputExistsError, OutputError, SettingsError: as ``check_output``; a codec that the container
            does not take; writing failed, and nothing is left of it.
        JobError: the segments don't hold the clip's frames.
    """
    check_output(info, output, overwrite=overwrite)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.part")
    replaced = output.with_name(f".{output.name}.{os.getpid()}.old")
    try:
        if info.kind == "folder":
            _collect(info, segment_paths, temporary, link=link)
            if output.is_dir():
                output.rename(replaced)
            warnings: list[str] = []
        else:
            warnings = Muxer(info, segment_paths, temporary, container_of(output)).write(metadata)
            with temporary.open("rb") as file, suppress(OSError):
                os.fsync(file.fileno())
            if not overwrite and output.exists():
                raise OutputExistsError(f"{output}: has appeared meanwhile; --overwrite replaces it")
        temporary.replace(output)
    except (OSError, av.FFmpegError) as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise OutputError(f"{output}: can't be written: {why}") from error
    finally:
        if replaced.is_dir() and not output.exists():
            replaced.rename(output)  # the new one did not make it
        shutil.rmtree(replaced, ignore_errors=True)
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
    return warnings


def _collect(info: ClipInfo, segment_paths: Sequence[Path], folder: Path, *, link: bool) -> None:
    """All frames in one folder: second names of the segments' files, or copies that share the disk's blocks
    where the file system can do either."""
    folder.mkdir()
    missing = set(info.files)
    for segment in segment_paths:
        with os.scandir(segment) as entries:
            for entry in entries:
                if entry.name not in missing:
                    raise JobError(f"{segment}: holds {entry.name}, which is no frame, or one held already")
                if not (link and _linked(entry.path, folder / entry.name)):
                    copy_picture(Path(entry.path), folder / entry.name)
                missing.remove(entry.name)
    if missing:
        raise JobError(f"the segments lack {len(missing)} frames of the clip, {min(missing)} among them")


def _linked(file: str, target: Path) -> bool:
    """False where the file system has no links, or the two are on different ones."""
    with suppress(OSError):
        os.link(file, target)
        return True
    return False
