"""Independent judges: identity and head pose by networks that never guide a swap.

The files lie in ``packs/judges``; any other ONNX of the stated inputs will do. Landmarks are the five
of ``records``, in pixels of the picture given.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from ..errors import PackError
from ..stages.align import ARCFACE_TEMPLATE, estimate_similarity, warp
from ..stages.records import F32, F64, U8

# Eye centres and nose tip of dlib's 5-point chip, 150 px with a padding of a quarter.
DLIB_TEMPLATE: F64 = np.array([[49.3, 51.9], [100.5, 51.8], [74.9, 89.1]])
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


class Network:
    """An ONNX file of one input on the CPU, so that numbers don't depend on there being a GPU.

    By onnxruntime; where it is not installed (a machine for training, say), by torch, which agrees to
    rounding.
    """

    def __init__(self, path: Path) -> None:
        """Raises PackError if the file can't be loaded."""
        self._run: Callable[[F32], list[F32]]
        if importlib.util.find_spec("onnxruntime") is None:
            self._run = _by_torch(path)
        else:
            self._run = _by_onnxruntime(path)

    def __call__(self, x: F32 | F64) -> list[F32]:
        """All outputs, in the graph's order, for an input with its batch axis; it is taken as float32."""
        return self._run(np.ascontiguousarray(x, np.float32))


def _by_onnxruntime(path: Path) -> Callable[[F32], list[F32]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # As many threads as torch is told to use: by default each session takes every core for itself.
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's many
        raise PackError(f"{path}: can't be loaded as an ONNX judge: {error}") from error
    name = session.get_inputs()[0].name
    return lambda x: cast("list[F32]", session.run(None, {name: x}))


def _by_torch(path: Path) -> Callable[[F32], list[F32]]:
    import torch

    from ..stages.swap.onnx_torch import OnnxModule

    module = OnnxModule(path).eval()

    def run(x: F32) -> list[F32]:
        with torch.no_grad():
            found = module(torch.from_numpy(x))
        return [t.numpy() for t in (found if isinstance(found, tuple) else (found,))]

    return run


class IdentityJudge:
    """dlib's ResNet as ONNX: 150×150 RGB 0–255 → 128-d."""

    def __init__(self, path: Path) -> None:
        """Raises PackError if the file can't be loaded."""
        self._net = Network(path)

    def embed(self, picture: U8, landmarks: F32) -> F32:
        """Unit embedding (128,) of the face with these landmarks in (H, W, 3) uint8 RGB."""
        matrix = estimate_similarity(landmarks[:3], DLIB_TEMPLATE)
        x = warp(picture, matrix, 150).astype(np.float32).transpose(2, 0, 1)[None]
        e = self._net(x)[0].reshape(-1)
        return cast(F32, e / np.linalg.norm(e))


class PoseJudge:
    """Yaw, pitch, roll in degrees from 66-bin softmax heads, 224×224, ImageNet normalisation."""

    def __init__(self, path: Path) -> None:
        """Raises PackError if the file can't be loaded."""
        self._net = Network(path)

    def pose(self, picture: U8, landmarks: F32) -> F32:
        """(3,) degrees yaw, pitch, roll of the face with these landmarks (5, 2) in (H, W, 3) uint8 RGB.

        Positive: turned to the picture's left, up, and leaning clockwise as seen. The network sees the
        face upright (where it errs least); how far it was turned for that goes into the roll.
        """
        # The scale at which successive frames of one person jitter least (of 1.2, 1.45, 1.9 and 2.4).
        template = (ARCFACE_TEMPLATE - 56) * 1.9 + 112
        matrix = estimate_similarity(landmarks, template)
        x = warp(picture, matrix, 224).astype(np.float32) / 255
        x = (x - IMAGENET_MEAN) / IMAGENET_STD
        heads = self._net(x.transpose(2, 0, 1)[None])
        bins = np.arange(66)
        angles = []
        for head in heads[:3]:
            e = np.exp(head[0] - head[0].max())
            angles.append(float((e / e.sum() * bins).sum() * 3 - 99))
        angles[2] -= float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
        angles[2] = (angles[2] + 180) % 360 - 180
        return np.array(angles, np.float32)


def recovery(swapped: F64, unrelated: F64, same: F64) -> float:
    """(s_swap − s_unrelated) / (s_same − s_unrelated) from cosines; 0 unchanged, 1 as another photo.

    Raises:
        ValueError: the anchors coincide, so there is nothing between them to measure on.
    """
    low, high = float(np.mean(unrelated)), float(np.mean(same))
    if high == low:
        raise ValueError(f"recovery: s_same and s_unrelated are both {low}")
    return (float(np.mean(swapped)) - low) / (high - low)
