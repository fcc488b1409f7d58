"""Whether a picture's file is all there, and what stands behind its pixels, without decoding them.

A structure that ends early is a suspicion, not a proof: trailing data and sloppy writers exist. Whoever
asks decodes the picture then, which is the proof, and costs nothing for files that look whole.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import Image

_TAIL = 4096  # a JPEG may be padded behind its end
_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_TELLING = (b"Raw profile type", b"XML:com.adobe.xmp")  # texts that may hold an orientation


def must_decode(file: BinaryIO, image: Image.Image) -> bool:
    """Whether only decoding can tell if the file is whole, or how its picture is turned."""
    size = file.seek(0, 2)
    if image.format == "PNG":
        return _png_must(file)
    if image.format == "WEBP":
        return int(struct.unpack("<I", _read_at(file, 4, 4))[0]) + 8 > size
    if image.format == "TIFF":
        tags: dict[int, Any] = getattr(image, "tag_v2", {})
        pairs = ((tags.get(a, ()), tags.get(b, ())) for a, b in ((273, 279), (324, 325)))
        return any(at + length > size for a, b in pairs for at, length in zip(a, b, strict=False))
    return not _read_at(file, max(0, size - _TAIL), _TAIL).rstrip(b"\0").endswith(b"\xff\xd9")


def _png_must(file: BinaryIO) -> bool:
    """Its end is missing, or EXIF, or a text that may say as much, stands behind the pixels."""
    behind = False
    for name, at, length in png_chunks(file):
        if name == b"IEND":
            return False
        behind |= name == b"IDAT"
        if behind and (
            name == b"eXIf" or (name in _TEXT and _read_at(file, at, min(length, 24)).startswith(_TELLING))
        ):
            break
    return True


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and length of the contents of each chunk that is there wholly, from the first to IEND."""
    size = file.seek(0, 2)
    at = 8
    while at + 12 <= size:
        length, name = struct.unpack(">I4s", _read_at(file, at, 8))
        if at + 12 + length > size:
            return
        yield name, at + 8, length
        at += 12 + length


def _read_at(file: BinaryIO, at: int, length: int) -> bytes:
    """Past the buffer, which would read some KiB for the few bytes that are wanted."""
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), length, at)
    file.seek(at)  # pragma: no cover - Windows
    return file.read(length)  # pragma: no cover - Windows
