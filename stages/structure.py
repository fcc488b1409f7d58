"""How long a media file should be by its own outermost structure, to tell a cut-off file.

Demuxers read a cut-off file happily to its last whole packet; only the nesting of boxes, elements
or blocks shows that more was promised. Nothing but headers is read, so it costs no time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_UNKNOWN = None


def declared_size(path: Path, format_name: str) -> int | None:
    """Bytes the file must have to be whole; larger than its size if its end is missing.

    ``format_name`` is FFmpeg's demuxer name. None where the format does not say (MPEG-TS, raw
    streams) or the writer left it open (a live recording).
    """
    names = set(format_name.split(","))
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if names & {"mov", "mp4"}:
            return _boxes(file, size)
        if names & {"matroska", "webm"}:
            return _segment(file)
        if "gif" in names:
            return _gif(file, size)
        if names & {"avi", "wav"}:
            return _riff(file, size)
    return _UNKNOWN


def _boxes(file: BinaryIO, size: int) -> int:
    """ISO base media: a run of boxes, each with a 32 or 64 bit length; 0 means to the end."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        elif length == 0:
            return size
        if length < 8:
            return size  # no box: trailing rubbish, not a cut
        at += length
    return at if at >= size else at + 8


def _riff(file: BinaryIO, size: int) -> int:
    """AVI: RIFF chunks, several of them beyond 1 GB."""
    at = 0
    while at + 12 <= size:
        file.seek(at)
        head = file.read(8)
        if head[:4] != b"RIFF":
            return at
        length = int.from_bytes(head[4:], "little")
        at += 8 + length + length % 2
    return at


def _varint(file: BinaryIO, *, keep_marker: bool) -> tuple[int, bool]:
    """An EBML number and whether all its bits are set (size unknown)."""
    first = file.read(1)
    if not first or first[0] == 0:
        return 0, True
    length = 9 - first[0].bit_length()
    raw = int.from_bytes(first + file.read(length - 1), "big")
    value = raw & ((1 << 7 * length) - 1)
    return (raw if keep_marker else value), value == (1 << 7 * length) - 1


def _segment(file: BinaryIO) -> int | None:
    """Matroska: the EBML header, then one Segment with a declared length."""
    for _ in range(4):
        ident, _all = _varint(file, keep_marker=True)
        length, unknown = _varint(file, keep_marker=False)
        if unknown:
            return _UNKNOWN
        if ident == 0x18538067:
            return file.tell() + length
        file.seek(length, os.SEEK_CUR)
    return _UNKNOWN


def _gif(file: BinaryIO, size: int) -> int:
    """GIF: header, colour table, then blocks made of sub-blocks up to the trailer ``;``."""

    def table(flags: int) -> None:
        if flags & 0x80:
            file.seek(3 << ((flags & 7) + 1), os.SEEK_CUR)

    def sub_blocks() -> None:
        while (length := file.read(1)) and length[0]:
            file.seek(length[0], os.SEEK_CUR)

    head = file.read(13)
    if len(head) == 13:
        table(head[10])
    while file.tell() < size:
        kind = file.read(1)
        if kind == b";":
            return file.tell()
        if kind == b"!":
            file.seek(1, os.SEEK_CUR)
            sub_blocks()
        elif kind == b",":
            descriptor = file.read(9)
            if len(descriptor) == 9:
                table(descriptor[8])
            file.seek(1, os.SEEK_CUR)
            sub_blocks()
        elif kind == b"\0":
            continue  # padding that some writers leave between blocks
        else:
            return size  # not GIF any more: damaged or followed by something else
    return max(file.tell(), size) + 1
