"""Head pose by Hopenet (Ruiz et al. 2018), the pose network of the paper's Table 1, as facexlib has it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from facexlib.headpose.hopenet_arch import HopeNet

from ..stages.align import warp
from ..stages.records import F32, F64, U8
from ..stages.swap.loaders import load_state, naming
from .judge import IMAGENET_MEAN, IMAGENET_STD

SIDE = 224
CROP = 3.1  # the crop's side, in face units (see ``head_crop``)
BELOW = 0.35  # its centre below the eyes, likewise
MOUTH = 1.157  # from the eyes down to the mouth, likewise (ArcFace's template: 40.7 of 35.2 pixels)


def head_crop(landmarks: F32) -> F64:
    """The upright square of a head as Hopenet was trained on it, (2, 3): picture → ``SIDE`` pixels.

    Its training crops were the box of 68 landmarks, grown by 0.21 of the width to the left and 0.25 to the
    right, 0.7 of the height above and 0.36 below; the short side, the width, was scaled to 240 pixels and
    224 of them cut out. In frontal eye distances such a box is about 2.3 wide, 2.1 high and begins 0.35 above
    the eyes: squares of 3.1, centred 0.35 below the eyes. Their edges are the picture's: roll is measured.

    Args:
        landmarks: (5, 2) in pixels. The unit is read from eyes and mouth, whichever says more: turning
            shortens one, nodding the other.
    """
    points = landmarks.astype(np.float64)
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    unit = max(float(np.hypot(*(points[1] - points[0]))), float(np.hypot(*(mouth - eyes))) / MOUTH, 1e-3)
    scale = SIDE / (CROP * unit)
    # Midway between eyes and mouth sideways, where a turn moves it least.
    centre = np.array([(eyes[0] + mouth[0]) / 2, eyes[1] + BELOW * unit])
    return np.hstack([scale * np.eye(2), ((SIDE - 1) / 2 - scale * centre)[:, None]])


class HopenetPose:
    """Yaw, pitch, roll by ``headpose_hopenet.pth``; the interface of ``judge.PoseJudge``.

    Raises:
        PackError: a file that is not Hopenet's weights (a state dict under ``params``).
    """

    def __init__(self, path: Path) -> None:
        self._net = HopeNet("resnet", [3, 4, 6, 3], 66)
        with naming(path):
            self._net.load_state_dict(load_state(path, "params"))
        self._net.eval().requires_grad_(False)

    def pose(self, picture: U8, landmarks: F32) -> F32:
        """(3,) degrees yaw, pitch, roll in [−99, 99] of the face in (H, W, 3) uint8 RGB.

        ``landmarks`` (5, 2) in its pixels, order as in ``records``. Signs are 300W-LP's.
        """
        x = warp(picture, head_crop(landmarks), SIDE).astype(np.float32) / 255
        x = ((x - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)[None]
        with torch.no_grad():
            angles = self._net(torch.from_numpy(np.ascontiguousarray(x)))
        return cast(F32, torch.cat(angles).numpy().astype(np.float32))
