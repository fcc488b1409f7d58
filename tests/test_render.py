"""Rendering a segment: frame by frame, the same bytes whether its frames were kept or decoded again."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from ldvid.configs.settings import Settings, load_settings
from ldvid.errors import InputError
from ldvid.pipeline import load
from ldvid.pipeline.analyse import analyse
from ldvid.pipeline.failure import Policy
from ldvid.pipeline.job import Identity, Job
from ldvid.pipeline.load import Loader, swapped_frames
from ldvid.pipeline.local import Renderer
from ldvid.pipeline.look import look
from ldvid.pipeline.plan import Plan, cut_segments
from ldvid.pipeline.progress import Silent, Stopwatch
from ldvid.pipeline.render import Swapper
from ldvid.pipeline.work import Work
from ldvid.pipeline.write import Writer
from ldvid.stages.decode import DecodeStage, probe
from ldvid.stages.detect import Detector
from ldvid.stages.mask import MaskStage
from ldvid.stages.paste import PasteStage
from ldvid.stages.records import F32, Crops, Frame, Segment, SourceFace, Track
from ldvid.stages.spread import width
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
        monkeypatch.setattr(load, "KEEP_BYTES", keep)
        alive.clear()
        most = 0
        identity = Identity("c", "0", None, None, "0", None, {}, "0", "p", "0", str(keep))
        with Job.open(tmp_path / str(keep), identity) as job:
            watch = Stopwatch()
            work = Work(
                plan=plan,
                settings=settings,
                sources=(faces[0],),
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
            assert len(alive) == 32 and most <= 4 + 2 * width(), f"{most} pictures at once"
    assert made[0] == made[2**30]


FRAMES = 16


@pytest.fixture(scope="module")
def work(
    example_clip: Path, pack: Pack, detector: Detector, faces: tuple[SourceFace, SourceFace]
) -> Callable[..., Work]:
    """Makes work orders for the clip's first frames: ``segment_frames``, the track's rows, settings."""
    info = probe(example_clip, end=FRAMES / 12)
    found = [detector.detect(f.rgb)[0] for f in DecodeStage(info, "pyav").frames(Segment(0, 0, FRAMES))]

    def make(folder: Path, length: int, rows: slice = slice(None), **changed: Any) -> Work:
        settings = load_settings(
            "cpu",
            overrides={"steps": 1, "guidance": (), "keyframe_interval": 8, "segment_frames": 8, **changed},
        )
        track = Track(
            id=0,
            shot=0,
            frames=np.arange(FRAMES)[rows],
            boxes=np.stack([d.box for d in found])[rows],
            landmarks=np.stack([d.landmarks for d in found])[rows],
            scores=np.array([d.score for d in found], np.float32)[rows],
            embedding=np.zeros(4, np.float32),
        )
        shots = ((0, FRAMES),)
        folder.mkdir(parents=True, exist_ok=True)
        return Work(
            plan=Plan(info, shots, (track,), {0: 0}, cut_segments(shots, length)),
            settings=settings,
            sources=(faces[0],),
            digest="",
            folder=folder,
            template=pack.manifest.template_points(),
            crop_size=pack.manifest.crop_size,
            pack="starter",
            pack_digest=pack.digest(),
        )

    return make


def rendered(
    order: Work, networks: Networks, *, backwards: bool = False, apart: bool = False, ahead: bool = False
) -> list[bytes]:
    """The packets of all segments. ``apart``: last segment first, nothing kept, each by others; ``ahead``: as
    with a GPU, masks and starts before the segment's turn comes."""
    watch, packets = Stopwatch(), {}
    loader, swapper = Loader(order, watch, keep=not apart), Swapper(order, networks, watch)
    if ahead:
        ready = [swapper.start(swapper.prepare(loader.load(s))) for s in order.plan.segments]
        coming = [swapper.swap(segment) for segment in ready]
        for segment in order.plan.segments:
            path = Writer(order, watch, order.folder).write(coming[segment.index])
            with av.open(str(path)) as container:
                packets[segment.index] = [bytes(p) for p in container.demux(video=0) if p.size]
        return [p for index in sorted(packets) for p in packets[index]]
    for segment in reversed(order.plan.segments) if backwards or apart else order.plan.segments:
        if apart:
            loader, swapper = Loader(order, watch, keep=False), Swapper(order, networks, watch)
        path = Writer(order, watch, order.folder).write(swapper.swap(loader.load(segment)))
        with av.open(str(path)) as container:
            packets[segment.index] = [bytes(p) for p in container.demux(video=0) if p.size]
    return [p for index in sorted(packets) for p in packets[index]]


def test_segment_length_and_who_renders_change_no_byte(
    tmp_path: Path, work: Callable[..., Work], networks: Networks
) -> None:
    """The real swap, 96 frames a segment (here: all) against 8, each by itself as on a cluster."""
    whole = rendered(work(tmp_path / "a", 96, start="target"), networks)
    assert len(whole) == FRAMES
    assert rendered(work(tmp_path / "b", 8, start="target"), networks, apart=True) == whole


def test_what_is_made_ahead_changes_no_byte(
    tmp_path: Path, work: Callable[..., Work], networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks and starts of all segments before the first is swapped, each made once."""
    seen: list[int] = []
    drawn = MaskStage.drawn

    def watched(stage: MaskStage, item: Crops, parse: F32 | None) -> Crops:
        seen.extend(item.frames.tolist())
        return drawn(stage, item, parse)

    whole = rendered(work(tmp_path / "a", 8), networks)
    monkeypatch.setattr(MaskStage, "drawn", watched)
    assert rendered(work(tmp_path / "b", 8), networks, ahead=True) == whole
    assert sorted(seen) == list(range(FRAMES))


def test_what_fails_ahead_is_made_in_its_turn(
    tmp_path: Path, work: Callable[..., Work], networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rendered(work(tmp_path / "a", 8), networks)
    prepare, fails = SwapStage.prepare, [True]

    def failing(stage: SwapStage, item: Crops) -> Crops:
        if fails and fails.pop():
            raise ValueError("not now")
        return prepare(stage, item)

    monkeypatch.setattr(SwapStage, "prepare", failing)
    assert rendered(work(tmp_path / "b", 8), networks, ahead=True) == whole
    assert not fails


class Noise:
    """Stands for the swap: the negative and noise of the frame's own; counts what it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames: list[int] = []
        self.batches = 0
        monkeypatch.setattr(SwapStage, "process", lambda stage, item: self._process(stage, item))

    def _process(self, stage: SwapStage, item: Crops) -> Crops:
        self.frames += item.frames.tolist()
        self.batches += len(np.unique(item.frames // stage.settings.batch))
        noise = [np.random.default_rng(int(f)).normal(0, 8, item.images.shape[1:]) for f in item.frames]
        if stage.progress is not None:
            stage.progress(len(item))
        return replace(item, swapped=(255 - item.images + np.array(noise)).clip(0, 255).astype(np.float32))


def test_neighbours_are_looked_at_and_swapped_once_only(
    tmp_path: Path, work: Callable[..., Work], networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = Noise(monkeypatch)
    whole = rendered(work(tmp_path / "a", 96), networks)
    assert sorted(noise.frames) == list(range(FRAMES))
    assert noise.batches == FRAMES // 4
    noise.frames.clear()
    assert rendered(work(tmp_path / "b", 8), networks) == whole
    assert sorted(noise.frames) == list(range(FRAMES)), "what one segment swapped, the next one has"
    assert noise.batches == 2 * FRAMES // 4, "and no batch goes half empty"
    assert rendered(work(tmp_path / "e", 8), networks, backwards=True) == whole
    noise.frames.clear()
    assert rendered(work(tmp_path / "c", 8), networks, apart=True) == whole
    assert sorted(noise.frames) == sorted([*range(11), *range(5, 16)])
    assert rendered(work(tmp_path / "d", 8, steady=0.0), networks) != whole


def test_a_segment_counts_and_reports_its_own_frames_only(
    tmp_path: Path, work: Callable[..., Work], networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    Noise(monkeypatch)
    order, watch, told = work(tmp_path, 8), Stopwatch(), []
    loader, swapper = Loader(order, watch, keep=True), Swapper(order, networks, watch, told.append)
    for segment in order.plan.segments:
        swapped = swapper.swap(loader.load(segment))
        assert swapped_frames(swapped) == list(range(segment.start, segment.stop))
        assert [f.index for f in swapped.frames] == list(range(segment.start, segment.stop))
        assert sum(told) == segment.stop


def test_a_neighbour_that_cannot_be_decoded_is_done_without(
    tmp_path: Path, work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DecodeStage.frames

    def broken(stage: DecodeStage, segment: Segment) -> Iterator[Frame]:
        for frame in real(stage, segment):
            if frame.index == 9:
                raise InputError("frame 9 can't be decoded")
            yield frame

    monkeypatch.setattr(DecodeStage, "frames", broken)
    order = work(tmp_path, 8)
    loader = Loader(order, Stopwatch(), keep=False)
    first, second = order.plan.segments
    loaded = loader.load(first)
    assert loaded.crops[0].frames.tolist() == [*range(9), 10]
    assert loaded.notes == {"alone": [9]}
    with pytest.raises(InputError, match="frame 9"):
        loader.load(second)


@pytest.mark.parametrize("apart", [True, False])
def test_a_neighbour_that_cannot_be_swapped_is_done_without_and_said(
    tmp_path: Path,
    work: Callable[..., Work],
    networks: Networks,
    monkeypatch: pytest.MonkeyPatch,
    apart: bool,
) -> None:
    noise = Noise(monkeypatch)
    plain = noise._process

    def poisoned(stage: SwapStage, item: Crops) -> Crops:
        if 9 in item.frames:
            raise ValueError("poisoned")
        return plain(stage, item)

    monkeypatch.setattr(noise, "_process", poisoned)
    order, watch, told = work(tmp_path, 8), Stopwatch(), []
    first, second = order.plan.segments
    swapper = Swapper(order, networks, watch, told.append)
    swapped = swapper.swap(Loader(order, watch, keep=not apart).load(first))
    assert swapped.notes == {"alone": [8, 9, 10]}
    assert swapped.crops[0].frames.tolist() == list(range(8))
    assert len(swapped.crops[0].weights) == 8 and sum(told) == 8
    assert swapped_frames(swapped) == list(range(8))
    with pytest.raises(ValueError, match="poisoned"):
        swapper.swap(Loader(order, watch, keep=not apart).load(second))


def test_a_face_that_comes_in_mid_shot_fades_in(
    tmp_path: Path, work: Callable[..., Work], networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    Noise(monkeypatch)
    changes = {}
    for fade in (0, 6):
        order = work(tmp_path / str(fade), 96, slice(5, None), fade_frames=fade)
        watch = Stopwatch()
        loaded = Loader(order, watch, keep=True).load(order.plan.segments[0])
        path = Writer(order, watch, order.folder).write(Swapper(order, networks, watch).swap(loaded))
        with av.open(str(path)) as container:
            made = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert len(made) == FRAMES
        pairs = zip(made, loaded.frames, strict=True)
        changes[fade] = [float(np.abs(m.astype(int) - f.rgb).mean()) for m, f in pairs]
    assert max(changes[0][:5]) < 1.5 < 2 < min(changes[0][5:])
    assert changes[6][5] < 0.5 * changes[0][5]
    assert changes[6][5] < changes[6][7] < changes[6][9]
    np.testing.assert_allclose(changes[6][11:], changes[0][11:], rtol=0.03)


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
