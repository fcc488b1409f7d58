"""The judges: shipped, verified, right on known answers, and never part of a swap."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from ldvid.errors import PackError
from ldvid.metrics.hopenet import HopenetPose
from ldvid.metrics.judge import PoseJudge
from ldvid.metrics.judges import FOLDER, Judges, embedded, open_judges
from ldvid.metrics.mesh import mirrored_vertices
from ldvid.stages.align import apply_points, warp
from ldvid.stages.decode import open_reader, probe, read_picture
from ldvid.stages.detect import Detector
from ldvid.stages.records import F32, F64, U8
from ldvid.stages.swap.manifest import PoseEntry
from ldvid.stages.swap.pack import Pack, known_packs

ROOT = Path(__file__).resolve().parents[1]
Face = tuple[U8, F32]


@pytest.fixture(scope="module")
def judges(pack: Pack) -> Judges:
    return open_judges(pack)


@pytest.fixture(scope="module")
def portraits(detector: Detector) -> tuple[Face, Face]:
    """The two example portraits with their landmarks: a man from the front, a woman turned slightly."""
    pictures = [read_picture(ROOT / "examples" / name) for name in ("face.png", "face-2.png")]
    one, two = [(p, detector.detect(p)[0].landmarks) for p in pictures]
    return one, two


@pytest.fixture(scope="module")
def man(detector: Detector, example_clip: Path) -> list[Face]:
    """Every eighth frame of the example clip, and the last, in which his smile has ended."""
    info = probe(example_clip)
    frames = list(open_reader(info, "pyav").read(0, info.frames))
    return [(f.rgb, detector.detect(f.rgb)[0].landmarks) for f in [*frames[::8], frames[-1]]]


def mirror(face: Face) -> Face:
    picture, points = face
    flipped = points[[1, 0, 2, 4, 3]] * np.float32([-1, 1]) + np.float32([picture.shape[1] - 1, 0])
    return np.ascontiguousarray(picture[:, ::-1]), flipped


def turned(face: Face, degrees: float, scale: float = 1.0) -> Face:
    """The face rotated clockwise as seen, about its nose, which comes to the middle of 512×512."""
    picture, points = face
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    linear: F64 = np.array([[c, -s], [s, c]])
    matrix = np.hstack([linear, (256 - linear @ points[2])[:, None]])
    return warp(picture, matrix, 512), apply_points(matrix, points)


def as_jpeg(face: Face, quality: int) -> Face:
    _, data = cv2.imencode(".jpg", face[0], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8), face[1]


# --- identity ---------------------------------------------------------------------------------------


def test_identity_of_a_picture_with_itself_is_1(judges: Judges, portraits: tuple[Face, Face]) -> None:
    embedding = judges.identity.embed(*portraits[0])
    assert embedding.shape == (128,) and embedding @ embedding == pytest.approx(1, abs=1e-6)


def test_identity_survives_mirror_turn_scale_and_jpeg(
    judges: Judges, portraits: tuple[Face, Face], man: list[Face]
) -> None:
    for face in (*portraits, man[0]):
        own = judges.identity.embed(*face)
        for other in (mirror(face), turned(face, 20), turned(face, -35, 0.6), as_jpeg(face, 50)):
            assert own @ judges.identity.embed(*other) > 0.97


def test_one_person_is_nearer_than_any_two(
    judges: Judges, portraits: tuple[Face, Face], man: list[Face]
) -> None:
    """dlib's embeddings share a direction: unrelated people are at 0.80 to 0.87 here, one man over 0.94."""
    frames = [judges.identity.embed(*f) for f in man]
    one, two = (judges.identity.embed(*f) for f in portraits)
    same = min(float(a @ b) for a in frames for b in frames)
    unrelated = max(float(one @ two), *(float(a @ b) for a in frames for b in (one, two)))
    assert same > 0.94 and unrelated < 0.88


# --- pose -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [-40, -15, 20, 60])
def test_a_turned_picture_rolls_by_its_angle(
    judges: Judges, portraits: tuple[Face, Face], degrees: float
) -> None:
    before = judges.pose.pose(*turned(portraits[0], 0))
    after = judges.pose.pose(*turned(portraits[0], degrees))
    assert after[2] - before[2] == pytest.approx(degrees, abs=3)
    assert np.abs(after[:2] - before[:2]).max() < 3


def test_pose_network_itself_sees_the_turn(portraits: tuple[Face, Face]) -> None:
    """With the landmarks of the unturned picture the crop stays as it is: the network has to see it."""
    judge = PoseJudge(embedded("pose"))
    straight = turned(portraits[0], 0)
    seen = [judge.pose(turned(portraits[0], d)[0], straight[1])[2] for d in (-20, -10, 0, 10, 20)]
    assert np.allclose(np.diff(seen), 10, atol=3)


def test_a_mirrored_head_negates_yaw_and_roll(judges: Judges, portraits: tuple[Face, Face]) -> None:
    face = turned(portraits[1], 12)
    yaw, pitch, roll = judges.pose.pose(*face)
    other = judges.pose.pose(*mirror(face))
    assert abs(yaw) > 5 and abs(roll) > 8  # else this would not tell
    assert abs(yaw + other[0]) < 4 and abs(pitch - other[1]) < 4 and abs(roll + other[2]) < 4


def test_pose_of_a_picture_with_itself_is_0(judges: Judges, portraits: tuple[Face, Face]) -> None:
    assert np.array_equal(judges.pose.pose(*portraits[0]), judges.pose.pose(*portraits[0]))


# --- mesh -------------------------------------------------------------------------------------------


def test_the_mesh_lies_on_the_features(judges: Judges, portraits: tuple[Face, Face], man: list[Face]) -> None:
    """Eyes and mouth corners against the detector, another network."""
    for picture, landmarks in (*portraits, *man):
        mesh = judges.mesh.points(picture, landmarks)
        assert mesh.shape == (468, 3) and mesh.dtype == np.float32
        eyes = np.stack([mesh[[33, 133], :2].mean(0), mesh[[362, 263], :2].mean(0)])
        found = np.concatenate([eyes, mesh[[61, 291], :2]])
        gap = np.linalg.norm(landmarks[1] - landmarks[0])
        assert np.linalg.norm(found - landmarks[[0, 1, 3, 4]], axis=1).max() < 0.15 * gap


def test_the_mesh_hardly_depends_on_the_landmarks_given(judges: Judges, portraits: tuple[Face, Face]) -> None:
    picture, points = portraits[1]
    gap = float(np.linalg.norm(points[1] - points[0]))
    off = 0.05 * gap * np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    apart = judges.mesh.points(picture, points + off) - judges.mesh.points(picture, points)
    assert np.linalg.norm(apart[:, :2], axis=1).mean() < 0.01 * gap


def test_a_mirrored_face_has_the_mirrored_mesh(judges: Judges, portraits: tuple[Face, Face]) -> None:
    face = portraits[1]
    order = mirrored_vertices()
    assert [order[order[v]] for v in range(468)] == list(range(468))
    assert (order[33], order[61], order[159], order[4]) == (263, 291, 386, 4)
    mesh, other = judges.mesh.points(*face), judges.mesh.points(*mirror(face))[order]
    other[:, 0] = face[0].shape[1] - 1 - other[:, 0]
    gap = np.linalg.norm(face[1][1] - face[1][0])
    assert np.abs(mesh - other).max() < 0.02 * gap


# --- files ------------------------------------------------------------------------------------------


def test_judges_are_no_pack() -> None:
    assert FOLDER.is_dir() and "judges" not in known_packs()


def test_a_damaged_judge_is_refused(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "judges")
    file = tmp_path / "judges/face_mesh.onnx"
    assert embedded("mesh", tmp_path / "judges") == file
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(PackError, match=r"face_mesh\.onnx is not the file judges\.toml names"):
        embedded("mesh", tmp_path / "judges")
    file.unlink()
    with pytest.raises(PackError, match="is missing"):
        embedded("mesh", tmp_path / "judges")
    with pytest.raises(PackError, match=r"judges\.toml"):
        embedded("mesh", tmp_path)


def test_other_files_are_used_where_given(pack: Pack, portraits: tuple[Face, Face], tmp_path: Path) -> None:
    copy = tmp_path / "mine.onnx"
    shutil.copy(embedded("identity"), copy)
    assert open_judges(pack, identity=copy).identity.embed(*portraits[0]).shape == (128,)
    copy.write_bytes(b"not a network")
    with pytest.raises(PackError, match=r"mine\.onnx"):
        open_judges(pack, identity=copy)
    with pytest.raises(PackError, match=r"gone\.onnx: no such file for the pose judge"):
        open_judges(pack, pose=tmp_path / "gone.onnx")


def test_the_pack_names_the_pose_network(pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_judges(pack).pose, PoseJudge)
    seen: list[Path] = []
    monkeypatch.setattr(HopenetPose, "__init__", lambda _self, path: seen.append(path))
    hopenet = pack.manifest.model_copy(update={"pose": PoseEntry(kind="hopenet", file="fr_feature.onnx")})
    other = Pack(pack.folder, hopenet, pack.hashes)
    assert isinstance(open_judges(other).pose, HopenetPose)
    given = tmp_path / "weights.pth"
    given.touch()
    open_judges(other, pose=given)
    assert seen == [pack.folder / "fr_feature.onnx", given]
    nameless = pack.manifest.model_copy(update={"pose": PoseEntry(kind="hopenet")})
    with pytest.raises(PackError, match="names no file"):
        open_judges(Pack(pack.folder, nameless, pack.hashes))


# --- they never guide -------------------------------------------------------------------------------


def test_no_stage_knows_of_the_judges() -> None:
    word = re.compile(r"metrics|packs.judges|judges\.toml|IdentityJudge|PoseJudge|FaceMesh")
    guilty = [p.name for p in (ROOT / "stages").rglob("*.py") if word.search(p.read_text(encoding="utf-8"))]
    assert guilty == []


def test_a_swap_never_loads_a_judge() -> None:
    """What a swap imports, in a process of its own, in which the judges can't be imported."""
    code = (
        "import sys, pkgutil\n"
        "for name in ('judge', 'judges', 'mesh'): sys.modules['ldvid.metrics.' + name] = None\n"
        "import ldvid.stages, ldvid.pipeline.swap\n"
        "for m in pkgutil.walk_packages(ldvid.stages.__path__, 'ldvid.stages.'): __import__(m.name)\n"
        "print([m for m in sys.modules if m.startswith('ldvid.metrics.') and sys.modules[m]])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_judges_say_the_same_without_onnxruntime(
    pack: Pack, judges: Judges, portraits: tuple[Face, Face], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it would fail
    others = open_judges(pack)
    for face in portraits:
        assert others.identity.embed(*face) == pytest.approx(judges.identity.embed(*face), abs=1e-5)
        assert others.pose.pose(*face) == pytest.approx(judges.pose.pose(*face), abs=1e-3)
        # Pixels, from distances of up to 100: two runtimes round differently.
    assert others.expression(*face) == pytest.approx(judges.expression(*face), abs=1e-2)
