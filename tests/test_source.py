"""The source face: from real pictures, and what is said when there is none or more than one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ldvid.errors import FaceError, InputError
from ldvid.stages.detect import Detector
from ldvid.stages.records import F32, U8
from ldvid.stages.source import load_source
from ldvid.stages.swap.onnx_torch import OnnxModule
from ldvid.stages.swap.pack import Pack

ROOT = Path(__file__).resolve().parents[1]
FACE, FACE_2 = ROOT / "examples/face.png", ROOT / "examples/face-2.png"
TWO = ROOT / "tests/data/two-faces.jpg"


class Identity:
    """The starter pack's own identity network; remembers what it was shown."""

    def __init__(self, pack: Pack) -> None:
        self.net = OnnxModule(pack.path(pack.manifest.identity.file)).eval()
        self.entry = pack.manifest.identity
        self.seen: list[U8] = []

    def __call__(self, images: U8) -> F32:
        self.seen.append(images)
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            out = self.net((x - self.entry.mean) / self.entry.scale).flatten(1)
        return torch.nn.functional.normalize(out, dim=1).numpy()


@pytest.fixture(scope="module")
def identity(pack: Pack) -> Identity:
    return Identity(pack)


def test_a_portrait_becomes_an_aligned_source(pack: Pack, detector: Detector, identity: Identity) -> None:
    source, warnings = load_source(FACE, pack, detector, identity, None)
    assert warnings == []
    assert source.image.shape == (256, 256, 3) and source.image.dtype == np.uint8
    assert np.abs(source.landmarks - pack.manifest.template_points()).max() < 12
    assert np.linalg.norm(source.embedding) == pytest.approx(1, abs=1e-5)
    assert source.sha256 == hashlib.sha256(FACE.read_bytes()).hexdigest()
    assert source.path == FACE
    crops = identity.seen[-1]
    assert crops.shape == (2, 112, 112, 3) and np.array_equal(crops[1], crops[0][:, ::-1])


def test_the_embedding_names_the_person(
    pack: Pack, detector: Detector, identity: Identity, tmp_path: Path
) -> None:
    portrait = cv2.imread(str(FACE))
    turned = cv2.warpAffine(portrait, cv2.getRotationMatrix2D((256, 256), 12, 0.7), (512, 512))
    cv2.imwrite(str(tmp_path / "again.jpg"), turned)
    cv2.imwrite(str(tmp_path / "mirror.png"), portrait[:, ::-1])
    one = load_source(FACE, pack, detector, identity, None)[0].embedding
    other = load_source(FACE_2, pack, detector, identity, None)[0].embedding
    for name in ("again.jpg", "mirror.png"):
        assert load_source(tmp_path / name, pack, detector, identity, None)[0].embedding @ one > 0.75
    assert one @ other < 0.4


def test_several_faces_are_numbered_by_size(pack: Pack, detector: Detector, identity: Identity) -> None:
    largest, warnings = load_source(TWO, pack, detector, identity, None)
    assert len(warnings) == 1
    assert all(part in warnings[0] for part in ("two-faces.jpg", "2 faces", "--source-face"))
    first, no_warnings = load_source(TWO, pack, detector, identity, 1)
    assert no_warnings == [] and np.array_equal(first.image, largest.image)
    second, _ = load_source(TWO, pack, detector, identity, 2)
    assert second.embedding @ first.embedding < 0.5


@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_face_that_is_not_there_is_an_error(
    pack: Pack, detector: Detector, identity: Identity, number: int
) -> None:
    with pytest.raises(FaceError, match=rf"--source-face {number}: .*two-faces.jpg shows 2 faces"):
        load_source(TWO, pack, detector, identity, number)


def test_no_face_no_picture_no_file(
    pack: Pack, detector: Detector, identity: Identity, tmp_path: Path
) -> None:
    wall = tmp_path / "wall.png"
    cv2.imwrite(str(wall), np.full((200, 300, 3), 127, np.uint8))
    with pytest.raises(FaceError, match=r"wall\.png: no face"):
        load_source(wall, pack, detector, identity, None)
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    for path in (text, tmp_path / "missing.png"):
        with pytest.raises(InputError, match=path.name):
            load_source(path, pack, detector, identity, None)


def test_a_face_larger_than_the_picture_around_it(
    pack: Pack, detector: Detector, identity: Identity, tmp_path: Path
) -> None:
    tight = tmp_path / "tight.png"
    cv2.imwrite(str(tight), cv2.imread(str(FACE))[120:460, 100:410])
    source, _ = load_source(tight, pack, detector, identity, None)
    whole, _ = load_source(FACE, pack, detector, identity, None)
    assert source.embedding @ whole.embedding > 0.75
