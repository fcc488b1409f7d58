"""Who is who and who gets what: made-up tracks where the truth is known, then a real clip of two people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ldvid.configs import Settings
from ldvid.errors import FaceError, JobError, SettingsError
from ldvid.pipeline.assign import (
    assign,
    check_plan,
    check_sources,
    given_plan,
    identity_values,
    parse_source,
    sources_of,
)
from ldvid.pipeline.plan import Plan, cut_segments
from ldvid.pipeline.request import SourceFor, SwapRequest
from ldvid.stages.decode import probe
from ldvid.stages.detect import Detector
from ldvid.stages.people import cluster, find_people, nearest_person, people_of, select_people
from ldvid.stages.records import F32, Track
from ldvid.stages.source import load_average, load_source
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import Pack

ROOT = Path(__file__).resolve().parents[1]
FACE, FACE_2, CLIP = ROOT / "examples/face.png", ROOT / "examples/face-2.png", ROOT / "examples/clip.mp4"
AXES = np.eye(4)


def track(
    number: int,
    frames: range,
    vector: Sequence[float],
    *,
    side: float = 50,
    x: float = 0,
    shot: int = 0,
    score: float = 0.95,
) -> Track:
    n = len(frames)
    box = np.tile(np.array([x, 0, x + side, side], np.float32), (n, 1))
    unit = (np.array(vector) / np.linalg.norm(vector)).astype(np.float32)
    points = np.zeros((n, 5, 2), np.float32)
    return Track(number, shot, np.array(frames), box, points, np.full(n, score, np.float32), unit)


def towards(axis: int, share: float, other: int = 3) -> np.ndarray:
    """A unit vector whose cosine to an axis is ``share``."""
    return AXES[axis] * share + AXES[other] * np.sqrt(1 - share**2)


# ---- clusters


def test_one_person_over_three_shots_and_a_stranger() -> None:
    tracks = [
        track(0, range(10), towards(0, 0.9)),
        track(1, range(5), AXES[1]),
        track(2, range(20, 40), towards(0, 0.8, 2), shot=1),
        track(3, range(50, 60), AXES[0], shot=2),
    ]
    assert find_people(tracks, [0.04] * 60) == {0: 0, 2: 0, 3: 0, 1: 1}


def test_people_are_numbered_by_time_on_screen_and_then_by_first_appearance() -> None:
    tracks = [track(0, range(5), AXES[0]), track(1, range(10, 30), AXES[1]), track(2, range(40, 45), AXES[2])]
    assert find_people(tracks, [0.04] * 60) == {1: 0, 0: 1, 2: 2}
    # Time is what counts, not frames.
    slow = [1.0] * 5 + [0.04] * 55
    assert find_people(tracks, slow) == {0: 0, 1: 1, 2: 2}
    numbers = find_people(tracks, [0.04] * 60)
    people = people_of(tracks, numbers, slow)
    assert [(p.number, p.frames, round(p.seconds, 2)) for p in people] == [
        (0, 20, 0.8),
        (1, 5, 5.0),
        (2, 5, 0.2),
    ]


def test_nobody_is_in_one_frame_twice() -> None:
    twins = [track(0, range(10), AXES[0]), track(1, range(5, 15), AXES[0])]
    later = track(2, range(20, 30), towards(0, 0.99), shot=1)
    groups = [[t.id for t in g] for g in cluster([*twins, later], 0.4)]
    assert groups == [[0, 2], [1]]
    # The bar holds for whole groups: 2 is with 0, so 1 may not join them by way of 2.
    assert len(find_people([*twins, later], [1.0] * 30)) == 3


def test_average_linkage_needs_the_groups_alike_not_one_pair() -> None:
    # 0–1 at 0.9, 1–2 at 0.5, 0–2 at 0.09: 2 is at 0.295 to both on average.
    a, b = AXES[0], towards(0, 0.9, 1)
    c = np.array([0.09, (0.5 - 0.9 * 0.09) / np.sqrt(1 - 0.81), 0, 0])
    c[2] = np.sqrt(1 - float(c @ c))
    tracks = [track(i, range(10 * i, 10 * i + 5), v, shot=i) for i, v in enumerate((a, b, c))]
    assert [len(g) for g in cluster(tracks, 0.4)] == [2, 1]
    assert [len(g) for g in cluster(tracks, 0.28)] == [3]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(1, 9)), max_size=9), st.randoms()
)
def test_the_order_of_tracks_changes_nothing_and_nobody_is_lost(
    made: list[tuple[int, int, int]], random: object
) -> None:
    rng = np.random.default_rng(len(made))
    tracks = [
        track(i, range(start, start + length), AXES[who] + rng.normal(0, 0.2, 4))
        for i, (who, start, length) in enumerate(made)
    ]
    people = find_people(tracks, [0.04] * 40)
    shuffled = list(tracks)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert find_people(shuffled, [0.04] * 40) == people
    assert people.keys() == {t.id for t in tracks}
    assert sorted(set(people.values())) == list(range(len(set(people.values()))))
    for number in set(people.values()):
        seen = [f for t in tracks if people[t.id] == number for f in t.frames.tolist()]
        assert len(seen) == len(set(seen))


# ---- who is meant


def scene() -> tuple[list[Track], dict[int, int]]:
    """0 at the right and large; 1 at the left; 2 alone and far left; 3 a tree."""
    tracks = [
        track(0, range(40), AXES[0], side=90, x=300),
        track(1, range(30), AXES[1], side=60, x=100),
        track(2, range(50, 60), AXES[2], side=60, x=5, shot=1),
        track(3, range(5), AXES[3], side=60, x=0, score=0.7),
    ]
    return tracks, find_people(tracks, [0.04] * 60)


@pytest.mark.parametrize(
    ("how", "who"), [("largest", [0]), ("all", [0, 1, 2]), ("left", [1]), ("right", [0])]
)
def test_select(how: str, who: list[int]) -> None:
    people = people_of(*scene(), [0.04] * 60)
    assert [p.number for p in select_people(people, how)] == who  # type: ignore[arg-type]


def test_select_without_rivals_or_anybody_sure() -> None:
    tracks = [track(0, range(5), AXES[0], x=90), track(1, range(20, 29), AXES[1], x=10, shot=1)]
    people = people_of(tracks, find_people(tracks, [0.04] * 40), [0.04] * 40)
    assert [p.tracks[0].id for p in select_people(people, "left")] == [1]
    assert [p.tracks[0].id for p in select_people(people, "right")] == [0]
    assert select_people([], "all") == select_people([], "left") == []
    unsure = [replace(t, scores=t.scores * 0.7) for t in tracks]
    assert len(select_people(people_of(unsure, {0: 0, 1: 1}, [1] * 40), "all")) == 2


def test_the_nearest_person_may_be_near_in_one_shot_only() -> None:
    tracks = [
        track(0, range(30), AXES[0]),
        track(1, range(40, 50), towards(0, 0.5, 1), shot=1),
        track(2, range(60, 70), AXES[2], shot=2),
    ]
    people = people_of(tracks, {0: 0, 1: 0, 2: 1}, [0.04] * 70)
    found = nearest_person(people, towards(0, 0.5, 1).astype(np.float32))
    assert found is not None and (found[0].number, round(found[1], 3)) == (0, 1.0)
    assert nearest_person([], AXES[0].astype(np.float32)) is None


# ---- --source


def test_a_source_is_photographs_and_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a@1", "b,c.png", "d.png"):
        (tmp_path / name).write_bytes(b"")
    assert parse_source("alice.png") == (["alice.png"], None)
    assert parse_source("alice.png@0") == (["alice.png"], 0)
    assert parse_source("al@ice.png@12") == (["al@ice.png"], 12)
    assert parse_source("al@ice.png") == (["al@ice.png"], None)
    assert parse_source("a@1") == (["a@1"], None)  # a file of that name is there
    assert parse_source("a@1@1") == (["a@1"], 1)
    assert parse_source("x.png,y.png@3") == (["x.png", "y.png"], 3)
    assert parse_source("b,c.png@3") == (["b,c.png"], 3)  # so is this
    assert parse_source("https://me@host/f,1.png") == (["https://me@host/f,1.png"], None)
    assert parse_source("s3://x/f.png,s3://x/g.png@2") == (["s3://x/f.png", "s3://x/g.png"], 2)
    assert parse_source("s3://x/f.png,d.png") == (["s3://x/f.png", "d.png"], None)
    many = [f"{i}-{'x' * 60}.png" for i in range(9)]
    assert parse_source(",".join(many)) == (many, None)  # as one name it would be too long
    assert parse_source(f"{','.join(many)}@2") == (many, 2)
    for text in ("", "@0", "a.png,", ",a.png@1"):
        with pytest.raises(SettingsError, match="--source"):
            parse_source(text)


def request(*sources: tuple[str, int | None], **more: object) -> SwapRequest:
    wanted = tuple(SourceFor((FACE if name == "face" else Path(name),), person) for name, person in sources)
    return SwapRequest(
        clip=CLIP,
        source=wanted[0].photos[0],
        settings=Settings(),
        sources=wanted,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (request(("a.png", 1), ("b.png", 1)), "person 1 can get only one face"),
        (request(("a.png", None), ("b.png", None)), "--source a.png@0"),
        (request(("a.png", None), ("b.png", None), plan=Path("p"), select="left"), "who gets which"),
        (request(("a.png", None), select="left", reference=Path("r")), "--select and --reference"),
        (request(("a.png", 0), select="left"), "--select: every --source names its person"),
        (request(("a.png", 0), reference=Path("r")), "--reference: every --source"),
        (request(("a.png", 0), ("b.png", 1), source_face=2), "--source-face"),
    ],
)
def test_what_can_not_be_meant_is_refused(asked: SwapRequest, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        check_sources(asked)


def test_what_can_be_meant_is_taken() -> None:
    check_sources(request(("a.png", None)))
    check_sources(request(("a.png", 2), ("b.png", None), select="all"))
    check_sources(request(("a.png", None), ("b.png", None), plan=Path("plan.json")))
    check_sources(request(("a.png", None), ("b.png", None), plan_rules=True))


def test_identity_holds_who_gets_what_and_no_names(tmp_path: Path) -> None:
    assert identity_values(request(("face", None))) is None
    assert identity_values(request(("face", None), select="largest")) is None
    copy = tmp_path / "other name.png"
    copy.write_bytes(FACE.read_bytes())
    same = [identity_values(request((str(p), 1))) for p in (FACE, copy)]
    assert same[0] == same[1] is not None
    asked = [
        request(("face", 0)), request(("face", 1)), request(("face", None), select="all"),
        request(("face", None), reference=FACE_2), request(("face", None), reference=FACE),
        request(("face", None), (str(FACE_2), 1)),
    ]  # fmt: skip
    values = [str(identity_values(a)) for a in asked]
    assert len(set(values)) == len(values)


def made_plan() -> Plan:
    tracks, people = scene()
    info = probe(CLIP)
    info = replace(
        info, timestamps=tuple(range(60)), durations=info.durations[:1] * 60, path=Path("film.mp4")
    )
    shots = ((0, 45), (45, 60))
    return Plan(info, shots, tuple(tracks), {0: 0}, cut_segments(shots, 48), people)


def test_sources_go_to_people_by_number_and_the_rest_by_selection() -> None:
    plan = made_plan()
    numbers = plan.people
    one, two = numbers[1], numbers[2]

    def given(
        *sources: tuple[str, int | None], reference: F32 | None = None, **more: object
    ) -> dict[int, int]:
        return assign(plan, request(*sources, **more), reference).sources

    assert given(("a", None)) == {0: 0}
    assert given(("a", one), ("b", two)) == {1: 0, 2: 1}
    assert given(("a", one), ("b", None)) == {1: 0, 0: 1}
    assert given(("a", 0), ("b", None)) in ({0: 0, 1: 1}, {0: 0, 2: 1})  # the largest of the others
    assert given(("a", 0), ("b", None), select="all") == {0: 0, 1: 1, 2: 1}
    assert given(("a", None), select="left") == {1: 0}
    assert given(("a", None), reference=AXES[2].astype(np.float32)) == {2: 0}
    with pytest.raises(FaceError, match=r"nobody in film.mp4 looks like it.*person 2, 0.30 .*0 \(3\.. s\)"):
        given(("a", None), reference=np.array([0.1, 0.1, 0.3, 0.0], np.float32))


def test_a_person_that_is_not_there_is_refused_and_those_there_are_are_named() -> None:
    plan = made_plan()
    with pytest.raises(SettingsError) as caught:
        assign(plan, request(("bob.png", 7)))
    seconds = plan.clip.spans[0]
    assert "bob.png@7: there is no person 7 in film.mp4" in str(caught.value)
    for number, frames in ((0, 40), (1, 30), (2, 10), (3, 5)):
        assert f"{number} ({frames * seconds:.1f} s)" in str(caught.value)
    single = replace(plan, tracks=plan.tracks[:1], people={0: 0})
    with pytest.raises(SettingsError, match="there is only 0 "):
        assign(single, request(("bob.png", 1)))
    with pytest.raises(FaceError, match=r"nobody is left for it.*is only 0"):
        assign(single, request(("a.png", 0), ("b.png", None)))
    assert assign(replace(plan, tracks=(), people={}), request(("bob.png", 7))).sources == {}


def test_who_is_left_is_no_surer_a_face_than_before() -> None:
    plan = made_plan()
    tree = plan.people[3]
    two = replace(plan, tracks=(plan.tracks[0], plan.tracks[3]), people={0: 0, 3: tree})
    with pytest.raises(FaceError, match=r"b.png: nobody is left for it who is surely.*name one with @N"):
        assign(two, request(("a.png", 0), ("b.png", None)))
    assert assign(two, request(("a.png", 0), ("b.png", tree))).sources == {0: 0, 3: 1}
    unsure = replace(plan, tracks=tuple(replace(t, scores=t.scores * 0.7) for t in plan.tracks))
    assert assign(unsure, request(("a.png", 0), ("b.png", None), select="left")).sources == {3: 1, 0: 0}


def test_embeddings_that_were_edited_away_are_said() -> None:
    plan = made_plan()
    reference = AXES[2].astype(np.float32)
    photo = request(("a", None), reference=Path("r.png"), plan=Path("p.json"))
    emptied = replace(plan, tracks=tuple(replace(t, embedding=t.embedding[:0]) for t in plan.tracks))
    with pytest.raises(JobError, match=r"p.json: the embedding of track 0 has 0 numbers, not 4, .*r.png"):
        assign(emptied, photo, reference)
    assert assign(emptied, request(("a", 1))).sources
    one = replace(plan, tracks=(*plan.tracks[:3], replace(plan.tracks[3], embedding=np.ones(3, np.float32))))
    with pytest.raises(JobError, match="track 3 has 3 numbers"):
        assign(one, request(("a", 1)))


def test_a_record_says_which_face_of_its_photograph() -> None:
    asked = request(("face", None), select="all", source_face=2)
    (stated,) = sources_of(asked, identity_values(asked))
    assert stated["face"] == 2 and stated["names"] == ["face.png"]


def test_a_plan_may_name_any_source_that_there_is() -> None:
    plan = replace(made_plan(), sources={0: 1, 2: 0})
    wanted = request(("a.png", None), ("b.png", None), ("c.png", None)).wanted
    assert check_plan(plan, wanted[:2], "plan.json") == []
    assert check_plan(plan, wanted, "plan.json") == ["--source c.png: nobody gets it by the plan"]
    with pytest.raises(JobError, match=r"plan.json: track 0 gets source 1.*there are: 0 \(a.png\)"):
        check_plan(plan, wanted[:1], "plan.json")


def test_a_plan_must_be_of_this_clip(tmp_path: Path) -> None:
    whole, part = probe(CLIP), probe(CLIP, end=1.0)
    shots = ((0, whole.frames),)
    file = tmp_path / "plan.json"
    plan = Plan(whole, shots, (track(0, range(4), AXES[0]),), {0: 0}, cut_segments(shots, 24), {0: 0})
    file.write_text(plan.to_json())
    taken = given_plan(file, whole, Settings(segment_frames=48))
    assert taken.segments == cut_segments(shots, 48) and taken.sources == {0: 0}
    with pytest.raises(JobError, match=r"number of frames: 48, not 12"):
        given_plan(file, part, Settings())
    with pytest.raises(JobError, match="can't be read"):
        given_plan(tmp_path / "none.json", whole, Settings())


# ---- photographs of one face


def test_photographs_of_one_source_are_averaged(
    pack: Pack, networks: Networks, detector: Detector, tmp_path: Path
) -> None:
    import cv2

    portrait = cv2.imread(str(FACE))
    small = cv2.resize(portrait, (96, 96), interpolation=cv2.INTER_AREA)
    worse = tmp_path / "small.png"
    cv2.imwrite(str(worse), small)
    alone = [load_source(p, pack, detector, networks.embed, None)[0] for p in (worse, FACE)]
    mean, warnings = load_average([worse, FACE], pack, detector, networks.embed)
    assert warnings == [] and mean.path == FACE and np.array_equal(mean.image, alone[1].image)
    unit = alone[0].embedding + alone[1].embedding
    np.testing.assert_allclose(mean.embedding, unit / np.linalg.norm(unit), atol=1e-5)
    assert mean.sha256 not in (alone[0].sha256, alone[1].sha256)
    one, _ = load_average([FACE], pack, detector, networks.embed)
    assert one.sha256 == alone[1].sha256 and np.array_equal(one.embedding, alone[1].embedding)
    _, (warning,) = load_average([FACE, worse, FACE_2], pack, detector, networks.embed)
    assert warning.startswith(str(FACE_2)) and "somebody else" in warning
