"""An ONNX graph as a differentiable torch module.

Recognition networks come as ONNX; guidance needs their gradient. This maps the operators such
networks use, node by node, onto torch. Parity with onnxruntime is tested to 1e-4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor, nn

from ...errors import PackError
from ..onnx_weights import Arrays, attributes_of, settled

Attributes = dict[str, Any]
Operator = Callable[[list[Any], Attributes], Any]
Node = tuple[str, list[str], list[str], Attributes]  # operator, inputs, outputs


def _padded(x: Tensor, pads: list[int] | None) -> Tensor:
    if not pads or not any(pads):
        return x
    top, left, bottom, right = pads
    return F.pad(x, (left, right, top, bottom))


def _conv(x: list[Any], a: Attributes) -> Tensor:
    pads = list(a.get("pads", [0, 0, 0, 0]))
    if a.get("auto_pad") in (b"SAME_UPPER", b"SAME_LOWER"):
        if list(a.get("strides", [1, 1])) != [1, 1]:
            raise PackError("ONNX convolution with strides and auto_pad SAME is not supported")
        pads = [(k - 1) // 2 for k in x[1].shape[2:]] * 2
    image, symmetric = x[0], pads[:2] == pads[2:]
    if not symmetric:
        image = _padded(image, pads)
    return F.conv2d(
        image,
        x[1],
        x[2] if len(x) > 2 else None,
        tuple(a.get("strides", (1, 1))),
        tuple(pads[:2]) if symmetric else (0, 0),
        tuple(a.get("dilations", (1, 1))),
        a.get("group", 1),
    )


def _prelu(x: list[Any], _: Attributes) -> Tensor:
    image, slope = x[0], x[1]
    # ONNX broadcasts the slope from the last axis on; (C,) is what some exporters write for (C, 1, 1).
    if slope.numel() == 1 or slope.shape[0] == slope.numel() == image.shape[1]:
        slope = slope.reshape(-1, *[1] * (image.ndim - 2))
        if image.device.type != "cpu":
            return F.prelu(image, slope.flatten())
    # The same function; on a CPU its gradient takes a quarter of the time of ``F.prelu``'s.
    return torch.lerp(F.relu(image), image, slope.expand_as(image))


def _batch_norm(x: list[Any], a: Attributes) -> Tensor:
    """With the stored statistics; ``momentum`` and ``spatial`` = 1 of old graphs have no say in that."""
    if a.get("training_mode") or not a.get("spatial", 1):
        raise PackError("ONNX BatchNormalization in training, or per position, is not supported")
    return F.batch_norm(x[0], x[3], x[4], x[1], x[2], False, 0.0, a.get("epsilon", 1e-5))


def _gemm(x: list[Any], a: Attributes) -> Tensor:
    left = x[0].T if a.get("transA") else x[0]
    right = x[1].T if a.get("transB") else x[1]
    out = a.get("alpha", 1.0) * (left @ right)
    return cast(Tensor, out + a.get("beta", 1.0) * x[2] if len(x) > 2 else out)


def _flatten(x: list[Any], a: Attributes) -> Tensor:
    """Always to two axes; with ``axis`` 1, the usual one, the first stays the batch."""
    data: Tensor = x[0]
    return data.flatten(1) if a.get("axis", 1) == 1 else data.reshape(*_halves(data.shape, a["axis"]))


def _halves(shape: torch.Size, axis: int) -> tuple[int, int]:
    axis = axis + len(shape) if axis < 0 else axis
    return prod(shape[:axis]), prod(shape[axis:])


def _reshape(x: list[Any], _: Attributes) -> Tensor:
    shape = [int(v) for v in x[1]]
    data: Tensor = x[0]
    shape = [data.shape[i] if v == 0 else v for i, v in enumerate(shape)]
    # graphs are exported with a batch of one written into their shapes
    if shape and shape[0] == 1 and data.shape[0] != 1:
        shape[0] = data.shape[0]
    return data.reshape(shape)


def _pool(x: list[Any], a: Attributes, *, maximum: bool) -> Tensor:
    kernel: list[int] = list(a["kernel_shape"])
    stride: list[int] = list(a.get("strides") or kernel)
    pads, ceil = list(a.get("pads", [0, 0, 0, 0])), bool(a.get("ceil_mode", 0))
    if pads[:2] != pads[2:]:
        raise PackError("ONNX pooling with one-sided padding is not supported")
    if maximum:
        return F.max_pool2d(x[0], kernel, stride, pads[:2], ceil_mode=ceil)
    return F.avg_pool2d(
        x[0], kernel, stride, pads[:2], ceil_mode=ceil, count_include_pad=bool(a.get("count_include_pad", 0))
    )


def _pad(x: list[Any], a: Attributes) -> Tensor:
    pads = [int(v) for v in (a["pads"] if "pads" in a else x[1])]
    half = len(pads) // 2  # ONNX: all begins, then all ends; torch: pairs from the last axis on
    return F.pad(x[0], [v for axis in reversed(range(half)) for v in (pads[axis], pads[axis + half])])


OPERATORS: dict[str, Operator] = {
    "Add": lambda x, _: x[0] + x[1],
    "AveragePool": lambda x, a: _pool(x, a, maximum=False),
    "BatchNormalization": _batch_norm,
    "Cast": lambda x, _: x[0],  # only between float types in these networks
    "Concat": lambda x, a: torch.cat(x, a["axis"]),
    "Conv": _conv,
    "Div": lambda x, _: x[0] / x[1],
    "Dropout": lambda x, _: x[0],
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x, _: x[0].mean((2, 3), keepdim=True),
    "Identity": lambda x, _: x[0],
    "MatMul": lambda x, _: x[0] @ x[1],
    "MaxPool": lambda x, a: _pool(x, a, maximum=True),
    "Mul": lambda x, _: x[0] * x[1],
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMean": lambda x, a: x[0].mean(tuple(a["axes"]), keepdim=bool(a.get("keepdims", 1))),
    "Relu": lambda x, _: F.relu(x[0]),
    "Reshape": _reshape,
    "Sigmoid": lambda x, _: torch.sigmoid(x[0]),
    "Softmax": lambda x, a: torch.softmax(x[0], a.get("axis", -1)),
    "Split": lambda x, a: torch.split(x[0], list(a["split"]), a.get("axis", 0)),
    "Sub": lambda x, _: x[0] - x[1],
    "Transpose": lambda x, a: x[0].permute(a["perm"]),
}


def _folded(nodes: list[Node], stored: Arrays, results: set[str]) -> list[Node]:
    """A normalisation by stored statistics that follows a convolution becomes a part of its weights: one pass
    over the pixels less each way. ``stored`` gets the new weights."""
    uses = Counter(name for _, inputs, _, _ in nodes for name in inputs)
    makers = {node[2][0]: node for node in nodes if node[0] == "Conv"}
    kept: dict[str, Node] = {node[2][0]: node for node in nodes}
    for operator, inputs, outputs, attributes in nodes:
        conv = makers.get(inputs[0]) if inputs else None
        if operator != "BatchNormalization" or conv is None or inputs[0] in results or uses[inputs[0]] > 1:
            continue
        if attributes.get("training_mode") or not all(n in stored for n in (*inputs[1:], *conv[1][1:])):
            continue
        gain, shift, mean, variance = (stored[n].astype(np.float64) for n in inputs[1:5])
        factor = gain / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        weight = stored[conv[1][1]].astype(np.float64)
        bias = stored[conv[1][2]].astype(np.float64) if len(conv[1]) > 2 else 0.0
        names = [f"{outputs[0]} {part}" for part in ("weight", "bias")]
        made = weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), shift + (bias - mean) * factor
        stored.update(zip(names, (m.astype(np.float32) for m in made), strict=True))
        del kept[inputs[0]]
        kept[outputs[0]] = "Conv", [conv[1][0], *names], outputs, conv[3]
    return list(kept.values())


class OnnxModule(nn.Module):
    """Runs the graph of ``path``; initialisers are buffers, so ``.to(device)`` moves them.

    Raises:
        PackError: an operator that is not in ``OPERATORS``, or a file that is not ONNX.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            graph = onnx.load(str(path)).graph
            stored, nodes = settled(graph)
        except Exception as error:  # protobuf raises its own private types, broken weights all kinds
            raise PackError(f"{path}: not a readable ONNX file ({error})") from error
        self._buffer_of: dict[str, str] = {}
        self._shapes: dict[str, list[int]] = {}
        self._input = next(i.name for i in graph.input if i.name not in stored)
        self._outputs = [o.name for o in graph.output]
        if unknown := {node.op_type for node in nodes} - OPERATORS.keys():
            raise PackError(f"{path}: the ONNX operator {min(unknown)} is not supported")
        self._nodes: list[Node] = [
            (node.op_type, list(node.input), list(node.output), attributes_of(node)) for node in nodes
        ]
        self._nodes = _folded(self._nodes, stored, set(self._outputs))
        used = {name for _, inputs, _, _ in self._nodes for name in inputs}
        for index, (name, array) in enumerate(stored.items()):
            if name in used:
                self._add(name, f"w{index}", array)

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are, and its input is to be; float32 without weights."""
        return next((b.dtype for b in self.buffers()), torch.float32)

    @property
    def grouped(self) -> bool:
        """Whether it has convolutions that see only some of the channels each."""
        return any(attributes.get("group", 1) > 1 for _, _, _, attributes in self._nodes)

    def _add(self, name: str, buffer: str, array: Any) -> None:
        if array.dtype.kind in "iu":  # a shape or a pad list, never a weight: stays on the CPU
            self._shapes[name] = [int(v) for v in array.reshape(-1)]
            return
        self.register_buffer(buffer, torch.from_numpy(array.copy()).float())
        self._buffer_of[name] = buffer

    def forward(self, x: Tensor) -> Any:
        """One input (B, …); one tensor, or a tuple where the graph has several outputs."""
        values: dict[str, Any] = {n: getattr(self, b) for n, b in self._buffer_of.items()}
        values |= self._shapes
        values[self._input] = x
        for operator, inputs, outputs, attributes in self._nodes:
            result = OPERATORS[operator]([values[n] for n in inputs if n], attributes)
            if isinstance(result, tuple):
                values.update(zip(outputs, result, strict=True))
            else:
                values[outputs[0]] = result
        results = tuple(values[n] for n in self._outputs)
        return results[0] if len(results) == 1 else results
