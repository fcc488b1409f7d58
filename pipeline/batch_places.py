"""Where the outputs of a batch go, and which of them an earlier run has made already."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import LdvidError, SettingsError
from .batch_list import Item
from .files import sha256_of
from .provenance import report_path
from .request import SwapRequest

JOBS, RECORD = ".ldvid-jobs", "batch.json"
_LONGEST = 180  # bytes of a job folder's name


def output_paths(items: Sequence[Item], folder: Path, sources: Iterable[Path]) -> list[Path]:
    """Each clip's output in ``folder``: ``takes/day1/a.mov`` → ``a.mp4``, a folder of frames ``b`` → ``b``,
    or ``day1/a.mp4`` where several would be called ``a.mp4``; a list's own name where it gives one.

    Raises:
        SettingsError: two clips would have one output, one would lie in another, or replace an input.
    """
    names = [_name(item) for item in items]
    often = Counter(names)
    outputs = [
        folder / (name if item.output is not None or often[name] == 1 else _with_way(item, name))
        for item, name in zip(items, names, strict=True)
    ]
    _check(items, outputs, folder, sources)
    return outputs


def _name(item: Item) -> str:
    if item.output is not None:
        return os.path.normpath(item.output)
    clip = item.clip.resolve() if item.clip.name in ("", "..") else item.clip
    return clip.name if clip.is_dir() else f"{clip.stem}.mp4"


def _with_way(item: Item, name: str) -> Path:
    clip = item.clip.absolute()
    if item.root is None or not clip.is_relative_to(item.root):
        return Path(name)
    return clip.relative_to(item.root).parent / name


def _check(items: Sequence[Item], outputs: Sequence[Path], folder: Path, sources: Iterable[Path]) -> None:
    """What would be in each other's way, before anything is done."""
    taken: dict[Path, str] = {(folder / RECORD).absolute(): "the batch's own record"}
    for item, output in zip(items, outputs, strict=True):
        for path in (output.absolute(), report_path(output).absolute()):
            if (other := taken.get(path)) is not None:
                raise SettingsError(
                    f"{item.clip}: {path} would be made of it and of {other}; give it another name in a "
                    "CSV's column output"
                )
            taken[path] = str(item.clip)
    inputs = {p.resolve() for p in (*(item.clip for item in items), *sources)}
    for item, output in zip(items, outputs, strict=True):
        for path in (output.resolve(), report_path(output).resolve()):
            if path in inputs:
                raise SettingsError(f"{path}: the output of {item.clip} would replace it, which is an input")
        for above in output.absolute().parents:
            if above in taken:
                raise SettingsError(
                    f"{output}: would lie inside {above}, which is the output of {taken[above]}"
                )
            if above in inputs:
                raise SettingsError(f"{output}: would lie inside {above}, a folder of frames that is read")


def job_path(folder: Path, output: Path) -> Path:
    """The job folder of an output: one flat folder holds them all, so that ``ldvid jobs`` lists them."""
    way = output.relative_to(folder) if output.is_relative_to(folder) else output.absolute()
    name = way.as_posix().replace("%", "%25").replace("/", "%2F")
    if len(name.encode()) > _LONGEST:
        name = f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return folder / JOBS / (f"{name}%" if name == "lock" else name)


class Hashes:
    """SHA-256 of files, each taken once. Two threads that ask at once may both take it."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """As ``sha256_of``."""
        if path not in self._known:
            self._known[path] = sha256_of(path)
        return self._known[path]


def read_record(output: Path) -> dict[str, Any] | None:
    """What ``OUT.json`` says of an output that is there; None if either isn't, or it can't be read."""
    if not os.path.lexists(output):
        return None
    try:
        values = json.loads(report_path(output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def differences(
    request: SwapRequest, output: Path, record: dict[str, Any], pack: str, hashes: Hashes
) -> list[str]:
    """In what an output differs from the one that ``request`` asks for; empty if in nothing. ``pack`` is
    the digest of its pack. What costs nothing is compared first, and files are read only if that agrees."""
    try:
        made, source, pack_made = record["input"], record["source"], record["pack"]
        cheap = {
            "settings": record["settings_digest"] == request.settings.digest(),
            "model pack": pack_made["digest"] == pack,
            "start": made["start"] == request.start,
            "end": made["end"] == request.end,
            "source face": source["face"] == request.source_face,
        }
        if other := [name for name, same in cheap.items() if not same]:
            return other
        if source["sha256"] != hashes.of(request.source):
            return ["source"]
        if made["sha256"] != _clip_hash(request):
            return ["clip"]
        if record["output"]["sha256"] != sha256_of(output):
            return ["the file itself, which has changed since it was made"]
    except (KeyError, TypeError):
        return ["everything: its record is not one of a swap"]
    except (OSError, LdvidError) as error:
        return [f"something that can't be read: {error}"]
    return []


def _clip_hash(request: SwapRequest) -> str:
    from ..stages.decode import probe

    clip = request.clip
    if not clip.is_dir():
        return sha256_of(clip)
    return sha256_of(clip, probe(clip, start=request.start, end=request.end).files)
