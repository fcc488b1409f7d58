"""Folders of frames end to end: what is in one, what its names say, what is refused, and every kind of
picture through the real command with a real face."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ldvid.errors import InputError, JobError
from ldvid.pipeline.finish import join
from ldvid.stages.decode import open_reader, probe
from ldvid.stages.folder import frame_files
from ldvid.stages.numbering import numbering_warnings
from ldvid.stages.picture_read import read_frame
from ldvid.stages.picture_write import copy_picture, encode_picture
from PIL import Image, ImageCms, ImageFile

H, W = 30, 40
Array = np.ndarray[Any, Any]
Command = Callable[..., "subprocess.CompletedProcess[str]"]
RNG = np.random.default_rng(0)


def noise(*shape: int, deep: bool = False) -> Array:
    return RNG.integers(0, 65536 if deep else 256, shape, np.uint16 if deep else np.uint8)


def tiff(array: Array, *, planar: bool = False, order: str = "<", **more: int) -> bytes:
    """An uncompressed TIFF of one strip; ``more`` are SHORT tags as ``t338=1``."""
    h, w, n = array.shape if array.ndim == 3 else (*array.shape, 1)
    stored = array.transpose(2, 0, 1) if planar else array
    pixels = np.ascontiguousarray(stored.astype(array.dtype.newbyteorder(order))).tobytes()
    bits = struct.pack(f"{order}{n}H", *[array.dtype.itemsize * 8] * n)
    offset = 8 + len(pixels)
    plane = len(pixels) // n
    places = struct.pack(f"{order}{n}I", *[8 + i * plane for i in range(n)])
    lengths = struct.pack(f"{order}{n}I", *[plane] * n)
    one = (struct.pack(f"{order}I", 8), struct.pack(f"{order}I", len(pixels)))
    strips = (places, lengths) if planar else one
    entries = {256: (4, struct.pack(f"{order}I", w)), 257: (4, struct.pack(f"{order}I", h)), 258: (3, bits)}
    entries |= {273: (4, strips[0]), 278: (4, struct.pack(f"{order}I", h)), 279: (4, strips[1])}
    shorts = {259: 1, 262: 2 if n > 2 else 1, 277: n, 284: 2 if planar else 1}
    shorts |= {int(k[1:]): v for k, v in more.items()}
    entries |= {k: (3, struct.pack(f"{order}H", v)) for k, v in shorts.items()}
    body, directory = b"", struct.pack(f"{order}H", len(entries))
    for tag, (kind, value) in sorted(entries.items()):
        count = len(value) // {3: 2, 4: 4}[kind]
        place = value.ljust(4, b"\0")
        if len(value) > 4:
            place, body = struct.pack(f"{order}I", offset + len(body)), body + value
        directory += struct.pack(f"{order}HHI", tag, kind, count) + place
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}I", offset + len(body)) + pixels + body + directory + bytes(4)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    at, found = 8, []
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png(parts: list[tuple[bytes, bytes]]) -> bytes:
    made = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def png_of(array: Array, *extra: tuple[bytes, bytes], behind: tuple[bytes, bytes] | None = None) -> bytes:
    parts = chunks(encode_picture(array, ".png"))
    return png([parts[0], *extra, *parts[1:-1], *([behind] if behind else []), parts[-1]])


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def fill(folder: Path, *names: str, size: tuple[int, int] = (H, W)) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(encode_picture(np.zeros((*size, 3), np.uint8), Path(name).suffix))


def exif(orientation: int) -> bytes:
    made = Image.Exif()
    made[0x0112] = orientation
    return made.tobytes()


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """The result, or a failure if ``work`` hangs."""
    done: list[Any] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, f"still at it after {seconds} s"
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


# what is in a folder


def test_only_pictures_are_frames(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    fill(folder, "f1.PNG", "f2.Jpg", "f3.png")
    fill(tmp_path, "elsewhere.png")
    (folder / "f4.png").symlink_to(tmp_path / "elsewhere.png")
    for name in (".f0.png", "._f1.png", "Thumbs.db", ".DS_Store", "notes.txt"):
        (folder / name).write_bytes(b"no picture")
    (folder / "f5.png").mkdir()
    os.mkfifo(folder / "f6.png")
    (folder / "f7.png").symlink_to(folder / "f6.png")
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path may be no longer than 107 bytes
        try:
            listening.bind("f8.png")
        finally:
            os.chdir(here)
        info = within(20, lambda: probe(folder))
    assert info.files == ("f1.PNG", "f2.Jpg", "f3.png", "f4.png") == frame_files(folder)
    assert [f.index for f in within(20, lambda: list(open_reader(info, "pyav").read(0, 4)))] == [0, 1, 2, 3]


def test_a_pipe_in_a_frames_place_is_an_error_and_not_a_standstill(tmp_path: Path) -> None:
    fill(tmp_path / "in", "f1.png", "f2.png")
    info = probe(tmp_path / "in")
    (tmp_path / "in/f2.png").unlink()
    os.mkfifo(tmp_path / "in/f2.png")
    with pytest.raises(InputError, match=r"f2\.png: is no regular file.*\(frame 1\)"):
        within(20, lambda: list(open_reader(info, "pyav").read(0, 2)))
    with pytest.raises(InputError, match=r"f2\.png: is no regular file"):
        within(20, lambda: copy_picture(tmp_path / "in/f2.png", tmp_path / "copy.png"))


@pytest.mark.parametrize(
    ("others", "says"),
    [
        (["a.1001.exr", "a.1002.exr"], r"no frames \(PNG, JPEG, WebP or TIFF files\); it has 2 \.exr files$"),
        (["a.dpx", "b.bmp", "c.bmp"], r"; it has 2 \.bmp and 1 \.dpx files$"),
        (["README"], r"no frames \(PNG, JPEG, WebP or TIFF files\)$"),
    ],
)
def test_a_folder_of_other_pictures_says_what_it_has(tmp_path: Path, others: list[str], says: str) -> None:
    for name in others:
        (tmp_path / name).write_bytes(b"v/1\x01")
    with pytest.raises(InputError, match=says):
        probe(tmp_path)


def test_unread_pictures_beside_frames_are_told(tmp_path: Path) -> None:
    fill(tmp_path, "f1.png", "f2.png")
    for name in ("f3.exr", "notes.txt"):
        (tmp_path / name).touch()
    (told,) = probe(tmp_path).warnings
    assert told == f"{tmp_path}: 1 .exr file passed over; frames are PNG, JPEG, WebP or TIFF files"


def as_nobody(work: Callable[[], Any]) -> None:
    """Root may read everything."""
    root = not os.geteuid()
    if root:
        os.seteuid(65534)
    try:
        work()
    finally:
        if root:
            os.seteuid(0)


def test_what_may_not_be_read_is_named() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ldvid-test-"))  # pytest's own is closed to others
    try:
        folder.chmod(0o755)
        fill(folder, "f1.png", "f2.png")
        (folder / "f2.png").chmod(0)
        with pytest.raises(InputError, match=r"f2\.png: no permission to read it"):
            as_nobody(lambda: probe(folder))
        folder.chmod(0)
        with pytest.raises(InputError, match="the folder can't be read: Permission denied"):
            as_nobody(lambda: probe(folder))
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


DEEP = noise(H, W, 3, deep=True)
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "empty": (".png", b"", "is empty"),
    "text": (".jpg", b"no picture", "not a picture that can be read"),
    "bmp": (".png", saved(Image.new("RGB", (W, H)), "BMP"), "not a picture that can be read"),
    "cut png": (".png", _cut(encode_picture(noise(H, W, 3), ".png")), "damaged or cut off"),
    "cut deep png": (".png", _cut(encode_picture(DEEP, ".png")), "damaged or cut off"),
    "cut jpeg": (".jpg", _cut(encode_picture(noise(H, W, 3), ".jpg")), "damaged or cut off"),
    "cut webp": (".webp", _cut(encode_picture(noise(H, W, 3), ".webp")), "not a picture|damaged"),
    "cut tiff": (".tif", tiff(DEEP, t273=60000), "damaged or cut off"),
    "float tiff": (".tif", saved(Image.new("F", (W, H)), "TIFF"), "32 bits in floating point; convert it"),
    "float rgb tiff": (".tif", tiff(DEEP.astype(np.float32), t339=3), "not a picture|floating point"),
    "signed tiff": (".tif", tiff(DEEP[..., 0].astype(np.int16), t339=2), "convert it"),
    "planar deep tiff": (".tif", tiff(DEEP, planar=True), "in separate planes"),
    "deep cmyk tiff": (".tif", tiff(noise(H, W, 4, deep=True), t262=5), "4 samples a pixel of 16 bits"),
    "white as 0": (".tif", tiff(DEEP[..., 0], t262=0), "white as 0"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_no_good_frame_is_named_by_the_scan(tmp_path: Path, case: str) -> None:
    suffix, data, says = BROKEN[case]
    fill(tmp_path, "f1.png", "f3.png")
    (tmp_path / f"f2{suffix}").write_bytes(data)
    with pytest.raises(InputError, match=rf"f2\{suffix}: .*({says})"):
        probe(tmp_path)


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "f1.png")
    (tmp_path / "f2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"f2\.png: is a link that leads nowhere"):
        probe(tmp_path)


def test_damage_inside_a_frame_names_file_and_frame(tmp_path: Path) -> None:
    fill(tmp_path, "f1.png", "f3.png")
    data = bytearray(encode_picture(noise(H, W, 3), ".png"))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "f2.png").write_bytes(data)
    info = probe(tmp_path, start=0.04)
    with pytest.raises(InputError, match=r"f2\.png: the picture is damaged.*\(frame 1\)"):
        list(open_reader(info, "pyav").read(0, 2))


def test_trailing_data_is_no_damage(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg"):
        (tmp_path / f"f1{suffix}").write_bytes(encode_picture(noise(H, W, 3), suffix) + b"sloppy writer")
    assert probe(tmp_path).frames == 2


def test_the_first_odd_size_is_named_before_later_damage(tmp_path: Path) -> None:
    fill(tmp_path, *(f"f{i:03d}.png" for i in range(300)))
    (tmp_path / "f200.png").write_bytes(b"damage")
    with pytest.raises(InputError, match=r"f200\.png"):
        probe(tmp_path)
    fill(tmp_path, "f199.png", "f280.png", size=(H, W + 2))
    with pytest.raises(
        InputError, match=r"f199\.png: is 42×30, but the folder's first frame f000\.png is 40×30"
    ):
        probe(tmp_path)
    fill(tmp_path, "f199.png")
    (tmp_path / "f198.png").write_bytes(b"damage")
    with pytest.raises(InputError, match=r"f198\.png"):
        probe(tmp_path)


def _turned(kind: str, orientation: int) -> bytes:
    """A stored picture of 30×40 (upright 40×30 when turned by 90°) that says how it is turned."""
    stored = noise(W, H, 3)
    tag = exif(orientation)
    match kind:
        case "png":
            return png_of(stored, (b"eXIf", tag.removeprefix(b"Exif\0\0")))
        case "png, behind its pixels":
            return png_of(stored, behind=(b"eXIf", tag.removeprefix(b"Exif\0\0")))
        case "tiff":
            return tiff(stored, t274=orientation)
        case "deep tiff":
            return tiff(noise(W, H, 3, deep=True), t274=orientation)
    return saved(Image.fromarray(stored), kind, exif=tag)


@pytest.mark.parametrize("kind", ["jpeg", "webp", "png", "png, behind its pixels", "tiff", "deep tiff"])
def test_sizes_are_compared_upright(tmp_path: Path, kind: str) -> None:
    suffix = {"jpeg": ".jpg", "webp": ".webp", "png": ".png"}.get(kind.split(",")[0], ".tif")
    fill(tmp_path, "f1.png")
    (tmp_path / f"f2{suffix}").write_bytes(_turned(kind, 6))
    info = probe(tmp_path)
    assert [f.rgb.shape for f in open_reader(info, "pyav").read(0, 2)] == [(H, W, 3)] * 2
    (tmp_path / f"f3{suffix}").write_bytes(_turned(kind, 3))
    with pytest.raises(InputError, match=rf"f3\{suffix}: is 30×40, but"):
        probe(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_alpha_and_sixteen_bits_are_turned_upright_too(tmp_path: Path, orientation: int) -> None:
    upright = noise(H, W, 4, deep=True)
    stored = upright  # what a camera stored is the way back: columns, rows, then transpose
    stored = stored[:, ::-1] if orientation in (2, 3, 6, 7) else stored
    stored = stored[::-1] if orientation in (3, 4, 7, 8) else stored
    stored = stored.swapaxes(0, 1) if orientation >= 5 else stored
    (tmp_path / "f.png").write_bytes(png_of(stored, (b"eXIf", exif(orientation).removeprefix(b"Exif\0\0"))))
    (tmp_path / "f.tif").write_bytes(tiff(stored, t274=orientation, t338=2))
    eight = (stored >> 8).astype(np.uint8)
    (tmp_path / "e.png").write_bytes(png_of(eight, (b"eXIf", exif(orientation).removeprefix(b"Exif\0\0"))))
    for name in ("f.png", "f.tif"):
        rgb, native = read_frame(tmp_path / name)
        assert native is not None and (native == upright).all()
        assert (rgb == upright[..., :3] >> 8).all()
    _, native = read_frame(tmp_path / "e.png")
    assert native is not None and (native == upright >> 8).all()


def test_the_scan_decodes_nothing_and_holds_few_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is why tens of thousands take seconds."""
    for suffix in (".png", ".jpg", ".webp", ".tif"):
        (tmp_path / f"f{0:04d}{suffix}").write_bytes(encode_picture(noise(H, W, 3), suffix))
        for i in range(1, 200):
            os.link(tmp_path / f"f{0:04d}{suffix}", tmp_path / f"f{i:04d}{suffix}")

    def never(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile.load", never)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 30, limits[1]))
    try:
        assert probe(tmp_path).frames == 800
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_files_of_several_pictures_are_told(tmp_path: Path) -> None:
    stills = [Image.fromarray(noise(H, W, 3)) for _ in range(2)]
    (tmp_path / "f1.tif").write_bytes(saved(stills[0], "TIFF", save_all=True, append_images=stills[1:]))
    (tmp_path / "f2.tif").write_bytes(saved(stills[0], "TIFF"))
    assert probe(tmp_path).warnings == (
        f"{tmp_path / 'f1.tif'} holds several pictures; only the first of each is used",
    )


# numbering


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["f0001.png", "f0002.png", "f0005.png"], ["2 missing between f0002.png and f0005.png; what is"]),
        (["f1.png", "f2.png", "f3.png"], []),
        (["alice.png", "bob.png"], []),
        (["alice1.png", "bob7.png"], []),
        (["take2.0007.png", "take2.0009.png"], ["1 missing between take2.0007.png and take2.0009.png"]),
        (["f1_x.png", "f3_x.png"], ["1 missing between f1_x.png and f3_x.png"]),
        (["f1.png", "f2.png", "f3.png", "f8.png", "f9.png", "f11.png"],
         ["4 missing between f3.png and f8.png, 1 missing between f9.png and f11.png, 5 frames in all"]),
        (["f2.png", "f4.png", "f6.png", "f12.png"],
         ["the numbers from f2.png on go in steps of 2; 2 missing between f6.png and f12.png"]),
        (["f1.png", "f01.png", "f2.png"], ["the same number is there more than once: f01.png and f1.png"]),
        (["f1.png", "f1.jpg", "f2.png"], ["several types (2 .png, 1 .jpg)", "once: f1.jpg and f1.png"]),
        (["f1.jpg", "f2.JPEG"], []),
        (["a1.png", "a2.png", "b1.png", "b4.png"],
         ["2 numbered sequences: a1.png to a2.png, b1.png to b4.png", "2 missing between b1.png and b4.png"]),
        (["f1.png", "f2.png", "a.png"], ["a.png: numbered otherwise than the rest; taken as 1 frame too"]),
        (["F1.png", "f2.png"], []),
        (["f٠١.png", "f٠٤.png"], ["2 missing between f٠١.png and f٠٤.png"]),
    ],
)  # fmt: skip
def test_what_the_numbers_lack_is_told(tmp_path: Path, names: list[str], says: list[str]) -> None:
    fill(tmp_path, *names)
    told = probe(tmp_path).warnings
    assert len(told) == len(says), told
    for words, sentence in zip(says, told, strict=True):
        assert sentence.startswith(f"{tmp_path}: ") and words in sentence


@given(st.sets(st.integers(0, 3000), min_size=2, max_size=60), st.integers(1, 6))
def test_the_gaps_add_up(numbers: set[int], digits: int) -> None:
    """What is there and what is said to be missing make the whole range, however the files are named."""
    last = max(numbers)
    numbers |= set(range(last, last + len(numbers) + 2))  # most steps are 1
    have = sorted(numbers)
    told = " ".join(numbering_warnings(Path("x"), [f"f{n:0{digits}d}.png" for n in have]))
    total = re.search(r"(\d+) frames? in all", told) or re.search(r"(\d+) missing between", told)
    assert int(total[1] if total else 0) == have[-1] - have[0] + 1 - len(have)


# the output


def test_the_output_is_linked_only_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"f{i}.png" for i in range(6)]
    fill(tmp_path / "in", *names)
    parts = [tmp_path / "seg0", tmp_path / "seg1"]
    fill(parts[0], *names[:3])
    fill(parts[1], *names[3:])
    info = probe(tmp_path / "in")

    def output(name: str, link: bool) -> list[bool]:
        join(info, parts, tmp_path / name, {}, overwrite=False, link=link)
        made = sorted((tmp_path / name).iterdir())
        sources = [parts[i // 3] / f.name for i, f in enumerate(made)]
        assert [f.name for f in made] == names
        assert all(a.read_bytes() == b.read_bytes() for a, b in zip(made, sources, strict=True))
        return [a.samefile(b) for a, b in zip(made, sources, strict=True)]

    assert output("copied", False) == [False] * 6
    assert output("linked", True) == [True] * 6
    shutil.rmtree(tmp_path / "linked")
    (tmp_path / "other").mkdir()

    def no_link(*_: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", no_link)
    assert output("elsewhere", True) == [False] * 6
    fill(parts[1], "f0.png")
    with pytest.raises(JobError, match=r"seg1: holds f0\.png, which is no frame, or one held already"):
        join(info, parts, tmp_path / "twice", {}, overwrite=False)
    assert not (tmp_path / "twice").exists()


def test_copies_do_not_need_the_file_systems_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(3_000_000).tobytes()
    (tmp_path / "a").write_bytes(data)
    copy_picture(tmp_path / "a", tmp_path / "b")
    real, calls = os.copy_file_range, 0

    def stops_halfway(source: int, target: int, count: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.EXDEV, "not here")
        return real(source, target, 1_000_000)

    monkeypatch.setattr(os, "copy_file_range", stops_halfway)
    copy_picture(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes() == data and calls == 2


# every kind of picture, through the real command

NAMES = {
    "rgba 8": "a01.png", "rgba 16": "a02.png", "rgb 16": "a03.png", "rgb 16 tiff": "a04.tif",
    "grey 16": "a05.png", "palette": "a06.png", "grey 8": "a07.png", "cmyk": "a08.jpg",
    "grey alpha": "a10.png", "grey alpha 16": "a11.png", "rgba 8 tiff": "a12.tif", "premultiplied": "a13.tif",
    "webp": "a14.webp", "grey jpeg": "a15.jpg", "said": "a16.png", "grey 16 tiff": "a17.tiff",
    "turned": "a18.png", "jpeg": "a19.jpg", "colour key": "a20.png",
}  # fmt: skip
DEEP_KINDS = ["rgba 16", "rgb 16", "rgb 16 tiff", "grey 16", "grey alpha 16", "grey 16 tiff", "turned"]
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GAMMA, PIXELS = struct.pack(">I", 45455), struct.pack(">IIB", 5669, 5669, 1)


def _pictures(rgb: Array) -> dict[str, bytes]:
    """The same frame as a file of each kind; the lower 8 of 16 bits and all alpha are noise."""
    h, w, _ = rgb.shape
    deep = rgb.astype(np.uint16) << 8 | noise(h, w, 3)
    grey, alpha = np.array(Image.fromarray(rgb).convert("L")), noise(h, w)
    deep_grey = grey.astype(np.uint16) << 8 | noise(h, w)
    deep_alpha = noise(h, w, deep=True)
    said = [(b"gAMA", GAMMA), (b"pHYs", PIXELS), (b"tEXt", b"Author\0A. Artist")]
    profile = (b"iCCP", b"p\0\0" + zlib.compress(PROFILE))
    key = struct.pack(">3H", *rgb[0, 0])
    return {
        "rgba 8": png_of(np.dstack([rgb, alpha])),
        "rgba 16": png_of(np.dstack([deep, deep_alpha])),
        "rgb 16": png_of(deep),
        "rgb 16 tiff": encode_picture(deep, ".tif"),
        "grey 16": png_of(deep_grey),
        "palette": saved(Image.fromarray(rgb).quantize(256), "PNG"),
        "grey 8": png_of(grey),
        "cmyk": saved(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=95),
        "grey alpha": png_of(np.dstack([grey, alpha])),
        "grey alpha 16": png_of(np.dstack([deep_grey, deep_alpha])),
        "rgba 8 tiff": saved(
            Image.fromarray(np.dstack([rgb, alpha])), "TIFF", compression="tiff_adobe_deflate"
        ),
        "premultiplied": tiff(np.dstack([rgb, alpha]), order=">", t338=1),
        "webp": saved(
            Image.fromarray(np.dstack([rgb, alpha // 128 * 255])), "WEBP", lossless=True, exact=True
        ),
        "grey jpeg": saved(Image.fromarray(grey), "JPEG", quality=95),
        "said": png_of(rgb, profile, *said),
        "grey 16 tiff": saved(Image.fromarray(deep_grey), "TIFF", dpi=(300, 300)),
        "turned": png_of(np.rot90(np.dstack([deep, deep_alpha])), behind=(b"eXIf", exif(6)[6:])),
        "jpeg": saved(Image.fromarray(rgb), "JPEG", quality=90, dpi=(72, 72), exif=exif(1)),
        "colour key": png_of(rgb, (b"tRNS", key)),
    }


@dataclass(frozen=True)
class Swapped:
    folder: Path
    output: Path
    run: subprocess.CompletedProcess[str]
    region: Array  # (h, w) bool: the face's box in any frame, grown by 0.3 on each side


@pytest.fixture(scope="module")
def swapped(
    ldvid: Command, example_clip: Path, example_face: Path, tmp_path_factory: pytest.TempPathFactory
) -> Swapped:
    place = tmp_path_factory.mktemp("kinds")
    folder, output = place / "in", place / "out"
    folder.mkdir()
    with av.open(str(example_clip)) as container:
        rgb = next(container.decode(video=0)).to_ndarray(format="rgb24")
    for kind, data in _pictures(rgb).items():
        (folder / NAMES[kind]).write_bytes(data)
    run = ldvid(
        "swap", folder, "-s", example_face, "-o", output, "--job", place / "job", "--json", "--device", "cpu",
        "--set", "steps=1", "--set", "guidance=[]", "--set", "cut_threshold=1", "--set", "batch=4",
        "--set", "segment_frames=12", "--set", "keyframe_interval=12",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    plan = json.loads((place / "job/plan.json").read_text())
    rows = np.array([row for track in plan["tracks"] for row in track["rows"]])
    (x0, y0), (x1, y1) = rows[:, 1:3].min(0), rows[:, 3:5].max(0)
    y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]]
    y, x = abs(y - (y0 + y1) / 2), abs(x - (x0 + x1) / 2)
    return Swapped(folder, output, run, (x < 0.8 * (x1 - x0)) & (y < 0.8 * (y1 - y0)))


def _stored(path: Path) -> Array:
    rgb, native = read_frame(path)
    return rgb if native is None else native


@pytest.mark.parametrize("kind", sorted(set(NAMES) - {"cmyk", "jpeg", "grey jpeg"}))
def test_only_the_face_changes_and_alpha_not_at_all(swapped: Swapped, kind: str) -> None:
    before, after = (_stored(p / NAMES[kind]) for p in (swapped.folder, swapped.output))
    assert (before.dtype, before.shape) == (after.dtype, after.shape)
    colours = 0 if before.ndim == 2 else -1 if before.shape[2] in (2, 4) else 3
    if colours == -1:
        assert (before[..., -1] == after[..., -1]).all() and len(np.unique(before[..., -1])) > 1
        before, after = before[..., :-1], after[..., :-1]
    changed = before != after if before.ndim == 2 else (before != after).any(-1)
    assert 0.03 < changed.mean() < 0.08
    assert not changed[~swapped.region].any()


@pytest.mark.parametrize("kind", DEEP_KINDS)
def test_the_swapped_region_has_sixteen_bits(swapped: Swapped, kind: str) -> None:
    before, after = (_stored(p / NAMES[kind]) for p in (swapped.folder, swapped.output))
    assert after.dtype == np.uint16
    one, two = (a if a.ndim == 2 else a[..., 0] for a in (before, after))
    new = two[cv2.erode((one != two).astype(np.uint8), np.ones((25, 25))) > 0]  # clear of the mask's edge
    assert len(new) > 1000 and len(np.unique(new)) > 1000
    assert (new % 257 == 0).mean() < 0.05, "8 bits stretched to 16"


def test_pillow_reads_each_kind_as_what_it_was(swapped: Swapped) -> None:
    changes = {"palette": "RGB", "cmyk": "RGB", "colour key": "RGBA"}  # a palette can't hold a new face
    for kind, name in NAMES.items():
        with Image.open(swapped.folder / name) as before, Image.open(swapped.output / name) as after:
            after.load()
            assert after.mode == changes.get(kind, before.mode), kind
            assert after.size == ((480, 270) if kind == "turned" else before.size)
    with Image.open(swapped.output / NAMES["premultiplied"]) as image:
        assert image.tag_v2[338] == (1,)  # as it was, so that nobody multiplies again
    with Image.open(swapped.output / NAMES["rgba 8 tiff"]) as image:
        assert image.tag_v2[338] == (2,)


def test_lossy_frames_stay_close_outside_the_face(swapped: Swapped) -> None:
    for kind in ("jpeg", "grey jpeg", "cmyk"):
        before, after = (_stored(p / NAMES[kind]).astype(int) for p in (swapped.folder, swapped.output))
        assert np.abs(before - after)[~swapped.region].mean() < 0.6
        assert np.abs(before - after)[swapped.region].mean() > 1
    with Image.open(swapped.output / NAMES["jpeg"]) as image:
        assert {layer[1:3] for layer in image.layer} == {(1, 1)}  # 4:4:4


def test_what_a_picture_says_beside_its_pixels_is_kept(swapped: Swapped) -> None:
    found = chunks((swapped.output / NAMES["said"]).read_bytes())
    assert dict(found)[b"gAMA"] == GAMMA and dict(found)[b"pHYs"] == PIXELS
    for name in NAMES.values():
        if name.endswith(".png"):
            kinds = [
                k for k, _ in chunks((swapped.output / name).read_bytes()) if k not in (b"IDAT", b"iTXt")
            ]
            assert len(set(kinds)) == len(kinds), name
            assert kinds.count(b"pHYs") == (name == NAMES["said"])
    assert (b"tEXt", b"Author\0A. Artist") in found
    with Image.open(swapped.output / NAMES["said"]) as image:
        assert image.info["icc_profile"] == PROFILE
        assert image.info["Comment"].startswith("Altered by AI")
    with Image.open(swapped.output / NAMES["jpeg"]) as image:
        assert image.info["jfif_density"] == (72, 72) and image.info["jfif_unit"] == 1
    with Image.open(swapped.output / NAMES["turned"]) as image:
        assert image.getexif()[0x0112] == 1
    for kind, compression in (("rgba 8 tiff", 8), ("premultiplied", 1), ("rgb 16 tiff", 5)):
        with Image.open(swapped.output / NAMES[kind]) as image:
            assert image.tag_v2[259] == compression, kind
            assert image.tag_v2[270].startswith("Altered by AI")
    with Image.open(swapped.output / NAMES["grey 16 tiff"]) as image:
        assert (image.tag_v2[282], image.tag_v2[296]) == (300, 2)
    assert not re.search("duplicate|libpng", swapped.run.stderr)


def test_the_command_tells_what_the_folder_lacks(swapped: Swapped) -> None:
    assert "1 missing between a08.jpg and a10.png" in swapped.run.stderr
    assert any(
        "several types (11 .png, 4 .tif, 3 .jpg, 1 .webp)" in w
        for w in json.loads(swapped.run.stdout)["warnings"]
    )
