"""From a teacher's seven maps to class indices: sides, lips, islands.

Everything is measured along the face's own axes, from its five landmarks, so that a tilted head is
labelled as an upright one is.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from .shards import CLASSES, SIDE

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

_HAIR, _SKIN, _BROWS, _EYES, _NOSE, _LIPS, _MOUTH = range(7)  # the teacher's order
_SURE = 0.5  # below it in every map: background
_ISLAND = 60  # px²: smaller patches of hair, skin and background are noise
_SPECK = 6  # px²: the same of brows, eyes, nose, lips, mouth
_SMOOTH = (1.0, 1.0, 0.8, 0.0, 1.0, 0.6, 0.6)  # σ of each map, px
# How far a part's patch may lie from its landmark, in units of the distance between the eyes.
_REACH = {_BROWS: 0.75, _EYES: 0.45, _NOSE: 0.8, _LIPS: 0.75, _MOUTH: 0.65}


def label(image: U8, maps: F32, landmarks: F32) -> U8:
    """Class indices (256, 256) uint8 of a crop.

    Args:
        image: (256, 256, 3) uint8 RGB; where lips touch, the line between them is looked for in it.
        maps: (7, 256, 256) in [0, 1]: hair, skin, brows, eyes, nose, lips, mouth.
        landmarks: (5, 2) x, y in the crop.

    Raises:
        ValueError: shapes that do not fit.
    """
    if image.shape != (SIDE, SIDE, 3) or maps.shape != (7, SIDE, SIDE) or landmarks.shape != (5, 2):
        raise ValueError(f"got {image.shape}, {maps.shape} and {landmarks.shape}")
    kinds = _kinds(maps, landmarks)
    kinds[_dark_glasses(image, kinds, landmarks)] = -1
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[kinds == _HAIR] = CLASSES.index("hair")
    labels[kinds == _SKIN] = CLASSES.index("skin")
    labels[kinds == _NOSE] = CLASSES.index("nose")
    labels[kinds == _MOUTH] = CLASSES.index("mouth")
    for kind, part in ((_BROWS, "brow"), (_EYES, "eye")):
        left = _left(kinds == kind, landmarks)
        labels[(kinds == kind) & ~left] = CLASSES.index(f"right_{part}")
        labels[(kinds == kind) & left] = CLASSES.index(f"left_{part}")
    upper = _above_seam(image, kinds == _LIPS, kinds == _MOUTH, landmarks)
    labels[(kinds == _LIPS) & upper] = CLASSES.index("upper_lip")
    labels[(kinds == _LIPS) & ~upper] = CLASSES.index("lower_lip")
    return labels


def _kinds(maps: F32, landmarks: F32) -> NDArray[np.int8]:
    """The strongest map of each pixel, −1 = background; patches where they can't be are given away."""
    # The maps come from half the resolution and are stippled along hair; narrowed eyes are a pixel high.
    maps = np.stack(
        [m if s == 0 else cv2.GaussianBlur(m, (0, 0), s) for m, s in zip(maps, _SMOOTH, strict=True)]
    )
    known = maps.max(0) > _SURE
    left_over = maps.copy()
    for kind, reach in _REACH.items():
        patch = (known & (maps.argmax(0) == kind)).astype(np.uint8)
        count, patches = cv2.connectedComponents(patch, connectivity=8)
        for index in range(1, count):
            inside = patches == index
            if inside.sum() < _SPECK or _distance(inside, kind, landmarks) > reach:
                left_over[kind][inside] = -1
    kinds = np.where(known, left_over.argmax(0), -1).astype(np.int8)
    return _without_islands(kinds)


def _distance(patch: NDArray[np.bool_], kind: int, landmarks: F32) -> float:
    """From a patch's centre to the nearest landmark of its kind, in distances between the eyes."""
    eyes, nose, corners = landmarks[:2], landmarks[2], landmarks[3:]
    apart = max(float(np.linalg.norm(eyes[1] - eyes[0])), 1.0)
    down = (corners.mean(0) - eyes.mean(0)) / max(float(np.linalg.norm(corners.mean(0) - eyes.mean(0))), 1.0)
    anchors = {
        _BROWS: eyes - 0.3 * apart * down,
        _EYES: eyes,
        _NOSE: np.stack([nose, (nose + eyes.mean(0)) / 2]),
        _LIPS: corners.mean(0)[None],
        _MOUTH: corners.mean(0)[None],
    }[kind]
    centre = np.argwhere(patch).mean(0)[::-1]
    return float(np.linalg.norm(anchors - centre, axis=1).min()) / apart


def _dark_glasses(image: U8, kinds: NDArray[np.int8], landmarks: F32) -> NDArray[np.bool_]:
    """Lenses that hide the eyes; the teacher calls them skin.

    Around an eye of which the teacher saw nothing, what is much darker than the cheeks is a lens, if
    there is enough of it; the hull of it, since glasses mirror.
    """
    apart = float(np.linalg.norm(landmarks[1] - landmarks[0]))
    light = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    lenses = np.zeros((SIDE, SIDE), np.uint8)
    for eye, corner in ((0, 3), (1, 4)):
        cheek = (2 * landmarks[corner] + landmarks[eye]) / 3
        of_cheek = ((x - cheek[0]) ** 2 + (y - cheek[1]) ** 2 < (0.25 * apart) ** 2) & (kinds == _SKIN)
        around = (x - landmarks[eye][0]) ** 2 + (y - landmarks[eye][1]) ** 2 < (0.55 * apart) ** 2
        if of_cheek.sum() < 30 or (around & (kinds == _EYES)).sum() > 15:
            continue
        dark = around & np.isin(kinds, (_SKIN, -1)) & (light < 0.55 * float(np.median(light[of_cheek])))
        if dark.sum() < 0.3 * around.sum():
            continue
        opened = cv2.morphologyEx(dark.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
        _, patches, stats, _ = cv2.connectedComponentsWithStats(opened)
        if len(stats) > 1:
            patch = (patches == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)
            outline = cv2.findContours(patch, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0]
            cv2.fillConvexPoly(lenses, cv2.convexHull(outline), 1)
    return (lenses > 0) & ~np.isin(kinds, (_NOSE, _HAIR))


def _without_islands(kinds: NDArray[np.int8]) -> NDArray[np.int8]:
    """Small patches take the kind of the nearest pixel that is in none."""
    islands = np.zeros(kinds.shape, np.uint8)
    for kind in range(-1, 7):
        limit = _ISLAND if kind in (-1, _HAIR, _SKIN) else _SPECK
        of_kind = (kinds == kind).astype(np.uint8)
        _, patches, stats, _ = cv2.connectedComponentsWithStats(of_kind, connectivity=4)
        small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < limit)
        islands |= np.isin(patches, small[small > 0]).astype(np.uint8)
    if not islands.any() or islands.all():
        return kinds
    _, nearest = cv2.distanceTransformWithLabels(
        islands, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(int(nearest.max()) + 1, np.int8)
    firm = islands == 0
    of_label[nearest[firm]] = kinds[firm]
    return cast("NDArray[np.int8]", of_label[nearest])


def _left(mask: NDArray[np.bool_], landmarks: F32) -> NDArray[np.bool_]:
    """Which pixels of a part belong to the person's left.

    A patch belongs to the side on which most of it lies. Only where brows meet, in one patch across the
    midline (through the middle between the eyes, square to the line through them), they are cut along it.
    """
    right, left = landmarks[0], landmarks[1]
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    middle = (right + left) / 2
    beyond: NDArray[np.bool_] = (x - middle[0]) * (left - right)[0] + (y - middle[1]) * (left - right)[1] > 0
    result = beyond.copy()
    _, patches = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    areas = np.bincount(patches[mask]) if mask.any() else np.zeros(1, int)
    across = len(areas) > 1 and areas.max() > 0.8 * areas.sum()  # else there is a patch for either side
    for index in np.flatnonzero(areas):
        patch = patches == index
        share = float(beyond[patch].mean())
        if not (across and 0.25 < share < 0.75):
            result[patch] = share > 0.5
    return result


def _above_seam(
    image: U8, lips: NDArray[np.bool_], mouth: NDArray[np.bool_], landmarks: F32
) -> NDArray[np.bool_]:
    """Which pixels lie above the line where the lips meet, seen along the mouth's own axis."""
    right, left = landmarks[3], landmarks[4]
    centre = (right + left) / 2
    axis = (left - right) / max(float(np.linalg.norm(left - right)), 1e-3)
    # Crop → patch: the mouth upright in the middle, one pixel to one.
    half = 64
    turn = np.array([[axis[0], axis[1]], [-axis[1], axis[0]]], np.float32)
    matrix = np.hstack([turn, (half - turn @ centre)[:, None]])
    size = (2 * half + 1, 2 * half + 1)
    grey = cv2.warpAffine(
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), matrix, size, borderMode=cv2.BORDER_REPLICATE
    )
    red = cv2.warpAffine(lips.astype(np.uint8), matrix, size, flags=cv2.INTER_NEAREST) > 0
    gap = cv2.warpAffine(mouth.astype(np.uint8), matrix, size, flags=cv2.INTER_NEAREST) > 0
    seam = _seam(grey.astype(np.float32), red, gap)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    u = axis[0] * (x - centre[0]) + axis[1] * (y - centre[1]) + half
    v = -axis[1] * (x - centre[0]) + axis[0] * (y - centre[1]) + half
    return cast("NDArray[np.bool_]", v < np.interp(u, np.arange(size[0]), seam))


def _seam(grey: F32, lips: NDArray[np.bool_], gap: NDArray[np.bool_]) -> F32:
    """Height of the line between the lips in each column of an upright patch.

    In columns with an open mouth it is the opening's middle. Elsewhere it is the path of least
    brightness near the lips' middle, found by dynamic programming: closed lips meet in a shadow.
    At the corners of the lips it is their own middle.
    """
    side = grey.shape[0]
    whole = lips | gap
    columns = np.flatnonzero(whole.any(0))
    if not len(columns):
        return np.full(side, side // 2, np.float32)
    rows = np.arange(side, dtype=np.float32)[:, None]
    top = np.where(whole.any(0), whole.argmax(0), 0)
    bottom = np.where(whole.any(0), side - 1 - whole[::-1].argmax(0), 0)
    middle = top + 0.45 * (bottom - top)  # the upper lip is the thinner
    height = np.maximum(bottom - top, 1)
    # 0 … 1 between the darkest and the brightest of a column's lips, plus the distance from the middle.
    soft = cv2.GaussianBlur(grey, (0, 0), 1.0)
    low = np.where(whole, soft, np.inf).min(0)
    high = np.where(whole, soft, -np.inf).max(0)
    with np.errstate(invalid="ignore"):
        dark = np.where(whole, (soft - low) / np.maximum(high - low, 16), 1)
    cost = dark + 4 * ((rows - middle) / height) ** 2 + 10 * ~whole
    has_gap = gap.any(0)
    first, last = gap.argmax(0), side - 1 - gap[::-1].argmax(0)
    opening = (first + last) / 2
    cost = np.where(has_gap, ((rows - opening) / 2) ** 2, cost)[:, columns[0] : columns[-1] + 1]
    # An end of the lips is a corner: the seam starts in its middle.
    for end, column in ((0, columns[0]), (-1, columns[-1])):
        cost[:, end] = (rows[:, 0] - (top[column] + bottom[column]) / 2) ** 2
    path = _cheapest_path(cost)
    seam = np.interp(np.arange(side), np.arange(columns[0], columns[-1] + 1), path)
    return cast(
        F32, cv2.GaussianBlur(seam.astype(np.float32)[None], (0, 0), 1.5, borderType=cv2.BORDER_REPLICATE)[0]
    )


def _cheapest_path(cost: NDArray[np.floating]) -> NDArray[np.int64]:
    """The row of each column on the path of least cost from left to right, at most 2 rows a column."""
    steps = (0, -1, 1, -2, 2)
    height, width = cost.shape
    total = cost[:, 0].astype(np.float64)
    came = np.zeros((width, height), np.int64)
    for column in range(1, width):
        options = np.full((len(steps), height), np.inf)
        for index, step in enumerate(steps):
            inside = slice(max(0, -step), height - max(0, step))
            shifted = slice(max(0, step), height + min(0, step))
            options[index, inside] = total[shifted] + 0.05 * abs(step)
        best = options.argmin(0)
        came[column] = np.arange(height) + np.array(steps)[best]
        total = options.min(0) + cost[:, column]
    path = np.zeros(width, np.int64)
    path[-1] = total.argmin()
    for column in range(width - 1, 0, -1):
        path[column - 1] = came[column, path[column]]
    return path
