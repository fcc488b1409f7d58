"""What is measured of one pair: a face of each picture, and the differences that make the table.

Landmarks are the five of ``records``, in pixels of the picture they come with. A swap keeps the
target's geometry, so a swapped picture of the target's size is judged at the target's own landmarks:
what differs is then the face and not the detector's opinion of where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ..stages.align import ARCFACE_TEMPLATE, estimate_similarity, warp
from ..stages.records import F32, U8
from .expression import expression_error
from .pixels import background_psnr
from .skin import SkinDifference

if TYPE_CHECKING:
    from .judges import Judges

EDGE = 5  # pixels around the mask that count as inside: what a filter or a rounding there may reach
Embed = Callable[[U8], F32]


@dataclass(frozen=True, slots=True)
class Face:
    """One face as the networks see it.

    ``guiding`` (D,) and ``identity`` (J,) are unit embeddings by the network that guides and by the
    judge; ``pose`` (3,) yaw, pitch, roll in degrees; ``expression`` (E,) in the judge's own units.
    """

    guiding: F32
    identity: F32
    pose: F32
    expression: F32


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one pair and variant; None where something it needs was not given.

    Cosines in [−1, 1]: ``identity_guiding`` and ``identity`` of source and swapped by the guiding network
    and by the judge; ``unrelated`` of source and target, ``same`` of source and another picture of that
    person, both by the judge. ``pose`` in degrees, ``expression`` in the judge's units, ``psnr`` in dB,
    ``landmark`` in per cent of the eye distance, ``delta_e`` and ``delta_e_cast`` in CIEDE2000; ``ita`` is
    the typology angle of the target's skin, in degrees.
    """

    identity_guiding: float
    identity: float
    unrelated: float
    pose: float
    expression: float
    same: float | None = None
    psnr: float | None = None
    landmark: float | None = None
    delta_e: float | None = None
    delta_e_cast: float | None = None
    ita: float | None = None

    @property
    def recovery(self) -> float | None:
        """(s_swap − s_unrelated) / (s_same − s_unrelated) of this pair alone; None without ``same`` or
        where the anchors coincide."""
        if self.same is None or abs(self.same - self.unrelated) < 1e-6:
            return None
        return (self.identity - self.unrelated) / (self.same - self.unrelated)


def measure_face(picture: U8, landmarks: F32, judges: Judges, embed: Embed) -> Face:
    """All judges on the face with these landmarks (5, 2) in (H, W, 3) uint8 RGB.

    ``embed`` is the guiding network: ArcFace-aligned (1, 112, 112, 3) uint8 RGB → unit (1, D).
    """
    crop = warp(picture, estimate_similarity(landmarks, ARCFACE_TEMPLATE), 112)
    return Face(
        guiding=embed(crop[None])[0],
        identity=judges.identity.embed(picture, landmarks),
        pose=judges.pose.pose(picture, landmarks),
        expression=judges.expression(picture, landmarks),
    )


def compare(
    source: Face,
    target: Face,
    swapped: Face,
    *,
    same: float | None = None,
    psnr: float | None = None,
    landmark: float | None = None,
    skin: SkinDifference | None = None,
    ita: float | None = None,
) -> Figures:
    """The figures of a pair (§5.1 of the paper; recovery's anchors, and what has a default, are ours)."""
    return Figures(
        identity_guiding=float(source.guiding @ swapped.guiding),
        identity=float(source.identity @ swapped.identity),
        unrelated=float(source.identity @ target.identity),
        pose=pose_error(swapped.pose, target.pose),
        expression=expression_error(swapped.expression, target.expression),
        same=same,
        psnr=psnr,
        landmark=landmark,
        delta_e=None if skin is None else skin.mean,
        delta_e_cast=None if skin is None else skin.cast,
        ita=ita,
    )


def landmark_error(swapped: F32, target: F32) -> float:
    """Mean distance of the five landmarks (5, 2) in per cent of the target's eye distance; 0 is the same.

    Both as a detector finds them, each in its own picture, in pixels of pictures that coincide.

    Raises:
        ValueError: arrays that are not (5, 2), or eyes that coincide.
    """
    if swapped.shape != (5, 2) or target.shape != (5, 2):
        raise ValueError(f"landmarks must both be (5, 2), got {swapped.shape} and {target.shape}")
    a, b = swapped.astype(np.float64), target.astype(np.float64)
    gap = float(np.linalg.norm(b[1] - b[0]))
    if gap == 0:
        raise ValueError("the target's eyes coincide: there is no unit to measure landmarks in")
    return 100 * float(np.linalg.norm(a - b, axis=1).mean()) / gap


def pose_error(a: F32, b: F32) -> float:
    """L2 distance in degrees of two (yaw, pitch, roll); angles are taken the short way round."""
    difference = (a.astype(np.float64) - b + 180) % 360 - 180
    return float(np.linalg.norm(difference))


def outside_of(mask: F32, edge: int = EDGE) -> NDArray[np.bool_]:
    """Where a swap had no business: the pixels (H, W) at least ``edge`` from any with mask > 0."""
    kernel = np.ones((2 * edge + 1, 2 * edge + 1), np.uint8)
    return cast("NDArray[np.bool_]", cv2.dilate((mask > 0).astype(np.uint8), kernel) == 0)


def outside_psnr(original: U8, swapped: U8, mask: F32, edge: int = EDGE) -> float | None:
    """PSNR in dB outside the mask (H, W); None if the sizes differ or the mask leaves nothing."""
    if original.shape != swapped.shape or mask.shape != original.shape[:2]:
        return None
    outside = outside_of(mask, edge)
    return background_psnr(original, swapped, outside) if outside.any() else None
