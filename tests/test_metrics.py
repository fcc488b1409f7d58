"""The figures' arithmetic on known answers: recovery, landmarks, expression, skin, Fréchet distance, PSNR."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ldvid.metrics.ciede2000 import ciede2000
from ldvid.metrics.expression import FEATURES, expression, expression_error, frontal, mirrored
from ldvid.metrics.frechet import frechet_distance
from ldvid.metrics.judge import recovery
from ldvid.metrics.judges import Judges, open_judges
from ldvid.metrics.pair import landmark_error
from ldvid.metrics.pixels import CAP, background_psnr
from ldvid.metrics.skin import EDGE, Skin, skin_difference, skin_of, tone, typology_angle
from ldvid.stages.align import apply_points, warp
from ldvid.stages.decode import open_reader, probe, read_picture
from ldvid.stages.detect import Detector
from ldvid.stages.records import F32, F64, U8
from ldvid.stages.swap.pack import Pack

ROOT = Path(__file__).resolve().parents[1]
Face = tuple[U8, F32]
MOUTH = FEATURES.index("mouth_opening")


@pytest.fixture(scope="module")
def judges(pack: Pack) -> Judges:
    return open_judges(pack)


@pytest.fixture(scope="module")
def woman(detector: Detector) -> Face:
    """The second example portrait: mouth shut, turned slightly."""
    picture = read_picture(ROOT / "examples/face-2.png")
    return picture, detector.detect(picture)[0].landmarks


@pytest.fixture(scope="module")
def mesh(judges: Judges, woman: Face) -> F32:
    return judges.mesh.points(*woman)


def moved(face: Face, linear: F64) -> Face:
    """The face under a linear map about the nose, which comes to the middle of 512×512."""
    matrix = np.hstack([linear, (256 - linear @ face[1][2])[:, None]])
    return warp(face[0], matrix, 512), apply_points(matrix, face[1])


def rotation(degrees: float, axis: str) -> F64:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    planes = {"yaw": (0, 2), "pitch": (1, 2), "roll": (0, 1)}
    i, j = planes[axis]
    result = np.eye(3)
    result[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return result


def mouth_pulled(face: Face, mesh: F32, amount: float) -> U8:
    """The picture with all between mouth slit and below the chin drawn down, the slit torn dark.

    ``amount`` is the gap in units of the eye distance.
    """
    picture, points = face
    gap = float(np.linalg.norm(points[1] - points[0])) * amount
    left, right = mesh[78, :2], mesh[308, :2]
    centre, half = (left + right) / 2, float(right[0] - left[0]) / 2
    slit = float((mesh[13, 1] + mesh[14, 1]) / 2)
    chin = float(mesh[152, 1])
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(np.float32)
    open_by = gap * np.sqrt(np.clip(1 - ((x - centre[0]) / half) ** 2, 0, 1))
    below = np.clip(1 - (y - slit - open_by) / (1.5 * (chin - slit)), 0, 1)
    source = np.where(y > slit + open_by, y - open_by * below, y).astype(np.float32)
    result = cv2.remap(picture, x, source, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    result[(y > slit) & (y < slit + open_by)] = (50, 15, 15)
    return result.astype(np.uint8)


# --- recovery ---------------------------------------------------------------------------------------


def test_recovery_is_0_for_unchanged_and_1_for_another_photo() -> None:
    low, high = np.array([0.8, 0.82]), np.array([0.95, 0.97])
    assert recovery(low, low, high) == 0
    assert recovery(high, low, high) == 1
    assert recovery((low + high) / 2, low, high) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="s_same and s_unrelated"):
        recovery(low, high, high)


# --- expression -------------------------------------------------------------------------------------


def test_the_same_picture_has_no_error(judges: Judges, woman: Face) -> None:
    a, b = judges.expression(*woman), judges.expression(*woman)
    assert a.shape == (len(FEATURES),) and a.dtype == np.float32
    assert expression_error(a, b) == 0


@pytest.mark.parametrize("axis", ["yaw", "pitch", "roll"])
def test_expression_of_a_mesh_knows_no_pose_scale_or_place(mesh: F32, axis: str) -> None:
    other = 3 * (mesh - 100) @ rotation(25, axis).T + np.array([7, -40, 12])
    assert expression_error(expression(mesh), expression(other.astype(np.float32))) < 1e-2


def test_a_frontal_mesh_is_level_upright_and_centred(mesh: F32) -> None:
    q = frontal((mesh @ rotation(30, "roll").T).astype(np.float32))
    right, left = q[[33, 133]].mean(0), q[[263, 362]].mean(0)
    assert np.linalg.norm(left - right) == pytest.approx(1)
    assert left[0] - right[0] > 0.99 and q[152, 1] > q[4, 1] > right[1] and q[4, 2] < right[2]


def test_a_turned_scaled_or_mirrored_picture_keeps_its_expression(
    judges: Judges, woman: Face, mesh: F32
) -> None:
    own = judges.expression(*woman)
    opened = expression_error(own, judges.expression(mouth_pulled(woman, mesh, 0.4), woman[1]))
    for linear in (rotation(20, "roll")[:2, :2], rotation(-20, "roll")[:2, :2], 0.5 * np.eye(2)):
        assert expression_error(own, judges.expression(*moved(woman, linear))) < 0.15 * opened
    picture, points = woman
    flipped = points[[1, 0, 2, 4, 3]] * np.float32([-1, 1]) + np.float32([picture.shape[1] - 1, 0])
    other = judges.expression(np.ascontiguousarray(picture[:, ::-1]), flipped)
    assert expression_error(own, mirrored(other)) < 0.05 * opened
    assert expression_error(own, mirrored(mirrored(own))) == 0
    assert mirrored(own)[FEATURES.index("right_brow_inner")] == own[FEATURES.index("left_brow_inner")]


def test_an_opening_mouth_raises_its_measures(judges: Judges, woman: Face, mesh: F32) -> None:
    shut = judges.expression(*woman)
    steps = [judges.expression(mouth_pulled(woman, mesh, a), woman[1]) for a in (0.1, 0.2, 0.3)]
    openings = [float(e[MOUTH]) for e in (shut, *steps)]
    errors = [expression_error(shut, e) for e in steps]
    assert min(np.diff(openings)) > 3 and min(np.diff(errors)) > 3
    assert openings[-1] - openings[0] > 25
    eyes = [FEATURES.index(f"{side}_eye_opening") for side in ("right", "left")]
    assert np.abs(steps[-1][eyes] - shut[eyes]).max() < 2  # what did not change stays


def test_a_shut_eye_is_the_eye_that_shuts(mesh: F32) -> None:
    shut = mesh.copy()
    for upper, lower in ((160, 144), (159, 145), (158, 153)):
        shut[upper] = shut[lower]
    change = expression(shut) - expression(mesh)
    right = FEATURES.index("right_eye_opening")
    assert expression(shut)[right] == 0 and change[right] < -5
    assert np.abs(np.delete(change, right)).max() < 1e-3


def test_a_raised_brow_and_a_lifted_corner_have_their_measures(mesh: F32) -> None:
    gap = float(np.linalg.norm(mesh[[33, 133]].mean(0) - mesh[[263, 362]].mean(0)))
    for vertices, name in (([336, 285], "left_brow_inner"), ([61], "right_corner_lift")):
        up = mesh.copy()
        up[vertices, 1] -= 0.1 * gap
        change = dict(zip(FEATURES, expression(up) - expression(mesh), strict=True))
        assert change[name] == pytest.approx(10, abs=1)
        assert max(change, key=lambda k: change[k]) == name


def test_one_smile_varies_less_than_its_end(judges: Judges, detector: Detector, example_clip: Path) -> None:
    info = probe(example_clip)
    frames = [f.rgb for f in open_reader(info, "pyav").read(0, info.frames)]
    first, *smiling, last = [
        judges.expression(p, detector.detect(p)[0].landmarks) for p in (*frames[0:44:6], frames[-1])
    ]
    assert max(expression_error(first, e) for e in smiling) < 7
    assert expression_error(first, last) > 12


def test_expressions_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(14,\)"):
        expression_error(np.zeros(13, np.float32), np.zeros(13, np.float32))


# --- Fréchet distance -------------------------------------------------------------------------------


def exact(mean: F64, covariance: F64, n: int) -> F64:
    """n points whose sample mean and covariance are exactly these."""
    noise = np.random.default_rng(n).normal(size=(n, len(mean)))
    noise -= noise.mean(0)
    white = noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise.T))).T
    return np.asarray(white @ np.linalg.cholesky(covariance).T + mean)


def test_frechet_distance_of_known_gaussians() -> None:
    a = exact(np.array([1.0, 2, 3]), np.diag([1.0, 4, 9]), 50)
    b = exact(np.array([1.0, 0, 3]), np.diag([4.0, 4, 1]), 80)
    assert frechet_distance(a, b) == pytest.approx(4 + 1 + 0 + 4, rel=1e-9)  # Σ(Δμ² + (σ_a − σ_b)²)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    ca, cb = np.array([[2.0, 1], [1, 3]]), np.array([[1.0, -0.5], [-0.5, 2]])
    # For 2×2: tr √M = √(tr M + 2 √det M), M = C_a C_b.
    root = np.sqrt(np.trace(ca @ cb) + 2 * np.sqrt(np.linalg.det(ca @ cb)))
    found = frechet_distance(exact(np.zeros(2), ca, 30), exact(np.zeros(2), cb, 40))
    assert found == pytest.approx(np.trace(ca) + np.trace(cb) - 2 * root, rel=1e-9)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 20), st.integers(0, 2**31))
def test_frechet_distance_is_a_symmetric_distance(n: int, m: int, d: int, seed: int) -> None:
    """Also with fewer faces than dimensions; a shift adds its square."""
    rng = np.random.default_rng(seed)
    a, b, shift = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * 2, rng.normal(size=d)
    there = frechet_distance(a, b)
    assert there >= 0 and there == pytest.approx(frechet_distance(b, a), rel=1e-9, abs=1e-9)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + shift) == pytest.approx((shift**2).sum(), rel=1e-6, abs=1e-9)


def test_frechet_distance_refuses_what_has_no_gaussian() -> None:
    with pytest.raises(ValueError, match="two faces"):
        frechet_distance(np.zeros((1, 4)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="length: 4 and 5"):
        frechet_distance(np.zeros((3, 4)), np.zeros((3, 5)))


# --- background PSNR --------------------------------------------------------------------------------


def test_background_psnr_of_a_known_error() -> None:
    original = np.full((8, 8, 3), 100, np.uint8)
    outside = np.zeros((8, 8), bool)
    outside[:, :4] = True
    swapped = original.copy()
    swapped[:, 4:] = 255  # the face: nobody's business
    assert background_psnr(original, swapped, outside) == CAP == 100
    swapped[:, :4] -= 10
    assert background_psnr(original, swapped, outside) == pytest.approx(20 * np.log10(25.5))
    swapped[:, :2] = 100
    assert background_psnr(original, swapped, outside) == pytest.approx(
        20 * np.log10(25.5) + 3.0103, abs=1e-3
    )


def test_background_psnr_refuses_nothing_to_compare() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="no pixel"):
        background_psnr(picture, picture, np.zeros((4, 4), bool))
    with pytest.raises(ValueError, match="shapes differ"):
        background_psnr(picture, picture[:2], np.ones((4, 4), bool))


# --- landmarks --------------------------------------------------------------------------------------

POINTS = np.float32([[10, 10], [50, 40], [30, 45], [15, 60], [45, 62]])  # the eyes are 50 apart


def test_landmark_error_is_in_per_cent_of_the_targets_eye_distance() -> None:
    off = np.float32([[3, 4], [0, 0], [0, -10], [0, 0], [5, 0]])
    assert landmark_error(POINTS + off, POINTS) == pytest.approx(100 * (5 + 10 + 5) / 5 / 50)
    wider = POINTS.copy()
    wider[0] -= [40, 30]  # the swap's own eyes are twice as far apart: not the unit
    assert landmark_error(wider, POINTS) == pytest.approx(100 * 50 / 5 / 50)
    assert landmark_error(POINTS, POINTS) == 0
    with pytest.raises(ValueError, match=r"\(5, 2\)"):
        landmark_error(POINTS[:4], POINTS)
    with pytest.raises(ValueError, match="eyes coincide"):
        landmark_error(POINTS, np.zeros((5, 2), np.float32))


# --- skin -------------------------------------------------------------------------------------------

# Sharma, Wu and Dalal 2005, Table 1: L, a, b of two colours and their difference.
SHARMA = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425;   50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412;   50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000;  50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669;                     50 -1 2 50 0 0 2.3669
50 2.49 -0.001 50 -2.49 0.0009 7.1792;     50 2.49 -0.001 50 -2.49 0.0010 7.1792
50 2.49 -0.001 50 -2.49 0.0011 7.2195;     50 2.49 -0.001 50 -2.49 0.0012 7.2195
50 -0.001 2.49 50 0.0009 -2.49 4.8045;     50 -0.001 2.49 50 0.0010 -2.49 4.8045
50 -0.001 2.49 50 0.0011 -2.49 4.7461;     50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492;                50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030;                50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000;          50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000;          50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""
LAB = st.tuples(st.floats(0, 100), st.floats(-100, 100), st.floats(-100, 100)).map(np.array)


def test_ciede2000_of_the_published_pairs() -> None:
    rows = np.array([row.split() for row in SHARMA.replace(";", "\n").strip().splitlines()], np.float64)
    assert rows.shape == (34, 7)
    assert ciede2000(rows[:, :3], rows[:, 3:6]) == pytest.approx(rows[:, 6], abs=6e-5)
    with pytest.raises(ValueError, match=r"\(\.\.\., 3\)"):
        ciede2000(np.zeros(2), np.zeros(3))


@given(LAB, LAB)
def test_ciede2000_is_symmetric_and_0_for_equal_colours(a: F64, b: F64) -> None:
    assert ciede2000(a, b) == pytest.approx(ciede2000(b, a), abs=1e-9)
    assert ciede2000(a, a) == 0 <= ciede2000(a, b) < 250


def skin(rgb: U8) -> Skin:
    """All of the crop as skin, but for what the erosion takes."""
    everywhere = np.ones(rgb.shape[:2], np.float32)
    return skin_of(rgb, everywhere, everywhere)


def test_skin_is_what_parser_and_mask_agree_on_and_keeps_from_their_edge() -> None:
    probability, mask = np.zeros((2, 256, 256), np.float32)
    probability[:, :200], mask[50:] = 0.6, 0.6
    where = skin_of(np.zeros((256, 256, 3), np.uint8), probability, mask).where
    assert np.argwhere(where).min(0).tolist() == [50 + EDGE, EDGE]
    assert np.argwhere(where).max(0).tolist() == [255 - EDGE, 199 - EDGE]


def test_a_cast_is_the_colours_difference_and_texture_is_none() -> None:
    rng = np.random.default_rng(5)
    flat = np.full((256, 256, 3), (200, 150, 130), np.uint8)
    cast = flat - np.uint8([0, 12, 12])
    found, none = skin_difference(skin(flat), skin(cast)), skin_difference(skin(flat), skin(flat))
    assert found is not None and none == (0, 0)
    assert found.cast == pytest.approx(ciede2000(skin(flat).lab[9, 9], skin(cast).lab[9, 9]), abs=1e-3)
    assert found.mean == pytest.approx(found.cast, abs=1e-3) and found.cast > 3
    noisy = np.clip(flat + rng.normal(0, 12, flat.shape), 0, 255).astype(np.uint8)
    rough = skin_difference(skin(flat), skin(noisy))
    assert rough is not None and rough.mean < 0.15 * ciede2000(skin(flat).lab, skin(noisy).lab).mean()


def test_patches_that_cancel_out_are_no_cast_but_a_difference() -> None:
    flat = np.full((256, 256, 3), (200, 150, 130), np.uint8)
    patched = flat.copy()
    patched[:, :128] += np.uint8(25)
    patched[:, 128:] -= np.uint8(25)
    found = skin_difference(skin(flat), skin(patched))
    assert found is not None and found.cast < 0.7 and found.mean > 6


def test_only_what_is_skin_in_both_is_compared() -> None:
    flat = np.full((256, 256, 3), (200, 150, 130), np.uint8)
    other = flat.copy()
    other[:, :128] = (20, 20, 200)
    one, two = skin(flat), skin(other)
    two.where[:, :128] = False  # the parser calls it something else
    assert skin_difference(one, two) == pytest.approx((0, 0), abs=1e-3)
    two.where[:] = False
    assert skin_difference(one, two) is None and typology_angle(two) is None
    with pytest.raises(ValueError, match="differ in size"):
        skin_difference(one, skin(flat[:128, :128]))


def test_a_typology_angle_tells_light_from_dark_skin() -> None:
    def of(lightness: float, yellow: float) -> float:
        lab = np.full((64, 64, 3), (lightness, 10, yellow), np.float32)
        return typology_angle(Skin(lab, np.ones((64, 64), bool))) or 0.0

    assert of(60, 10) == pytest.approx(45) and of(40, 10) == pytest.approx(-45)
    names = ["very light", "light", "intermediate", "tan", "brown", "dark"]
    assert [tone(angle) for angle in (55.1, 55, 41, 28, 10, -30)] == names
    assert tone(None) == ""
    bearded = np.full((64, 64, 3), (70, 10, 15), np.float32)
    bearded[45:] = (25, 2, 3)
    assert abs((typology_angle(Skin(bearded, np.ones((64, 64), bool))) or 0) - of(70, 15)) < 2
