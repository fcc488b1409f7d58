"""SCRFD, insightface's detector, from its ONNX files: decoded here, so only onnxruntime is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import PackError
from .detect import LONG_SIDE, SURE, by_area, check_picture, scale_back
from .records import U8, Detection
from .turned import Found, overlap, quarter_back, sort_out


class Scrfd:
    """SCRFD with landmarks, by onnxruntime (CUDA where its provider is installed)."""

    def __init__(self, session: Any, threshold: float) -> None:
        self._session, self._threshold = session, threshold
        self._input = session.get_inputs()[0].name
        height, width = session.get_inputs()[0].shape[2:]
        fixed = isinstance(height, int) and isinstance(width, int)
        self._size = (width, height) if fixed else (LONG_SIDE, LONG_SIDE)

    @classmethod
    def open(cls, path: Path, threshold: float) -> Scrfd:
        """Load an ONNX file; PackError where onnxruntime is missing or it has no landmark outputs."""
        try:
            import onnxruntime
        except ImportError as error:
            raise PackError(f"{path}: SCRFD needs onnxruntime; pip install onnxruntime") from error
        have = onnxruntime.get_available_providers()
        wanted = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in have]
        session = onnxruntime.InferenceSession(str(path), providers=wanted)
        if len(session.get_outputs()) not in (9, 15):
            raise PackError(f"{path}: {len(session.get_outputs())} outputs; SCRFD with landmarks has 9 or 15")
        return cls(session, threshold)

    def detect(self, rgb: U8, least: int = 1) -> list[Detection]:
        """See ``Detector.detect``."""
        check_picture(rgb)
        found = self._look(rgb, 0)
        if len(found) < least or any(f.face.score < SURE for f in found):
            found += [*self._look(rgb, 1), *self._look(rgb, 3)]
        return by_area([f.face for f in sort_out(found)])

    def _look(self, rgb: U8, quarter: int) -> list[Found]:
        """The faces of the picture turned by ``quarter`` × 90°, in its upright pixels."""
        picture = np.ascontiguousarray(np.rot90(rgb, quarter))
        width, height = self._size
        factor = min(width / picture.shape[1], height / picture.shape[0])
        w, h = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
        mode = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[:h, :w] = cv2.resize(picture, (w, h), interpolation=mode)
        blob = ((canvas.astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)[None]
        outputs = self._session.run(None, {self._input: np.ascontiguousarray(blob)})
        factors = (w / picture.shape[1], h / picture.shape[0])
        found = []
        for d in decode_scrfd(outputs, (height, width), self._threshold):
            points = np.concatenate([d.box.reshape(2, 2), d.landmarks])
            points = quarter_back(scale_back(points, factors), quarter, rgb.shape)
            box = np.concatenate([points[:2].min(0), points[:2].max(0)])
            found.append(Found(Detection(box, points[2:], d.score), quarter))
        return found


def decode_scrfd(
    outputs: list[NDArray[Any]], size: tuple[int, int], threshold: float, nms: float = 0.4
) -> list[Detection]:
    """SCRFD's raw outputs → faces in pixels of its input of ``size`` (height, width).

    ``outputs`` holds scores (K·a, 1), box distances (K·a, 4: left, top, right, bottom) and point
    offsets (K·a, 10), each for all strides from 8 up, in units of the stride; K cells row by row,
    ``a`` anchors a cell (2 for three strides, 1 for five). A leading batch axis of 1 is allowed.
    """
    levels = len(outputs) // 3
    anchors = 2 if levels == 3 else 1
    boxes, points, scores = [], [], []
    for level in range(levels):
        stride = 8 << level
        rows, columns = size[0] // stride, size[1] // stride
        score = np.asarray(outputs[level], np.float32).reshape(-1)
        if score.size != rows * columns * anchors:
            raise ValueError(f"stride {stride}: {score.size} scores for {rows}×{columns}×{anchors} anchors")
        keep = np.flatnonzero(score >= threshold)
        cell = keep // anchors
        centre = np.stack([cell % columns, cell // columns], 1).astype(np.float32) * stride
        far = np.asarray(outputs[level + levels], np.float32).reshape(-1, 4)[keep] * stride
        off = np.asarray(outputs[level + 2 * levels], np.float32).reshape(-1, 5, 2)[keep] * stride
        boxes.append(np.hstack([centre - far[:, :2], centre + far[:, 2:]]))
        points.append(centre[:, None] + off)
        scores.append(score[keep])
    box, point, score = np.concatenate(boxes), np.concatenate(points), np.concatenate(scores)
    found: list[Detection] = []
    for i in np.argsort(-score, kind="stable"):
        if all(overlap(box[i], d.box) <= nms for d in found):
            found.append(Detection(box[i], point[i], min(1.0, float(score[i]))))
    return found
