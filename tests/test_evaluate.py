"""``ldvid evaluate``: known answers by way of the real command, its files, and what it refuses."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.cli import main
from ldvid.configs import load_settings
from ldvid.errors import FaceError, InputError, OutputError, OutputExistsError, SettingsError
from ldvid.metrics.pair import Figures, outside_psnr, pose_error
from ldvid.metrics.plots import draw
from ldvid.metrics.report import MEASURES, bootstrap_interval, summarise
from ldvid.metrics.sheet import CELL, GAP, HEADER, cell, sheet
from ldvid.metrics.skin import TONES, tone
from ldvid.pipeline.bench import Bench
from ldvid.pipeline.evaluate import ablation
from ldvid.pipeline.evaluate_files import check_folder, results_folder
from ldvid.pipeline.evaluate_job import sample
from ldvid.pipeline.pairs import Pair, read_csv, read_folders
from ldvid.pipeline.provenance import DIGITAL_SOURCE_TYPE
from ldvid.pipeline.request import SwapRequest
from ldvid.pipeline.still import StillSwapper
from ldvid.pipeline.swap import swap_clip
from ldvid.stages.decode import open_reader, probe, read_picture
from ldvid.stages.records import SourceFace, Track
from ldvid.training.shards import split_of
from PIL import Image

FAST = ["--set", "steps=1", "--device", "cpu", "--debug"]  # with --debug, warnings are errors here


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """The command in this process: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["evaluate", *map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


def save(path: Path, rgb: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
    return path


def listed(path: Path, *rows: tuple[str, ...], header: str = "source,target,swapped,same,variant") -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class Media:
    """Pictures in one folder: two portraits, a frame of the clip, and what some tool made of them."""

    folder: Path

    def picture(self, name: str) -> np.ndarray:
        return read_picture(self.folder / name)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory, example_face: Path, example_clip: Path) -> Media:
    folder = tmp_path_factory.mktemp("media")
    one, two = (read_picture(p) for p in (example_face, example_face.with_name("face-2.png")))
    save(folder / "man.png", one)
    save(folder / "woman.png", np.minimum(two, 245))
    save(folder / "brighter.png", np.minimum(two, 245) + 10)  # by 10 everywhere: an error of 100
    save(folder / "small/man.png", cv2.resize(one, (320, 320), interpolation=cv2.INTER_AREA))
    reader = open_reader(probe(example_clip), "pyav")
    save(folder / "frame.png", next(iter(reader.read(20, 21))).rgb)
    reader.close()
    save(folder / "wall.png", np.full((200, 200, 3), 90, np.uint8))
    return Media(folder)


@dataclass(frozen=True)
class Run:
    """What one evaluation printed and wrote."""

    folder: Path
    stdout: str
    stderr: str

    @property
    def table(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "table.json").read_text(encoding="utf-8"))
        return loaded

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "pairs.csv").open(encoding="utf-8", newline="") as handle:
            return list(csv.DictReader(handle))

    def figures(self, variant: str) -> dict[str, Any]:
        found: dict[str, Any] = next(v for v in self.table["variants"] if v["name"] == variant)["figures"]
        return found


def finished(folder: Path, *arguments: str | Path) -> Run:
    code, out, err = run(*arguments, "-o", folder, *FAST)
    assert code == 0, err
    return Run(folder, out, err)


@pytest.fixture(scope="module")
def judged(media: Media) -> Run:
    """Pictures that others made, of which the answers are known; nothing is swapped."""
    path = listed(
        media.folder / "given.csv",
        ("man.png", "woman.png", "woman.png", "small/man.png", "unchanged"),
        ("man.png", "woman.png", "small/man.png", "", "the source itself"),
        ("man.png", "woman.png", "brighter.png", "", "brighter | $x"),
        ("man.png", "wall.png", "wall.png", "", "unchanged"),
    )
    return finished(media.folder / "given", path)


@pytest.fixture(scope="module")
def swapped(media: Media) -> Run:
    """Two pairs swapped in one step."""
    pairs = listed(
        media.folder / "made.csv",
        ("man.png", "frame.png"),
        ("woman.png", "man.png"),
        header="source,target",
    )
    return finished(media.folder / "made", pairs, "--keep-pictures")


def test_an_unchanged_target_is_nobody_new_and_loses_nothing(judged: Run) -> None:
    f = judged.figures("unchanged")
    row = judged.rows[0]
    assert f["identity"]["mean"] == float(row["unrelated"]) < 0.9
    assert (f["recovery"]["mean"], f["recovery"]["n"]) == (0, 1)
    assert f["pose"]["mean"] == f["expression"]["mean"] == f["landmark"]["mean"] == 0
    assert f["delta_e"]["mean"] == f["delta_e_cast"]["mean"] == 0
    assert f["psnr"]["mean"] == 100, "identical pixels are stated as the cap"
    assert f["identity_guiding"]["mean"] < 0.2


def test_the_source_itself_is_the_source(judged: Run) -> None:
    f = judged.figures("the source itself")
    assert f["identity"]["mean"] > 0.98
    assert f["identity_guiding"]["mean"] > 0.95
    # The anchor is the very picture that is judged: found by its own landmarks, as the sizes differ.
    assert f["recovery"]["mean"] == pytest.approx(1, abs=1e-3)
    assert f["psnr"] is f["landmark"] is f["delta_e"] is None, "the pictures do not coincide"
    assert f["pose"]["mean"] > 2 and f["expression"]["mean"] > 2


def test_background_psnr_is_that_of_a_known_error(judged: Run) -> None:
    assert judged.figures("brighter | $x")["psnr"]["mean"] == pytest.approx(10 * np.log10(255**2 / 100))


def test_a_brighter_picture_has_a_cast_and_its_landmarks(judged: Run, media: Media) -> None:
    f = judged.figures("brighter | $x")
    # About 10 levels of grey: 3 to 4 in L, the same everywhere.
    assert 2 < f["delta_e_cast"]["mean"] < 4
    assert f["delta_e"]["mean"] == pytest.approx(f["delta_e_cast"]["mean"], abs=0.3)
    assert f["landmark"]["mean"] < 1


def test_landmarks_are_those_of_the_face_where_the_targets_was(media: Media) -> None:
    bench = Bench(load_settings("cpu"), "cpu")
    one, two = media.picture("man.png"), media.picture("woman.png")
    both = np.concatenate([one, two], axis=1)
    own = bench.base.find(two).landmarks
    points = bench.points(both, own + np.float32([512, 0]))
    assert points is not None and np.abs(points - own - [512, 0]).max() < 0.05 * (own[1, 0] - own[0, 0])
    assert bench.points(one, own + np.float32([400, 0])) is None, "a face, but not there"
    assert bench.points(media.picture("wall.png"), own) is None


def test_a_picture_without_a_face_is_skipped_and_said(judged: Run) -> None:
    (skipped,) = judged.table["skipped"]
    assert (skipped["target"], skipped["variant"]) == ("wall.png", "unchanged")
    assert "no face was found" in skipped["reason"]
    assert judged.table["variants"][0]["pairs"] == 1
    assert any("1 of 4 rows skipped" in note for note in judged.table["notes"])
    assert "wall.png" in judged.stderr
    last = judged.rows[-1]
    assert last["target"] == "wall.png" and last["identity"] == "" and "no face" in last["skipped"]


def test_if_no_pair_has_a_face_the_command_fails_and_leaves_nothing(media: Media, tmp_path: Path) -> None:
    path = listed(tmp_path / "p.csv", ("man.png", "wall.png"), header="source,target")
    code, out, err = run(path, "--root", media.folder, "-o", tmp_path / "out", *FAST)
    assert (code, out) == (FaceError.exit_code, "")
    assert "nothing could be judged" in err and "wall.png" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv"]


def test_markdown_has_the_papers_columns_and_survives_odd_names(judged: Run) -> None:
    lines = (judged.folder / "table.md").read_text(encoding="utf-8").splitlines()
    head = next(line for line in lines if line.startswith("| variant | n |"))
    for text in ("identity (guiding network) ↑", "pose error ↓ (°)", "expression error ↓ (%)"):
        assert text in head
    row = next(line for line in lines if line.startswith("| brighter"))
    assert row.startswith("| brighter \\| $x | 1 |")
    assert row.replace("\\|", "").count("|") == head.count("|")


def test_terminal_shows_means_arrows_and_notes(judged: Run) -> None:
    assert "pose error ↓ (°)" in judged.stdout and "identity recovery ↑" in judged.stdout
    assert f"{judged.figures('the source itself')['identity']['mean']:.3f}" in judged.stdout
    assert "1 of 4 rows skipped" in judged.stdout


def test_figures_of_the_table_are_those_of_the_pairs(swapped: Run) -> None:
    for key in ("identity", "identity_guiding", "pose", "landmark", "expression", "delta_e", "psnr"):
        values = [float(row[key]) for row in swapped.rows]
        assert swapped.figures("cpu")[key]["mean"] == pytest.approx(np.mean(values), abs=2e-6)
        assert swapped.figures("cpu")[key]["low"] <= np.mean(values) <= swapped.figures("cpu")[key]["high"]
    assert swapped.figures("cpu")["recovery"] is None
    assert swapped.figures("cpu")["frechet"]["n"] == 2


def test_a_swap_is_judged_as_one(swapped: Run) -> None:
    for row in swapped.rows:
        assert float(row["identity"]) > float(row["unrelated"]) + 0.02
        assert float(row["psnr"]) == 100, "no pixel outside the mask was touched"
        assert 0 < float(row["pose"]) < 15
        assert 0 < float(row["landmark"]) < 10
        assert 0 < float(row["delta_e_cast"]) < 5 and 0 < float(row["delta_e"]) < 8
        assert -60 < float(row["ita"]) < 80


def test_figures_by_a_column_are_those_of_its_pairs(media: Media, tmp_path: Path) -> None:
    rows = [
        ("man.png", "woman.png", "man.png", "small/man.png", "x", "f", "1"),
        ("woman.png", "man.png", "brighter.png", "", "x", "m", "1"),
        ("man.png", "frame.png", "frame.png", "", "x", "m", "1"),
        ("woman.png", "frame.png", "frame.png", "", "x", "", ""),
    ]
    path = listed(tmp_path / "p.csv", *rows, header="source,target,swapped,same,variant,Sex,quick")
    arguments = ("--root", media.folder, "--only", "Quick=1", "--by", "SEX", "--by", "skin")
    made = finished(tmp_path / "out", path, *arguments)
    (variant,) = made.table["variants"]
    assert variant["pairs"] == 3 and made.table["input"]["only"] == {"quick": "1"}
    women, men = variant["by"]["sex"]
    assert (women["value"], women["pairs"], men["value"], men["pairs"]) == ("f", 1, "m", 2)
    for key in ("identity", "pose", "landmark", "delta_e"):
        values = [float(row[key]) for row in made.rows if row["by_sex"] == "m"]
        assert men["figures"][key]["mean"] == pytest.approx(np.mean(values), abs=2e-6)
    assert women["figures"]["recovery"]["n"] == 1 and men["figures"]["recovery"] is None
    # With the one s_same there is, everybody's recovery is defined; and it is its own pair's.
    assert (men["figures"]["recovery_common"]["n"], variant["figures"]["recovery_common"]["n"]) == (2, 3)
    assert women["figures"]["recovery_common"]["mean"] == women["figures"]["recovery"]["mean"]
    tones = [group["value"] for group in variant["by"]["skin"]]
    assert sorted(tones) == sorted({row["by_skin"] for row in made.rows})
    order = [name for name, _ in TONES]
    assert tones == sorted(tones, key=order.index) and made.rows[1]["by_skin"] == tone(
        float(made.rows[1]["ita"])
    )
    text = (made.folder / "table.md").read_text(encoding="utf-8")
    assert "By sex, with intervals" in text and f"| x | {tones[0]} |" in text
    assert "by sex" in made.stdout and "common anchor" in made.stdout
    assert "not used" not in made.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--by", "age"], SettingsError, ["--by age", "the columns are comment"]),
        (["--only", "age=3"], SettingsError, ["--only age", "the columns are comment"]),
        (["--only", "comment"], SettingsError, ["COLUMN=VALUE"]),
        (["--only", "comment=x"], InputError, ["no pair has comment=x"]),
    ],
)
def test_columns_that_are_not_there_are_said(
    media: Media, tmp_path: Path, arguments: list[str], error: type[Exception], words: list[str]
) -> None:
    path = listed(tmp_path / "p.csv", ("man.png", "woman.png", "hm"), header="source,target,comment")
    code, out, err = run(path, "--root", media.folder, *arguments)
    assert (code, out) == (error.exit_code, "") and all(word in err for word in words)


def test_the_list_of_64_is_what_it_says() -> None:
    with (Path(__file__).parents[1] / "benchmarks/pairs64.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert Counter(row["target_sex"] for row in rows) == {"f": 32, "m": 32}
    assert len({row["target"] for row in rows}) == 64
    crossed = [row["target_sex"] != row["source_sex"] for row in rows]
    assert sum(crossed) == 21
    assert [row["sexes"] == "cross" for row in rows] == crossed
    quick = [row for row in rows if row["quick"]]
    assert Counter(row["target_sex"] for row in quick) == {"f": 8, "m": 8}
    assert sum(bool(row["same"]) for row in rows) == 31
    for row in rows:
        for name in (row["source"], row["target"]):
            assert name.startswith("portraits/") or split_of(Path(name).stem) == "held", name
        assert len({row["source"], row["target"], row["same"]}) == 3


def test_the_table_says_what_made_it(swapped: Run, media: Media) -> None:
    table = swapped.table
    assert table["variants"][0]["settings"] == load_settings("cpu", assignments=["steps=1"]).model_dump(
        mode="json"
    )
    assert table["pack"]["name"] == "starter" and table["device"] == "cpu"
    assert {"ldvid", "torch"} <= table["versions"].keys()
    assert all(len(j["sha256"]) == 64 for j in table["judges"].values())
    guiding = {table["judges"][name]["sha256"] for name in ("identity, guiding", "identity, guiding too")}
    assert len(guiding) == 2 and table["judges"]["identity"]["sha256"] not in guiding
    assert str(media.folder) not in json.dumps(table)


def test_pictures_that_leave_are_marked_and_are_the_swaps(swapped: Run, media: Media) -> None:
    swapper = StillSwapper(load_settings("cpu", assignments=["steps=1"]), device="cpu")
    still = swapper.swap(media.picture("frame.png"), swapper.source(media.folder / "man.png"))
    kept = swapped.folder / swapped.rows[0]["swapped"]
    # Other pairs went through the networks beside it, whose kernels round by the batch's size.
    difference = np.abs(read_picture(kept).astype(int) - still.swapped)
    assert difference.mean() < 0.05 and difference.max() <= 8, (difference.mean(), difference.max())
    assert np.abs(still.original.astype(int) - still.swapped).mean() > 0.3
    for path, word in ((kept, "a face in this picture was swapped"), (swapped.folder / "sheet.png", "shows")):
        with Image.open(path) as image:
            image.load()
            assert word in image.info["Comment"]
            assert DIGITAL_SOURCE_TYPE in image.info["XML:com.adobe.xmp"]


def test_the_sheet_shows_source_target_and_result(swapped: Run, media: Media) -> None:
    picture = read_picture(swapped.folder / "sheet.png")
    assert picture.shape == (HEADER + 2 * (CELL + GAP), GAP + 3 * (CELL + GAP), 3)
    first = [picture[HEADER : HEADER + CELL, GAP + i * (CELL + GAP) :][:, :CELL] for i in range(3)]
    made = read_picture(swapped.folder / swapped.rows[0]["swapped"])
    swapper = StillSwapper(load_settings("cpu"), device="cpu")
    points = swapper.find(media.picture("frame.png")).landmarks
    assert np.array_equal(first[1], cell(media.picture("frame.png"), points))
    assert np.array_equal(first[2], cell(made, points))
    assert not np.array_equal(first[1], first[2])


def test_the_same_command_gives_the_same_table(swapped: Run, media: Media) -> None:
    code, out, err = run(media.folder / "made.csv", "--json", *FAST)
    assert code == 0, err
    again, before = json.loads(out), swapped.table
    assert again.pop("seconds").keys() == before.pop("seconds").keys()
    assert again == before


def test_another_seed_gives_another_table(swapped: Run, media: Media) -> None:
    code, out, _ = run(media.folder / "made.csv", "--json", "--seed", "7", "--limit", "1", *FAST)
    (variant,) = json.loads(out)["variants"]
    assert (code, variant["pairs"], variant["settings"]["seed"]) == (0, 1, 7)
    assert variant["figures"]["identity"]["mean"] != pytest.approx(
        float(swapped.rows[0]["identity"]), abs=1e-5
    )


def test_ablation_leaves_guidance_out(media: Media) -> None:
    pairs = listed(media.folder / "one.csv", ("man.png", "woman.png"), header="source,target")
    # λ for one step: the paper's, made for fifty, pushes it beyond what it is after.
    one_step = "--set", "guidance.identity.scale=300"
    made = finished(media.folder / "ablation", pairs, "--ablation", "--keep-pictures", *one_step)
    variants = made.table["variants"]
    assert [v["name"] for v in variants] == ["none", "identity", "identity and segmentation"]
    assert [[t["scale"] > 0 for t in v["settings"]["guidance"]] for v in variants] == [
        [False, False],
        [True, False],
        [True, True],
    ]
    assert all(v["settings"]["preset"] == "paper" for v in variants)
    pictures = [read_picture(made.folder / row["swapped"]) for row in made.rows]
    bare = load_settings("paper", assignments=["steps=1"]).model_copy(update={"guidance": ()})
    swapper = StillSwapper(bare, device="cpu")
    still = swapper.swap(media.picture("woman.png"), swapper.source(media.folder / "man.png"))
    assert np.array_equal(pictures[0], still.swapped), "none is the sampler without any term"
    assert not np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[1], pictures[2])
    none, identity = (made.figures(v)["identity_guiding"]["mean"] for v in ("none", "identity"))
    assert identity > none + 0.1, "only guidance brings the source in"


def test_ablation_needs_both_terms() -> None:
    with pytest.raises(SettingsError, match="no segmentation guidance"):
        ablation("cpu", load_settings("cpu", assignments=["guidance.segmentation.scale=0.0"]))
    names = [name for name, _ in ablation("cpu", load_settings("cpu"), several=True)]
    assert names[0] == "cpu: none"


def test_folders_are_judged_like_a_list(media: Media, tmp_path: Path) -> None:
    for folder, name in (("sources", "man.png"), ("targets", "woman.png"), ("others", "woman.png")):
        (tmp_path / folder).mkdir()
        shutil.copy(media.folder / name, tmp_path / folder / "a.png")
    where = ("--sources", tmp_path / "sources", "--targets", tmp_path / "targets")
    code, out, err = run(*where, "--swapped", tmp_path / "others", "--json", "--device", "cpu")
    assert code == 0, err
    table = json.loads(out)
    assert "1 pair, by file name" in err and table["input"]["paired"] == "by file name"
    (variant,) = table["variants"]
    assert (variant["name"], variant["settings"], variant["figures"]["pose"]["mean"]) == ("others", None, 0)


def test_folders_pair_by_name_or_else_in_order(tmp_path: Path) -> None:
    dot = np.zeros((4, 4, 3), np.uint8)
    for name in ("s/a.png", "s/b.png", "t/b.png", "t/c.png", "u/9.png", "u/10.png", "v/x.png"):
        save(tmp_path / name, dot)
    s, t, u, v = (tmp_path / name for name in "stuv")
    named = read_folders(s, t)
    assert named.pairs == (Pair(s / "b.png", t / "b.png"),)
    assert "a.png, c.png" in named.messages[0]
    ordered = read_folders(s, u, [t])
    assert [p.target.name for p in ordered.pairs] == ["9.png", "10.png"]
    assert "sorted order" in ordered.how
    assert [p.given["t"].name for p in ordered.pairs] == ["b.png", "c.png"]
    assert not any(p.wanted for p in ordered.pairs)
    with pytest.raises(InputError, match="2 and 1 pictures"):
        read_folders(s, v)
    with pytest.raises(InputError, match="no picture of the name b"):
        read_folders(s, t, [v])
    with pytest.raises(InputError, match="no such folder"):
        read_folders(s, tmp_path / "none")


def test_a_lists_rows_of_one_pair_are_one_pair(media: Media, tmp_path: Path) -> None:
    path = listed(
        tmp_path / "p.csv",
        ("man.png", "woman.png", "", "", ""),
        ("man.png", "woman.png", "woman.png", "small/man.png", "theirs"),
        ("woman.png", "man.png", "man.png", "", ""),
    )
    pairs = read_csv(path, media.folder)
    root = media.folder
    assert pairs.pairs[0] == Pair(
        root / "man.png", root / "woman.png", root / "small/man.png", {"theirs": root / "woman.png"}, True
    )
    assert pairs.pairs[1].given == {"given": root / "man.png"} and not pairs.pairs[1].wanted
    assert pairs.variants() == ["theirs", "given"]
    assert pairs.shown(root / "small/man.png") == "small/man.png"
    assert len(pairs.limited(1).pairs) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source,swapped\nman.png,man.png\n", ["line 1", "no column target", "source, swapped"]),
        ("source,target\nman.png,none.png\n", ["line 2, column target", "none.png: no such file"]),
        ("source,target\nman.png,woman.png\n,woman.png\n", ["line 3, column source", "empty"]),
        ("source,target,same\nman.png,woman.png,x.png\n", ["line 2, column same", "x.png"]),
        ("source,target\nman.png,small\n", ["line 2, column target", "is a folder"]),
        ("source,target\nman.png,woman.png\nman.png,woman.png\n", ["line 3", "repeats line 2"]),
        ("source,target,variant\nman.png,woman.png,x\n", ["line 2, column variant"]),
        ("source,target,target\n", ["column target is there twice"]),
        ("source,target\n", ["no pairs"]),
        ("", ["no column source"]),
        ("source,target\n\xff\xfe", ["can't be read as CSV"]),
    ],
)
def test_a_bad_list_is_refused_with_its_line(
    media: Media, tmp_path: Path, text: str, words: list[str]
) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(text.encode("latin-1"))
    code, out, err = run(path, "--root", media.folder, "-o", tmp_path / "out")
    assert (code, out, list(tmp_path.iterdir())) == (InputError.exit_code, "", [path])
    for word in ("bad.csv", *words):
        assert word in err


def test_spreadsheets_lists_are_read_and_unknown_columns_said(media: Media, tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_text("\ufeffSource, TARGET ,comment\r\nman.png,woman.png,hm\r\n", encoding="utf-8")
    pairs = read_csv(path, media.folder)
    assert len(pairs.pairs) == 1 and pairs.pairs[0].wanted
    assert pairs.columns == ("comment",) and pairs.pairs[0].labels == {"comment": "hm"}
    code, _, err = run(path, "--root", media.folder, "-o", tmp_path / "none/out")
    assert code == OutputError.exit_code and "not used: column comment" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give one of"),
        (["--sources", "x"], "together"),
        (["p.csv", "--sources", "x", "--targets", "y"], "give one of"),
        (["p.csv", "--every", "2"], "--every: goes with a job"),
        (["p.csv", "--swapped", "x"], "--swapped: goes with --sources"),
        (["p.csv", "--keep-pictures"], "--keep-pictures"),
        ([".", "--source", "x", "--preset", "cpu"], "--preset: a finished job"),
        ([".", "--source", "x", "--by", "skin"], "--by: goes with pairs"),
        (["--sources", "x", "--targets", "y", "--only", "a=b"], "--only: goes with a CSV file"),
        (["."], "--source"),
    ],
)
def test_flags_that_do_not_go_together(arguments: list[str], words: str) -> None:
    code, _, err = run(*arguments)
    assert code == SettingsError.exit_code and words in err


def test_nothing_of_anyones_is_replaced(judged: Run, media: Media, tmp_path: Path) -> None:
    pairs = media.folder / "given.csv"
    inputs = [pairs]
    folder = tmp_path / "out"
    folder.mkdir()
    check_folder(folder, inputs, overwrite=False)  # empty: may be filled
    with pytest.raises(OutputExistsError, match="not empty"):
        check_folder(judged.folder, inputs, overwrite=False)
    check_folder(judged.folder, inputs, overwrite=True)
    (folder / "pairs.csv").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"pairs\.csv, which no evaluation wrote"):
        check_folder(folder, inputs, overwrite=True)
    with pytest.raises(SettingsError, match="is an input"):
        check_folder(media.folder, inputs, overwrite=True)
    with pytest.raises(OutputExistsError, match="is a file"):
        check_folder(pairs, [], overwrite=True)
    code, _, err = run(pairs, "-o", judged.folder)
    assert code == OutputExistsError.exit_code and "--overwrite" in err


def test_a_failure_leaves_the_earlier_results(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with results_folder(output, [], overwrite=False) as folder:
        assert folder is not None
        (folder.path / "table.json").write_text("1")
    with pytest.raises(ZeroDivisionError), results_folder(output, [], overwrite=True) as folder:
        assert folder is not None
        (folder.path / "table.json").write_text("2")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (output / "table.json").read_text() == "1"


@pytest.fixture(scope="module")
def job(
    tmp_path_factory: pytest.TempPathFactory, example_clip: Path, example_face: Path
) -> tuple[Path, Path, Path]:
    """A job on a folder of four frames, kept: the job, the clip, the output. PNG loses nothing."""
    folder = tmp_path_factory.mktemp("job")
    info = probe(example_clip)
    for frame in open_reader(info, "pyav").read(0, 4):
        save(folder / f"clip/{frame.index}.png", frame.rgb)
    changes = ["steps=1", "segment_frames=2", "keyframe_interval=2", "batch=1", "steady=0.4"]
    quick = load_settings(assignments=[*changes, "min_track_frames=1"])
    swap_clip(
        SwapRequest(
            folder / "clip",
            example_face,
            quick,
            folder / "out",
            job=folder / "job",
            keep_job=True,
            device="cpu",
        )
    )
    return folder / "job", folder / "clip", folder / "out"


def test_a_finished_job_is_judged_frame_by_frame(
    job: tuple[Path, Path, Path], example_face: Path, tmp_path: Path
) -> None:
    before = {p: p.read_bytes() for p in job[0].rglob("*") if p.is_file()}
    code, out, err = run(job[0], "-s", example_face, "-o", tmp_path / "out", "--json", "--debug")
    assert code == 0, err
    made = Run(tmp_path / "out", out, err)
    assert json.loads(out) == made.table
    rows = made.rows
    assert [row["target"] for row in rows] == [f"clip frame {i}, person 0" for i in range(4)]
    assert [row["same"] for row in rows] == ["frame 2", "frame 3", "frame 0", "frame 1"]
    assert rows[0]["same_identity"] == rows[2]["same_identity"], "half a clip apart, either way"
    for row in rows:
        assert float(row["same_identity"]) > float(row["identity"]) > float(row["unrelated"]) + 0.02
        assert float(row["psnr"]) == 100
        assert 0 < float(row["landmark"]) < 10 and 0 < float(row["delta_e"]) < 8 and row["ita"]
    f = made.figures("cpu")
    means = {k: np.mean([float(r[k]) for r in rows]) for k in ("identity", "unrelated", "same_identity")}
    wanted = (means["identity"] - means["unrelated"]) / (means["same_identity"] - means["unrelated"])
    assert f["recovery"]["mean"] == pytest.approx(wanted, abs=1e-4)
    assert f["frechet"] is None, "one source is no distribution"
    assert f["recovery_common"] is None, "every frame has an anchor of its own"
    assert {p: p.read_bytes() for p in job[0].rglob("*") if p.is_file()} == before


def test_a_jobs_finished_file_is_what_is_judged(job: tuple[Path, Path, Path], example_face: Path) -> None:
    folder, clip, output = job
    code, out, _ = run(folder, "-s", example_face, "--finished", output, "--every", "3", "--json")
    assert code == 0 and json.loads(out)["variants"][0]["pairs"] == 2
    # The clip in place of the output: nobody was swapped.
    code, out, _ = run(folder, "-s", example_face, "--finished", clip, "--limit", "2", "--json")
    (variant,) = json.loads(out)["variants"]
    f = variant["figures"]
    assert (code, variant["pairs"], f["recovery"]["mean"]) == (0, 2, 0)
    assert (f["pose"]["mean"], f["expression"]["mean"], f["psnr"]["mean"]) == (0, 0, 100)
    assert (f["landmark"]["mean"], f["delta_e"]["mean"]) == (0, 0)


def test_a_job_that_is_not_what_it_seems_is_refused(
    job: tuple[Path, Path, Path], example_face: Path, tmp_path: Path
) -> None:
    code, _, err = run(job[0], "-s", example_face.with_name("face-2.png"))
    assert code == 3 and "is not the picture that the job" in err
    code, _, err = run(tmp_path, "-s", example_face)
    assert code == 8 and "no job.json" in err
    broken = tmp_path / "job"
    shutil.copytree(job[0], broken)
    (broken / "segments/000001.json").unlink()
    code, _, err = run(broken, "-s", example_face)
    assert code == 8 and "segment 1 is not finished" in err


def test_frames_of_a_job_are_spread_over_all_of_it() -> None:
    def track(number: int, frames: int) -> Track:
        empty = np.zeros(0, np.float32)
        return Track(number, 0, np.arange(frames), empty, empty, empty, empty)

    (only,) = sample([track(0, 1000)])
    assert len(only[1]) <= 64 and only[1][0] == 0 and only[1][-1] > 980
    assert sum(len(rows) for _, rows in sample([track(0, 640), track(1, 1)])) <= 64
    assert [rows for _, rows in sample([track(0, 5), track(1, 5)], 2, 4)] == [[0, 2, 4], [0]]


def figures(identity: float, unrelated: float = 0.1, same: float | None = None, pose: float = 1.0) -> Figures:
    return Figures(identity, identity, unrelated, pose, 0.0, same)


def test_recovery_is_from_the_means_of_the_pairs_with_anchors() -> None:
    ones = [np.eye(3, dtype=np.float32)[0]] * 3
    rows = [figures(0.5, 0.1, 0.9), figures(0.9, 0.3, 0.7), figures(0.99)]
    found = summarise(rows, ones, ones)
    assert found["recovery"] is not None and found["recovery"].n == 2
    assert found["recovery"].mean == pytest.approx((0.7 - 0.2) / (0.8 - 0.2))
    assert found["recovery"].median == pytest.approx((0.5 + 1.5) / 2)
    assert found["identity"] is not None and found["identity"].n == 3
    assert found["psnr"] is None and found["frechet"] is None
    assert list(found) == [m.key for m in MEASURES]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40), st.floats(-5, 5))
def test_an_interval_holds_the_mean_and_moves_with_the_values(values: list[float], by: float) -> None:
    v = np.array(values)
    low, high = bootstrap_interval(len(v), lambda i: v[i].mean(1)) or (np.nan, np.nan)
    assert v.min() - 1e-9 <= low <= high <= v.max() + 1e-9
    moved = bootstrap_interval(len(v), lambda i: (v + by)[i].mean(1))
    assert moved == pytest.approx((low + by, high + by), abs=1e-9)
    assert bootstrap_interval(1, lambda i: v[i].mean(1)) is None


def test_the_interval_of_many_normal_values_is_that_of_the_textbook() -> None:
    v = np.random.default_rng(3).normal(5, 2, 400)
    low, high = bootstrap_interval(400, lambda i: v[i].mean(1)) or (0, 0)
    half = 1.96 * v.std(ddof=1) / 20
    assert (low, high) == pytest.approx((v.mean() - half, v.mean() + half), abs=0.03)


def test_angles_differ_by_the_short_way_round() -> None:
    a, b = np.float32([3, 0, 179]), np.float32([0, 4, -181])
    assert pose_error(a, b) == pytest.approx(5)


def test_pixels_near_the_mask_are_nobodys_background() -> None:
    picture, mask = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.float32)
    mask[20, 20] = 0.01
    near, far = picture.copy(), picture.copy()
    near[20, 25], far[20, 26] = 255, 255
    assert outside_psnr(picture, near, mask) == 100
    assert (outside_psnr(picture, far, mask) or 100) < 40
    assert outside_psnr(picture, picture[:20], mask) is None
    assert outside_psnr(picture, picture, np.ones((40, 40), np.float32)) is None


def test_the_plot_shows_the_table(judged: Run) -> None:
    axes = {a.get_title(): a for a in draw(judged.table).axes}
    a = axes["background PSNR ↑ (dB)"]
    assert [t.get_text() for t in a.get_xticklabels()] == [v["name"] for v in judged.table["variants"]]
    xs, ys = a.lines[0].get_data()
    assert list(xs) == [0, 2], "the variant without a figure has no point"
    assert list(ys) == [judged.figures(v)["psnr"]["mean"] for v in ("unchanged", "brighter | $x")]
    with Image.open(judged.folder / "plot.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_a_sheets_headings_are_cut_and_its_rows_checked(faces: tuple[SourceFace, SourceFace]) -> None:
    face = cell(faces[0].image, faces[0].landmarks)
    assert face.shape == (CELL, CELL, 3)
    large = cv2.resize(faces[0].image, (600, 600), interpolation=cv2.INTER_CUBIC)
    points = faces[0].landmarks * np.float32(600 / 256)
    mirrored = points[[1, 0, 2, 4, 3]] * np.float32([-1, 1]) + np.float32([599, 0])
    there = cell(np.ascontiguousarray(large[:, ::-1]), mirrored)[:, ::-1].astype(int)
    assert np.abs(cell(large, points) - there).max() <= 2, "not half a pixel off"
    short, long = sheet([[face, None]], ["a", "b" * 20]), sheet([[face, None]], ["a", "b" * 200])
    assert short.shape == long.shape
    assert (long[:HEADER, -3:] == 255).all(), "a heading stays over its own cell"
    assert (short[HEADER:, GAP + CELL + GAP :] == 255).all(), "an empty cell is left white"
    with pytest.raises(ValueError, match="1 cells under 2"):
        sheet([[face]], ["a", "b"])


def test_a_long_sheet_has_pages_and_a_swap_the_detector_loses_is_named(
    media: Media, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldvid.pipeline.evaluate_files.PAGE_ROWS", 1)
    rows = [("man.png", "woman.png", media.folder / "brighter.png"), ("man.png", "frame.png", "lost.png")]
    lost = save(tmp_path / "lost.png", np.full_like(media.picture("frame.png"), 90))
    path = listed(
        tmp_path / "p.csv", *((s, t, str(tmp_path / x)) for s, t, x in rows), header="source,target,swapped"
    )
    made = finished(tmp_path / "out", path, "--root", media.folder)
    pages = [read_picture(made.folder / name) for name in ("sheet.png", "sheet-2.png")]
    assert [p.shape[0] for p in pages] == [HEADER + CELL + GAP] * 2
    assert not np.array_equal(*pages) and [row["sheet"] for row in made.rows] == ["1:1", "2:1"]
    f = made.figures("given")
    assert (f["landmark"]["n"], f["pose"]["n"]) == (1, 2)
    (note,) = [note for note in made.table["notes"] if "detector finds no face in 1 swap" in note]
    assert "given, pair 2 (frame.png)" in note
    check_folder(made.folder, [], overwrite=True)
    lost.rename(made.folder / "sheet-x.png")
    with pytest.raises(OutputExistsError, match=r"sheet-x\.png"):
        check_folder(made.folder, [], overwrite=True)
