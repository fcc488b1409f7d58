"""``ldvid jobs`` and ``ldvid render``: what a job folder tells, and going on from it alone.

One small swap (two frames, a segment each) is made with ``--job`` by relative paths; tests work on copies
of its folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ldvid.cli import main
from ldvid.configs import load_settings
from ldvid.errors import SettingsError
from ldvid.pipeline.device import cpu_threads
from ldvid.pipeline.job import Identity, Job
from ldvid.pipeline.jobs import JobInfo, job_info, list_jobs, print_jobs
from ldvid.pipeline.ledger import Failure
from ldvid.pipeline.request import SwapRequest
from ldvid.pipeline.resume import request_values, stored_request

MY_TERM = Path(__file__).resolve().parents[1] / "examples/my_term.py"
SMALL = [
    "--end", "0.15", "--set", "segment_frames=1", "--set", "keyframe_interval=1", "--set", "batch=1",
    "--set", "steps=1", "--set", "steady=0", "--set", "fade_frames=0", "--device", "cpu", "--threads", "1",
    "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, example_clip: Path, example_face: Path) -> Path:
    """A folder with clip.mp4, face.png, out.mp4 and its record, and the finished job."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(example_clip, folder / "clip.mp4")
    shutil.copy(example_face, folder / "face.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        call = ["swap", "clip.mp4", "-s", "face.png", "-o", "out.mp4", "--job", "job", *SMALL]
        assert main(call) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of all that, whose job knows where it is now."""
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    edit(copy / "job/job.json", lambda text: text.replace(str(made), str(copy)))
    return copy


def edit(path: Path, change: Callable[[str], str]) -> None:
    old = path.stat()
    text = change(path.read_text())
    path.write_text(text)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(4))


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, b"" if p.is_dir() else p.read_bytes())
        for p in sorted([folder, *folder.rglob("*")])
    }


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(video=0) if p.size]


def leave_second_frame_alone(plan: str) -> str:
    data = json.loads(plan)
    data["tracks"][0]["rows"] = [row for row in data["tracks"][0]["rows"] if row[0] != 1]
    return json.dumps(data)


# ---- ldvid jobs


def test_a_finished_job_tells_all_of_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)
    monkeypatch.setattr(hashlib, "file_digest", None)  # nothing may be hashed
    (info,) = list_jobs([folder / "job"])
    assert contents(folder) == before, "nothing may be changed"
    assert info.state == "finished"
    assert (info.clip, info.output) == (str(folder / "clip.mp4"), str(folder / "out.mp4"))
    assert (info.segments_done, info.segments, info.frames_done, info.frames, info.faces) == (2, 2, 2, 2, 1)
    assert (info.preset, info.pack, info.problem, info.failures) == ("cpu", "starter", None, ())
    assert info.size == sum(p.stat().st_size for p in (folder / "job").rglob("*") if p.is_file())
    newest = max(p.stat().st_mtime for p in (folder / "job/segments").iterdir())
    assert info.idle == pytest.approx(time.time() - newest, abs=5)


@pytest.mark.parametrize(
    ("what", "state"),
    [
        ("nothing", "finished"),
        ("out.mp4", "rendered"),
        ("out.mp4.json", "rendered"),
        ("job/segments/000001.mkv", "stopped"),
        ("job/segments/000000.json", "stopped"),
        ("job/plan.json", "not analysed"),
        ("job/job.json", "no job"),
    ],
)
def test_the_state_follows_from_what_is_there(folder: Path, what: str, state: str) -> None:
    (folder / what).unlink(missing_ok=what == "nothing")
    info = job_info(folder / "job")
    assert info.state == state
    assert (info.problem is None) == (state != "no job")
    if state == "stopped":
        assert (info.segments_done, info.frames_done, info.segments) == (1, 1, 2)


def test_an_edited_plan_and_newer_segments_are_not_finished(folder: Path) -> None:
    later = time.time() + 60
    os.utime(folder / "job/segments/000001.json", (later, later))
    assert job_info(folder / "job").state == "rendered", "the output is of segments before these"
    edit(folder / "job/plan.json", leave_second_frame_alone)
    info = job_info(folder / "job")
    # Both: a segment is made of what is about it, too.
    assert (info.state, info.segments_done) == ("stopped", 0)


@pytest.mark.parametrize(
    ("file", "text"),
    [("job.json", "{"), ("job.json", "[]"), ("job.json", '{"identity": {"colour": 1}}'), ("plan.json", "{}")],
)
def test_a_damaged_job_says_so(
    folder: Path, file: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "job" / file).write_text(text)
    assert main(["jobs", str(folder / "job")]) == 8
    heading, row = capsys.readouterr().out.splitlines()
    cells = dict(zip(heading.split("\t"), row.split("\t"), strict=True))
    assert (cells["state"], cells["job"]) == ("damaged", str(folder / "job"))
    assert file in cells["problem"] or "colour" in cells["problem"]


def test_folders_of_jobs_are_looked_into(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "job", folder / "b.mp4.ldvid-job")
    (folder / "b.mp4.ldvid-job/plan.json").unlink()
    (folder / "notes").mkdir()
    assert main(["jobs", str(folder), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(Path(r["path"]).name, r["state"]) for r in rows] == [
        ("b.mp4.ldvid-job", "not analysed"), ("job", "finished")
    ]  # fmt: skip
    assert main(["jobs", str(folder / "job"), str(folder / "none"), str(folder / "notes"), "--json"]) == 8
    rows = json.loads(capsys.readouterr().out)
    assert [r["state"] for r in rows] == ["finished", "no job", "no job"]
    assert "no such folder" in rows[1]["problem"]


def test_failures_are_shown_until_they_are_overcome(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = folder / "job"
    for number in (0, 1):
        failure = {"segment": number, "stage": "swap", "frame": number, "reason": "gave NaN", "attempts": 3}
        (job / f"segments/{number:06d}.failed.json").write_text(json.dumps(failure))
    (job / "segments/000001.json").unlink()
    assert job_info(job).failures == (Failure(1, "swap", 1, "gave NaN", 3),)
    assert main(["jobs", str(job)]) == 0
    assert capsys.readouterr().out.endswith("\tsegment 1: swap, frame 1: gave NaN (3 attempts)\n")


def test_a_terminal_gets_a_table(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    info = JobInfo(
        tmp_path / "a[b].ldvid-job", "running", segments_done=3, segments=9, idle=3725.0, size=2**21
    )
    print_jobs([info], screen)
    flat = re.sub(r"[\s│]", "", screen.getvalue())
    for word in ("a[b].ldvid-job", "running", "3/9", "1:02:05", "2.0MiB", "segments"):
        assert word in flat
    assert "preset" not in flat, "a column of nothing is left out"


def test_a_job_runs_while_its_process_lives(folder: Path, environment: dict[str, str]) -> None:
    job = folder / "job"
    script = (
        "import json, sys, time; from pathlib import Path; from ldvid.pipeline.job import Identity, Job\n"
        "folder = Path(sys.argv[1]); values = json.loads((folder / 'job.json').read_text())['identity']\n"
        "job = Job.open(folder, Identity.from_values(values)); print('open', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(job)], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == b"open\n"
    assert job_info(job).state == "running"
    (job / "plan.json").rename(job / "plan")
    assert job_info(job).state == "running", "also while it analyses"
    (job / "plan").rename(job / "plan.json")
    holder = json.loads((job / "lock").read_text())
    process.kill()
    process.wait()
    assert job_info(job).state == "finished"
    for change in ({"host": "elsewhere"}, {"pid": os.getpid()}):
        (job / "lock").write_text(json.dumps(holder | change))
        expected = (
            "running" if "host" in change else "finished"
        )  # this process is not the one that began then
        assert job_info(job).state == expected
    with Job.open(job, Identity.from_values(json.loads((job / "job.json").read_text())["identity"])):
        assert job_info(job).state == "running"
    assert job_info(job).state == "finished"


# ---- ldvid render


def test_an_edited_plan_costs_its_segments_and_replaces_only_when_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job, output = folder / "job", folder / "out.mp4"
    first = packets(output)
    whole = output.read_bytes()
    edit(job / "plan.json", leave_second_frame_alone)
    monkeypatch.chdir(tmp_path)  # the paths of the call were relative
    assert main(["render", str(job), "--quiet"]) == 5
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_bytes() == whole
    assert main(["render", str(job), "--overwrite", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    # Its neighbours' too; nothing is averaged or faded here, so they come out as they were.
    assert (summary["segments"], summary["segments_resumed"], summary["frames_swapped"]) == (2, 0, 1)
    again = packets(output)
    assert (again[0] == first[0], again[1] == first[1]) == (True, False)
    record = json.loads((folder / "out.mp4.json").read_text())
    assert record["frames_swapped"] == [[0, 0]]
    assert (record["threads"], record["device"]) == (1, "cpu")
    assert job_info(job).state == "finished", "the job is kept"


def test_a_stopped_job_goes_on_from_its_folder_to_the_same_bytes(folder: Path) -> None:
    job, output = folder / "job", folder / "out.mp4"
    output.rename(folder / "before.mp4")
    (folder / "out.mp4.json").unlink()
    (job / "segments/000001.mkv").unlink()
    assert main(["render", str(job), "-o", str(folder / "other.mp4"), "--quiet"]) == 0
    assert (folder / "other.mp4").read_bytes() == (folder / "before.mp4").read_bytes()
    assert not output.exists()
    assert job_info(job).output == str(folder / "other.mp4"), "the last call's is the job's"


def refused(capsys: pytest.CaptureFixture[str], folder: Path, code: int, *words: str) -> None:
    """``ldvid render`` says so in one line and changes nothing but the lock."""
    before = contents(folder / "job/segments") | contents(folder / "job")
    assert main(["render", str(folder / "job"), "-o", str(folder / "new.mp4"), "--quiet"]) == code
    said = capsys.readouterr().err
    assert said.startswith("ldvid: error: ") and said.count("\n") == 1
    for word in words:
        assert word in said, said
    after = contents(folder / "job/segments") | contents(folder / "job")
    for name in ("lock", "."):
        before.pop(name, None), after.pop(name, None)
    assert after == before
    assert not (folder / "new.mp4").exists()


def test_no_job_no_plan_no_way(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = folder / "job"
    assert main(["render", str(folder / "none")]) == 8
    assert "no job folder" in capsys.readouterr().err
    plan = (job / "plan.json").read_text()
    (job / "plan.json").write_text(plan.replace('"shots"', '"shorts"'))
    refused(capsys, folder, 8, "plan.json", "shots")
    (job / "plan.json").unlink()
    refused(capsys, folder, 8, "not analysed", "swap command")
    (job / "job.json").write_text("{")
    refused(capsys, folder, 8, "job.json", "damaged")


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda f: append(f / "face.png"), 8, "source picture"),
        (lambda f: (f / "face.png").unlink(), 3, "face.png"),
        (lambda f: append(f / "clip.mp4"), 8, "clip's content"),
        (lambda f: edit(f / "job/job.json", lambda t: re.sub(r'(k_digest": ").', r"\1?", t)), 8, "the pack"),
        (lambda f: edit(f / "job/job.json",
                        lambda t: re.sub(r'("identity".*?"device": ")cpu', r"\1GPU", t, flags=re.DOTALL)),
         8, "device: GPU → cpu"),
    ],
    ids=["source", "no source", "clip", "pack", "device"],
)  # fmt: skip
def test_what_changed_is_said(
    folder: Path,
    change: Callable[[Path], object],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(folder)
    refused(capsys, folder, code, words)


def test_a_setting_of_another_version_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "job/job.json"
    values = json.loads(file.read_text())
    values["request"]["settings"]["sparkle"] = 3
    file.write_text(json.dumps(values))
    refused(capsys, folder, 8, "sparkle", "damaged")
    values["identity"]["version"] = "9.9"
    file.write_text(json.dumps(values))
    refused(capsys, folder, 8, "sparkle", "ldvid 9.9 wrote it")
    del values["request"]["settings"]["sparkle"]
    values["request"]["moon"] = 1
    file.write_text(json.dumps(values))
    refused(capsys, folder, 8, "moon", "ldvid 9.9 wrote it")
    del values["request"]
    file.write_text(json.dumps(values))
    refused(capsys, folder, 8, "same swap command")


def test_the_same_swap_command_keeps_a_job_with_a_broken_plan(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is rendered survives a mistake in an editor, and Ctrl-C before the plan is read."""
    call = ["swap", "clip.mp4", "-s", "face.png", "-o", "new.mp4", "--job", "job", *SMALL]
    monkeypatch.chdir(folder)
    plan = Path("job/plan.json").read_text()
    before = contents(folder / "job/segments")
    Path("job/plan.json").write_text("{")
    assert main(call) == 8
    assert "plan.json" in capsys.readouterr().err
    Path("job/plan.json").write_text(plan)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ldvid.stages.swap.guidance.build_terms", stop)
        assert main(call) == 130
    assert "is kept in job" in capsys.readouterr().err
    assert contents(folder / "job/segments") == before
    assert main([*call, "--threads", "2"]) == 8
    assert "differs in: --threads: 1 → 2. " in capsys.readouterr().err


# ---- the stored request


def test_a_users_term_and_a_packs_folder_are_found_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    term = Path(shutil.copy(MY_TERM, tmp_path / "mine"))
    pack = tmp_path / "mine/pack"
    pack.symlink_to(Path(__file__).resolve().parents[1] / "packs/starter")
    monkeypatch.chdir(tmp_path)
    chosen = load_settings(overrides={"pack": "mine/pack"}, guidance=[f"mine/my_term.py:{_class_of(term)}"])
    request = SwapRequest(Path("clip.mp4"), Path("face.png"), chosen)
    store(folder, request_values(request, Path("out.mp4")))
    monkeypatch.chdir("/")
    found = stored_request(folder / "job")
    assert found.settings == chosen and found.settings.digest() == chosen.digest()
    assert found.settings.guidance[-1].file == term
    assert found.pack_folder is not None and (found.pack_folder / "pack.toml").is_file()
    assert found.output == tmp_path / "out.mp4"
    term.write_text(term.read_text() + "\n# changed\n")
    assert stored_request(folder / "job").settings.digest() != chosen.digest()
    term.unlink()
    with pytest.raises(SettingsError, match=r"my_term\.py"):
        stored_request(folder / "job")


def _class_of(term: Path) -> str:
    return re.findall(r"^class (\w+)", term.read_text(), re.M)[-1]


def store(folder: Path, request: dict[str, object]) -> None:
    file = folder / "job/job.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"request": request}))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.text("aé 中.\"'\\", min_size=1, max_size=9).filter(lambda n: n.strip(". ")),
    start=st.none() | st.floats(0, 1e6),
    end=st.none() | st.floats(0, 1e6),
    face=st.none() | st.integers(1, 9),
    flags=st.tuples(*[st.booleans()] * 3),
    step=st.floats(1e-9, 1e9),
    preset=st.sampled_from(["cpu", "fast", "quality", "paper"]),
)
def test_any_request_reads_back_as_it_was(
    folder: Path,
    name: str,
    start: float | None,
    end: float | None,
    face: int | None,
    flags: tuple[bool, bool, bool],
    step: float,
    preset: str,
) -> None:
    chosen = load_settings(preset, assignments=["pack='starter'"]).model_copy(update={"step_size": step})
    clip = Path.cwd() / name
    request = SwapRequest(
        clip, clip, chosen, clip, start, end, folder / "job", flags[0], False, flags[1], "cpu", face, flags[2]
    )
    store(folder, request_values(request, clip))
    found = stored_request(folder / "job")
    assert found == replace(request, threads=1), "the threads are those the job was begun with"
    assert found.settings.digest() == chosen.digest()


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before
    with cpu_threads(None):
        assert torch.get_num_threads() == before


def test_a_plan_that_is_no_text_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "job/plan.json").write_bytes(b"\xff\xfe")
    assert job_info(folder / "job").state == "damaged"
    refused(capsys, folder, 8, "plan.json")
