"""What a report is made of: a job folder, or an output with its record; both read, never changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, JobError
from ..stages.decode import Reader, open_reader, probe
from ..stages.records import U8, Segment
from .files import sha256_of
from .identity import Identity
from .job import load_plan, read_job
from .job_report_record import check_record, unpacked
from .ledger import Done, Ledger
from .plan import Plan
from .provenance import report_path


@dataclass(frozen=True)
class UsedSource:
    """A face that was put in: its photographs where they lie now, with their hashes, and which face of them
    (1 is the largest)."""

    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    face: int = 1


@dataclass(frozen=True)
class Inputs:
    """One finished job.

    ``plan`` names the clip where it lies now. ``swapped`` holds the frames in which faces were swapped;
    ``record`` is what ``OUT.json`` says, empty where there is none; ``facts`` of it are always there.
    ``parts`` are segments and their files, or the whole output as one.
    """

    given: Path
    plan: Plan
    sources: tuple[UsedSource, ...]
    swapped: frozenset[int]
    settings: Mapping[str, Any]
    pack: str
    facts: Mapping[str, Any]
    record: Mapping[str, Any]
    parts: tuple[tuple[Segment, Path], ...]


def open_inputs(given: Path, *, clip: Path | None = None, sources: Sequence[Path] = ()) -> Inputs:
    """A job folder or a finished output.

    Args:
        clip, sources: where they lie now; by default where the job was given them or, for an output, beside
            it under the names that its record states.

    Raises:
        JobError: neither of both, a job that is not finished, a damaged record, or nobody was swapped.
        InputError: clip, source or output are missing or not the ones of the job.
    """
    if (given / "job.json").is_file():
        inputs = _from_job(given, clip, sources)
    elif report_path(given).is_file() and given.exists():
        inputs = _from_output(given, clip, sources)
    elif not given.exists():
        raise JobError(f"{given}: no such job folder and no such output")
    else:
        raise JobError(f"{given}: is no job folder (no job.json), and no output of ldvid ({given.name}.json)")
    if not any(t.id in inputs.plan.sources for t in inputs.plan.tracks) or not inputs.swapped:
        raise JobError(f"{given}: nobody was swapped in this job, so there is nothing to report")
    return inputs


def _from_job(folder: Path, clip: Path | None, sources: Sequence[Path]) -> Inputs:
    values = read_job(folder)
    try:
        identity = Identity.from_values(values["identity"])
    except (ValueError, TypeError) as error:
        raise JobError(f"{folder / 'job.json'}: can't be read as a job of this ldvid: {error}") from error
    request = values.get("request") or {}
    plan = load_plan(folder)
    if plan is None:
        raise JobError(f"{folder}: is not analysed yet; give the swap command that made it again first")
    done = Ledger(folder, identity.digest()).finished(plan, clean=False)
    if missing := [s.index for s in plan.segments if s.index not in done]:
        raise JobError(
            f"{folder}: segment {missing[0]} is not finished; give the job's own command again first"
        )
    record = _record(Path(request["output"])) if request.get("output") else {}
    if not _is_of(record, identity, plan):
        record = {}  # of another job's output
    clip_name = Path(str(request.get("clip", identity.clip)))
    photos = [s.get("photos") for s in request.get("sources") or ()] or [[request.get("source")]]
    who = identity.who or {"sources": [{"sha256": [identity.source_sha256]}]}
    stated = [
        {"names": names, "sha256": one["sha256"], "face": identity.source_face}
        for names, one in zip(photos, who["sources"], strict=True)
    ]
    facts = {
        "input": {
            "name": clip_name.name,
            "sha256": identity.clip_sha256,
            "start": identity.start,
            "end": identity.end,
        },
        "pack": record.get("pack") or {"name": identity.pack, "digest": identity.pack_digest},
        "settings_digest": identity.settings_digest,
        "device": record.get("device") or identity.device,
        "threads": identity.threads,
        "dtype": identity.dtype,
        "compiled": identity.compiled,
        "versions": record.get("versions") or {"ldvid": identity.version},
        "passed_through": _passed(done.values()),
        "output": record.get("output"),
        "created": record.get("created"),
    }
    # The plan's path is as the command was given it, perhaps seen from another folder.
    lies = next((p for p in (clip_name, plan.clip.path) if p.exists()), clip_name)
    found = _found(clip or lies, identity.clip_sha256, plan, "--clip")
    return Inputs(
        given=folder,
        plan=found,
        sources=_sources(stated, sources, [clip_name.parent]),
        swapped=frozenset(f for d in done.values() for a, b in d.swapped for f in range(a, b + 1)),
        settings=identity.settings,
        pack=str(request.get("pack_folder") or identity.pack),
        facts=facts,
        record=record,
        parts=tuple((s, done[s.index].path) for s in plan.segments),
    )


def _from_output(output: Path, clip: Path | None, sources: Sequence[Path]) -> Inputs:
    file, record = report_path(output), _record(output)
    if not record:
        raise JobError(f"{file}: damaged; can't be read as the record of an output")
    if "plan" not in record:
        kind = "a picture's" if record.get("frames") == 1 else "an older ldvid's"
        raise JobError(f"{file}: holds no plan ({kind} record); make the report of the job folder")
    try:
        check_record(record)
    except ValueError as error:
        raise JobError(f"{file}: damaged; can't be read as the record of an output: {error}") from error
    plan = unpacked(record["plan"], str(file))
    if any(b >= plan.clip.frames for _, b in record["frames_swapped"]):
        raise JobError(f"{file}: damaged; it names swapped frames beyond its plan's {plan.clip.frames}")
    name, wanted = record["input"]["name"], record["input"]["sha256"]
    swapped = frozenset(f for a, b in record["frames_swapped"] for f in range(a, b + 1))
    source = record["source"]
    only = {"names": [source["name"]], "sha256": [source["sha256"]]}
    # Records of several sources once had the face with the first alone.
    stated = [{"face": source.get("face"), **s} for s in record.get("sources") or [only]]
    if _hash(output) != record["output"]["sha256"]:
        raise InputError(f"{output}: is not the file that {file.name} was written for; its SHA-256 differs")
    found = _found(clip or output.with_name(Path(name).name), wanted, plan, "--clip")
    return Inputs(
        given=output,
        plan=found,
        sources=_sources(stated, sources, [output.parent, found.clip.path.parent]),
        swapped=swapped,
        settings=record["settings"],
        pack=record["pack"]["name"],
        facts=record,
        record=record,
        parts=((Segment(0, 0, plan.clip.frames), output),),
    )


def _record(output: Path) -> dict[str, Any]:
    try:
        values = json.loads(report_path(output).read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}
    except (OSError, ValueError):
        return {}


def _is_of(record: Mapping[str, Any], identity: Identity, plan: Plan) -> bool:
    """Whether a record is of this job's output as it is planned now."""
    try:
        check_record(record)
        swapped = unpacked(record["plan"], "").sources
    except (ValueError, JobError):
        return False
    who = [] if identity.who is None else identity.who["sources"]
    pairs = (
        (record["settings_digest"], identity.settings_digest),
        (record["pack"]["digest"], identity.pack_digest),
        (record["input"]["sha256"], identity.clip_sha256),
        (record["input"].get("start"), identity.start),
        (record["input"].get("end"), identity.end),
        (record["source"]["sha256"], identity.source_sha256),
        (record["source"].get("face"), identity.source_face),
        (
            [(s["sha256"], s.get("person")) for s in record.get("sources") or ()],
            [(s["sha256"], s.get("person")) for s in who],
        ),
        (swapped, plan.sources),
    )
    return all(a == b for a, b in pairs)


def _passed(done: Iterable[Done]) -> list[dict[str, Any]]:
    return [
        {"frames": [d.segment.start, d.segment.stop - 1], "reason": str(d.notes["passed"])}
        for d in done
        if "passed" in d.notes
    ]


def _found(path: Path, sha256: str, plan: Plan, flag: str) -> Plan:
    if not path.exists():
        raise InputError(f"{path}: no such file; it was the job's clip, say with {flag} where it lies now")
    if _hash(path, plan.clip.files or None) != sha256:
        raise InputError(f"{path}: is not the clip that the job was made from; say with {flag} where that is")
    return replace(plan, clip=replace(plan.clip, path=path))


def _sources(
    stated: Sequence[Mapping[str, Any]], given: Sequence[Path], folders: Sequence[Path]
) -> tuple[UsedSource, ...]:
    """Each stated source where it lies: among those given, where the job had it, or in one of the folders."""
    for path in given:
        if not path.is_file():
            raise InputError(f"--source {path}: no such file")
    hashes = {_hash(path): path for path in given}
    used = []
    for entry in stated:
        paths = []
        for name, wanted in zip(entry["names"], entry["sha256"], strict=True):
            named = Path(str(name or ""))
            places = [named] if named.is_absolute() else [f / named.name for f in folders]
            here = (p for p in places if p.is_file() and _hash(p) == wanted)
            where = hashes.get(wanted) or next(here, None)
            if where is None:
                raise InputError(
                    f"{named.name or 'the source'}: the job's source picture was not found; say with "
                    "--source where it lies now (it is told by its SHA-256)"
                )
            paths.append(where)
        used.append(UsedSource(tuple(paths), tuple(entry["sha256"]), int(entry.get("face") or 1)))
    return tuple(used)


def _hash(path: Path, files: Sequence[str] | None = None) -> str:
    """``sha256_of``; InputError naming the file that can't be read, of a folder the frame."""
    try:
        return sha256_of(path, files)
    except OSError as error:
        raise InputError(f"{error.filename or path}: can't be read: {error.strerror or error}") from error


class Frames:
    """Frames before and after, by index; cheap where they are asked for in order."""

    def __init__(self, inputs: Inputs) -> None:
        """Raises InputError if the output has other frames than the clip."""
        self._inputs = inputs
        self._before = open_reader(inputs.plan.clip, "pyav")
        self._after: Reader | None = None
        self._at = -1
        self._starts = np.array([s.start for s, _ in inputs.parts])
        if len(inputs.parts) == 1:
            self._part(0)

    def pair(self, index: int) -> tuple[U8, U8]:
        """(H, W, 3) uint8 RGB of one frame, original and swapped."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        after = self._part(number).read(*_one(index - int(self._starts[number])))
        return next(iter(self._before.read(*_one(index)))).rgb, next(iter(after)).rgb

    def _part(self, number: int) -> Reader:
        if self._after is None or number != self._at:
            if self._after is not None:
                self._after.close()
            segment, path = self._inputs.parts[number]
            info, clip = probe(path), self._inputs.plan.clip
            wanted = (segment.stop - segment.start, clip.width, clip.height)
            if (info.frames, info.width, info.height) != wanted:
                raise InputError(
                    f"{path}: {info.frames} frames of {info.width}×{info.height} where {wanted[0]} of "
                    f"{clip.width}×{clip.height} should be"
                )
            self._after, self._at = open_reader(info, "pyav"), number
        return self._after

    def close(self) -> None:
        """Close both files."""
        self._before.close()
        if self._after is not None:
            self._after.close()


def _one(index: int) -> tuple[int, int]:
    return index, index + 1
