"""A folder of frames as a clip: PNG, JPEG, WebP, TIFF, tens of thousands of them.

A folder states no frame rate: its frames count as 25 a second, which matters only to ``--start``,
``--end`` and progress. Pictures are read upright (EXIF orientation applied). What 8-bit RGB can't
hold (alpha, 16 bits, plain grey) is kept beside it as the frame's ``native`` array.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

from ..errors import InputError
from .numbering import natural_key, numbering_warnings
from .picture_read import FORMATS, Header, read_frame, read_header, read_picture
from .records import ClipInfo, Frame

__all__ = [
    "RATE",
    "SUFFIXES",
    "FolderReader",
    "frame_files",
    "natural_key",
    "read_picture",
    "scan_folder",
    "scan_picture",
]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
RATE = Fraction(25)
# Pictures that people number as frames and that are not read. Other files are nobody's frames.
_UNREAD = {
    ".avif", ".bmp", ".cin", ".cr2", ".dng", ".dpx", ".exr", ".gif", ".hdr", ".heic", ".heif", ".iff", ".j2k",
    ".jp2", ".jpe", ".jxl", ".pam", ".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".qoi", ".rgb", ".sgi", ".tga",
}  # fmt: skip
# Threads wait for a network's disk together; a local one is kept busy by one.
_THREADS, _BATCH = 8, 64


def frame_files(folder: Path) -> tuple[str, ...]:
    """Names of the folder's frames in natural order. Hidden and other files, folders, pipes are passed over.

    Raises:
        InputError: the folder can't be read, or a frame is a link to nowhere.
    """
    return _listing(folder)[0]


def _listing(folder: Path) -> tuple[tuple[str, ...], Counter[str]]:
    """The frames, and the suffixes of the other files."""
    frames: list[str] = []
    others: Counter[str] = Counter()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - of tens of thousands
                if entry.name.startswith("."):
                    continue
                if suffix not in SUFFIXES:
                    others[suffix] += 1
                elif _is_file(folder, entry):
                    frames.append(entry.name)
    except OSError as error:
        raise InputError(f"{folder}: the folder can't be read: {error.strerror or error}") from error
    return tuple(sorted(frames, key=natural_key)), others


def _is_file(folder: Path, entry: os.DirEntry[str]) -> bool:
    try:
        if entry.is_file():
            return True
        if entry.is_symlink():
            entry.stat()
        return False
    except OSError as error:
        raise InputError(
            f"{folder / entry.name}: is a link that leads nowhere ({error.strerror}); mend or remove it"
        ) from error


def scan_folder(path: Path) -> ClipInfo:
    """ClipInfo of all frames of a folder, from their headers; its warnings say what its names lack.

    Raises:
        InputError: no frames in it, one that is no picture or damaged, or frames of different sizes.
    """
    files, others = _listing(path)
    if not files:
        raise InputError(f"{path}: the folder holds no frames ({FORMATS} files){_instead(others)}")
    unread = Counter({suffix: n for suffix, n in others.items() if suffix in _UNREAD})
    warnings = [f"{path}: {_counted(unread)} passed over; frames are {FORMATS} files"] if unread else []
    return _scan(path, files, (*warnings, *numbering_warnings(path, files)))


def scan_picture(path: Path) -> ClipInfo:
    """ClipInfo of one picture, as of a folder that holds nothing else; InputError if it is none."""
    return _scan(path.parent, (path.name,), ())


def _instead(others: Counter[str]) -> str:
    named = Counter({suffix: n for suffix, n in others.items() if suffix})
    return f"; it has {_counted(named)}" if named else ""


def _counted(suffixes: Counter[str]) -> str:
    """``240 .exr files``; ``3 .bmp and 1 .txt files``."""
    texts = [f"{n} {suffix}" for suffix, n in suffixes.most_common(3)]
    return f"{' and '.join(texts)} {'file' if list(suffixes.values()) == [1] else 'files'}"


def _scan(path: Path, files: tuple[str, ...], warnings: tuple[str, ...]) -> ClipInfo:
    first: Header | None = None
    alpha, several = False, []
    for name, header in zip(files, _headers(path, files), strict=True):
        if first is None:
            first = header
        elif (header.width, header.height) != (first.width, first.height):
            raise InputError(
                f"{path / name}: is {header.width}×{header.height}, but the folder's first frame {files[0]} "
                f"is {first.width}×{first.height}; all frames must have one size"
            )
        alpha |= header.alpha
        if header.several:
            several.append(name)
    assert first is not None
    if several:
        more = f" and {len(several) - 1} more hold" if len(several) > 1 else " holds"
        warnings += (f"{path / several[0]}{more} several pictures; only the first of each is used",)
    return ClipInfo(
        path=path,
        kind="folder",
        width=first.width,
        height=first.height,
        time_base=1 / RATE,
        rate=RATE,
        pix_fmt="rgba" if alpha else "rgb24",
        codec=Path(files[0]).suffix.lower().lstrip("."),
        timestamps=tuple(range(len(files))),
        durations=(1,) * len(files),
        files=files,
        warnings=warnings,
    )


def _headers(path: Path, files: Sequence[str]) -> Iterator[Header]:
    """The headers in order; the first file that can't be read is the one that is named."""
    if len(files) <= _BATCH:
        for name in files:
            yield read_header(path / name)
        return
    batches = [files[i : i + _BATCH] for i in range(0, len(files), _BATCH)]
    pool = ThreadPoolExecutor(_THREADS, "ldvid-headers")
    try:
        for headers in pool.map(partial(_batch, path), batches):
            for header in headers:
                if isinstance(header, InputError):
                    raise header
                yield header
    finally:
        pool.shutdown(cancel_futures=True)


def _batch(path: Path, files: Sequence[str]) -> list[Header | InputError]:
    """An error takes its file's place, so that an odd size before it is found first."""
    headers: list[Header | InputError] = []
    for name in files:
        try:
            headers.append(read_header(path / name))
        except InputError as error:
            headers.append(error)
            break
    return headers


class FolderReader:
    """Frames of a folder by index; the ``backend`` setting has no meaning for pictures."""

    def __init__(self, info: ClipInfo) -> None:
        self.info = info

    def read(self, start: int, stop: int) -> Iterator[Frame]:
        """Frames [start, stop).

        Raises:
            InputError: a file has gone, is damaged, or has changed its size; names it and its frame.
        """
        for index in range(start, stop):
            path = self.info.path / self.info.files[index]
            try:
                rgb, native = read_frame(path)
            except InputError as error:
                raise InputError(f"{error} (frame {self.info.first_frame + index})") from error
            if rgb.shape != (self.info.height, self.info.width, 3):
                raise InputError(f"{path}: the frame's size has changed since the folder was scanned")
            yield Frame(index, rgb, native)

    def close(self) -> None:
        """Nothing is held open."""
