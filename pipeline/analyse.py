"""Analysis: one pass over the clip that finds shots and the people in them.

Frames stream through decode → detect → shots → track; none is kept, so memory does not grow with
the clip (the tracks themselves are a few hundred bytes a frame).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..configs import Settings
from ..errors import InputError
from ..stages.decode import Reader, open_reader
from ..stages.detect import open_detector
from ..stages.records import F32, U8, ClipInfo, Frame
from ..stages.shots import ShotDetector
from ..stages.swap.pack import Pack
from ..stages.track import Tracker, choose_track, same_person
from .local import prefetch
from .plan import Plan, cut_segments
from .progress import Listener, Stopwatch

# Cosine above which two tracks of different shots are the same person: unrelated people score about
# 0.15 on the packs' identity networks, one person in another light and pose 0.5 and more.
PERSON_THRESHOLD = 0.4
_LOST_TOGETHER = 250  # frames in a row that can't be decoded: then it is the file that is broken


def analyse(
    info: ClipInfo,
    settings: Settings,
    pack: Pack,
    embed: Callable[[U8], F32],
    listener: Listener,
    watch: Stopwatch,
    *,
    tolerant: bool = False,
) -> Plan:
    """Find shots and tracks, and give the source to the chosen person: the largest face's track and
    every track of the same person in other shots.

    ``embed`` maps one aligned face (112, 112, 3) uint8 RGB to its unit embedding (D,). If ``tolerant``,
    frames that can't be decoded are told to the listener and count as frames without a face.

    Raises:
        InputError: the clip has no frame, fewer than its own index says, or one that can't be decoded.
    """
    detector = open_detector(pack, settings.detector_threshold)
    shots = ShotDetector(settings.cut_threshold)
    tracker = Tracker(settings, embed)
    starts: list[int] = []
    count = 0
    listener.start("analyse", info.frames)
    reader = open_reader(info, settings.decoder)
    frames = prefetch(_readable(reader, info, listener) if tolerant else reader.read(0, info.frames), 4)
    try:
        for frame in frames:
            with watch.time("analyse"):
                lost = frame.rgb.size == 0
                cut = not lost and shots.is_cut(frame.rgb)
                if cut or not starts:
                    starts.append(frame.index)
                faces = [] if lost else detector.detect(frame.rgb)
                tracker.update(frame.index, frame.rgb, faces, cut)
            count += 1
            listener.advance("analyse")
    finally:
        frames.close()
        reader.close()
    if not count:
        raise InputError(f"{info.path}: no frame could be decoded")
    if count != info.frames:
        raise InputError(f"{info.path}: {count} frames could be decoded, its index promises {info.frames}")
    tracks = tracker.finish()
    chosen = choose_track(tracks)
    swapped = same_person(tracks, chosen, PERSON_THRESHOLD) if chosen is not None else []
    listener.finish("analyse")
    ranges = tuple(zip(starts, [*starts[1:], count], strict=True))
    return Plan(
        clip=info,
        shots=ranges,
        tracks=tuple(tracks),
        sources={track.id: 0 for track in swapped},
        segments=cut_segments(ranges, settings.segment_frames),
    )


def _readable(reader: Reader, info: ClipInfo, listener: Listener) -> Iterator[Frame]:
    """All frames of the clip; one that can't be decoded comes without pixels."""
    index = lost = 0
    while index < info.frames:
        try:
            for frame in reader.read(index, info.frames):
                index, lost = frame.index + 1, 0
                yield frame
        except InputError as error:
            lost += 1
            if lost > _LOST_TOGETHER:
                raise
            listener.warn(f"{error}; it is passed through")
            yield Frame(index, np.zeros((0, 0, 3), np.uint8))
            index += 1
