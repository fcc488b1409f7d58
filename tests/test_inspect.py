"""``ldvid inspect`` and swaps by person, on a real clip of two people who change places at a cut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from ldvid.cli import main
from ldvid.pipeline.job import Identity, Job
from ldvid.stages.decode import read_picture
from ldvid.stages.detect import Detector
from ldvid.stages.records import U8

ROOT = Path(__file__).resolve().parents[1]
FACE, FACE_2 = ROOT / "examples/face.png", ROOT / "examples/face-2.png"
SIDE, HALF, FRAMES, CUT = 224, 288, 4, 2
# The settings that are compared by pixels: fast, and each shot a segment.
FAST = [
    "--set", "steps=1", "--set", "batch=1", "--set", "segment_frames=2", "--set", "keyframe_interval=2",
    "--device", "cpu", "--set", "quality=8",
]  # fmt: skip


def write(path: Path, frames: list[U8]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "10", "preset": "veryfast"}
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def read(path: Path) -> list[U8]:
    with av.open(str(path)) as container:
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, example_clip: Path) -> Path:
    """The woman at the left and the man at the right; after the cut the other way round."""
    woman = cv2.resize(read_picture(FACE_2), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    frames = []
    for i, picture in enumerate(read(example_clip)[:FRAMES]):
        man = cv2.resize(picture[:, 105:375], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        her = np.full((SIDE, HALF, 3), 128, np.uint8)
        her[:, 2 * i : 2 * i + SIDE] = woman
        him = cv2.copyMakeBorder(man, 0, 0, 0, HALF - SIDE, cv2.BORDER_REPLICATE)
        frames.append(np.ascontiguousarray(np.hstack([her, him] if i < CUT else [him, her])))
    return write(tmp_path_factory.mktemp("two") / "two people.mp4", frames)


def side(who: str, frame: int) -> slice:
    """The columns in which somebody is."""
    left = (who == "woman") == (frame < CUT)
    return slice(0, HALF) if left else slice(HALF, 2 * HALF)


def changed(before: list[U8], after: list[U8], who: str, frames: range = range(FRAMES)) -> float:
    """Grey levels by which a person's half changed, where it changed most."""
    found = []
    for i in frames:
        off = np.abs(after[i].astype(float) - before[i])[:, side(who, i)].mean(2)
        found.append(float(cv2.blur(off, (25, 25)).max()))
    return max(found)


@pytest.fixture(scope="module")
def inspected(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected") / "people"
    assert main(["inspect", str(clip), "-o", str(folder), "--quiet", "--device", "cpu"]) == 0
    return folder


def test_the_people_are_listed(
    clip: Path, inspected: Path, detector: Detector, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mine = shutil.copy(clip, tmp_path / "a.mp4")
    assert main(["inspect", str(mine), "--json", "--quiet", "--device", "cpu"]) == 0
    said = json.loads(capsys.readouterr().out)
    first, second = said["people"]
    assert (first["person"], second["person"]) == (0, 1)
    for person in (first, second):
        assert person["frames"] == FRAMES and person["seconds"] == pytest.approx(FRAMES / 12, abs=0.01)
        assert (person["first"], person["shots"], len(person["tracks"])) == (0, [0, 1], 2)
        assert person["last"] == pytest.approx(FRAMES / 12, abs=0.01)
        assert person["score"] > 0.9
        assert all(low <= high and abs(low) < 25 > abs(high) for low, high in person["pose"].values())
    eyes = sorted(p["size"]["median"] for p in (first, second))
    (portrait,) = detector.detect(read_picture(FACE_2))
    between = float(np.linalg.norm(portrait.landmarks[1] - portrait.landmarks[0])) * SIDE / 512
    assert eyes[1] == pytest.approx(between, rel=0.1) and eyes[0] < 0.7 * eyes[1]
    assert sorted(str(p["source"]) for p in said["people"]) == ["0", "None"]
    assert said["shots"] == 2
    assert Path(said["plan"]) == tmp_path / "a.people/plan.json"
    assert sorted(p.name for p in (tmp_path / "a.people").iterdir()) == ["people.png", "plan.json"]
    ours, theirs = (json.loads((f / "plan.json").read_text()) for f in (inspected, tmp_path / "a.people"))
    assert ours["tracks"] == theirs["tracks"]  # the same people whenever one looks


def test_the_sheet_shows_each_person_in_their_row(inspected: Path) -> None:
    picture = read_picture(inspected / "people.png")
    tracks = json.loads((inspected / "plan.json").read_text())["tracks"]
    # On the portrait the skin beside the nose is brighter and redder than on the man's dim picture.
    woman = next(t["person"] for t in tracks if t["shot"] == 0 and t["rows"][0][1] < HALF / 2)
    cell, gap, head = 192, 4, 26
    assert picture.shape == (head + 2 * (cell + gap), gap + 6 * (cell + gap), 3)

    def middle(row: int, column: int) -> U8:
        y, x = head + row * (cell + gap) + cell // 2, gap + column * (cell + gap) + cell // 2
        return picture[y - 20 : y + 20, x - 30 : x + 30]

    brightness = [float(np.mean([middle(row, c).mean() for c in range(1, 5)])) for row in (0, 1)]
    assert int(np.argmax(brightness)) == woman
    for row in (0, 1):
        assert middle(row, 1).std() > 10 and middle(row, 5).min() == 255  # four frames, four pictures
        assert middle(row, 0).min() < 60  # the number


def test_inspect_replaces_nothing_unasked_and_says_who_is_not_there(
    clip: Path, inspected: Path, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: object) -> tuple[int, str]:
        code = main(["inspect", *map(str, arguments), "--quiet", "--device", "cpu"])
        return code, capsys.readouterr().err

    before = {p: p.read_bytes() for p in inspected.iterdir()}
    code, line = said(clip, "-o", inspected)
    assert code == 5 and "--overwrite" in line and {p: p.read_bytes() for p in inspected.iterdir()} == before
    code, line = said(test_data / "no-face.mp4", "-o", tmp_path / "nobody")
    assert code == 4 and "no face was found" in line
    assert said(tmp_path / "no.mp4")[0] == 3
    assert said(FACE, "-o", tmp_path / "nobody")[0] == 2
    assert said("s3://films/a.mp4")[0] == 2
    assert said(clip, "-o", tmp_path / "a/b")[0] == 6
    assert list(tmp_path.iterdir()) == []


def swap(clip: Path, output: Path, *arguments: object) -> list[U8]:
    given = ["swap", str(clip), "-o", str(output), "--quiet", *FAST, *map(str, arguments)]
    assert main(given) == 0
    return read(output)


def numbers(folder: Path) -> dict[str, int]:
    tracks = json.loads((folder / "plan.json").read_text())["tracks"]
    found = {}
    for t in tracks:
        if t["shot"] == 0:
            found["woman" if t["rows"][0][1] < HALF / 2 else "man"] = t["person"]
    return found


def test_faces_go_to_people_and_plans_may_be_edited(
    clip: Path, inspected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One job from mapping to edited plan; every comparison is of decoded pixels."""
    who, original = numbers(inspected), read(clip)
    job = tmp_path / "job"
    both = swap(
        clip, tmp_path / "both.mp4", "--job", job,
        "--source", f"{FACE}@{who['man']}", "--source", f"{FACE_2}@{who['woman']}",
    )  # fmt: skip
    for person in ("man", "woman"):
        assert (
            changed(original, both, person, range(CUT)) > 8 < changed(original, both, person, range(CUT, 4))
        )
    record = json.loads((tmp_path / "both.mp4.json").read_text())
    assert [(s["names"], s["person"]) for s in record["sources"]] == [
        (["face.png"], who["man"]), (["face-2.png"], who["woman"])
    ]  # fmt: skip
    # A photograph chooses her in the plan that was written before, without analysis: she gets what the
    # mapping gave her, and he stays as he was.
    plan_file, written = inspected / "plan.json", (inspected / "plan.json").read_bytes()
    asked = ("--plan", plan_file, "--source", FACE_2, "--reference", FACE_2)
    hers = swap(clip, tmp_path / "hers.mp4", *asked)
    report = json.loads((tmp_path / "hers.mp4.json").read_text())
    assert plan_file.read_bytes() == written and not {"analyse", "detect"} & report["seconds"].keys()
    assert changed(original, hers, "man") < 4
    assert changed(both, hers, "woman") < 4 < changed(both, hers, "man")
    # The plan is edited: he gets the other face after the cut, she is left alone there.
    plan = json.loads((job / "plan.json").read_text())
    for t in plan["tracks"]:
        if t["shot"] == 1:
            t["source"] = 1 if t["person"] == who["man"] else None
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(plan))
    capsys.readouterr()
    given = [
        "render",
        str(job),
        "--plan",
        str(edited),
        "-o",
        str(tmp_path / "edited.mp4"),
        "--quiet",
        "--json",
    ]
    assert main(given) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["segments"], summary["segments_resumed"]) == (2, 1)
    after = read(tmp_path / "edited.mp4")
    assert all(np.array_equal(a, b) for a, b in zip(after[:CUT], both[:CUT], strict=True))
    assert changed(original, after, "woman", range(CUT, 4)) < 4
    assert changed(both, after, "man", range(CUT, 4)) > 4
    # A plan that asks for a source that there isn't is refused, and so is another mapping in the same folder.
    plan["tracks"][0]["source"] = 2
    edited.write_text(json.dumps(plan))
    assert main([*given, "--overwrite"]) == 8
    assert "source 2" in capsys.readouterr().err
    swapped = [
        "swap",
        str(clip),
        "--source",
        f"{FACE}@0",
        "--job",
        str(job),
        "-o",
        str(tmp_path / "x.mp4"),
        *FAST,
    ]
    assert main(swapped) == 8
    assert "who gets which source" in capsys.readouterr().err and not (tmp_path / "x.mp4").exists()


def test_what_cannot_be_meant_is_said_before_or_after_looking(
    clip: Path, inspected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main(
            ["swap", str(clip), "-o", str(tmp_path / "o.mp4"), "--quiet", *FAST, *map(str, arguments)]
        )
        return code, capsys.readouterr().err

    code, line = said("--source", f"{FACE}@7")
    assert code == 2 and "there is no person 7" in line and "0 (0.3 s), 1 (0.3 s)" in line
    code, line = said("--source", FACE, "--reference", FACE, "--plan", inspected / "plan.json")
    assert code == 4 and "nobody in two people.mp4 looks like it" in line
    code, line = said("--source", FACE, "--source", FACE_2)
    assert code == 2 and "say who gets which" in line
    code, line = said("--source", FACE, "--reference", tmp_path / "nobody.png")
    assert code == 3 and "nobody.png" in line and "--reference" in line and "--source" not in line
    code, line = said("--source", FACE, "--end", "0.2", "--plan", inspected / "plan.json")
    assert code == 8 and "number of frames: 4, not 3" in line
    assert main(["swap", str(FACE_2), "-o", str(tmp_path / "o.png"), "--source", f"{FACE}@0"]) == 2
    assert "clips" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_in_the_folder_of_its_job_outlives_what_goes_wrong(
    clip: Path, inspected: Path, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, out = tmp_path / "job", tmp_path / "o.mp4"
    Job.open(job, Identity("c", "0", None, None, "0", None, {}, "0", "p", "0", "v")).close()
    mine = Path(shutil.copy(inspected / "plan.json", job))
    plan = mine.read_bytes()
    nobody = tmp_path / "nobody.png"
    cv2.imwrite(str(nobody), np.full((99, 99, 3), 128, np.uint8))
    again = ("--job", job, "--plan", mine, "--restart", "--overwrite")
    given = ["swap", clip, "-s", nobody, "-o", out, "--quiet", *FAST, *again]
    assert main([*map(str, given)]) == 4 and "nobody.png" in capsys.readouterr().err
    assert mine.read_bytes() == plan
    Job.open(tmp_path / "new", Identity("c", "0", None, None, "0", None, {}, "0", "p", "0", "v")).close()
    shutil.copy(tmp_path / "new/job.json", job)
    assert changed(read(clip), swap(clip, out, "-s", FACE, *again), "man") < 4
    # A job that has lost its plan and is given a bad one is still the job it was.
    mine.unlink()
    before = (job / "job.json").read_bytes()
    edited = json.loads(plan)
    for t in edited["tracks"]:
        t["source"] = 5
    bad = tmp_path / "bad.json"
    for text, words in (("{", "can't be used as a plan"), (json.dumps(edited), "gets source 5")):
        bad.write_text(text)
        assert main(["render", str(job), "--plan", str(bad), "-o", str(tmp_path / "p.mp4"), "-q"]) == 8
        assert words in capsys.readouterr().err
        assert json.loads((job / "job.json").read_text())["identity"] == json.loads(before)["identity"]
