"""What the analysis needs of a frame: its faces, how they look, and a thumbnail to tell cuts by.

Everything here is a function of one frame and the first of its ``GROUP``, so that any number of machines
may look at pieces of a clip; what needs the clip's order (cuts, tracks) is decided by ``analyse`` from this.

Looking for lying heads costs two more looks of the network. The first readable frame of a group is searched
fully; the others only where fewer people are found upright than it showed, or one of them is unsure.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ..configs import Settings
from ..errors import InputError
from ..stages.decode import Reader, open_reader
from ..stages.detect import Detector, open_detector
from ..stages.records import U8, ClipInfo, Detection, Frame
from ..stages.shots import Description, describe
from ..stages.spread import width
from ..stages.swap.pack import Pack
from ..stages.track import aligned_face
from .progress import Stopwatch

_LOST_TOGETHER = 250  # frames in a row that can't be decoded: then it is the file that is broken
GROUP = 8  # frames
GROUP_BYTES = 512 * 2**20  # of frames that are looked at, or wait for it, at the same time
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
    """Looks at frames [start, stop), in order; several groups are looked at at the same time.

    Raises:
        InputError: a frame can't be decoded and ``tolerant`` is not given, or very many can't.
    """
    detectors = _Detectors(pack, settings.detector_threshold)
    reader = open_reader(info, settings.decoder)
    frames = _readable(reader, start, stop) if tolerant else reader.read(start, stop)

    def looked(group: list[Frame | Look], expected: int | None) -> list[Look]:
        with detectors.one() as detector:
            return list(_looks(group, detector, expected, watch))

    try:
        with detectors.one() as detector:
            expected = _expected(reader, detector, start, tolerant=tolerant)
        failed: InputError | None = None
        # Beside those that are looked at, one is being read and one waits to be taken.
        room = GROUP_BYTES // (GROUP * 3 * info.width * info.height) - 2
        threads = min(width(), room)
        if threads < 2:  # large frames: one after the other
            for _, few in itertools.groupby(frames, lambda frame: frame.index // GROUP):
                with detectors.one() as detector:
                    yield from _looks(few, detector, expected, watch)
                expected = None
            return
        with ThreadPoolExecutor(threads, "ldvid-look") as pool:
            coming: deque[Future[list[Look]]] = deque()
            try:
                for group in _groups(frames):
                    coming.append(pool.submit(looked, group, expected))
                    expected = None  # of another group
                    if len(coming) > threads:
                        yield from coming.popleft().result()
            except InputError as error:
                failed = error  # once all before it have been looked at
            while coming:
                yield from coming.popleft().result()
        if failed is not None:
            raise failed
    finally:
        reader.close()


def _groups(frames: Iterator[Frame | Look]) -> Iterator[list[Frame | Look]]:
    """Frames of one group each; where one can't be decoded, those before it."""
    group: list[Frame | Look] = []
    failed: InputError | None = None
    while True:
        try:
            frame = next(frames, None)
        except InputError as error:
            failed = error
            break
        if frame is None:
            break
        if group and frame.index // GROUP != group[0].index // GROUP:
            yield group
            group = []
        group.append(frame)
    if group:
        yield group
    if failed is not None:
        raise failed


def _looks(
    group: Iterable[Frame | Look], detector: Detector, expected: int | None, watch: Stopwatch
) -> Iterator[Look]:
    """Frames of one group in order; ``expected`` faces, None: as many as its first shows."""
    for frame in group:
        if isinstance(frame, Look):
            yield frame
            continue
        with watch.time("detect"):
            faces = tuple(detector.detect(frame.rgb, _EVERYBODY if expected is None else expected))
            expected = len(faces) if expected is None else expected
            crops = tuple(aligned_face(frame.rgb, face.landmarks) for face in faces)
            thumbnail = describe(frame.rgb)
        yield Look(frame.index, thumbnail, faces, crops)


class _Detectors:
    """One for each thread that looks at the same time: a network is used by one at a time."""

    def __init__(self, pack: Pack, threshold: float) -> None:
        self._pack, self._threshold = pack, threshold
        self._idle: queue.SimpleQueue[Detector] = queue.SimpleQueue()

    @contextlib.contextmanager
    def one(self) -> Iterator[Detector]:
        """A detector that nobody else uses meanwhile."""
        try:
            detector = self._idle.get_nowait()
        except queue.Empty:
            detector = open_detector(self._pack, self._threshold)
        try:
            yield detector
        finally:
            self._idle.put(detector)


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
