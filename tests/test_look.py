"""Looking at a clip whole or by pieces, here or on a cluster: the same looks, and so the same plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from ldvid.configs import Settings
from ldvid.errors import InputError
from ldvid.pipeline.analyse import analyse
from ldvid.pipeline.look import Look, look
from ldvid.pipeline.progress import Silent, Stopwatch
from ldvid.pipeline.work import View
from ldvid.stages.decode import probe
from ldvid.stages.encode import encode_picture
from ldvid.stages.folder import read_picture
from ldvid.stages.records import U8, ClipInfo
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import Pack
from ldvid.stages.turned import roll_of

SETTINGS = Settings()


def same(a: Iterable[Look], b: Iterable[Look]) -> bool:
    """Whether two runs of looks are equal to the bit."""
    a, b = list(a), list(b)
    assert [x.index for x in a] == [y.index for y in b]
    for x, y in zip(a, b, strict=True):
        assert x.lost == y.lost and (x.thumbnail is None) == (x.lost is not None), x.index
        if x.thumbnail is not None and y.thumbnail is not None:
            assert all(np.array_equal(p, q) for p, q in zip(x.thumbnail, y.thumbnail, strict=True))
        for p, q in zip(x.faces, y.faces, strict=True):
            assert p.score == q.score and np.array_equal(p.box, q.box)
            assert np.array_equal(p.landmarks, q.landmarks)
        assert all(np.array_equal(p, q) for p, q in zip(x.crops, y.crops, strict=True))
    return True


def by_pieces(info: ClipInfo, pack: Pack, length: int, *, tolerant: bool = False) -> Iterator[Look]:
    for start in range(0, info.frames, length):
        stop = min(start + length, info.frames)
        yield from look(info, SETTINGS, pack, start, stop, Stopwatch(), tolerant=tolerant)


def whole(info: ClipInfo, pack: Pack, *, tolerant: bool = False) -> Iterator[Look]:
    return look(info, SETTINGS, pack, 0, info.frames, Stopwatch(), tolerant=tolerant)


def test_pieces_are_the_whole(example_clip: Path, pack: Pack) -> None:
    info = probe(example_clip, end=2.0)
    looks = list(whole(info, pack))
    assert len(looks) == 24 and all(len(x.faces) == len(x.crops) == 1 for x in looks)
    assert same(looks, by_pieces(info, pack, 7))


def test_a_lying_head_is_looked_for_where_it_was_or_somebody_is_missing(
    tmp_path: Path, pack: Pack, example_face: Path
) -> None:
    portrait = cv2.resize(read_picture(example_face), (120, 120), interpolation=cv2.INTER_AREA)
    empty = np.full((360, 640, 3), 90, np.uint8)

    def scene(*quarters: int | None) -> U8:
        picture = empty.copy()
        for place, quarter in enumerate(quarters):
            if quarter is not None:
                picture[80:200, 40 + 300 * place : 160 + 300 * place] = np.rot90(portrait, quarter)
        return picture

    # One lies from the second group's second frame on, beside an upright one: seen from the third group on.
    # There one who was upright lies down within the group, and is not lost.
    show = [(0, None)] * 9 + [(0, 1)] * 7 + [(0, 0)] * 2 + [(0, 1)] * 6
    for i, quarters in enumerate(show):
        (tmp_path / f"f{i:02d}.png").write_bytes(encode_picture(scene(*quarters), ".png"))
    info = probe(tmp_path)
    looks = list(whole(info, pack))
    assert [len(x.faces) for x in looks] == [1] * 16 + [2] * 8
    assert sorted(round(roll_of(f.landmarks)) // 45 for f in looks[-1].faces) == [-2, 0]
    assert same(looks, by_pieces(info, pack, 5))
    assert same(looks, by_pieces(info, pack, 1))


def test_lost_frames_at_the_edges_of_pieces(
    example_clip: Path, tmp_path: Path, pack: Pack, networks: Networks
) -> None:
    face = read_picture(Path(example_clip).with_name("face.png"))
    data = encode_picture(face, ".png")
    for number in range(9):
        # Cut off after the header: what a scan sees is whole.
        (tmp_path / f"f{number}.png").write_bytes(data)
    info = probe(tmp_path)
    for number in (3, 5, 6):
        (tmp_path / f"f{number}.png").write_bytes(data[:4000])
    looks = list(whole(info, pack, tolerant=True))
    assert [x.index for x in looks if x.lost] == [3, 5, 6]
    assert all(f"f{x.index}.png" in str(x.lost) for x in looks if x.lost)
    assert same(looks, by_pieces(info, pack, 3, tolerant=True))
    assert same(looks, by_pieces(info, pack, 1, tolerant=True))
    with pytest.raises(InputError, match=r"f3\.png"):
        list(whole(info, pack))

    told: list[str] = []

    class Told(Silent):
        def warn(self, message: str) -> None:
            told.append(message)

    embed = lambda c: networks.embed(c[None])[0]  # noqa: E731
    plan = analyse(info, SETTINGS, iter(looks), embed, Told(), Stopwatch())
    assert [m.count("passed through") for m in told] == [1, 1, 1]
    assert len(plan.tracks) == 1 and len(plan.shots) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_cluster_looks_the_same(example_clip: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from ldvid.pipeline.cluster import looking

    monkeypatch.setattr(looking, "_PIECE", 5)
    info = probe(example_clip, end=1.5)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        watch = Stopwatch()
        looks = list(looking.looks_of(View(info, SETTINGS, "starter"), watch))
        assert same(looks, whole(info, pack))
        assert all(crop.flags.writeable for x in looks for crop in x.crops)
        assert watch.seconds["detect"] > 0
        gone = View(info, SETTINGS, "no such pack")
        with pytest.raises(Exception, match="no such pack"):
            list(looking.looks_of(gone, watch))
    finally:
        ray.shutdown()
