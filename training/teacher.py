"""Labels by a teacher: MediaPipe-like maps of seven kinds → the eleven classes of ``shards``.

The teacher is a TFLite file that does not ship, given by flag: 256×256 RGB in [−1, 1] → sigmoid maps of
hair, skin, brows, eyes, nose, lips, mouth. It is converted to ONNX when it is opened (``tflite_onnx``).
Against LiteRT 2.3, which rounds activations to 8 bits where weights have 8, the maps differ by 0.0001 on
average over 16 faces (LiteRT with and without XNNPACK by 0.0003); single pixels on edges flip.

It is asked about the picture and its mirror image and the maps are averaged, so that a mirrored face gets
mirrored labels. What is beyond it, sides and lips, is geometry: see ``prepare_regions``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ..errors import InputError, SettingsError
from .shards import SIDE

MAPS = ("hair", "skin", "brows", "eyes", "nose", "lips", "mouth")

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


class Teacher:
    """The seven maps of a crop."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    @classmethod
    def open(cls, path: Path, threads: int = 1) -> Teacher:
        """Convert and load the TFLite file.

        Raises:
            InputError: it can't be read, or isn't a network from 256×256 RGB to seven maps.
            SettingsError: the package ``tflite`` is not installed.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"--teacher {path}: {error.strerror}") from error
        try:
            model = _convert(content)
        except ImportError as error:
            raise SettingsError("--teacher needs the package tflite: pip install tflite") from error
        except Exception as error:  # flatbuffers reads whatever bytes there are, and fails anyhow
            raise InputError(f"--teacher {path}: not a parser this can convert ({error})") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return cls(onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]))

    def __call__(self, image: U8) -> F32:
        """Crop (256, 256, 3) uint8 RGB → maps (7, 256, 256) float32 in [0, 1], in ``MAPS``' order."""
        if image.shape != (SIDE, SIDE, 3) or image.dtype != np.uint8:
            raise ValueError(f"the crop must be ({SIDE}, {SIDE}, 3) uint8, got {image.shape} {image.dtype}")
        planes = image.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1
        both = np.stack([planes, planes[..., ::-1]])
        here, mirrored = self._session.run(["maps"], {"picture": both})[0]
        maps: F32 = (here + mirrored[..., ::-1]) / 2
        return maps


def _convert(content: bytes) -> bytes:
    from onnx import helper

    from .tflite_onnx import Converter  # needs the package tflite

    converter = Converter(content)
    converter.walk()
    entry, outputs = converter.ends()
    if [converter.shape(i)[1:] for i in outputs] != [[SIDE, SIDE, len(MAPS)]]:
        raise ValueError(f"its outputs are {[converter.shape(i) for i in outputs]}")
    converter.nodes = [
        helper.make_node("Identity", ["picture"], [entry]),
        *converter.nodes,
        helper.make_node("Identity", [f"t{outputs[0]}"], ["maps"]),
    ]
    model = converter.model_of(
        "teacher",
        {"picture": ["n", 3, SIDE, SIDE]},
        {"maps": ["n", len(MAPS), SIDE, SIDE]},
        "a face parser, converted by training/tflite_onnx.py",
    )
    return bytes(model.SerializeToString())
