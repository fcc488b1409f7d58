"""Converts MediaPipe's face_landmark.tflite into the ONNX file that ``ldvid evaluate`` judges with.

    pip install tflite
    python training/face_mesh.py face_landmark.tflite packs/judges/face_mesh.onnx

The network (Kartynnik et al. 2019, arXiv 1907.06724; Apache-2.0; in the ``mediapipe`` wheel under
``mediapipe/modules/face_landmark``) uses seven kinds of operation; each becomes its ONNX counterpart, in
NCHW. Weights stay float16, as they are in the original, and are widened when the file is loaded. The
input and the outputs get names, a sigmoid is put behind the score.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tflite
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 192
POINTS = 468
OPSET = 17


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding along one axis: the odd pixel goes to the far side."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Converter:
    """One TFLite graph of convolutions, walked in its own order."""

    def __init__(self, content: bytes) -> None:
        self.model = tflite.Model.GetRootAsModel(content, 0)
        self.graph = self.model.Subgraphs(0)
        self.names = {v: k for k, v in vars(tflite.BuiltinOperator).items() if isinstance(v, int)}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self.origin: dict[int, int] = {}  # a dequantised tensor → the float16 constant behind it

    def shape(self, tensor: int) -> list[int]:
        return [int(n) for n in self.graph.Tensors(tensor).ShapeAsNumpy()]

    def constant(self, tensor: int) -> NDArray[Any]:
        """The values of a constant tensor, float16 or int32, in TensorFlow's layout."""
        tensor = self.origin.get(tensor, tensor)
        entry = self.graph.Tensors(tensor)
        kinds = {tflite.TensorType.FLOAT16: np.float16, tflite.TensorType.INT32: np.int32}
        values = self.model.Buffers(entry.Buffer()).DataAsNumpy().view(kinds[entry.Type()])
        return np.asarray(values).reshape(self.shape(tensor))

    def weight(self, tensor: int, order: tuple[int, ...]) -> str:
        """Enter a constant, its axes reordered (−1 inserts one), as float16 and widen it."""
        values = self.constant(tensor)
        values = values.transpose([a for a in order if a >= 0])
        for axis, a in enumerate(order):
            if a < 0:
                values = np.expand_dims(values, axis)
        name = f"w{tensor}"
        if name not in self.weights:
            self.weights[name] = np.ascontiguousarray(values)
            self.nodes.append(helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.FLOAT))
        return f"{name}_wide"

    def add(self, kind: str, inputs: list[str], output: int, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [f"t{output}"], **attributes))

    def pads(self, options: Any, size: list[int], kernel: tuple[int, int]) -> dict[str, list[int]]:
        """Strides and explicit padding of a convolution or a pooling on (1, H, W, C)."""
        strides = [options.StrideH(), options.StrideW()]
        pads = [(0, 0), (0, 0)]
        if options.Padding() == tflite.Padding.SAME:
            pads = [same_pads(n, k, s) for n, k, s in zip(size[1:3], kernel, strides, strict=True)]
        return {"strides": strides, "pads": [pads[0][0], pads[1][0], pads[0][1], pads[1][1]]}

    def operator(self, op: Any) -> None:
        """Translate one operator; ValueError for one this network has not."""
        code = self.model.OperatorCodes(op.OpcodeIndex())
        kind = self.names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs, out = [int(i) for i in op.InputsAsNumpy()], int(op.OutputsAsNumpy()[0])
        names = [f"t{i}" for i in inputs]
        table = op.BuiltinOptions()
        if kind == "DEQUANTIZE":
            self.origin[out] = inputs[0]
        elif kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            depthwise = kind == "DEPTHWISE_CONV_2D"
            options = tflite.DepthwiseConv2DOptions() if depthwise else tflite.Conv2DOptions()
            options.Init(table.Bytes, table.Pos)
            if options.FusedActivationFunction() or options.DilationHFactor() != 1:
                raise ValueError(f"{kind} with an activation or dilation")
            kernel = self.shape(inputs[1])[1:3]
            weight = self.weight(inputs[1], (3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
            group = self.shape(inputs[1])[3] if depthwise else 1
            places = self.pads(options, self.shape(inputs[0]), (kernel[0], kernel[1]))
            bias = self.weight(inputs[2], (0,))
            self.add("Conv", [names[0], weight, bias], out, group=group, kernel_shape=kernel, **places)
        elif kind == "MAX_POOL_2D":
            options = tflite.Pool2DOptions()
            options.Init(table.Bytes, table.Pos)
            kernel = [options.FilterHeight(), options.FilterWidth()]
            places = self.pads(options, self.shape(inputs[0]), (kernel[0], kernel[1]))
            self.add("MaxPool", names, out, kernel_shape=kernel, **places)
        elif kind == "PRELU":
            self.add("PRelu", [names[0], self.weight(inputs[1], (2, 0, 1))], out)
        elif kind == "ADD":
            self.add("Add", names, out)
        elif kind == "PAD":
            before, after = self.constant(inputs[1])[[0, 3, 1, 2]].T  # NHWC → NCHW
            pads = f"pads{out}"
            self.weights[pads] = np.concatenate([before, after]).astype(np.int64)
            self.add("Pad", [names[0], pads], out)
        else:
            raise ValueError(f"{kind}: this network has no such operator")

    def convert(self) -> onnx.ModelProto:
        """The checked ONNX model: picture (N, 3, 192, 192) → points (N, 468, 3), score (N,)."""
        for i in range(self.graph.OperatorsLength()):
            self.operator(self.graph.Operators(i))
        entry = f"t{int(self.graph.InputsAsNumpy()[0])}"
        sizes = {int(np.prod(self.shape(int(i)))): f"t{int(i)}" for i in self.graph.OutputsAsNumpy()}
        self.weights |= {"points_shape": np.array([-1, POINTS, 3]), "score_shape": np.array([-1])}
        self.nodes = [helper.make_node("Identity", ["picture"], [entry]), *self.nodes]
        self.nodes += [
            helper.make_node("Reshape", [sizes[POINTS * 3], "points_shape"], ["points"]),
            helper.make_node("Reshape", [sizes[1], "score_shape"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["score"]),
        ]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "face_mesh",
            [value("picture", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
            [
                value("points", TensorProto.FLOAT, ["n", POINTS, 3]),
                value("score", TensorProto.FLOAT, ["n"]),
            ],
            [numpy_helper.from_array(v, k) for k, v in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        model.doc_string = "MediaPipe face_landmark.tflite (Apache-2.0), converted by training/face_mesh.py"
        onnx.checker.check_model(model, full_check=True)
        return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tflite", type=Path)
    parser.add_argument("onnx", type=Path)
    args = parser.parse_args()
    onnx.save(Converter(args.tflite.read_bytes()).convert(), str(args.onnx))


if __name__ == "__main__":
    main()
