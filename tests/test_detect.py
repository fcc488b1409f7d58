"""Detection and shots on real pictures; SCRFD's decoding on outputs made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from ldvid.errors import PackError
from ldvid.stages.detect import Detector, open_detector, overlap
from ldvid.stages.records import U8
from ldvid.stages.scrfd import decode_scrfd
from ldvid.stages.shots import ShotDetector
from ldvid.stages.swap.pack import Pack

ROOT = Path(__file__).resolve().parents[1]
CLIPS = ROOT.parent / "shared" / "data" / "clips"
# Seen by eye: right eye, left eye, nose tip, mouth corners of the portrait.
PORTRAIT = np.array([[186, 244], [326, 246], [254, 322], [188, 376], [318, 378]])


def picture(path: Path) -> U8:
    return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])


def frames(path: Path) -> Iterator[U8]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def test_the_portrait_has_one_face_with_landmarks_in_place(detector: Detector) -> None:
    (face,) = detector.detect(picture(ROOT / "examples" / "face.png"))
    eyes = np.linalg.norm(PORTRAIT[1] - PORTRAIT[0])
    assert np.linalg.norm(face.landmarks - PORTRAIT, axis=1).max() < 0.1 * eyes
    assert face.score > 0.8
    assert (face.landmarks > face.box[:2]).all() and (face.landmarks < face.box[2:]).all()


def test_two_faces_come_largest_first(detector: Detector) -> None:
    found = detector.detect(picture(ROOT / "tests" / "data" / "two-faces.jpg"))
    assert len(found) == 2
    assert found[0].area > found[1].area
    assert found[0].box[0] > 300 and found[1].box[2] < 150  # the man right, the woman left


def test_no_face_where_there_is_none(detector: Detector) -> None:
    for frame in list(frames(ROOT / "tests" / "data" / "no-face.mp4"))[::4]:
        assert detector.detect(frame) == []


@pytest.mark.parametrize("size", [(2048, 2048), (96, 96)])
def test_size_of_the_picture_does_not_matter(detector: Detector, size: tuple[int, int]) -> None:
    portrait = picture(ROOT / "examples" / "face.png")
    (face,) = detector.detect(cv2.resize(portrait, size, interpolation=cv2.INTER_AREA))
    scale = size[0] / 512
    expected = (PORTRAIT + 0.5) * scale - 0.5
    assert np.linalg.norm(face.landmarks - expected, axis=1).max() < 0.12 * 140 * scale


def test_a_small_face_in_a_large_picture_is_found(detector: Detector) -> None:
    scene = np.full((1080, 1920, 3), 90, np.uint8)
    scene[300:364, 1500:1564] = cv2.resize(
        picture(ROOT / "examples" / "face.png"), (64, 64), interpolation=cv2.INTER_AREA
    )
    (face,) = detector.detect(scene)
    assert np.abs(face.landmarks.mean(0) - (PORTRAIT.mean(0) / 8 + [1500, 300])).max() < 3


@pytest.mark.parametrize("angle", [-30, 15, 35])
def test_a_tilted_face_gives_the_same_landmarks_tilted(detector: Detector, angle: float) -> None:
    portrait = picture(ROOT / "examples" / "face.png")
    matrix = cv2.getRotationMatrix2D((255.5, 280), angle, 0.8)
    turned = cv2.warpAffine(portrait, matrix, (512, 512), borderMode=cv2.BORDER_REPLICATE)
    (face,), (upright,) = detector.detect(turned), detector.detect(portrait)
    expected = upright.landmarks @ matrix[:, :2].T + matrix[:, 2]
    assert np.linalg.norm(face.landmarks - expected, axis=1).max() < 0.07 * 140


def test_threads_and_history_change_nothing(pack: Pack) -> None:
    scene, other = picture(ROOT / "tests/data/two-faces.jpg"), picture(ROOT / "examples/face.png")
    before = cv2.getNumThreads()
    try:
        results = []
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            fresh = open_detector(pack, 0.6)
            results.append(fresh.detect(scene))
            fresh.detect(other)
            results.append(fresh.detect(scene))
    finally:
        cv2.setNumThreads(before)
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            assert np.array_equal(a.landmarks, b.landmarks) and np.array_equal(a.box, b.box)
            assert a.score == b.score


def test_the_threshold_counts(pack: Pack) -> None:
    scene = picture(ROOT / "tests/data/two-faces.jpg")
    assert len(open_detector(pack, 0.5).detect(scene)) == 2
    assert open_detector(pack, 0.99).detect(scene) == []


@pytest.mark.parametrize("kind", ["yunet", "scrfd"])
def test_a_file_that_is_no_network_is_a_pack_error(pack: Pack, tmp_path: Path, kind: str) -> None:
    entry = pack.manifest.detector.model_copy(update={"kind": kind})
    broken = Pack(tmp_path, pack.manifest.model_copy(update={"detector": entry}), pack.hashes)
    (tmp_path / entry.file).write_bytes(b"not a network")
    with pytest.raises(PackError, match=entry.file):
        open_detector(broken, 0.6)


@pytest.mark.parametrize("strides", [3, 5])
def test_scrfd_outputs_are_decoded(strides: int) -> None:
    height, width, anchors = 256, 384, 2 if strides == 3 else 1
    scores, boxes, points = [], [], []
    for level in range(strides):
        cells = (height // (8 << level)) * (width // (8 << level)) * anchors
        scores.append(np.zeros((cells, 1), np.float32))
        boxes.append(np.zeros((cells, 4), np.float32))
        points.append(np.zeros((cells, 10), np.float32))

    def put(level: int, row: int, column: int, anchor: int, score: float) -> None:
        at = (row * (width // (8 << level)) + column) * anchors + anchor
        scores[level][at] = score
        boxes[level][at] = [1, 2, 3, 4]
        points[level][at] = np.arange(10) / 2

    put(1, 5, 7, 0, 0.9)  # stride 16: centre (112, 80)
    put(1, 5, 7, anchors - 1, 0.95 if anchors == 2 else 0.9)  # the same face, surer: this one stays
    put(2, 1, 9, 0, 0.7)  # stride 32: centre (288, 32)
    put(0, 3, 3, 0, 0.4)  # below the threshold
    found = decode_scrfd([*scores, *boxes, *points], (height, width), 0.5)
    assert [round(d.score, 2) for d in found] == [0.95 if anchors == 2 else 0.9, 0.7]
    np.testing.assert_allclose(found[0].box, [112 - 16, 80 - 32, 112 + 48, 80 + 64])
    np.testing.assert_allclose(found[0].landmarks[1], [112 + 16, 80 + 24])
    np.testing.assert_allclose(found[1].box, [288 - 32, 32 - 64, 288 + 96, 32 + 128])
    batched = decode_scrfd([x[None] for x in (*scores, *boxes, *points)], (height, width), 0.5)
    assert len(batched) == 2
    with pytest.raises(ValueError, match="anchors"):
        decode_scrfd([*scores, *boxes, *points], (height, width + 64), 0.5)


def test_overlap() -> None:
    a = np.array([0, 0, 2, 2], np.float32)
    assert overlap(a, a) == 1
    assert overlap(a, a + 1) == pytest.approx(1 / 7)
    assert overlap(a, a + 2) == 0
    assert overlap(a * 0, a * 0) == 0


def cuts(*parts: list[U8]) -> list[int]:
    shots = ShotDetector(0.5)
    return [i for i, frame in enumerate(f for part in parts for f in part) if shots.is_cut(frame)]


def test_one_cut_between_two_clips_and_none_within() -> None:
    man, bottles = list(frames(ROOT / "examples/clip.mp4")), list(frames(ROOT / "tests/data/no-face.mp4"))
    bottles = [cv2.resize(b, (480, 270)) for b in bottles]
    assert cuts(man) == [] and cuts(bottles) == []
    assert cuts(man, bottles) == [len(man)]
    assert cuts(bottles, man) == [len(bottles)]


def test_a_cut_is_a_cut_before_the_same_wall_too() -> None:
    man = list(frames(ROOT / "examples/clip.mp4"))[:20]
    assert cuts(man, [picture(ROOT / "tests/data/two-faces.jpg")] * 10) == [20]


def test_light_and_pans_are_no_cuts() -> None:
    portrait = picture(ROOT / "examples/face-2.png")
    still = [portrait[100:350, 0:300]] * 15
    assert cuts(still, [(still[0] * (1 - 0.05 * i)).astype(np.uint8) for i in range(15)]) == []
    accelerating = np.cumsum(np.minimum(np.arange(24), 12)).clip(0, 212)
    assert cuts(still, [portrait[100:350, x : x + 300] for x in accelerating]) == []


@pytest.mark.shared
def test_no_cut_within_real_clips_and_one_between_them() -> None:
    takes = {
        p.name: [f for f, _ in zip(frames(p), range(120), strict=False)] for p in sorted(CLIPS.iterdir())
    }
    for name, take in takes.items():
        assert cuts(take) == [], name
    names = list(takes)
    for a, b in zip(names, names[1:] + names[:1], strict=True):
        assert cuts(takes[a][-20:], takes[b][:20]) == [len(takes[a][-20:])], (a, b)
