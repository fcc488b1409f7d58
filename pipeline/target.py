"""The output's place: checked before the work, filled under another name, put there when complete."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError, OutputError, OutputExistsError, SettingsError
from .files import remove

_PART, _OLD = "ldvid-part", "ldvid-old"


def default_output(clip: Path, *, debug: bool = False) -> Path:
    """``clip.mp4`` or ``clip.gif`` → ``clip.swapped.mp4``; a folder ``frames`` → ``frames.swapped``.

    ``debug``: it has a debug overlay, and is named ``clip.swapped.debug.mp4`` or ``frames.swapped.debug``.
    """
    whole = clip.resolve() if clip.name in ("", "..") else clip
    made = "swapped.debug" if debug else "swapped"
    if whole.is_dir():
        return whole.with_name(f"{whole.name}.{made}")
    return whole.with_name(f"{whole.stem}.{made}.mp4")


def check_inputs(clip: Path, picture: Path, flag: str = "--source") -> None:
    """InputError unless both are there and can be read; ``flag`` is the one that named the picture."""
    kind = "source picture" if flag == "--source" else "picture of a person"
    for path, what in ((clip, "clip"), (picture, f"{kind} ({flag})")):
        if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises where a name is too long
            raise InputError(f"{path}: no such file; it was to be the {what}")
        if not os.access(path, os.R_OK):
            raise InputError(f"{path}: no permission to read it; it was to be the {what}")
    if picture.is_dir():
        raise InputError(f"{picture}: {flag} must be a picture, this is a folder")


def check_output(output: Path, report: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Whether the output and its record could be written there.

    Raises:
        SettingsError: it would replace an input.
        OutputExistsError: something is there and ``overwrite`` was not given.
        OutputError: no such folder, or no permission.
    """
    for path in inputs:
        if path.resolve() in (output.resolve(), report.resolve()):
            raise SettingsError(
                f"--output {output}: it would replace {path}, which is an input; choose another"
            )
        if path.is_dir() and path.resolve() in output.resolve().parents:
            raise SettingsError(f"--output {output}: it lies inside the folder of frames that is read")
    for path in (output, report):
        if os.path.lexists(path) and not overwrite:
            raise OutputExistsError(f"{path} exists; give --overwrite to replace it, or another name with -o")
    if os.path.lexists(report) and not report.is_file():
        raise OutputExistsError(f"{report} is in the way and is no file; choose another name with -o")
    folder = output.parent
    if not folder.is_dir():
        raise OutputError(f"{output}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{output}: no permission to write in {folder}")


def check_replaced(output: Path, frames: Sequence[str]) -> None:
    """With ``--overwrite``: only a file is replaced by a file, and a folder only if all it holds are
    frames of those names (empty for a video), as an earlier run left it. OutputExistsError else."""
    if not os.path.lexists(output):
        return
    if not frames:
        if output.is_dir():
            raise OutputExistsError(
                f"{output} is a folder and the output a file; choose another name with -o"
            )
        return
    if not output.is_dir():
        raise OutputExistsError(f"{output} is a file and the output a folder; choose another name with -o")
    stems = {Path(name).stem for name in frames}
    others = sorted(p.name for p in output.iterdir() if p.is_dir() or p.stem not in stems)
    if others:
        raise OutputExistsError(
            f"{output} holds {others[0]}, which is no frame of this clip; --overwrite would delete it. "
            "Choose another folder with -o"
        )


def check_container(output: Path, codec: str | None) -> None:
    """Whether the container that the output's name stands for can hold ``codec``; None: a folder of frames.

    Raises:
        SettingsError: an unknown suffix, a container without that codec, or a suffix on a folder.
    """
    import av

    from .finish import CONTAINERS, container_of

    if codec is None:
        if output.suffix.lower() in CONTAINERS:
            raise SettingsError(
                f"--output {output}: the clip is a folder of frames, so the output is a folder too"
            )
        return
    muxer = container_of(output)
    try:
        with av.open(io.BytesIO(), "w", format=muxer) as container:
            container.add_stream(codec, rate=25)
    except (ValueError, av.FFmpegError) as error:
        raise SettingsError(
            f"--output {output}: {muxer} can't hold codec {codec}; name it .mp4, .mov or .mkv, or choose "
            "another codec with --set codec="
        ) from error


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A hidden name beside the output, of the same type, to make it under; gone afterwards."""
    part = output.with_name(f".{output.stem}.{_PART}{output.suffix}")
    remove(part)
    for stale in output.parent.glob(f".{glob.escape(part.name)}.*"):  # of a run that was killed
        remove(stale)
    try:
        yield part
    finally:
        with contextlib.suppress(OSError):
            remove(part)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignores Ctrl-C for a moment that must happen whole; whoever presses it then gets a finished output."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def put_in_place(part: Path, output: Path, *, overwrite: bool) -> None:
    """Rename a finished output to its name; what was there before is deleted only after that.

    Raises:
        OutputExistsError: something appeared there meanwhile.
        OutputError: the rename failed; what was there is there still.
    """
    if os.path.lexists(output) and not overwrite:
        raise OutputExistsError(
            f"{output} appeared while working; it is left as it is, choose another name with -o"
        )
    try:
        if not output.is_dir():
            part.replace(output)
            return
        old = output.with_name(f".{output.name}.{_OLD}")
        remove(old)
        output.rename(old)
        try:
            part.rename(output)
        except OSError:
            old.rename(output)
            raise
        remove(old)
    except OSError as error:
        raise OutputError(f"{output}: can't be put in place: {error.strerror or error}") from error
