"""The judges' arithmetic; the judges themselves are not part of the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ldvid.metrics.judge import IdentityJudge, PoseJudge, recovery
from ldvid.stages.records import SourceFace

JUDGES = Path(__file__).resolve().parents[2] / "shared/judges"


def test_recovery_is_0_for_unchanged_and_1_for_another_photo() -> None:
    low, high = np.array([0.8, 0.82]), np.array([0.95, 0.97])
    assert recovery(low, low, high) == 0
    assert recovery(high, low, high) == 1
    assert recovery((low + high) / 2, low, high) == pytest.approx(0.5)


@pytest.mark.shared
def test_the_identity_judge_knows_a_mirrored_face(faces: tuple[SourceFace, SourceFace]) -> None:
    judge = IdentityJudge(JUDGES / "dlib_resnet_128d_rgb150.onnx")
    one, other = faces
    mirrored = np.ascontiguousarray(one.image[:, ::-1])
    points = one.landmarks[[1, 0, 2, 4, 3]] * np.float32([-1, 1]) + np.float32([255, 0])
    own = judge.embed(one.image, one.landmarks)
    assert np.linalg.norm(own) == pytest.approx(1, abs=1e-5)
    assert own @ judge.embed(mirrored, points) > own @ judge.embed(other.image, other.landmarks) + 0.1


@pytest.mark.shared
def test_the_pose_judge_turns_with_the_picture(faces: tuple[SourceFace, SourceFace]) -> None:
    judge = PoseJudge(JUDGES / "fr_pose.onnx")
    face = faces[0]
    mirrored = np.ascontiguousarray(face.image[:, ::-1])
    points = face.landmarks[[1, 0, 2, 4, 3]] * np.float32([-1, 1]) + np.float32([255, 0])
    yaw, pitch, roll = judge.pose(face.image, face.landmarks)
    other = judge.pose(mirrored, points)
    assert abs(yaw + other[0]) < 5 and abs(pitch - other[1]) < 5 and abs(roll + other[2]) < 5
