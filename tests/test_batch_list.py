"""``ldvid batch`` before any work: lists, names of outputs, its record and exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.commands.common import parse_time
from ldvid.errors import InputError, OutputExistsError, SettingsError
from ldvid.pipeline.batch_list import Item, read_items
from ldvid.pipeline.batch_places import job_path, output_paths
from ldvid.pipeline.batch_report import Record, Result, exit_code


def items(*given: str | Path, skip: Path) -> list[Item]:
    return read_items([str(g) for g in given], parse_time, skip=skip)[0]


def touch(folder: Path, *names: str) -> None:
    """Files of no content: lists look at names alone."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


# lists


def test_a_list_names_clips_and_what_is_special_about_each(tmp_path: Path) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "all.csv").write_text(
        "\ufeffclip, Source ,output,start,end,source_face,seed,preset\n"
        "a.mp4,face.png,sub/x.mkv,0:01,00:00:02.5,2,7,fast\n"
        "\n"
        '"b, the second.mov",,,,,,,\n'
        "/elsewhere/c.mp4\n",
        encoding="utf-8",
    )
    first, second, third = items(folder / "all.csv", skip=tmp_path / "out")
    assert (first.clip, first.source) == (folder / "a.mp4", folder / "face.png")
    assert (first.start, first.end, first.source_face, first.seed) == (1.0, 2.5, 2, 7)
    assert (first.output, first.preset) == ("sub/x.mkv", "fast")
    assert second == Item(folder / "b, the second.mov", root=folder, where=second.where)
    assert third.clip == Path("/elsewhere/c.mp4")
    assert [item.where for item in (first, second, third)] == [
        f"{folder / 'all.csv'}: line {n}" for n in (2, 4, 5)
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clip,sauce\na.mp4,b\n", r"line 1: sauce is not known; the columns are: clip, source, output"),
        ("source\na.png\n", "no column clip"),
        ("clip,seed,seed\na.mp4,1,2\n", "column seed is there twice"),
        ("clip,seed\na.mp4,1\nb.mp4,x\n", "line 3, column seed: x is no whole number from 0"),
        ("clip,source_face\na.mp4,0\n", "line 2, column source_face: 0 is no whole number from 1"),
        ("clip,start\na.mp4,1:99\n", "line 2, start 1:99: not a time"),
        ("clip,seed\n,1\n", "line 2, column clip: is empty"),
        (
            "clip,source\na.mp4,s3://b/f.png\n",
            "line 2, column source: s3://b/f.png: a batch reads and writes",
        ),
        ("clip,seed\na.mp4,1,2\n", "line 2: has more cells"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_by_line_and_column(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(SettingsError, match=said):
        items(tmp_path / "list.csv", skip=tmp_path / "out")


@pytest.mark.parametrize("given", ["gone.csv", "nothing-*.mp4"])
def test_a_list_or_pattern_that_stands_for_nothing_is_refused(tmp_path: Path, given: str) -> None:
    with pytest.raises(InputError, match=given.replace("*", r"\*")):
        items(tmp_path / given, skip=tmp_path / "out")


def test_folders_and_patterns(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "takes/a10.mp4",
        "takes/a9.mov",
        "takes/day1/a.mp4",
        "takes/day1/thumb.png",
        "takes/notes.txt",
    )
    touch(tmp_path, "takes/shot/0001.png", "takes/shot/0002.png", "takes/out/a10.mp4", "takes/.old/b.mp4")
    takes, out = tmp_path / "takes", tmp_path / "takes/out"

    def names(*given: str | Path) -> list[str]:
        return [item.clip.relative_to(takes).as_posix() for item in items(*given, skip=out)]

    assert names(takes) == ["a9.mov", "a10.mp4"]  # a folder of videos: each of them
    assert names(takes / "day1") == ["day1/a.mp4"]  # pictures beside videos are not frames
    assert names(takes / "shot") == ["shot"]  # a folder of frames: one clip
    assert names(f"{takes}/**/*.mp4") == ["a10.mp4", "day1/a.mp4"]  # what the last run made is no clip
    assert names(f"{takes}/*") == ["a9.mov", "a10.mp4", "day1/a.mp4", "shot"]
    assert names(takes / "a9.mov", f"{takes}/*.mov", takes) == ["a9.mov", "a10.mp4"]  # each once
    assert names(takes / "notes.txt", takes / "gone.mp4") == ["notes.txt", "gone.mp4"]  # named: tried
    assert read_items([f"{takes}/*"], parse_time, skip=out)[1] == ["passed over: 1 that are no clips"]
    assert names(f"file://{takes}/a9.mov") == ["a9.mov"]
    assert [i.clip.name for i in items(f"{out}/*.mp4", skip=out)] == ["a10.mp4"]  # asked for: meant


# outputs


def test_outputs_are_called_like_the_clips(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "takes/a.mov",
        "takes/day1/b.mp4",
        "takes/day2/b.mp4",
        "takes/shot/1.png",
        "takes/day2/c.mkv",
    )
    found = items(f"{tmp_path}/takes/**", skip=tmp_path / "out")
    paths = output_paths(found, tmp_path / "out", [])
    assert {item.clip.relative_to(tmp_path).as_posix(): p.relative_to(tmp_path / "out").as_posix()
            for item, p in zip(found, paths, strict=True)} == {
        "takes/a.mov": "a.mp4",
        "takes/day1/b.mp4": "day1/b.mp4",
        "takes/day2/b.mp4": "day2/b.mp4",
        "takes/shot": "shot",
        "takes/day2/c.mkv": "c.mp4",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("clips", "out", "said"),
    [
        (["a.mov", "a.mp4"], "out", "would be made of it and of .*a.mov"),
        (["batch/1.png"], "out", "the batch's own record"),
        (["a.mp4"], ".", "would replace it, which is an input"),
        (["x.mp4/1.png", "x.mov"], "out", "would be made of it"),
        (["shot/1.png", "b.mp4"], "shot", "a folder of frames that is read"),
    ],
)
def test_outputs_in_each_others_way_are_refused(
    tmp_path: Path, clips: list[str], out: str, said: str
) -> None:
    touch(tmp_path, *clips)
    given = [tmp_path / (Path(c).parent if c.endswith(".png") else c) for c in clips]
    with pytest.raises(SettingsError, match=said):
        output_paths(items(*given, skip=tmp_path / "nowhere"), tmp_path / out, [])


def test_no_output_may_lie_inside_another(tmp_path: Path) -> None:
    touch(tmp_path, "shot/1.png")
    found = [Item(tmp_path / "shot"), Item(tmp_path / "b.mp4", output="shot/b.mp4")]
    with pytest.raises(SettingsError, match=r"would lie inside .*out/shot"):
        output_paths(found, tmp_path / "out", [])


NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "a%2Fb", "lock", "ä"]), min_size=1, max_size=3).map("/".join),
    unique=True, min_size=1, max_size=8,
)  # fmt: skip


@given(NAMES)
@settings(deadline=None)
def test_clips_share_neither_output_nor_job(names: list[str]) -> None:
    """Whatever their names: the folder that they come from tells them apart."""
    root, out = Path("/films"), Path("/out")
    outputs = output_paths([Item(root / f"{name}.mp4", root=root) for name in names], out, [])
    jobs = {job_path(out, output) for output in outputs}
    assert len(set(outputs)) == len(jobs) == len(names)
    assert all(job.parent == out / ".ldvid-jobs" and job.name != "lock" for job in jobs)


# results


def test_the_exit_code_counts_what_failed() -> None:
    def code(failed: int) -> int:
        results = [Result("a", "b").failed("why") for _ in range(failed)]
        return exit_code([*results, Result("a", "b", state="done")])

    assert [code(n) for n in (0, 1, 3, 25, 26, 1000)] == [0, 101, 103, 125, 125, 125]


def test_batch_json_replaces_only_its_own_kind(tmp_path: Path) -> None:
    path = tmp_path / "batch.json"
    path.write_text('{"jobs": []}')
    with pytest.raises(OutputExistsError, match="no batch wrote it"):
        Record(path)
    path.unlink()
    Record(path).write([Result("a", "b")])
    Record(path).write([Result("a", "b").failed("why")])
    assert json.loads(path.read_text())["counts"] == {"failed": 1}
