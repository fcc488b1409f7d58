"""Packs that are fetched, against an HTTP server that behaves like the hub and GitHub, well and badly."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.cli import main
from ldvid.errors import PackError
from ldvid.pipeline import transport
from ldvid.pipeline.download import Remote, fetch
from ldvid.pipeline.pack_check import check_pack
from ldvid.pipeline.pull import pull
from ldvid.pipeline.transfers import Bars
from ldvid.pipeline.transport import mirrored
from ldvid.stages.swap.manifest import read_manifest
from ldvid.stages.swap.pack import EMBEDDED, open_pack, read_lock, weights_folder

COMMIT = "c0ffee" * 6 + "abcd"
STARTER = EMBEDDED / "starter"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def noise(n: int, seed: int) -> bytes:
    return b"".join(hashlib.sha256(b"%d %d" % (seed, i)).digest() for i in range(n // 32 + 1))[:n]


@dataclass
class Site:
    """What the server has, what it was asked, and how it misbehaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)  # of the hub's: served from another host
    etags: dict[str, str] = field(default_factory=dict)
    drop: dict[str, list[int]] = field(default_factory=dict)  # bytes after which a connection is cut
    answers: dict[str, list[int]] = field(default_factory=dict)  # statuses to give first
    after: dict[str, Callable[[], None]] = field(default_factory=dict)  # called when it was cut
    ranges: bool = True
    if_range: bool = True
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def etag(self, path: str) -> str:
        """As given, else SHA-256; of the hub's small files git's SHA-1."""
        data = self.files[path]
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        hub_small = "/resolve/" in path and path not in self.large
        return self.etags.get(path, git if hub_small else sha(data))

    def gets(self, end: str) -> list[dict[str, str]]:
        """The headers of the GET requests whose path ends so."""
        return [headers for method, path, headers in self.asked if method == "GET" and path.endswith(end)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        site, path = self.site, self.path
        site.asked.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        key = path.replace(f"/resolve/{COMMIT}/", "/resolve/main/").replace("/cdn/", "/")
        if site.answers.get(key):
            self.reply(site.answers[key].pop(0), {"Retry-After": "0"}, b"busy")
        elif key not in site.files:
            self.reply(404, {}, b"")
        elif "/resolve/" in path and not path.startswith("/cdn/"):
            extra = {"X-Repo-Commit": COMMIT, "ETag": f'"{site.etag(key)}"'}
            if key in site.large:
                extra["X-Linked-Etag"] = f'"{site.etag(key)}"'
                extra["X-Linked-Size"] = str(len(site.files[key]))
                extra["Location"] = f"{site.url.replace('127.0.0.1', 'localhost')}/cdn{key}"
                self.reply(302, {**extra, "ETag": '"of the redirect"'}, b"")
            else:
                self.content(key, extra, body)
        else:
            self.content(key, {"ETag": f'"{site.etag(key)}"'}, body)

    def content(self, key: str, headers: dict[str, str], body: bool) -> None:
        site, data, status = self.site, self.site.files[key], 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = not site.if_range or self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
        if wanted and site.ranges and same:
            first = int(wanted[1])
            if first >= len(data):
                self.reply(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
                return
            headers = {**headers, "Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
            data, status = data[first:], 206
        cut = site.drop[key].pop(0) if body and site.drop.get(key) else len(data)
        self.reply(status, headers, data if body else b"", len(data), cut)
        if cut < len(data):
            site.after.pop(key, lambda: None)()

    def reply(
        self,
        status: int,
        headers: dict[str, str],
        data: bytes,
        length: int | None = None,
        cut: int | None = None,
    ) -> None:
        length = len(data) if length is None else length
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:cut])
        if cut is not None and cut < length:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A running server; the hub's endpoint points to it and retries don't wait."""
    from huggingface_hub import close_session

    state = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Handler,), {"site": state}))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", state.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("LDVID_MIRROR", raising=False)
    monkeypatch.setattr(transport, "DELAY", 0.001)
    yield state
    close_session()
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Small:
    """A pack of six small files from every kind of origin, in a home of its own."""

    home: Path
    files: dict[str, bytes]

    @property
    def folder(self) -> Path:
        return self.home / "packs/small"

    def complete(self) -> bool:
        return all((self.folder / f).read_bytes() == data for f, data in self.files.items())


HEAD = (STARTER / "pack.toml").read_text(encoding="utf-8").partition("[files.")[0]


@pytest.fixture
def small(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    files = {
        "unet/config.json": b'{"a": 1}\n',
        "unet/model.bin": noise(900_000, 1),
        "one.onnx": noise(5000, 2),
        "two.onnx": noise(7000, 3),
        "parser.pth": noise(400_000, 4),
        "pose.pth": noise(300_000, 5),
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("models/one.onnx", files["one.onnx"])
        zipped.writestr("models/two.onnx", files["two.onnx"])
        zipped.writestr("models/other.onnx", b"not asked for")
    site.files = {
        "/someone/model/resolve/main/unet/config.json": files["unet/config.json"],
        "/someone/model/resolve/main/unet/model.bin": files["unet/model.bin"],
        "/gh/models.zip": packed.getvalue(),
        "/gh/parser.pth": files["parser.pth"],
        "/gh/pose.pth": files["pose.pth"],
    }
    site.large = {"/someone/model/resolve/main/unet/model.bin"}
    origins = {
        "unet/config.json": 'repo = "someone/model", path = "unet/config.json"',
        "unet/model.bin": 'repo = "someone/model", path = "unet/model.bin"',
        "parser.pth": f'url = "{site.url}/gh/parser.pth"',
        "pose.pth": f'url = "{site.url}/gh/pose.pth"',
    }
    archive = f'url = "{site.url}/gh/models.zip", archive_sha256 = "{sha(packed.getvalue())}"'
    origins |= {f: f'{archive}, member = "{f}"' for f in ("one.onnx", "two.onnx")}
    pinned = {"one.onnx", "two.onnx", "parser.pth"}
    text = HEAD.replace('name = "starter"', 'name = "small"')
    for file, data in files.items():
        known = f'sha256 = "{sha(data)}"\nsize = {len(data)}\n' if file in pinned else ""
        text += f'[files."{file}"]\n{known}source = "s"\nlicence = "l"\norigin = {{ {origins[file]} }}\n'
    pack = Small(tmp_path / "home", files)
    pack.folder.mkdir(parents=True)
    (pack.folder / "pack.toml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("LDVID_HOME", str(pack.home))
    return pack


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error line of what was just run."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ldvid: error: ")]
    assert len(lines) == 1
    return lines[0]


PULL = ["packs", "pull", "small"]


def test_a_pull_brings_and_records_every_file(small: Small, site: Site) -> None:
    assert main(PULL) == 0
    assert small.complete()
    lock = read_lock(small.folder)
    assert lock.sha256 == {f: sha(data) for f, data in small.files.items()}
    assert lock.revisions == {"someone/model@main": COMMIT}
    # The branch is asked for once, so that all files come from one commit.
    assert len([path for _, path, _ in site.asked if "/resolve/main/" in path and "/cdn/" not in path]) == 1
    assert lock.vouched_by == {
        "unet/config.json": "hub", "unet/model.bin": "hub", "one.onnx": "manifest",
        "two.onnx": "manifest", "parser.pth": "manifest", "pose.pth": "transport",
    }  # fmt: skip
    assert len(site.gets("models.zip")) == 1
    here = {p.name for p in small.folder.iterdir()} - {"pack.toml", "pack.lock", ".pull.lock", "unet"}
    assert here == {"one.onnx", "two.onnx", "parser.pth", "pose.pth"}
    assert open_pack("small").folder == small.folder
    site.asked.clear()
    assert main(PULL) == 0
    assert site.asked == []  # everything was there


def test_force_fetches_again(small: Small, site: Site) -> None:
    assert main(PULL) == 0
    site.asked.clear()
    site.files["/gh/pose.pth"] = small.files["pose.pth"] = noise(1000, 9)
    assert main([*PULL, "--force", "--quiet"]) == 0
    assert small.complete()
    assert len(site.gets("model.bin")) == 2  # the hub's redirect, and where it leads


def test_a_cut_connection_asks_for_the_rest_only(small: Small, site: Site) -> None:
    site.drop["/gh/parser.pth"] = [150_000, 70_000]
    assert main(PULL) == 0
    assert small.complete()
    first, second, third = site.gets("parser.pth")
    assert "range" not in first
    offsets = [int(h["range"].removeprefix("bytes=").removesuffix("-")) for h in (second, third)]
    assert 80_000 < offsets[0] <= 150_000 < offsets[1] <= 220_000
    assert second["if-range"] == f'"{sha(small.files["parser.pth"])}"'


def test_a_stopped_pull_goes_on_in_the_next_run(
    small: Small, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "/someone/model/resolve/main/unet/model.bin"
    site.drop[key] = [500_000]
    site.after[key] = lambda: site.answers.update({key: [503] * 50})
    site.answers["/gh/pose.pth"] = [503] * 50
    assert main(PULL) == 7
    said = error_of(capsys)
    assert "could not fetch unet/model.bin, pose.pth" in said
    assert "answers 503" in said
    assert not (small.folder / "unet/model.bin").exists()
    assert (small.folder / "parser.pth").read_bytes() == small.files["parser.pth"]  # the others came
    site.answers.clear()
    site.asked.clear()
    assert main(PULL) == 0
    assert small.complete()
    assert not [p for _, p, _ in site.asked if p.startswith("/someone/model/resolve/main/")]  # as recorded
    offset = int(site.gets("cdn/someone/model/resolve/main/unet/model.bin")[0]["range"][6:-1])
    assert 400_000 < offset <= 500_000
    assert site.gets("parser.pth") == []
    assert not (small.folder / ".download").exists()


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changed_in_between_starts_anew(small: Small, site: Site, if_range: bool) -> None:
    key, old = "/gh/pose.pth", noise(300_000, 77)
    site.if_range = if_range  # not every server knows the header
    site.files[key], site.drop[key] = old, [100_000]
    site.after[key] = lambda: site.files.update({key: small.files["pose.pth"]})
    assert main(PULL) == 0
    assert small.complete()
    assert site.gets("pose.pth")[1]["if-range"] == f'"{sha(old)}"'


def test_a_server_without_ranges_and_one_that_is_busy(small: Small, site: Site) -> None:
    site.ranges = False
    site.drop["/gh/parser.pth"] = [200_000]
    site.answers["/gh/pose.pth"] = [503, 429]
    site.answers["/someone/model/resolve/main/unet/config.json"] = [502]
    assert main(PULL) == 0
    assert small.complete()
    assert len(site.gets("pose.pth")) == 3


def test_a_server_that_always_cuts_is_given_up(
    small: Small, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.ranges = False
    site.drop["/gh/parser.pth"] = [200_000] * 100
    assert main(PULL) == 7
    assert "parser.pth" in error_of(capsys)
    assert len(site.gets("parser.pth")) == transport.ATTEMPTS


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("/gh/parser.pth", "parser.pth"),
        ("/gh/models.zip", "two.onnx"),
        ("/someone/model/resolve/main/unet/model.bin", "unet/model.bin"),
        ("/someone/model/resolve/main/unet/config.json", "unet/config.json"),
    ],
)
def test_another_file_than_the_one_named_is_refused(
    small: Small, site: Site, capsys: pytest.CaptureFixture[str], key: str, file: str
) -> None:
    data = bytearray(site.files[key])
    site.etags[key] = site.etag(key)  # the hub vouches for the file that should be there
    data[len(data) // 2] ^= 1
    site.files[key] = bytes(data)
    assert main(PULL) == 7
    said = error_of(capsys)
    assert file in said
    assert "is not the file it should be" in said
    assert not (small.folder / file).exists()
    assert file not in read_lock(small.folder).sha256
    assert not (small.folder / ".download").exists()  # nothing of it is kept
    with pytest.raises(PackError, match=r"missing.*run 'ldvid packs pull small'"):
        open_pack("small")


def test_a_hub_that_has_another_file_than_the_manifest_names(
    small: Small, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = small.folder / "pack.toml"
    named = f'[files."unet/model.bin"]\nsha256 = "{"0" * 64}"'
    toml.write_text(toml.read_text().replace('[files."unet/model.bin"]', named))
    assert main(PULL) == 7
    assert "the hub has another file than the manifest names" in error_of(capsys)
    assert site.gets("model.bin") == []  # seen before a byte was fetched


def test_an_archive_without_the_member(small: Small, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    toml = small.folder / "pack.toml"
    toml.write_text(toml.read_text().replace('member = "two.onnx"', 'member = "three.onnx"'))
    assert main(PULL) == 7
    assert "holds no files named three.onnx" in error_of(capsys)
    assert (small.folder / "one.onnx").exists()


def test_an_archive_whose_member_is_another_file(
    small: Small, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = small.folder / "pack.toml"
    toml.write_text(re.sub(r'archive_sha256 = "\w+", ', "", toml.read_text()))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        zipped.writestr("one.onnx", small.files["one.onnx"])
        zipped.writestr("two.onnx", noise(7000, 99))
    site.files["/gh/models.zip"] = packed.getvalue()
    assert main(PULL) == 7
    assert "its two.onnx is not the file it should be" in error_of(capsys)
    assert (small.folder / "one.onnx").exists()
    assert not (small.folder / "two.onnx").exists()


def test_bars_tell_each_file(small: Small, site: Site) -> None:
    stream = io.StringIO()
    bars = Bars(stream)
    site.files.pop("/gh/pose.pth")
    with pytest.raises(PackError):
        pull("small", show=bars)
    bars.close()
    text = stream.getvalue()
    for done in ("unet/model.bin", "parser.pth", "models.zip"):
        assert f"ldvid: {done}: done" in text
    assert "ldvid: warning: pose.pth: " in text


@pytest.fixture
def offline(small: Small, monkeypatch: pytest.MonkeyPatch) -> str:
    """Nobody answers: the hub's and the URLs' addresses lead to a closed port."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", dead)
    return dead


def test_without_a_network_it_says_what_to_place_where(
    small: Small, site: Site, offline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*PULL, "--mirror", f"{site.url}={offline}"]) == 7
    out = capsys.readouterr().err
    assert out.count("trying again") == 2 * (transport.CONNECT_ATTEMPTS - 1)  # once a host, not once a file
    said = out.splitlines()[-1]
    for file in small.files:
        assert file in said
    assert "refused" in said
    assert "'ldvid packs pull small --manual'" in said
    (small.folder / "one.onnx").write_bytes(small.files["one.onnx"])
    assert main([*PULL, "--manual"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("5 of 6 files of small are missing")
    assert f"{small.folder}/unet/model.bin\n" in text
    assert "https://huggingface.co/someone/model/resolve/main/unet/model.bin" in text
    assert sha(small.files["parser.pth"]) in text
    assert "400000 bytes" in text
    assert "member  two.onnx" in text
    assert "one.onnx" not in text.replace("two.onnx", "")
    assert "Then run 'ldvid packs pull small' again" in text


def test_files_placed_by_hand_are_taken(
    small: Small,
    site: Site,
    offline: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (small.folder / "unet").mkdir()
    for file, data in small.files.items():
        (small.folder / file).write_bytes(data)
    with pytest.raises(PackError, match=r"nothing vouches for .*run 'ldvid packs pull small'"):
        open_pack("small")
    assert main(PULL) == 0
    err = capsys.readouterr().err
    assert err.count("nothing vouches for its contents") == 3  # those without a hash in the manifest
    assert site.asked == []
    assert open_pack("small").hashes == {f: sha(data) for f, data in small.files.items()}
    lock = read_lock(small.folder)
    assert {f for f, by in lock.vouched_by.items() if by == "nobody"} == {
        "unet/config.json", "unet/model.bin", "pose.pth",
    }  # fmt: skip
    # With a connection the hub vouches for its own, and refuses what is not.
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    assert main(PULL) == 0
    assert read_lock(small.folder).vouched_by["unet/model.bin"] == "hub"
    assert site.gets("") == []


def test_a_wrong_file_placed_by_hand_is_replaced(
    small: Small, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    (small.folder / "unet").mkdir()
    (small.folder / "unet/config.json").write_bytes(b'{"a": 2}\n')
    (small.folder / "parser.pth").write_bytes(small.files["parser.pth"][:-1])
    assert main(PULL) == 0
    err = capsys.readouterr().err
    assert "unet/config.json is not the file that the hub has" in err
    assert "parser.pth is not the file it should be" in err
    assert small.complete()


def test_a_zip_placed_by_hand_is_used_and_left(small: Small, site: Site) -> None:
    given = small.folder / "models.zip"
    given.write_bytes(site.files.pop("/gh/models.zip"))
    assert main(PULL) == 0
    assert small.complete()
    assert given.exists()


def test_the_lock_is_enforced(small: Small) -> None:
    assert main(PULL) == 0
    (small.folder / "unet/config.json").write_bytes(b'{"a": 3}\n')
    with pytest.raises(PackError, match=r"config.json is not the file that was fetched .*packs pull small"):
        open_pack("small")
    (small.folder / "unet/config.json").write_bytes(small.files["unet/config.json"])
    open_pack("small")
    (small.folder / "pack.lock").write_text("{")
    with pytest.raises(PackError, match=r"pack.lock: can't be read"):
        open_pack("small")
    (small.folder / "pack.lock").unlink()
    with pytest.raises(PackError, match="nothing vouches"):
        open_pack("small")


def test_a_damaged_file_that_can_not_be_replaced_stays_damaged(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(PULL) == 0
    (small.folder / "unet/config.json").write_bytes(b"spoilt")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for _ in range(2):  # nor does the second time take it for one that was placed by hand
        assert main(PULL) == 7
        assert "unet/config.json" in error_of(capsys)
    with pytest.raises(PackError, match="is not the file that was fetched"):
        open_pack("small")


def test_verify_finds_one_flipped_bit_behind_the_same_size_and_time(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(PULL) == 0
    open_pack("small")  # remembers the hashes
    assert main(["packs", "verify", "small"]) == 0
    capsys.readouterr()
    path = small.folder / "unet/model.bin"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[123_456] ^= 4
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (small.folder / "pose.pth").unlink()
    assert main(["packs", "verify", "small", "--json"]) == 7
    out, err = capsys.readouterr()
    states = {c["file"]: c["state"] for c in json.loads(out)["files"]["small"]}
    assert states == {
        **dict.fromkeys(small.files, "ok"), "unet/model.bin": "damaged", "pose.pth": "missing"
    }  # fmt: skip
    assert "unet/model.bin damaged, pose.pth missing" in err
    assert main(PULL) == 0  # repairs both
    assert small.complete()
    assert main(["packs", "verify"]) == 0
    out = capsys.readouterr().out
    assert "small/unet/model.bin: ok" in out
    assert "starter/fr_feature.onnx: ok" in out
    assert "celebahq" not in out  # not downloaded: nothing to verify


def test_list_and_path(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    def listed() -> dict[str, dict[str, Any]]:
        assert main(["packs", "list", "--json"]) == 0
        return {p["name"]: p for p in json.loads(capsys.readouterr().out)}

    packs = listed()
    assert set(packs) == {"celebahq-256", "small", "starter"}
    assert (packs["starter"]["state"], packs["small"]["state"]) == ("embedded", "not downloaded")
    assert packs["starter"]["size"] == sum((STARTER / f).stat().st_size for f in read_manifest(STARTER).files)
    (small.folder / "parser.pth").write_bytes(small.files["parser.pth"])
    (small.folder / "pose.pth").write_bytes(small.files["pose.pth"])
    assert listed()["small"]["state"] == "4 of 6 files missing"
    assert main([*PULL, "--quiet"]) == 0
    done = listed()["small"]
    assert (done["state"], done["missing"]) == ("complete", [])
    assert done["size"] == sum(map(len, small.files.values()))
    (small.folder / "pack.toml").write_text("no manifest")
    assert listed()["small"]["state"].startswith("damaged: ")
    assert main(["packs", "list"]) == 0
    text = capsys.readouterr().out
    assert "not downloaded" in text
    assert "licence: non-commercial research" in text
    assert main(["packs", "path", "celebahq-256"]) == 0
    assert capsys.readouterr().out == f"{small.home}/packs/celebahq-256\n"


def test_two_pulls_at_once(small: Small, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(small.folder / ".pull.lock"):
        assert main(PULL) == 7
    assert "another 'ldvid packs pull' is at work" in error_of(capsys)
    assert site.asked == []


def test_too_little_space_is_seen_before_the_download(
    small: Small, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(small.folder)._replace(free=51_000_000)  # 50 MB stay free
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert main(PULL) == 6
    assert "too little disk space" in error_of(capsys)
    assert site.gets("") == []


def test_a_mirror_stands_in_for_an_address(
    small: Small, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = small.folder / "pack.toml"
    toml.write_text(toml.read_text().replace(f"{site.url}/gh/", "https://example.invalid/gh/"))
    assert main([*PULL, "--mirror", "nonsense"]) == 2
    assert "write it as PREFIX=URL" in error_of(capsys)
    monkeypatch.setenv("LDVID_MIRROR", f"https://example.invalid/={site.url}/")
    assert main(PULL) == 0
    assert small.complete()


def test_the_token_stays_with_the_hub(small: Small, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert main(PULL) == 0
    assert site.gets("main/unet/config.json") == []  # files are asked for at the commit
    assert site.gets(f"{COMMIT}/unet/config.json")[0]["authorization"] == "Bearer hf_secret"
    for method, path, headers in site.asked:
        if "/resolve/" not in path or path.startswith("/cdn/"):
            assert "authorization" not in headers, (method, path)


def test_offline_mode_of_the_hub_and_files_it_has_not(
    small: Small, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del site.files["/gh/pose.pth"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(PULL) == 7
    said = error_of(capsys)
    assert "HF_HUB_OFFLINE is set" in said
    assert "pose.pth: the server answers 404 (there is no such file)" in said
    assert len(site.gets("pose.pth")) == 1  # no use in asking again


def test_unknown_packs_and_packs_without_anything_to_fetch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["packs", "pull", "nowhere"]) == 7
    assert "pack nowhere: no such pack; there are celebahq-256, starter" in error_of(capsys)
    assert main(["packs", "pull", "starter"]) == 7
    assert "nothing of it is fetched" in error_of(capsys)
    assert main(["packs", "verify", "starter", "--run"]) == 2
    assert "--picture FILE" in error_of(capsys)
    assert main(["packs"]) == 2
    assert "pull" in capsys.readouterr().out


def test_the_papers_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDVID_HOME", str(tmp_path))
    home = EMBEDDED / "celebahq-256"
    manifest = read_manifest(home)
    assert weights_folder(home, manifest) == tmp_path / "packs/celebahq-256"
    with pytest.raises(PackError, match="not downloaded yet; run 'ldvid packs pull celebahq-256'"):
        open_pack("celebahq-256")
    used = {manifest.identity.file, manifest.parser.file, manifest.detector.file, manifest.pose.file}
    assert used < set(manifest.files)
    assert all(entry.origin is not None for entry in manifest.files.values())
    # What no hash is published for is fixed by the commit it is fetched at.
    for entry in manifest.files.values():
        assert entry.origin is not None
        assert entry.sha256 or re.fullmatch("[0-9a-f]{40}", entry.origin.revision)
    assert set(manifest.parser.face) < set(manifest.parser.classes)
    assert manifest.parser.indices("eyes") == [4, 5]
    assert manifest.parser.indices("lips") == [12, 13]
    assert all(c in manifest.parser.classes for part in manifest.parser.parts.values() for c in part)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ('[files."../x"]\nsource = "s"\nlicence = "l"', "files of a pack lie in its own folder"),
        ('[files."pack.lock"]\nsource = "s"\nlicence = "l"', "a name that ldvid keeps for itself"),
        ('[files.".download/x"]\nsource = "s"\nlicence = "l"', "a name that ldvid keeps for itself"),
        (
            '[files.x]\nsource = "s"\nlicence = "l"\norigin = {url = "file:///x"}',
            "begins with https",
        ),
        ('[files.x]\nsource = "s"\nlicence = "l"\norigin = {repo = "a/b"}', "either repo and path, or url"),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, entry: str, says: str) -> None:
    (tmp_path / "pack.toml").write_text(HEAD + entry, encoding="utf-8")
    with pytest.raises(PackError, match=says):
        read_manifest(tmp_path)


def test_the_longest_prefix_of_a_mirror_wins() -> None:
    mirrors = ("https://a/=http://one/", "https://a/b/=http://two/")
    assert mirrored("https://a/b/c", mirrors) == "http://two/c"
    assert mirrored("https://a/c", mirrors) == "http://one/c"
    assert mirrored("https://c/a", mirrors) == "https://c/a"


def test_a_download_resumes_at_any_byte(site: Site) -> None:
    data = noise(20_000, 8)
    site.files["/f"] = data
    remote = Remote(f"{site.url}/f", size=len(data), sha256=sha(data))

    @settings(max_examples=25, deadline=None)
    @given(have=st.integers(0, len(data)), spoilt=st.booleans())
    def resumes(have: int, spoilt: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            part, target, moved = Path(folder, "part"), Path(folder, "target"), []
            kept = bytearray(data[:have])
            if spoilt and have:
                kept[have // 2] ^= 255
            part.write_bytes(kept)
            note = {"url": remote.url, "sha256": remote.sha256, "validator": f'"{sha(data)}"'}
            part.with_name("part.json").write_text(json.dumps(note))
            site.asked.clear()
            assert fetch(remote, target, part, progress=moved.append) == sha(data)
            assert target.read_bytes() == data
            assert [p.name for p in Path(folder).iterdir()] == ["target"]
            assert sum(moved) == len(data)
            ranges = [h.get("range") for h in site.gets("/f")]
            rest = [] if have == len(data) else [f"bytes={have}-" if have else None]
            assert ranges == rest + ([None] if spoilt and have else [])

    resumes()


def test_the_parts_of_the_starter_pack_fit_together(
    example_face: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = ["packs", "verify", "starter", "--run", "--device", "cpu", "--json", "--picture", str(example_face)]
    assert main(run) == 0
    checks = {c["what"]: c["value"] for c in json.loads(capsys.readouterr().out)["checks"]}
    assert {what.partition(":")[0] for what in checks} == {
        "detector", "autoencoder", "UNet", "identity", "parser",
    }  # fmt: skip
    assert checks["autoencoder: reconstruction"] > 28
    assert checks["UNet: gain of the clean estimate at t = 200"] > 3
    # A manifest that names the right files and says wrong things about them: levels that are not shifted.
    for file in read_manifest(STARTER).files:
        (tmp_path / file).symlink_to(STARTER / file)
    text = (STARTER / "pack.toml").read_text(encoding="utf-8")
    wrong = text.replace("shift = 2.0", "shift = 1.0")
    wrong = wrong.replace('"left_eye", "nose", "upper_lip"', '"nose", "upper_lip", "left_eye"')
    assert "shift = 1.0" in wrong and '"nose", "upper_lip", "left_eye"' in wrong
    (tmp_path / "pack.toml").write_text(wrong, encoding="utf-8")
    failed = [c.what for c in check_pack(str(tmp_path), example_face, "cpu") if not c.ok]
    assert failed == ["UNet: error when told half or twice t = 400", "parser: share of nose at its tip"]
