"""The report of a job: what it measures and says, that it holds all it shows, and how a browser takes it."""

from __future__ import annotations

import base64
import html.parser
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.cli import main
from ldvid.configs import load_settings
from ldvid.metrics.judges import open_judges
from ldvid.metrics.stillness import StillnessMeter
from ldvid.metrics.timeline import HEIGHT, WIDTH, Limit, Series, Span, frame_ticks, nice_ticks, timeline
from ldvid.pipeline import job_report, job_report_measure
from ldvid.pipeline.job import load_plan
from ldvid.pipeline.job_report import is_quick
from ldvid.pipeline.job_report_inputs import Frames, open_inputs
from ldvid.pipeline.job_report_record import packed, unpacked
from ldvid.pipeline.job_report_strands import strands_of
from ldvid.pipeline.plan import Plan
from ldvid.pipeline.progress import Silent
from ldvid.stages.decode import open_reader, probe, read_picture
from ldvid.stages.detect import Detector
from ldvid.stages.picture_write import encode_picture
from ldvid.stages.spread import limited
from ldvid.stages.swap.pack import Pack
from PIL import Image

Run = Callable[..., tuple[int, str, str]]
# Names that would be markup, an attribute's end and a script's, if any of them were believed.
CLIP = "<img src=x onerror=alert(1)><!--<script>\"'&amp;.mp4"
SOURCE = "<script>alert(2)&lt;.png"
SHOT = 4  # frames
CHROMIUM = next(
    filter(
        None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))
    ),
    None,
)


@dataclass(frozen=True)
class Made:
    """A job of two shots and two people with its report: SHOT frames of a man, as many of him and a woman."""

    folder: Path
    output: Path
    job: Path
    page: Path
    figures: dict[str, Any]
    plan: Plan


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command's code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*map(str, arguments), "--debug"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def two_shots(clip: Path, photo: Path, path: Path) -> None:
    """SHOT frames of a clip and as many of a photo that sways, 12 a second, H.264."""
    reader = open_reader(probe(clip), "pyav")
    frames = [frame.rgb for frame in reader.read(0, SHOT)]
    reader.close()
    still = read_picture(photo)
    frames += [np.roll(still, round(3 * np.sin(i)), axis=1) for i in range(SHOT)]
    with av.open(str(path), "w", format="mp4") as made:
        stream = made.add_stream("libx264", rate=12, options={"crf": "12"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for rgb in frames:
            made.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        made.mux(stream.encode())


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, example_clip: Path, example_face: Path, test_data: Path
) -> Made:
    """Swapped by the real networks in one step, with ``--report``."""
    folder = tmp_path_factory.mktemp("report")
    two_shots(example_clip, test_data / "two-faces.jpg", folder / CLIP)
    shutil.copyfile(example_face, folder / SOURCE)
    output = folder / "out.mp4"
    command = ("swap", folder / CLIP, "-s", folder / SOURCE, "-o", output, "--select", "all", "--report")
    code = main([*map(str, command), "--keep-job", "--set", "steps=1", "--device", "cpu", "-q", "--debug"])
    assert code == 0
    job, page = folder / "out.mp4.ldvid-job", folder / "out.mp4.report.html"
    plan = load_plan(job)
    assert plan is not None and len(plan.shots) == 2 and len(plan.tracks) == 3
    return Made(folder, output, job, page, Page.of(page).figures(), plan)


class Page(html.parser.HTMLParser):
    """What is in a page: elements with attributes, the text of some."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []

    @classmethod
    def of(cls, path: Path) -> Page:
        page = cls()
        page.feed(path.read_text(encoding="utf-8"))
        page.close()
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def figures(self) -> dict[str, Any]:
        return dict(json.loads(self.texts["script"][0]))


def test_everything_is_in_the_file(made: Made) -> None:
    page, text = Page.of(made.page), made.page.read_text(encoding="utf-8")
    for tag, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            if key in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
                assert value.startswith(("data:", "#")), (tag, key, value[:60])
    assert not re.search(
        r"url\(|@import|https?:|fetch\(|XMLHttp|<link(?! rel=\"icon\" href=\"data:,\")", text
    )
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "http" not in policy
    ids = {a["id"] for _, a in page.elements if "id" in a}
    assert {a["href"][1:] for a in page.all("a")} <= ids, "every link leads somewhere on the page"


def test_every_picture_decodes_and_is_marked(made: Made) -> None:
    pictures = Page.of(made.page).all("img")
    decoded = {}
    for img in pictures:
        head, _, data = img["src"].partition(",")
        assert head == "data:image/jpeg;base64" and img["alt"]
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            image.load()
            if "width" in img:
                assert image.size == (int(img["width"]), int(img["height"]))
            assert np.asarray(image).std() > 10, "it shows something"
            if img["alt"].endswith(", swapped"):
                assert b"a face in this video was swapped" in image.info["comment"]
                decoded.setdefault(img["alt"].removesuffix(", swapped"), []).append(np.asarray(image, int))
            elif img["alt"].endswith(", original"):
                assert "comment" not in image.info
                decoded[img["alt"].removesuffix(", original")].append(np.asarray(image, int))
    # Both shots as a whole, three heads in them, and the worst faces.
    assert len(decoded) == 2 + 3 + len(made.figures["worst"])
    for name, (swapped, original) in decoded.items():
        assert np.abs(swapped - original).max() > 20, f"{name}: before and after are the same"


def test_names_of_files_stay_text(made: Made) -> None:
    page = Page.of(made.page)
    assert page.texts["h1"] == [f"{CLIP} ← {SOURCE}"]
    assert page.texts["title"][0] == f"{CLIP} ← {SOURCE}: ldvid report"
    assert len(page.all("script")) == 2 and not [i for i in page.all("img") if i.get("src") == "x"]
    assert made.figures["clip"] == CLIP


def points_of(svg: str, style: str) -> list[tuple[float, float]]:
    found = []
    for line in re.findall(rf'<polyline class="line {style}" points="([^"]*)"', svg):
        found += [tuple(map(float, p.split(","))) for p in line.split()]
    found += [
        (float(x), float(y))
        for x, y in re.findall(rf'<circle class="dot {style}" cx="(.*?)" cy="(.*?)"', svg)
    ]
    return sorted(found)


def test_plots_have_a_point_for_each_frame(made: Made) -> None:
    text = made.page.read_text(encoding="utf-8")
    cards = text.split('data-person="')[1:]
    assert len(cards) == len(made.figures["people"]) == 2
    swapped = dict.fromkeys(made.plan.people.values(), 0)
    for track in made.plan.tracks:
        swapped[made.plan.people[track.id]] += len(track.frames)
    assert sorted(swapped.values()) == [SHOT, 2 * SHOT], "the man in both shots, the woman in one"
    for card, person in zip(cards, made.figures["people"], strict=True):
        frames, series = person["frames"], person["series"]
        assert len(frames) == swapped[person["person"]] == len(set(frames))
        plots = card.split("data-series=")[1:]
        assert [p.split('"')[1] for p in plots] == [
            "identity before", "pose_error", "stillness", "drift", "found score",
        ]  # fmt: skip
        for plot in plots:
            for key, style in zip(plot.split('"')[1].split(), ("after", "before"), strict=False):
                known = [v for v in series[key] if v is not None]
                points = points_of(plot.split("</svg>")[0], style)
                assert len(points) == len(known) > 0, key
                heights = np.array([y for _, y in points])
                if np.ptp(heights) > 2:
                    assert np.corrcoef(known, heights)[0, 1] < -0.99, "higher values are higher up"
        # Nothing is compared across a cut, nor the first frame with one before it.
        starts = [f for f in frames if f in (0, SHOT)]
        assert [f for f, v in zip(frames, series["stillness"], strict=True) if v is None] == starts


def test_figures_are_the_judges(made: Made, pack: Pack, detector: Detector) -> None:
    judges = open_judges(pack)
    picture = read_picture(made.folder / SOURCE)
    source = judges.identity.embed(picture, detector.detect(picture)[0].landmarks)
    frame = 5
    track = next(t for t in made.plan.tracks if frame in t.frames)
    points = track.landmarks[int(np.searchsorted(track.frames, frame))]
    person = next(p for p in made.figures["people"] if p["person"] == made.plan.people[track.id])
    series = {k: v[person["frames"].index(frame)] for k, v in person["series"].items()}
    before, after = (
        next(iter(open_reader(probe(path), "pyav").read(frame, frame + 1))).rgb
        for path in (made.folder / CLIP, made.output)
    )
    assert series["identity"] == pytest.approx(judges.identity.embed(after, points) @ source, abs=2e-3)
    assert series["before"] == pytest.approx(judges.identity.embed(before, points) @ source, abs=2e-3)
    error = np.linalg.norm(judges.pose.pose(after, points) - judges.pose.pose(before, points))
    assert series["pose_error"] == pytest.approx(error, abs=0.02)
    assert series["score"] == pytest.approx(track.scores[np.searchsorted(track.frames, frame)], abs=1e-3)
    assert 0.6 < series["found"] <= 1
    assert series["identity"] > series["before"], "the swap did something"


def test_a_job_and_its_output_give_the_same_figures(made: Made, run: Run, tmp_path: Path) -> None:
    of_job, of_output = tmp_path / "job.html", tmp_path / "out.html"
    code, out, said = run("report", made.job, "-o", of_job, "-q")
    assert code == 0 and not out, said
    # The output alone, elsewhere, its inputs elsewhere again and under other names.
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("out.mp4", "out.mp4.json"):
        shutil.copyfile(made.folder / name, moved / name)
    shutil.copyfile(made.folder / CLIP, tmp_path / "clip.mp4")
    shutil.copyfile(made.folder / SOURCE, tmp_path / "face.png")
    lost = run("report", moved / "out.mp4")
    assert lost[0] == 3 and "say with --clip" in lost[2]
    lost = run("report", moved / "out.mp4", "--clip", tmp_path / "clip.mp4")
    assert lost[0] == 3 and "say with --source" in lost[2]
    wrong = run("report", moved / "out.mp4", "--clip", made.output, "-s", tmp_path / "face.png")
    assert wrong[0] == 3 and "is not the clip" in wrong[2]
    assert sorted(p.name for p in moved.iterdir()) == ["out.mp4", "out.mp4.json"], "nothing half made is left"
    found = ("--clip", tmp_path / "clip.mp4", "-s", tmp_path / "face.png")
    code, out, said = run("report", moved / "out.mp4", *found, "-o", of_output, "--json", "-q")
    assert code == 0, said
    one, two = Page.of(of_job).figures(), Page.of(of_output).figures()
    assert one["people"] == two["people"] == made.figures["people"]
    assert one["worst"] == two["worst"] and one["seconds"] == two["seconds"]
    printed = json.loads(out)
    assert printed.pop("report") == str(of_output) and printed == two


def test_every_nth_frame(made: Made, run: Run, tmp_path: Path) -> None:
    code, out, said = run("report", made.output, "--every", "3", "-o", tmp_path / "r.html", "--json", "-q")
    assert code == 0, said
    for person in json.loads(out)["people"]:
        whole = next(p for p in made.figures["people"] if p["person"] == person["person"])
        assert set(person["frames"]) == {f for f in whole["frames"] if f % 3 == 0}
        for key, values in person["series"].items():
            every = dict(zip(whole["frames"], whole["series"][key], strict=True))
            assert values == [every[f] for f in person["frames"]], f"{key}: the same, only fewer"
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "One frame in 3 was measured" in text


def test_what_is_refused(
    made: Made, run: Run, tmp_path: Path, example_clip: Path, example_face: Path
) -> None:
    before = made.page.read_bytes()
    code, _, said = run("report", made.output)
    assert code == 5 and "--overwrite" in said and made.page.read_bytes() == before
    assert run("report", made.output, "-o", tmp_path / "r.pdf")[0] == 2
    assert run("report", made.output, "-o", tmp_path / "none" / "r.html")[0] == 6
    code, _, said = run("report", tmp_path / "nothing.mp4")
    assert code == 8 and "no such job folder" in said
    code, _, said = run("report", example_clip)
    assert code == 8 and "clip.mp4.json" in said
    shutil.copytree(made.job, tmp_path / "job")
    (tmp_path / "job/segments/000000.json").unlink()
    code, _, said = run("report", tmp_path / "job")
    assert code == 8 and "segment 0 is not finished" in said
    shutil.copyfile(made.folder / "out.mp4.json", tmp_path / "out.mp4.json")
    (tmp_path / "out.mp4").write_bytes(made.output.read_bytes() + b"\0")
    code, _, said = run("report", tmp_path / "out.mp4", "--clip", made.folder / CLIP)
    assert code == 3 and "is not the file that" in said
    record = json.loads((made.folder / "out.mp4.json").read_text(encoding="utf-8"))
    shutil.copyfile(made.output, tmp_path / "out.mp4")
    (tmp_path / "out.mp4.json").write_text(json.dumps(record | {"plan": record["plan"][:-40]}))
    code, _, said = run("report", tmp_path / "out.mp4")
    assert code == 8 and "its plan is damaged" in said
    assert not list(tmp_path.glob("*.html")) and not list(tmp_path.glob(".*"))
    # With --report, all this is said before the swap.
    out = tmp_path / "o.mp4"
    swap = ("swap", example_clip, "-s", example_face, "-o", out, "--report")
    (tmp_path / "o.mp4.report.html").write_text("mine")
    assert run(*swap)[0] == 5 and (tmp_path / "o.mp4.report.html").read_text() == "mine"
    assert run(*swap[:-2], tmp_path / "p.mp4", "--report", "--debug-overlay")[0] == 2
    assert run("swap", example_face, "-s", example_face, "--report")[0] == 2
    assert not out.exists()


def test_the_record_holds_the_plan_without_places_and_faces(made: Made) -> None:
    record = json.loads((made.folder / "out.mp4.json").read_text(encoding="utf-8"))
    plan = unpacked(record["plan"], "record")
    assert plan.clip.path == Path(CLIP), "no folder"
    assert str(made.folder) not in plan.to_json()
    for mine, theirs in zip(plan.tracks, made.plan.tracks, strict=True):
        assert not len(mine.embedding) and len(theirs.embedding)
        np.testing.assert_array_equal(mine.landmarks, theirs.landmarks)
        np.testing.assert_array_equal(mine.scores, theirs.scores)
    warned = replace(made.plan, clip=replace(made.plan.clip, warnings=(f"{made.folder}/a.mp4: odd",)))
    assert str(made.folder) not in unpacked(packed(warned), "record").to_json()
    assert (plan.shots, plan.sources, plan.people) == (made.plan.shots, made.plan.sources, made.plan.people)
    assert record["seconds"]["swap"] > 0 and record["seconds"]["decode"] >= 0


def test_the_page_says_how_the_job_was_made(made: Made) -> None:
    record = json.loads((made.folder / "out.mp4.json").read_text(encoding="utf-8"))
    page = Page.of(made.page)
    cells = [t for tag in ("td", "code") for t in page.texts[tag]]
    for sha256 in (record["input"]["sha256"], record["source"]["sha256"], record["output"]["sha256"]):
        assert sha256 in cells
    assert record["pack"]["digest"] in cells and record["settings_digest"] in cells
    assert any(f"torch {record['versions']['torch']}" in c for c in cells)
    text = made.page.read_text(encoding="utf-8")
    assert '<th>steps</th><td class="changed">1</td>' in text and "<th>eta</th><td>0.0</td>" in text
    usual = load_settings("cpu").steps
    assert usual != 1 and "changed from the preset" in text
    for stage in ("swap", "decode", "paste"):
        assert f"<th>{stage}</th>" in text


def beside(made: Made, folder: Path, **changed: Any) -> Path:
    """The output with its inputs in another folder, keys of its record changed."""
    for name in (CLIP, SOURCE, "out.mp4"):
        if not (folder / name).exists():
            (folder / name).hardlink_to(made.folder / name)
    record = json.loads((made.folder / "out.mp4.json").read_text(encoding="utf-8"))
    (folder / "out.mp4.json").write_text(json.dumps(record | changed), encoding="utf-8")
    return folder / "out.mp4"


BAD: list[dict[str, Any]] = [
    {"passed_through": [{"frames": ["<script>", 1], "reason": "x"}]},
    {"passed_through": [{"frames": [1], "reason": "x"}]},
    {"passed_through": {"frames": 1}},
    {"seconds": [1]},
    {"seconds": {"swap": "<b>"}},
    {"seconds": {"swap": float("nan")}},
    {"pack": "starter"},
    {"pack": {"name": ["starter"], "digest": "0"}},
    {"sources": "face.png"},
    {"sources": [{"names": ["a", "b"], "sha256": ["0"]}]},
    {"sources": [{"names": ["a"], "sha256": ["0"], "face": 0}]},
    {"frames_swapped": [[0, 10**12]]},
    {"frames_swapped": [["0", 1]]},
    {"settings": {"guidance": "identity"}},
    {"settings": {"detector_threshold": "high"}},
    {"input": {"name": "..", "sha256": "0"}},
    {"versions": ["torch"]},
    {"notice": "\ud800"},
    {"plan": 7},
]


@pytest.mark.parametrize("bad", BAD, ids=lambda b: json.dumps(b)[:40])
def test_a_record_that_holds_something_else_is_one_line(
    made: Made, run: Run, tmp_path: Path, bad: dict[str, Any]
) -> None:
    code, _, said = run("report", beside(made, tmp_path, **bad))
    line = next(text for text in said.splitlines() if text.startswith("ldvid: error"))
    assert code == 8 and "out.mp4.json: damaged; " in line, said
    assert not list(tmp_path.glob("*.html"))


def test_the_face_of_a_source_is_its_own_or_the_firsts(made: Made, tmp_path: Path) -> None:
    record = json.loads((made.folder / "out.mp4.json").read_text(encoding="utf-8"))
    (source,) = record["sources"]
    assert "face" in source and open_inputs(made.output).sources[0].face == 1
    stated = beside(made, tmp_path, sources=[source | {"face": 2}])
    assert open_inputs(stated).sources[0].face == 2
    del source["face"]  # as records once were
    stated = beside(made, tmp_path, sources=[source], source=record["source"] | {"face": 3})
    assert open_inputs(stated).sources[0].face == 3


def test_a_job_finds_its_clip_and_knows_its_own_record(made: Made, tmp_path: Path) -> None:
    job, output = tmp_path / "job", beside(made, tmp_path)
    shutil.copytree(made.job, job)
    values = json.loads((job / "job.json").read_text(encoding="utf-8"))
    values["request"]["output"] = str(output)
    (job / "job.json").write_text(json.dumps(values), encoding="utf-8")
    plan = json.loads((job / "plan.json").read_text(encoding="utf-8"))
    plan["clip"]["path"] = "as it was given.mp4"  # relative to wherever that was
    (job / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    inputs = open_inputs(job)
    assert inputs.plan.clip.path == made.folder / CLIP
    record = inputs.record
    assert record["seconds"]
    (source,) = record["sources"]
    for other in (
        {"pack": record["pack"] | {"digest": "0"}},
        {"source": record["source"] | {"sha256": "0"}},
        {"sources": [source | {"person": 0}]},
        {"plan": packed(replace(made.plan, sources={0: 0}))},
        {"input": []},
    ):
        beside(made, tmp_path, **other)
        assert open_inputs(job).record == {}


def test_pictures_are_held_of_tracks_alone_that_go_on(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[StillnessMeter] = weakref.WeakSet()
    held = {}

    class Watched(StillnessMeter):
        def add(self, frame: int, *pictures: Any) -> Any:
            alive.add(self)
            held[frame] = len(alive)
            return super().add(frame, *pictures)

    monkeypatch.setattr(job_report_measure, "StillnessMeter", Watched)
    inputs = open_inputs(made.output)
    frames = Frames(inputs)
    with limited(1):  # one run of frames after the other
        measured = job_report_measure.measure(inputs, frames, Silent(), every=5)
    frames.close()
    # Of the first shot, frame 0 alone is looked at, of the second frame 5 and the one before it.
    assert {f.frame for f in measured.faces} == {0, 5} and held == {0: 1, 4: 2, 5: 1}


def test_runs_of_frames_measured_at_the_same_time_say_the_same(made: Made) -> None:
    assert strands_of([]) == [] and strands_of([4]) == [[4]]
    assert strands_of([0, 1, 2, 5, 7, 8]) == [[0, 1, 2], [5], [7, 8]]
    inputs, found = open_inputs(made.output), []
    for threads, alone in ((1, True), (3, False), (3, True)):
        frames = Frames(inputs)
        with limited(threads):
            found.append(job_report_measure.measure(inputs, frames, Silent(), every=3, alone=alone))
        frames.close()
    one, _, several = found
    assert [(f.frame, f.track) for f in one.faces] == [(f.frame, f.track) for f in several.faces]
    for name in ("identity", "before", "found", "stillness"):
        values = [[getattr(f, name) for f in measured.faces] for measured in found]
        assert values[0] == pytest.approx(values[1], abs=1e-4)
        assert values[0] == pytest.approx(values[2], abs=1e-4)
    assert dict(one.ratios) == pytest.approx(dict(several.ratios))
    assert all(several.spreads[person] == pytest.approx(spread) for person, spread in one.spreads.items())


# -- plots -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    frames=st.sets(st.integers(0, 400), min_size=1, max_size=80),
    values=st.lists(st.floats(-5, 50, allow_nan=False), min_size=80, max_size=80),
    every=st.integers(1, 9),
)
def test_every_value_is_a_point_in_its_place(frames: set[int], values: list[float], every: int) -> None:
    given = list(zip(sorted(frames), values, strict=False))
    span = Span(0, 401, every, (100,))
    svg = timeline("t", [Series("a", "after", given)], span, limit=Limit(3.0, "three"), bounds=(0, 1))
    points = points_of(svg, "after")
    assert len(points) == len(given)
    assert [x for x, _ in points] == pytest.approx([span.x(f) for f, _ in given], abs=0.06)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    runs = 1 + sum(b - a > every for (a, _), (b, _) in itertools.pairwise(given))
    assert svg.count("<polyline") + svg.count('class="dot') == runs, "a line breaks where frames are missing"
    ticks = [float(t) for t in re.findall(r'tick y" [^>]*>([-\d.]+)<', svg)]
    assert min(ticks) <= min(v for _, v in given) + 0.01 and max(ticks) >= max(v for _, v in given) - 0.01


@given(st.floats(-1e4, 1e4), st.floats(0, 1e4))
def test_ticks_are_round_and_cover(low: float, width: float) -> None:
    ticks = nice_ticks(low, low + width)
    assert ticks[0] <= low + 1e-6 * max(abs(low), 1) and ticks[-1] >= low + width - 1e-6 * max(
        abs(low), width, 1
    )
    assert 2 <= len(ticks) <= 7 and (np.diff(ticks) > 0).all()


@given(st.integers(0, 50), st.integers(1, 100_000))
def test_frame_ticks_begin_and_end_with_the_span(start: int, length: int) -> None:
    ticks = frame_ticks(Span(start, start + length))
    assert ticks[0] == start and ticks[-1] == start + length - 1
    assert ticks == sorted(set(ticks)) and len(ticks) <= 13


# -- a browser -------------------------------------------------------------------------------------

PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images], plot = document.querySelector("svg[data-start]");
  const box = plot.getBoundingClientRect();
  const move = x => new PointerEvent("pointermove", {clientX: x, clientY: box.top + 20, bubbles: true});
  plot.dispatchEvent(move(box.left + box.width * Number(plot.dataset.left) / 960));
  const first = plot.previousElementSibling.querySelector(".read").textContent;
  plot.dispatchEvent(move(box.right));
  const last = plot.previousElementSibling.querySelector(".read").textContent;
  plot.dispatchEvent(new PointerEvent("pointerleave"));
  const after = plot.previousElementSibling.querySelector(".read").textContent;
  const cell = document.querySelector(".tile").getBoundingClientRect();
  const out = document.createElement("pre"); out.id = "probe";
  out.textContent = JSON.stringify({images: images.length,
    loaded: images.filter(i => i.complete && i.naturalWidth > 0).length, first, last, after,
    wide: document.documentElement.scrollWidth, view: innerWidth, tile: cell.width,
    plots: [...document.querySelectorAll("svg.plot")].map(s => s.getBoundingClientRect().height),
    asked: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
    alerts: window.alerted || 0});
  document.body.append(out);
});</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 560])
def test_a_browser_shows_it(made: Made, tmp_path: Path, width: int) -> None:
    text = made.page.read_text(encoding="utf-8")
    page = tmp_path / "page.html"
    alarm = "<script>window.alert = () => { window.alerted = 1; }</script>"
    text = text.replace("<head>", f"<head>{alarm}").replace("</body>", f"{PROBE}</body>")
    page.write_text(text, encoding="utf-8")
    assert CHROMIUM is not None
    flags = (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--enable-logging=stderr",
        "--log-level=0", "--virtual-time-budget=4000", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom",
    )  # fmt: skip
    done = subprocess.run(
        [CHROMIUM, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console, "no script fails, and the policy has nothing to refuse"
    shown = Page()
    shown.feed(done.stdout)
    seen = json.loads("".join(shown.texts["pre"]))
    assert seen["images"] == seen["loaded"] == len(Page.of(made.page).all("img"))
    assert seen["asked"] == [] and seen["alerts"] == 0
    assert seen["wide"] <= seen["view"], "nothing sticks out to the side"
    assert len(seen["plots"]) == 1 + 2 * 5 and min(seen["plots"]) > 30
    person = made.figures["people"][0]
    assert seen["first"].startswith(f"frame {person['frames'][0]} (0:00.000): swapped")
    assert f"swapped {person['series']['identity'][0]:.2f}, original" in seen["first"]
    assert seen["last"].startswith(f"frame {person['frames'][-1]} (")
    assert "limit" in seen["after"], "the legend comes back"


def test_a_folder_of_frames_has_a_report(
    run: Run, tmp_path: Path, example_clip: Path, example_face: Path
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    reader = open_reader(probe(example_clip), "pyav")
    for frame in reader.read(0, 3):
        (folder / f"shot.{frame.index:04d}.png").write_bytes(encode_picture(frame.rgb, ".png"))
    reader.close()
    code, out, said = run("swap", folder, "-s", example_face, "--set", "steps=1", "--report", "--json", "-q")
    assert code == 0, said
    page = tmp_path / "frames.swapped.report.html"
    assert json.loads(out)["page"] == str(page)
    figures = Page.of(page).figures()
    assert figures["people"][0]["times"] == [f"shot.{i:04d}.png" for i in range(3)]
    (folder / "shot.0001.png").unlink()
    code, out, said = run("report", tmp_path / "frames.swapped", "--overwrite")
    assert code == 3 and "shot.0001.png: can't be read: No such file" in said


def test_every_swap_comes_with_a_report_of_a_few_frames(
    run: Run, tmp_path: Path, example_clip: Path, example_face: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is asked for or not wanted; it gives way to a full one, and to nothing of the user's."""
    monkeypatch.delenv("LDVID_REPORT")
    out, page = tmp_path / "o.mp4", tmp_path / "o.mp4.report.html"
    swap = ("swap", example_clip, "-s", example_face, "-o", out, "--set", "steps=1", "--json")
    code, said, _ = run(*swap, "--end", "2.5")
    assert code == 0 and json.loads(said)["page"] == str(page)
    few = Page.of(page).figures()
    assert few["every"] == 2 and len(few["people"][0]["frames"]) == 15
    assert any("'ldvid report'" in note for note in few["notes"])
    assert run("report", out, "--clip", example_clip, "--source", example_face)[0] == 0
    whole = Page.of(page).figures()
    assert whole["every"] == 1 and not whole["notes"]
    code, said, _ = run("report", out, "--clip", example_clip, "--source", example_face)
    assert code == 5, "a full one is not replaced unasked"
    # What is in its place is left there, and the swap is none the worse for it.
    out.unlink(), Path(f"{out}.json").unlink()
    page.write_text("mine")
    code, said, warned = run(*swap, "--end", "0.3")
    assert code == 0 and "page" not in json.loads(said)
    assert page.read_text() == "mine" and "no report" in warned and str(page) in warned
    page.unlink()
    for more in (["--no-report"], ["--debug-overlay"]):
        code, said, _ = run(*swap, "--end", "0.3", "--overwrite", *more)
        assert code == 0 and "page" not in json.loads(said) and not page.exists()
    monkeypatch.setenv("LDVID_REPORT", "0")
    assert run(*swap, "--end", "0.3", "--overwrite")[0] == 0 and not page.exists()


def test_what_is_rendered_again_or_in_a_batch_has_one_too(
    run: Run, tmp_path: Path, example_clip: Path, example_face: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LDVID_REPORT")
    few, job = ("--set", "steps=1", "-q"), tmp_path / "job"
    swap = ("swap", example_clip, "-s", example_face, "-o", tmp_path / "o.mp4", "--end", "0.3", "--job", job)
    assert run(*swap, "--no-report", *few)[0] == 0 and not list(tmp_path.glob("*.html"))
    code, said, _ = run("render", job, "-o", tmp_path / "again.mp4", "--json")
    page = tmp_path / "again.mp4.report.html"
    assert code == 0 and json.loads(said)["page"] == str(page)
    assert Page.of(page).figures()["people"][0]["frames"] == [0, 1, 2, 3]
    page.write_text("mine")
    assert run("render", job, "-o", tmp_path / "third.mp4", "--report", "-q")[0] == 0
    assert run("render", job, "-o", tmp_path / "again.mp4", "--report", "-q")[0] == 5
    listed = tmp_path / "list.csv"
    listed.write_text(f"clip,start,end\n{example_clip},0,0.3\n")
    batch = ("batch", listed, "-s", example_face, *few)
    for folder, more in (("with", []), ("without", ["--no-report"])):
        assert run(*batch, "-o", tmp_path / folder, *more)[0] == 0
    assert [p.name for p in (tmp_path / "with").glob("*.html")] == ["clip.mp4.report.html"]
    assert not list((tmp_path / "without").glob("*.html"))


@pytest.mark.parametrize(
    "error", [RuntimeError("cv2"), OSError(28, "No space left on device"), MemoryError()]
)
def test_a_report_that_nobody_asked_for_fails_no_swap(
    run: Run, tmp_path: Path, example_clip: Path, example_face: Path, monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:  # fmt: skip
    """Nor does it hold back Ctrl-C; and no page stays beside an output that it is not of."""
    monkeypatch.delenv("LDVID_REPORT")
    out, page = tmp_path / "o.mp4", tmp_path / "o.mp4.report.html"
    swap = ("swap", example_clip, "-s", example_face, "-o", out, "--set", "steps=1", "--end", "0.2")
    assert run(*swap)[0] == 0 and is_quick(page)
    raised: list[BaseException] = [error]

    def failing(*_: object) -> None:
        raise raised[-1]

    monkeypatch.setattr(job_report, "make_report", failing)
    code, _, said = run(*swap, "--overwrite")
    assert code == 0 and "no report: " in said and out.exists() and not page.exists()
    raised.append(KeyboardInterrupt())
    code, _, said = run(*swap, "--overwrite")
    assert code == 130 and f"the swap itself is complete: {out}" in said and out.exists()
    listed = tmp_path / "list.csv"
    listed.write_text(f"clip,start,end\n{example_clip},0,0.2\n")
    batch = ("batch", listed, "-s", example_face, "--set", "steps=1")
    assert run(*batch, "-o", tmp_path / "stopped")[0] == 130
    raised.append(error)
    assert run(*batch, "-o", tmp_path / "done")[0] == 0 and (tmp_path / "done/clip.mp4").exists()


def test_only_a_page_that_came_with_a_swap_is_one(tmp_path: Path) -> None:
    page = tmp_path / "o.mp4.report.html"
    assert not is_quick(page) and not is_quick(tmp_path)
    os.mkfifo(page)
    assert not is_quick(page), "a pipe is not waited for"
    page.unlink()
    for generator, quick in (
        ("ldvid 1, with the swap", True),
        ("ldvid 1", False),
        ("other, with the swap", False),
    ):
        page.write_text(f'<!doctype html><meta name="generator" content="{generator}">')
        assert is_quick(page) is quick
