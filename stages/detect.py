"""Detection: faces with five landmarks in one picture.

Two networks behind one interface, chosen by the pack: YuNet (OpenCV's own, small, CPU) and SCRFD
(insightface's ONNX files), both by onnxruntime. Coordinates follow ``records``: pixel centres, the
person's right eye first. A detector is a pure function of the picture: same pixels, same numbers,
whatever came before and however many threads there are.

Both networks see faces turned by up to about 50°. Beyond that the picture is looked at turned by 90°
to either side (``turned``), where fewer faces than expected, or an unsure one, were found upright.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

import cv2
import numpy as np

from ..errors import PackError
from .align import ARCFACE_TEMPLATE, apply_points, estimate_similarity, invert, warp
from .records import F32, F64, U8, Detection
from .swap.pack import Pack
from .turned import Found, overlap, quarter_back, sort_out
from .yunet import YuNetNetwork

LONG_SIDE = 640  # of the picture the network sees: YuNet's best range, faces of about 12 to 350 px
LARGE, SMALL_SIDE = 0.45, 256  # faces above this share of the long side are looked for at this size
FAR = 0.5  # larger pictures are looked at at this share of their side too: eyes 24 px apart become 12
FAR_SIDE = 1920  # but not larger than this
FINE_SIDE = 1280  # another look, only where there was nobody yet
SURE = 0.9  # score of faces within 30° of upright; lying ones that are found nevertheless stay below it
REFINED = 8  # faces per frame whose landmarks are measured a second time


class Detector(Protocol):
    """Finds faces."""

    def detect(self, rgb: U8, least: int = 1) -> list[Detection]:
        """Faces of an upright (H, W, 3) uint8 RGB picture, largest box first; may be empty.

        Boxes may reach beyond the picture where a face does. Where fewer than ``least`` are found, or
        an unsure one, the picture is also looked at turned by 90° to either side.
        """
        ...


def open_detector(pack: Pack, threshold: float) -> Detector:
    """The detector a pack names; faces scoring below ``threshold`` (0–1) are left out.

    Raises:
        PackError: a network that can't be loaded, or onnxruntime missing where it is needed.
    """
    entry = pack.manifest.detector
    path = pack.path(entry.file)
    try:
        if entry.kind == "yunet":
            return YuNet(path, threshold)
        from .scrfd import Scrfd  # needs onnxruntime

        return Scrfd.open(path, threshold)
    except PackError:
        raise
    except Exception as error:  # cv2.error, and onnxruntime's many
        raise PackError(f"{path}: can't be loaded as {entry.kind}: {error}") from error


def by_area(found: list[Detection]) -> list[Detection]:
    """Largest box first; ties by score, then from left to right."""
    return sorted(found, key=lambda d: (-d.area, -d.score, float(d.box[0]), float(d.box[1])))


class YuNet:
    """YuNet (``yunet``).

    The picture is scaled to ``LONG_SIDE``, down or up. The network places landmarks with an
    error of a few per cent of the eye distance that depends on the face's size in its input and on
    how it falls on its grid. Each face is therefore measured again on upright views of three fixed
    sizes, as they are and mirrored, and the answers are averaged: half the jitter, less bias, for
    about 13 ms a face.
    """

    # (side of the face, side of the view): the three that did best together on jitter and bias.
    _VIEWS = ((80, 128), (144, 224), (176, 288))

    def __init__(self, path: Path, threshold: float) -> None:
        self._threshold = threshold
        self._run = YuNetNetwork(path)

    def detect(self, rgb: U8, least: int = 1) -> list[Detection]:
        """See ``Detector.detect``."""
        check_picture(rgb)
        bgr = cast(U8, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        rows = self._look(bgr, 0)
        if not len(rows):
            rows = self._scaled(bgr, FINE_SIDE)
        found = [_face(r, 0) for r in rows]
        if len(found) < least or any(f.face.score < SURE for f in found):
            found += [_face(r, quarter) for quarter in (1, 3) for r in self._look(bgr, quarter)]
        chosen = sort_out(found)
        sideways = {id(f.face) for f in chosen if f.quarter}
        faces = []
        for i, face in enumerate(by_area([f.face for f in chosen])):
            refined = self._refine(bgr, face) if i < REFINED else None
            # Turned pictures show faces that are none: only those that are seen again upright count.
            if refined is not None or id(face) not in sideways:
                faces.append(face if refined is None else refined)
        return faces

    def _look(self, bgr: U8, quarter: int) -> F32:
        """Faces of all sizes in the picture turned by ``quarter`` × 90°; rows as ``_scaled``."""
        long_side = max(bgr.shape)
        rows = self._scaled(bgr, LONG_SIDE, quarter)
        if long_side * FAR > LONG_SIDE:
            rows = _joined(rows, self._scaled(bgr, round(min(long_side * FAR, FAR_SIDE)), quarter))
        # A face that fills the network's view is found in pieces, or not at all: step back.
        if not len(rows) or (rows[:, 2:4] - rows[:, :2]).max() > LARGE * long_side:
            rows = _joined(self._scaled(bgr, SMALL_SIDE, quarter), rows)
        return rows

    def _scaled(self, bgr: U8, long_side: int, quarter: int = 0) -> F32:
        """Rows of XYXY box, five points, score, in pixels of the whole upright picture; (N, 15)."""
        small, factor = _resize_long(bgr, long_side)
        turned = np.ascontiguousarray(np.rot90(small, quarter)) if quarter else small
        rows = self._run(turned).copy()
        rows = rows[(rows[:, 14] >= self._threshold) & np.isfinite(rows).all(1)]
        rows[:, 2:4] += rows[:, 0:2]
        points = quarter_back(rows[:, :14].reshape(-1, 7, 2), quarter, small.shape)
        rows[:, :14] = scale_back(points, factor).reshape(-1, 14)
        corners = rows[:, :4].reshape(-1, 2, 2).copy()
        rows[:, :2], rows[:, 2:4] = corners.min(1), corners.max(1)
        return rows

    def _refine(self, bgr: U8, found: Detection) -> Detection | None:
        """The same face with its landmarks measured on upright views of standard sizes; None where they
        don't show it."""
        side = float(np.sqrt(found.area))
        if side < 4:
            return None
        # Only the neighbourhood is warped: the low-pass before it costs as much as its area.
        centre, reach = (found.box[:2] + found.box[2:]) / 2, 2 * side + 16
        low = np.floor(np.clip(centre - reach, 0, None)).astype(int)
        high = np.ceil(np.clip(centre + reach, 0, None)).astype(int)
        part = bgr[low[1] : high[1], low[0] : high[0]]
        if not part.size:
            return None
        points: F32 | None = found.landmarks
        # The network sees less roll than there is: turning the face upright takes two rounds.
        for views in (self._VIEWS[:1], self._VIEWS[:2], self._VIEWS):
            answers = [self._measure(part, cast(F32, points) - low, *view) for view in views]
            if any(a is None for a in answers):  # a mean over fewer would jump against its neighbours
                return None
            points = (np.mean(cast(list[F32], answers), 0) + low).astype(np.float32)
            if np.abs(points - found.landmarks).max() > 0.3 * side:  # that was somebody else
                return None
        return Detection(found.box, cast(F32, points), found.score)

    def _measure(self, part: U8, points: F32, side: int, canvas: int) -> F32 | None:
        """Landmarks on one view in which those given are upright, with its mirror image's."""
        middle = (canvas - 1) / 2
        # A YuNet box is 84.6 of the template's units wide and high, and centred on (56, 68).
        template = (ARCFACE_TEMPLATE - [56, 68]) * (side / 84.6) + middle
        matrix = estimate_similarity(points.astype(np.float64), template)
        view = warp(part, matrix, canvas)
        here, mirrored = self._nearest(view), self._nearest(np.ascontiguousarray(view[:, ::-1]))
        if here is None or mirrored is None:
            return None
        mirrored = mirrored[[1, 0, 2, 4, 3]]
        mirrored[:, 0] = canvas - 1 - mirrored[:, 0]
        return apply_points(invert(matrix), (here + mirrored) / 2)

    def _nearest(self, view: U8) -> F64 | None:
        """The five points of the face nearest the middle of a square view."""
        rows = self._run(view)
        if not len(rows):
            return None
        off = rows[:, :2] + rows[:, 2:4] / 2 - (view.shape[0] - 1) / 2
        return cast(F64, rows[int(np.argmin((off**2).sum(1))), 4:14].reshape(5, 2).astype(np.float64))


def _face(row: F32, quarter: int) -> Found:
    """A row of ``_scaled`` as a face."""
    points = row[4:14].reshape(5, 2).astype(np.float32)
    return Found(Detection(row[:4].astype(np.float32), points, min(1.0, float(row[14]))), quarter)


def _joined(rows: F32, more: F32) -> F32:
    """All of the first, and of the others those that are elsewhere."""
    apart = [r for r in more if all(overlap(r[:4], known[:4]) < 0.1 for known in rows)]
    return np.concatenate([rows, np.array(apart, np.float32).reshape(-1, 15)])


def _resize_long(picture: U8, long_side: int) -> tuple[U8, tuple[float, float]]:
    """The picture at this long side, and the factors in x and y that were really applied."""
    height, width = picture.shape[:2]
    factor = long_side / max(height, width)
    w, h = max(1, round(width * factor)), max(1, round(height * factor))
    mode = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    small = picture if (w, h) == (width, height) else cv2.resize(picture, (w, h), interpolation=mode)
    return cast(U8, small), (w / width, h / height)


def scale_back(points: F32, factors: tuple[float, float]) -> F32:
    """Points (..., 2) of a resized picture in pixels of the original.

    ``cv2.resize`` keeps the picture's edges in place, so the centres of pixels shift.
    """
    return cast(F32, ((points + 0.5) / np.array(factors) - 0.5).astype(np.float32))


def check_picture(rgb: U8) -> None:
    """ValueError unless this is an (H, W, 3) uint8 picture with pixels in it."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or not rgb.size:
        raise ValueError(f"a picture must be (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
