"""Packs that a machine fetches when it first needs them: a local server, several processes at once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from ldvid.errors import OutputError, PackError
from ldvid.pipeline.pack_at_hand import pack_at_hand
from ldvid.stages.swap.pack import EMBEDDED, open_pack, read_lock

HEAD = (EMBEDDED / "starter/pack.toml").read_text(encoding="utf-8").partition("[files.")[0]
FETCH = """
import sys, time
from pathlib import Path
from ldvid.pipeline.pack_at_hand import pack_at_hand
here = Path(sys.argv[1])
here.touch()
while not here.with_name("go").exists():
    time.sleep(0.01)
print(pack_at_hand("small").digest())
"""


@dataclass
class Server:
    """Files by path; counts what is fetched. GET requests wait for ``open``."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    gets: Counter[str] = field(default_factory=Counter)
    open: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    server_state: Server

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._headers()

    def do_GET(self) -> None:
        data, state = self._headers(), self.server_state
        state.gets[self.path] += 1
        try:
            self.wfile.write(data[:1000])
            self.wfile.flush()
            state.open.wait(60)
            self.wfile.write(data[1000:])
        except OSError:
            return  # the client was killed

    def _headers(self) -> bytes:
        data = self.server_state.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.end_headers()
        return data


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Handler,), {"server_state": state}))
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("LDVID_MIRROR", raising=False)
    yield state
    state.open.set()
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def small(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a pack of two files, neither there yet; of one of them the manifest knows no hash."""
    server.files = {"/a.onnx": os.urandom(200_000), "/b.pth": os.urandom(100_000)}
    folder = tmp_path / "home/packs/small"
    folder.mkdir(parents=True)
    text = HEAD.replace('name = "starter"', 'name = "small"')
    for path, data in server.files.items():
        known = f'sha256 = "{hashlib.sha256(data).hexdigest()}"\n' if path == "/a.onnx" else ""
        text += f'[files."{path[1:]}"]\n{known}source = "s"\nlicence = "l"\n'
        text += f'origin = {{ url = "{server.url}{path}" }}\n'
    (folder / "pack.toml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("LDVID_HOME", str(tmp_path / "home"))
    return folder


def complete(folder: Path, server: Server) -> bool:
    return all((folder / path[1:]).read_bytes() == data for path, data in server.files.items())


def start(marks: Path) -> subprocess.Popen[str]:
    """A process that asks for the pack as soon as there is ``go`` beside its mark."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, marks],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(true: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_several_processes_at_once_make_one_download(small: Path, server: Server, tmp_path: Path) -> None:
    marks = [tmp_path / f"process-{n}" for n in range(3)]
    processes = [start(mark) for mark in marks]
    wait_for(lambda: all(mark.exists() for mark in marks))
    (tmp_path / "go").touch()
    wait_for(lambda: server.gets)
    time.sleep(0.3)  # the others come while the first file is on its way
    assert not (small / "a.onnx").exists()
    server.open.set()
    ends = [p.communicate(timeout=60) for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], ends
    assert complete(small, server)
    assert server.gets == {"/a.onnx": 1, "/b.pth": 1}
    assert {out.strip() for out, _ in ends} == {open_pack("small").digest()}


def test_a_process_that_is_killed_leaves_the_rest_to_the_next(
    small: Path, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "go").touch()
    process = start(tmp_path / "process")
    wait_for(lambda: server.gets)
    process.kill()
    process.communicate()
    assert not any((small / path[1:]).exists() for path in server.files)
    server.open.set()
    pack = pack_at_hand("small")
    assert complete(small, server)
    assert pack.folder == small


def test_a_persons_pull_is_waited_for(small: Path, server: Server) -> None:
    server.open.set()
    opened: list[str] = []
    with FileLock(small / ".pull.lock"):
        thread = threading.Thread(target=lambda: opened.append(pack_at_hand("small").digest()))
        thread.start()
        time.sleep(0.3)
        assert not opened
        assert not server.gets
    thread.join(60)
    assert opened == [open_pack("small").digest()]


def test_a_file_that_pack_lock_does_not_know_yet_is_not_believed(small: Path, server: Server) -> None:
    server.open.set()
    for path, data in server.files.items():  # as they are for a moment during another's download
        (small / path[1:]).write_bytes(data)
    with pytest.raises(PackError, match="nothing vouches"):
        open_pack("small")
    pack_at_hand("small")
    assert read_lock(small).sha256["b.pth"] == hashlib.sha256(server.files["/b.pth"]).hexdigest()
    server.gets.clear()
    pack_at_hand("small")
    assert not server.gets


def test_what_comes_with_the_package_is_left_alone() -> None:
    before = sorted(p.name for p in (EMBEDDED / "starter").iterdir())
    assert pack_at_hand("starter").manifest.name == "starter"
    assert sorted(p.name for p in (EMBEDDED / "starter").iterdir()) == before


def test_a_home_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LDVID_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"packs/celebahq-256: can't be written: Not a directory"):
        pack_at_hand("celebahq-256")
