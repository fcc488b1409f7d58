"""Who gets what: sources and people of a clip brought together, by number, photograph or place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FaceError, JobError, SettingsError
from .files import sha256_of
from .plan import Plan, cut_segments
from .request import SourceFor, SwapRequest
from .urls import is_url

if TYPE_CHECKING:
    from ..configs import Settings
    from ..stages.detect import Detector
    from ..stages.people import Person
    from ..stages.records import F32, ClipInfo, SourceFace
    from ..stages.swap.networks import Networks
    from ..stages.swap.pack import Pack


def parse_source(text: str) -> tuple[list[str], int | None]:
    """``alice.png,alice-2.png@0`` → its photographs (paths or URLs), and the person they are for.

    What follows the last @ counts if it is a number; a file whose whole name that is goes before. A comma
    parts photographs unless a file has it in its name; in a URL it does where another URL, or a file that
    is there, follows.

    Raises:
        SettingsError: nothing where a photograph should be.
    """
    person: int | None = None
    head, at, tail = text.rpartition("@")
    if at and tail.isascii() and tail.isdigit() and not _is_file(text):
        text, person = head, int(tail)
    if _is_file(text):
        return [text], person
    photos: list[str] = []
    for piece in text.split(","):
        if photos and is_url(photos[-1]) and not is_url(piece) and not _is_file(piece):
            photos[-1] += f",{piece}"
        else:
            photos.append(piece)
    if not all(photos):
        raise SettingsError(
            f"--source {text}: a name is missing; write FACE.png, FACE.png@PERSON, or A.png,B.png"
        )
    return photos, person


def _is_file(text: str) -> bool:
    """Several names in one may be too long for a name, which ``Path.is_file`` raises."""
    return os.path.isfile(text)  # noqa: PTH113


def check_sources(request: SwapRequest) -> None:
    """SettingsError where what was asked can't be, whatever the clip shows."""
    wanted = request.wanted
    plain = [w for w in wanted if w.person is None]
    numbers = [w.person for w in wanted if w.person is not None]
    if len(set(numbers)) < len(numbers):
        twice = next(n for n in numbers if numbers.count(n) > 1)
        raise SettingsError(f"--source …@{twice}: person {twice} can get only one face, and was given two")
    if request.select is not None and request.reference is not None:
        raise SettingsError("--select and --reference both say who gets the face; give one of them")
    for flag, value in (("--select", request.select), ("--reference", request.reference)):
        if value is not None and not plain:
            raise SettingsError(f"{flag}: every --source names its person already; leave one without @")
    by_plan = request.plan_rules or (request.plan is not None and not explicit(request))
    if len(plain) > 1 and not by_plan:
        raise SettingsError(
            f"--source {plain[0].photos[0]} and --source {plain[1].photos[0]}: say who gets which, "
            f"for example --source {plain[0].photos[0].name}@0; 'ldvid inspect' shows the people's numbers"
        )
    if request.source_face is not None and (len(wanted) > 1 or len(wanted[0].photos) > 1):
        raise SettingsError("--source-face: only with one picture as the source; crop the others instead")


def identity_values(request: SwapRequest) -> dict[str, Any] | None:
    """What a job's identity holds of who gets what; None for one picture and the largest person."""
    wanted, chosen = request.wanted, request.select not in (None, "largest")
    if not chosen and request.reference is None and len(wanted) == 1:
        (only,) = wanted
        if only.person is None and len(only.photos) == 1:
            return None
    return {
        "sources": [{"sha256": [sha256_of(p) for p in w.photos], "person": w.person} for w in wanted],
        "select": request.select or "largest",
        "reference": None if request.reference is None else sha256_of(request.reference),
    }


def sources_of(request: SwapRequest, who: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What a record says of several sources: "names", "sha256", "person", "face"; empty of a single one."""
    if who is None:
        return []
    names = [[p.name for p in wanted.photos] for wanted in request.wanted]
    face = request.source_face
    return [{"names": n, **values, "face": face} for n, values in zip(names, who["sources"], strict=True)]


def explicit(request: SwapRequest) -> bool:
    """Whether the request itself says who gets what, so that a plan's own sources don't count."""
    asked = request.select is not None or request.reference is not None
    return not request.plan_rules and (asked or any(w.person is not None for w in request.wanted))


def load_sources(
    request: SwapRequest, pack: Pack, detector: Detector, networks: Networks
) -> tuple[tuple[SourceFace, ...], F32 | None, list[str]]:
    """The faces to put in, by number; the embedding of the reference; what the user should know.

    Raises:
        InputError, FaceError: as ``stages.source.load_source``.
    """
    from ..stages.source import load_average, load_source

    embed, face = networks.embed, request.source_face
    loaded = [load_average(w.photos, pack, detector, embed, face) for w in request.wanted]
    messages = [message for _, said in loaded for message in said]
    reference = None
    if request.reference is not None:
        try:
            found, _ = load_source(request.reference, pack, detector, networks.recognise, face=1)
        except FaceError as error:
            raise FaceError(f"--reference {request.reference}: no face found in it") from error
        reference = found.embedding
    return tuple(source for source, _ in loaded), reference, messages


def assign(plan: Plan, request: SwapRequest, reference: F32 | None = None) -> Plan:
    """The plan with the request's sources. ``reference`` is the unit embedding (D,) of the photograph.

    A source without a number goes to whoever ``select`` or the photograph chooses among those who have
    none yet.

    Raises:
        SettingsError: a person that there isn't.
        FaceError: nobody looks like the photograph, or is left to be chosen.
        JobError: the plan's embeddings were edited and can't be compared.
    """
    from ..stages.people import PERSON_THRESHOLD, SURE, nearest_person, people_of, select_people

    _check_embeddings(plan, request, reference)
    people = people_of(plan.tracks, plan.people, plan.clip.spans)
    if not people:
        return replace(plan, sources={})
    given: dict[int, int] = {}
    known = {p.number for p in people}
    # Over all people: who is left when the others have theirs is no surer a face for that.
    sure = {p.number for p in people if p.score >= SURE} or known
    for index, wanted in enumerate(request.wanted):
        if wanted.person is None:
            continue
        if wanted.person not in known:
            raise SettingsError(
                f"--source {wanted.photos[0]}@{wanted.person}: there is no person {wanted.person} in "
                f"{plan.clip.path.name}; there {listed(people)}"
            )
        given[wanted.person] = index
    for index, wanted in enumerate(request.wanted):
        if wanted.person is not None:
            continue
        rest = [p for p in people if p.number not in given]
        if not rest:
            raise FaceError(
                f"--source {wanted.photos[0]}: nobody is left for it; in {plan.clip.path.name} there "
                f"{listed(people)}"
            )
        if reference is not None:
            found = nearest_person(rest, reference)
            assert found is not None
            if found[1] < PERSON_THRESHOLD:
                raise FaceError(
                    f"--reference {request.reference}: nobody in {plan.clip.path.name} looks like it; "
                    f"nearest is person {found[0].number}, {found[1]:.2f} alike of the "
                    f"{PERSON_THRESHOLD:g} needed. "
                    f"There {listed(people)}; 'ldvid inspect' shows them"
                )
            chosen = [found[0]]
        else:
            surely = [p for p in rest if p.number in sure]
            if not surely:
                raise FaceError(
                    f"--source {wanted.photos[0]}: nobody is left for it who is surely a face; in "
                    f"{plan.clip.path.name} there {listed(people)}; name one with @N if it is"
                )
            chosen = select_people(surely, request.select or "largest")
        given |= {person.number: index for person in chosen}
    sources = {t.id: given[p.number] for p in people if p.number in given for t in p.tracks}
    return replace(plan, sources=sources)


def _check_embeddings(plan: Plan, request: SwapRequest, reference: F32 | None) -> None:
    """JobError unless the tracks of people can be compared, with the photograph too if there is one."""
    tracks = [t for t in plan.tracks if t.id in plan.people and len(t.frames)]
    if not tracks:
        return
    wanted = len(tracks[0].embedding) if reference is None else len(reference)
    for track in tracks:
        if len(track.embedding) != wanted:
            by = "" if reference is None else f", which --reference {request.reference} needs"
            raise JobError(
                f"{request.plan or 'plan.json'}: the embedding of track {track.id} has "
                f"{len(track.embedding)} numbers, not {wanted}{by}; make the plan anew with "
                "'ldvid inspect', or give sources as FACE@PERSON"
            )


def listed(people: Sequence[Person]) -> str:
    """``are 0 (12.3 s) and 1 (3.0 s)``: for messages."""
    names = [f"{p.number} ({p.seconds:.1f} s)" for p in people[:12]]
    more = f" and {len(people) - 12} more" if len(people) > 12 else ""
    if len(names) == 1:
        return f"is only {names[0]}"
    return f"are {', '.join(names)}{more}"


def given_plan(path: Path, info: ClipInfo, settings: Settings) -> Plan:
    """A plan from a file, for this clip, its segments cut anew.

    Raises:
        JobError: it can't be read, or is of another clip or another part of it.
    """
    try:
        plan = Plan.from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"--plan {path}: can't be read: {error}") from error
    was, now = plan.clip, info
    for what, a, b in (
        ("size", (was.width, was.height), (now.width, now.height)),
        ("number of frames", was.frames, now.frames),
        ("first frame (--start)", was.first_frame, now.first_frame),
        ("times of frames", was.seconds, now.seconds),
    ):
        if a != b:
            said = f": {_short(a)}, not {_short(b)}" if not isinstance(a, list) else ""
            raise JobError(
                f"--plan {path}: it is of another clip than {info.path}, or of another part: {what}{said}"
            )
    segments = cut_segments(plan.shots, settings.segment_frames)
    return replace(plan, clip=info, segments=segments)


def check_plan(plan: Plan, wanted: Sequence[SourceFor], name: str) -> list[str]:
    """Refuse a plan that names sources there aren't; return warnings about sources that nobody gets.

    Raises:
        JobError: a track's source is no number of a source.
    """
    have = ", ".join(f"{i} ({w.photos[0].name})" for i, w in enumerate(wanted))
    for track, source in plan.sources.items():
        if source >= len(wanted):
            raise JobError(
                f"{name}: track {track} gets source {source}, which there isn't; there are: {have}"
            )
    used = set(plan.sources.values())
    return [
        f"--source {w.photos[0]}: nobody gets it by the plan" for i, w in enumerate(wanted) if i not in used
    ]


def _short(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple) else str(value)
