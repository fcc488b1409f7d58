"""Weights of an ONNX graph as they are used.

Recognition networks and detectors are kept as small as they were published: 8-bit numbers with a scale a
block. That is undone when they are loaded, which no result depends on.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from .records import F32

Arrays = dict[str, NDArray[Any]]


def attributes_of(node: Any) -> dict[str, Any]:
    """What a node is given beside its inputs."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def settled(graph: Any) -> tuple[Arrays, list[Any]]:
    """All arrays that are known before there is an input, by name, and the nodes that remain to be run.

    Weights that are stored quantised are made floats; the names of what nothing uses any more stay.
    """
    values: Arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    nodes = []
    for node in graph.node:
        known = all(name in values for name in node.input)
        if node.op_type == "Constant":
            values[node.output[0]] = numpy_helper.to_array(attributes_of(node)["value"])
        elif node.op_type == "DequantizeLinear" and known:
            named = attributes_of(node)
            arrays = [values[name] for name in node.input]
            values[node.output[0]] = dequantised(arrays, named.get("axis", 1), named.get("block_size", 0))
        elif node.op_type == "Reshape" and known:
            array, shape = (values[name] for name in node.input)
            values[node.output[0]] = array.reshape(shape.astype(int))
        else:
            nodes.append(node)
    return values, nodes


def dequantised(arrays: list[NDArray[Any]], axis: int, block: int) -> F32:
    """ONNX's DequantizeLinear, of a tensor, per channel along an axis, or in blocks of so many along it."""
    numbers, *others = arrays
    scale, zero = others[0], others[1] if len(others) > 1 else np.zeros_like(others[0])
    if block:
        scale, zero = (v.repeat(block, axis).take(range(numbers.shape[axis]), axis) for v in (scale, zero))
    elif scale.ndim == 1:
        shape = [-1 if i == axis else 1 for i in range(numbers.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return cast(F32, ((numbers.astype(np.float32) - zero.astype(np.float32)) * scale).astype(np.float32))
