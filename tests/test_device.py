"""Threads, memory, and what else a job borrows of its machine and gives back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from ldvid.commands.common import parse_size
from ldvid.configs import load_settings
from ldvid.errors import InputError, SettingsError
from ldvid.pipeline.device import DRIVER_BYTES, HAND_OVER, cpu_threads, limit_gpu_memory
from ldvid.pipeline.local import run_segments
from ldvid.pipeline.look import Look, _groups
from ldvid.stages.mask import MaskStage
from ldvid.stages.records import Crops, Frame, Segment, SourceFace
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.repeatable import repeatable
from torch import Tensor


@pytest.mark.parametrize(("text", "size"), [("10GB", 10**10), (" 800 MiB", 800 * 2**20), ("5", 5)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "--max-memory") == size


@pytest.mark.parametrize("text", ["", "0", "-1GB", "lots", "1 elephant"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--max-memory.*10GB"):
        parse_size(text, "--max-memory")


def test_a_gpu_gives_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 10**9)
    )
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", given.append)
    limit_gpu_memory(None)
    assert given == []
    limit_gpu_memory(DRIVER_BYTES + 20 * 10**9)
    limit_gpu_memory(200 * 10**9)
    assert given == [0.25, 1.0]
    with pytest.raises(SettingsError, match="--max-memory"):
        limit_gpu_memory(DRIVER_BYTES)


def test_opencv_gets_its_threads_back_and_python_its_patience() -> None:
    before = cv2.getNumThreads(), sys.getswitchinterval()
    for threads in (None, 1):
        with cpu_threads(threads):
            assert cv2.getNumThreads() == 1
            assert sys.getswitchinterval() == pytest.approx(HAND_OVER, rel=0.01)
            with cpu_threads(None):
                pass
            assert sys.getswitchinterval() == pytest.approx(HAND_OVER, rel=0.01)
        assert (cv2.getNumThreads(), sys.getswitchinterval()) == before


def test_torch_is_repeatable_until_the_last_thread_leaves() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with repeatable():
            inside.set()
            assert leave.wait(20)

    thread = threading.Thread(target=other)
    with repeatable():
        thread.start()
        assert inside.wait(20)
    assert torch.are_deterministic_algorithms_enabled(), "the other one is still at work"
    leave.set()
    thread.join(20)
    assert not torch.are_deterministic_algorithms_enabled()


def test_masks_that_do_not_fit_are_halved(
    networks: Networks, faces: tuple[SourceFace, SourceFace], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.stack([f.image for f in faces] * 2)
    points = np.stack([f.landmarks for f in faces] * 2)
    crops = Crops(0, np.arange(4), images, np.zeros((4, 2, 3)), points)
    settings = load_settings("cpu")
    whole = MaskStage(networks, settings).process(crops)
    parse, asked = Networks.parse, list[int]()

    def small(self: Networks, image: Tensor, size: int | None = None) -> Tensor:
        asked.append(len(image))
        if len(image) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return parse(self, image, size)

    monkeypatch.setattr(Networks, "parse", small)
    stage = MaskStage(networks, settings)
    halved = stage.process(crops)
    assert asked == [4, 2, 2] and stage.fitting.micro_batch == 2
    assert whole.masks is not None and halved.masks is not None
    np.testing.assert_allclose(halved.masks, whole.masks, atol=1e-3)


def test_frames_before_one_that_is_lost_are_handed_on() -> None:
    def frames() -> Iterator[Frame | Look]:
        yield from (Frame(i, np.zeros((1, 1, 3), np.uint8)) for i in range(5, 11))
        raise InputError("frame 11")

    groups = []
    with pytest.raises(InputError, match="frame 11"):
        for group in _groups(frames()):
            groups.append([f.index for f in group])
    assert groups == [[5, 6, 7], [8, 9, 10]]


def test_segments_are_prepared_ahead_and_come_in_order() -> None:
    segments = [Segment(i, i, i + 1) for i in range(5)]
    seen: list[str] = []
    second = threading.Event()

    def prepare(name: str) -> str:
        if name == "1":
            second.set()
        return f"{name}p"

    def work(name: str) -> str:
        assert second.wait(20), "the second segment is prepared while the first one is worked on"
        return f"{name}w"

    run_segments(segments, lambda s: str(s.index), work, seen.append, (prepare, lambda name: f"{name}s"))
    assert seen == [f"{i}psw" for i in range(5)]

    three = threading.Barrier(3, timeout=20)
    kept: list[str] = []

    def write(name: str) -> None:
        if int(name[0]) < 3:
            three.wait()
        kept.append(name)

    run_segments(segments, lambda s: str(s.index), str, write, writers=3)
    assert sorted(kept) == list("01234")

    def failing(name: str) -> str:
        if name == "2":
            raise ValueError("segment 2")
        return name

    seen.clear()
    with pytest.raises(ValueError, match="segment 2"):
        run_segments(segments, lambda s: str(s.index), str, seen.append, (failing,))
    assert seen == ["0", "1"]
