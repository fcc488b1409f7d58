"""Single pictures and previews: ``ldvid swap PICTURE``, ``--samples``, ``ldvid preview``."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from ldvid.configs import load_settings
from ldvid.pipeline.still import StillSwapper
from ldvid.stages.decode import read_picture
from ldvid.stages.records import SourceFace
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import Pack
from PIL import Image

Command = Callable[..., "subprocess.CompletedProcess[str]"]
QUICK = ("--set", "steps=2", "--device", "cpu")


@pytest.fixture(scope="module")
def swapper(pack: Pack, networks: Networks) -> StillSwapper:
    """Two steps of preset ``cpu``."""
    return StillSwapper(load_settings("cpu", assignments=["steps=2"]), pack=pack, networks=networks)


@pytest.fixture
def other(example_face: Path) -> Path:
    """The other portrait, 512×512."""
    return example_face.with_name("face-2.png")


def test_the_seed_decides_the_swap(
    swapper: StillSwapper, faces: tuple[SourceFace, SourceFace], other: Path
) -> None:
    target = read_picture(other)
    first, again, third = (swapper.swap(target, faces[0], seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.swapped, again.swapped)
    inside = first.mask > 0.9
    difference = np.abs(first.swapped.astype(int) - third.swapped)
    assert difference[inside].mean() > 2, "another seed must give another face"
    assert not difference[first.mask == 0].any()
    np.testing.assert_array_equal(first.swapped[first.mask == 0], target[first.mask == 0])


def test_variants_of_a_picture_are_files_with_records(
    ldvid: Command, example_face: Path, other: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    run = ("swap", other, "--source", example_face, "-o", out, "--samples", "2", "--seed", "7", *QUICK)
    done = ldvid(*run)
    assert done.returncode == 0, done.stderr
    files = [tmp_path / "out.1.png", tmp_path / "out.2.png"]
    assert {p.name for p in tmp_path.iterdir()} == {f.name for f in files} | {f"{f.name}.json" for f in files}
    one, two = (read_picture(f) for f in files)
    assert (one != two).any()
    records = [json.loads(f.with_name(f"{f.name}.json").read_text(encoding="utf-8")) for f in files]
    assert [r["seed"] for r in records] == [7, 8]
    for file in files:
        with Image.open(file) as image:
            text = image.info
        assert "a face in this picture was swapped" in text["Comment"]
        assert "compositeWithTrainedAlgorithmicMedia" in text["XML:com.adobe.xmp"]
    refused = ldvid(*run)
    assert refused.returncode == 5 and "out.1.png exists" in refused.stderr
    files[1].unlink()
    single = ldvid(
        "swap", other, "--source", example_face, "-o", files[1], "--seed", "8", "--overwrite", *QUICK
    )
    assert single.returncode == 0, single.stderr
    np.testing.assert_array_equal(read_picture(files[1]), two)


def test_alpha_and_sixteen_bits_survive(
    ldvid: Command, example_face: Path, other: Path, tmp_path: Path
) -> None:
    rgb = read_picture(other).astype(np.uint16) * 257
    rgb[:40] += 3  # nothing 8 bits could hold
    alpha = np.full(rgb.shape[:2], 40000, np.uint16)
    photo = tmp_path / "deep.png"
    cv2.imwrite(str(photo), np.dstack([rgb[..., ::-1], alpha]))
    done = ldvid("swap", photo, "--source", example_face, *QUICK, "--quiet")
    assert done.returncode == 0, done.stderr
    before, after = (cv2.imread(str(f), cv2.IMREAD_UNCHANGED) for f in (photo, tmp_path / "deep.swapped.png"))
    assert after.dtype == np.uint16 and after.shape == before.shape
    np.testing.assert_array_equal(after[..., 3], before[..., 3])
    np.testing.assert_array_equal(after[:40], before[:40])
    assert (after[200:400, 200:300, :3] != before[200:400, 200:300, :3]).mean() > 0.5
    refused = ldvid("swap", photo, "--source", example_face, "-o", tmp_path / "deep.jpg", *QUICK)
    assert refused.returncode == 2 and "name the output .png" in refused.stderr
    assert not list(tmp_path.glob("deep.jpg*")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--start", "1"), 2, "is a picture"),
        (("--samples", "0"), 2, "samples"),
        (("-o", "out.mp4"), 2, "name a picture"),
    ],
)
def test_what_a_picture_does_not_take(
    ldvid: Command,
    example_face: Path,
    other: Path,
    tmp_path: Path,
    flags: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    done = ldvid("swap", other, "--source", example_face, *flags, cwd=tmp_path)
    assert done.returncode == code and says in done.stderr
    assert not list(tmp_path.iterdir())


def test_samples_of_a_clip_are_refused(ldvid: Command, example_clip: Path, example_face: Path) -> None:
    done = ldvid("swap", example_clip, "--source", example_face, "--samples", "2")
    assert done.returncode == 2 and "ldvid preview" in done.stderr


def test_a_picture_without_a_face(ldvid: Command, example_face: Path, tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    cv2.imwrite(str(grey), np.full((200, 200, 3), 128, np.uint8))
    refused = ldvid("swap", grey, "--source", example_face)
    assert refused.returncode == 4 and "no face was found" in refused.stderr
    photos = (example_face, example_face.with_name("face-2.png"))
    copied = ldvid("swap", grey, "--source", ",".join(map(str, photos)), "--allow-no-face")
    assert copied.returncode == 0, copied.stderr
    made = tmp_path / "grey.swapped.png"
    assert made.read_bytes() == grey.read_bytes()
    note = json.loads(made.with_name(f"{made.name}.json").read_text(encoding="utf-8"))
    assert note["notice"].startswith("Not altered") and note["frames_swapped"] == []
    hashes = [hashlib.sha256(p.read_bytes()).hexdigest() for p in photos]
    assert note["source"] == {"name": "face.png", "sha256": hashes[0], "face": None}
    (stated,) = note["sources"]
    assert stated["names"] == ["face.png", "face-2.png"] and stated["sha256"] == hashes


def test_preview_shows_the_frame_its_mask_and_the_swaps(
    ldvid: Command, example_clip: Path, example_face: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.png"
    run = ("preview", example_clip, "--source", example_face, "--at", "2", "-o", out, *QUICK)
    done = ldvid(*run, "--samples", "2")
    assert done.returncode == 0 and done.stdout.strip() == str(out), done.stderr
    panels = np.split(read_picture(out), 4, axis=1)
    original, mask, one, two = panels
    reader = cv2.VideoCapture(str(example_clip))
    reader.set(cv2.CAP_PROP_POS_FRAMES, 24)  # 12 frames a second
    assert np.abs(reader.read()[1][..., ::-1].astype(int) - original).mean() < 3
    assert 0.01 < (mask > 128).mean() < 0.3
    assert not (one != original)[mask == 0].any() and (one != original)[mask > 200].mean() > 0.5
    assert (one != two)[mask > 200].any()
    with Image.open(out) as image:
        assert "a face in this picture was swapped" in image.info["Comment"]
    assert ldvid(*run).returncode == 5
    nowhere = ldvid(*run[:4], "-o", tmp_path / "none" / "p.png")
    assert nowhere.returncode == 6 and "there is no folder" in nowhere.stderr
    late = ldvid(*run[:4], "--at", "9", "-o", tmp_path / "q.png")
    assert late.returncode == 2 and "4.000 s long" in late.stderr


def test_a_picture_is_finished_as_a_clip_is(
    swapper: StillSwapper, faces: tuple[SourceFace, SourceFace], other: Path
) -> None:
    target = read_picture(other)
    bare = swapper.like(load_settings("cpu", assignments=["steps=2", "detail=0", "grain=0"]))
    finished, plain = (s.swap(target, faces[0]) for s in (swapper, bare))
    inside = finished.mask > 0.9
    detail = [np.abs(cv2.Laplacian(p.swapped, cv2.CV_32F))[inside].mean() for p in (finished, plain)]
    assert detail[0] > 1.1 * detail[1], "a 512 px portrait has detail that a 256 px crop lacks"
    np.testing.assert_array_equal(finished.swapped[finished.mask == 0], target[finished.mask == 0])
