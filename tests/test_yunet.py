"""The detector's network without OpenCV's own class for it: the same faces."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from ldvid.stages.decode import open_reader, probe
from ldvid.stages.onnx_weights import dequantised
from ldvid.stages.records import U8
from ldvid.stages.swap.pack import Pack
from ldvid.stages.yunet import LEAST_SCORE, MOST, SAME, YuNetNetwork, _decoded
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator


@pytest.fixture(scope="module")
def path(pack: Pack) -> Path:
    return pack.path(pack.manifest.detector.file)


@pytest.fixture(scope="module")
def pictures(example_clip: Path) -> list[U8]:
    """Frames of one man, BGR, and one with three faces of him."""
    reader = open_reader(probe(example_clip), "pyav")
    frames = [np.ascontiguousarray(f.rgb[..., ::-1]) for i in (0, 24, 46) for f in reader.read(i, i + 1)]
    small = cv2.resize(frames[0], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    beside = cv2.copyMakeBorder(small, 135, 0, 0, 0, cv2.BORDER_CONSTANT)
    return [*frames, np.hstack([frames[0], beside, frames[1]])]


@pytest.mark.parametrize("scale", [0.31, 0.5, 1.0, 1.7])
def test_faces_are_those_of_opencv(path: Path, pictures: list[U8], scale: float) -> None:
    ours, theirs = (
        YuNetNetwork(path),
        cv2.FaceDetectorYN.create(str(path), "", (32, 32), LEAST_SCORE, SAME, MOST),
    )
    found = 0
    for picture in pictures:
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))  # not multiples of 32
        sized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        theirs.setInputSize(size)
        wanted = theirs.detect(sized)[1]
        np.testing.assert_allclose(ours(sized), np.zeros((0, 15)) if wanted is None else wanted, atol=2e-3)
        found += 0 if wanted is None else len(wanted)
    assert found >= 6


def test_nobody_is_no_rows(path: Path) -> None:
    for shape in ((64, 64, 3), (1, 1, 3), (33, 100, 3)):
        assert YuNetNetwork(path)(np.full(shape, 90, np.uint8)).shape == (0, 15)


def test_broken_weights_give_nobody_instead_of_a_crash() -> None:
    sure, box, points = (
        np.ones((4, 1), np.float32),
        np.zeros((4, 4), np.float32),
        np.zeros((4, 10), np.float32),
    )
    box[0, 2], box[1, 0], points[2, 3] = 500, np.nan, np.inf
    rows = _decoded([sure, sure, box, points], 8, 2)
    assert rows[:, :4].tolist() == [[4, 4, 8, 8]] and rows[0, 14] == 1


def test_a_network_of_something_else_is_refused_when_it_is_opened(pack: Pack) -> None:
    with pytest.raises(ValueError, match="no output"):
        YuNetNetwork(pack.path(pack.manifest.identity.file))


@pytest.mark.parametrize(
    ("shape", "scales", "named"),
    [((4, 6), (), {}), ((4, 6), (6,), {"axis": 1}), ((4, 6), (4,), {"axis": 0}),
     ((4, 32), (4, 2), {"axis": 1, "block_size": 16}), ((5, 24), (5, 2), {"axis": 1, "block_size": 16})],
)  # fmt: skip
@pytest.mark.parametrize("zero", [False, True])
def test_weights_are_what_onnx_says(
    shape: tuple[int, ...], scales: tuple[int, ...], named: dict[str, int], zero: bool
) -> None:
    random = np.random.default_rng(0)
    arrays = [random.integers(-99, 99, shape, np.int8), random.random(scales, np.float32).reshape(scales)]
    if zero:
        arrays.append(random.integers(-9, 9, scales, np.int8).reshape(scales))
    names = ["q", "s", "z"][: len(arrays)]
    node = onnx.helper.make_node("DequantizeLinear", names, ["y"], **named)
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    weights = [numpy_helper.from_array(np.asarray(a), n) for a, n in zip(arrays, names, strict=True)]
    graph = onnx.helper.make_graph([node], "g", [], [out], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    (wanted,) = ReferenceEvaluator(model).run(None, {})
    got = dequantised([np.asarray(a) for a in arrays], named.get("axis", 1), named.get("block_size", 0))
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
