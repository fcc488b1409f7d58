"""Analysis: one pass over the clip that finds shots and the people in them.

Frames are looked at by whoever has the time (``look``), in order or in pieces; here they come in order and
become shots and tracks. None is kept, so memory does not grow with the clip (the tracks themselves are a
few hundred bytes a frame).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from ..configs import Settings
from ..errors import InputError
from ..stages.people import find_people, people_of, select_people
from ..stages.records import F32, U8, ClipInfo
from ..stages.shots import ShotDetector
from ..stages.track import Tracker
from .look import Look
from .plan import Plan, cut_segments
from .progress import Listener, Stopwatch


def analyse(
    info: ClipInfo,
    settings: Settings,
    looks: Iterator[Look],
    embed: Callable[[U8], F32],
    listener: Listener,
    watch: Stopwatch,
) -> Plan:
    """Find shots, tracks and people; source 0 goes to the person with the largest face wherever they are
    (``assign`` gives it to others).

    ``looks`` are those at all frames of the clip, in order. ``embed`` maps one aligned face (112, 112, 3)
    uint8 RGB to its unit embedding (D,). Frames that can't be decoded count as frames without a face.

    Raises:
        InputError: the clip has no frame, fewer than its own index says, or one that can't be decoded.
    """
    shots = ShotDetector(settings.cut_threshold, float(info.rate) or 25.0)
    tracker = Tracker(settings, embed, info.seconds)
    starts: list[int] = []
    waiting: deque[Look] = deque()  # for the word on whether they begin a shot: half a second of frames
    count = 0

    def follow(cuts: list[bool]) -> None:
        for cut in cuts:
            look = waiting.popleft()
            if cut or not starts:
                starts.append(look.index)
            tracker.follow(look.index, look.faces, look.crops, cut)

    listener.start("analyse", info.frames)
    for look in looks:
        if look.lost is not None:
            listener.warn(f"{look.lost}; it is passed through")
        waiting.append(look)
        with watch.time("analyse"):
            follow(shots.push(look.thumbnail))
        count += 1
        listener.advance("analyse")
    with watch.time("analyse"):
        follow(shots.flush())
    if not count:
        raise InputError(f"{info.path}: no frame could be decoded")
    if count != info.frames:
        raise InputError(f"{info.path}: {count} frames could be decoded, its index promises {info.frames}")
    tracks = tracker.finish()
    people = find_people(tracks, info.spans)
    main = select_people(people_of(tracks, people, info.spans), "largest")
    listener.finish("analyse")
    ranges = tuple(zip(starts, [*starts[1:], count], strict=True))
    return Plan(
        clip=info,
        shots=ranges,
        tracks=tuple(tracks),
        sources={track.id: 0 for person in main for track in person.tracks},
        segments=cut_segments(ranges, settings.segment_frames),
        people=people,
    )
