"""``ldvid inspect``: who is in a clip. A plan to swap by, and a sheet with everybody's picture."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configs import Settings
from ..errors import FaceError, InputError, OutputError, OutputExistsError, SettingsError
from .device import cpu_threads
from .plan import Plan
from .progress import Listener, Silent, Stopwatch
from .target import put_in_place, staged, uninterrupted

if TYPE_CHECKING:
    from ..stages.people import Person
    from ..stages.records import F64, U8

PLAN, SHEET = "plan.json", "people.png"
AXES = ("yaw", "pitch", "roll")


@dataclass(frozen=True)
class InspectRequest:
    """What to look at. ``folder`` None is ``CLIP.people`` beside the clip; ``start`` and ``end`` are seconds
    of the clip. ``device`` and ``threads`` are as for a swap."""

    clip: Path
    settings: Settings
    folder: Path | None = None
    start: float | None = None
    end: float | None = None
    overwrite: bool = False
    device: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Inspection:
    """What was found: ``people`` by number (see ``person_values``), and the files that were written."""

    people: tuple[dict[str, Any], ...]
    shots: int
    plan: Path
    sheet: Path
    warnings: tuple[str, ...] = ()


def inspect_folder(clip: Path) -> Path:
    """``clip.mp4`` → ``clip.people``; a folder ``frames`` → ``frames.people``."""
    whole = clip.resolve() if clip.name in ("", "..") else clip
    return whole.with_name(f"{whole.name if whole.is_dir() else whole.stem}.people")


def inspect_clip(request: InspectRequest, listener: Listener | None = None) -> Inspection:
    """Analyse a clip and write ``plan.json`` and ``people.png`` into the folder.

    The plan gives source 0 to the largest person, as a plain swap would.

    Raises:
        LdvidError: any of the tree in ``errors``; nothing is left of what was not finished.
        FaceError: there is nobody.
    """
    listener = listener if listener is not None else Silent()
    try:
        with cpu_threads(request.threads):
            return _inspect(request, listener)
    finally:
        listener.close()


def _inspect(request: InspectRequest, listener: Listener) -> Inspection:
    folder = request.folder if request.folder is not None else inspect_folder(request.clip)
    _check(request, folder)
    from ..stages.decode import probe
    from ..stages.people import people_of
    from ..stages.swap.networks import Networks
    from ..stages.swap.pack import open_pack
    from .analyse import analyse
    from .local import prefetch
    from .look import look
    from .people_sheet import gather

    settings, watch = request.settings, Stopwatch()
    info = probe(request.clip, start=request.start, end=request.end)
    for message in info.warnings:
        listener.warn(message)
    pack = open_pack(settings.pack)
    networks = Networks.load(pack, request.device, settings.dtype)
    looks = prefetch(look(info, settings, pack, 0, info.frames, watch), 4)
    with contextlib.closing(looks):
        plan = analyse(info, settings, looks, lambda c: networks.recognise(c[None])[0], listener, watch)
    plan = Plan.from_json(plan.to_json())  # what is said is what a swap by the file does
    people = people_of(plan.tracks, plan.people, info.spans)
    if not people:
        raise FaceError(
            f"{request.clip}: no face was found in the clip; --set detector_threshold= with less than "
            f"{settings.detector_threshold:g} looks harder"
        )
    picture, poses = gather(info, settings, people)
    values = tuple(person_values(p, plan, poses.get(p.number)) for p in people)
    _write(folder, plan.to_json(), picture, overwrite=request.overwrite)
    return Inspection(values, len(plan.shots), folder / PLAN, folder / SHEET, tuple(info.warnings))


def _check(request: InspectRequest, folder: Path) -> None:
    from .picture import is_picture

    if request.start is not None and request.end is not None and request.end <= request.start:
        raise SettingsError(f"--end {request.end:g} s is not after --start {request.start:g} s")
    if not request.clip.exists():
        raise InputError(f"{request.clip}: no such file; it was to be the clip")
    if is_picture(request.clip):
        raise SettingsError(f"{request.clip}: is a picture; 'ldvid inspect' looks at clips")
    if folder.resolve() == request.clip.resolve():
        raise SettingsError(f"--output {folder}: is the folder of frames that is read; choose another")
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"--output {folder}: is a file; name a folder")
    for name in (PLAN, SHEET):
        if (folder / name).exists() and not request.overwrite:
            raise OutputExistsError(
                f"{folder / name} exists; give --overwrite to replace it, or another folder with -o"
            )
    if not folder.absolute().parent.is_dir():
        raise OutputError(f"--output {folder}: there is no folder {folder.absolute().parent}; make it first")


def _write(folder: Path, plan: str, picture: U8, *, overwrite: bool) -> None:
    from ..stages.encode import encode_picture

    made = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
        with staged(folder / SHEET) as sheet_part, staged(folder / PLAN) as plan_part:
            sheet_part.write_bytes(encode_picture(picture, ".png"))
            plan_part.write_text(plan, encoding="utf-8")
            with uninterrupted():
                put_in_place(sheet_part, folder / SHEET, overwrite=overwrite)
                put_in_place(plan_part, folder / PLAN, overwrite=overwrite)
    except BaseException as error:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise OutputError(f"{folder}: can't be written: {error.strerror or error}") from error
        raise


def person_values(person: Person, plan: Plan, pose: F64 | None) -> dict[str, Any]:
    """What is said of a person, as JSON.

    ``person`` the number, ``seconds`` and ``frames`` on screen, ``first`` and ``last`` the seconds between
    which, ``shots`` and ``tracks`` by number, ``size`` the smallest, median and largest distance between the
    eyes in pixels (as of a frontal face), ``score`` the surest detection's, in [0, 1], ``pose`` the range of
    yaw (positive: to the picture's left), pitch (up) and roll (clockwise) in degrees over the frames that
    were looked at, null for people beyond the sheet; ``source`` the plan's source, if any.

    ``pose`` (N, 3) holds yaw, pitch and roll.
    """
    import numpy as np

    times, spans = plan.clip.seconds, plan.clip.spans
    eyes = person_eyes(person)
    sources = {plan.sources[t.id] for t in person.tracks if t.id in plan.sources}
    last = max(int(t.frames[-1]) for t in person.tracks)
    return {
        "person": person.number,
        "seconds": round(person.seconds, 3),
        "frames": person.frames,
        "first": round(times[min(int(t.frames[0]) for t in person.tracks)], 3),
        "last": round(times[last] + spans[last], 3),
        "shots": sorted({t.shot for t in person.tracks}),
        "tracks": [t.id for t in person.tracks],
        "size": {
            "min": round(float(eyes.min()), 1),
            "median": round(float(np.median(eyes)), 1),
            "max": round(float(eyes.max()), 1),
        },
        "score": round(person.score, 3),
        "pose": None
        if pose is None
        else {
            a: [round(float(v.min()), 1), round(float(v.max()), 1)] for a, v in zip(AXES, pose.T, strict=True)
        },
        "source": min(sources) if sources else None,
    }


def person_eyes(person: Person) -> F64:
    """Pixels between the eyes, for each row of the person's tracks; a turned head's are those it would have
    straight on, by the scale of the whole face."""
    import numpy as np

    from ..stages.align import ARCFACE_TEMPLATE, estimate_similarity, scale_of

    between = float(np.linalg.norm(ARCFACE_TEMPLATE[1] - ARCFACE_TEMPLATE[0]))
    points = np.concatenate([t.landmarks for t in person.tracks]).astype(np.float64)
    return np.array([between / scale_of(estimate_similarity(p, ARCFACE_TEMPLATE)) for p in points])


def table(inspection: Inspection) -> list[str]:
    """The people as lines for the terminal."""
    lines = [
        "person  on screen      first       last  eyes (px)      yaw        pitch       roll",
    ]
    for p in inspection.people:
        size, pose = p["size"], p["pose"] or {}
        angles = "  ".join(f"{pose[a][0]:+4.0f}…{pose[a][1]:+4.0f}°" for a in AXES if a in pose)
        lines.append(
            f"{p['person']:>6}  {p['seconds']:>7.1f} s  {_clock(p['first']):>9}  {_clock(p['last']):>9}  "
            f"{size['min']:>3.0f}–{size['max']:<4.0f}  {angles}"
        )
    return lines


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"
