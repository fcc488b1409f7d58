"""A power cut at every change that a run makes to the disk, and the same command given again.

One small real swap is run while every change below its folder is watched: opening for writing, fsync,
rename, unlink, mkdir, rmdir (the muxer writes below Python; what it has written shows at the next of
these). Before each change the disk is noted in up to four ways a crash may leave it:

- killed: everything is there as the process saw it;
- half, zero: what was not fsynced holds half its bytes, or none;
- lost: also every name is gone, or back, that was changed without an fsync of its folder.

Each such disk is then laid out and the same call made again. Only time is faked there: the networks are
loaded once, what they and the detector make of an input is remembered, fsync does nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from ldvid.configs import load_settings
from ldvid.errors import OutputExistsError
from ldvid.pipeline import files
from ldvid.pipeline.ledger import Done, Ledger
from ldvid.pipeline.request import Summary, SwapRequest
from ldvid.pipeline.swap import swap_clip
from ldvid.stages.detect import YuNet
from ldvid.stages.records import Crops
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.stage import SwapStage

Disk = dict[str, bytes | None]  # path below the folder → content, None for a folder

_WATCHED = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
_watch: Callable[[str, tuple[Any, ...]], None] | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watch is not None and (event == "open" or event in _WATCHED):
        _watch(event, arguments)


@dataclass
class Recorder:
    """Notes the states of a folder. Files and folders are known by inode; handles keep those from reuse."""

    root: Path
    states: dict[str, tuple[str, Disk, int]] = field(default_factory=dict)
    recorded: int = 0  # ledger entries that a worker was told are written
    _contents: dict[int, bytes | None] = field(default_factory=dict)
    _synced: dict[int, bytes] = field(default_factory=dict)
    _names: dict[int, dict[str, int]] = field(default_factory=dict)
    _handles: list[int] = field(default_factory=list)
    _guard: threading.RLock = field(default_factory=threading.RLock)
    _busy: bool = False

    def changed(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if not writes or not str(path).startswith(str(self.root)):
                return
        self.note(event)

    def note(self, event: str) -> None:
        with self._guard:
            if self._busy:
                return
            self._busy = True
            try:
                here = self._look(self.root)
                for how, cut in (("killed", None), ("half", 2), ("zero", 0)):
                    self._add(f"{how} before {event}", self._as_seen(here, cut))
                self._add(f"lost before {event}", self._as_durable(self.root.stat().st_ino))
            finally:
                self._busy = False

    def synced(self, handle: int) -> None:
        """``os.fsync`` was called."""
        with self._guard:
            self.note("fsync")
            path = Path(f"/proc/self/fd/{handle}").readlink()
            if not path.is_relative_to(self.root):
                return
            self._busy = True
            try:
                inode = os.fstat(handle).st_ino
                if path.is_dir():
                    self._names[inode] = {p.name: p.lstat().st_ino for p in path.iterdir()}
                    self._look(path)
                else:
                    self._synced[inode] = path.read_bytes()
            finally:
                self._busy = False

    def close(self) -> None:
        for handle in self._handles:
            os.close(handle)

    def _look(self, folder: Path) -> dict[str, int]:
        """Inodes of everything below a folder, by path; their contents are remembered."""
        found = {}
        for path in sorted(folder.rglob("*")):
            inode = path.stat().st_ino
            if inode not in self._contents:
                self._handles.append(os.open(path, os.O_RDONLY))
            self._contents[inode] = None if path.is_dir() else path.read_bytes()
            found[str(path.relative_to(self.root))] = inode
        return found

    def _as_seen(self, here: dict[str, int], cut: int | None) -> Disk:
        disk: Disk = {}
        for name, inode in here.items():
            content = self._contents[inode]
            if content is not None and cut is not None and self._synced.get(inode) != content:
                content = content[: len(content) // cut if cut else 0]
            disk[name] = content
        return disk

    def _as_durable(self, folder: int, prefix: str = "") -> Disk:
        disk: Disk = {}
        for name, inode in self._names.get(folder, {}).items():
            if self._contents[inode] is None:
                disk[prefix + name] = None
                disk |= self._as_durable(inode, f"{prefix}{name}/")
            else:
                disk[prefix + name] = self._synced.get(inode, b"")
        return disk

    def _add(self, name: str, disk: Disk) -> None:
        whole = hashlib.sha256(repr(sorted(disk.items())).encode()).hexdigest()
        _, _, before = self.states.get(whole, ("", {}, 0))
        self.states[whole] = (name, disk, max(before, self.recorded))


@contextmanager
def recording(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Watches ``root``; what is there now is durable."""
    global _watch, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    recorder = Recorder(root)
    fsync, enter = os.fsync, Ledger.record

    def synced(handle: int) -> None:
        recorder.synced(handle)
        fsync(handle)

    def entered(self: Ledger, *arguments: Any, **notes: Any) -> Done:
        done = enter(self, *arguments, **notes)
        recorder.recorded += 1
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        patch.setattr(Ledger, "record", entered)
        files.sync(root)
        recorder.states.clear()
        _watch = recorder.changed
        try:
            yield recorder
            recorder.note("the end")
        finally:
            _watch = None
            recorder.close()


class Fakes:
    """Networks that are loaded once; what they and the detector make of an input is computed once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, networks: Networks) -> None:
        self.swaps: dict[tuple[int, ...], Crops] = {}
        self.calls: list[tuple[int, ...]] = []
        process = SwapStage.process

        def swapped(stage: SwapStage, crops: Crops) -> Crops:
            key = tuple(int(i) for i in crops.frames)
            self.calls.append(key)
            if key not in self.swaps:
                self.swaps[key] = process(stage, crops)
            return replace(self.swaps[key])

        monkeypatch.setattr(SwapStage, "process", swapped)
        monkeypatch.setattr(Networks, "load", lambda *_: networks)
        for owner, name in ((Networks, "parse"), (Networks, "embed_aligned"), (YuNet, "detect")):
            monkeypatch.setattr(owner, name, self._once(getattr(owner, name)))

    @staticmethod
    def _once(function: Callable[..., Any]) -> Callable[..., Any]:
        known: dict[bytes, Any] = {}

        def remembered(self: Any, picture: Any, *more: Any) -> Any:
            if getattr(picture, "requires_grad", False):
                return function(self, picture, *more)
            key = hashlib.sha256(
                repr((picture.shape, more)).encode() + np.asarray(picture).tobytes()
            ).digest()
            if key not in known:
                known[key] = function(self, picture, *more)
            return known[key]

        return remembered


def lay_out(root: Path, disk: Disk) -> None:
    for path in root.iterdir():
        files.remove(path)
    for name, content in sorted(disk.items()):
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)


def vouched(disk: Disk) -> int:
    """Segments on a disk that a whole ledger entry vouches for, counted without ldvid."""
    count = 0
    for name, content in disk.items():
        path = Path(name)
        if (
            path.parent.name != "segments"
            or path.name.startswith(".")
            or path.suffix != ".json"
            or not content
        ):
            continue
        try:
            entry = json.loads(content)
        except ValueError:
            continue
        if _sha256(disk, str(path.with_name(entry["file"]))) == entry["sha256"]:
            count += 1
    return count


def _sha256(disk: Disk, name: str) -> str | None:
    if name not in disk:
        return None
    if (content := disk[name]) is not None:
        return hashlib.sha256(content).hexdigest()
    whole = hashlib.sha256()  # of a folder: over its names and hashes
    for inside in sorted(path for path in disk if path.startswith(f"{name}/")):
        whole.update(f"{Path(inside).name}\0{_sha256(disk, inside)}\n".encode())
    return whole.hexdigest()


def made(disk: Disk, name: str) -> Disk:
    """What of a disk is the output: a file, or a folder with what it holds."""
    return {path: content for path, content in disk.items() if Path(path).parts[0] == name}


def read(root: Path) -> Disk:
    return {str(p.relative_to(root)): None if p.is_dir() else p.read_bytes() for p in root.rglob("*")}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="handles are named by /proc")
@pytest.mark.parametrize("case", ["as a user would", "kept", "folder"])
def test_a_power_cut_at_any_moment_costs_at_most_what_was_not_finished(
    case: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    networks: Networks,
    example_clip: Path,
    example_face: Path,
) -> None:
    """Two frames, a segment each, which look at no neighbour. ``kept``: with ``--job`` and ``--overwrite``,
    over a file of the user's; ``folder``: a folder of frames."""
    root, kept = tmp_path / "disk", case == "kept"
    root.mkdir()
    clip, source = Path(shutil.copy(example_clip, tmp_path)), Path(shutil.copy(example_face, tmp_path))
    if case == "folder":
        clip = split(clip, tmp_path / "frames", 2)
    output = root / ("out" if case == "folder" else "out.mp4")
    job = output.with_name(f"{output.name}.ldvid-job")
    settings = load_settings(assignments=["segment_frames=1", "keyframe_interval=1", "batch=1", "steps=1",
                                          "min_track_frames=1", "steady=0"])  # fmt: skip
    request = SwapRequest(
        clip, source, settings, output, end=None if case == "folder" else 0.15, device="cpu", threads=1,
        job=job if kept else None, overwrite=kept,
    )  # fmt: skip
    if kept:
        output.write_bytes(b"the user's own")
    fakes = Fakes(monkeypatch, networks)
    with recording(root, monkeypatch) as recorder:
        whole = swap_clip(request)
    assert (whole.segments, whole.segments_resumed, len(fakes.swaps)) == (2, 0, 2)
    wanted, states = made(read(root), output.name), list(recorder.states.values())
    assert len(states) > 60, "the watch saw too little"

    monkeypatch.setattr(os, "fsync", lambda _: None)
    finished_already = 0
    for name, disk, recorded in states:
        lay_out(root, disk)
        done, placed = vouched(disk), made(disk, output.name) == wanted
        if not placed:
            assert done >= recorded, f"{name}: an entry was made that the cut took away"
            before: Disk = {"out.mp4": b"the user's own"} if kept else {}
            assert made(disk, output.name) == before, f"{name}: an output that is not whole"
        if not kept and placed and f"{job.name}/job.json" not in disk:
            finished_already += 1
            with pytest.raises(OutputExistsError):  # as after any run that has come to its end
                swap_clip(request)
            assert made(read(root), output.name) == wanted
            continue
        fakes.calls.clear()
        summary = swap_clip(request)
        check(summary, name, done, fakes.calls)
        assert made(read(root), output.name) == wanted, name
        if placed and f"{output.name}.json" in disk:
            assert not fakes.calls, f"{name}: nothing was left to do"
        left = {p.name for p in root.iterdir()} - {output.name, f"{output.name}.json"}
        assert left == ({job.name} if kept else set()), name
        if kept:
            assert "placing" not in json.loads((job / "job.json").read_text())
            suffixes = sorted(p.suffix for p in (job / "segments").iterdir())
            assert suffixes == [".json", ".json", ".mkv", ".mkv"], name
    assert finished_already < 6, "most cuts must have come before the end"


def check(summary: Summary, name: str, done: int, swaps: list[tuple[int, ...]]) -> None:
    """The run's own account: all there, finished work taken over, and only the rest done."""
    record = json.loads(summary.report.read_text())
    assert record["output"]["sha256"] == files.sha256_of(summary.output), name
    assert (summary.segments, summary.frames, summary.frames_swapped) == (2, 2, 2), name
    assert summary.segments_resumed >= done, f"{name}: finished work was not taken over"
    assert len(swaps) == 2 - summary.segments_resumed, f"{name}: finished work was done again"


def split(clip: Path, folder: Path, count: int) -> Path:
    """The first frames of a clip as a folder of pictures."""
    folder.mkdir()
    with av.open(str(clip)) as container:
        for index, frame in zip(range(count), container.decode(video=0), strict=False):
            frame.to_image().save(folder / f"{index:03d}.png")
    return folder
