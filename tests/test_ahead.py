"""What a GPU job does before its turn; here on a CPU, where the parts are the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from ldvid.configs import GuidanceTerm, Settings, load_settings
from ldvid.errors import FaceError, SettingsError
from ldvid.pipeline import ahead, executor
from ldvid.pipeline.ahead import warm_up
from ldvid.pipeline.executor import LocalExecutor
from ldvid.pipeline.failure import Policy
from ldvid.pipeline.progress import Stopwatch
from ldvid.stages.mask import MaskStage
from ldvid.stages.records import Crops, SourceFace
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.stage import SwapStage


def some(**changes: object) -> Settings:
    return load_settings("cpu", overrides={"steps": 1, "batch": 2, "dtype": "float32", **changes})


def on_a_gpu(used: bool = False) -> Networks:
    return cast(Networks, SimpleNamespace(device=torch.device("cuda"), recorder=SimpleNamespace(used=used)))


def test_a_batch_of_nothing_in_particular_goes_all_the_way(
    networks: Networks,
    faces: tuple[SourceFace, SourceFace],
    cut: Callable[[Sequence[int]], Crops],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Masked, prepared by both threads, swapped; what is swapped after it is what it was."""
    crops, mask = cut((0, 24)), MaskStage(networks, some())
    before = SwapStage(networks, some(), faces[0]).process(mask.process(crops)).swapped
    made: list[Crops] = []
    threads: set[str] = set()
    sample, prepare = SwapStage.sample, SwapStage.prepare

    def sampled(stage: SwapStage, item: Crops) -> Crops:
        made.append(sample(stage, item))
        return made[-1]

    def prepared(stage: SwapStage, item: Crops) -> Crops:
        import threading

        threads.add(threading.current_thread().name)
        return prepare(stage, item)

    with monkeypatch.context() as patch:
        patch.setattr(SwapStage, "sample", sampled)
        patch.setattr(SwapStage, "prepare", prepared)
        ahead._one_batch(networks, some(), faces[1])
    assert len(made) == ahead.TO_RECORD
    one = made[-1]
    assert one.swapped is not None and one.swapped.shape == (2, 256, 256, 3) and one.swapped.std() > 10
    assert len(threads) == 2 and all(name.startswith("ldvid-ahead") for name in threads)
    after = SwapStage(networks, some(), faces[0]).process(mask.process(crops)).swapped
    np.testing.assert_array_equal(cast(Any, before), cast(Any, after))


def test_only_a_gpu_that_was_not_used_is_warmed_up(
    networks: Networks, faces: tuple[SourceFace, SourceFace], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Networks] = []
    monkeypatch.setattr(ahead, "_one_batch", lambda net, *_: asked.append(net))
    mine = some().model_copy(update={"guidance": (GuidanceTerm(term="examples/my_term.py:Vivid"),)})
    warm_up(networks, some(), faces[0])
    warm_up(on_a_gpu(used=True), some(), faces[0])
    warm_up(on_a_gpu(), mine, faces[0])
    assert not asked
    cold = on_a_gpu()
    warm_up(cold, some(), faces[0])
    assert asked == [cold]


def test_a_gpu_warms_up_while_others_look_and_is_warm_in_the_end(
    networks: Networks, faces: tuple[SourceFace, SourceFace], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, looked, done = threading.Event(), threading.Event(), list[bool]()

    def slowly(*_: object) -> None:
        begun.set()
        done.append(looked.wait(20))

    monkeypatch.setattr(executor, "warm_up", slowly)
    watch = Stopwatch()
    with LocalExecutor(Policy()).warming(networks, some(), faces[0], watch):
        assert not begun.is_set(), "without helpers whoever looks has enough to do"
    beside = LocalExecutor(Policy(), cast(Any, SimpleNamespace(close=lambda: None)))
    with beside.warming(networks, some(), faces[0], watch):
        assert begun.wait(20)
        looked.set()
    assert done == [True] and "warm up" in watch.seconds
    with pytest.raises(FaceError), beside.warming(networks, some(), faces[0], watch):
        raise FaceError("nobody is in the clip")
    assert len(done) == 2, "what failed waits for the thread"


def test_two_may_warm_up_at_once(
    networks: Networks, faces: tuple[SourceFace, SourceFace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wants both threads: one after the other gets them."""
    monkeypatch.setattr(MaskStage, "process", lambda _, item: item)
    monkeypatch.setattr(SwapStage, "prepare", lambda _, item: item)
    done: list[int] = []
    monkeypatch.setattr(SwapStage, "sample", lambda _, item: done.append(len(item)))
    net = cast(Any, SimpleNamespace(**vars(networks) | vars(on_a_gpu())))
    net.manifest = networks.manifest
    monkeypatch.setattr(ahead, "SwapStage", lambda *_: stage)
    monkeypatch.setattr(ahead, "MaskStage", lambda *_: MaskStage(networks, some()))
    stage = SwapStage(networks, some(), faces[0])
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: warm_up(net, some(), faces[0]), range(3), timeout=60))
    assert done == [2] * 3 * ahead.TO_RECORD


@pytest.mark.parametrize("error", [SettingsError("no"), RuntimeError("out of memory"), ValueError("no")])
def test_what_goes_wrong_is_left_to_its_turn(
    error: Exception,
    networks: Networks,
    faces: tuple[SourceFace, SourceFace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*_: object) -> Crops:
        raise error

    monkeypatch.setattr(SwapStage, "prepare", failing)
    ahead._one_batch(networks, some(), faces[0])


def test_a_thread_that_waits_in_vain_goes_on(
    networks: Networks, faces: tuple[SourceFace, SourceFace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the other was still busy: nobody comes, and the command must be able to end."""
    monkeypatch.setattr(ahead, "PATIENCE", 0.2)
    monkeypatch.setattr(ahead, "_both", lambda: pool)
    with ThreadPoolExecutor(1) as pool:  # the second of two that never comes
        ahead._one_batch(networks, some(), faces[0])
