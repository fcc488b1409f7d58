"""The training data: shards, the stage ``prepare``, labels from a teacher's maps."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ldvid.errors import FaceError, InputError, OutputExistsError, SettingsError
from ldvid.stages.align import estimate_similarity, warp
from ldvid.stages.decode import read_picture
from ldvid.stages.detect import Detector
from ldvid.stages.swap.pack import Pack
from ldvid.training import prepare, shards
from ldvid.training.prepare_border import outside_of_crop
from ldvid.training.prepare_faces import outside_of_photo
from ldvid.training.prepare_regions import label
from ldvid.training.shards import CLASSES, MIRRORED, SIDE, Sample, ShardWriter, read, split_of
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
ROOT = Path(__file__).resolve().parents[1]
DEVELOPMENT_DATA = ROOT.parent / "shared"  # what is marked so is skipped without it
TEMPLATE = np.array(
    [[96.2, 121.1], [160.6, 120.5], [129.0, 160.0], [100.8, 187.1], [157.0, 186.4]], np.float32
)
BY_NAME = {name: index for index, name in enumerate(CLASSES)}

Prepare = Callable[..., Path]


# --- pieces to test with ------------------------------------------------------------------------


def sample(name: str, picture: U8, group: str = "a", **more: bytes) -> Sample:
    content = cv2.imencode(".webp", picture[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    return Sample(name, group, content, TEMPLATE, split_of(name), **more)


def as_png(pixels: U8) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1].tobytes())


def blob(*ellipses: tuple[float, float, float, float], angle: float = 0) -> F32:
    """A smooth map of ellipses (centre x, y, half axes), about 1 inside."""
    out = np.zeros((SIDE, SIDE), np.float32)
    for x, y, a, b in ellipses:
        cv2.ellipse(out, ((x, y), (2 * a, 2 * b), angle), 1, -1)
    return np.asarray(cv2.GaussianBlur(out, (0, 0), 0.7), np.float32)


def face_maps(gap: float = 0) -> F32:
    """A teacher's maps of a plain face on the template; ``gap`` is half the opening of its mouth."""
    (rx, ry), (lx, ly), (nx, ny), (ax, ay), (bx, by) = TEMPLATE
    mouth = ((ax + bx) / 2, (ay + by) / 2)
    maps = np.zeros((7, SIDE, SIDE), np.float32)
    maps[0] = blob((128, 60, 80, 50)) * 0.8
    maps[1] = blob((128, 150, 75, 95)) * 0.85
    maps[2] = blob((rx - 2, ry - 22, 20, 5), (lx + 2, ly - 22, 20, 5))
    maps[3] = blob((rx, ry, 12, 6), (lx, ly, 12, 6))
    maps[4] = blob((nx, ny - 10, 14, 25)) * 0.9
    maps[5] = blob((*mouth, 30, 10 + gap)) * 0.95
    if gap:
        maps[6] = blob((*mouth, 22, gap))
    return maps


def face_image() -> U8:
    return np.full((SIDE, SIDE, 3), 170, np.uint8)


def mirrored_points(points: F32) -> F32:
    flipped = points[[1, 0, 2, 4, 3]].copy()
    flipped[:, 0] = SIDE - 1 - flipped[:, 0]
    return flipped


def mirrored_labels(labels: U8) -> U8:
    return np.array(MIRRORED, np.uint8)[labels[:, ::-1]]


class DrawnTeacher:
    """Says of every crop that it is the plain face."""

    def __call__(self, image: U8) -> F32:
        return face_maps()


@pytest.fixture
def run_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Runs the stage as its command would; ``teacher=True`` lends it the drawn teacher."""

    def start(
        *folders: Path, out: str = "shards", flags: tuple[str, ...] = (), teacher: bool = False
    ) -> Path:
        parser = argparse.ArgumentParser()
        prepare.add_arguments(parser)
        given = [*map(str, folders), "--out", str(tmp_path / out), *flags]
        if teacher:
            (tmp_path / "teacher.tflite").write_bytes(b"drawn")
            monkeypatch.setattr(prepare.Teacher, "open", staticmethod(lambda path: DrawnTeacher()))
            given += ["--teacher", str(tmp_path / "teacher.tflite")]
        prepare.run(parser.parse_args(given))
        return tmp_path / out

    return start


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Both example portraits, and a photo with no face."""
    folder = tmp_path / "People"
    folder.mkdir()
    shutil.copy(ROOT / "examples/face.png", folder / "one.png")
    shutil.copy(ROOT / "examples/face-2.png", folder / "two.png")
    cv2.imwrite(str(folder / "wall.png"), np.full((300, 300, 3), 90, np.uint8))
    return folder


@pytest.fixture(scope="module")
def crop(detector: Detector) -> U8:
    """A real face on the template, 256×256."""
    picture = read_picture(ROOT / "examples/face.png")
    return warp(picture, estimate_similarity(detector.detect(picture)[0].landmarks, TEMPLATE), SIDE)


# --- shards -------------------------------------------------------------------------------------


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [cv2.resize(rng.integers(0, 255, (8, 8, 3), np.uint8), (SIDE, SIDE)) for _ in range(3)]
    outside = np.zeros((SIDE, SIDE), np.uint8)
    outside[:, :30] = 255
    labels = rng.integers(0, len(CLASSES), (SIDE, SIDE), np.uint8)
    with ShardWriter(tmp_path) as writer:
        writer.write(sample("a-1", pictures[0], labels=as_png(labels)))
        writer.write(sample("b-2", pictures[1], "b", outside=as_png(outside)))
        writer.write(sample("a-3", pictures[2]))
    faces = read(tmp_path, "all", labels=True)
    assert faces.names == ["a-1", "b-2", "a-3"] and faces.sets == ["a", "b", "a"]
    assert np.array_equal(faces.images, np.stack(pictures)), "RGB, in order"
    assert (faces.inside[1, :, :30] == 0).all() and (faces.inside[1, :, 30:] == 1).all()
    assert faces.inside[[0, 2]].min() == 1
    assert faces.labels is not None and np.array_equal(faces.labels[0], labels)
    assert (faces.labels[1:] == 255).all(), "no labels: nothing to learn"
    assert np.allclose(faces.landmarks, TEMPLATE, atol=0.01) and faces.landmarks.dtype == np.float32
    assert read(tmp_path, "all", sets=["b"]).names == ["b-2"]
    assert read(tmp_path, "all", limit=2).names == ["a-1", "b-2"]
    assert read(tmp_path, "all", sets=["a"], limit=2).names == ["a-1", "a-3"]
    assert read(tmp_path, "all").labels is None


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 30_000), min_size=1, max_size=60), limit=st.integers(80_000, 200_000))
@example(sizes=[9_000] * 30, limit=100_000)  # so that closing the tar would go over the limit
def test_no_piece_is_larger_than_the_limit_and_none_is_lost(
    sizes: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    with ShardWriter(folder, limit) as writer:
        for index, size in enumerate(sizes):
            writer.write(Sample(f"s-{index}", "s", b"x" * size, TEMPLATE, "train"))
    written = shards.pieces(folder)
    assert all(p.stat().st_size <= limit for p in written)
    assert len(written) <= 1 + sum(sizes) // (limit // 4), "pieces are filled"
    assert [(n, len(s["webp"])) for n, s in shards.stored(folder)] == [
        (f"s-{i}", n) for i, n in enumerate(sizes)
    ]


def test_shards_are_plain_tar_files_in_webdatasets_layout(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.write(sample("omi-1", face_image(), labels=as_png(np.zeros((SIDE, SIDE), np.uint8))))
    with tarfile.open(tmp_path / "faces-000.tar") as file:
        assert file.getnames() == ["omi-1.webp", "omi-1.labels.png", "omi-1.json"]


def test_the_split_is_that_of_the_names_hash_for_good() -> None:
    names = [f"omi-{i:05d}" for i in range(10_000)]
    held = [n for n in names if split_of(n) == "held"]
    assert 400 < len(held) < 600
    assert held[:4] == ["omi-00009", "omi-00019", "omi-00055", "omi-00056"], "a split once used stays"
    assert all(int(hashlib.sha256(n.encode()).hexdigest()[:8], 16) % 20 == 0 for n in held)


def test_splits_share_nothing(tmp_path: Path) -> None:
    names = [f"omi-{i:05d}" for i in range(60)]
    with ShardWriter(tmp_path) as writer:
        for name in names:
            writer.write(sample(name, face_image()))
    train, held = read(tmp_path, "train"), read(tmp_path, "held")
    assert held.names == [n for n in names if split_of(n) == "held"] and len(held) == 4
    assert sorted(train.names + held.names) == names


def test_a_writer_that_fails_leaves_whole_pieces_only(tmp_path: Path) -> None:
    def fail() -> None:
        with ShardWriter(tmp_path, 80_000) as writer:
            for index in range(3):
                writer.write(Sample(f"s-{index}", "s", b"x" * 60_000, TEMPLATE, "train"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faces-000.tar", "faces-001.tar"]


@pytest.mark.parametrize("name", ["a.b", "a/b", "", "é"])
def test_names_that_would_not_come_back_are_refused(tmp_path: Path, name: str) -> None:
    with ShardWriter(tmp_path) as writer, pytest.raises(ValueError, match="name"):
        writer.write(sample(name, face_image()))


def test_damage_is_told_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no shards"):
        read(tmp_path, "train")
    with ShardWriter(tmp_path) as writer:
        writer.write(sample("a-1", face_image()))
    piece = tmp_path / "faces-000.tar"
    with pytest.raises(SettingsError, match="no set nobody; there are a"):
        read(tmp_path, "all", sets=["nobody"])
    with pytest.raises(InputError, match="--teacher"):
        read(tmp_path, "all", labels=True)
    whole = piece.read_bytes()
    piece.write_bytes(b"no tar" * 500)
    with pytest.raises(InputError, match=r"faces-000\.tar"):
        read(tmp_path, "all")
    piece.write_bytes(whole[:1024].replace(b"WEBP", b"WEBX") + whole[1024:])
    with pytest.raises(InputError, match="a-1 is damaged"):
        read(tmp_path, "all")


# --- labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [0, 6])
def test_a_mirrored_face_gets_mirrored_labels(gap: float) -> None:
    image, maps = face_image(), face_maps(gap)
    image[184:187, 105:155] = 90
    maps[2] += 0.9 * blob((60, 100, 9, 4))  # and something that is not the same on both sides
    here = label(image, maps, TEMPLATE)
    there = label(image[:, ::-1].copy(), maps[..., ::-1].copy(), mirrored_points(TEMPLATE))
    assert (there != mirrored_labels(here)).mean() < 0.001
    assert set(np.unique(here)) == set(range(len(CLASSES))) - (set() if gap else {BY_NAME["mouth"]})


def test_right_is_the_persons_right() -> None:
    labels = label(face_image(), face_maps(), TEMPLATE)
    for part, eye in (("eye", 0), ("brow", 0)):
        right = np.argwhere(labels == BY_NAME[f"right_{part}"]).mean(0)[1]
        left = np.argwhere(labels == BY_NAME[f"left_{part}"]).mean(0)[1]
        assert abs(right - TEMPLATE[eye, 0]) < 4 and abs(left - TEMPLATE[1, 0]) < 4


@pytest.mark.parametrize("shift", [-4, 0, 3])
@pytest.mark.parametrize("roll", [0.0, 20.0])
def test_closed_lips_part_where_their_shadow_is(shift: int, roll: float) -> None:
    image, maps = face_image(), face_maps()
    seam = 187 + shift
    image[seam - 1 : seam + 2, 90:170] = 80
    matrix = cv2.getRotationMatrix2D((128, 128), roll, 1)
    image = cv2.warpAffine(image, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)
    maps = np.stack([cv2.warpAffine(m, matrix, (SIDE, SIDE)) for m in maps])
    points = (TEMPLATE @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
    labels = label(image, maps, points)
    back = cv2.warpAffine(labels, cv2.invertAffineTransform(matrix), (SIDE, SIDE), flags=cv2.INTER_NEAREST)
    middle = back[170:205, 115:143]
    upper = 170 + np.array([np.flatnonzero(c == BY_NAME["upper_lip"]).max() for c in middle.T])
    lower = 170 + np.array([np.flatnonzero(c == BY_NAME["lower_lip"]).min() for c in middle.T])
    assert (lower > upper).all()
    assert np.abs((upper + lower) / 2 - seam).max() <= 2


def test_an_open_mouth_parts_the_lips() -> None:
    maps = face_maps()
    x, y = TEMPLATE[3:].mean(0)
    maps[5] = blob((x, y + 6, 30, 18)) * 0.95  # the lower lip is much the thicker
    maps[6] = blob((x, y - 2, 22, 4))
    labels = label(face_image(), maps, TEMPLATE)
    inside = np.argwhere(labels == BY_NAME["mouth"])
    for column in range(115, 143):
        rows = inside[inside[:, 1] == column][:, 0]
        above, below = labels[: rows.min(), column], labels[rows.max() + 1 :, column]
        assert (above == BY_NAME["upper_lip"]).sum() > 3 and (above == BY_NAME["lower_lip"]).sum() == 0
        assert (below == BY_NAME["lower_lip"]).sum() > 3 and (below == BY_NAME["upper_lip"]).sum() == 0


def test_brows_that_meet_are_cut_and_a_turned_heads_is_not() -> None:
    maps = face_maps()
    maps[2] = blob((128, 98, 50, 5))
    labels = label(face_image(), maps, TEMPLATE)
    right = np.argwhere(labels == BY_NAME["right_brow"])
    left = np.argwhere(labels == BY_NAME["left_brow"])
    assert abs(len(right) - len(left)) < 0.1 * len(left) and right[:, 1].max() <= left[:, 1].min()
    maps[2] = blob((118, 98, 30, 5), (172, 98, 12, 5))  # the near brow reaches beyond the middle
    labels = label(face_image(), maps, TEMPLATE)
    assert np.argwhere(labels == BY_NAME["right_brow"])[:, 1].max() >= 145
    assert np.argwhere(labels == BY_NAME["left_brow"])[:, 1].min() >= 155


def test_parts_where_they_cannot_be_are_given_away() -> None:
    maps = face_maps()
    maps[2] = np.maximum(maps[2], blob((128, 225, 8, 4)))  # a brow on the chin
    maps[3] = np.maximum(maps[3], blob((128, 42, 8, 4)))  # an eye in the hair
    maps[0, 20:23, 20:23] = 1  # a speck of hair far off
    labels = label(face_image(), maps, TEMPLATE)
    assert (labels[215:235, 115:141] == BY_NAME["skin"]).all()
    assert (labels[34:50, 115:141] == BY_NAME["hair"]).all()
    assert (labels[15:28, 15:28] == BY_NAME["background"]).all()


def test_dark_glasses_are_background_and_shut_eyes_are_not() -> None:
    maps = face_maps()
    maps[3] = 0
    shut = label(face_image(), maps, TEMPLATE)
    assert (shut[110:130, 80:110] == BY_NAME["skin"]).all()
    image = face_image()
    for x, y in TEMPLATE[:2]:
        cv2.ellipse(image, (int(x), int(y)), (24, 18), 0, 0, 360, (20, 20, 25), -1)
        cv2.circle(image, (int(x), int(y)), 4, (250, 250, 250), -1)  # a reflection
    worn = label(image, maps, TEMPLATE)
    assert (worn[115:127, 85:107] == BY_NAME["background"]).all()
    assert (worn[115:127, 150:172] == BY_NAME["background"]).all()
    assert (worn[150:170, 70:110] == BY_NAME["skin"]).all()


# --- what lies outside the photo ----------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    angle=st.floats(-180, 180),
    scale=st.floats(0.3, 3),
    x=st.floats(-200, 300),
    y=st.floats(-200, 300),
)
def test_outside_is_where_a_warped_photo_has_nothing(angle: float, scale: float, x: float, y: float) -> None:
    matrix = cv2.getRotationMatrix2D((120.0, 90.0), angle, scale)
    matrix[:, 2] += (x, y)
    photo = np.full((180, 240), 255, np.uint8)
    seen = cv2.warpAffine(photo, matrix, (SIDE, SIDE), flags=cv2.INTER_NEAREST)
    outside = outside_of_photo(matrix, photo.shape)
    edge = cv2.dilate(seen, np.ones((3, 3))) != cv2.erode(seen, np.ones((3, 3)))
    assert np.array_equal(outside[~edge], (seen == 0)[~edge])


def test_a_face_at_the_photos_border(
    tmp_path: Path, run_prepare: Prepare, detector: Detector, photos: Path
) -> None:
    picture = read_picture(photos / "one.png")
    box = detector.detect(picture)[0].box
    first = int(box[0])  # the photo now begins with the face
    border = tmp_path / "Border"
    border.mkdir()
    cv2.imwrite(str(border / "cut.png"), picture[:, first:, ::-1])
    faces = read(run_prepare(border, teacher=True), "all", labels=True)
    assert faces.labels is not None
    outside = faces.inside[0] == 0
    assert 0.05 < outside.mean() < 0.5 and outside[:, 0].mean() > 0.95 and not outside[60:200, 90:160].any()
    assert (faces.labels[0][outside] == 255).all() and (faces.labels[0][~outside] != 255).all()
    # Along the border the crop shows the photo's first column: the mask ends where that begins.
    points = faces.landmarks[0]
    found = min(detector.detect(picture[:, first:].copy()), key=lambda d: -d.area)
    scale = np.linalg.norm(points[1] - points[0]) / np.linalg.norm(found.landmarks[1] - found.landmarks[0])
    expected = points[0, 0] - scale * (found.landmarks[0, 0] + 0.5)
    row = int(points[0, 1])
    assert abs(outside[row, :128].sum() - expected) < 3


def test_a_mirrored_border_is_found(crop: U8) -> None:
    matrix = cv2.getRotationMatrix2D((127.5, 127.5), 5.0, 0.85)
    size = (SIDE, SIDE)
    filled = cv2.warpAffine(crop, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    truth = cv2.warpAffine(np.ones(size, np.uint8), matrix, size, flags=cv2.INTER_NEAREST) == 0
    found = outside_of_crop(filled)
    assert found is not None
    assert (found & ~truth).mean() < 0.02, "nothing of the photo is given up"
    # A plain wall mirrors into itself: only the sides with something to see can be found.
    assert (found & truth).sum() > 0.4 * truth.sum()
    assert outside_of_crop(crop) is None


# --- the stage ----------------------------------------------------------------------------------


def test_photographs_are_put_on_the_template(
    run_prepare: Prepare, photos: Path, detector: Detector, pack: Pack, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run_prepare(photos, ROOT / "tests/data", flags=("--faces", "all", "--min-face", "40"))
    faces = read(out, "all")
    assert sorted(faces.names) == [
        "People-one-face0",
        "People-two-face0",
        "two-faces-face0",
        "two-faces-face1",
    ]
    assert set(faces.sets) == {"People", "two"}
    assert np.allclose(pack.manifest.template_points(), TEMPLATE)
    for image, points in zip(faces.images, faces.landmarks, strict=True):
        seen = min((d.landmarks for d in detector.detect(image)), key=lambda p: np.abs(p - TEMPLATE).max())
        assert np.linalg.norm(seen - points, axis=1).max() < 4, "the landmarks are those of the crop"
        # No turn, scale or shift brings them nearer to the template.
        assert np.allclose(estimate_similarity(points, TEMPLATE), np.eye(2, 3), atol=0.02)
    said = capsys.readouterr().out
    assert "4 faces kept" in said and "1 dropped: no face" in said and "wall.png" in said


def test_faces_too_small_are_dropped_and_nothing_is_left(
    run_prepare: Prepare, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(FaceError, match=r"face smaller than 2000 pixels.*--min-face"):
        run_prepare(photos, flags=("--min-face", "2000"))
    assert not list(tmp_path.glob("shards*"))


def test_aligned_crops_keep_their_bytes(run_prepare: Prepare, tmp_path: Path, crop: U8) -> None:
    folder = tmp_path / "crops"
    folder.mkdir()
    content = cv2.imencode(".webp", crop[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 70])[1].tobytes()
    (folder / "omi-00009.webp").write_bytes(content)
    cv2.imwrite(str(folder / "00001.png"), cv2.resize(crop, (512, 512))[..., ::-1])
    cv2.imwrite(str(folder / "blank.png"), np.full((SIDE, SIDE, 3), 99, np.uint8))
    cv2.imwrite(str(folder / "wide.png"), np.zeros((256, 300, 3), np.uint8))
    cv2.imwrite(str(folder / "beside.png"), np.roll(crop, 60, 1)[..., ::-1])  # a face, but not in its place
    (folder / "torn.webp").write_bytes(content[:500])
    out = run_prepare(folder, flags=("--aligned",), teacher=True)
    found = dict(shards.stored(out))
    assert sorted(found) == ["crops-00001", "crops-blank", "omi-00009"]
    assert found["omi-00009"]["webp"] == content
    faces = read(out, "all", labels=True)
    by_name = dict(zip(faces.names, range(3), strict=True))
    error = faces.images[by_name["crops-00001"]].astype(int) - crop.astype(int)
    assert np.abs(error).mean() < 4
    assert np.abs(faces.landmarks[by_name["omi-00009"]] - TEMPLATE).max() < 6
    assert np.allclose(faces.landmarks[by_name["crops-blank"]], TEMPLATE, atol=0.01), (
        "no face: the template's"
    )
    assert read(out, "held").names == ["omi-00009"]
    facts = json.loads((out / "prepare.json").read_text())
    assert facts["without_detection"] == 1 and facts["faces"] == 3
    assert facts["dropped"] == {
        "can't be read": 1,
        "its face is not where the template says": 1,
        "no square of at least 256 pixels, as --aligned needs": 1,
    }


def test_nothing_is_overwritten_unasked(run_prepare: Prepare, photos: Path, tmp_path: Path) -> None:
    out = run_prepare(photos)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(OutputExistsError, match="--overwrite"):
        run_prepare(photos, flags=("--set", "new"))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    run_prepare(photos, flags=("--set", "new", "--overwrite"))
    assert read(out, "all").sets == ["new", "new"]
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"thesis\.txt"):
        run_prepare(photos, flags=("--overwrite",))
    assert (out / "thesis.txt").read_text() == "mine" and len(list(tmp_path.glob("shards*"))) == 1
    beside = tmp_path / "other.unfinished"
    beside.mkdir()
    (beside / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"other\.unfinished.*notes\.txt"):
        run_prepare(photos, out="other", flags=("--overwrite",))
    assert (beside / "notes.txt").read_text() == "mine"


def test_a_run_that_was_stopped_goes_on(
    run_prepare: Prepare, tmp_path: Path, crop: U8, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "crops"
    folder.mkdir()
    for index in range(12):
        cv2.imwrite(str(folder / f"{index:05d}.png"), np.roll(crop, index, 0)[..., ::-1])
    monkeypatch.setattr(prepare, "ShardWriter", functools.partial(ShardWriter, limit=100_000))
    whole = run_prepare(folder, flags=("--aligned",), out="whole")
    looked_at: list[str] = []
    make = prepare.Maker.__call__

    def counting(self: prepare.Maker, photo: prepare.Photo) -> object:
        looked_at.append(photo.name)
        if len(looked_at) == 9:
            raise KeyboardInterrupt
        return make(self, photo)

    with monkeypatch.context() as patch:
        patch.setattr(prepare.Maker, "__call__", counting)
        with pytest.raises(KeyboardInterrupt):
            run_prepare(folder, flags=("--aligned",))
        assert not (tmp_path / "shards").exists()
        with pytest.raises(OutputExistsError, match="other settings"):
            run_prepare(folder, flags=("--aligned", "--set", "x"))
        run_prepare(folder, flags=("--aligned",))
    assert 12 < len(looked_at) < 9 + 12, "only what was not in a whole piece is done again"
    again = tmp_path / "shards"
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {
        p.name: p.read_bytes() for p in whole.iterdir()
    }
    assert len(shards.pieces(again)) >= 3


def test_pictures_that_would_share_a_name_are_told(run_prepare: Prepare, photos: Path) -> None:
    shutil.copy(photos / "one.png", photos / "one.jpg")
    with pytest.raises(SettingsError, match=r"one\.(png|jpg).*would both be People-one"):
        run_prepare(photos)
    with pytest.raises(InputError, match="no such folder"):
        run_prepare(photos / "nowhere")
    with pytest.raises(InputError, match="no pictures"):
        (photos / "empty").mkdir()
        run_prepare(photos / "empty")


def test_the_order_is_that_of_a_hash_whatever_the_workers(run_prepare: Prepare, photos: Path) -> None:
    one = run_prepare(photos, out="one")
    three = run_prepare(photos, out="three", flags=("--workers", "3"))
    assert [p.read_bytes() for p in shards.pieces(one)] == [p.read_bytes() for p in shards.pieces(three)]
    names = read(one, "all").names
    assert names == sorted(names, key=lambda n: hashlib.sha256(n.encode()).hexdigest())


# --- the real teacher ---------------------------------------------------------------------------


@pytest.mark.shared
def test_the_teacher_labels_real_faces_alike_on_both_sides(detector: Detector) -> None:
    pytest.importorskip("tflite")
    from ldvid.training.teacher import Teacher

    teacher = Teacher.open(DEVELOPMENT_DATA / "data/parsing/face_parse.tflite")
    for file in ("celebahq/00000.webp", "celebahq/07402.webp", "synthetic/omi-04223.webp"):
        image = read_picture(DEVELOPMENT_DATA / "data/faces" / file)
        found = detector.detect(image)
        points = found[0].landmarks
        labels = label(image, teacher(image), points)
        flipped = np.ascontiguousarray(image[:, ::-1])
        other = label(flipped, teacher(flipped), mirrored_points(points))
        assert (other != mirrored_labels(labels)).mean() < 0.002
        for index, part in ((0, "right_eye"), (1, "left_eye"), (2, "nose")):
            x, y = np.round(points[index]).astype(int)
            assert (labels[y - 4 : y + 5, x - 4 : x + 5] == BY_NAME[part]).sum() > 10, part
        lips = [np.argwhere(labels == BY_NAME[part])[:, 0].mean() for part in ("upper_lip", "lower_lip")]
        assert points[3:, 1].mean() - 12 < lips[0] < lips[1] < points[3:, 1].mean() + 25
    with pytest.raises(InputError, match="not a parser"):
        Teacher.open(DEVELOPMENT_DATA / "data/README.md")
