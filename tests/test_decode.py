"""Decode: exact frames, times, rotation and colours; cut-off files and bad input told clearly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.codec.context import Flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ldvid.errors import InputError, SettingsError, TruncatedInputError
from ldvid.stages import orient
from ldvid.stages.colour import planes
from ldvid.stages.decode import DecodeStage, PyavReader, open_reader, probe, read_picture
from ldvid.stages.folder import natural_key
from ldvid.stages.records import Segment
from PIL import Image

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "clips"
W, H = 96, 64


def picture(index: int, width: int = W, height: int = H) -> np.ndarray:
    """A gradient with the frame's number written as eight black or white blocks along the top."""
    y, x = np.mgrid[:height, :width]
    out = np.stack([x * 255 // width, y * 255 // height, (x + y + 4 * index) % 256], -1).astype(np.uint8)
    for bit in range(8):
        out[:16, bit * width // 8 : (bit + 1) * width // 8] = 255 * (index >> bit & 1)
    return out


def number(rgb: np.ndarray) -> int:
    """Read the frame's number back."""
    w = rgb.shape[1]
    return sum((int(rgb[4:12, (2 * b + 1) * w // 16].mean()) > 127) << b for b in range(8))


def make(
    path: Path,
    *,
    frames: int = 60,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
    base: Fraction = Fraction(1, 25),
    size: tuple[int, int] = (W, H),
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    rotation: tuple[int, bool, bool] | None = None,
    tags: dict[str, int] | None = None,
    source: list[av.VideoFrame] | None = None,
) -> Path:
    """A clip whose frame i is ``picture(i)``, shown at ``times[i]`` of ``base``."""
    with av.open(str(path), "w", container_options=container or {}) as out:
        stream = out.add_stream(
            codec, rate=1 / base if base.numerator == 1 and base.denominator < 100 else 25
        )
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = stream.time_base = base
        default = {"crf": "10", "preset": "veryfast", "x264-params": "keyint=12:bframes=3:scenecut=0"}
        stream.options = (default if codec == "libx264" else {}) if options is None else options
        for tag, value in (tags or {}).items():
            setattr(stream.codec_context, tag, value)
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1], vflip=rotation[2])
        out.start_encoding()
        for i in range(frames):
            frame = source[i] if source else av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
            frame.pts, frame.time_base = (times[i] if times else i), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


FASTSTART = {"movflags": "faststart"}
KINDS = {
    "clip.mp4": {"container": FASTSTART},
    "clip.mkv": {},
    "clip.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "g": "12"}},
    "clip.gif": {"codec": "gif", "pix_fmt": "rgb8", "base": Fraction(1, 25)},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {name: make(folder / name, **kind) for name, kind in KINDS.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_and_its_time(clips: dict[str, Path], name: str) -> None:
    info = probe(clips[name])
    assert (info.frames, info.width, info.height, info.first_frame) == (60, W, H, 0)
    assert [t * info.time_base for t in info.timestamps] == [Fraction(i, 25) for i in range(60)]
    assert {d * info.time_base for d in info.durations} == {Fraction(1, 25)}
    frames = list(open_reader(info, "pyav").read(0, 60))
    assert [f.index for f in frames] == [number(f.rgb) for f in frames] == list(range(60))
    error = np.abs(frames[7].rgb[20:].astype(int) - picture(7)[20:]).mean()
    assert error < (20 if name.endswith("gif") else 4)  # rgb8 has few colours


def test_variable_frame_rate(tmp_path: Path) -> None:
    times = list(np.cumsum([0, *[20, 33, 100, 17, 250] * 6]))
    info = probe(make(tmp_path / "v.mkv", frames=31, times=[int(t) for t in times], base=Fraction(1, 1000)))
    assert [t * info.time_base for t in info.timestamps] == [Fraction(int(t), 1000) for t in times]
    assert [d * info.time_base * 1000 for d in info.durations[:-1]] == [20, 33, 100, 17, 250] * 6
    assert [number(f.rgb) for f in open_reader(info, "pyav").read(9, 14)] == [9, 10, 11, 12, 13]


@pytest.mark.parametrize(("name", "backend"), [*[(n, "pyav") for n in KINDS], ("clip.mp4", "decord")])
def test_random_access_gives_the_frames_of_reading_through(
    clips: dict[str, Path], name: str, backend: str
) -> None:
    info = probe(clips[name])
    through = [f.rgb for f in open_reader(info, backend).read(0, info.frames)]
    reader = open_reader(info, backend)

    @given(st.integers(0, 59), st.integers(1, 5))
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    def check(start: int, count: int) -> None:
        got = list(reader.read(start, min(60, start + count)))
        assert [f.index for f in got] == list(range(start, min(60, start + count)))
        assert all((f.rgb == through[f.index]).all() for f in got)

    check()


def test_reading_in_sequence_seeks_once(clips: dict[str, Path]) -> None:
    class Counting(PyavReader):
        seeks = 0

        def _seek(self, index: int) -> None:
            self.seeks += 1
            super()._seek(index)

    reader = Counting(probe(clips["clip.mp4"]))
    for start in range(0, 60, 12):
        assert [number(f.rgb) for f in reader.read(start, start + 12)] == list(range(start, start + 12))
    assert reader.seeks == 1


def test_backends_agree(clips: dict[str, Path]) -> None:
    info = probe(clips["clip.mp4"], start=0.4, end=1.6)
    ours, theirs = (list(open_reader(info, b).read(0, info.frames)) for b in ("pyav", "decord"))
    assert [number(f.rgb) for f in theirs] == [number(f.rgb) for f in ours] == list(range(10, 40))
    assert max(np.abs(a.rgb.astype(int) - b.rgb).mean() for a, b in zip(ours, theirs, strict=True)) < 3
    assert all(f.native is None for f in theirs)


def test_native_is_what_the_decoder_gave(clips: dict[str, Path]) -> None:
    with av.open(str(clips["clip.mp4"])) as container:
        decoded = [[p.copy() for p in planes(f)] for f in container.decode(video=0)]
    info = probe(clips["clip.mp4"])
    for frame in open_reader(info, "pyav").read(20, 40):
        assert frame.native.format.name == "yuv420p"
        assert all((a == b).all() for a, b in zip(planes(frame.native), decoded[frame.index], strict=True))


def test_rgb_is_made_once_by_whoever_asks(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the file was closed, and by many threads at once."""
    info = probe(clips["clip.mp4"])
    wanted = [f.rgb for f in open_reader(info, "pyav").read(0, 16)]
    made, real = [], orient.to_rgb

    def counted(*values: Any) -> Any:
        made.append(values)
        return real(*values)

    monkeypatch.setattr(orient, "to_rgb", counted)
    reader = open_reader(info, "pyav")
    frames = list(reader.read(0, 16))
    reader.close()
    assert not made
    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(lambda frame: frame.rgb, frames))
    assert all((a == b).all() for a, b in zip(seen, wanted, strict=True))
    assert [f.rgb is s for f, s in zip(frames, seen, strict=True)] == [True] * 16 and len(made) == 16
    again = frames[3].at(7)
    assert (again.index, again.rgb is seen[3], again.native is frames[3].native) == (7, True, True)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", [(False, False), (True, False), (False, True)])
def test_any_orientation_comes_out_upright(tmp_path: Path, degrees: int, flip: tuple[bool, bool]) -> None:
    plain = make(tmp_path / "plain.mp4", frames=2)
    turned = make(tmp_path / "turned.mp4", frames=2, rotation=(degrees, *flip))
    stored = next(open_reader(probe(plain), "pyav").read(0, 1))

    def upright(array: np.ndarray) -> np.ndarray:
        out = np.rot90(array, degrees // 90)
        out = out[:, ::-1] if flip[0] else out
        return out[::-1] if flip[1] else out

    info = probe(turned)
    frame = next(open_reader(info, "pyav").read(0, 1))
    assert (info.width, info.height) == ((H, W) if degrees in (90, 270) else (W, H))
    if not any(flip):
        assert info.rotation == -degrees % 360
    assert frame.native.format.name == "yuv420p"
    for a, b in zip(planes(frame.native), planes(stored.native), strict=True):
        assert (a == upright(b)).all()
    assert np.abs(frame.rgb.astype(int) - upright(stored.rgb)).mean() < 1.5


def test_turning_half_sampled_chroma_keeps_the_luma(tmp_path: Path) -> None:
    path = make(tmp_path / "t.mov", frames=1, pix_fmt="yuv422p10le", rotation=(90, False, False))
    plain = make(tmp_path / "p.mov", frames=1, pix_fmt="yuv422p10le")
    frame, stored = (next(open_reader(probe(p), "pyav").read(0, 1)) for p in (path, plain))
    assert frame.native.format.name == "yuv444p10le"
    assert (planes(frame.native)[0] == np.rot90(planes(stored.native)[0])).all()


@pytest.mark.parametrize(
    ("tags", "coefficients", "full"),
    [
        ({}, (0.299, 0.114), False),
        ({"colorspace": 1, "color_range": 1}, (0.2126, 0.0722), False),
        ({"colorspace": 1, "color_range": 2}, (0.2126, 0.0722), True),
        ({"colorspace": 9}, (0.2627, 0.0593), False),
    ],
)
def test_colours_follow_the_tags(
    tmp_path: Path, tags: dict[str, int], coefficients: tuple[float, float], full: bool
) -> None:
    flat = av.VideoFrame(W, H, "yuv444p")
    y, u, v = 120, 90, 160
    for plane, value in zip(planes(flat), (y, u, v), strict=True):
        plane[:] = value
    path = make(
        tmp_path / "c.mkv", frames=1, pix_fmt="yuv444p", options={"qp": "0"}, tags=tags, source=[flat]
    )
    info = probe(path)
    assert info.colorspace == tags.get("colorspace")
    assert (info.color_range == 2) == full
    kr, kb = coefficients
    luma, scale = (y / 255, 255) if full else ((y - 16) / 219, 224)
    cb, cr = (u - 128) / scale, (v - 128) / scale
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    expected = 255 * np.array([red, green, blue])
    rgb = next(open_reader(info, "pyav").read(0, 1)).rgb
    assert np.abs(rgb[H // 2, W // 2] - expected).max() < 1.1
    assert np.ptp(rgb.reshape(-1, 3), 0).max() == 0


@given(st.integers(0, 59), st.integers(1, 60))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_start_is_inclusive_and_end_exclusive(clips: dict[str, Path], first: int, count: int) -> None:
    last = min(60, first + count)
    info = probe(clips["clip.mkv"], start=first / 25, end=last / 25)
    assert (info.first_frame, info.frames) == (first, last - first)
    assert info.timestamps[0] * info.time_base == Fraction(first, 25)
    assert info.durations[-1] * info.time_base == Fraction(1, 25)
    ends = [
        *open_reader(info, "pyav").read(0, 1),
        *open_reader(info, "pyav").read(last - first - 1, last - first),
    ]
    assert [number(f.rgb) for f in ends] == [first, last - 1]


@pytest.mark.parametrize(
    ("start", "end", "flag"), [(2.4, None, "--start 2.4"), (-1, None, "--start -1"), (None, 3.0, "--end 3")]
)
def test_out_of_range_names_the_flag(
    clips: dict[str, Path], start: float | None, end: float | None, flag: str
) -> None:
    with pytest.raises(InputError, match=flag) as error:
        probe(clips["clip.mp4"], start=start, end=end)
    assert "2.400 s long" in str(error.value)


def test_end_before_start(clips: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="later than --start 1"):
        probe(clips["clip.mp4"], start=1, end=0.5)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.35, 0.5, 0.62, 0.77, 0.9, 0.97])
def test_cut_off_files_say_what_can_be_read(
    clips: dict[str, Path], tmp_path: Path, name: str, share: float
) -> None:
    data = clips[name].read_bytes()
    cut = tmp_path / name
    cut.write_bytes(data[: int(len(data) * share)])
    try:
        whole = probe(cut)
    except TruncatedInputError as error:
        message = str(error)
    else:  # only Matroska's index, behind the last frame, may be missing unnoticed
        assert name in ("clip.mkv", "clip.webm") and share > 0.9 and whole.frames == 60
        return
    assert "--end " in message and str(cut) in message
    end = float(message.split("--end ")[1].split()[0])
    readable = int(message.split("the first ")[1].split()[0])
    info = probe(cut, end=end)
    assert 1 <= info.frames == readable < 60
    assert [number(f.rgb) for f in open_reader(info, "pyav").read(0, info.frames)] == list(range(readable))


def test_cut_off_before_the_index(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(TruncatedInputError, match="nothing can be read"):
        probe(path)


def test_whole_files_are_not_taken_for_cut_off(tmp_path: Path) -> None:
    fragmented = make(tmp_path / "f.mp4", container={"movflags": "frag_keyframe+empty_moov"})
    assert probe(fragmented).frames == 60
    trailing = make(tmp_path / "g.gif", codec="gif", pix_fmt="rgb8")
    trailing.write_bytes(trailing.read_bytes() + b"\0rubbish after the trailer")
    assert probe(trailing).frames == 60


def test_matroska_damaged_inside_warns_of_what_is_missing(clips: dict[str, Path], tmp_path: Path) -> None:
    assert probe(clips["clip.mkv"]).warnings == ()
    data = bytearray(clips["clip.mkv"].read_bytes())
    middle = slice(len(data) // 3, len(data) * 9 // 10)
    data[middle] = b"\x55" * (middle.stop - middle.start)
    (tmp_path / "d.mkv").write_bytes(data)
    info = probe(tmp_path / "d.mkv")
    assert 0 < info.frames < 40
    (warning,) = info.warnings
    assert "states 2.40 s of video" in warning and "frames be missing" in warning
    assert probe(tmp_path / "d.mkv", end=0.2).warnings == ()  # not asked for what is missing


def test_interlaced_video_is_said_to_be(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "i.ts"), "w") as out:
        stream = out.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        context = stream.codec_context
        context.flags |= int(Flags.interlaced_dct | Flags.interlaced_me)
        for i in range(8):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        out.mux(stream.encode(None))
    assert any("is interlaced" in w for w in probe(tmp_path / "i.ts").warnings)


def test_stream_without_times(tmp_path: Path) -> None:
    info = probe(make(tmp_path / "raw.h264"), start=0.4)
    assert info.first_frame == 10 and info.frames == 50
    assert any("evenly spaced" in w for w in info.warnings)
    reader = open_reader(info, "pyav")
    for start in (30, 0, 7):
        assert [number(f.rgb) for f in reader.read(start, start + 3)] == [10 + start + i for i in range(3)]


def test_bad_input_gets_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        probe(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("this is no video")
    with pytest.raises(InputError, match="not a video"):
        probe(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(InputError, match="is empty"):
        probe(tmp_path / "empty.mp4")
    Image.fromarray(picture(1)).save(tmp_path / "still.png")
    with pytest.raises(InputError, match="still picture"):
        probe(tmp_path / "still.png")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="no frames"):
        probe(tmp_path / "folder")
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 48000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(InputError, match="no video stream"):
        probe(tmp_path / "sound.mp4")
    with pytest.raises(InputError, match="no frames"):
        probe(make(tmp_path / "none.mkv", frames=0))
    with pytest.raises(SettingsError, match="pyav and decord"):
        open_reader(probe(make(tmp_path / "a.mp4", frames=2)), "magic")


def test_damage_in_the_middle_is_an_error_not_a_wrong_frame(tmp_path: Path) -> None:
    path = make(tmp_path / "d.gif", codec="gif", pix_fmt="rgb8", frames=20)
    info = probe(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"can't be decoded"):
        list(open_reader(info, "pyav").read(0, 20))


def test_folder_in_natural_order(tmp_path: Path) -> None:
    names = ["f10.png", "f2.jpg", "f1.webp", "F3.tif"]
    for name, i in zip(names, (10, 2, 1, 3), strict=True):
        Image.fromarray(picture(i)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a frame")
    info = probe(tmp_path)
    assert info.files == ("f1.webp", "f2.jpg", "F3.tif", "f10.png")
    stage = DecodeStage(info, "pyav")
    assert [number(f.rgb) for f in stage.process(Segment(0, 0, 4))] == [1, 2, 3, 10]
    trimmed = probe(tmp_path, start=0.04, end=0.12)
    assert trimmed.files == ("f2.jpg", "F3.tif") and trimmed.first_frame == 1
    Image.fromarray(picture(0, 50, 40)).save(tmp_path / "f4.png")
    with pytest.raises(InputError, match=r"f4\.png: is 50×40"):
        probe(tmp_path)


def test_a_cut_off_frame_of_a_folder_is_named(tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (H, W, 3), np.uint8)).save(
            tmp_path / f"f{i}.png"
        )
    whole = (tmp_path / "f1.png").read_bytes()
    info = probe(tmp_path)
    (tmp_path / "f1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"f1\.png: the picture is damaged or cut off"):
        probe(tmp_path)
    with pytest.raises(InputError, match=r"f1\.png: the picture is damaged or cut off"):  # cut meanwhile
        list(open_reader(info, "pyav").read(0, 3))


def test_an_animated_webp_says_so(tmp_path: Path) -> None:
    stills = [Image.fromarray(picture(i)) for i in range(3)]
    stills[0].save(tmp_path / "a.webp", save_all=True, append_images=stills[1:], duration=80)
    with pytest.raises(InputError, match="an animated WebP can't be read; convert it"):
        probe(tmp_path / "a.webp")
    stills[0].save(tmp_path / "b.webp")
    with pytest.raises(InputError, match="is a still picture"):
        probe(tmp_path / "b.webp")


def test_odd_digits_in_names_are_letters() -> None:
    assert sorted(["²10.png", "²9.png", "1.png"], key=natural_key) == ["1.png", "²9.png", "²10.png"]


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=6, unique=True))
def test_natural_order_is_numeric(numbers: list[int]) -> None:
    names = sorted((f"a{n}b.png" for n in numbers), key=natural_key)
    assert names == [f"a{n}b.png" for n in sorted(numbers)]


def test_folder_keeps_alpha_and_sixteen_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65536, (H, W, 3), np.uint16)
    alpha = rng.integers(0, 256, (H, W, 4), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., ::-1])
    Image.fromarray(alpha).save(tmp_path / "b.png")
    first, second = open_reader(probe(tmp_path), "pyav").read(0, 2)
    assert (first.native == deep).all() and np.abs(first.rgb.astype(int) - deep // 257).max() <= 1
    assert (second.native == alpha).all() and (second.rgb == alpha[..., :3]).all()


def test_pictures(tmp_path: Path) -> None:
    rgb = picture(5)
    for suffix in ("png", "tif"):
        Image.fromarray(rgb).save(tmp_path / f"p.{suffix}")
        assert (read_picture(tmp_path / f"p.{suffix}") == rgb).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(tmp_path / "e.jpg", exif=exif, quality=95)
    turned = read_picture(tmp_path / "e.jpg")
    assert np.abs(turned.astype(int) - np.rot90(rgb, -1)).mean() < 5
    cv2.imwrite(str(tmp_path / "g.png"), np.full((H, W), 200 << 8, np.uint16))
    assert (read_picture(tmp_path / "g.png") == 200).all()
    clear = np.dstack([rgb, np.zeros((H, W), np.uint8)])
    Image.fromarray(clear).save(tmp_path / "c.png")
    assert (read_picture(tmp_path / "c.png") == 255).all()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_cut_off_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="damaged or cut off"):
        read_picture(path)
    with pytest.raises(InputError, match="no such file"):
        read_picture(tmp_path / "none.png")
    path.write_text("no picture")
    with pytest.raises(InputError, match="not a picture"):
        read_picture(path)


@pytest.mark.shared
@pytest.mark.skipif(not CLIPS.is_dir(), reason="needs the development data")
@pytest.mark.parametrize(("name", "frames"), [("d0.mp4", 78), ("d20.mp4", 175), ("s32.mp4", 180)])
def test_real_clips_in_any_order(name: str, frames: int) -> None:
    info = probe(CLIPS / name)
    assert info.frames == frames
    reader = open_reader(info, "pyav")
    late = [f.rgb for f in reader.read(frames - 3, frames)]
    assert all((a == b.rgb).all() for a, b in zip(late, list(reader.read(0, frames))[-3:], strict=True))
