"""What a rewritten frame of a folder says beside its pixels: that it was altered, and what its original said.

The mark is XMP (``Iptc4xmpExt:DigitalSourceType``, ``dc:description``), where readers of pictures look
for it, and a plain comment where the format has one. The original's colour profile and EXIF are kept,
without the thumbnail, which would show the face that was there, and with the orientation that the
pixels now have; so are a PNG's colour space, pixel size and texts, a JPEG's density, a TIFF's resolution,
alpha kind, date and names. XMP and IPTC are not. Everything is put into the encoded file: no pixel is
coded again.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast
from xml.sax.saxutils import escape

from PIL import Image

from .picture_ends import png_chunks
from .picture_read import open_regular

_ORIENTATION = 0x0112
_EXIF_HEADER, _XMP_HEADER, _ICC_HEADER = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_PNG_SPACE = (b"cICP", b"mDCV", b"cLLI", b"gAMA", b"cHRM", b"sRGB", b"pHYs")
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_PNG_DROPPED = (b"XML:com.adobe.xmp", b"Raw profile type")  # may hold a thumbnail
_TIFF_TEXTS = (269, 270, 271, 272, 305, 306, 315, 33432)  # names, description, camera, software, date, rights
_TIFF_RESOLUTION = (282, 283)
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    "<Iptc4xmpExt:DigitalSourceType>{type}</Iptc4xmpExt:DigitalSourceType><dc:description><rdf:Alt>"
    '<rdf:li xml:lang="x-default">{comment}</rdf:li></rdf:Alt></dc:description>'
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


def tag_picture(data: bytes, suffix: str, tags: Mapping[str, str], original: Path | None = None) -> bytes:
    """The encoded picture with the marks of ``tags`` (``comment``, ``digital_source_type``; empty: none)
    and with the profile and EXIF of the file it replaces, if there is one.

    Raises:
        OSError: the original can't be read.
    """
    comment = tags.get("comment", "").encode()
    xmp = b""
    if tags:
        xmp = _XMP.format(
            type=escape(tags.get("digital_source_type", "")), comment=escape(tags.get("comment", ""))
        ).encode()
    with Image.open(io.BytesIO(data)) as image:
        grey, size, alpha = image.mode[0] in "LI", image.size, "A" in image.mode
    if suffix.lower() == ".png":
        grey = data[25] in (0, 4)  # Pillow opens deep grey with alpha as RGBA
    kept = _Kept() if original is None else _kept(original, b"GRAY" if grey else b"RGB ")
    match suffix.lower():
        case ".png":
            return _png(data, kept, xmp, tags)
        case ".jpg" | ".jpeg":
            return _jpeg(data, kept, xmp, comment)
        case ".webp":
            return _webp(data, kept.exif, kept.icc, xmp, size, alpha)
        case _:
            return _tiff(data, kept, xmp, comment)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Of the original: EXIF (a TIFF structure, no header), its profile if it is one for this colour space,
    a PNG's chunks, the density fields of a JPEG's JFIF segment, a TIFF's tags."""

    exif: bytes = b""
    icc: bytes = b""
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    density: bytes = b""
    tags: Mapping[int, Any] = field(default_factory=dict)


def _kept(original: Path, space: bytes) -> _Kept:
    with open_regular(original) as file, Image.open(file) as image:
        exif, icc, kind = image.getexif(), image.info.get("icc_profile") or b"", image.format
        tags = dict(cast("Mapping[int, Any]", image.tag_v2)) if kind == "TIFF" else {}  # type: ignore[attr-defined]
        if _ORIENTATION in exif:
            exif[_ORIENTATION] = 1
        raw = b"" if kind == "TIFF" or not exif else exif.tobytes().removeprefix(_EXIF_HEADER)
        density = b""
        if kind in ("JPEG", "MPO") and "jfif_unit" in image.info:
            density = struct.pack(">BHH", image.info["jfif_unit"], *image.info["jfif_density"])
        chunks = tuple(_png_kept(file)) if kind == "PNG" else ()
    return _Kept(raw, icc if icc[16:20] == space else b"", chunks, density, tags)


def _png_kept(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    for name, at, length in png_chunks(file):
        if name in _PNG_SPACE or name in _PNG_TEXT:
            file.seek(at)
            body = file.read(length)
            if name in _PNG_SPACE or not body.startswith(_PNG_DROPPED):
                yield name, body


def _png(data: bytes, kept: _Kept, xmp: bytes, tags: Mapping[str, str]) -> bytes:
    ours = tuple(f"{'Comment' if key == 'comment' else key}\0".encode() for key in tags)
    chunks = [c for c in kept.chunks if c[0] in _PNG_SPACE or not ours or not c[1].startswith(ours)]
    if kept.icc:
        chunks.append((b"iCCP", b"profile\0\0" + zlib.compress(kept.icc)))
    if kept.exif:
        chunks.append((b"eXIf", kept.exif))
    texts = [("Comment" if key == "comment" else key, value.encode()) for key, value in tags.items()]
    texts += [("XML:com.adobe.xmp", xmp)] if xmp else []
    chunks += [(b"iTXt", key.encode() + b"\0\0\0\0\0" + value) for key, value in texts]
    made = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data[:33] + made + data[33:]  # behind the signature and IHDR


def _jpeg(data: bytes, kept: _Kept, xmp: bytes, comment: bytes) -> bytes:
    exif, icc = kept.exif, kept.icc
    if kept.density and data[6:11] == b"JFIF\0":
        data = data[:13] + kept.density + data[18:]
    parts = [icc[i : i + 65000] for i in range(0, len(icc), 65000)]
    segments = [(0xE1, _EXIF_HEADER + exif)] if exif else []
    segments += [(0xE1, _XMP_HEADER + xmp)] if xmp else []
    segments += [(0xE2, _ICC_HEADER + bytes([i + 1, len(parts)]) + part) for i, part in enumerate(parts)]
    segments += [(0xFE, comment)] if comment else []
    made = b"".join(
        struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body
        for kind, body in segments
        if len(body) + 2 < 65536
    )
    at = 2 if data[2:4] != b"\xff\xe0" else 4 + int.from_bytes(data[4:6], "big")  # JFIF stays first
    return data[:at] + made + data[at:]


def _webp(data: bytes, exif: bytes, icc: bytes, xmp: bytes, size: tuple[int, int], alpha: bool) -> bytes:
    if not (exif or icc or xmp) or data[12:16] == b"VP8X":
        return data
    flags = 0x20 * bool(icc) | 0x10 * alpha | 0x08 * bool(exif) | 0x04 * bool(xmp)
    sides = b"".join((n - 1).to_bytes(3, "little") for n in size)
    chunks = [(b"VP8X", bytes([flags, 0, 0, 0]) + sides), (b"ICCP", icc), (b"", data[12:])]
    chunks += [(b"EXIF", exif), (b"XMP ", xmp)]
    body = b"WEBP"
    for kind, content in chunks:
        if kind and content:
            body += kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
        elif not kind:
            body += content  # the picture's own chunk
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff(data: bytes, kept: _Kept, xmp: bytes, comment: bytes) -> bytes:
    """A copy of the directory with more entries, at the file's end."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return data
    order = "<" if data[:1] == b"I" else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    entries = {
        struct.unpack_from(f"{order}H", data, i)[0]: data[i : i + 12]
        for i in range(at + 2, at + 2 + 12 * count, 12)
    }
    out = data + b"\0" * (len(data) % 2)
    ascii_, byte, short, rational, undefined = 2, 1, 3, 5, 7
    added = [(700, byte, xmp, len(xmp)), (34675, undefined, kept.icc, len(kept.icc))]
    for tag in _TIFF_TEXTS:
        text = comment.decode() if tag == 270 and comment else str(kept.tags.get(tag, ""))
        value = text.encode("ascii", "replace") + b"\0" if text else b""
        added.append((tag, ascii_, value, len(value)))
    for tag in _TIFF_RESOLUTION:
        if tag in kept.tags:
            value = struct.pack(
                f"{order}II", *Fraction(kept.tags[tag]).limit_denominator(10**6).as_integer_ratio()
            )
            added.append((tag, rational, value, 1))
    if 296 in kept.tags:
        added.append((296, short, struct.pack(f"{order}H", kept.tags[296]), 1))
    if struct.unpack_from(f"{order}H", entries[277], 8)[0] == 4 and 338 not in entries:
        # The fourth is alpha, whatever the encoder left unsaid; 2: not multiplied into the colours.
        extra = kept.tags.get(338) or (2,)
        added.append((338, short, struct.pack(f"{order}H", extra[0]), 1))
    for tag, kind, value, n in added:
        if not value:
            continue
        place = value.ljust(4, b"\0")
        if len(value) > 4:
            place = struct.pack(f"{order}I", len(out))
            out += value + b"\0" * (len(value) % 2)
        entries[tag] = struct.pack(f"{order}HHI", tag, kind, n) + place
    directory = b"".join(entries[tag] for tag in sorted(entries))
    start = struct.pack(f"{order}I", len(out))
    following = data[at + 2 + 12 * count :][:4]
    return out[:4] + start + out[8:] + struct.pack(f"{order}H", len(entries)) + directory + following
