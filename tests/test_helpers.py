"""Helpers, here beside a CPU: the same bytes, and what becomes of those that fail or die."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ldvid.configs import load_settings
from ldvid.errors import FaceError, InputError, JobError
from ldvid.pipeline import executor as executor_module
from ldvid.pipeline import helper_tasks
from ldvid.pipeline import helpers as helpers_module
from ldvid.pipeline.executor import LocalExecutor
from ldvid.pipeline.failure import Policy
from ldvid.pipeline.helpers import Far, Helpers, how_many
from ldvid.pipeline.load import Loaded
from ldvid.pipeline.plan import Plan
from ldvid.pipeline.progress import Stopwatch
from ldvid.pipeline.request import SwapRequest
from ldvid.pipeline.swap import swap_clip
from ldvid.pipeline.work import View, Work
from ldvid.stages.align import ARCFACE_TEMPLATE
from ldvid.stages.decode import probe
from ldvid.stages.mask_shape import MaskShape
from ldvid.stages.records import ClipInfo, Segment
from ldvid.stages.spread import limited


@pytest.fixture(scope="module")
def helpers() -> Iterator[Helpers]:
    """Two of them."""
    made = Helpers(2)
    made.start()
    yield made
    made.close()


@contextlib.contextmanager
def executor(count: int) -> Iterator[LocalExecutor]:
    with LocalExecutor(Policy(retries=1), Helpers(count) if count else None) as made:
        yield made


def request(clip: Path, source: Path, output: Path) -> SwapRequest:
    settings = load_settings(
        "cpu",
        overrides={
            "steps": 1, "guidance": (), "keyframe_interval": 4, "segment_frames": 4, "dtype": "float32",
        },
    )  # fmt: skip
    return SwapRequest(clip=clip, source=source, settings=settings, output=output, end=0.6)


@pytest.fixture(scope="module")
def without(example_clip: Path, example_face: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a swap without helpers gives."""
    output = tmp_path_factory.mktemp("plain") / "out.mp4"
    return swap_clip(request(example_clip, example_face, output)).output.read_bytes()


def test_helpers_change_no_byte(
    without: bytes, example_clip: Path, example_face: Path, tmp_path: Path
) -> None:
    with executor(2) as local:
        summary = swap_clip(request(example_clip, example_face, tmp_path / "out.mp4"), executor=local)
    assert (summary.frames_swapped, summary.segments) == (8, 2)
    assert {"detect", "decode", "align", "paste", "encode"} <= summary.seconds.keys()
    assert summary.output.read_bytes() == without


@pytest.mark.parametrize("usable", [True, False])
def test_the_clip_is_looked_at_while_torch_is_imported(
    usable: bool,
    without: bytes,
    example_clip: Path,
    example_face: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where there seems to be a GPU. If torch can't use it, all goes on as on a CPU."""
    asked: list[View] = []
    looks = Helpers.looks

    def watched(self: Helpers, view: View, watch: Stopwatch) -> object:
        asked.append(view)
        return looks(self, view, watch)

    monkeypatch.setattr(helpers_module, "gpu_in_sight", lambda: True)
    monkeypatch.setattr(helpers_module, "how_many", lambda: 2)
    monkeypatch.setattr(Helpers, "looks", watched)
    if usable:
        monkeypatch.setattr(executor_module, "compute_device", lambda *_: ("a GPU", None))
    summary = swap_clip(request(example_clip, example_face, tmp_path / "early.mp4"))
    assert len(asked) == 1 and asked[0].info.path == example_clip
    assert summary.device == ("a GPU" if usable else "cpu")
    assert summary.output.read_bytes() == without


EARLY = """
import sys
from pathlib import Path
from ldvid.configs import load_settings
from ldvid.pipeline import swap
from ldvid.pipeline.request import SwapRequest

def look_early(*_):
    raise SystemExit(" ".join(m for m in ("torch", "diffusers", "facexlib") if m in sys.modules))

swap.look_early = look_early
clip, source, output = (Path(a) for a in sys.argv[1:])
swap.swap_clip(SwapRequest(clip=clip, source=source, settings=load_settings("fast"), output=output))
"""


def test_looking_begins_before_torch_is_imported(
    example_clip: Path, example_face: Path, tmp_path: Path
) -> None:
    """Its import takes seconds, in which others can look."""
    command = [sys.executable, "-c", EARLY, str(example_clip), str(example_face), str(tmp_path / "out.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (1, "")  # SystemExit with words would print them


def test_masks_are_the_same_wherever_they_are_drawn(helpers: Helpers) -> None:
    """Of any number of crops."""
    random = np.random.default_rng(0)
    shape = MaskShape(4.0, 6.0, 1.0)
    points = np.array([[90, 110], [160, 112], [126, 150], [100, 190], [152, 191]], np.float32)
    there = np.hypot(*(np.mgrid[:128, :128] - 64)) < 44
    for count in (1, 4, 7):
        images = random.integers(0, 256, (count, 256, 256, 3), dtype=np.uint8)
        landmarks = points + random.normal(0, 4, (count, 5, 2)).astype(np.float32)
        seen = np.stack([there * 0.98, random.random((128, 128)) * 0.1]).astype(np.float32)
        seen = np.stack([seen * random.uniform(0.9, 1) for _ in range(count)]).astype(np.float32)
        drawn = helpers.draw(shape, images, landmarks, seen)
        assert drawn.max() > 0.5 and drawn.dtype == np.float32
        assert np.array_equal(drawn, shape.all(images, landmarks, seen))


def test_what_can_be_refused_is_refused_while_others_look(
    example_clip: Path, test_data: Path, tmp_path: Path
) -> None:
    """A source without a face: no output, no job, and nobody goes on looking."""
    from PIL import Image

    blank = tmp_path / "blank.png"
    Image.new("RGB", (256, 256), (90, 120, 90)).save(blank)
    with executor(2) as local, pytest.raises(FaceError, match=r"blank\.png"):
        swap_clip(request(example_clip, blank, tmp_path / "out.mp4"), executor=local)
    assert [p.name for p in tmp_path.iterdir()] == ["blank.png"]


def test_looks_come_in_order_and_end_with_what_broke(
    helpers: Helpers, example_clip: Path, tmp_path: Path
) -> None:
    info, settings = probe(example_clip), load_settings("cpu")
    watch = Stopwatch()
    looks = list(helpers.looks(View(info, settings, "starter"), watch))
    assert [look.index for look in looks] == list(range(48))
    assert all(len(look.faces) == 1 and look.crops[0].shape == (112, 112, 3) for look in looks)
    assert watch.seconds["detect"] > 0
    gone = replace(info, path=tmp_path / "gone.mp4")
    with pytest.raises(InputError, match=r"gone\.mp4"):
        next(helpers.looks(View(gone, settings, "starter"), watch))


def test_a_failure_says_where_it_was(helpers: Helpers, example_clip: Path, tmp_path: Path) -> None:
    """The clip ends in the middle of a segment: stage and frame come back with the error."""
    info = probe(example_clip)
    later = tuple(info.timestamps[-1] + 1000 * (i + 1) for i in range(12))
    work = _order(replace(info, timestamps=info.timestamps + later), tmp_path)
    with helpers.order(work) as order:
        far = Far(helpers, order, Stopwatch(), "write")
        with pytest.raises(InputError, match="the video ends before it"):
            far.write(Loaded(Segment(0, 40, 60), [], passed=None))
    assert (far.stage, far.frame) == ("decode", 48)


def _order(info: ClipInfo, folder: Path) -> Work:
    plan = Plan(info, ((0, info.frames),), (), {}, (Segment(0, 0, info.frames),))
    settings = load_settings("cpu", overrides={"keyframe_interval": 8})
    return Work(plan, settings, (), "", folder, ARCFACE_TEMPLATE.astype("float32"), 256, "starter", "")


def test_a_helper_that_is_killed_is_replaced(tmp_path: Path) -> None:
    def die(once: Path) -> int:
        import os

        if not once.exists():
            once.touch()
            os.kill(os.getpid(), 9)
        return 5

    helpers = Helpers(2)
    try:
        assert helpers.run(die, tmp_path / "once") == 5
        assert helpers.run(abs, -6) == 6
    finally:
        helpers.close()


def test_only_the_work_that_kills_fails() -> None:
    """Others that were at work when it did are done again."""
    helpers = Helpers(2)
    try:
        with ThreadPoolExecutor(4) as threads:
            good = [threads.submit(helpers.run, time.sleep, 1) for _ in range(3)]
            bad = threads.submit(helpers.run, signal.raise_signal, signal.SIGKILL)
            with pytest.raises(JobError, match="a helper process died of it"):
                bad.result()
            assert [g.result() for g in good] == [None] * 3
    finally:
        helpers.close()


def test_ctrl_c_is_the_parents(helpers: Helpers) -> None:
    pid = helpers.run(os.getpid)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.5)
    assert helpers.run(abs, -1) == 1
    assert Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"


def test_helpers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, signal\n"
        "from ldvid.pipeline.helpers import Helpers\n"
        "h = Helpers(1)\n"
        "print(h.run(os.getpid), h._folder, flush=True)\n"
        "(h._folder / 'on its way').touch()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    number, _, place = done.stdout.strip().partition(" ")
    pid, folder = int(number), Path(place)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            state = "Z"
        if state == "Z":
            assert not folder.exists()
            return
        time.sleep(0.1)
    pytest.fail(f"helper {pid} outlived its parent")


def test_errors_that_do_not_survive_the_way_keep_their_words() -> None:
    class StrangeError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    sent = pickle.loads(pickle.dumps(helper_tasks._portable(StrangeError(1, 2))))
    assert str(sent) == "StrangeError: 1 and 2"
    assert type(helper_tasks._portable(InputError("x"))) is InputError


def test_few_cores_need_no_helpers() -> None:
    for cores, count in ((1, 0), (3, 0), (4, 4), (16, 16), (128, 16)):
        with limited(cores):
            assert how_many() == count
