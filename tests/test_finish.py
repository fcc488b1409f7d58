"""Finish: the input's times, sound, tags and chapters around the new frames; nothing half-written."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from ldvid.configs.settings import Settings
from ldvid.errors import JobError, OutputError, OutputExistsError, SettingsError
from ldvid.pipeline.finish import check_output, join
from ldvid.stages.decode import DecodeStage, open_reader, probe
from ldvid.stages.encode import EncodeOptions, EncodeStage, RenderedSegment
from ldvid.stages.records import ClipInfo, Segment
from PIL import Image

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "clips"
W, H, RATE = 96, 64, 48_000


def picture(index: int) -> np.ndarray:
    y, x = np.mgrid[:H, :W]
    out = np.stack([x * 255 // W, y * 255 // H, (x + y + 4 * index) % 256], -1).astype(np.uint8)
    for bit in range(8):
        out[:16, bit * W // 8 : (bit + 1) * W // 8] = 255 * (index >> bit & 1)
    return out


def number(rgb: np.ndarray) -> int:
    w = rgb.shape[1]
    return sum((int(rgb[4:12, (2 * b + 1) * w // 16].mean()) > 127) << b for b in range(8))


def make(
    path: Path,
    *,
    frames: int = 50,
    times: list[int] | None = None,
    base: Fraction = Fraction(1, 25),
    sound: str | None = "aac",
    subtitles: bool = False,
    rotation: int = 0,
    tags: dict[str, int] | None = None,
    aspect: Fraction | None = None,
    codec: str = "libx264",
) -> Path:
    """A clip with B-frames, a tone, chapters and tags."""
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=25)
        video.width, video.height = W, H
        video.codec_context.time_base = video.time_base = base
        if codec == "libx264":
            video.options = {
                "crf": "12",
                "preset": "veryfast",
                "x264-params": "keyint=12:bframes=3:scenecut=0",
            }
        for tag, value in (tags or {}).items():
            setattr(video.codec_context, tag, value)
        if aspect is not None:
            video.codec_context.sample_aspect_ratio = aspect
        if rotation:
            video.set_display_rotation(rotation)
        audio = out.add_stream(sound, rate=RATE) if sound else None
        if audio is not None:
            audio.metadata["language"] = "deu"
        lines = out.add_mux_stream("subrip") if subtitles else None
        out.metadata["title"] = "a title"
        out.set_chapters(
            [
                {
                    "id": i,
                    "start": i * 800,
                    "end": (i + 1) * 800,
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": f"part {i}"},
                }
                for i in range(3)
            ]
        )
        out.start_encoding()
        shown = times or list(range(frames))
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts, frame.time_base = shown[i], base
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if audio is not None:
            size = audio.codec_context.frame_size
            for t in range(0, int(shown[-1] * base * RATE), size):
                tone = np.sin(np.arange(t, t + size) * 0.05 * (1 + t / RATE)).astype(np.float32)
                piece = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
                piece.sample_rate, piece.pts, piece.time_base = RATE, t, Fraction(1, RATE)
                out.mux(audio.encode(piece))
            out.mux(audio.encode(None))
        if lines is not None:
            for i in range(3):
                packet = av.Packet(f"line {i}".encode())
                packet.stream, packet.time_base = lines, Fraction(1, 1000)
                packet.pts = packet.dts = i * 500
                packet.duration = 400
                out.mux(packet)
    return path


def segments(info: ClipInfo, folder: Path, length: int = 8, codec: str = "libx264") -> list[Path]:
    options = EncodeOptions.from_settings(
        Settings(codec=codec, keyframe_interval=length, segment_frames=length), info
    )
    decode, encode = DecodeStage(info, "pyav"), EncodeStage(info, options, folder)
    out = []
    for i, start in enumerate(range(0, info.frames, length)):
        segment = Segment(i, start, min(start + length, info.frames))
        frames = decode.process(segment)
        out.append(
            encode.process(RenderedSegment(segment, frames, [f.rgb for f in frames], [None] * len(frames), 0))
        )
    return out


def shown(info: ClipInfo) -> list[Fraction]:
    return [t * info.time_base for t in info.timestamps]


def sound(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return []
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.size]


CASES = {
    "mp4": ("in.mp4", "out.mp4", {}),
    "mov": ("in.mov", "out.mov", {}),
    "mkv": ("in.mkv", "out.mkv", {}),
    "mkv to mp4": ("in.mkv", "out.mp4", {}),
    "webm": ("in.webm", "out.webm", {"codec": "libvpx-vp9", "sound": "libopus"}),
    "ts": ("in.ts", "out.mp4", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_times_sound_and_tags_are_the_inputs(tmp_path: Path, case: str) -> None:
    source, target, options = CASES[case]
    path, output = make(tmp_path / source, **options), tmp_path / target
    info = probe(path)
    parts = segments(info, tmp_path / "seg", codec=options.get("codec", "libx264"))
    warnings = join(
        info, parts, output, {"comment": "altered", "my_source_type": "composite"}, overwrite=False
    )
    assert warnings == []
    result = probe(output)
    assert result.frames == info.frames == 50
    moved = shown(info)[0] - shown(result)[0]
    assert moved == 0 or case == "ts"
    assert [t - moved for t in shown(info)] == shown(result)
    assert [d * info.time_base for d in info.durations] == [d * result.time_base for d in result.durations]
    assert [number(f.rgb) for f in open_reader(result, "pyav").read(0, 50)] == list(range(50))
    before, after = sound(path), sound(output)
    assert len(before) > 90
    if case != "ts":  # there each packet also carries a transport header
        assert [b for _, b in before] == [b for _, b in after]
    drift = [(a - b) + moved for (b, _), (a, _) in zip(before, after, strict=True)]
    assert max(map(abs, drift)) <= Fraction(1, 900)
    with av.open(str(output)) as container:
        tags = {k.lower(): v for k, v in container.metadata.items()}
        assert (tags["comment"], tags["my_source_type"]) == ("altered", "composite")
        if case != "ts":
            assert tags["title"] == "a title"
            with av.open(str(path)) as original:
                language = original.streams.audio[0].language
            assert container.streams.audio[0].language == language
            assert language == "deu" or case == "mov"  # QuickTime has fewer languages
            chapters = [(c["metadata"]["title"], c["start"] * c["time_base"]) for c in container.chapters()]
            assert chapters == [(f"part {i}", Fraction(4 * i, 5)) for i in range(3)]
        if case in ("mp4", "mov"):  # the index lies in front
            data = output.read_bytes()
            assert data.index(b"moov") < data.index(b"mdat")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source, target, "seg"])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_the_inputs_own_comment_is_kept_behind_the_mark(tmp_path: Path, name: str) -> None:
    plain = make(tmp_path / f"plain{name}", frames=8)
    info = probe(plain)
    parts = segments(info, tmp_path / "seg")

    def comments(path: Path) -> list[str]:
        with av.open(str(path)) as container:
            return [v for k, v in container.metadata.items() if k.lower() == "comment"]

    join(info, parts, tmp_path / f"1{name}", {"comment": "holiday"}, overwrite=False)
    info = replace(info, path=tmp_path / f"1{name}")
    join(info, parts, tmp_path / f"2{name}", {"comment": "altered"}, overwrite=False)
    assert comments(tmp_path / f"2{name}") == ["altered\nholiday"]
    info = replace(info, path=tmp_path / f"2{name}")
    join(info, parts, tmp_path / f"3{name}", {"comment": "altered"}, overwrite=False)  # not said twice
    assert comments(tmp_path / f"3{name}")[0].count("altered") == 1


@pytest.mark.parametrize("target", ["out.mp4", "out.mkv"])
def test_variable_frame_rate(tmp_path: Path, target: str) -> None:
    times = [int(t) for t in np.cumsum([0, *[20, 33, 100, 17, 250, 41] * 4])]
    info = probe(make(tmp_path / "in.mkv", frames=25, times=times, base=Fraction(1, 1000), sound=None))
    join(info, segments(info, tmp_path / "seg"), tmp_path / target, {}, overwrite=False)
    result = probe(tmp_path / target)
    assert shown(result) == [Fraction(t, 1000) for t in times]
    with av.open(str(tmp_path / target)) as container:
        stamps = [(p.dts, p.pts) for p in container.demux(video=0) if p.size and p.dts is not None]
    assert all(d <= p for d, p in stamps) and stamps == sorted(stamps)
    assert any(a[1] > b[1] for a, b in pairwise(stamps))  # B-frames are there


@pytest.mark.parametrize("target", ["out.mp4", "out.mkv"])
def test_trimmed(tmp_path: Path, target: str) -> None:
    path = make(tmp_path / "in.mp4")
    info = probe(path, start=0.6, end=1.4)
    assert join(info, segments(info, tmp_path / "seg"), tmp_path / target, {}, overwrite=False) == []
    result = probe(tmp_path / target)
    assert shown(result) == [Fraction(i, 25) for i in range(20)]
    assert [number(f.rgb) for f in open_reader(result, "pyav").read(0, 20)] == list(range(15, 35))
    expected = [(t - Fraction(3, 5), b) for t, b in sound(path) if Fraction(3, 5) <= t < Fraction(7, 5)]
    got = sound(tmp_path / target)
    assert [b for _, b in got] == [b for _, b in expected]
    assert max(abs(a - b) for (a, _), (b, _) in zip(got, expected, strict=True)) <= Fraction(1, 900)
    with av.open(str(tmp_path / target)) as container:
        spans = [tuple(c[k] * c["time_base"] for k in ("start", "end")) for c in container.chapters()]
    assert spans == [(0, Fraction(1, 5)), (Fraction(1, 5), Fraction(4, 5))]


def test_rotation_tags_and_aspect(tmp_path: Path) -> None:
    tags = {"color_range": 2, "colorspace": 1, "color_primaries": 1, "color_trc": 1}
    path = make(tmp_path / "in.mp4", frames=6, rotation=90, tags=tags, aspect=Fraction(4, 3))
    info = probe(path)
    join(info, segments(info, tmp_path / "seg"), tmp_path / "out.mp4", {}, overwrite=False)
    result = probe(tmp_path / "out.mp4")
    assert (result.rotation, result.width, result.height) == (0, H, W)
    assert {k: getattr(result, k) for k in tags} == tags
    assert result.sample_aspect_ratio == info.sample_aspect_ratio == Fraction(3, 4)
    frames = [next(open_reader(i, "pyav").read(3, 4)).rgb for i in (info, result)]
    assert np.abs(frames[0].astype(int) - frames[1]).mean() < 3


def test_same_output_bytes_for_any_segments(tmp_path: Path) -> None:
    info = probe(make(tmp_path / "in.mp4"))
    options = EncodeOptions.from_settings(Settings(keyframe_interval=8, segment_frames=8), info)
    outputs = []
    for length in (8, 24):
        decode, encode, parts = (
            DecodeStage(info, "pyav"),
            EncodeStage(info, options, tmp_path / str(length)),
            [],
        )
        for i, a in enumerate(range(0, 50, length)):
            frames = decode.process(Segment(i, a, min(50, a + length)))
            item = RenderedSegment(
                Segment(i, a, a + len(frames)), frames, [f.rgb for f in frames], [None] * len(frames), 0
            )
            parts.append(encode.process(item))
        join(info, parts, tmp_path / f"{length}.mp4", {"comment": "x"}, overwrite=False)
        outputs.append((tmp_path / f"{length}.mp4").read_bytes())
    assert outputs[0] == outputs[1]


def test_what_the_container_does_not_take_is_dropped_with_a_warning(tmp_path: Path) -> None:
    path = make(tmp_path / "in.mkv", subtitles=True)
    info = probe(path)
    parts = segments(info, tmp_path / "seg")
    kept = join(info, parts, tmp_path / "out.mkv", {}, overwrite=False)
    with av.open(str(tmp_path / "out.mkv")) as container:
        texts = [bytes(p) for p in container.demux(subtitles=0) if p.size]
    assert kept == [] and texts == [b"line 0", b"line 1", b"line 2"]
    (warning,) = join(info, parts, tmp_path / "out.mov", {}, overwrite=False)[-1:]
    assert "subtitle stream 2 (subrip) can't be stored in mov: dropped" in warning
    assert probe(tmp_path / "out.mov").frames == 50


def test_unsuited_containers(tmp_path: Path) -> None:
    info = probe(make(tmp_path / "in.mp4", frames=4))
    parts = segments(info, tmp_path / "seg")
    with pytest.raises(SettingsError, match=r"codec h264: can't be stored in webm.*libvpx-vp9"):
        join(info, parts, tmp_path / "out.webm", {}, overwrite=False)
    with pytest.raises(SettingsError, match=r"out\.xyz: name it \.mp4"):
        join(info, parts, tmp_path / "out.xyz", {}, overwrite=False)
    with pytest.raises(OutputError, match="no such folder"):
        join(info, parts, tmp_path / "no" / "out.mp4", {}, overwrite=False)
    with pytest.raises(JobError, match="hold 2 frames, the clip has 4"):
        join(
            info,
            segments(probe(info.path, end=0.08), tmp_path / "few"),
            tmp_path / "out.mp4",
            {},
            overwrite=False,
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["few", "in.mp4", "seg"]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    info = probe(make(tmp_path / "in.mp4", frames=4))
    parts, output = segments(info, tmp_path / "seg"), tmp_path / "out.mp4"
    output.write_text("the user's own")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        join(info, parts, output, {}, overwrite=False)
    assert output.read_text() == "the user's own"
    with pytest.raises(OutputExistsError, match="the input itself"):
        join(info, parts, info.path, {}, overwrite=True)
    join(info, parts, output, {}, overwrite=True)
    assert probe(output).frames == 4


def test_full_disk_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    info = probe(make(tmp_path / "in.mp4"))
    parts = segments(info, tmp_path / "seg")
    (tmp_path / "out.mp4").write_text("the user's own")
    script = f"""
        import resource
        from pathlib import Path
        from ldvid.errors import OutputError
        from ldvid.pipeline.finish import join
        from ldvid.stages.decode import probe
        info, folder = probe(Path({str(info.path)!r})), Path({str(tmp_path)!r})
        parts = [Path(p) for p in {[str(p) for p in parts]!r}]
        names = sorted(p.name for p in folder.iterdir())
        for limit in (0, 1000, 20_000, 40_000):
            for name in ("out.mp4", "new.mkv"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                try:
                    join(info, parts, folder / name, {{}}, overwrite=True)
                except OutputError as error:
                    assert f"{{name}}: can't be written: File too large" in str(error), error
                else:
                    raise SystemExit(f"no error at {{limit}}")
                assert sorted(p.name for p in folder.iterdir()) == names
                assert (folder / "out.mp4").read_text() == "the user's own"
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_folder_of_frames(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for i in (1, 2, 10, 11):
        Image.fromarray(picture(i)).save(source / f"f{i}.png")
    info = probe(source)
    parts = segments(info, tmp_path / "seg", 2)
    assert join(info, parts, output, {}, overwrite=False) == []
    assert [number(f.rgb) for f in open_reader(probe(output), "pyav").read(0, 4)] == [1, 2, 10, 11]
    with pytest.raises(OutputExistsError, match="--overwrite"):
        join(info, parts, output, {}, overwrite=False)
    (output / "f1.png").write_text("old")
    join(info, parts, output, {}, overwrite=True)
    assert (output / "f1.png").read_bytes() == (source / "f1.png").read_bytes()
    (output / "holiday.png").write_text("the user's own")
    with pytest.raises(OutputExistsError, match=r"holds holiday\.png"):
        join(info, parts, output, {}, overwrite=True)
    with pytest.raises(JobError, match="lack 2 frames"):
        join(info, parts[:1], tmp_path / "half", {}, overwrite=False)
    with pytest.raises(OutputExistsError, match="the input itself"):
        check_output(info, source, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out", "seg"]


@pytest.mark.shared
@pytest.mark.skipif(not CLIPS.is_dir(), reason="needs the development data")
@pytest.mark.parametrize("name", ["d20.mp4", "d3.mp4", "head-pose-face-detection-female.gif"])
def test_real_clips(tmp_path: Path, name: str) -> None:
    info = probe(CLIPS / name)
    join(info, segments(info, tmp_path / "seg", 96), tmp_path / "out.mp4", {"comment": "x"}, overwrite=False)
    result: Any = probe(tmp_path / "out.mp4")
    assert shown(result) == shown(info)
    assert (result.width, result.height) == (info.width, info.height)
    if info.codec != "gif":
        assert (result.colorspace, result.color_range) == (info.colorspace, info.color_range)
        assert sound(tmp_path / "out.mp4") == sound(CLIPS / name)
