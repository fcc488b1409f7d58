"""``ldvid batch``: failures, resume, a cluster shared by long and short clips."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
from ldvid.cli import main
from ldvid.configs import load_settings
from ldvid.pipeline.batch_places import Hashes, differences, read_record
from ldvid.pipeline.batch_progress import BatchProgress, ClipListener
from ldvid.pipeline.batch_report import Result
from ldvid.pipeline.files import sha256_of
from ldvid.pipeline.lock import acquire, release
from ldvid.pipeline.request import SwapRequest
from ldvid.stages.swap.pack import Pack

SMALL = [
    "--set", "steps=1", "--set", "segment_frames=2", "--set", "keyframe_interval=2", "--set", "batch=2",
    "--set", "guidance=[]", "--set", "steady=0.4", "--device", "cpu", "--threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, example_clip: Path, example_face: Path, test_data: Path
) -> Path:
    """A folder after a batch of six clips, of which three failed; ``said`` holds its stdout and code."""
    folder = tmp_path_factory.mktemp("batch")
    (folder / "takes").mkdir()
    shutil.copy(example_clip, folder / "takes/a.mp4")
    shutil.copy(test_data / "no-face.mp4", folder / "takes/empty.mp4")
    (folder / "takes/cut.mp4").write_bytes(example_clip.read_bytes()[:5000])
    shutil.copy(example_face, folder / "face.png")
    shutil.copy(example_face.with_name("face-2.png"), folder / "other.png")
    (folder / "list.csv").write_text(
        "clip,output,start,end,source,seed\n"
        "takes/a.mp4,,,0.2,,\n"
        "takes/empty.mp4,,,0.2,,\n"
        "takes/gone.mp4,,,,,\n"
        "takes/a.mp4,two/second.mkv,1,1.2,other.png,5\n"
        "takes/cut.mp4,,,,,\n"
    )
    return folder


def run(
    folder: Path, *more: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, results and stderr of the batch of ``made``."""
    capsys.readouterr()
    call = ["batch", "list.csv", "-s", "face.png", "-o", "out", *SMALL, "--json", *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code = main(call)
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else [], said.err


def states(results: list[dict[str, Any]]) -> dict[str, str]:
    return {Path(r["output"]).name: r["state"] for r in results}


def test_a_batch_goes_on_past_failures_and_ends_with_what_became_of_each(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, results, told = run(made, capsys=capsys)
    assert code == 103
    assert states(results) == {
        "a.mp4": "done", "empty.mp4": "failed", "gone.mp4": "failed", "second.mkv": "done",
        "cut.mp4": "failed",
    }  # fmt: skip
    reasons = {Path(r["output"]).name: r["reason"] for r in results}
    assert "no face was found" in reasons["empty.mp4"]
    assert "no such file" in reasons["gone.mp4"]
    assert reasons["cut.mp4"].startswith("its first frame can't be decoded")
    assert [(r["frames"], r["frames_swapped"]) for r in results if r["state"] == "done"] == [(3, 3), (3, 3)]
    assert "2 done, 3 failed" in told
    out = made / "out"
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*")) == [
        "a.mp4", "a.mp4.json", "batch.json", "two", "two/second.mkv", "two/second.mkv.json",
    ]  # fmt: skip
    assert json.loads((out / "batch.json").read_text())["clips"] == results
    record = json.loads((out / "two/second.mkv.json").read_text())
    assert (record["input"]["start"], record["seed"], record["source"]["name"]) == (1.0, 5, "other.png")
    with av.open(str(out / "two/second.mkv")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3

    # The same again, with the faults mended: only those are swapped.
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.m*") if p.suffix != ".json"}
    shutil.copy(made / "takes/a.mp4", made / "takes/gone.mp4")
    text = (made / "list.csv").read_text().replace("gone.mp4,,,,,", "gone.mp4,,2,2.1,,")
    (made / "list.csv").write_text(text)
    code, results, _ = run(made, capsys=capsys)
    assert code == 102
    assert states(results) == {
        "a.mp4": "done before", "empty.mp4": "failed", "gone.mp4": "done", "second.mkv": "done before",
        "cut.mp4": "failed",
    }  # fmt: skip
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert [r["frames_swapped"] for r in results if r["state"] == "done before"] == [3, 3]

    # With --allow-no-face and without the damaged one there is nothing to complain of.
    (made / "list.csv").write_text("".join(text.splitlines(keepends=True)[:-1]))
    code, results, _ = run(made, "--allow-no-face", capsys=capsys)
    assert (code, states(results)["empty.mp4"]) == (0, "done")
    assert any("copy" in w for r in results for w in r["warnings"])


def test_an_output_of_something_else_is_refused_for_its_clip_alone(
    made: Path, tmp_path: Path, example_clip: Path, pack: Pack
) -> None:
    """``differences`` on a real output: each thing that it depends on, and nothing else."""
    file = made / "out/two/second.mkv"
    chosen = load_settings("cpu", overrides={"seed": 5}, assignments=SMALL[1:12:2])
    same = SwapRequest(made / "takes/a.mp4", made / "other.png", chosen, start=1.0, end=1.2)
    record = read_record(file)
    assert record is not None

    def differs(request: SwapRequest, digest: str = pack.digest(), output: Path = file) -> list[str]:
        return differences(request, output, record, digest, Hashes())

    assert differs(same) == []
    assert differs(replace(same, device="cuda", overwrite=True)) == []
    assert differs(replace(same, settings=chosen.model_copy(update={"seed": 6}))) == ["settings"]
    assert differs(replace(same, start=None, source_face=1)) == ["start", "source face"]
    assert differs(replace(same, source=made / "face.png")) == ["source"]
    assert differs(replace(same, clip=made / "takes/empty.mp4")) == ["clip"]
    assert differs(same, digest="0" * 64) == ["model pack"]
    changed = tmp_path / "second.mkv"
    changed.write_bytes(file.read_bytes()[:-1] + b"x")
    assert "the file itself" in differs(same, output=changed)[0]


def test_what_is_in_the_way_fails_its_clip_unless_overwritten(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made / "list.csv").write_text("clip,end,seed\ntakes/a.mp4,0.2,9\ntakes/gone.mp4,0.2,\n")
    mine = made / "out/gone.mp4"
    old = sha256_of(made / "out/a.mp4")
    mine.write_bytes(b"mine")
    code, results, _ = run(made, capsys=capsys)
    assert code == 102
    assert "out/a.mp4 exists and differs in: settings" in results[0]["reason"]
    assert "changed" in results[1]["reason"] or "start" in results[1]["reason"]
    assert mine.read_bytes() == b"mine"
    assert sha256_of(made / "out/a.mp4") == old
    code, results, _ = run(made, "--overwrite", capsys=capsys)
    assert (code, set(states(results).values())) == (0, {"done"})
    assert sha256_of(made / "out/a.mp4") != old
    code, results, _ = run(made, "--overwrite", capsys=capsys)  # not for ever
    assert (code, set(states(results).values())) == (0, {"done before"})


@pytest.mark.parametrize(
    ("list_text", "more", "code", "said"),
    [
        ("clip\ntakes/a.mp4\n", [], 2, "line 2: names no source"),
        ("clip,preset\ntakes/a.mp4,nosuch\n", ["-s", "face.png"], 2, "line 2: .*nosuch"),
        ("clip\ntakes/a.mp4\n", ["-s", "nosuch.png"], 3, "nosuch.png: no such file; .*--source"),
        ("clip\ntakes/a.mp4\n", ["-s", "face.png", "--pack", "nosuch"], 7, "nosuch"),
        (
            "clip\ntakes/a.mp4\n",
            ["-s", "face.png", "--at-once", "3"],
            2,
            "--at-once: only with --executor ray",
        ),
    ],
)
def test_what_concerns_the_whole_batch_is_refused_before_any_work(
    made: Path, capsys: pytest.CaptureFixture[str], list_text: str, more: list[str], code: int, said: str
) -> None:
    (made / "bad.csv").write_text(list_text)
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        assert main(["batch", "bad.csv", "-o", "refused", *more]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(said, error), error
    assert not list((made / "refused").rglob("*.mp4")) and not (made / "refused/.ldvid-jobs").exists()


def test_two_batches_do_not_meet_in_one_folder(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = made / "out/.ldvid-jobs"
    jobs.mkdir(exist_ok=True)
    before = (made / "out/batch.json").read_bytes()
    held = acquire(jobs)
    try:
        code, results, told = run(made, capsys=capsys)
    finally:
        release(held)
    assert (code, results) == (8, [])
    assert "-o out: another batch is at work in it" in told
    assert (made / "out/batch.json").read_bytes() == before


# stopped and continued


def test_a_clip_breaks_off_when_told_but_not_while_its_output_is_put_in_place() -> None:
    stop = threading.Event()
    listener = ClipListener(BatchProgress(None), "a.mp4", stop)
    listener.start("analyse", 9)
    listener.advance("analyse", 2)
    stop.set()
    for call in (lambda: listener.advance("analyse"), lambda: listener.start("encode", 9)):
        with pytest.raises(KeyboardInterrupt):
            call()
    listener.start("finish", 9)
    listener.advance("finish", 9)
    listener.finish("finish")
    listener.close()


def test_progress_counts_no_frames_that_will_not_come() -> None:
    """Frames of clips that failed are neither done nor awaited; those done by an earlier run are done."""
    stream = io.StringIO()
    progress = BatchProgress(stream)
    progress.start(2, 0)
    for name, done in (("a.mp4", 0), ("b.mp4", 6)):
        listener = ClipListener(progress, name, threading.Event())
        listener.start("encode", 10, done)
        listener.advance("encode", 3)
        listener.close()
    progress.ended(Result("a.mp4", "out/a.mp4").failed("a.mp4: why"))
    assert progress.totals() == {"clips": (1, 2), "analysed": (0, 0), "rendered": (12, 12)}
    assert stream.getvalue() == "ldvid: [1/2] a.mp4: failed: why\n"


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(command_line: list[str], environment: dict[str, str]) -> Start:
    """Starts the real command."""

    def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command_line, *arguments], cwd=folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return begin


def wait_for(what: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 600  # a loaded machine took more than 200
    while not what():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def segments(folder: Path) -> dict[str, int]:
    """The finished segments of all jobs there, and when they were finished."""
    found = folder.glob("out/.ldvid-jobs/*/segments/0*.json")
    return {f"{p.parts[-3]}/{p.name}": p.stat().st_mtime_ns for p in found}


def counts(folder: Path) -> dict[str, int]:
    """How many clips are in which state, so far."""
    file = folder / "out/batch.json"
    return dict(json.loads(file.read_text())["counts"]) if file.exists() else {}


def test_a_batch_that_is_stopped_or_killed_goes_on_inside_its_clips(
    tmp_path: Path, example_clip: Path, example_face: Path, start: Start
) -> None:
    shutil.copy(example_face, tmp_path / "face.png")
    shutil.copy(example_clip, tmp_path / "a.mp4")
    (tmp_path / "list.csv").write_text("clip,end,output\na.mp4,0.1,first.mp4\na.mp4,0.8,long.mp4\n")
    call = ["batch", "list.csv", "-s", "face.png", "-o", "out", *SMALL, "--keep-jobs"]

    running = start(tmp_path, *call)
    wait_for(lambda: any("long.mp4/" in s for s in segments(tmp_path)), running)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "stopped; 1 of 2 clips are done (1 done, 0 failed, 1 waiting); run the same command again" in told
    assert not (tmp_path / "out/long.mp4").exists()
    clips = json.loads((tmp_path / "out/batch.json").read_text())["clips"]
    assert [c["state"] for c in clips] == ["done", "waiting"]

    stopped = segments(tmp_path)
    running = start(tmp_path, *call)
    wait_for(lambda: len(segments(tmp_path)) > len(stopped), running)
    running.kill()
    running.communicate()
    killed = segments(tmp_path)

    running = start(tmp_path, *call, "--json")
    out, told = running.communicate(timeout=200)
    assert running.returncode == 0, told
    assert [r["state"] for r in json.loads(out)] == ["done before", "done"]
    finished = segments(tmp_path)
    assert len(finished) == 1 + 5 > len(killed)
    assert killed.items() <= finished.items()  # nothing was done twice


def test_on_a_cluster_short_clips_overtake_a_long_one(
    tmp_path: Path, example_clip: Path, example_face: Path, start: Start
) -> None:
    pytest.importorskip("ray")
    shutil.copy(example_face, tmp_path / "face.png")
    shutil.copy(example_clip, tmp_path / "long.mp4")
    (tmp_path / "cut.mp4").write_bytes(example_clip.read_bytes()[:5000])
    large_but_short(example_clip, tmp_path / "short1.mkv")
    shutil.copy(tmp_path / "short1.mkv", tmp_path / "short2.mkv")
    # The long one is first in line: of fewer bytes.
    assert (tmp_path / "short1.mkv").stat().st_size > example_clip.stat().st_size
    (tmp_path / "list.csv").write_text("clip,end\nlong.mp4,\nshort1.mkv,0.2\nshort2.mkv,0.2\ncut.mp4,\n")
    call = ["batch", "list.csv", "-s", "face.png", "-o", "out", *SMALL]
    ray = ["--executor", "ray", "--workers", "2", "--retries", "0"]
    out = tmp_path / "out"

    running = start(tmp_path, *call, *ray)
    wait_for(lambda: counts(tmp_path).get("done") == 2 and len(segments(tmp_path)) > 0, running)
    assert not (out / "long.mp4").exists()
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130, told
    assert "stopped; 2 of 4 clips are done (2 done, 1 failed, 1 waiting)" in told
    assert not list(out.glob(".*part*"))

    # One executor takes over from the other.
    kept = segments(tmp_path)
    running = start(tmp_path, *call, "--json", "--keep-jobs")
    text, told = running.communicate(timeout=250)
    assert running.returncode == 101, told
    results = {Path(r["clip"]).name: r for r in json.loads(text)}
    assert {name: r["state"] for name, r in results.items()} == {
        "long.mp4": "done", "short1.mkv": "done before", "short2.mkv": "done before", "cut.mp4": "failed",
    }  # fmt: skip
    assert "can't be decoded" in results["cut.mp4"]["reason"]
    assert results["short1.mkv"]["finished"] < results["long.mp4"]["finished"]
    assert kept.items() <= segments(tmp_path).items()

    # What two workers made among other clips is what one call makes of it alone.
    alone, paths = tmp_path / "alone.mp4", (tmp_path / "short1.mkv", tmp_path / "face.png")
    assert (
        main(["swap", str(paths[0]), "-s", str(paths[1]), "-o", str(alone), "--end", "0.2", *SMALL, "-q"])
        == 0
    )
    assert sha256_of(alone) == sha256_of(out / "short1.mp4") == sha256_of(out / "short2.mp4")


def large_but_short(clip: Path, path: Path) -> None:
    """The first frames of a clip, without loss."""
    with av.open(str(clip)) as given, av.open(str(path), "w") as made:
        stream = made.add_stream("ffv1", rate=12)
        stream.width, stream.height, stream.pix_fmt = 480, 270, "yuv444p"
        for number, frame in enumerate(given.decode(video=0)):
            if number == 16:
                break
            made.mux(
                stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24"))
            )
        made.mux(stream.encode())
