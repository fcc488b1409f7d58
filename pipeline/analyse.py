"""Analysis: one pass over the clip that finds shots and the people in them.

Frames are looked at by whoever has the time (``look``), in order or in pieces; here they come in order and
become shots and tracks. None is kept, so memory does not grow with the clip (the tracks themselves are a
few hundred bytes a frame).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..configs import Settings
from ..errors import InputError
from ..stages.records import F32, U8, ClipInfo
from ..stages.shots import ShotDetector
from ..stages.track import Tracker, choose_track, same_person
from .look import Look
from .plan import Plan, cut_segments
from .progress import Listener, Stopwatch

# Cosine above which two tracks of different shots are the same person: unrelated people score about
# 0.15 on the packs' identity networks, one person in another light and pose 0.5 and more.
PERSON_THRESHOLD = 0.4


def analyse(
    info: ClipInfo,
    settings: Settings,
    looks: Iterator[Look],
    embed: Callable[[U8], F32],
    listener: Listener,
    watch: Stopwatch,
) -> Plan:
    """Find shots and tracks, and give the source to the chosen person: the largest face's track and
    every track of the same person in other shots.

    ``looks`` are those at all frames of the clip, in order. ``embed`` maps one aligned face (112, 112, 3)
    uint8 RGB to its unit embedding (D,). Frames that can't be decoded count as frames without a face.

    Raises:
        InputError: the clip has no frame, fewer than its own index says, or one that can't be decoded.
    """
    shots = ShotDetector(settings.cut_threshold)
    tracker = Tracker(settings, embed)
    starts: list[int] = []
    count = 0
    listener.start("analyse", info.frames)
    for look in looks:
        if look.lost is not None:
            listener.warn(f"{look.lost}; it is passed through")
        with watch.time("analyse"):
            cut = look.change is not None and shots.cuts(look.change)
            if cut or not starts:
                starts.append(look.index)
            tracker.follow(look.index, look.faces, look.crops, cut)
        count += 1
        listener.advance("analyse")
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
