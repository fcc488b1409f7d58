"""Detection and shots on real pictures; SCRFD's decoding on outputs made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from ldvid.errors import PackError
from ldvid.stages.detect import Detector, open_detector
from ldvid.stages.records import U8, Detection
from ldvid.stages.scrfd import decode_scrfd
from ldvid.stages.shots import ShotDetector, describe, find_cuts
from ldvid.stages.swap.pack import Pack
from ldvid.stages.turned import Found, overlap, quarter_back, roll_of, sort_out

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


@pytest.mark.parametrize("angle", [60, 90, -75, -90])
@pytest.mark.parametrize("name", ["face.png", "face-2.png"])
def test_a_lying_face_is_found_with_its_landmarks(detector: Detector, angle: float, name: str) -> None:
    portrait = picture(ROOT / "examples" / name)
    (upright,) = detector.detect(portrait)
    matrix = cv2.getRotationMatrix2D((255.5, 280), angle, 0.5)
    scene = np.full((512, 640, 3), 90, np.uint8)
    turned = cv2.warpAffine(portrait, matrix, (640, 512), dst=scene, borderMode=cv2.BORDER_TRANSPARENT)
    expected = upright.landmarks @ matrix[:, :2].T + matrix[:, 2]
    eyes = float(np.linalg.norm(expected[1] - expected[0]))
    (face,) = detector.detect(turned)
    assert np.linalg.norm(face.landmarks - expected, axis=1).max() < 0.1 * eyes
    assert abs((roll_of(face.landmarks) + angle + 180) % 360 - 180) < 8  # OpenCV turns the other way round
    assert (face.landmarks > face.box[:2]).all() and (face.landmarks < face.box[2:]).all()


def test_a_lying_face_beside_upright_ones_is_found_where_more_are_expected(detector: Detector) -> None:
    scene = np.full((360, 640, 3), 90, np.uint8)
    portrait = cv2.resize(picture(ROOT / "examples/face.png"), (120, 120), interpolation=cv2.INTER_AREA)
    scene[80:200, 40:160] = portrait
    scene[80:200, 340:460] = np.rot90(portrait)
    assert len(detector.detect(scene, 1)) == 1  # enough were found upright
    found = detector.detect(scene, 2)
    assert sorted(round(roll_of(d.landmarks) / 10) for d in found) == [-9, 0]
    points = {round(roll_of(d.landmarks) / 10): d.landmarks - d.box[:2] for d in found}
    turned = quarter_back(points[-9], 1, (120, 120))
    assert np.abs((turned - turned[0]) - (points[0] - points[0][0])).max() < 3


@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080), (3840, 2160)])
def test_eyes_24_px_apart_are_found_beside_a_large_face(detector: Detector, size: tuple[int, int]) -> None:
    portrait = picture(ROOT / "examples/face.png")
    scene = np.full((size[1], size[0], 3), 110, np.uint8)
    side = round(512 * 24 / 140)
    scene[200 : 200 + side, 1000 : 1000 + side] = cv2.resize(
        portrait, (side, side), interpolation=cv2.INTER_AREA
    )
    scene[100:600, 60:560] = cv2.resize(portrait, (500, 500), interpolation=cv2.INTER_AREA)
    large, small = detector.detect(scene)
    expected = (PORTRAIT + 0.5) * side / 512 - 0.5 + [1000, 200]
    assert np.linalg.norm(small.landmarks - expected, axis=1).max() < 0.15 * 24
    assert np.linalg.norm(small.landmarks[1] - small.landmarks[0]) == pytest.approx(24, rel=0.1)
    assert large.box[0] < 560


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_points_of_a_turned_picture_come_back(quarter: int) -> None:
    rng = np.random.default_rng(0)
    upright = rng.integers(0, 255, (5, 7), np.uint8)
    turned = np.rot90(upright, quarter)
    for y, x in np.ndindex(turned.shape):
        back = quarter_back(np.array([x, y], np.float32), quarter, upright.shape)
        assert upright[int(back[1]), int(back[0])] == turned[y, x]


def test_of_two_answers_about_one_face_the_surer_counts() -> None:
    def found(x: float, score: float, quarter: int) -> Found:
        return Found(
            Detection(np.array([x, 0, x + 10, 10], np.float32), np.zeros((5, 2), np.float32), score), quarter
        )

    lying, wrong, other = found(0, 0.93, 1), found(1, 0.85, 0), found(50, 0.7, 3)
    assert sort_out([wrong, lying, other]) == [lying, other]
    upright, nearly = found(0, 0.93, 0), found(1, 0.94, 3)
    assert sort_out([nearly, upright]) == [upright]


def cuts(*parts: list[U8], rate: float = 25.0) -> list[int]:
    return find_cuts([f for part in parts for f in part], 0.5, rate)


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


def faded(frame: U8, share: float) -> U8:
    return (frame * (1 - share)).astype(np.uint8)


def test_a_flash_is_no_cut_but_another_picture_is() -> None:
    man = list(frames(ROOT / "examples/clip.mp4"))[:40]
    lit = [np.clip(f.astype(float) * 1.5 + 110, 0, 255).astype(np.uint8) for f in man]
    for length in (1, 3):
        assert cuts(man[:20], lit[20 : 20 + length], man[20 + length :]) == []
    woman = [cv2.resize(picture(ROOT / "examples/face-2.png"), (480, 270))] * 2
    assert cuts(man[:20], woman, man[22:]) == [20, 22]


def test_a_fade_is_one_cut_if_somebody_else_comes_after_it() -> None:
    man = list(frames(ROOT / "examples/clip.mp4"))
    woman = [cv2.resize(picture(ROOT / "examples/face-2.png"), (480, 270))] * 20
    away = [faded(man[20], (i + 1) / 12) for i in range(12)]
    assert cuts(man[:20], away, away[::-1], man[20:40]) == []
    back = [faded(woman[0], 1 - (i + 1) / 12) for i in range(12)]
    found = cuts(man[:20], away, back, woman)
    assert len(found) == 1 and 30 <= found[0] <= 36


@pytest.mark.parametrize("length", [10, 20])
def test_a_dissolve_is_a_cut_in_its_middle(length: int) -> None:
    man = list(frames(ROOT / "examples/clip.mp4"))
    woman = [cv2.resize(picture(ROOT / "examples/face-2.png"), (480, 270))] * 30
    mixed = [
        cv2.addWeighted(man[20 + i], 1 - (s := (i + 1) / (length + 1)), woman[0], s, 0) for i in range(length)
    ]
    (found,) = cuts(man[:20], mixed, woman)
    assert abs(found - 20 - length / 2) <= 3


def test_a_whip_pan_that_comes_back_is_no_cut_and_one_that_does_not_is_one() -> None:
    wide = cv2.resize(picture(ROOT / "examples/face-2.png"), (1400, 300))
    still = [wide[:, :480]] * 15

    def pan(offsets: list[int]) -> list[U8]:
        return [cv2.blur(wide[:, x : x + 480], (60, 1)) for x in offsets]

    out = [100, 260, 420, 600, 760, 880]
    assert cuts(still, pan(out), pan(out[::-1]), still) == []
    assert len(cuts(still, pan(out), [wide[:, 900:1380]] * 15)) == 1


def test_what_is_said_of_frames_comes_in_order_and_three_quarters_of_a_second_late() -> None:
    man = [describe(f) for f in list(frames(ROOT / "examples/clip.mp4"))[:40]]
    shots = ShotDetector(0.5, 12)
    told = [shots.push(d) for d in [None, *man[:10], None, *man[10:]]]
    assert sum(map(len, told)) == 42 - 9 and all(len(t) <= 1 for t in told)
    assert sum(map(len, told)) + len(shots.flush()) == 42
    assert not any(any(t) for t in told)
    with pytest.raises(ValueError, match="threshold"):
        ShotDetector(0)


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
