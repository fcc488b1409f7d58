"""Debug overlay: what the pipeline knew, drawn on its finished pictures.

A box, a number and five landmarks for every tracked face, the outline of what was pasted, and on every
frame a banner that says what this is: such a picture is for looking at, never for delivery. Drawn after
the paste, so that nothing underneath changes; what is drawn counts as touched, so that it is encoded.

Lines are as thick and letters as tall as the picture's size asks for. A pure function of the plan and the
frame: the same bytes wherever a segment ends.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from . import Resources
from .records import F32, U8, ClipInfo, Frame, Track

Colour = tuple[int, int, int]
Picture = TypeVar("Picture", U8, F32)

# Told apart on skin, by light and dark too; a track that stays as it is is grey.
COLOURS: Final[tuple[Colour, ...]] = (
    (90, 220, 255), (255, 205, 60), (140, 255, 120), (255, 130, 215), (255, 150, 80), (170, 170, 255),
)  # fmt: skip
LEFT_ALONE: Final[Colour] = (200, 200, 200)
OUTLINE: Final[Colour] = (255, 255, 255)
BANNER: Final = "DEBUG OVERLAY - NOT FOR DELIVERY"
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SHIFT = 3  # binary digits after the point that drawing is given


@dataclass(frozen=True, slots=True)
class Marked:
    """A face to draw: ``box`` (4,) XYXY and ``landmarks`` (5, 2) in pixels of the frame."""

    label: str
    box: F32
    landmarks: F32
    colour: Colour


def marked(name: str, box: F32, landmarks: F32, score: float, number: int | None) -> Marked:
    """A face with its name and detection score; ``number`` chooses the colour, None is left alone."""
    words = f"{name}  {score:.2f}" + ("" if number is not None else "  left alone")
    colour = LEFT_ALONE if number is None else COLOURS[number % len(COLOURS)]
    return Marked(words, box, landmarks, colour)


class _Ink:
    """A layer to draw on: bright lines, each on a dark halo, so that they show on anything."""

    def __init__(self, height: int, width: int) -> None:
        self.rgb, self.cover = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
        self.unit = max(1, round(min(height, width) / 360))

    def _points(self, points: F32) -> list[NDArray[np.int32]]:
        return [np.round(points * (1 << _SHIFT)).astype(np.int32)]

    def line(self, points: F32, colour: Colour, *, closed: bool = True) -> None:
        """Through points (N, 2)."""
        path = self._points(points)
        wide = 3 * self.unit
        cv2.polylines(self.rgb, path, closed, (0, 0, 0), wide, cv2.LINE_8, _SHIFT)
        cv2.polylines(self.cover, path, closed, 255, wide, cv2.LINE_8, _SHIFT)
        cv2.polylines(self.rgb, path, closed, colour, self.unit, cv2.LINE_AA, _SHIFT)

    def dot(self, point: F32, colour: Colour) -> None:
        """At (2,)."""
        (at,) = self._points(point)
        centre = (int(at[0]), int(at[1]))
        for layer, radius, value in (
            (self.cover, 3 * self.unit, (255,)),
            (self.rgb, 3 * self.unit, (0, 0, 0)),
            (self.rgb, 2 * self.unit, colour),
        ):
            cv2.circle(layer, centre, radius << _SHIFT, value, -1, cv2.LINE_8, _SHIFT)

    def text(self, words: str, left: float, bottom: float, colour: Colour, scale: float) -> None:
        """On a dark plate whose lower left corner is as near (left, bottom) as the picture allows."""
        (w, h), below = cv2.getTextSize(words, _FONT, scale, self.unit)
        pad, (height, width) = 2 * self.unit, self.cover.shape
        x = int(np.clip(left, 0, max(0, width - w - 2 * pad)))
        y = int(np.clip(bottom, h + below + 2 * pad, max(h + below + 2 * pad, height)))
        corner, other = (x, y - h - below - 2 * pad), (x + w + 2 * pad, y - 1)
        cv2.rectangle(self.rgb, corner, other, (0, 0, 0), -1)
        cv2.rectangle(self.cover, corner, other, (255,), -1)
        cv2.putText(self.rgb, words, (x + pad, y - below - pad), _FONT, scale, colour, self.unit, cv2.LINE_AA)


def draw_overlay(
    picture: Picture, touched: F32 | None, faces: Sequence[Marked], banner: str
) -> tuple[Picture, F32]:
    """Draw on a copy of a finished picture.

    Args:
        picture: (H, W, 3) RGB, uint8 or float32 in [0, 255]; not changed.
        touched: (H, W) float32 in [0, 1], what the paste changed; None for nothing.
        faces: drawn in this order.
        banner: a line for the upper left corner.

    Returns:
        The picture, of the same type, and where it now differs from the original: ``touched``, and 1
        under everything drawn.
    """
    height, width = picture.shape[:2]
    ink = _Ink(height, width)
    scale = 0.4 * ink.unit
    if touched is not None:
        # Where half of the pixel is new; of a swap that fades, where half of the most is.
        half = max(float(touched.max()) / 2, 1e-3)
        inside = (touched >= half).astype(np.uint8)
        contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        for contour in contours:
            ink.line(contour[:, 0].astype(np.float32), OUTLINE)
    for face in faces:
        x0, y0, x1, y1 = (float(v) for v in face.box)
        ink.line(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32), face.colour)
        for point in face.landmarks:
            ink.dot(point, face.colour)
    for face in faces:  # above all lines
        ink.text(face.label, float(face.box[0]), float(face.box[1]) - ink.unit, face.colour, scale)
    (long, _), _ = cv2.getTextSize(banner, _FONT, scale, ink.unit)
    ink.text(banner, 0, 0, OUTLINE, scale * min(1.0, (width - 4 * ink.unit) / max(long, 1)))
    drawn = ink.cover > 0
    result = picture.copy()
    result[drawn] = ink.rgb[drawn]
    where = np.zeros((height, width), np.float32) if touched is None else touched.copy()
    where[drawn] = 1
    return result, where


class OverlayStage:
    """Finished pictures of a clip → the same with what was known of each frame drawn on it.

    Args:
        clip: for the time in the banner.
        tracks: all that are to be drawn, those left alone too.
        names: what each is called, by track id; those that are swapped are in ``swapped``.
    """

    name: ClassVar[str] = "overlay"
    resources: ClassVar[Resources] = Resources(cpus=1)

    def __init__(
        self,
        clip: ClipInfo,
        tracks: Sequence[Track],
        swapped: Collection[int],
        names: Mapping[int, str] | None = None,
    ) -> None:
        self.clip, self.tracks, self.swapped = clip, tracks, set(swapped)
        self._names = names or {}

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, item: tuple[Frame, U8 | F32, F32 | None], /) -> tuple[U8 | F32, F32]:
        """A frame, its finished picture and what was pasted → as ``draw_overlay``."""
        frame, picture, touched = item
        # Either type comes back as it was.
        return draw_overlay(cast(U8, picture), touched, self._faces(frame.index), self._banner(frame.index))

    def _faces(self, index: int) -> list[Marked]:
        found = []
        for track in self.tracks:
            row = int(np.searchsorted(track.frames, index))
            if row == len(track.frames) or int(track.frames[row]) != index:
                continue
            name = self._names.get(track.id, f"track {track.id}")
            found.append(
                marked(
                    name,
                    track.boxes[row],
                    track.landmarks[row],
                    float(track.scores[row]),
                    track.id if track.id in self.swapped else None,
                )
            )
        return found

    def _banner(self, index: int) -> str:
        clip = self.clip
        number = f"{BANNER}  frame {clip.first_frame + index}"
        if not clip.timestamps or clip.kind == "folder":
            return number
        ms = round((clip.timestamps[index] - clip.timestamps[0]) * clip.time_base * 1000)
        seconds, ms = divmod(ms, 1000)
        return f"{number}  {seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{ms:03d}"
