"""Expression as geometry: named measures on a face mesh turned to the front.

The paper compares the expression parameters of a 3D morphable model (its Table 1); here the parameters
have names. The mesh is turned, scaled and shifted so that its eyes and nose, which expressions hardly
move, fit MediaPipe's canonical face; then distances are taken, in per cent of the distance between the
eye centres. Right and left are the person's own; x runs to the person's left, y down, z away.

People's faces differ too, and a swap is meant to change that. So in the error each measure counts as
much as it tells of expression: its weight is the ratio of two standard deviations, within one person who
talks (four clips) and between people (104), in tenths, at most 1 (``benchmarks/judge_noise.py``).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from ..stages.records import F32, F64

WEIGHTS: Final[dict[str, float]] = {
    "right_eye_opening": 0.8,
    "left_eye_opening": 0.8,
    "right_brow_inner": 0.3,
    "left_brow_inner": 0.3,
    "right_brow_outer": 0.4,
    "left_brow_outer": 0.4,
    "mouth_opening": 1.0,
    "mouth_width": 0.7,
    "right_corner_lift": 0.8,
    "left_corner_lift": 0.8,
    "mouth_shift": 0.6,
    "lip_protrusion": 0.7,
    "upper_lip_raise": 0.5,
    "jaw_drop": 0.9,
}
FEATURES: Final[tuple[str, ...]] = tuple(WEIGHTS)

# Vertices of the rigid fit and where the canonical face (Apache-2.0) has them; x right, y down, z away.
_RIGID: Final[dict[int, tuple[float, float, float]]] = {
    4: (0, 0.463170, -7.586580),  # nose: tip, then up its ridge
    5: (0, -0.365669, -7.242870),
    195: (0, -1.059413, -6.774605),
    197: (0, -1.728369, -6.316750),
    6: (0, -2.473255, -5.788627),
    168: (0, -3.271027, -5.236015),
    129: (-1.785794, 0.978284, -4.850470),  # wings
    358: (1.785794, 0.978284, -4.850470),
    33: (-4.445859, -2.663991, -3.173422),  # eye corners, from right to left
    133: (-1.856432, -2.585245, -3.757904),
    362: (1.856432, -2.585245, -3.757904),
    263: (4.445859, -2.663991, -3.173422),
}
# Right, left: outer and inner eye corner, lids (upper, lower), brow ends, mouth corner.
_CORNERS = ((33, 133), (263, 362))
_LIDS = (((160, 144), (159, 145), (158, 153)), ((387, 373), (386, 374), (385, 380)))
_BROWS = (((107, 55), (70, 46)), ((336, 285), (300, 276)))
_MOUTH_CORNERS = (61, 291)
_INNER_LIPS = ((13, 14), (82, 87), (312, 317))
_OUTER_LIPS = (0, 17)
_NOSE_BASE, _CHIN = 2, 152


def frontal(points: F32) -> F64:
    """The mesh (468, 3) turned to the front: units of the eye distance, centred as the canonical face.

    The least-squares similarity in space (Umeyama 1991) of the rigid vertices.
    """
    rows = list(_RIGID)
    target = np.array([_RIGID[v] for v in rows])
    source = np.asarray(points[rows], np.float64)
    a, b = source - source.mean(0), target - target.mean(0)
    left, _, right = np.linalg.svd(a.T @ b)
    proper = np.diag([1, 1, np.sign(np.linalg.det(left @ right))])  # a rotation, never a reflection
    turned = (points - source.mean(0)) @ (left @ proper @ right)
    eyes = [turned[list(pair)].mean(0) for pair in _CORNERS]
    result: F64 = turned / np.linalg.norm(eyes[1] - eyes[0])
    return result


def expression(points: F32) -> F32:
    """The measures ``FEATURES`` (E,) of a mesh (468, 3), in per cent of the eye distance.

    Openings and widths are distances; brows are above the eye's corner; corner lift is the height of a
    mouth corner above the middle of the inner lips; mouth shift is its corners' middle to the person's
    left of the nose; lip protrusion is how far the lips' middle lies before its corners; upper lip raise
    is minus the distance from the nose's base to the lip; jaw drop is from there to the chin.
    """
    q = 100 * frontal(points)

    def apart(a: int, b: int) -> float:
        return float(np.linalg.norm(q[a] - q[b]))

    def mean(vertices: tuple[int, ...], axis: int) -> float:
        return float(q[list(vertices), axis].mean())

    values: dict[str, float] = {}
    for name, corners, lids, brows, end in zip(
        ("right", "left"), _CORNERS, _LIDS, _BROWS, _MOUTH_CORNERS, strict=True
    ):
        values[f"{name}_eye_opening"] = float(np.mean([apart(*pair) for pair in lids]))
        values[f"{name}_brow_inner"] = mean((corners[1],), 1) - mean(brows[0], 1)
        values[f"{name}_brow_outer"] = mean((corners[0],), 1) - mean(brows[1], 1)
        values[f"{name}_corner_lift"] = mean((13, 14), 1) - mean((end,), 1)
    values["mouth_opening"] = float(np.mean([apart(*pair) for pair in _INNER_LIPS]))
    values["mouth_width"] = apart(*_MOUTH_CORNERS)
    values["mouth_shift"] = mean(_MOUTH_CORNERS, 0) - mean((4, 195, 6), 0)
    values["lip_protrusion"] = mean(_MOUTH_CORNERS, 2) - mean(_OUTER_LIPS, 2)
    values["upper_lip_raise"] = mean((_NOSE_BASE,), 1) - mean((0,), 1)
    values["jaw_drop"] = mean((_CHIN,), 1) - mean((_NOSE_BASE,), 1)
    return np.array([values[name] for name in FEATURES], np.float32)


def expression_error(a: F32, b: F32) -> float:
    """Weighted L2 distance of two expressions (E,), in per cent of the eye distance; 0 is the same.

    Raises:
        ValueError: arrays that are not (E,).
    """
    if a.shape != (len(FEATURES),) or b.shape != a.shape:
        raise ValueError(f"expressions must both be ({len(FEATURES)},), got {a.shape} and {b.shape}")
    weights = np.array(list(WEIGHTS.values()))
    return float(np.linalg.norm(weights * (np.asarray(a, np.float64) - b)))


def mirrored(values: F32) -> F32:
    """The expression (E,) of the mirror image: sides exchanged, the shift to the other side."""
    other = {"right": "left", "left": "right"}
    names = ["_".join(other.get(word, word) for word in name.split("_")) for name in FEATURES]
    result = values[[FEATURES.index(name) for name in names]].copy()
    result[FEATURES.index("mouth_shift")] *= -1
    return result
