"""What the analysis needs of a frame: its faces, how they look, and a thumbnail to tell cuts by.

Everything here is a function of one frame and the first of its ``GROUP``, so that any number of machines
may look at pieces of a clip; what needs the clip's order (cuts, tracks) is decided by ``analyse`` from this.

Looking for lying heads costs two more looks of the network. The first readable frame of a group is searched
fully; the others only where fewer people are found upright than it showed, or one of them is unsure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..configs import Settings
from ..errors import InputError
from ..stages.decode import Reader, open_reader
from ..stages.detect import Detector, open_detector
from ..stages.records import U8, ClipInfo, Detection, Frame
from ..stages.shots import Description, describe
from ..stages.swap.pack import Pack
from ..stages.track import aligned_face
from .progress import Stopwatch

_LOST_TOGETHER = 250  # frames in a row that can't be decoded: then it is the file that is broken
GROUP = 8  # frames
_EVERYBODY = 10**6  # more faces than there can be: search fully


@dataclass(frozen=True)
class Look:
    """One frame. ``thumbnail`` is what cuts are told by; ``crops`` are the faces aligned, (112, 112, 3)
    uint8 RGB each; ``lost`` says why the frame can't be decoded, if so: then it has neither."""

    index: int
    thumbnail: Description | None = None
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
        expected = _expected(reader, detector, start, tolerant=tolerant)
        frames = _readable(reader, start, stop) if tolerant else reader.read(start, stop)
        for frame in frames:
            if frame.index % GROUP == 0:
                expected = None
            if isinstance(frame, Look):
                yield frame
                continue
            with watch.time("detect"):
                faces = tuple(detector.detect(frame.rgb, _EVERYBODY if expected is None else expected))
                expected = len(faces) if expected is None else expected
                crops = tuple(aligned_face(frame.rgb, face.landmarks) for face in faces)
                thumbnail = describe(frame.rgb)
            yield Look(frame.index, thumbnail, faces, crops)
    finally:
        reader.close()


def _expected(reader: Reader, detector: Detector, start: int, *, tolerant: bool) -> int | None:
    """How many faces the first readable frame shows of the group that begins before ``start``; None if
    there is none before it."""
    for index in range(start - start % GROUP, start):
        try:
            return len(detector.detect(next(reader.read(index, index + 1)).rgb, _EVERYBODY))
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
