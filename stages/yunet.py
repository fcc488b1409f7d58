"""YuNet (Wu et al. 2023, doi 10.1007/s11633-023-1423-y), the network of a face detector, by onnxruntime.

OpenCV's own class for it (``cv2.FaceDetectorYN``) takes two and a half times as long. It can't be given the
file as it is: weights are quantised in blocks of a size that only OpenCV takes, and the picture's size is
fixed. So weights are made floats when it is loaded, which no result depends on, and sizes are left open.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from .onnx_weights import settled
from .records import F32, U8

STRIDES = (8, 16, 32)
LEAST_SCORE = 0.3  # the least that is looked at; whoever asks for more leaves out the rest
SAME = 0.3  # overlap of boxes from which on they are one face
MOST = 5000  # boxes that are compared


FARTHEST = 1e6  # pixels; beyond it a box is of weights that are broken


class YuNetNetwork:
    """Finds faces of about 12 to 350 pixels. The same numbers for the same pixels, in one thread.

    Raises, when it is made:
        ValueError: a network with other outputs. What can't be read raises onnx's and onnxruntime's own.
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            _readable(path, path.stat().st_mtime_ns), options, providers=["CPUExecutionProvider"]
        )
        self._names = [f"{kind}_{stride}" for stride in STRIDES for kind in ("cls", "obj", "bbox", "kps")]
        if missing := set(self._names) - {o.name for o in self._session.get_outputs()}:
            raise ValueError(f"it has no output {min(missing)}")

    def __call__(self, bgr: U8) -> F32:
        """Faces of a picture (H, W, 3), the surest first: (N, 15) rows of x, y, width, height, five points,
        score, in its pixels. The person's right eye is the first point."""
        height, width = bgr.shape[:2]
        whole = STRIDES[-1]
        padded = cv2.copyMakeBorder(bgr, 0, -height % whole, 0, -width % whole, cv2.BORDER_CONSTANT)
        outputs: list[F32] = self._session.run(
            self._names, {"input": padded.transpose(2, 0, 1)[None].astype(np.float32)}
        )
        found = [
            _decoded([o[0] for o in outputs[4 * i : 4 * i + 4]], stride, padded.shape[1] // stride)
            for i, stride in enumerate(STRIDES)
        ]
        rows = np.concatenate(found)
        if len(rows) < 2:
            return rows
        # Boxes are compared as whole pixels.
        boxes = np.trunc(rows[:, :4]).astype(int).tolist()
        kept = cv2.dnn.NMSBoxes(boxes, rows[:, 14].tolist(), LEAST_SCORE, SAME, top_k=MOST)
        return cast(F32, rows[np.asarray(kept, int).ravel()])


def _decoded(outputs: list[F32], stride: int, columns: int) -> F32:
    """One level's class scores (K, 1), object scores (K, 1), boxes (K, 4) and points (K, 10), of cells row by
    row, as rows of ``YuNetNetwork``."""
    scores = np.sqrt(np.clip(outputs[0], 0, 1) * np.clip(outputs[1], 0, 1))[:, 0]
    (cells,) = np.nonzero(scores >= LEAST_SCORE)
    at = np.stack([cells % columns, cells // columns], 1).astype(np.float32)
    box, points = outputs[2][cells], outputs[3][cells].reshape(-1, 5, 2)
    with np.errstate(over="ignore"):
        size = np.exp(box[:, 2:]) * stride
    corner = (at + box[:, :2]) * stride - size / 2
    marks = ((points + at[:, None]) * stride).reshape(-1, 10)
    rows = np.concatenate([corner, size, marks, scores[cells, None]], 1).astype(np.float32)
    return rows[(np.abs(rows) < FARTHEST).all(1)]  # nothing that isn't finite is


@lru_cache(maxsize=4)
def _readable(path: Path, _changed: int) -> bytes:
    """The model with its weights as floats, for pictures of any size."""
    model = onnx.load(str(path), load_external_data=False)  # a file names no others
    graph = model.graph
    values, nodes = settled(graph)
    used = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(values[name], name) for name in sorted(used & values.keys())]
    picture = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, "height", "width"])
    outputs = [onnx.helper.make_tensor_value_info(o.name, onnx.TensorProto.FLOAT, None) for o in graph.output]
    made = onnx.helper.make_graph(nodes, graph.name, [picture], outputs, weights)
    opened = onnx.helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)
    return cast(bytes, opened.SerializeToString())
