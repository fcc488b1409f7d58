"""Converts MediaPipe's face_landmark.tflite into the ONNX file that ``ldvid evaluate`` judges with.

    pip install tflite
    python -m ldvid.training.face_mesh face_landmark.tflite packs/judges/face_mesh.onnx

The network (Kartynnik et al. 2019, arXiv 1907.06724; Apache-2.0; in the ``mediapipe`` wheel under
``mediapipe/modules/face_landmark``) stays as it is, see ``tflite_onnx``. The input and the outputs get
names, a sigmoid is put behind the score.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from .tflite_onnx import Converter

SIDE = 192
POINTS = 468


def convert(content: bytes) -> onnx.ModelProto:
    """The checked ONNX model: picture (N, 3, 192, 192) → points (N, 468, 3), score (N,)."""
    converter = Converter(content)
    converter.walk()
    entry, outputs = converter.ends()
    sizes = {int(np.prod(converter.shape(i))): f"t{i}" for i in outputs}
    converter.weights |= {"points_shape": np.array([-1, POINTS, 3]), "score_shape": np.array([-1])}
    converter.nodes = [helper.make_node("Identity", ["picture"], [entry]), *converter.nodes]
    converter.nodes += [
        helper.make_node("Reshape", [sizes[POINTS * 3], "points_shape"], ["points"]),
        helper.make_node("Reshape", [sizes[1], "score_shape"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
    ]
    return converter.model_of(
        "face_mesh",
        {"picture": ["n", 3, SIDE, SIDE]},
        {"points": ["n", POINTS, 3], "score": ["n"]},
        "MediaPipe face_landmark.tflite (Apache-2.0), converted by training/face_mesh.py",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tflite", type=Path)
    parser.add_argument("onnx", type=Path)
    args = parser.parse_args()
    onnx.save(convert(args.tflite.read_bytes()), str(args.onnx))


if __name__ == "__main__":
    main()
