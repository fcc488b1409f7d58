"""Rendering a segment: frame by frame, the same bytes whether its frames were kept or decoded again."""

from __future__ import annotations

import gc
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ldvid.configs.settings import Settings
from ldvid.pipeline import render
from ldvid.pipeline.analyse import analyse
from ldvid.pipeline.failure import Policy
from ldvid.pipeline.job import Identity, Job
from ldvid.pipeline.local import Renderer
from ldvid.pipeline.look import look
from ldvid.pipeline.progress import Silent, Stopwatch
from ldvid.pipeline.work import Work
from ldvid.stages.decode import probe
from ldvid.stages.paste import PasteStage
from ldvid.stages.records import Crops, SourceFace
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import Pack
from ldvid.stages.swap.stage import SwapStage


def negative(_: SwapStage, item: Crops) -> Crops:
    """Stands for the swap, which is not what is tested here."""
    return replace(item, swapped=(255 - item.images).astype(np.float32))


def test_frames_go_through_one_by_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    example_clip: Path,
    pack: Pack,
    networks: Networks,
    faces: tuple[SourceFace, SourceFace],
) -> None:
    settings = Settings(keyframe_interval=16, segment_frames=16)
    info = probe(example_clip, end=16 / 12)
    looks = look(info, settings, pack, 0, info.frames, Stopwatch())
    plan = analyse(info, settings, looks, lambda c: networks.embed(c[None])[0], Silent(), Stopwatch())
    monkeypatch.setattr(SwapStage, "process", negative)
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    paste = PasteStage.process

    def watched(self: PasteStage, item: tuple) -> tuple:  # type: ignore[type-arg]
        nonlocal most
        done = paste(self, item)
        alive.extend(weakref.ref(a) for a in (item[0][0].rgb, done[0][0]))
        gc.collect()
        most = max(most, sum(r() is not None for r in alive))
        return done

    monkeypatch.setattr(PasteStage, "process", watched)
    made = {}
    for keep in (0, 2**30):
        monkeypatch.setattr(render, "KEEP_BYTES", keep)
        alive.clear()
        most = 0
        identity = Identity("c", "0", None, None, "0", None, {}, "0", "p", "0", str(keep))
        with Job.open(tmp_path / str(keep), identity) as job:
            watch = Stopwatch()
            work = Work(
                plan=plan,
                settings=settings,
                source=faces[0],
                digest=identity.digest(),
                folder=job.folder,
                template=pack.manifest.template_points(),
                crop_size=pack.manifest.crop_size,
                pack="starter",
                pack_digest=pack.digest(),
            )
            renderer = Renderer(work, job.ledger, networks, Silent(), watch, Policy())
            (segment,) = plan.segments
            loaded = renderer.load(segment)
            assert len(loaded.frames) == (16 if keep else 0)
            assert [c.frames.tolist() for c in loaded.crops] == [list(range(16))]
            began = time.perf_counter()
            renderer.write(renderer.swap(loaded))
            took = time.perf_counter() - began
            (done,) = job.finished(plan).values()
            made[keep] = done.path.read_bytes()
            assert done.swapped == ((0, 15),)
            assert watch.seconds["paste"] + watch.seconds["encode"] < took, "no second is counted twice"
        if not keep:
            assert len(alive) == 32 and most <= 6, f"{most} pictures at once"
    assert made[0] == made[2**30]


def test_a_nested_block_has_its_own_time() -> None:
    watch = Stopwatch()
    with watch.time("outer"):
        time.sleep(0.02)
        with watch.time("inner"):
            time.sleep(0.1)
        with watch.time("inner"):
            pass
    assert 0.1 <= watch.seconds["inner"] < 0.2
    assert 0.02 <= watch.seconds["outer"] < 0.1
