"""The command as users meet it: what it makes, what it says, its exit codes, what it leaves behind.

One small swap (three frames, each a segment) is run to its end once; the tests that stop, break or
resume a run compare with it.
"""

from __future__ import annotations

import io
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from ldvid import __version__
from ldvid.cli import main
from ldvid.commands.common import parse_time
from ldvid.configs import preset_names
from ldvid.errors import SettingsError
from ldvid.pipeline.progress import Lines, Silent, open_listener, print_summary
from ldvid.pipeline.provenance import DIGITAL_SOURCE_TYPE
from ldvid.pipeline.request import Summary

Command = Callable[..., "subprocess.CompletedProcess[str]"]

SMALL = [
    "--end", "0.2", "--set", "segment_frames=1", "--set", "keyframe_interval=1", "--set", "batch=1",
    "--set", "steps=1", "--device", "cpu",
]  # fmt: skip


def packets(path: Path) -> list[bytes]:
    """The coded frames of a video, in the order of the file."""
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(video=0) if p.size]


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


def refused(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str | Path], code: int, *words: str
) -> str:
    """Run the command in this process; it must end with ``code``, one line, and nothing left behind."""
    before = {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
    returned = main([str(a) for a in arguments])
    said = capsys.readouterr()
    last = said.err.strip().splitlines()[-1]
    assert (returned, last.startswith("ldvid: error: ")) == (code, True), said.err
    assert said.err.count("ldvid: error:") == 1
    assert "Traceback" not in said.err
    assert said.out == ""
    for word in words:
        assert word in last
    after = {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
    assert after == before, "nothing may be left behind or touched"
    return last


@pytest.fixture(scope="session")
def swapped(
    ldvid: Command, example_clip: Path, example_face: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The small swap run to its end, under the default output name, with ``--json``."""
    folder = tmp_path_factory.mktemp("whole")
    clip = shutil.copy(example_clip, folder / "clip.mp4")
    run = ldvid("swap", clip, "--source", example_face, *SMALL, "--json")
    assert run.returncode == 0, run.stderr
    return folder / "clip.swapped.mp4", run


# ---- what it makes and says


def test_a_swap_changes_the_face_and_nothing_else(
    swapped: tuple[Path, subprocess.CompletedProcess[str]], example_clip: Path
) -> None:
    output, _ = swapped
    original, result = pictures(example_clip)[:3], pictures(output)
    assert len(result) == 3
    for before, after in zip(original, result, strict=True):
        assert after.shape == before.shape
        difference = np.abs(after.astype(int) - before).mean(2)
        rows, columns = np.nonzero(cv2.blur(difference.astype(np.float32), (9, 9)) > 12)
        assert len(rows) > 100, "the face must have changed"
        assert np.ptp(rows) < 200 and np.ptp(columns) < 200, "only a face-sized region may change"
        outside = np.ones(difference.shape, bool)
        pad = 24
        outside[
            max(rows.min() - pad, 0) : rows.max() + pad, max(columns.min() - pad, 0) : columns.max() + pad
        ] = 0
        assert difference[outside].mean() < 2


def test_the_summary_is_json_on_stdout_alone(
    swapped: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    output, run = swapped
    summary = json.loads(run.stdout)
    assert summary["output"] == str(output)
    assert (summary["frames"], summary["frames_swapped"], summary["faces"]) == (3, 3, 1)
    assert (summary["segments"], summary["segments_resumed"]) == (3, 0)
    assert summary["device"] == "cpu"
    assert {"analyse", "swap", "encode", "finish"} <= summary["seconds"].keys()
    assert all(seconds >= 0 for seconds in summary["seconds"].values())
    assert all(summary["seconds"][stage] > 0 for stage in ("detect", "swap", "encode"))
    assert 2**28 < summary["peak_memory"] < 4 * 2**30


def test_progress_is_plain_lines_without_a_terminal(
    swapped: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    lines = swapped[1].stderr.strip().splitlines()
    assert all(line.startswith("ldvid: ") for line in lines), "the libraries' chatter must not show"
    assert len(lines) < 40
    assert "\x1b" not in swapped[1].stderr
    for stage in ("analyse", "swap", "encode", "finish"):
        assert any(f"{stage}: 3/3 frames" in line and "frames/s" in line for line in lines)


def test_nothing_but_the_output_and_its_record_is_left(
    swapped: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    names = sorted(p.name for p in swapped[0].parent.iterdir())
    assert names == ["clip.mp4", "clip.swapped.mp4", "clip.swapped.mp4.json"]


def test_the_output_is_marked(
    swapped: tuple[Path, subprocess.CompletedProcess[str]], example_clip: Path, example_face: Path
) -> None:
    import hashlib

    output, _ = swapped
    with av.open(str(output)) as container:
        tags = dict(container.metadata)
    assert tags["comment"].startswith("Altered by AI")
    assert f"ldvid {__version__}" in tags["comment"]
    assert tags["digital_source_type"] == DIGITAL_SOURCE_TYPE
    assert DIGITAL_SOURCE_TYPE.endswith("compositeWithTrainedAlgorithmicMedia")
    record = json.loads(output.with_name("clip.swapped.mp4.json").read_text())
    sha256 = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in (example_clip, example_face, output)}
    assert record["input"]["sha256"] == sha256[example_clip]
    assert record["source"]["sha256"] == sha256[example_face]
    assert record["output"] == {"name": "clip.swapped.mp4", "sha256": sha256[output]}
    assert record["digital_source_type"] == DIGITAL_SOURCE_TYPE
    assert record["frames_swapped"] == [[0, 2]]
    assert (record["seed"], record["settings"]["steps"]) == (0, 1)
    assert record["pack"]["name"] == "starter"
    assert record["versions"]["ldvid"] == __version__
    assert {"torch", "av"} <= record["versions"].keys()
    assert str(example_clip.parent) not in json.dumps(record), "a record must not give away folders"


def test_the_length_of_segments_changes_no_byte(
    ldvid: Command, example_clip: Path, example_face: Path, tmp_path: Path
) -> None:
    """Two frames a batch, so that short segments leave batches half empty."""
    made = []
    for frames in (1, 4):
        output = tmp_path / f"{frames}.mp4"
        run = ldvid(
            "swap", example_clip, "-s", example_face, "-o", output, "--end", "0.3", "--device", "cpu",
            "--json", "--set", "steps=1", "--set", "batch=2", "--set", "keyframe_interval=1",
            "--set", f"segment_frames={frames}",
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        made.append((json.loads(run.stdout)["segments"], output.read_bytes()))
    assert [count for count, _ in made] == [4, 1]
    assert made[0][1] == made[1][1]


# ---- stopping and going on


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Until a file is there; fails if the process ends first."""
    until = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.01)


def test_killed_then_interrupted_then_finished_gives_the_same_bytes(
    swapped: tuple[Path, subprocess.CompletedProcess[str]],
    ldvid: Command,
    command_line: list[str],
    environment: dict[str, str],
    example_clip: Path,
    example_face: Path,
    tmp_path: Path,
) -> None:
    output, job = tmp_path / "clip.swapped.mp4", tmp_path / "clip.swapped.mp4.ldvid-job"
    clip = shutil.copy(example_clip, tmp_path / "clip.mp4")
    arguments = ["swap", str(clip), "--source", str(example_face), *SMALL]

    def start() -> subprocess.Popen[str]:
        command = [*command_line, *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    first = start()
    wait_for(job / "segments/000000.json", first)
    first.kill()
    first.communicate()
    assert not output.exists()
    kept = (job / "segments/000000.json").stat().st_mtime_ns

    second = start()
    wait_for(job / "segments/000001.json", second)
    second.send_signal(signal.SIGINT)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 130, err
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("ldvid: error: stopped")
    assert str(job) in last and "same command" in last
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", job.name], "no half-written output"

    changed = ldvid(*arguments, "--set", "steps=2")
    assert (changed.returncode, "steps: 1 → 2" in changed.stderr) == (8, True), changed.stderr

    assert (job / "segments/000000.json").stat().st_mtime_ns == kept, "a finished segment is not done again"
    last_run = ldvid(*arguments, "--json")
    assert last_run.returncode == 0, last_run.stderr
    assert json.loads(last_run.stdout)["segments_resumed"] >= 2
    assert output.read_bytes() == swapped[0].read_bytes()
    assert not job.exists()


def test_disk_full_is_said_and_costs_nothing_done(
    ldvid: Command, example_clip: Path, example_face: Path, tmp_path: Path
) -> None:
    """A limit on file size makes writes fail as a full disk does, once the job is under way."""

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    output = tmp_path / "out.mp4"
    arguments = ("swap", example_clip, "-s", example_face, "-o", output, *SMALL)
    run = ldvid(*arguments, preexec_fn=small_files)
    assert run.returncode == 6, run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ldvid: error: ")
    assert "Traceback" not in run.stderr
    assert "File too large" in last
    assert "the same command goes on" in last
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4.ldvid-job"]
    assert not [p for p in (tmp_path / "out.mp4.ldvid-job").rglob("*") if "tmp" in p.name or "part" in p.name]


# ---- bad input: one line, an exit code, nothing left behind


@pytest.fixture
def folder(tmp_path: Path, example_clip: Path, example_face: Path) -> Path:
    """A folder with a clip and a face, where nothing else may appear."""
    shutil.copy(example_clip, tmp_path / "clip.mp4")
    shutil.copy(example_face, tmp_path / "face.png")
    return tmp_path


def test_no_such_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, face = folder / "clip.mp4", folder / "face.png"
    refused(capsys, folder, ["swap", folder / "none.mp4", "-s", face], 3, "none.mp4", "no such file")
    refused(
        capsys, folder, ["swap", clip, "-s", folder / "none.png"], 3, "none.png", "no such file", "--source"
    )
    refused(capsys, folder, ["swap", clip, "-s", folder], 3, "--source must be a picture")
    refused(capsys, folder, ["swap", clip, "-s", face, "-o", folder / "a/b.mp4"], 6, "there is no folder")


def test_not_a_video(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "notes.mp4").write_text("dear diary " * 500)
    refused(
        capsys,
        folder,
        ["swap", folder / "notes.mp4", "-s", folder / "face.png"],
        3,
        "notes.mp4",
        "not a video",
    )
    (folder / "frames").mkdir()
    (folder / "frames/readme.txt").write_text("no pictures")
    refused(capsys, folder, ["swap", folder / "frames", "-s", folder / "face.png"], 3, "frames")


def test_zero_frames(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "empty.mp4").write_bytes(b"")
    refused(capsys, folder, ["swap", folder / "empty.mp4", "-s", folder / "face.png"], 3, "empty")
    with av.open(str(folder / "none.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, width=64, height=64, pix_fmt="yuv420p")
        container.start_encoding()
        container.mux(stream.encode(None))
    refused(capsys, folder, ["swap", folder / "none.mkv", "-s", folder / "face.png"], 3, "none.mkv")


def test_a_truncated_file_says_what_could_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (folder / "clip.mp4").read_bytes()
    with av.open(str(folder / "clip.mp4")) as container, av.open(str(folder / "clip.mkv"), "w") as copy:
        stream = container.streams.video[0]
        out = copy.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.size:
                packet.stream = out
                copy.mux(packet)
    matroska = (folder / "clip.mkv").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "cut.mkv").write_bytes(matroska[: len(matroska) * 2 // 3])
    for name in ("cut.mp4", "cut.mkv"):
        line = refused(capsys, folder, ["swap", folder / name, "-s", folder / "face.png"], 3, name)
        assert re.search(r"first \d+ frames .* could be read", line) and "--end" in line, line


def test_bad_source_pictures(folder: Path, capsys: pytest.CaptureFixture[str], test_data: Path) -> None:
    clip = folder / "clip.mp4"
    (folder / "text.png").write_text("no picture")
    refused(capsys, folder, ["swap", clip, "-s", folder / "text.png"], 3, "text.png")
    cv2.imwrite(str(folder / "grey.png"), np.full((300, 300, 3), 128, np.uint8))
    refused(capsys, folder, ["swap", clip, "-s", folder / "grey.png"], 4, "grey.png", "no face")
    two = test_data / "two-faces.jpg"
    refused(
        capsys, folder, ["swap", clip, "-s", two, "--source-face", "5"], 4, "two-faces.jpg", "--source-face"
    )


def test_no_face_in_the_clip(folder: Path, capsys: pytest.CaptureFixture[str], test_data: Path) -> None:
    clip = Path(shutil.copy(test_data / "no-face.mp4", folder / "bottles.mp4"))
    refused(capsys, folder, ["swap", clip, "-s", folder / "face.png"], 4, "no face", "--allow-no-face")


def test_a_copy_if_allowed_and_a_warning_if_the_source_has_two_faces(
    folder: Path, capsys: pytest.CaptureFixture[str], test_data: Path
) -> None:
    clip = Path(shutil.copy(test_data / "no-face.mp4", folder / "bottles.mp4"))
    output = folder / "copy.mp4"
    source = test_data / "two-faces.jpg"
    code = main(["swap", str(clip), "-s", str(source), "-o", str(output), "--allow-no-face", "--json", "-q"])
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    summary = json.loads(said.out)
    assert (summary["faces"], summary["frames_swapped"], summary["frames"]) == (0, 0, 24)
    warnings = " ".join(summary["warnings"])
    assert "no face" in warnings and "2 faces" in warnings and "--source-face" in warnings
    assert output.read_bytes() == clip.read_bytes()
    with av.open(str(output)) as container:
        assert "digital_source_type" not in container.metadata
        assert "Altered" not in container.metadata.get("comment", "")
    record = json.loads((folder / "copy.mp4.json").read_text())
    assert record["frames_swapped"] == [] and record["digital_source_type"] is None


def test_what_is_there_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, face = folder / "clip.mp4", folder / "face.png"
    for name in ("clip.swapped.mp4", "clip.swapped.mp4.json"):
        (folder / name).write_bytes(b"mine")
        refused(capsys, folder, ["swap", clip, "-s", face], 5, name, "--overwrite")
        (folder / name).unlink()
    refused(capsys, folder, ["swap", clip, "-s", face, "-o", clip, "--overwrite"], 2, "input")
    (folder / "taken").mkdir()
    refused(capsys, folder, ["swap", clip, "-s", face, "-o", folder / "taken", "--overwrite"], 5, "taken")
    (folder / "job").mkdir()
    (folder / "job/mine.txt").write_text("mine")
    refused(capsys, folder, ["swap", clip, "-s", face, "--job", folder / "job", "--restart"], 8, "mine.txt")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "best"], "--preset best"),
        (["--set", "stepz=3"], "stepz"),
        (["--set", "steps=0"], "steps"),
        (["--set", "codec=\"nosuchcodec\""], "nosuchcodec"),
        (["--start", "two"], "--start two"),
        (["--start", "3", "--end", "2"], "--end 2"),
        (["--device", "tpu"], "--device"),
        (["--source-face", "0"], "--source-face"),
        (["--seed", "x"], "--seed"),
        (["--job", "none/such"], "--job"),
        (["--config", "none.toml"], "none.toml"),
        (["--output", "out.txt"], "out.txt"),
        (["--output", "out.webm"], "libx264"),
        (["--output", "noext"], "-o noext"),
        (["--frobnicate"], "--frobnicate"),
    ],
)  # fmt: skip
def test_bad_flags_are_usage_errors(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(folder)  # relative names lie where anything left behind would be seen
    refused(capsys, folder, ["swap", folder / "clip.mp4", "-s", folder / "face.png", *arguments], 2, words)


def test_missing_pieces_are_usage_errors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole: list[str | Path] = ["swap", folder / "clip.mp4", "-s", folder / "face.png"]
    refused(capsys, folder, ["swap"], 2, "CLIP")
    refused(capsys, folder, whole[:2], 2, "--source")
    refused(capsys, folder, ["swop"], 2, "swop")
    refused(capsys, folder, [*whole, "--pack", "x"], 7, "--pack x")
    refused(capsys, folder, [*whole, "--start", "99"], 3, "--start")
    unknown = [*whole, "--set", "guidance.smile.scale=3"]  # known only once torch is there: nothing is left
    refused(capsys, folder, unknown, 2, "guidance term smile", "identity")


def test_debug_shows_where_and_a_defect_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    arguments = ["swap", str(folder / "none.mp4"), "-s", str(folder / "face.png")]
    assert main([*arguments, "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err

    def broken(*_: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("ldvid.pipeline.swap.swap_clip", broken)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("ldvid: error: RuntimeError: two lines") and said.count("\n") == 1
    assert "--debug" in said


def test_ctrl_c_that_a_library_wraps_is_no_defect(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """As torch does, when Ctrl-C comes while it is being imported."""

    def wrapped(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as stop:
            raise RuntimeError("Error calling __set_name__") from stop

    monkeypatch.setattr("ldvid.pipeline.swap.swap_clip", wrapped)
    assert main(["swap", str(folder / "clip.mp4"), "-s", str(folder / "face.png")]) == 130
    assert capsys.readouterr().err == "ldvid: error: stopped\n"


# ---- small things


def test_version_and_presets_are_quick_and_load_no_torch(ldvid: Command) -> None:
    began = time.monotonic()
    assert ldvid("--version").stdout == f"ldvid {__version__}\n"
    table = ldvid("presets")
    took = time.monotonic() - began
    assert all(name in table.stdout for name in preset_names())
    presets = json.loads(ldvid("presets", "--json").stdout)
    assert set(presets) == set(preset_names())
    assert presets["cpu"]["pack"] == "starter"
    assert took < 6, f"{took:.1f} s for two commands"
    script = (
        "import sys; from ldvid.cli import main; main(['presets']); import ldvid.pipeline.swap;"
        "print('loaded:', *{'torch', 'av', 'cv2', 'ray'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.splitlines()[-1].strip()) == (0, "loaded:"), run.stderr


def test_no_arguments_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "swap" in capsys.readouterr().out
    assert main(["swap", "--help"]) == 0
    text = capsys.readouterr().out
    flags = (
        "source output preset pack seed start end job debug overwrite restart keep-job source-face "
        "allow-no-face device set config json quiet"
    )
    for flag in flags.split():
        assert f"--{flag} " in text


def test_a_terminal_gets_bars_and_a_table(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    listener = open_listener(stream=screen)
    listener.start("swap", 8, done=3)
    listener.advance("swap", 5)
    listener.warn("two [faces]")
    listener.finish("swap")
    listener.close()
    text = screen.getvalue()
    assert "swap" in text and "8/8" in text and "ldvid: warning: two [faces]" in text
    assert isinstance(open_listener(quiet=True, stream=screen), Silent)
    summary = Summary(
        tmp_path / "o.mp4", tmp_path / "o.mp4.json", 8, 5, 2, 3, 1, {"swap": 67.0}, (), "cpu", 2**30
    )
    for stream in (Terminal(), io.StringIO()):
        print_summary(summary, stream)
        flat = re.sub(r"[\s│]", "", stream.getvalue())
        for word in ("facesfound", "5of8", "1:07", "1024MiB", "o.mp4.json"):
            assert word in flat


def test_lines_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ldvid.pipeline.progress.time.monotonic", lambda: now[0])
    log = io.StringIO()
    lines = Lines(log, interval=5)
    lines.start("swap", 100, done=50)
    for _ in range(50):
        now[0] += 1
        lines.advance("swap")
    lines.finish("swap")
    said = log.getvalue().splitlines()
    assert len(said) == 11
    assert said[0] == "ldvid: swap: 55/100 frames, 1.00 frames/s, 45.0 s left"
    assert said[-1] == "ldvid: swap: 100/100 frames, 1.00 frames/s, 50.0 s"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("12.5", 12.5), (".5", 0.5), ("90", 90), ("200ms", 0.2), ("5s", 5), ("1:02", 62),
     ("00:01:02.5", 62.5), ("10:00:00", 36000), ("1500us", 0.0015)],
)  # fmt: skip
def test_times_as_ffmpeg_reads_them(text: str, seconds: float) -> None:
    assert parse_time(text, "--start") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-1", "1:60", "1:99:00", "1:2:3:4", "nan", "1e3", "5 s", "1:02ms"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--end"):
        parse_time(text, "--end")


def test_peak_memory_is_the_commands_own_not_its_parents() -> None:
    inner = "from ldvid.pipeline.progress import peak_memory; print(peak_memory())"
    outer = (
        "import subprocess, sys; held = b'x' * 500_000_000\n"
        f"print(subprocess.check_output([sys.executable, '-c', {inner!r}], text=True))"
    )
    done = subprocess.run([sys.executable, "-c", outer], capture_output=True, text=True, check=True)
    assert 5_000_000 < int(done.stdout) < 400_000_000
