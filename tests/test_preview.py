"""Previews that compare settings, and the debug overlay of previews and jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ldvid.cli import main
from ldvid.configs import Settings, load_settings
from ldvid.errors import SettingsError
from ldvid.metrics.grid import GAP, grid
from ldvid.pipeline import still as stills
from ldvid.pipeline.preview import preview, preview_output
from ldvid.pipeline.preview_grid import UNSEEN, Grid, parse_axis
from ldvid.pipeline.request import SwapRequest
from ldvid.pipeline.target import default_output
from ldvid.stages.decode import open_reader, probe, read_picture
from ldvid.stages.overlay import BANNER, Marked, OverlayStage, draw_overlay
from ldvid.stages.picture_write import encode_picture
from ldvid.stages.records import Frame, Track
from PIL import Image

ONE = "steps=1"


@pytest.fixture
def ldvid_in_process(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The command's code and what it said on stderr."""

    def run(*arguments: object) -> tuple[int, str]:
        code = main([*map(str, arguments), "--debug"])
        return code, capsys.readouterr().err

    return run


def load(more: list[str] | None = None) -> Settings:
    """What the command's own function does with ``--set steps=1``."""
    return load_settings("cpu", assignments=[ONE, *(more or [])])


@pytest.fixture
def request_at(example_clip: Path, example_face: Path, tmp_path: Path) -> SwapRequest:
    """Of the shipped clip, on the CPU."""
    return SwapRequest(example_clip, example_face, load(), output=tmp_path / "p.png", device="cpu")


def cells_of(picture: np.ndarray, width: int, height: int) -> list[list[np.ndarray]]:
    """The pictures of a grid, below their labels."""
    columns = (picture.shape[1] - GAP) // (width + GAP)
    rows = 2 if picture.shape[0] > 2 * height else 1
    step = (picture.shape[0] - GAP) // rows
    tops = [GAP + r * step + (step - GAP - height) for r in range(rows)]
    lefts = [GAP + c * (width + GAP) for c in range(columns)]
    return [[picture[t : t + height, x : x + width] for x in lefts] for t in tops]


def test_a_matrix_holds_the_swap_of_each_pair_of_values(request_at: SwapRequest) -> None:
    made = preview(request_at, 2.0, grid=Grid.of(["mask_grow=-8,8", "seed=0,5"], load))
    cells = cells_of(read_picture(made), 480, 270)
    assert [len(row) for row in cells] == [3, 3]
    (original, *first), (mask, *second) = cells
    single = request_at.output.with_name("single.png")  # type: ignore[union-attr]
    one = SwapRequest(
        request_at.clip,
        request_at.source,
        load(["mask_grow=8", "seed=5"]),
        output=single,
        device="cpu",
    )
    panels = np.split(read_picture(preview(one, 2.0)), 3, axis=1)
    np.testing.assert_array_equal(original, panels[0])
    np.testing.assert_array_equal(second[1], panels[2], err_msg="the cell is the preview of its settings")
    changed = [int((c != original).any(-1).sum()) for c in (*first, *second)]
    assert max(changed[:2]) < min(changed[2:]), "the first key goes down: a larger mask is below"
    assert (first[0] != first[1]).any() and (second[0] != second[1]).any(), "the second goes across"
    assert set(np.unique(mask)) >= {0, 255}
    with Image.open(made) as image:
        assert "a face in this picture was swapped" in image.info["Comment"]


def test_photographs_of_a_source_are_averaged(
    request_at: SwapRequest, ldvid_in_process: Callable[..., tuple[int, str]]
) -> None:
    one, other = request_at.source, request_at.source.with_name("face-2.png")
    base = (
        "preview",
        request_at.clip,
        "--set",
        ONE,
        "--device",
        "cpu",
        "--overwrite",
        "-o",
        request_at.output,
    )
    made = []
    for source in (one, other, f"{one},{other}"):
        code, said = ldvid_in_process(*base, "-s", source)
        assert code == 0 and ("may show somebody else" in said) == ("," in str(source))
        made.append(np.split(read_picture(request_at.output), 3, axis=1)[2])  # type: ignore[arg-type]
    assert (made[2] != made[0]).any() and (made[2] != made[1]).any()
    code, said = ldvid_in_process(*base, "-s", f"{one}@0")
    assert code == 2 and "largest face" in said
    assert ldvid_in_process(*base, "-s", f"{one},nowhere.png")[0] == 3


def test_one_key_is_a_row_and_zoom_shows_the_head(request_at: SwapRequest) -> None:
    made = read_picture(preview(request_at, 1.0, grid=Grid.of(["steps=1,2"], load), zoom=True))
    side = 256
    assert made.shape[1] == GAP + 4 * (side + GAP)
    ((original, _, one, two),) = cells_of(made, side, side)
    assert (one != two).any()
    middle = (slice(96, 160), slice(96, 160))
    assert (one[middle] != original[middle]).mean() > 0.5, "the face is in the middle"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["stps=1,2"], "stps"),
        (["steps=1,two"], "valid integer"),
        (["steps=0,1"], "greater than or equal to 1"),
        (["steps"], "write it as key=a,b,c"),
        (["steps=1,,2"], "write it as key=a,b,c"),
        (["codec=libx264,libx265"], "one frame"),
        (["steady=0,1"], "one frame"),
        (["fade_frames=0,6"], "one frame"),
        (["batch=1,4"], "one frame"),
        (["steps=1,1"], "twice"),
        (["steps=1", "steps=2"], "both rows and columns"),
        (["steps=1", "eta=0", "seed=1"], "no direction"),
        (["preset=cpu,qualty"], "there are"),
        (["guidance.identity.scl=1,2"], "scl"),
        (["pack=nowhere"], "no such pack"),
        ([f"seed={','.join(map(str, range(101)))}"], "more than 100"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(
    ldvid_in_process: Callable[..., tuple[int, str]],
    example_clip: Path,
    example_face: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    says: str,
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("networks were loaded")

    monkeypatch.setattr(stills.StillSwapper, "__init__", loaded)
    grids = [part for flag in flags for part in ("--grid", flag)]
    out = tmp_path / "g.png"
    code, said = ldvid_in_process("preview", example_clip, "-s", example_face, "-o", out, *grids)
    assert code in (2, 7) and says in said, said
    assert not list(tmp_path.iterdir())


def test_commas_in_brackets_and_quotes_belong_to_the_value() -> None:
    axis = parse_axis("guidance.identity.schedule=[[0.5,1],[1,0]],[[1,1]]")
    assert axis.values == ("[[0.5,1],[1,0]]", "[[1,1]]")
    assert parse_axis("pack='a,b',c").values == ("'a,b'", "c")
    made = Grid.of(["guidance.identity.schedule=[[0.5,1],[1,0]],[[1,1]]"], load).settings[0]
    assert made[0].guidance[0].schedule == ((0.5, 1), (1, 0))
    assert set(Settings.model_fields) >= UNSEEN, "a setting was renamed"
    with pytest.raises(SettingsError, match="--grid steps=x"):
        Grid.of(["steps=x"], load)


def test_presets_can_be_compared(ldvid_in_process: Callable[..., tuple[int, str]]) -> None:
    code, said = ldvid_in_process("preview", "no.mp4", "-s", "no.png", "--grid", "preset=cpu,fast")
    assert code == 3 and "no.mp4" in said, "the presets are known, so it is the clip that is missed"


def test_labels_are_drawn_and_cut() -> None:
    cell = np.full((40, 120, 3), 200, np.uint8)
    short = grid([[cell, cell]], [["a", "b"]])
    header = short[: short.shape[0] - 40 - GAP]
    left, right = header[:, : GAP + 120], header[:, GAP + 120 :]
    assert (left < 128).any() and (right < 128).any() and (left.shape != right.shape or (left != right).any())
    long = grid([[cell, cell]], [["word " * 50, ""]])
    assert (long[: long.shape[0] - 40 - GAP, 2 * GAP + 120 :] == 255).all(), "it must not run into the next"
    with pytest.raises(ValueError, match="one size"):
        grid([[cell, cell[:20]]], [["a", "b"]])


def test_names_of_previews() -> None:
    clip = Path("a/clip.mp4")
    assert preview_output(clip, 2.5) == Path("a/clip.preview-2.5s.png")
    both = Grid.of(["steps=1,2", "eta=0,1"], load)
    assert preview_output(clip, 2.5, both).name == "clip.preview-2.5s.steps-eta.png"
    assert preview_output(clip, 2.5, debug=True).name == "clip.preview-2.5s.debug.png"
    assert default_output(clip, debug=True) == Path("a/clip.swapped.debug.mp4")
    assert default_output(clip) == Path("a/clip.swapped.mp4")


def test_the_overlay_of_a_preview_is_on_the_swap_alone(request_at: SwapRequest) -> None:
    plain = np.split(read_picture(preview(request_at, 0.0)), 3, axis=1)
    drawn_request = SwapRequest(
        request_at.clip,
        request_at.source,
        load(["debug_overlay=true"]),
        output=request_at.output.with_name("d.png"),  # type: ignore[union-attr]
        device="cpu",
    )
    drawn = np.split(read_picture(preview(drawn_request, 0.0)), 3, axis=1)
    np.testing.assert_array_equal(drawn[0], plain[0])
    np.testing.assert_array_equal(drawn[1], plain[1])
    different = (drawn[2] != plain[2]).any(-1)
    assert different[:16, :200].mean() > 0.3, "the banner"
    assert 0.005 < different.mean() < 0.2


# -- the stage -------------------------------------------------------------------------------------


def track(number: int, frames: list[int], x: float) -> Track:
    """A face of 40 by 50 pixels at ``x``."""
    n = len(frames)
    points = np.array([[12, 18], [28, 18], [20, 28], [14, 38], [26, 38]], np.float32)
    points += np.array([x, 60], np.float32)
    return Track(
        number,
        0,
        np.array(frames),
        np.tile(np.array([x, 60, x + 40, 110], np.float32), (n, 1)),
        np.tile(points, (n, 1, 1)),
        np.full(n, 0.9, np.float32),
        np.zeros(4, np.float32),
    )


def test_tracks_are_drawn_in_their_frames_and_those_left_alone_in_grey(example_clip: Path) -> None:
    info = probe(example_clip)
    stage = OverlayStage(info, [track(3, [0, 1], 40), track(4, [1], 250)], {3})
    picture = np.full((270, 480, 3), 90, np.uint8)
    mask = np.zeros((270, 480), np.float32)
    mask[66:104, 46:74] = 1
    first, where = stage.process((Frame(0, picture), picture, mask))
    second, _ = stage.process((Frame(1, picture), picture, None))
    third, _ = stage.process((Frame(2, picture), picture, None))
    left, right = np.s_[55:115, 30:90], np.s_[55:115, 240:300]
    assert (picture == 90).all(), "the picture given is not drawn on"
    assert (first[left] != 90).any() and (first[right] == 90).all()
    assert (second[left] != 90).any() and (second[right] != 90).any()
    assert (third[left] == 90).all() and (third[:14, :100] != 90).any(), "the banner is on every frame"
    bright = second[right][second[right].max(-1) > 150]
    assert (np.ptp(bright.astype(int), axis=-1) == 0).all(), "left alone: grey"
    colours = second[left][second[left].max(-1) > 150]
    assert np.ptp(colours.astype(int), axis=-1).max() > 80
    # The mask's outline is there with the mask only.
    white = [(picture[left].min(-1) > 200).sum() for picture in (first, second)]
    assert white[0] > white[1] + 40, white
    assert (where[mask == 1] == 1).all() and (where[(first != picture).any(-1)] == 1).all()
    assert stage._banner(14) == f"{BANNER}  frame 14  00:00:01.167"


@settings(deadline=None, max_examples=40)
@given(
    box=hnp.arrays(np.float32, 4, elements=st.floats(-400, 800, width=32)),
    shape=st.tuples(st.integers(24, 200), st.integers(24, 200)),
    label=st.text(max_size=40),
    deep=st.booleans(),
)
def test_drawing_never_fails_and_says_where_it_drew(
    box: np.ndarray, shape: tuple[int, int], label: str, deep: bool
) -> None:
    picture = np.full((*shape, 3), 77, np.float32 if deep else np.uint8)
    before = picture.copy()
    points = np.stack([box[:2], box[2:], box[:2], box[2:], box[:2]])
    made, where = draw_overlay(picture, None, [Marked(label, box, points, (1, 2, 3))], BANNER)
    np.testing.assert_array_equal(picture, before)
    assert made.dtype == picture.dtype and made.shape == picture.shape
    different = (made != picture).any(-1)
    assert different.any() and set(np.unique(where)) <= {0, 1}
    assert (where[different] == 1).all()


# -- jobs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, example_clip: Path) -> Path:
    """Four frames of the clip as PNG: what is drawn can be compared exactly."""
    place = tmp_path_factory.mktemp("overlay") / "frames"
    place.mkdir()
    reader = open_reader(probe(example_clip), "pyav")
    for frame in reader.read(0, 4):
        (place / f"{frame.index:03d}.png").write_bytes(encode_picture(frame.rgb, ".png"))
    reader.close()
    return place


def test_the_overlay_of_a_job(
    ldvid_in_process: Callable[..., tuple[int, str]], folder: Path, example_face: Path
) -> None:
    small = ("--set", ONE, "--set", "keyframe_interval=2", "--set", "batch=2", "--device", "cpu", "-q")
    run = ("swap", folder, "-s", example_face, *small)
    whole = ("--set", "segment_frames=4")
    assert ldvid_in_process(*run, *whole)[0] == 0
    assert ldvid_in_process(*run, *whole, "--debug-overlay", "--keep-job")[0] == 0
    other = folder.with_name("other")
    assert ldvid_in_process(*run, "--set", "segment_frames=2", "--debug-overlay", "-o", other)[0] == 0
    marked = folder.with_name("frames.swapped.debug")
    for number in range(4):
        name = f"{number:03d}.png"
        one, two = read_picture(folder.with_name("frames.swapped") / name), read_picture(marked / name)
        assert (marked / name).read_bytes() == (other / name).read_bytes(), "wherever segments end"
        different = (one != two).any(-1)
        assert different[:16, :200].mean() > 0.3, "the banner is on every frame"
        assert different.mean() < 0.2, "what isn't drawn on is the swap as it is without"
    job = folder.with_name("frames.swapped.debug.ldvid-job")
    code, said = ldvid_in_process(*run, *whole, "--job", job, "--overwrite", "-o", marked)
    assert code == 8 and "debug_overlay: True → False" in said
    record = json.loads(marked.with_name(f"{marked.name}.json").read_text(encoding="utf-8"))
    assert record["settings"]["debug_overlay"] is True


def test_a_clip_without_a_face_is_copied_undrawn(
    ldvid_in_process: Callable[..., tuple[int, str]], test_data: Path, example_face: Path, tmp_path: Path
) -> None:
    out, clip = tmp_path / "o.mp4", test_data / "no-face.mp4"
    code, said = ldvid_in_process(
        "swap", clip, "-s", example_face, "-o", out, "--debug-overlay", "--allow-no-face", "-q"
    )
    assert code == 0, said
    assert out.read_bytes() == clip.read_bytes()


def test_pictures_have_an_overlay_too(
    ldvid_in_process: Callable[..., tuple[int, str]], test_data: Path, example_face: Path, tmp_path: Path
) -> None:
    photo = tmp_path / "two.png"
    photo.write_bytes(encode_picture(read_picture(test_data / "two-faces.jpg"), ".png"))
    code, said = ldvid_in_process("swap", photo, "-s", example_face, "--set", ONE, "--debug-overlay", "-q")
    assert code == 0, said
    made = read_picture(tmp_path / "two.swapped.debug.png")
    before = read_picture(photo)
    assert (made != before).any(-1)[:16, :200].mean() > 0.3
    # Both faces are boxed: there is ink in the left and in the right half, below the banner.
    different = (made != before).any(-1)[40:]
    assert different[:, :200].any() and different[:, 280:].any()


def test_frames_of_a_video_carry_the_banner(
    ldvid_in_process: Callable[..., tuple[int, str]], example_clip: Path, example_face: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.mp4"
    run = ("swap", example_clip, "-s", example_face, "--end", "0.25", "--set", ONE, "-o", out, "-q")
    assert ldvid_in_process(*run, "--debug-overlay")[0] == 0
    with av.open(str(out)) as made, av.open(str(example_clip)) as original:
        for after, before in zip(made.decode(video=0), original.decode(video=0), strict=False):
            a, b = (f.to_ndarray(format="rgb24").astype(int) for f in (after, before))
            assert np.abs(a - b)[:14, :200].mean() > 30
