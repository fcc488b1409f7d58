"""ONNX as a torch module: a whole IResNet-50 as insightface writes it, and its operators one by one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ldvid.errors import PackError
from ldvid.stages.swap.onnx_torch import OnnxModule
from onnx import TensorProto, helper, numpy_helper

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def load_random_pack() -> ModuleType:
    """``benchmarks/random_pack.py``, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("random_pack", BENCHMARKS / "random_pack.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["random_pack"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def reference(path: Path, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: x}))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A random IResNet-50 of full size, and its graph by torch.onnx."""
    pack = load_random_pack()
    random = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        net = pack.settle(pack.IResNet(), pack.pictures(8, 112, random), random)
    path = tmp_path_factory.mktemp("r50") / "w600k_r50.onnx"
    pack.export(net, torch.zeros(1, 3, 112, 112), path, ["683"], {0: "None"})
    return path, net


@pytest.fixture(scope="module")
def r50(exported: tuple[Path, torch.nn.Module]) -> OnnxModule:
    module = OnnxModule(exported[0])
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    """Four inputs in [−1, 1], (4, 3, 112, 112)."""
    random = torch.Generator().manual_seed(1)
    return cast(torch.Tensor, load_random_pack().pictures(4, 112, random).clamp(-1, 1))


def test_r50_equals_onnxruntime_in_batches_of_any_size(
    exported: tuple[Path, torch.nn.Module], r50: OnnxModule, inputs: torch.Tensor
) -> None:
    graph = onnx.load(str(exported[0])).graph
    kinds = {node.op_type for node in graph.node}
    assert kinds == {"Conv", "BatchNormalization", "PRelu", "Add", "Flatten", "Gemm"}
    assert sum(node.op_type == "Conv" for node in graph.node) == 1 + 2 * 24 + 4
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param  # a batch of any size
    with torch.no_grad():
        ours = r50(inputs)
        rows = torch.cat([r50(inputs[i : i + 1]) for i in range(4)])
    (theirs,) = reference(exported[0], inputs.numpy())
    assert ours.shape == (4, 512) and ours.std() > 0.1
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)
    np.testing.assert_allclose(ours.numpy(), rows.numpy(), atol=1e-5)
    assert (ours[0] - ours[1]).abs().max() > 0.05  # not all the same


def test_r50_has_the_gradient_of_the_network_it_was(
    exported: tuple[Path, torch.nn.Module], r50: OnnxModule, inputs: torch.Tensor
) -> None:
    """In float64: in float32 some activations lie on the other side of a PReLU's bend."""
    net = exported[1].requires_grad_(False).double()
    gradients = []
    for module in (OnnxModule(exported[0]).double(), net):
        x = inputs[:2].double().requires_grad_(True)
        e = torch.nn.functional.normalize(module(x), dim=1)
        gradients.append(torch.autograd.grad(e[:, :256].sum(), x)[0])
    ours, theirs = gradients
    assert torch.isfinite(ours).all()
    assert (ours.abs().amax((1, 2, 3)) > 0).all()
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()  # the exporter folds norms into float32 weights
    x = inputs.clone().requires_grad_(True)
    (single,) = torch.autograd.grad(torch.nn.functional.normalize(r50(x), dim=1)[:, :256].sum(), x)
    assert torch.isfinite(single).all() and (single.abs().amax((1, 2, 3)) > 0).all()
    assert (single[:2] - theirs).norm() < 0.02 * theirs.norm()


def write(
    path: Path,
    kind: str,
    weights: dict[str, np.ndarray],
    shape: tuple[Any, ...],
    opset: int,
    **attributes: Any,
) -> Path:
    """A graph of one node with input ``x``."""
    node = helper.make_node(kind, ["x", *weights], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), str(path)
    )
    return path


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


STATISTICS = {"g": draw(5), "b": draw(5, seed=1), "m": draw(5, seed=2), "v": draw(5, seed=3) ** 2 + 0.1}
CASES: dict[str, tuple[str, dict[str, np.ndarray], tuple[int, ...], int, dict[str, Any]]] = {
    "slope (C, 1, 1)": ("PRelu", {"s": draw(5, 1, 1)}, (2, 5, 4, 3), 11, {}),
    "one slope": ("PRelu", {"s": draw(1)}, (2, 5, 4, 3), 11, {}),
    "slope (1, C, 1, 1)": ("PRelu", {"s": draw(1, 5, 1, 1)}, (2, 5, 4, 3), 11, {}),
    "slope per position": ("PRelu", {"s": draw(5, 4, 3)}, (2, 5, 4, 3), 11, {}),
    "slope of a vector": ("PRelu", {"s": draw(5)}, (2, 5), 11, {}),
    "Gemm transB": ("Gemm", {"w": draw(7, 5), "c": draw(7)}, (3, 5), 11, {"transB": 1}),
    "Gemm transA": (
        "Gemm", {"w": draw(5, 7), "c": draw(7)}, (5, 3), 11, {"transA": 1, "alpha": 0.5, "beta": 2.0},
    ),
    "Gemm without C": ("Gemm", {"w": draw(5, 7)}, (3, 5), 11, {"alpha": 1.5}),
    "Flatten": ("Flatten", {}, (2, 5, 4, 3), 11, {}),
    "Flatten all": ("Flatten", {}, (2, 5, 4, 3), 11, {"axis": 0}),
    "Flatten late": ("Flatten", {}, (2, 5, 4, 3), 11, {"axis": 2}),
    "Flatten from the end": ("Flatten", {}, (2, 5, 4, 3), 11, {"axis": -1}),
    "BatchNormalization": ("BatchNormalization", STATISTICS, (2, 5, 4, 3), 11, {"epsilon": 1e-3}),
    "BatchNormalization of 2017": (
        "BatchNormalization", STATISTICS, (2, 5, 4, 3), 8, {"spatial": 1, "momentum": 0.5, "epsilon": 2e-5},
    ),
    "BatchNormalization of a vector": ("BatchNormalization", STATISTICS, (2, 5), 11, {"momentum": 0.9}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operators_equal_onnxruntime(case: str, tmp_path: Path) -> None:
    kind, weights, shape, opset, attributes = CASES[case]
    path = write(tmp_path / "one.onnx", kind, weights, shape, opset, **attributes)
    x = draw(*shape, seed=9)
    (wanted,) = reference(path, x)
    given = OnnxModule(path)(torch.from_numpy(x)).numpy()
    assert given.shape == wanted.shape
    np.testing.assert_allclose(given, wanted, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_a_norm_behind_a_convolution_goes_into_its_weights(tmp_path: Path, groups: int, bias: bool) -> None:
    """Unless somebody else wants what the convolution gives."""
    weights = {
        "w": draw(4, 4 // groups, 3, 3),
        "b": draw(4, seed=5),
        **{k: draw(4, seed=i) for i, k in enumerate("gcm")},
    }
    weights["v"] = draw(4, seed=8) ** 2 + 0.1
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 4, 6, 5))
    for shared in (False, True):
        conv = ["x", "w", *(["b"] if bias else [])]
        nodes = [
            helper.make_node("Conv", conv, ["y"], group=groups, pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
            helper.make_node("BatchNormalization", ["y", "g", "c", "m", "v"], ["n"], epsilon=1e-3),
            helper.make_node("Add", ["n", "y" if shared else "n"], ["z"]),
        ]
        out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
        stored = [numpy_helper.from_array(v, k) for k, v in weights.items() if bias or k != "b"]
        graph = helper.make_graph(nodes, "norm", [x], [out], stored)
        path = tmp_path / "norm.onnx"
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), str(path)
        )
        module, given = OnnxModule(path), draw(2, 4, 6, 5, seed=9)
        assert [kind for kind, *_ in module._nodes] == (
            ["Conv", "BatchNormalization", "Add"] if shared else ["Conv", "Add"]
        )
        (wanted,) = reference(path, given)
        np.testing.assert_allclose(module(torch.from_numpy(given)).numpy(), wanted, atol=1e-4)


def test_what_is_not_supported_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.onnx", "Erf", {}, (2, 3), 13)
    with pytest.raises(PackError, match=r"odd\.onnx: the ONNX operator Erf"):
        OnnxModule(path)
    path = write(tmp_path / "train.onnx", "BatchNormalization", STATISTICS, (2, 5), 15, training_mode=1)
    with pytest.raises(PackError, match="in training"):
        OnnxModule(path)(torch.zeros(2, 5))
    weights = {"q": np.zeros((4, 6), np.int8), "s": np.ones((4, 1), np.float32)}  # scales of 4 of 6 columns
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1, block_size=4)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 6))]
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    stored = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    nodes = [node, helper.make_node("Add", ["x", "w"], ["z"])]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "cut", inputs, outputs, stored)), tmp_path / "cut.onnx"
    )
    with pytest.raises(PackError, match=r"cut\.onnx: not a readable ONNX file"):
        OnnxModule(tmp_path / "cut.onnx")
    (tmp_path / "no.onnx").write_bytes(b"this is no protobuf")
    with pytest.raises(PackError, match=r"no\.onnx: not a readable ONNX file"):
        OnnxModule(tmp_path / "no.onnx")
