"""A folder of frames as a clip, and single pictures: PNG, JPEG, WebP, TIFF.

A folder states no frame rate: its frames count as 25 a second, which matters only to ``--start``,
``--end`` and progress. Pictures are read upright (EXIF orientation applied). What 8-bit RGB can't
hold (alpha, 16 bits, plain grey) is kept beside it as the frame's ``native`` array.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import InputError
from .records import U8, ClipInfo, Frame

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
RATE = Fraction(25)
_ORIENTATION = 0x0112


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which ``f2.png`` comes before ``f10.png``."""
    parts = re.split(r"(\d+)", name.casefold())
    return (*((1, int(p), "") if p.isdecimal() else (0, 0, p) for p in parts), (2, 0, name))


def frame_files(folder: Path) -> tuple[str, ...]:
    """Names of the folder's frames in natural order; hidden and other files are passed over."""
    names = (f.name for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    return tuple(sorted((n for n in names if Path(n).suffix.lower() in SUFFIXES), key=natural_key))


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a picture that can be read (PNG, JPEG, WebP or TIFF)") from error


def _orientation(image: Image.Image, path: Path) -> int:
    """EXIF's, 1 where there is none. A PNG may state it after its pixels, so these are read for it."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: the picture is damaged or cut off ({error})") from error


def _upright_size(image: Image.Image, path: Path) -> tuple[int, int]:
    turned = _orientation(image, path) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else (image.width, image.height)


def scan_folder(path: Path) -> ClipInfo:
    """ClipInfo of all frames of a folder; the pixels are not kept.

    Raises:
        InputError: no frames in it, one that is no picture or damaged, or frames of different sizes.
    """
    files = frame_files(path)
    if not files:
        raise InputError(f"{path}: the folder holds no frames (PNG, JPEG, WebP or TIFF files)")
    return _scan(path, files)


def scan_picture(path: Path) -> ClipInfo:
    """ClipInfo of one picture, as of a folder that holds nothing else; InputError if it is none."""
    return _scan(path.parent, (path.name,))


def _scan(path: Path, files: tuple[str, ...]) -> ClipInfo:
    size: tuple[int, int] | None = None
    pix_fmt = "rgb24"
    for name in files:
        with _open(path / name) as image:
            this = _upright_size(image, path / name)
            pix_fmt = "rgba" if "A" in image.getbands() else pix_fmt
        if size is None:
            size = this
        elif this != size:
            raise InputError(
                f"{path / name}: is {this[0]}×{this[1]}, but the folder's first frame {files[0]} is "
                f"{size[0]}×{size[1]}; all frames must have one size"
            )
    assert size is not None
    return ClipInfo(
        path=path,
        kind="folder",
        width=size[0],
        height=size[1],
        time_base=1 / RATE,
        rate=RATE,
        pix_fmt=pix_fmt,
        codec=Path(files[0]).suffix.lower().lstrip("."),
        timestamps=tuple(range(len(files))),
        durations=(1,) * len(files),
        files=files,
    )


def _to_rgb(image: Image.Image) -> U8:
    """Any mode as RGB; transparency is laid on white, 16 bits are scaled to 8."""
    if image.mode.startswith("I;16") or image.mode == "I":
        return cast(
            U8,
            np.repeat((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255)[..., None], 3, 2).astype(
                np.uint8
            ),
        )
    if image.mode == "F":
        return np.repeat(np.clip(np.asarray(image), 0, 255).astype(np.uint8)[..., None], 3, 2)
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, rgba).convert("RGB"))
    return np.array(image.convert("RGB"))


def read_picture(path: Path) -> U8:
    """One picture as (H, W, 3) uint8 RGB, upright; transparency is laid on white.

    Raises:
        InputError: no such file, not a picture, or cut off.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not a picture")
    with _open(path) as image:
        try:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{path}: the picture is damaged or cut off ({error})") from error


def _native(path: Path, size: tuple[int, int]) -> NDArray[Any] | None:
    """The stored samples where 8-bit RGB would lose some: (H, W), (H, W, 3) or (H, W, 4), RGB order."""
    array = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.shape[:2] != (size[1], size[0]):
        return None
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        return None
    if array.ndim == 3:
        order = [2, 1, 0, 3][: array.shape[2]]
        return np.ascontiguousarray(array[..., order])
    return cast("NDArray[Any]", array)


class FolderReader:
    """Frames of a folder by index; the ``backend`` setting has no meaning for pictures."""

    def __init__(self, info: ClipInfo) -> None:
        self.info = info

    def read(self, start: int, stop: int) -> Iterator[Frame]:
        """Frames [start, stop).

        Raises:
            InputError: a file has gone, is damaged, or has changed its size.
        """
        size = (self.info.width, self.info.height)
        for index in range(start, stop):
            path = self.info.path / self.info.files[index]
            native = None
            with _open(path) as image:
                plain = image.mode in ("RGB", "YCbCr", "CMYK") and image.info.get("transparency") is None
                deep = image.format in ("PNG", "TIFF")  # 16 bits a channel are opened as 8
                upright = _orientation(image, path) == 1
            rgb = read_picture(path)
            if (rgb.shape[1], rgb.shape[0]) != size:
                raise InputError(f"{path}: the frame's size has changed since the folder was scanned")
            if upright and (deep or not plain):
                native = _native(path, size)
            if native is not None and native.ndim == 3 and native.shape[2] == 4:
                # Colours under transparency are kept as stored, so that they can be written back.
                rgb = _eight_bits(native[..., :3])
            yield Frame(index, rgb, native)

    def close(self) -> None:
        """Nothing is held open."""


def _eight_bits(array: NDArray[Any]) -> U8:
    return array if array.dtype == np.uint8 else (array >> 8).astype(np.uint8)
