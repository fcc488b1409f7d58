"""What the analysis needs of a frame: its faces, how they look, and how far it differs from the one before.

Everything here is a function of one frame and its predecessor, so that any number of machines may look
at pieces of a clip; what needs the clip's order (cuts, tracks) is decided by ``analyse`` from this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..configs import Settings
from ..errors import InputError
from ..stages.decode import Reader, open_reader
from ..stages.detect import open_detector
from ..stages.records import U8, ClipInfo, Detection, Frame
from ..stages.shots import describe, difference
from ..stages.swap.pack import Pack
from ..stages.track import aligned_face
from .progress import Stopwatch

_LOST_TOGETHER = 250  # frames in a row that can't be decoded: then it is the file that is broken
_BACK = 25  # how far back a readable frame is looked for, to compare the first of a piece with


@dataclass(frozen=True)
class Look:
    """One frame. ``change`` from the frame before is in [0, 1], None for the first; ``crops`` are the
    faces aligned, (112, 112, 3) uint8 RGB each; ``lost`` says why the frame can't be decoded, if so."""

    index: int
    change: float | None = None
    faces: tuple[Detection, ...] = ()
    crops: tuple[U8, ...] = ()
    lost: str | None = None


def look(
    info: ClipInfo,
    settings: Settings,
    pack: Pack,
    start: int,
    stop: int,
    watch: Stopwatch,
    *,
    tolerant: bool = False,
) -> Iterator[Look]:
    """Look at frames [start, stop), one after the other.

    Raises:
        InputError: a frame can't be decoded and ``tolerant`` is not given, or very many can't.
    """
    detector = open_detector(pack, settings.detector_threshold)
    reader = open_reader(info, settings.decoder)
    try:
        first = _before(reader, start, tolerant=tolerant)
        last = None if first is None else describe(first.rgb)
        frames = _readable(reader, start, stop) if tolerant else reader.read(start, stop)
        for frame in frames:
            if isinstance(frame, Look):
                yield frame
                continue
            with watch.time("detect"):
                now = describe(frame.rgb)
                change = None if last is None else difference(last, now)
                faces = tuple(detector.detect(frame.rgb))
                crops = tuple(aligned_face(frame.rgb, face.landmarks) for face in faces)
            last = now
            yield Look(frame.index, change, faces, crops)
    finally:
        reader.close()


def _before(reader: Reader, start: int, *, tolerant: bool) -> Frame | None:
    """The frame before ``start``, or the last one before it that can be decoded."""
    for index in range(start - 1, max(start - 1 - _BACK, -1), -1):
        try:
            return next(reader.read(index, index + 1))
        except InputError:
            if not tolerant:
                raise
    return None


def _readable(reader: Reader, start: int, stop: int) -> Iterator[Frame | Look]:
    """The frames; a Look without faces for each that can't be decoded."""
    index, lost = start, 0
    while index < stop:
        try:
            for frame in reader.read(index, stop):
                index, lost = frame.index + 1, 0
                yield frame
        except InputError as error:
            lost += 1
            if lost > _LOST_TOGETHER:
                raise
            yield Look(index, lost=str(error))
            index += 1
