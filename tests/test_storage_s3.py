"""Files at ``s3://``: a real S3-compatible server on this machine, and what goes wrong with stores."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ldvid.errors import InputError, OutputError, OutputExistsError, SettingsError
from ldvid.pipeline.storage import Mirror, exists, filesystem, localise, upload
from ldvid.stages.decode import probe

s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install 'ldvid[s3]'")
server = pytest.importorskip("moto.server", reason="needs a local S3 server: pip install 'moto[server]'")

FRAMES = {f"frame_{n:03d}.png": bytes([n]) * (n + 1) for n in range(30)}


class Requests(logging.Handler):
    """The requests that the server has seen, as ``GET /bucket/key``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.search(r"(GET|PUT|HEAD|POST|DELETE) (/[^ ?]*)", record.getMessage()):
            self.seen.append(f"{found[1]} {found[2]}")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The server's address."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    try:
        yield "http://{}:{}".format(*running.get_host_and_port())
    finally:
        running.stop()


@pytest.fixture(autouse=True)
def requests(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Requests]:
    """Points s3:// to the server, and listens to it."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("LDVID_HOME", str(tmp_path / "home"))
    s3fs.S3FileSystem.clear_instance_cache()
    log, handler = logging.getLogger("werkzeug"), Requests()
    level, propagates = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)
    log.propagate = propagates
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(request: pytest.FixtureRequest, requests: Requests) -> str:
    """An empty bucket of the test's own, as a URL."""
    name = f"b{abs(hash(request.node.name)):x}"
    filesystem("s3://")[0].mkdir(name)
    requests.seen.clear()
    return f"s3://{name}"


def folder_of(path: Path, files: dict[str, bytes] = FRAMES) -> Path:
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def held(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_a_clip_comes_once_for_threads_and_processes(
    bucket: str, requests: Requests, example_clip: Path
) -> None:
    url = f"{bucket}/films/clip [1].mp4"
    upload(example_clip, url, overwrite=False)
    requests.seen.clear()
    barrier = threading.Barrier(8)
    code = f"from ldvid.pipeline.storage import localise; print(localise({url!r}), end='')"
    others = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(3)]

    def get(_: int) -> Path:
        barrier.wait()
        return localise(url)

    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(get, range(8)))
    copies |= {Path(o.communicate(timeout=120)[0].decode()) for o in others}
    assert [o.returncode for o in others] == [0, 0, 0]
    assert len(copies) == 1
    assert len([r for r in requests.seen if r.startswith("GET") and r.endswith(".mp4")]) == 1
    copy = copies.pop()
    assert copy.name == "clip [1].mp4"
    assert copy.read_bytes() == example_clip.read_bytes()
    assert probe(copy).frames == 48


def test_a_changed_object_is_fetched_anew(bucket: str, requests: Requests, tmp_path: Path) -> None:
    file, url = tmp_path / "a.bin", f"{bucket}/a.bin"
    for data in (b"first", b"other", b"other"):  # within one second, of one size; at last the same again
        file.write_bytes(data)
        upload(file, url, overwrite=True)
        assert localise(url).read_bytes() == data
    assert len([r for r in requests.seen if r.startswith("GET") and r.endswith("a.bin")]) == 2


def test_large_files_in_parts(bucket: str, tmp_path: Path) -> None:
    file = tmp_path / "large.bin"
    file.write_bytes(os.urandom(120 * 2**20))  # beyond where s3fs begins to send in parts
    upload(file, f"{bucket}/large.bin", overwrite=False)
    copy = localise(f"{bucket}/large.bin")
    assert copy.read_bytes() == file.read_bytes()


def test_uploads_replace_nothing_unasked(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"new")
    fs, root = filesystem(bucket)
    fs.pipe(f"{root}/out/a.mp4", b"old")
    with pytest.raises(OutputExistsError, match=f"{bucket}/out/a.mp4 exists"):
        upload(tmp_path / "a.mp4", f"{bucket}/out/a.mp4", overwrite=False)
    assert fs.cat(f"{root}/out/a.mp4") == b"old"
    with pytest.raises(OutputExistsError, match="is a folder"):
        upload(tmp_path / "a.mp4", f"{bucket}/out", overwrite=True)
    with pytest.raises(SettingsError, match="name the file"):
        upload(tmp_path / "a.mp4", bucket, overwrite=True)
    upload(tmp_path / "a.mp4", f"{bucket}/out/a.mp4", overwrite=True)
    assert filesystem(bucket)[0].cat(f"{root}/out/a.mp4") == b"new"
    assert exists(f"{bucket}/out/a.mp4")
    assert exists(f"{bucket}/out")
    assert not exists(f"{bucket}/out/a.mp")


def test_a_folder_goes_up_and_down_with_the_same_bytes(bucket: str, tmp_path: Path) -> None:
    frames = folder_of(tmp_path / "frames")
    upload(frames, f"{bucket}/film/frames", overwrite=False)
    fs, root = filesystem(bucket)
    fs.pipe(f"{root}/film/frames/masks/other.png", b"not a frame")
    fs.touch(f"{root}/film/frames/")  # what consoles make for a folder
    assert held(localise(f"{bucket}/film/frames/")) == FRAMES
    (frames / "frame_003.png").write_bytes(b"better")
    fs.rm(f"{root}/film/frames/masks/other.png")
    upload(frames, f"{bucket}/film/frames", overwrite=True)
    assert held(localise(f"{bucket}/film/frames")) == {**FRAMES, "frame_003.png": b"better"}


def test_what_others_write_is_seen(bucket: str, tmp_path: Path) -> None:
    upload(folder_of(tmp_path / "frames"), f"{bucket}/frames", overwrite=False)
    assert held(localise(f"{bucket}/frames")) == FRAMES
    assert not exists(f"{bucket}/frames/more.png")
    another = s3fs.S3FileSystem(skip_instance_cache=True)  # as of another machine
    another.pipe(f"{bucket}/frames/more.png", b"more")
    assert exists(f"{bucket}/frames/more.png")
    assert held(localise(f"{bucket}/frames")) == {**FRAMES, "more.png": b"more"}


def test_a_job_goes_to_the_store_and_back(bucket: str, tmp_path: Path) -> None:
    one, two = Mirror(f"{bucket}/job", tmp_path / "one"), Mirror(f"{bucket}/job", tmp_path / "two")
    folder_of(one.folder / "segments/000001")
    two.pull()
    assert list(two.folder.iterdir()) == []  # a job that isn't there yet
    names = ["job.json", "plan.json", "segments/000000.mkv", "segments/000000.json", "segments/000001.json"]
    for name in names:
        (one.folder / name).write_text(name)
        one.push(name)
    one.push("segments/000001/")
    (two.folder / "segments").mkdir()
    (two.folder / "segments/000004.json").write_text("left over")
    two.pull()
    files = sorted(str(p.relative_to(two.folder)) for p in two.folder.rglob("*") if p.is_file())
    assert files == sorted(n for n in names if not n.endswith(".mkv"))
    assert all((two.folder / name).read_text() == name for name in files)
    assert two.fetch("segments/000000.mkv").read_text() == "segments/000000.mkv"
    assert held(two.fetch("segments/000001")) == FRAMES
    (one.folder / "segments/000000.mkv").write_text("another size")
    one.push("segments/000000.mkv")
    two.pull()
    assert not (two.folder / "segments/000000.mkv").exists()
    assert two.fetch("segments/000000.mkv").read_text() == "another size"
    fs, root = filesystem(bucket)
    fs.pipe(f"{root}/job/mine.txt", b"dear")
    two.remove()
    fs.invalidate_cache()
    assert fs.find(root) == [f"{root}/job/mine.txt"]


def test_what_is_not_there(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"new")
    with pytest.raises(
        InputError, match=f"^{bucket}/no.mp4: can't be read: there is no such file or folder$"
    ):
        localise(f"{bucket}/no.mp4")
    with pytest.raises(InputError, match=r"^s3://nobodys/no\.mp4: .*bucket does not exist"):
        localise("s3://nobodys/no.mp4")
    with pytest.raises(OutputError, match=r"^s3://nobodys/a\.mp4: can't be written: .*bucket does not exist"):
        upload(tmp_path / "a.mp4", "s3://nobodys/a.mp4", overwrite=True)


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match=r"^s3://any/a\.mp4: .*no credentials; set AWS_ACCESS_KEY_ID"):
        localise("s3://any/a.mp4")


def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"^s3://any/a\.mp4: can't be read: the store can't be reached"):
        localise("s3://any/a.mp4")
    assert time.monotonic() - begun < 60
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match="can't be reached"):  # which is not: there is no such file
        exists("s3://any/a.mp4")
