"""Files at URLs: local copies and their room, uploads, job folders, messages. S3: test_storage_s3."""

from __future__ import annotations

import os
import pickle
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from filelock import FileLock
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from ldvid.errors import InputError, JobError, OutputError, OutputExistsError, SettingsError
from ldvid.pipeline import storage
from ldvid.pipeline.storage import Mirror, exists, is_url, join_url, localise, release, trim, upload
from ldvid.stages.decode import probe

FRAMES = {f"frame_{n:03d}.png": bytes([n]) * (n + 1) for n in range(12)}


class Slow(fsspec.AbstractFileSystem):
    """A disk behind ``slow://``: counts what is fetched, and may stop in the middle for good."""

    protocol = "slow"
    fetched: list[str] = []  # noqa: RUF012 - shared on purpose

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        state = Path(path).stat()
        return {"name": path, "size": state.st_size, "type": "file", "mtime": state.st_mtime_ns}

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        self.fetched.append(rpath)
        data = Path(rpath).read_bytes()
        with Path(lpath).open("wb") as handle:
            handle.write(data[: len(data) // 2])
            handle.flush()
            time.sleep(600 if "LDVID_TEST_HANG" in os.environ else 0.1)
            handle.write(data[len(data) // 2 :])


fsspec.register_implementation("slow", Slow, clobber=True)


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LDVID_HOME", str(tmp_path / "home"))
    Slow.fetched.clear()
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def memory() -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("memory")


def folder_of(path: Path, files: dict[str, bytes] = FRAMES) -> Path:
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def at(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, bytes]:
    return {key: fs.cat(key) for key in fs.find(path)}


def held(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir()}


@pytest.mark.parametrize("text", ["s3://b/clip.mp4", "gs://b", "memory://x", "file:///x", "S3://b/x"])
def test_urls(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize("text", ["C:\\x", "C:/x", "C://x", "a/b", "/x", "s3:/b/x", "", "a b://c", "x:y"])
def test_local_paths_are_no_urls(text: str) -> None:
    assert not is_url(text)


@given(st.lists(st.text("abc.é[0", min_size=1).filter(lambda s: s.strip("/")), max_size=4))
def test_joining_goes_one_level_down_for_each_name(names: list[str]) -> None:
    url = join_url("s3://b/job/", *names)
    assert url == "/".join(["s3://b/job", *names])
    assert join_url("memory://", *names) == "memory://" + "/".join(names)


@given(st.text("abcXYZ019-._~!$&'()*+,;=", min_size=4))
def test_passwords_and_signatures_are_not_shown(secret: str) -> None:
    assert storage.shown(f"sftp://me:{secret}@host/clip.mp4") == "sftp://me:***@host/clip.mp4"
    assert storage.shown(f"https://host/clip.mp4?X-Amz-Signature={secret}") == "https://host/clip.mp4"


def test_local_files_are_not_copied(example_clip: Path, tmp_path: Path) -> None:
    assert localise(str(example_clip)) == example_clip
    assert localise(f"file://{example_clip}") == example_clip
    with pytest.raises(InputError, match=r"file:///no/such\.mp4: there is no such file"):
        localise("file:///no/such.mp4")
    assert not (tmp_path / "home").exists()


def test_a_local_copy_opens_as_the_clip_itself(example_clip: Path) -> None:
    upload(example_clip, "memory://clips/clip[1].mp4", overwrite=False)
    copy = localise("memory://clips/clip[1].mp4")
    assert copy.name == "clip[1].mp4"
    assert copy.read_bytes() == example_clip.read_bytes()
    here, there = probe(copy), probe(example_clip)
    assert (
        (here.frames, here.width, here.height) == (there.frames, there.width, there.height) == (48, 480, 270)
    )


def test_threads_share_one_download_and_changes_are_fetched(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"first" * 1000)
    barrier = threading.Barrier(8)

    def get(_: int) -> Path:
        barrier.wait()
        return localise(f"slow://{file}")

    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(get, range(8)))
    assert len(copies) == 1
    assert Slow.fetched == [str(file)]
    file.write_bytes(b"other" * 1000)
    os.utime(file, ns=(1, 1))
    changed = localise(f"slow://{file}")
    assert changed.read_bytes() == b"other" * 1000
    assert copies.pop().read_bytes() == b"first" * 1000  # whoever reads the old one goes on reading it
    assert len(Slow.fetched) == 2


def test_what_changes_while_it_is_fetched_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"first")
    whole = Slow.get_file

    def changing(self: Slow, rpath: str, lpath: str, **options: Any) -> None:
        whole(self, rpath, lpath, **options)
        if len(self.fetched) == 1:
            file.write_bytes(b"later")
            os.utime(file, ns=(1, 1))

    monkeypatch.setattr(Slow, "get_file", changing)
    assert localise(f"slow://{file}").read_bytes() == b"later"
    assert len(Slow.fetched) == 2


def test_a_download_killed_in_the_middle_is_not_taken_for_whole(tmp_path: Path) -> None:
    file, cache = tmp_path / "a.bin", tmp_path / "home/files"
    file.write_bytes(os.urandom(100_000))
    code = f"import runpy; runpy.run_path({__file__!r})['localise']('slow://{file}')"
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "LDVID_TEST_HANG": "1"})
    try:
        deadline = time.monotonic() + 60
        while not any(p.stat().st_size == 50_000 for p in cache.glob(".*.part/a.bin")):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    assert not [p for p in cache.iterdir() if not p.name.startswith(".") and p.name != "locks"]
    assert localise(f"slow://{file}").read_bytes() == file.read_bytes()
    assert not list(cache.glob(".*.part"))


def test_what_killed_downloads_left_goes_when_nobody_fetches(tmp_path: Path) -> None:
    cache = tmp_path / "home/files"
    left, going = (cache / f".{digit * 32}.part" for digit in "ab")
    for part in (left, going):
        part.mkdir(parents=True)
        (part / "a.bin").write_bytes(b"12")
    (cache / "locks").mkdir()
    with FileLock(cache / "locks" / f"{'b' * 32}.lock"):
        trim(cache, 10**9)
    assert [p.exists() for p in (left, going)] == [False, True]


def test_a_short_download_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"12345")
    monkeypatch.setattr(Slow, "get_file", lambda self, rpath, lpath, **_: Path(lpath).write_bytes(b"123"))
    with pytest.raises(InputError, match=r"a\.bin: 3 bytes of 5 came"):
        localise(f"slow://{file}")
    assert not list((tmp_path / "home/files").glob("*/a.bin"))


def test_a_damaged_copy_is_fetched_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"12345")
    localise(f"slow://{file}").write_bytes(b"12")
    assert localise(f"slow://{file}").read_bytes() == b"12345"


def test_a_folder_goes_up_and_down_with_the_same_bytes(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    frames = folder_of(tmp_path / "frames")
    upload(frames, "memory://film/frames", overwrite=False)
    memory.pipe("/film/frames/masks/other.png", b"not a frame")
    copy = localise("memory://film/frames/")
    assert copy.name == "frames"
    assert held(copy) == FRAMES


@pytest.fixture
def cached(tmp_path: Path) -> Callable[[str, int], Path]:
    """Makes a copy of 1000 bytes in the cache, last used so many seconds ago by nobody who lives."""

    def make(name: str, age: int) -> Path:
        file = tmp_path / name
        file.write_bytes(name[0].encode() * 1000)
        copy = localise(f"slow://{file}")
        release(copy)
        os.utime(copy.parent, (time.time() - age,) * 2)
        return copy

    return make


def test_the_longest_unused_goes_first(cached: Callable[[str, int], Path], tmp_path: Path) -> None:
    new, old, middle = cached("new", 1), cached("old", 99), cached("middle", 50)
    trim(tmp_path / "home/files", 2000)
    assert [p.exists() for p in (new, old, middle)] == [True, False, True]
    trim(tmp_path / "home/files", 1999)
    assert [p.exists() for p in (new, middle)] == [True, False]


def test_what_is_used_or_locked_stays(cached: Callable[[str, int], Path], tmp_path: Path) -> None:
    cache = tmp_path / "home/files"
    used, dead, locked, foreign = (cached(n, 99) for n in ("used", "dead", "locked", "foreign"))
    localise(f"slow://{tmp_path / 'used'}")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (dead.parent / f".use/{platform.node()}-{child.pid}").touch()
    (foreign.parent / ".use/other-host-1").touch()
    with FileLock(cache / "locks" / f"{locked.parent.name}.lock"):
        trim(cache, 0)
    assert [p.exists() for p in (used, dead, locked, foreign)] == [True, False, True, True]


def test_the_limit_holds(
    cached: Callable[[str, int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDVID_CACHE_LIMIT", "2.5kB")
    copies = [cached(n, 99 - i) for i, n in enumerate(("a", "b", "c", "d"))]
    assert [p.exists() for p in copies] == [False, False, True, True]
    monkeypatch.setenv("LDVID_CACHE_LIMIT", "much")
    with pytest.raises(SettingsError, match="LDVID_CACHE_LIMIT=much"):
        cached("e", 1)


def test_a_full_disk_is_said_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.bin").write_bytes(b"12345")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4))
    with pytest.raises(OutputError, match="LDVID_HOME"):
        localise(f"slow://{tmp_path / 'a.bin'}")
    assert not Slow.fetched


def test_uploads_replace_nothing_unasked(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    (tmp_path / "a.mp4").write_bytes(b"new")
    memory.pipe("/out/a.mp4", b"old")
    with pytest.raises(OutputExistsError, match=r"memory://out/a\.mp4 exists"):
        upload(tmp_path / "a.mp4", "memory://out/a.mp4", overwrite=False)
    assert memory.cat("/out/a.mp4") == b"old"
    upload(tmp_path / "a.mp4", "memory://out/a.mp4", overwrite=True)
    assert memory.cat("/out/a.mp4") == b"new"
    with pytest.raises(OutputExistsError, match="is a folder"):
        upload(tmp_path / "a.mp4", "memory://out", overwrite=True)
    with pytest.raises(SettingsError, match="name the file"):
        upload(tmp_path / "a.mp4", "memory://out/", overwrite=True)
    with pytest.raises(InputError, match="no such file"):
        upload(tmp_path / "b.mp4", "memory://out/b.mp4", overwrite=True)
    assert memory.find("/") == ["/out/a.mp4"]


def test_a_folder_replaces_its_own_frames_only(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    frames = folder_of(tmp_path / "frames")
    memory.pipe("/out/frame_003.jpg", b"earlier, in another format")
    memory.pipe("/out/holiday.jpg", b"dear")
    before = at(memory, "/out")
    with pytest.raises(OutputExistsError, match=r"holiday\.jpg"):
        upload(frames, "memory://out", overwrite=True)
    assert at(memory, "/out") == before
    memory.rm_file("/out/holiday.jpg")
    with pytest.raises(OutputExistsError, match="exists"):
        upload(frames, "memory://out", overwrite=False)
    upload(frames, "memory://out", overwrite=True)
    assert at(memory, "/out") == {f"/out/{n}": d for n, d in FRAMES.items()}


@pytest.mark.parametrize("whole", ["a.mp4", "frames"])
def test_a_failed_upload_leaves_nothing(
    whole: str, tmp_path: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"12345")
    frames, put, calls = folder_of(tmp_path / "frames"), MemoryFileSystem.put_file, []

    def failing(self: MemoryFileSystem, lpath: str, rpath: str, **options: Any) -> None:
        calls.append(lpath)
        if whole == "a.mp4" or len(calls) == 5:
            self.pipe(rpath, b"12")
            raise OSError("the line went dead")
        put(self, lpath, rpath, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", failing)
    with pytest.raises(OutputError, match=f"memory://out/{whole}: can't be written: the line went dead"):
        upload(frames if whole == "frames" else tmp_path / "a.mp4", f"memory://out/{whole}", overwrite=False)
    assert calls
    assert memory.find("/") == []


def test_a_disk_behind_a_url_is_written_whole(tmp_path: Path, example_clip: Path) -> None:
    upload(example_clip, f"file://{tmp_path}/new/clip.mp4", overwrite=False)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["clip.mp4"]
    assert (tmp_path / "new/clip.mp4").read_bytes() == example_clip.read_bytes()
    assert exists(f"file://{tmp_path}/new/clip.mp4")
    assert not exists(f"file://{tmp_path}/new/clip.mp5")


def job_at(url: str, folder: Path) -> Mirror:
    """A job of two segments, one of them a folder of frames, pushed."""
    mirror = Mirror(url, folder)
    folder_of(folder / "segments/000001")
    for name in ("job.json", "plan.json", "segments/000000.mkv", "segments/000000.json"):
        (folder / name).write_text(name)
    (folder / "segments/000001.json").write_text("{}")
    for name in ("job.json", "plan.json", "segments/000000.mkv", "segments/000001/"):
        mirror.push(name)
    for name in ("segments/000000.json", "segments/000001.json"):
        mirror.push(name)
    return mirror


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def round_trip(url: str, tmp_path: Path) -> None:
    """What any store must do with a job folder."""
    first = job_at(url, tmp_path / "one")
    second = pickle.loads(pickle.dumps(Mirror(url, tmp_path / "two")))
    folder_of(second.folder / "segments/000009")
    for name in ("segments/000007.json", "segments/000000.mkv", "segments/.000001.mkv.tmp", "lock"):
        (second.folder / name).write_text("left over")
    second.pull()
    entries = ["job.json", "plan.json", "segments/000000.json", "segments/000001.json"]
    assert listing(second.folder) == sorted([*entries, "lock"])
    assert [(second.folder / n).read_text() for n in entries[:3]] == entries[:3]
    assert second.fetch("segments/000000.mkv").read_text() == "segments/000000.mkv"
    assert held(second.fetch("segments/000001/")) == FRAMES
    second.pull()  # keeps the segments that are right
    assert listing(second.folder) == sorted([*listing(first.folder), "lock"])
    (second.folder / "segments/000001/frame_003.png").unlink()
    (second.folder / "segments/000001/more.png").touch()
    assert held(second.fetch("segments/000001")) == FRAMES
    (first.folder / "segments/000001/frame_011.png").unlink()
    first.push("segments/000001/")
    assert held(second.fetch("segments/000001")) == dict(list(FRAMES.items())[:-1])
    with pytest.raises(JobError, match=r"segments/000005\.mkv: there is no such segment"):
        second.fetch("segments/000005.mkv")
    fs, root = storage.filesystem(url)
    fs.pipe(f"{root}/mine.txt", b"dear")
    first.remove()
    fs.invalidate_cache()
    assert [k.removeprefix(f"{root}/") for k in fs.find(root)] == ["mine.txt"]
    second.pull()
    assert [p.name for p in second.folder.iterdir()] == ["lock"]


def test_a_job_can_begin_where_none_is_yet(tmp_path: Path) -> None:
    mirror = Mirror("memory://jobs/new", tmp_path / "new")
    mirror.pull()
    assert list(mirror.folder.iterdir()) == []  # anything else would be taken for somebody else's folder


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_job_folders_go_to_the_store_and_back(kind: str, tmp_path: Path) -> None:
    round_trip("memory://jobs/one" if kind == "memory" else f"file://{tmp_path}/jobs/one", tmp_path)


def test_what_is_no_job_is_not_removed(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/photos/segments/1.jpg", b"dear")
    Mirror("memory://photos", tmp_path).remove()
    assert memory.find("/") == ["/photos/segments/1.jpg"]
    with pytest.raises(JobError, match="not a name"):
        Mirror("memory://photos", tmp_path).push("../a.json")


def test_working_copies_follow_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror("s3://b/job")
    here = mirror.folder
    assert here.is_relative_to(tmp_path / "home/jobs")
    assert Mirror("s3://b/job/").folder == here
    assert Mirror("s3://c/job").folder != here
    sent = pickle.dumps(mirror)
    monkeypatch.setenv("LDVID_HOME", str(tmp_path / "elsewhere"))
    assert pickle.loads(sent).folder.is_relative_to(tmp_path / "elsewhere")


def test_a_refused_entry_is_not_half_written(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = job_at("memory://jobs/one", tmp_path / "one")
    (mirror.folder / "plan.json").write_text("changed")

    def failing(self: MemoryFileSystem, lpath: str, rpath: str, **_: Any) -> None:
        self.pipe(rpath, b"ch")
        raise ConnectionResetError("gone")

    monkeypatch.setattr(MemoryFileSystem, "put_file", failing)
    with pytest.raises(OutputError, match=r"memory://jobs/one/plan\.json: .*can't be reached"):
        mirror.push("plan.json")
    assert memory.cat("/jobs/one/plan.json") == b"plan.json"
    assert not [k for k in memory.find("/") if "part" in k]


def test_drivers_and_protocols_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(SettingsError, match=r"gs://b/x: gs:// needs the extra: pip install 'ldvid\[gs\]'"):
        localise("gs://b/x")
    with pytest.raises(SettingsError, match="foo:// is no protocol"):
        localise("foo://b/x")
    with pytest.raises(InputError, match=r"memory://b/x: can't be read: there is no such file"):
        localise("memory://b/x")
