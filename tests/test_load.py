"""Loading a segment: what it says of a track doesn't depend on how little of the track it sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ldvid.configs.settings import Settings
from ldvid.pipeline.load import Loader
from ldvid.pipeline.plan import Plan, cut_segments
from ldvid.pipeline.progress import Stopwatch
from ldvid.pipeline.work import Work
from ldvid.stages.decode import probe
from ldvid.stages.records import F32, Track
from ldvid.stages.swap.pack import Pack


@pytest.mark.parametrize("length", [4, 16])
def test_a_hole_longer_than_what_a_segment_sees_fades_nothing(
    example_clip: Path, pack: Pack, length: int
) -> None:
    """Rows 3 to 27 were taken out by hand: what follows neither comes nor goes."""
    info = probe(example_clip)
    frames = np.array([0, 1, 2, *range(28, 48)])
    points = np.array([[200, 100], [260, 100], [230, 130], [205, 160], [255, 160]], np.float32)
    track = Track(
        id=0,
        shot=0,
        frames=frames,
        boxes=np.tile(np.array([180, 60, 280, 200], np.float32), (len(frames), 1)),
        landmarks=np.tile(points, (len(frames), 1, 1)),
        scores=np.ones(len(frames), np.float32),
        embedding=np.zeros(0, np.float32),
    )
    shots = ((0, info.frames),)

    def weights(segment_frames: int) -> F32:
        settings = Settings(segment_frames=segment_frames, keyframe_interval=segment_frames, batch=4)
        plan = Plan(info, shots, (track,), {0: 0}, cut_segments(shots, segment_frames))
        work = Work(
            plan=plan,
            settings=settings,
            sources=(),
            digest="",
            folder=Path(),
            template=pack.manifest.template_points(),
            crop_size=pack.manifest.crop_size,
            pack="starter",
            pack_digest="",
        )
        loader, seen = Loader(work, Stopwatch(), keep=True), []
        for segment in plan.segments:
            for crops in loader.load(segment).crops:
                own = (crops.frames >= segment.start) & (crops.frames < segment.stop)
                assert crops.weights is not None
                seen.append(crops.weights[own])
        return np.concatenate(seen)

    whole = weights(48)
    np.testing.assert_array_equal(weights(length), whole)
    assert (whole == 1).all()
