"""What ``ldvid batch`` is given: CSV files, patterns, folders and paths, as one list of clips.

Nothing here says whether a clip can be used: that is each clip's own affair. What is refused is a list
that can't be understood, by file, line and column.
"""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError, SettingsError
from .urls import is_url, local_path, shown

COLUMNS = ("clip", "source", "output", "start", "end", "source_face", "seed", "preset")

# Files that a folder or a pattern may hold and that are taken as clips; one that is named is tried whatever
# its name.
VIDEOS = {
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts",
    ".vob", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".3gp", ".3g2", ".mxf", ".y4m", ".dv", ".apng",
}  # fmt: skip

ParseTime = Callable[[str, str], float]


@dataclass(frozen=True)
class Item:
    """One clip as it was asked for; None is the batch's own. ``output`` is relative to the batch's folder.

    ``root`` is the folder under which names are told apart by the way to them, ``where`` the place in a
    list, for messages.
    """

    clip: Path
    source: Path | None = None
    output: str | None = None
    start: float | None = None
    end: float | None = None
    source_face: int | None = None
    seed: int | None = None
    preset: str | None = None
    root: Path | None = None
    where: str = ""


def here(text: str, where: str) -> Path:
    """The path that a plain path or a ``file://`` URL stands for; SettingsError for what lies elsewhere."""
    if (path := local_path(text)) is None:
        raise SettingsError(
            f"{where}: {shown(text)}: a batch reads and writes files on disks; 'ldvid swap' takes URLs"
        )
    return path


def read_items(given: Sequence[str], parse_time: ParseTime, *, skip: Path) -> tuple[list[Item], list[str]]:
    """The clips that the arguments stand for, in their order, and what the user should know of them.

    An argument is a CSV file, something that is there (a file, a folder of frames, a folder of videos), or a
    pattern. Patterns and folders pass over what is no clip, and what lies in ``skip``, where the outputs go.
    A clip that they name twice is taken once; rows of a CSV file stay as they are.

    Raises:
        InputError: a list that can't be read, a pattern that matches no clip, no clip at all.
        SettingsError: a column, number or time in a list that isn't one (says line and column).
    """
    items: list[Item] = []
    seen: set[Path] = set()
    given = [str(here(text, "CLIPS")) if is_url(text) else text for text in given]
    plain = [Path(text) for text in given if not _is_list(text) and not _is_pattern(text)]
    root = Path(os.path.commonpath([p.absolute().parent for p in plain])) if plain else None
    passed = 0
    for text in given:
        if _is_list(text):
            items += _read_csv(Path(text), parse_time)
            continue
        if _is_pattern(text):
            found, others = _matches(text, skip)
            passed += others
        else:
            found = [Item(clip, root=root) for clip in _clips_of(Path(text), skip)]
        for item in found:
            if (key := item.clip.resolve()) not in seen:
                seen.add(key)
                items.append(item)
    if not items:
        raise InputError(f"{' '.join(given)}: no clips")
    return items, [f"passed over: {passed} that are no clips"] if passed else []


def _is_list(text: str) -> bool:
    return text.lower().endswith(".csv") and not Path(text).is_dir()


def _is_pattern(text: str) -> bool:
    return glob.has_magic(text) and not os.path.lexists(text)


def _clips_of(path: Path, skip: Path) -> list[Path]:
    """A folder's videos, where it holds any; else the path itself."""
    if not path.is_dir():
        return [path]
    outputs = _unless_around(skip, path)
    return [p for p in _listing(path) if _is_video(p) and not _lies_in(p, outputs)] or [path]


def _matches(pattern: str, skip: Path) -> tuple[list[Item], int]:
    """The clips that a pattern stands for, and the number of other things that match."""
    from ..stages.folder import SUFFIXES
    from ..stages.numbering import natural_key

    pattern = str(Path(pattern).expanduser())
    root = _fixed_part(pattern)
    outputs = _unless_around(skip, root)
    found: list[Item] = []
    others = 0
    for name in sorted(glob.glob(pattern, recursive=True), key=natural_key):  # noqa: PTH207 - ** as in shells
        path = Path(name)
        if _lies_in(path, outputs):
            continue
        if path.is_dir():
            inside = _clips_of(path, skip)
            if inside == [path] and not any(p.suffix.lower() in SUFFIXES for p in _listing(path)):
                continue  # neither videos nor frames: a folder on the way
            found += [Item(clip, root=root) for clip in inside]
        elif _is_video(path):
            found.append(Item(path, root=root))
        elif path.suffix.lower() not in SUFFIXES:  # pictures are their folder's frames
            others += 1
    if not found:
        raise InputError(f"{pattern}: no clip has such a name")
    return found, others


def _fixed_part(pattern: str) -> Path:
    """``takes/day*/a.mp4`` → ``takes``."""
    parts = Path(pattern).parts[:-1]
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:fixed]).absolute()


def _listing(folder: Path) -> list[Path]:
    from ..stages.numbering import natural_key

    try:
        inside = [p for p in folder.iterdir() if not p.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: the folder can't be read: {error.strerror or error}") from error
    return sorted(inside, key=lambda p: natural_key(p.name))


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS and path.is_file() and not path.name.startswith(".")


def _unless_around(outputs: Path, folder: Path) -> Path | None:
    """The folder of the outputs, or None where ``folder`` lies in it: who looks there means what is there."""
    return None if _lies_in(folder, outputs) else outputs


def _lies_in(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def _read_csv(path: Path, parse_time: ParseTime) -> Iterator[Item]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True, restkey="", restval="")
            names = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            _check_columns(path, names)
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; it was to be a list of clips") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: can't be read as CSV: {error}") from error
    return iter([_Row(path, line, row, parse_time).item() for line, row in rows])


def _check_columns(path: Path, names: list[str]) -> None:
    known = f"the columns are: {', '.join(COLUMNS)}"
    for name in names:
        if name not in COLUMNS:
            raise SettingsError(f"{path}: line 1: {name or 'a column without a name'} is not known; {known}")
        if names.count(name) > 1:
            raise SettingsError(f"{path}: line 1: column {name} is there twice")
    if "clip" not in names:
        raise SettingsError(f"{path}: line 1: there is no column clip; {known}")


@dataclass(frozen=True)
class _Row:
    """One line of a list."""

    path: Path
    line: int
    row: dict[str, str]
    parse_time: ParseTime

    def item(self) -> Item:
        if self.row.get(""):
            raise SettingsError(f"{self.path}: line {self.line}: has more cells than there are columns")
        folder = self.path.parent
        clip, source, output = (self._text(column) for column in ("clip", "source", "output"))
        if clip is None:
            raise SettingsError(f"{self.path}: line {self.line}, column clip: is empty")
        item = Item(
            clip=folder / self._here("clip", clip),
            source=None if source is None else folder / self._here("source", source),
            output=None if output is None else str(self._here("output", output)),
            start=self._time("start"),
            end=self._time("end"),
            source_face=self._number("source_face", 1),
            seed=self._number("seed", 0),
            preset=self._text("preset"),
            where=f"{self.path}: line {self.line}",
        )
        return replace(item, root=folder.absolute())

    def _text(self, column: str) -> str | None:
        return self.row.get(column, "").strip() or None

    def _here(self, column: str, text: str) -> Path:
        return here(text, f"{self.path}: line {self.line}, column {column}")

    def _time(self, column: str) -> float | None:
        text = self._text(column)
        return None if text is None else self.parse_time(text, f"{self.path}: line {self.line}, {column}")

    def _number(self, column: str, least: int) -> int | None:
        text = self._text(column)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise SettingsError(
                f"{self.path}: line {self.line}, column {column}: {text} is no whole number from {least} up"
            )
        return int(text)
