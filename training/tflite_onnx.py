"""Converts TFLite graphs of convolutions to ONNX, operator by operator.

There is no TFLite runtime among the project's requirements, and ONNX is what everything else runs in.
Needs ``pip install tflite`` (the file format's reader, pure Python). Activations become NCHW.
Weights stay float16 where they are, and are widened when the file is loaded; int8 weights become float32
by their scales, so that the ONNX graph computes what the quantised one approximates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import tflite  # type: ignore[import-not-found,unused-ignore]
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17

RELU, RELU6 = 1, 3  # of TFLite's ActivationFunctionType


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding along one axis: the odd pixel goes to the far side."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Converter:
    """One TFLite graph, walked in its own order; a subclass says what its ends are called."""

    def __init__(self, content: bytes) -> None:
        self.model = tflite.Model.GetRootAsModel(content, 0)
        self.graph = self.model.Subgraphs(0)
        self.names = {v: k for k, v in vars(tflite.BuiltinOperator).items() if isinstance(v, int)}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self.origin: dict[int, int] = {}  # a dequantised tensor → the float16 constant behind it

    def shape(self, tensor: int) -> list[int]:
        entry = self.graph.Tensors(tensor)
        return [int(n) for n in entry.ShapeAsNumpy()] if entry.ShapeLength() else []

    def is_constant(self, tensor: int) -> bool:
        tensor = self.origin.get(tensor, tensor)
        return bool(self.model.Buffers(self.graph.Tensors(tensor).Buffer()).DataLength())

    def constant(self, tensor: int) -> NDArray[Any]:
        """The values of a constant tensor in TensorFlow's layout; int8 by its scales as float32."""
        tensor = self.origin.get(tensor, tensor)
        entry = self.graph.Tensors(tensor)
        kinds = {
            tflite.TensorType.FLOAT32: np.float32,
            tflite.TensorType.FLOAT16: np.float16,
            tflite.TensorType.INT32: np.int32,
            tflite.TensorType.INT8: np.int8,
        }
        values = self.model.Buffers(entry.Buffer()).DataAsNumpy().view(kinds[entry.Type()])
        values = np.asarray(values).reshape(self.shape(tensor))
        if values.dtype != np.int8:
            return values
        quantised = entry.Quantization()
        along = [1] * values.ndim
        if quantised.ScaleLength() > 1:
            along[quantised.QuantizedDimension()] = -1
        scale = quantised.ScaleAsNumpy().reshape(along)
        zero = quantised.ZeroPointAsNumpy().reshape(along) if quantised.ZeroPointLength() else 0
        wide: NDArray[Any] = ((values.astype(np.float32) - zero) * scale).astype(np.float32)
        return wide

    def weight(self, tensor: int, order: tuple[int, ...]) -> str:
        """Enter a constant, its axes reordered (−1 inserts one); a float16 one is widened."""
        values = self.constant(tensor)
        values = values.transpose([a for a in order if a >= 0])
        for axis, a in enumerate(order):
            if a < 0:
                values = np.expand_dims(values, axis)
        name = f"w{tensor}"
        narrow = values.dtype == np.float16
        if name not in self.weights:
            self.weights[name] = np.ascontiguousarray(values)
            if narrow:
                self.nodes.append(helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.FLOAT))
        return f"{name}_wide" if narrow else name

    def operand(self, tensor: int, rank: int) -> str:
        """A side of an elementwise operation; a constant's channels broadcast over NCHW."""
        if not self.is_constant(tensor):
            return f"t{tensor}"
        size = len(self.shape(tensor))
        if rank != 4 or size == 0:
            return self.weight(tensor, tuple(range(size)))
        return self.weight(tensor, {1: (0, -1, -1), 3: (2, 0, 1), 4: (0, 3, 1, 2)}[size])

    def add(self, kind: str, inputs: list[str], output: int, activation: int = 0, **attributes: Any) -> None:
        """A node for a TFLite tensor, with the activation that TFLite fuses into it."""
        name = f"t{output}"
        inner = f"{name}_linear" if activation else name
        self.nodes.append(helper.make_node(kind, inputs, [inner], **attributes))
        if activation == RELU:
            self.nodes.append(helper.make_node("Relu", [inner], [name]))
        elif activation == RELU6:
            self.weights |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
            self.nodes.append(helper.make_node("Clip", [inner, "zero", "six"], [name]))
        elif activation:
            raise ValueError(f"{kind} with the activation {activation}")

    def pads(self, options: Any, size: list[int], kernel: tuple[int, int]) -> dict[str, Any]:
        """Strides and explicit padding of a convolution or a pooling on (1, H, W, C)."""
        strides = [options.StrideH(), options.StrideW()]
        pads = [(0, 0), (0, 0)]
        if options.Padding() == tflite.Padding.SAME:
            pads = [same_pads(n, k, s) for n, k, s in zip(size[1:3], kernel, strides, strict=True)]
        return {"strides": strides, "pads": [pads[0][0], pads[1][0], pads[0][1], pads[1][1]]}

    def operator(self, op: Any) -> None:
        """Translate one operator; ValueError for one that no network here has."""
        code = self.model.OperatorCodes(op.OpcodeIndex())
        kind = self.names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs, out = [int(i) for i in op.InputsAsNumpy()], int(op.OutputsAsNumpy()[0])
        names = [f"t{i}" for i in inputs]
        rank = len(self.shape(out))
        if kind == "DEQUANTIZE":
            self.origin[out] = inputs[0]
        elif kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            self._convolution(kind, op, inputs, out)
        elif kind == "TRANSPOSE_CONV":
            self._transposed(op, inputs, out)
        elif kind == "FULLY_CONNECTED":
            options = self._options(op, tflite.FullyConnectedOptions())
            weights = [self.weight(inputs[1], (0, 1)), self.weight(inputs[2], (0,))]
            self.add("Gemm", [names[0], *weights], out, options.FusedActivationFunction(), transB=1)
        elif kind == "MAX_POOL_2D":
            options = self._options(op, tflite.Pool2DOptions())
            kernel = [options.FilterHeight(), options.FilterWidth()]
            places = self.pads(options, self.shape(inputs[0]), (kernel[0], kernel[1]))
            self.add("MaxPool", names, out, options.FusedActivationFunction(), kernel_shape=kernel, **places)
        elif kind == "MEAN" and sorted(self.constant(inputs[1]).ravel().tolist()) == [1, 2]:
            keep = self._options(op, tflite.ReducerOptions()).KeepDims()
            self.add("ReduceMean", names[:1], out, axes=[2, 3], keepdims=int(keep))
        elif kind == "PRELU":
            self.add("PRelu", [names[0], self.weight(inputs[1], (2, 0, 1))], out)
        elif kind in ("ADD", "MUL"):
            options = self._options(op, tflite.AddOptions() if kind == "ADD" else tflite.MulOptions())
            sides = [self.operand(i, rank) for i in inputs]
            self.add(kind.capitalize(), sides, out, options.FusedActivationFunction())
        elif kind == "CONCATENATION" and rank == 4:
            options = self._options(op, tflite.ConcatenationOptions())
            axis = {0: 0, 1: 2, 2: 3, 3: 1}[options.Axis() % 4]
            self.add("Concat", names, out, options.FusedActivationFunction(), axis=axis)
        elif kind == "RESHAPE" and rank == 4 and self.shape(out)[1:3] == [1, 1]:
            self.weights[f"shape{out}"] = np.array([-1, self.shape(out)[3], 1, 1])
            self.add("Reshape", [names[0], f"shape{out}"], out)
        elif kind == "LOGISTIC":
            self.add("Sigmoid", names, out)
        elif kind == "PAD":
            before, after = self.constant(inputs[1])[[0, 3, 1, 2]].T  # NHWC → NCHW
            pads = f"pads{out}"
            self.weights[pads] = np.concatenate([before, after]).astype(np.int64)
            self.add("Pad", [names[0], pads], out)
        else:
            raise ValueError(f"{kind}: not an operator this converter knows in this form")

    def _options(self, op: Any, options: Any) -> Any:
        table = op.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        return options

    def _convolution(self, kind: str, op: Any, inputs: list[int], out: int) -> None:
        depthwise = kind == "DEPTHWISE_CONV_2D"
        options = self._options(op, tflite.DepthwiseConv2DOptions() if depthwise else tflite.Conv2DOptions())
        if options.DilationHFactor() != 1:
            raise ValueError(f"{kind} with dilation")
        kernel = self.shape(inputs[1])[1:3]
        weight = self.weight(inputs[1], (3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
        group = self.shape(inputs[1])[3] if depthwise else 1
        places = self.pads(options, self.shape(inputs[0]), (kernel[0], kernel[1]))
        bias = self.weight(inputs[2], (0,))
        sides = [f"t{inputs[0]}", weight, bias]
        self.add(
            "Conv", sides, out, options.FusedActivationFunction(), group=group, kernel_shape=kernel, **places
        )

    def _transposed(self, op: Any, inputs: list[int], out: int) -> None:
        """Inputs are the shape wanted, the weights (out, kh, kw, in) and the picture."""
        options = self._options(op, tflite.TransposeConvOptions())
        kernel = self.shape(inputs[1])[1:3]
        # The padding is that of the convolution whose gradient this is: from the output's size.
        places = self.pads(options, self.shape(out), (kernel[0], kernel[1]))
        sides = [f"t{inputs[2]}", self.weight(inputs[1], (3, 0, 1, 2))]
        if len(inputs) > 3:
            sides.append(self.weight(inputs[3], (0,)))
        self.add("ConvTranspose", sides, out, kernel_shape=kernel, **places)

    def walk(self) -> None:
        """Translate every operator; the graph's own tensors are then called t0, t1, …"""
        for i in range(self.graph.OperatorsLength()):
            self.operator(self.graph.Operators(i))

    def ends(self) -> tuple[str, list[int]]:
        """The input's name, and the outputs' tensors."""
        return f"t{int(self.graph.InputsAsNumpy()[0])}", [int(i) for i in self.graph.OutputsAsNumpy()]

    def model_of(
        self, name: str, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], doc: str
    ) -> onnx.ModelProto:
        """The checked ONNX model of the nodes so far; shapes are lists, a string is a free axis."""
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            name,
            [value(k, TensorProto.FLOAT, shape) for k, shape in inputs.items()],
            [value(k, TensorProto.FLOAT, shape) for k, shape in outputs.items()],
            [numpy_helper.from_array(v, k) for k, v in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        model.doc_string = doc
        onnx.checker.check_model(model, full_check=True)
        return model
