"""What is random: the same numbers, wherever they are kept, and another track's in the same place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from ldvid.configs import Settings, load_settings
from ldvid.stages.mask import MaskStage
from ldvid.stages.records import Crops, SourceFace
from ldvid.stages.swap.drawn import Drawn
from ldvid.stages.swap.loop import Loop
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.noise import generator, standard_normal
from ldvid.stages.swap.stage import SwapStage
from torch import Tensor

CPU = torch.device("cpu")
SHAPE = (2, 3, 4)


def some(**changes: object) -> Settings:
    return load_settings("cpu", overrides={"steps": 2, "batch": 2, "dtype": "float32", **changes})


def normal(random: torch.Generator) -> Tensor:
    return standard_normal(SHAPE, random)


def test_another_tracks_numbers_come_to_the_same_place() -> None:
    drawn = Drawn(seed=3, track=0)
    start, step = drawn.of("start", 0, None, normal, CPU), drawn.of("step", 1, None, normal, CPU)
    assert torch.equal(start, normal(generator(3, 0, "start"))) and not torch.equal(start, step)
    place = start.data_ptr(), step.data_ptr()
    drawn.turn_to(7)
    assert torch.equal(start, normal(generator(3, 7, "start")))
    assert torch.equal(step, normal(generator(3, 7, "step", 1)))
    assert drawn.of("start", 0, None, normal, CPU).data_ptr() == place[0]
    later = drawn.of("later", 0, None, normal, CPU)
    assert torch.equal(later, normal(generator(3, 7, "later"))), "of the track that it is turned to"
    drawn.turn_to(0)
    assert torch.equal(start, normal(generator(3, 0, "start"))) and step.data_ptr() == place[1]


def test_one_stream_may_be_made_into_several_things() -> None:
    drawn = Drawn(0, 0)
    once = drawn.of("jitter", 0, 1.0, normal, CPU)
    twice = drawn.of("jitter", 0, 2.0, lambda random: 2 * normal(random), CPU)
    assert torch.equal(twice, 2 * once)


def test_a_swap_is_the_same_with_what_is_kept(
    networks: Networks, faces: tuple[SourceFace, SourceFace], cut: Callable[[Sequence[int]], Crops],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Every number of a swap: noise, the jitter of both terms; of one track after another."""
    masked = MaskStage(networks, some()).process(cut((0, 1)))
    chosen = some(eta=0.5)
    wanted = [
        SwapStage(networks, chosen, faces[0]).process(replace(masked, track=track)).swapped
        for track in (0, 4, 0)
    ]
    assert not np.array_equal(np.asarray(wanted[0]), np.asarray(wanted[1]))
    drawn = Drawn(chosen.seed, 2)
    whole = Loop.sampled

    def kept(self: Loop, *values: object, track: int, **named: object) -> tuple[Tensor, ...]:
        drawn.turn_to(track)
        return whole(self, *values, track=track, **named | {"drawn": drawn})  # type: ignore[arg-type]

    monkeypatch.setattr(Loop, "sampled", kept)
    for track, swapped in zip((0, 4, 0), wanted, strict=True):
        again = SwapStage(networks, chosen, faces[0]).process(replace(masked, track=track)).swapped
        np.testing.assert_array_equal(np.asarray(again), np.asarray(swapped))
    assert len(drawn._made) > 4


def test_only_stages_that_do_the_same_share(networks: Networks, faces: tuple[SourceFace, SourceFace]) -> None:
    first = SwapStage(networks, some(), faces[0])
    assert SwapStage(networks, some(), faces[0])._shared is first._shared
    for other in (
        SwapStage(networks, some(seed=1), faces[0]),
        SwapStage(networks, some(), faces[1]),
        SwapStage(networks, some(), [faces[0], faces[1]]),
    ):
        assert other._shared is not first._shared and other._shared.drawn.seed == other.settings.seed
    several = [SwapStage(networks, some(), [faces[0], faces[1]]) for _ in range(2)]
    assert several[0]._shared is not several[1]._shared, "nothing of theirs is recorded"
