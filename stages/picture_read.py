"""Read one picture: PNG, JPEG, WebP, TIFF, upright, with all that it stores.

``read_header`` looks at a file's structure only, ``read_frame`` decodes it. What 8-bit RGB can't hold
(alpha, 16 bits, plain grey) is read as stored: 8 bits by Pillow, 16 by OpenCV, which Pillow would cut
to 8. CMYK, Lab and palettes are read as RGB. Files are opened so that a pipe put in a picture's place
is an error, not a standstill.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (
    Image,
    ImageOps,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ..errors import InputError
from .picture_ends import must_decode
from .records import U8

FORMATS = "PNG, JPEG, WebP or TIFF"
# Imported by name: Pillow loads some of them when first needed, by several threads at once then.
_PLUGINS = (PngImagePlugin, JpegImagePlugin, MpoImagePlugin, WebPImagePlugin, TiffImagePlugin)
_PILLOW = ("PNG", "JPEG", "WEBP", "TIFF")
_ORIENTATION = 0x0112
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture's file says of itself. ``width`` and ``height`` are those of the upright picture.

    ``native`` is what is kept beside 8-bit RGB: nothing, one of Pillow's 8-bit modes, or the ``stored``
    samples as OpenCV reads them. ``grey_alpha`` tells that these are grey with alpha, ``several`` that
    the file holds more pictures than its first.
    """

    width: int
    height: int
    native: Literal["", "L", "LA", "RGBA", "stored"] = ""
    grey_alpha: bool = False
    alpha: bool = False
    several: bool = False


def open_regular(path: Path) -> BinaryIO:
    """A file to read; never waits for a pipe's other end.

    Raises:
        InputError: no such file, no permission, or no regular file.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):
            file = io.FileIO(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY))
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # no other has taken its place
                return io.BufferedReader(file)
            file.close()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it") from error
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error
    raise InputError(f"{path}: is no regular file, so it can't be read as a picture")


_BINARY: int = getattr(os, "O_BINARY", 0)


def read_header(path: Path) -> Header:
    """What the file says of its picture, without decoding it, unless its end looks cut off.

    Raises:
        InputError: can't be read, is no picture, is cut off, or holds samples that can't be kept.
    """
    with open_regular(path) as file, _open(file, path, _PILLOW) as image:
        try:
            if must_decode(file, image):
                image.load()  # a PNG's EXIF is then known too
            return _header(image, file, path)
        except _DAMAGE as error:
            raise InputError(f"{path}: the picture is damaged or cut off ({error})") from error


def read_picture(path: Path) -> U8:
    """One picture as (H, W, 3) uint8 RGB, upright; transparency is laid on white.

    Raises:
        InputError: no such file, not a picture, or cut off.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not a picture")
    with open_regular(path) as file, _open(file, path, None) as image:
        try:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
        except _DAMAGE as error:
            raise InputError(f"{path}: the picture is damaged or cut off ({error})") from error


def read_frame(path: Path) -> tuple[U8, NDArray[Any] | None]:
    """One picture upright: 8-bit RGB (H, W, 3), and all that is stored, where that is more.

    The second is (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) or (H, W, 4), RGB order, uint8 or
    uint16. Colours under transparency are as stored in both.

    Raises:
        InputError: as ``read_header``, or the pixels are damaged.
    """
    with open_regular(path) as file:
        data = file.read()
    with _open(io.BytesIO(data), path, _PILLOW) as image:
        try:
            image.load()
            header = _header(image, io.BytesIO(data), path)
            turned = _orientation(image)
            if header.native == "":
                return _to_rgb(ImageOps.exif_transpose(image)), None
            if header.native != "stored":
                native = np.array(ImageOps.exif_transpose(image.convert(header.native)))
            else:
                native = _stored(data, path, header, turned if image.format != "TIFF" else 1)
        except _DAMAGE as error:
            raise InputError(f"{path}: the picture is damaged or cut off ({error})") from error
    colours = native if native.ndim == 2 else native[..., 0] if native.shape[2] == 2 else native[..., :3]
    eight = colours if colours.dtype == np.uint8 else (colours >> 8).astype(np.uint8)
    return np.ascontiguousarray(eight if eight.ndim == 3 else eight[..., None].repeat(3, 2)), native


def _open(file: BinaryIO, path: Path, formats: tuple[str, ...] | None) -> Image.Image:
    try:
        if not file.read(1):
            raise InputError(f"{path}: is empty, so it is not a picture that can be read")
        file.seek(0)
        return Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: is too large a picture ({error})") from error
    except _DAMAGE as error:
        raise InputError(f"{path}: not a picture that can be read ({FORMATS})") from error


def _orientation(image: Image.Image) -> int:
    """EXIF's, as far as it has been read, 1 where there is none."""
    return int(Image.Image.getexif(image).get(_ORIENTATION, 1))


def _header(image: Image.Image, file: BinaryIO, path: Path) -> Header:
    width, height = image.size
    turned, bits, colour_type = _orientation(image), 8, 2
    several = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    alpha = "A" in image.getbands() or "transparency" in image.info
    native: Literal["", "L", "LA", "RGBA", "stored"] = ""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = cast("dict[int, Any]", image.tag_v2)
        _check_tiff(tags, image.mode, path)
        bits, turned = max(tags.get(258, (1,))), tags.get(_ORIENTATION, 1)
        # Loaded, Pillow has turned it already and forgotten that it did.
        width, height = (tags[256], tags[257]) if _ORIENTATION in tags else image.size
        extra = tags.get(338, ())
        if (
            extra and extra[0] != 2 and image.mode in ("RGB", "RGBA")
        ):  # premultiplied, or not said to be alpha
            bits, alpha = 16, True
    elif image.format == "PNG":
        file.seek(24)
        bits, colour_type = file.read(2)
    if turned in (5, 6, 7, 8):
        width, height = height, width
    if bits > 8:
        native = "stored"
    elif image.mode in ("1", "L", "LA"):
        native = "LA" if alpha else "L"
    elif alpha:
        native = "RGBA"
    return Header(width, height, native, colour_type == 4, alpha, several)


def _check_tiff(tags: dict[int, Any], mode: str, path: Path) -> None:
    """Refuse what would lose bits or be read wrongly, and say what helps."""
    bits, kinds = tags.get(258, (1,)), tags.get(339, (1,))
    deep = max(bits) > 8
    if max(bits) not in (1, 2, 4, 8, 16) or any(kind != 1 for kind in kinds):
        why = f"samples of {max(bits)} bits{' in floating point' if 3 in kinds else ''}"
    elif len(bits) > 4 or (deep and mode not in ("I;16", "I;16B", "RGB", "RGBA")):
        why = f"{len(bits)} samples a pixel{' of 16 bits' if deep else ''} (Pillow's mode {mode})"
    elif deep and (tags.get(284, 1) != 1 or tags.get(262) == 0):
        why = "16 bits in separate planes or with white as 0"
    else:
        return
    raise InputError(f"{path}: is a TIFF with {why}; convert it to RGB, RGBA or grey of 8 or 16 bits")


def _stored(data: bytes, path: Path, header: Header, turned: int) -> NDArray[Any]:
    """The samples as stored, RGB order, upright; OpenCV turns a TIFF itself."""
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise InputError(f"{path}: its samples can't be read; convert it to another kind of TIFF or to PNG")
    array = _turn(array, turned)
    if array.shape[:2] != (header.height, header.width):
        raise InputError(f"{path}: its samples are {array.shape}, its size {header.width}×{header.height}")
    if header.grey_alpha and array.ndim == 3:
        return np.ascontiguousarray(array[..., [0, 3]])
    if array.ndim == 3:
        return np.ascontiguousarray(array[..., [2, 1, 0, 3][: array.shape[2]]])
    return cast("NDArray[Any]", array)


def _turn(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Upright by EXIF's eight orientations: transpose first, then flip rows, then columns."""
    array = array.swapaxes(0, 1) if orientation >= 5 else array
    array = array[::-1] if orientation in (3, 4, 7, 8) else array
    return array[:, ::-1] if orientation in (2, 3, 6, 7) else array


def _to_rgb(image: Image.Image) -> U8:
    """Any mode as RGB; transparency is laid on white, 16 bits are scaled to 8."""
    if image.mode.startswith("I;16") or image.mode == "I":
        eight = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return eight[..., None].repeat(3, 2)
    if image.mode == "F":
        return np.clip(np.array(image, np.float32), 0, 255).astype(np.uint8)[..., None].repeat(3, 2)
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, rgba).convert("RGB"))
    return np.array(image.convert("RGB"))
