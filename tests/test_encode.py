"""Encode: untouched samples bit for bit, the same bytes for any segments, nothing half-written."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import textwrap
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ldvid.configs.settings import Settings
from ldvid.errors import OutputError, SettingsError
from ldvid.stages.colour import Colour, from_rgb, planes, to_rgb
from ldvid.stages.compose import compose
from ldvid.stages.decode import open_reader, probe
from ldvid.stages.encode import EncodeOptions, EncodeStage, RenderedSegment, encode_picture
from ldvid.stages.picture_tags import tag_picture
from ldvid.stages.records import ClipInfo, Frame, Segment
from PIL import Image, ImageCms

W, H = 160, 112


def picture(index: int, width: int = W, height: int = H) -> np.ndarray:
    """Moving noise over a gradient: enough detail that codecs must work."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(index).integers(0, 48, (height, width, 3))
    out = np.stack([x * 200 // width, y * 200 // height, (x + y + 4 * index) % 200], -1) + noise
    return out.astype(np.uint8)


def make(
    path: Path,
    frames: int = 20,
    *,
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (W, H),
    codec: str = "ffv1",
) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        for i in range(frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")))
        out.mux(stream.encode(None))
    return path


def swap(frame: Frame) -> tuple[np.ndarray, np.ndarray | None]:
    """Every other frame gets a feathered disc of another colour."""
    if frame.index % 2:
        return frame.rgb, None
    h, w = frame.rgb.shape[:2]
    y, x = np.mgrid[:h, :w]
    mask = np.clip(12 - np.hypot(y - h // 2, x - w // 3) / 2, 0, 1).astype(np.float32)
    paste = np.clip(frame.rgb.astype(int) + np.array((70, 40, 30)), 0, 255)
    rgb = frame.rgb * (1 - mask[..., None]) + paste * mask[..., None]
    return np.rint(rgb).astype(np.uint8), mask


def render(
    frames: list[Frame], segment: Segment, *, swapped: bool = True, shot_start: int = 0
) -> RenderedSegment:
    done = [swap(f) if swapped else (f.rgb, None) for f in frames]
    return RenderedSegment(segment, frames, [d[0] for d in done], [d[1] for d in done], shot_start)


def encode(info: ClipInfo, options: EncodeOptions, folder: Path, length: int, **more: Any) -> list[Path]:
    reader, stage = open_reader(info, "pyav"), EncodeStage(info, options, folder)
    cuts = range(0, info.frames, length)
    segments = [Segment(i, a, min(a + length, info.frames)) for i, a in enumerate(cuts)]
    return [stage.process(render(list(reader.read(s.start, s.stop)), s, **more)) for s in segments]


def packets(paths: list[Path]) -> list[bytes]:
    out = []
    for path in paths:
        with av.open(str(path)) as container:
            out += [bytes(p) for p in container.demux(video=0) if p.size]
    return out


def decoded(paths: list[Path]) -> list[list[np.ndarray]]:
    out = []
    for path in paths:
        with av.open(str(path)) as container:
            out += [[p.copy() for p in planes(f)] for f in container.decode(video=0)]
    return out


FORMATS = ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "nv12", "gray", "gbrp", "yuva420p"]


def frame_of(pix_fmt: str, seed: int, size: tuple[int, int] = (W, H)) -> Frame:
    """Random samples over the whole range of the format: values that RGB can't hold among them."""
    rng = np.random.default_rng(seed)
    native = av.VideoFrame(*size, pix_fmt)
    top = 1 << native.format.components[0].bits
    for plane in planes(native):
        plane[:] = rng.integers(0, top, plane.shape)
    return Frame(0, to_rgb(native, Colour(5, pix_fmt.startswith("yuvj"))), native)


@pytest.mark.parametrize("pix_fmt", FORMATS)
@pytest.mark.parametrize("size", [(W, H), (51, 37)])
def test_untouched_planes_are_bit_exact(pix_fmt: str, size: tuple[int, int]) -> None:
    frame = frame_of(pix_fmt, 1, size)
    target = pix_fmt.replace("yuvj", "yuv")
    nothing = np.zeros(frame.rgb.shape[:2], np.float32)
    for touched in (None, nothing):
        out = compose(frame, frame.rgb, touched, target)
        assert all((a == b).all() for a, b in zip(planes(out), planes(frame.native), strict=True))


@given(st.integers(0, 10**6), st.sampled_from(FORMATS[:6]), st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_only_touched_blocks_change(seed: int, pix_fmt: str, data: st.DataObject) -> None:
    frame = frame_of(pix_fmt, seed)
    y0, x0 = data.draw(st.integers(0, H - 1)), data.draw(st.integers(0, W - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, H)), data.draw(st.integers(x0 + 1, W))
    touched = np.zeros((H, W), np.float32)
    touched[y0:y1, x0:x1] = data.draw(st.floats(2**-7, 1, width=32))
    rgb = np.where(touched[..., None] > 0, 255 - frame.rgb, frame.rgb)
    out = compose(frame, rgb, touched, pix_fmt.replace("yuvj", "yuv"))
    for a, b in zip(planes(out), planes(frame.native), strict=True):
        sy, sx = -(-H // a.shape[0]), -(-W // a.shape[1])
        block = touched.reshape(a.shape[0], sy, a.shape[1], sx).max((1, 3)) > 0
        assert (a[~block] == b[~block]).all()


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le", "nv12"])
@pytest.mark.parametrize("colour", [Colour(5), Colour(1), Colour(1, True), Colour(9)])
def test_touched_pixels_come_out_as_pasted(pix_fmt: str, colour: Colour) -> None:
    native = from_rgb(cv2.GaussianBlur(picture(0), (0, 0), 4), pix_fmt, colour)
    frame = Frame(0, to_rgb(native, colour), native)
    rgb = cv2.GaussianBlur(picture(9)[:, ::-1], (0, 0), 4)
    out = to_rgb(compose(frame, rgb, np.ones((H, W), np.float32), pix_fmt, colour), colour)
    assert np.abs(out.astype(int) - rgb).mean() < 1
    # Half touched with unchanged RGB: nothing may shift where the mask begins.
    half = np.zeros((H, W), np.float32)
    half[:, W // 2 :] = 0.5
    same = to_rgb(compose(frame, frame.rgb, half, pix_fmt, colour), colour)
    assert np.abs(same.astype(int) - frame.rgb).max() <= 3


def test_frames_without_planes_are_converted() -> None:
    smooth = cv2.GaussianBlur(picture(3), (0, 0), 4)
    out = compose(Frame(0, smooth), smooth, None, "yuv420p", Colour(1))
    assert np.abs(to_rgb(out, Colour(1)).astype(int) - smooth).mean() < 1
    with pytest.raises(ValueError, match="frame 0"):
        compose(Frame(0, smooth), smooth[:-1], np.ones((H, W), np.float32), "yuv420p")


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "ffv1"])
def test_bytes_do_not_depend_on_segments_or_runs(tmp_path: Path, codec: str) -> None:
    # 320 wide: where x264's tree rate control is not reproducible.
    info = probe(make(tmp_path / "in.mkv", 26, size=(320, 176) if codec == "libx264" else (96, 64)))
    options = EncodeOptions.from_settings(Settings(codec=codec, keyframe_interval=8, segment_frames=8), info)
    runs = [encode(info, options, tmp_path / str(i), n) for i, n in enumerate((8, 16, 24, 8, 16))]
    assert len({p.read_bytes() for p in (runs[0][0], runs[3][0])}) == 1
    first = packets(runs[0])
    assert len(first) == 26
    assert all(packets(run) == first for run in runs[1:])


def test_outside_the_swap_is_the_encode_without_one(tmp_path: Path) -> None:
    info = probe(make(tmp_path / "in.mkv", 12))
    lossless = EncodeOptions.from_settings(Settings(quality=0, keyframe_interval=4, segment_frames=4), info)
    swapped = decoded(encode(info, lossless, tmp_path / "a", 4))
    plain = decoded(encode(info, lossless, tmp_path / "b", 4, swapped=False))
    source = decoded([tmp_path / "in.mkv"])
    assert len(swapped) == len(plain) == 12
    for i, (a, b, original) in enumerate(zip(swapped, plain, source, strict=True)):
        assert all((p == q).all() for p, q in zip(b, original, strict=True))
        frame = next(open_reader(info, "pyav").read(i, i + 1))
        mask = swap(frame)[1]
        for p, q in zip(a, b, strict=True):
            scale = H // p.shape[0]
            block = (
                np.zeros(p.shape, bool)
                if mask is None
                else mask.reshape(p.shape[0], scale, p.shape[1], scale).max((1, 3)) > 0
            )
            assert (p[~block] == q[~block]).all()
            assert mask is None or np.abs(p[block].astype(int) - q[block]).mean() > 4


def test_default_quality_is_visually_lossless(tmp_path: Path) -> None:
    info = probe(make(tmp_path / "in.mkv", 8))
    options = EncodeOptions.from_settings(Settings(), info)
    assert (options.codec, options.pix_fmt) == ("libx264", "yuv420p")
    pairs = zip(
        decoded(encode(info, options, tmp_path, 48, swapped=False)), decoded([info.path]), strict=True
    )
    error = np.mean([(a[0].astype(float) - b[0]) ** 2 for a, b in pairs])
    assert 10 * np.log10(255**2 / error) > 43


@pytest.mark.parametrize(
    ("source", "size", "codec", "expected"),
    [
        ("yuv420p", (W, H), "libx264", "yuv420p"),
        ("yuvj420p", (W, H), "libx264", "yuv420p"),
        ("yuv420p10le", (W, H), "libx264", "yuv420p10le"),
        ("yuv422p12le", (W, H), "libx264", "yuv422p10le"),
        ("yuv420p", (W + 1, H), "libx264", "yuv444p"),
        ("yuv422p", (W, H + 1), "libx264", "yuv422p"),
        ("yuv420p", (W + 1, H), "libvpx-vp9", "yuv420p"),
        ("bgra", (W, H), "libx264", "yuv420p"),
        ("bgra", (W, H + 1), "libx264", "yuv444p"),
        ("yuv444p", (W, H), "libsvtav1", "yuv420p"),
        ("pal8", (W, H), "ffv1", "yuv420p"),
    ],
)
def test_pixel_format_follows_the_input(
    source: str, size: tuple[int, int], codec: str, expected: str
) -> None:
    options = EncodeOptions.from_settings(Settings(codec=codec), clip(source, size))
    assert options.pix_fmt == expected
    if source in ("bgra", "pal8"):  # RGB by nature: the matrix is our choice, and stated
        assert (options.color_range, options.colorspace) == (1, 6)
    if source == "yuvj420p":
        assert options.color_range == 2


def clip(pix_fmt: str, size: tuple[int, int] = (W, H), **more: Any) -> ClipInfo:
    base = Fraction(1, 25)
    return ClipInfo(Path("x.mp4"), "video", *size, base, 1 / base, pix_fmt, "h264", **more)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"codec": "libx999"}, "no such encoder; use one of libx264"),
        ({"codec": "aac"}, "for audio"),
        ({"codec": "mpeg4"}, "no constant-quality setting; use one of"),
        ({"codec": "ffv1", "quality": 3}, "leave quality out"),
        ({"quality": 80}, "takes 0 .best. to 51"),
        ({"pix_fmt": "rgb24"}, "libx264 takes yuv420p"),
        ({"pix_fmt": "nonsense"}, "libx264 takes yuv420p"),
    ],
)
def test_unusable_settings_name_the_alternatives(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        EncodeOptions.from_settings(Settings(**setting), clip("yuv420p"))


def test_odd_size_can_not_be_forced_into_half_chroma() -> None:
    with pytest.raises(SettingsError, match=r"can't hold 161×112 in it; use .*yuv444p"):
        EncodeOptions.from_settings(Settings(pix_fmt="yuv420p"), clip("yuv420p", (161, 112)))


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
def test_tags_reach_the_stream(tmp_path: Path, codec: str) -> None:
    path = make(tmp_path / "in.mkv", 3)
    tags = {"color_range": 2, "colorspace": 1, "color_primaries": 1, "color_trc": 1}
    info = replace(probe(path), **tags, sample_aspect_ratio=Fraction(4, 3))
    (out,) = encode(info, EncodeOptions.from_settings(Settings(codec=codec), info), tmp_path, 48)
    again = probe(out)
    assert {k: getattr(again, k) for k in tags} == tags
    if codec != "libvpx-vp9":  # has no place for it; the final container has
        assert again.sample_aspect_ratio == Fraction(4, 3)


def test_segment_off_the_interval_is_refused(tmp_path: Path) -> None:
    info = probe(make(tmp_path / "in.mkv", 4))
    options = EncodeOptions.from_settings(Settings(), info)
    frames = list(open_reader(info, "pyav").read(1, 3))
    with pytest.raises(ValueError, match="keyframe_interval"):
        EncodeStage(info, options, tmp_path).process(render(frames, Segment(0, 1, 3)))
    # The same frames as the start of a shot are fine.
    EncodeStage(info, options, tmp_path).process(render(frames, Segment(0, 1, 3), shot_start=1))
    assert [p.name for p in tmp_path.iterdir() if "0000" in p.name] == ["000000.mkv"]


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A file size limit stands in for the full disk: the kernel refuses the write either way."""
    make(tmp_path / "in.mkv", 30)
    script = f"""
        import resource
        from pathlib import Path
        import numpy as np
        from ldvid.configs.settings import Settings
        from ldvid.errors import OutputError
        from ldvid.stages.decode import open_reader, probe
        from ldvid.stages.encode import EncodeOptions, EncodeStage, RenderedSegment
        from ldvid.stages.records import Segment
        info = probe(Path({str(tmp_path / "in.mkv")!r}))
        frames = list(open_reader(info, "pyav").read(0, 30))
        options = EncodeOptions.from_settings(Settings(), info)
        stage = EncodeStage(info, options, Path({str(tmp_path / "seg")!r}))
        item = RenderedSegment(Segment(0, 0, 30), frames, [f.rgb for f in frames], [None] * 30, 0)
        for limit in (0, 100, 40_000, 90_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                stage.process(item)
            except OutputError as error:
                assert "000000.mkv: can't be written: File too large" in str(error), error
            else:
                raise SystemExit(f"no error at {{limit}}")
            assert not list(stage.folder.iterdir()), list(stage.folder.iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert stage.process(item).stat().st_size > 100_000
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_unwritable_folder(tmp_path: Path) -> None:
    info = probe(make(tmp_path / "in.mkv", 2))
    (tmp_path / "file").touch()
    stage = EncodeStage(info, EncodeOptions.from_settings(Settings(), info), tmp_path / "file")
    with pytest.raises(OutputError, match="can't be written"):
        stage.process(render(list(open_reader(info, "pyav").read(0, 2)), Segment(0, 0, 2)))


def test_folder_of_frames(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    rng = np.random.default_rng(0)
    alpha, grey = rng.integers(0, 256, (H, W, 4), np.uint8), picture(2)[..., 0].copy()
    deep = rng.integers(0, 65536, (H, W, 3), np.uint16)
    Image.fromarray(alpha).save(source / "f0.png")
    Image.fromarray(picture(1)).save(source / "f1.jpg", quality=90)
    cv2.imwrite(str(source / "f2.tif"), deep[..., ::-1])
    Image.fromarray(picture(3)).save(source / "f3.webp", lossless=True)
    Image.fromarray(grey).save(source / "f4.png")
    info = probe(source)
    options = EncodeOptions.from_settings(Settings(), info)
    (out,) = encode(info, options, tmp_path / "seg", 48)
    assert sorted(p.name for p in out.iterdir()) == list(info.files)
    assert (out / "f1.jpg").read_bytes() == (source / "f1.jpg").read_bytes()  # untouched: the very file
    frames = list(open_reader(info, "pyav").read(0, 5))
    for index, native in ((0, alpha), (2, deep), (4, grey)):
        rgb, mask = swap(frames[index])
        assert mask is not None
        written = cv2.imread(str(out / info.files[index]), cv2.IMREAD_UNCHANGED)
        assert written.shape == native.shape and written.dtype == native.dtype
        written = written if written.ndim == 2 else written[..., [2, 1, 0, 3][: written.shape[2]]]
        assert (written[mask == 0] == native[mask == 0]).all()
        assert (written[mask > 0.5] != native[mask > 0.5]).any()
        if index == 0:
            assert (written[..., 3] == alpha[..., 3]).all()
            assert (written[..., :3] == rgb)[mask == 1].all()
        if index == 2:
            assert np.abs(written[mask == 1].astype(int) / 257 - rgb[mask == 1]).max() < 1
    again = encode(info, options, tmp_path / "seg", 48)  # a retry replaces what it finds
    assert again == [out] and len(list((tmp_path / "seg").iterdir())) == 1


@pytest.mark.parametrize(
    ("suffix", "deep"),
    [("png", False), ("jpg", False), ("webp", False), ("tif", False), ("png", True), ("tif", True)],
)
def test_swapped_frames_are_marked_and_keep_profile_and_exif(tmp_path: Path, suffix: str, deep: bool) -> None:
    """Only they: an untouched frame is the very file. The marks cost no pixel."""
    source = tmp_path / "in"
    source.mkdir()
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    for i in range(2):
        path = source / f"f{i}.{suffix}"
        if deep:
            cv2.imwrite(str(path), picture(i).astype(np.uint16) * 257)
        else:
            extra = {"exif": exif} if suffix != "tif" else {}
            Image.fromarray(picture(i)).save(path, icc_profile=icc, quality=95, **extra)
    info = probe(source)
    tags = {"comment": "Altered by AI: <&>", "digital_source_type": "http://cv.iptc.org/x"}
    frames = list(open_reader(info, "pyav").read(0, 2))
    touched = np.zeros(frames[0].rgb.shape[:2], np.float32)
    touched[10:40, 10:40] = 1
    rgb = np.where(touched[..., None] > 0, 255 - frames[0].rgb, frames[0].rgb)
    item = RenderedSegment(Segment(0, 0, 2), frames, [rgb, frames[1].rgb], [touched, None], 0)
    options = EncodeOptions.from_settings(Settings(), info)
    plain = EncodeStage(info, options, tmp_path / "plain").process(item)
    marked = EncodeStage(info, options, tmp_path / "marked", tags).process(item)
    name = f"f0.{suffix}"
    assert (marked / f"f1.{suffix}").read_bytes() == (source / f"f1.{suffix}").read_bytes()
    written, without = (cv2.imread(str(p / name), cv2.IMREAD_UNCHANGED) for p in (marked, plain))
    assert written.dtype == (np.uint16 if deep else np.uint8) and (written == without).all()
    with Image.open(marked / name) as image:
        image.load()
        told = ElementTree.fromstring(_xmp(image))
        assert (
            told.findtext(".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
            == (tags["digital_source_type"])
        )
        assert told.findtext(".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li") == tags["comment"]
        if suffix == "png":
            assert (image.info["Comment"], image.info["digital_source_type"]) == tuple(tags.values())
        if suffix == "tif":
            assert image.tag_v2[270] == tags["comment"]
        if suffix == "jpg":
            assert image.info["comment"].decode() == tags["comment"]
        if not deep:
            assert image.info["icc_profile"] == icc
            if suffix != "tif":
                assert (image.getexif()[0x010F], image.getexif()[0x0112]) == ("Camera", 1)
    with Image.open(plain / name) as image:
        assert not _xmp(image) and "Comment" not in image.info


def _xmp(image: Image.Image) -> bytes:
    """Where Pillow puts the packet, by format."""
    if image.format == "TIFF":
        return bytes(image.tag_v2.get(700, b""))
    found = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    return found.encode() if isinstance(found, str) else found


def test_a_profile_of_another_colour_space_is_not_kept(tmp_path: Path) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wrong = icc[:16] + b"CMYK" + icc[20:]  # the frame is written as RGB
    Image.fromarray(picture(0)).convert("CMYK").save(tmp_path / "c.jpg", icc_profile=wrong)
    data = tag_picture(encode_picture(picture(0), ".jpg"), ".jpg", {}, tmp_path / "c.jpg")
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB" and "icc_profile" not in image.info


def test_the_thumbnail_of_the_face_that_was_there_is_not_kept(tmp_path: Path) -> None:
    small = io.BytesIO()
    Image.fromarray(picture(0, 16, 16)).save(small, "jpeg")
    thumbnail = small.getvalue()
    first = struct.pack("<HHHI4sI", 1, 0x010F, 2, 4, b"Cam\0", 26)
    entries = [(0x0103, 3, 1, 6), (0x0201, 4, 1, 68), (0x0202, 4, 1, len(thumbnail))]
    second = struct.pack("<H", 3) + b"".join(struct.pack("<HHII", *e) for e in entries) + bytes(4)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + first + second + thumbnail
    Image.fromarray(picture(0)).save(tmp_path / "t.jpg", exif=exif)
    assert thumbnail in (tmp_path / "t.jpg").read_bytes()
    data = tag_picture(encode_picture(picture(0), ".jpg"), ".jpg", {}, tmp_path / "t.jpg")
    assert thumbnail not in data
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif()[0x010F] == "Cam"
