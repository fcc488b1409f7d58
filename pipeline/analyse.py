"""Analysis: one pass over the clip that finds shots and the people in them.

Frames stream through decode → detect → shots → track; none is kept, so memory does not grow with
the clip (the tracks themselves are a few hundred bytes a frame).
"""

from __future__ import annotations

from collections.abc import Callable

from ..configs import Settings
from ..errors import InputError
from ..stages.decode import open_reader
from ..stages.detect import open_detector
from ..stages.records import F32, U8, ClipInfo
from ..stages.shots import ShotDetector
from ..stages.swap.pack import Pack
from ..stages.track import Tracker, choose_track, same_person
from .local import prefetch
from .plan import Plan, cut_segments
from .progress import Listener, Stopwatch

# Cosine above which two tracks of different shots are the same person: unrelated people score about
# 0.15 on the packs' identity networks, one person in another light and pose 0.5 and more.
PERSON_THRESHOLD = 0.4


def analyse(
    info: ClipInfo,
    settings: Settings,
    pack: Pack,
    embed: Callable[[U8], F32],
    listener: Listener,
    watch: Stopwatch,
) -> Plan:
    """Find shots and tracks, and give the source to the chosen person: the largest face's track and
    every track of the same person in other shots.

    ``embed`` maps one aligned face (112, 112, 3) uint8 RGB to its unit embedding (D,).

    Raises:
        InputError: the clip has no frame, or fewer than its own index says.
    """
    detector = open_detector(pack, settings.detector_threshold)
    shots = ShotDetector(settings.cut_threshold)
    tracker = Tracker(settings, embed)
    starts: list[int] = []
    count = 0
    listener.start("analyse", info.frames)
    reader = open_reader(info, settings.decoder)
    frames = prefetch(reader.read(0, info.frames), 4)
    try:
        for frame in frames:
            with watch.time("analyse"):
                cut = shots.is_cut(frame.rgb)
                if cut or not starts:
                    starts.append(frame.index)
                tracker.update(frame.index, frame.rgb, detector.detect(frame.rgb), cut)
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
