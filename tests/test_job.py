"""The job folder: resume, refusal in words, the lock, and that nothing of anyone else's is touched."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from ldvid.configs import load_settings
from ldvid.errors import InputError, JobError, OutputError, OutputExistsError, SettingsError
from ldvid.pipeline.files import sha256_of, write_atomic
from ldvid.pipeline.job import Identity, Job
from ldvid.pipeline.ledger import Done, Failure, Ledger
from ldvid.pipeline.local import prefetch, run_segments
from ldvid.pipeline.plan import Plan, cut_segments
from ldvid.pipeline.target import (
    check_inputs,
    check_output,
    check_replaced,
    default_output,
    put_in_place,
    staged,
    uninterrupted,
)
from ldvid.stages.records import ClipInfo, Segment, Track

SETTINGS = load_settings("cpu")


def identity(**changes: object) -> Identity:
    assignments = changes.pop("assignments", [])
    settings = load_settings("cpu", assignments=assignments)  # type: ignore[arg-type]
    base = Identity(
        clip="clip.mp4",
        clip_sha256="c" * 64,
        start=None,
        end=2.0,
        source_sha256="s" * 64,
        source_face=None,
        settings=settings.model_dump(mode="json"),
        settings_digest=settings.digest(),
        pack="starter",
        pack_digest="p" * 64,
        version="0.1.0",
        threads=2,
        device="cpu",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture
def plan() -> Plan:
    n = 30
    clip = ClipInfo(
        Path("clip.mp4"), "video", 64, 64, Fraction(1, 25), Fraction(25), "yuv420p", "h264",
        timestamps=tuple(range(n)), durations=(1,) * n,
    )  # fmt: skip
    track = Track(
        0, 0, np.arange(n), np.zeros((n, 4), np.float32), np.zeros((n, 5, 2), np.float32),
        np.ones(n, np.float32), np.ones(4, np.float32),
    )  # fmt: skip
    return Plan(clip, ((0, n),), (track,), {0: 0}, cut_segments([(0, n)], 10))


def render(job: Job, plan: Plan, index: int, content: bytes = b"video") -> None:
    path = job.segments_folder / f"{index:06d}.mkv"
    path.write_bytes(content + bytes([index]))
    segment = plan.segments[index]
    job.record(plan, segment, path, range(segment.start, segment.stop))


def test_a_job_goes_on_where_it_was(tmp_path: Path, plan: Plan) -> None:
    with Job.open(tmp_path / "job", identity()) as job:
        assert job.load_plan() is None
        saved = job.save_plan(plan)
        render(job, saved, 0)
        render(job, saved, 2)
    with Job.open(tmp_path / "job", identity()) as job:
        again = job.load_plan()
        assert again is not None
        assert again.to_json() == saved.to_json()
        done = job.finished(again)
        assert sorted(done) == [0, 2]
        assert done[2].swapped == ((20, 29),)
        assert done[0].path.read_bytes() == b"video\x00"


def test_what_the_ledger_does_not_vouch_for_is_done_again(tmp_path: Path, plan: Plan) -> None:
    with Job.open(tmp_path / "job", identity()) as job:
        for index in range(3):
            render(job, plan, index)
        folder = job.segments_folder
        (folder / "000000.mkv").write_bytes(b"damaged")
        (folder / "000001.mkv").unlink()
        (folder / ".000002.mkv.tmp").write_bytes(b"half")
        assert sorted(job.finished(plan)) == [2]
        assert sorted(p.name for p in folder.iterdir()) == ["000002.json", "000002.mkv"]
        (folder / "000002.json").write_text('{"digest":')
        assert job.finished(plan) == {}


def test_an_edited_plan_costs_only_its_segments(tmp_path: Path, plan: Plan) -> None:
    with Job.open(tmp_path / "job", identity()) as job:
        saved = job.save_plan(plan)
        for index in range(3):
            render(job, saved, index)
        file = job.folder / "plan.json"
        data = json.loads(file.read_text())
        data["tracks"][0]["rows"] = [r for r in data["tracks"][0]["rows"] if r[0] != 25]
        file.write_text(json.dumps(data))
        edited = job.load_plan()
        assert edited is not None
        assert sorted(job.finished(edited)) == [0], "what was edited, and what looks at those frames"


def test_a_plan_that_would_not_read_back_replaces_none(tmp_path: Path, plan: Plan) -> None:
    with Job.open(tmp_path / "job", identity()) as job:
        saved = job.save_plan(plan)
        with pytest.raises(JobError, match="shots end at frame 20"):
            job.save_plan(replace(plan, shots=((0, 20),)))
        again = job.load_plan()
        assert again is not None and again.to_json() == saved.to_json()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"assignments": ["steps=11"]}, f"steps: {SETTINGS.steps} → 11"),
        ({"assignments": ["segment_frames=96"]}, f"segment_frames: {SETTINGS.segment_frames} → 96"),
        ({"source_sha256": "t" * 64}, "the source picture"),
        ({"clip_sha256": "d" * 64}, "the clip's content"),
        ({"pack_digest": "q" * 64}, "the files of the pack"),
        ({"end": None}, "--end: 2.0 → none"),
        ({"source_face": 1}, "--source-face: none → 1"),
        ({"version": "0.2.0"}, "ldvid: 0.1.0 → 0.2.0"),
        ({"threads": 1}, "--threads: 2 → 1"),
        ({"device": "NVIDIA H200", "threads": None}, "device: cpu → NVIDIA H200"),
        ({"device": "NVIDIA H200", "threads": None, "dtype": "bfloat16"}, "device: cpu → NVIDIA H200"),
        ({"dtype": "bfloat16"}, "what dtype=auto is on this machine: float32 → bfloat16"),
        ({"compiled": True}, "what compile=auto is for this clip: False → True"),
    ],
)
def test_another_job_is_refused_and_told_apart(
    tmp_path: Path, plan: Plan, changes: dict[str, object], words: str
) -> None:
    with Job.open(tmp_path / "job", identity()) as job:
        render(job, job.save_plan(plan), 0)
    with pytest.raises(JobError) as caught:
        Job.open(tmp_path / "job", identity(**dict(changes)))
    assert words in str(caught.value)
    assert "--restart" in str(caught.value)
    assert str(caught.value).count("→") <= 1, "only what changed is named"
    assert (tmp_path / "job/segments/000000.mkv").exists(), "refusing must not delete"
    with Job.open(tmp_path / "job", identity(**dict(changes)), restart=True) as job:
        assert job.load_plan() is None
        assert job.finished(plan) == {}


def test_a_term_of_the_guidance_is_named_by_itself(tmp_path: Path) -> None:
    Job.open(tmp_path / "job", identity(assignments=["guidance.identity.scale=5"])).close()
    with pytest.raises(JobError, match=r"differs in: guidance\.identity\.scale: 5.* → 77"):
        Job.open(tmp_path / "job", identity(assignments=["guidance.identity.scale=77"]))


def test_the_clips_name_does_not_matter(tmp_path: Path) -> None:
    Job.open(tmp_path / "job", identity()).close()
    Job.open(tmp_path / "job", identity(clip="elsewhere/clip.mp4")).close()


def test_two_processes_never_share_a_job(tmp_path: Path) -> None:
    with Job.open(tmp_path / "job", identity()):
        script = (
            "import sys; sys.path.insert(0, sys.argv[2])\n"
            "from pathlib import Path; from ldvid.pipeline import lock\n"
            "try: lock.acquire(Path(sys.argv[1]))\n"
            "except lock.JobError as e: print(e); sys.exit(8)\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "job"), "."],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (run.returncode, "another ldvid is at work" in run.stdout) == (8, True), run.stderr
        with pytest.raises(JobError, match="another ldvid"):
            Job.open(tmp_path / "job", identity())
    Job.open(tmp_path / "job", identity()).close()


def test_a_folder_of_someone_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_bytes(b"jpeg")
    for restart in (False, True):
        with pytest.raises(JobError, match=r"holiday\.jpg"):
            Job.open(tmp_path / "photos", identity(), restart=restart)
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["holiday.jpg"]
    with pytest.raises(OutputError):
        Job.open(tmp_path / "photos/holiday.jpg", identity())


def test_discarding_takes_only_what_is_the_jobs(tmp_path: Path, plan: Plan) -> None:
    job = Job.open(tmp_path / "job", identity())
    render(job, job.save_plan(plan), 0)
    (tmp_path / "job/notes.txt").write_text("mine")
    job.discard()
    assert [p.name for p in (tmp_path / "job").iterdir()] == ["notes.txt"]
    other = Job.open(tmp_path / "other", identity())
    other.discard()
    assert not (tmp_path / "other").exists()


def test_a_damaged_job_file_says_restart(tmp_path: Path) -> None:
    Job.open(tmp_path / "job", identity()).close()
    (tmp_path / "job/job.json").write_text("{")
    with pytest.raises(JobError, match="--restart"):
        Job.open(tmp_path / "job", identity())
    Job.open(tmp_path / "job", identity(), restart=True).close()


def test_the_request_is_kept_beside_the_identity(tmp_path: Path) -> None:
    def stored() -> object:
        return json.loads((tmp_path / "job/job.json").read_text()).get("request")

    Job.open(tmp_path / "job", identity()).close()
    assert stored() is None
    Job.open(tmp_path / "job", identity(), request={"output": "a.mp4"}).close()
    Job.open(tmp_path / "job", identity()).close()
    assert stored() == {"output": "a.mp4"}
    before = (tmp_path / "job/job.json").stat().st_mtime_ns
    Job.open(tmp_path / "job", identity(), request={"output": "a.mp4"}).close()
    assert (tmp_path / "job/job.json").stat().st_mtime_ns == before, "nothing changed, nothing is written"
    Job.open(tmp_path / "job", identity(), request={"output": "b.mp4"}).close()
    assert stored() == {"output": "b.mp4"}, "a moved output is the same job"


def test_what_a_killed_run_left_behind_is_cleaned(tmp_path: Path) -> None:
    Job.open(tmp_path / "job", identity()).close()
    (tmp_path / "job/.plan.json.elsewhere-17-7f.tmp").write_bytes(b"half")
    (tmp_path / "job/segments/.000001.json.elsewhere-17-7f.tmp").write_bytes(b"half")
    Job.open(tmp_path / "job", identity()).close()
    assert sorted(p.name for p in (tmp_path / "job").rglob("*")) == ["job.json", "lock", "segments"]


# ---- the ledger


def enter(ledger: Ledger, plan: Plan, index: int, **notes: object) -> Done:
    path = ledger.segments_folder / f"{index:06d}.mkv"
    path.write_bytes(b"video" + bytes([index]))
    segment = plan.segments[index]
    return ledger.record(plan, segment, path, range(segment.start, segment.stop), **notes)


def test_workers_write_the_ledger_without_the_lock(tmp_path: Path, plan: Plan) -> None:
    """Three processes at once, one of them entering every segment that the others do."""
    small = replace(plan, segments=cut_segments([(0, 30)], 1))
    with Job.open(tmp_path / "job", identity()) as job:
        shares = (range(0, 15), range(15, 30), range(30))
        work = pickle.dumps((job.ledger, small))
        script = (
            "import pickle, sys; ledger, plan = pickle.loads(sys.stdin.buffer.read())\n"
            "for i in map(int, sys.argv[1:]):\n"
            "    s = plan.segments[i]; path = ledger.segments_folder / f'{i:06d}.mkv'\n"
            "    new = path.with_suffix(f'.{sys.argv[1]}-{len(sys.argv)}'); new.write_bytes(bytes([i]))\n"
            "    new.replace(path); ledger.record(plan, s, path, [s.start], micro_batch=2)\n"
        )
        workers = [
            subprocess.Popen([sys.executable, "-c", script, *map(str, share)], stdin=subprocess.PIPE)
            for share in shares
        ]
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(work)
            worker.stdin.close()
        assert [worker.wait(60) for worker in workers] == [0, 0, 0]
        assert len(list(job.segments_folder.iterdir())) == 60, "no temporary name is left"
        done = job.finished(small)
        assert sorted(done) == list(range(30))
        assert {tuple(d.notes.items()) for d in done.values()} == {(("micro_batch", 2),)}
        assert done[7].swapped == ((7, 7),)


def test_an_entry_is_made_only_for_a_file_that_is_on_the_disk(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when whoever wrote the segment forgot to flush it, and when it is a folder of pictures."""
    told: list[str] = []
    fsync, rename = os.fsync, os.replace

    def watched(handle: int) -> None:
        told.append(Path(f"/proc/self/fd/{handle}").readlink().name.partition(".json.")[0])
        fsync(handle)

    with Job.open(tmp_path / "job", identity()) as job:
        path = job.segments_folder / "000001"
        path.mkdir()
        (path / "a.png").write_bytes(b"a")
        (path / "b.png").write_bytes(b"b")
        monkeypatch.setattr(os, "fsync", watched)
        monkeypatch.setattr(os, "replace", lambda *a, **k: (told.append("rename"), rename(*a, **k)))
        enter(job.ledger, plan, 0)
        assert told == ["000000.mkv", ".000000", "rename", "segments"]
        told.clear()
        job.record(plan, plan.segments[1], path, [10, 11])
        assert told == ["a.png", "b.png", "000001", ".000001", "rename", "segments"]
        monkeypatch.undo()
        assert job.finished(plan)[1].swapped == ((10, 11),)


def test_why_segments_failed_is_kept_until_they_are_done(tmp_path: Path, plan: Plan) -> None:
    with Job.open(tmp_path / "job", identity()) as job:
        job.record_failure(plan.segments[2], "decode", None, "it hung", 1)
        job.record_failure(plan.segments[1], "swap", 14, "gave NaN", 3)
        job.record_failure(plan.segments[1], "swap", 15, "gave NaN again", 3)
        assert job.failures() == [
            Failure(1, "swap", 15, "gave NaN again", 3), Failure(2, "decode", None, "it hung", 1)
        ]  # fmt: skip
        enter(job.ledger, plan, 1)
        assert [f.segment for f in job.failures()] == [2]
        job.ledger.record_failure(plan.segments[1], "swap", 15, "late", 1)  # of an attempt given up before
        assert sorted(job.finished(plan)) == [1]
        assert [f.segment for f in job.failures()] == [2], "only what is unfinished has failed"
        (job.segments_folder / "000000.failed.json").write_text("{")
        assert [f.segment for f in job.failures()] == [2]


def test_reading_an_entry_is_cheap_and_notices_another_size(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Job.open(tmp_path / "job", identity()) as job:
        done = enter(job.ledger, plan, 0, passed_through=[[3, 4]])
        monkeypatch.setattr("ldvid.pipeline.ledger.sha256_of", None)
        assert job.ledger.entry(plan, plan.segments[0]) == done
        assert done.notes == {"passed_through": [[3, 4]]}
        assert job.ledger.entry(plan, plan.segments[1]) is None
        with done.path.open("ab") as file:
            file.write(b"more")
        assert job.ledger.entry(plan, plan.segments[0]) is None


def test_write_atomic_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_atomic(file, "old")
    with pytest.raises(OutputError, match=r"no\.json"):
        write_atomic(tmp_path / "none/no.json", "x")
    write_atomic(file, "new")
    assert file.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_many_may_write_a_file_at_once_and_one_of_them_wins(tmp_path: Path) -> None:
    file = tmp_path / "a.json"

    def write(number: int) -> None:
        for _ in range(20):
            write_atomic(file, str(number) * 10_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    text = file.read_text()
    assert len(text) == 10_000 and len(set(text)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folders_hash_is_over_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"a")
    (tmp_path / "2.png").write_bytes(b"b")
    both = sha256_of(tmp_path)
    assert sha256_of(tmp_path, ["1.png", "2.png"]) == both
    assert sha256_of(tmp_path, ["1.png"]) != both
    (tmp_path / "2.png").rename(tmp_path / "3.png")
    assert sha256_of(tmp_path) != both


# ---- the local executor


def segments(count: int) -> list[Segment]:
    return [Segment(i, i, i + 1) for i in range(count)]


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_order_is_kept_and_at_most_three_are_in_memory(slow: int) -> None:
    alive, most, guard, written = 0, 0, threading.Lock(), []

    def pause(stage: int) -> None:
        time.sleep(0.01 if stage == slow else 0.001)

    def load(segment: Segment) -> int:
        nonlocal alive, most
        with guard:
            alive += 1
            most = max(most, alive)
        pause(0)
        return segment.index

    def work(index: int) -> int:
        pause(1)
        return index * 10

    def write(value: int) -> None:
        nonlocal alive
        pause(2)
        written.append(value)
        with guard:
            alive -= 1

    run_segments(segments(12), load, work, write)
    assert written == [i * 10 for i in range(12)]
    assert 2 <= most <= 3


def test_several_load_and_write_at_once_in_order() -> None:
    """However long each takes, segments reach the networks in order, and all are written."""
    order, written = [], []

    def load(segment: Segment) -> int:
        time.sleep(0.002 * (segment.index * 7 % 5))
        return segment.index

    def work(index: int) -> int:
        order.append(index)
        return index

    def write(index: int) -> None:
        time.sleep(0.002 * (index * 3 % 4))
        written.append(index)

    run_segments(segments(30), load, work, write, (lambda item: item,), writers=4, loaders=3)
    assert order == list(range(30))
    assert sorted(written) == order


@pytest.mark.parametrize("where", ["load", "work", "write"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_failure_anywhere_ends_the_run_cleanly(where: str, kind: type[BaseException]) -> None:
    written: list[int] = []

    def maybe(stage: str) -> Callable[[object], int]:
        def do(item: object) -> int:
            index = item.index if isinstance(item, Segment) else int(str(item))
            if stage == where and index == 3:
                raise kind("here")
            return index

        return do

    before = threading.active_count()
    with pytest.raises(kind, match="here"):
        run_segments(segments(9), maybe("load"), maybe("work"), lambda v: written.append(maybe("write")(v)))
    assert written == [0, 1, 2]
    assert threading.active_count() == before


def test_prefetch_keeps_order_passes_errors_on_and_stops() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i
            if i == 50:
                raise ValueError("at fifty")

    seen: list[int] = []
    with pytest.raises(ValueError, match="at fifty"):
        for value in prefetch(numbers(), 3):
            seen.append(value)
    assert seen == list(range(51))
    made.clear()
    stream = prefetch(numbers(), 3)
    assert next(stream) == 0
    stream.close()
    assert len(made) <= 6, "closing must stop the thread"


# ---- the output's place


def test_default_names(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    assert default_output(Path("a/clip.mp4")) == Path("a/clip.swapped.mp4")
    assert default_output(Path("clip.gif")) == Path("clip.swapped.mp4")
    assert default_output(tmp_path / "frames") == tmp_path / "frames.swapped"


def test_inputs_and_existing_files_are_never_in_danger(tmp_path: Path) -> None:
    clip, out = tmp_path / "clip.mp4", tmp_path / "out.mp4"
    clip.write_bytes(b"clip")
    with pytest.raises(SettingsError, match="input"):
        check_output(clip, tmp_path / "r.json", [clip], overwrite=True)
    (tmp_path / "link.mp4").symlink_to(clip)
    with pytest.raises(SettingsError, match="input"):
        check_output(tmp_path / "link.mp4", tmp_path / "r.json", [clip], overwrite=True)
    check_output(out, tmp_path / "r.json", [clip], overwrite=False)
    for taken in (out, tmp_path / "r.json"):
        taken.write_bytes(b"mine")
        with pytest.raises(OutputExistsError, match="--overwrite"):
            check_output(out, tmp_path / "r.json", [clip], overwrite=False)
        check_output(out, tmp_path / "r.json", [clip], overwrite=True)
        taken.unlink()
    with pytest.raises(OutputError, match="none"):
        check_output(tmp_path / "none/out.mp4", tmp_path / "none/r.json", [clip], overwrite=True)


def test_a_missing_picture_is_named_with_its_flag(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it was to be the source picture \(--source\)"):
        check_inputs(Path(__file__), tmp_path / ("a" * 300))
    with pytest.raises(InputError, match=r"nobody.png: no such file.*\(--reference\)"):
        check_inputs(Path(__file__), tmp_path / "nobody.png", "--reference")


def test_only_a_folder_of_the_same_frames_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_replaced(out, ["1.png"])
    out.mkdir()
    (out / "1.png").write_bytes(b"old")
    check_replaced(out, ["1.png", "2.png"])
    (out / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"holiday\.jpg"):
        check_replaced(out, ["1.png", "2.png"])
    with pytest.raises(OutputExistsError, match="folder"):
        check_replaced(out, [])


@pytest.mark.parametrize("folder", [False, True])
def test_staging_replaces_in_one_step_or_not_at_all(tmp_path: Path, folder: bool) -> None:
    out = tmp_path / ("frames" if folder else "clip.mp4")

    def make(path: Path, text: str) -> None:
        if folder:
            path.mkdir()
        (path / "1.png" if folder else path).write_text(text)

    def content(path: Path) -> str:
        return (path / "1.png" if folder else path).read_text()

    make(out, "old")
    with staged(out) as part:
        assert folder or part.suffix == out.suffix
        make(part, "new")
        with pytest.raises(OutputExistsError):
            put_in_place(part, out, overwrite=False)
        assert content(out) == "old"
        put_in_place(part, out, overwrite=True)
    assert content(out) == "new"
    with pytest.raises(RuntimeError), staged(out) as part:
        make(part, "half")
        raise RuntimeError
    assert content(out) == "new"
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_ctrl_c_does_not_part_an_output_from_its_record() -> None:
    done = []
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        done.append("both in place")
    assert done
    with pytest.raises(KeyboardInterrupt):  # and works again afterwards
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
