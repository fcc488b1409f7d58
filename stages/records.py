"""The records that stages hand to each other: frozen dataclasses, arrays with stated layout.

Conventions for all of them
    Pictures are HWC uint8 RGB, upright (container rotation applied).
    Points are (x, y) in pixels, (0, 0) being the centre of the top left pixel.
    Boxes are XYXY float in the same pixels.
    Frame indices count the frames to be rendered from 0 (after ``--start``).
    The five landmarks are: right eye, left eye, nose tip, right and left mouth corner, where
    right and left are the person's own (the right eye has the smaller x on an upright face).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# Frames to either side of a segment that its own may depend on, at most: what a segment is made of.
NEIGHBOURS = 12


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """What is known of the input before any pixel is used.

    ``width`` and ``height`` are those of the upright picture. ``timestamps`` holds, per frame to be
    rendered, its presentation time in units of ``time_base`` (empty until the clip was scanned);
    ``durations`` likewise. For a folder of frames, ``files`` names them in natural order.
    ``first_frame`` is the index, in the whole input, of frame 0 of this job (``--start``).
    Colour tags are FFmpeg's integer codes, None where the input states none.
    """

    path: Path
    kind: Literal["video", "folder"]
    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    pix_fmt: str
    codec: str
    first_frame: int = 0
    timestamps: tuple[int, ...] = ()
    durations: tuple[int, ...] = ()
    rotation: int = 0
    color_range: int | None = None
    colorspace: int | None = None
    color_primaries: int | None = None
    color_trc: int | None = None
    sample_aspect_ratio: Fraction | None = None
    files: tuple[str, ...] = ()
    has_audio: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        """Number of frames to be rendered."""
        return len(self.timestamps)

    @property
    def seconds(self) -> list[float]:
        """When each frame is shown, the first at 0."""
        return [float((t - self.timestamps[0]) * self.time_base) for t in self.timestamps]

    @property
    def spans(self) -> list[float]:
        """For how many seconds each frame is shown."""
        known = self.durations if len(self.durations) == self.frames else ()
        return [float(d * self.time_base) for d in known] or [1 / float(self.rate or 25)] * self.frames


class Frame:
    """One decoded frame. ``native`` is the decoder's own picture (an upright ``av.VideoFrame`` or an
    array with alpha or 16 bits), kept so that what no swap touches can be encoded untouched.

    ``rgb`` may be given as a function that makes it: it is called when the picture is first asked for, by the
    thread that asks, as converting a frame takes longer than decoding it.
    """

    __slots__ = ("_rgb", "index", "native")

    def __init__(self, index: int, rgb: U8 | Callable[[], U8], native: Any = None) -> None:
        self.index, self.native, self._rgb = index, native, rgb

    @property
    def rgb(self) -> U8:
        """(H, W, 3) uint8 RGB."""
        if callable(self._rgb):
            self._rgb = self._rgb()
        return self._rgb

    def at(self, index: int) -> Frame:
        """The same picture as another frame."""
        return Frame(index, self._rgb, self.native)


@dataclass(frozen=True, slots=True)
class Detection:
    """A face in one picture. ``box`` (4,) XYXY, ``landmarks`` (5, 2), ``score`` in [0, 1]."""

    box: F32
    landmarks: F32
    score: float

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = (float(v) for v in self.box)
        return max(0.0, x1 - x0) * max(0.0, y1 - y0)


@dataclass(frozen=True, slots=True)
class Track:
    """One person through one shot.

    Per frame i of ``frames``: ``boxes[i]`` (4,), ``landmarks[i]`` (5, 2, smoothed over time),
    ``scores[i]``. ``embedding`` (D,) is the unit mean of the identity embeddings of its best frames.
    """

    id: int
    shot: int
    frames: NDArray[np.int64]
    boxes: F32
    landmarks: F32
    scores: F32
    embedding: F32

    @property
    def mean_area(self) -> float:
        wh = self.boxes[:, 2:] - self.boxes[:, :2]
        return float(np.clip(wh, 0, None).prod(1).mean())


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive frames [start, stop) of one shot: the unit of rendering, retry and resume."""

    index: int
    start: int
    stop: int
    shot: int = 0


@dataclass(frozen=True, slots=True)
class Crops:
    """Aligned faces of one track in one segment; N crops of side S.

    ``frames`` (N,), ``images`` (N, S, S, 3) uint8 RGB, ``matrices`` (N, 2, 3) float64 mapping frame
    pixels to crop pixels, ``landmarks`` (N, 5, 2) in crop pixels. ``masks`` (N, S, S) float32 in
    [0, 1], 1 where the face is to be replaced, and ``swapped`` (N, S, S, 3) float32 RGB in [0, 255]
    are filled in by the stages of those names. ``weights`` (N,) fades a swap in and out (1 = full).
    ``parses`` (N, K, p, p) float32, the class probabilities of the crops, are what the mask was made of;
    the swap looks at them again and drops them. ``starts`` (N, S, S, 3) float32 RGB in [0, 255] are what the
    swap begins with, and ``kept`` (N, S, S) float32 in [0, 1] what of them is the target's own (``start``);
    dropped likewise.
    """

    track: int
    frames: NDArray[np.int64]
    images: U8
    matrices: F64
    landmarks: F32
    masks: F32 | None = None
    swapped: F32 | None = None
    weights: F32 | None = None
    parses: F32 | None = None
    starts: F32 | None = None
    kept: F32 | None = None

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True, slots=True)
class SourceFace:
    """The face to put in: its aligned crop (S, S, 3) uint8 RGB, landmarks in crop pixels (5, 2),
    unit identity embedding (D,), and where it came from."""

    path: Path
    image: U8
    landmarks: F32
    embedding: F32
    sha256: str = ""
