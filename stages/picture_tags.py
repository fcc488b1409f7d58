"""What a rewritten frame of a folder says beside its pixels: that it was altered, and what its original said.

The mark is XMP (``Iptc4xmpExt:DigitalSourceType``, ``dc:description``), where readers of pictures look
for it, and a plain comment where the format has one. The original's colour profile and EXIF are kept,
without the thumbnail, which would show the face that was there, and with the orientation that the
pixels now have. Everything is put into the encoded file: no pixel is coded again.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

_ORIENTATION = 0x0112
_EXIF_HEADER, _XMP_HEADER, _ICC_HEADER = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
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
        space, size, alpha = b"GRAY" if image.mode[0] in "LI" else b"RGB ", image.size, "A" in image.mode
    exif, icc = (b"", b"") if original is None else _kept(original, space)
    match suffix.lower():
        case ".png":
            return _png(data, exif, icc, xmp, tags)
        case ".jpg" | ".jpeg":
            return _jpeg(data, exif, icc, xmp, comment)
        case ".webp":
            return _webp(data, exif, icc, xmp, size, alpha)
        case _:
            return _tiff(data, icc, xmp, comment)


def _kept(original: Path, space: bytes) -> tuple[bytes, bytes]:
    """EXIF (a TIFF structure, no header) and the profile, if it is one for this colour space."""
    with Image.open(original) as image:
        exif, icc, is_tiff = image.getexif(), image.info.get("icc_profile") or b"", image.format == "TIFF"
        if _ORIENTATION in exif:
            exif[_ORIENTATION] = 1
        raw = b"" if is_tiff or not exif else exif.tobytes().removeprefix(_EXIF_HEADER)
    return raw, icc if icc[16:20] == space else b""


def _png(data: bytes, exif: bytes, icc: bytes, xmp: bytes, tags: Mapping[str, str]) -> bytes:
    chunks = []
    if icc:
        chunks.append((b"iCCP", b"profile\0\0" + zlib.compress(icc)))
    if exif:
        chunks.append((b"eXIf", exif))
    texts = [("Comment" if key == "comment" else key, value.encode()) for key, value in tags.items()]
    texts += [("XML:com.adobe.xmp", xmp)] if xmp else []
    chunks += [(b"iTXt", key.encode() + b"\0\0\0\0\0" + value) for key, value in texts]
    made = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data[:33] + made + data[33:]  # behind the signature and IHDR


def _jpeg(data: bytes, exif: bytes, icc: bytes, xmp: bytes, comment: bytes) -> bytes:
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


def _tiff(data: bytes, icc: bytes, xmp: bytes, comment: bytes) -> bytes:
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
    ascii_, byte, undefined = 2, 1, 7
    comment = comment.decode().encode("ascii", "replace") + b"\0" if comment else b""
    for tag, kind, value in ((270, ascii_, comment), (700, byte, xmp), (34675, undefined, icc)):
        if len(value) > 4:
            entries[tag] = struct.pack(f"{order}HHII", tag, kind, len(value), len(out))
            out += value + b"\0" * (len(value) % 2)
    directory = b"".join(entries[tag] for tag in sorted(entries))
    place = struct.pack(f"{order}I", len(out))
    following = data[at + 2 + 12 * count :][:4]
    return out[:4] + place + out[8:] + struct.pack(f"{order}H", len(entries)) + directory + following
