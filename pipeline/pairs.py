"""What ``ldvid evaluate`` is given: pairs of pictures from a CSV file or from folders."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import InputError, SettingsError

REQUIRED, OPTIONAL = ("source", "target"), ("swapped", "same", "variant")
SKIN = "skin"  # a label that is measured unless the list has it: the name of the typology angle
GIVEN = "given"  # the variant of pictures that came without a name


@dataclass(frozen=True)
class Pair:
    """A source to put on a target.

    ``same`` is another picture of the source's person. ``given`` maps a variant's name to a picture
    that some tool has already made of the pair. ``wanted``: the pair came without one, so it is swapped.
    ``labels`` are the values of the list's further columns, by name in lower case.
    """

    source: Path
    target: Path
    same: Path | None = None
    given: dict[str, Path] = field(default_factory=dict)
    wanted: bool = True
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs:
    """The pairs in the order given, the folder their names are shown relative to, and how they came."""

    pairs: tuple[Pair, ...]
    root: Path
    how: str
    messages: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # of labels

    def shown(self, path: Path) -> str:
        """A path as the user wrote it, or nearly so: relative to the root where it lies there."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def variants(self) -> list[str]:
        """Names of the given variants, in the order of their first appearance."""
        return list(dict.fromkeys(name for pair in self.pairs for name in pair.given))

    def where(self, conditions: Sequence[tuple[str, str]]) -> Pairs:
        """The pairs whose labels have these values.

        Raises:
            SettingsError: there is no such column.
            InputError: there is no such pair.
        """
        for column, _ in conditions:
            self.check_column("--only", column)
        kept = tuple(p for p in self.pairs if all(p.labels.get(c, "") == v for c, v in conditions))
        if not kept:
            wanted = " and ".join(f"{c}={v}" for c, v in conditions)
            raise InputError(f"{self.how.removeprefix('from ')}: no pair has {wanted} (--only)")
        return replace(self, pairs=kept)

    def check_column(self, flag: str, column: str) -> None:
        """SettingsError naming the flag if the list has no such column of labels."""
        if column not in self.columns:
            have = f"the columns are {', '.join(self.columns)}" if self.columns else "there are none"
            raise SettingsError(f"{flag} {column}: no such column {self.how} to tell pairs apart; {have}")

    def limited(self, limit: int | None) -> Pairs:
        """The first ``limit`` pairs."""
        return self if limit is None else replace(self, pairs=self.pairs[:limit])


def read_csv(path: Path, root: Path | None = None) -> Pairs:
    """Pairs of a CSV file with the columns source and target, and optionally swapped, same, variant.

    Relative paths are relative to ``root``, or to the file's own folder. Rows of the same source and
    target are one pair. Further columns are labels, and of a pair's rows the first that has one counts.

    Raises:
        InputError: not to be read, a missing column or file, a repeated row; names line and column.
    """
    folder = path.parent if root is None else root
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, strict=True)
            names = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            columns = _check_columns(path, names)
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; it was to be the list of pairs") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: can't be read as CSV: {error}") from error
    pairs: dict[tuple[Path, Path], Pair] = {}
    seen: dict[tuple[Path, Path, str | None], int] = {}
    for line, row in rows:
        place = _Place(path, line, folder, row)
        source, target = (place.file(name, required=True) for name in REQUIRED)
        swapped, same = place.file("swapped"), place.file("same")
        assert source is not None and target is not None
        variant = place.text("variant")
        if variant and swapped is None:
            raise place.wrong(
                "variant", f"{variant} names who made the picture in column swapped: none there"
            )
        name = (variant or GIVEN) if swapped is not None else None
        if (before := seen.setdefault((source, target, name), line)) != line:
            raise place.wrong("target", f"repeats line {before}")
        pair = pairs.get((source, target), Pair(source, target, wanted=False))
        if same is not None and pair.same not in (None, same):
            raise place.wrong("same", f"an earlier line names {pair.same} for this pair")
        if swapped is not None and name is not None:
            pair = replace(pair, given={**pair.given, name: swapped})
        labels = {name: pair.labels.get(name) or place.text(name) for name in columns}
        pairs[source, target] = replace(
            pair, same=same or pair.same, wanted=pair.wanted or swapped is None, labels=labels
        )
    if not pairs:
        raise InputError(f"{path}: holds no pairs, only a header")
    return Pairs(tuple(pairs.values()), folder, f"from {path.name}", columns=tuple(columns))


def _check_columns(path: Path, names: list[str]) -> list[str]:
    """The columns of labels; InputError for what is missing or twice there."""
    for name in REQUIRED:
        if name not in names:
            have = ", ".join(n for n in names if n) or "none"
            raise InputError(f"{path}: line 1: there is no column {name}; the columns are: {have}")
    for name in REQUIRED + OPTIONAL:
        if names.count(name) > 1:
            raise InputError(f"{path}: line 1: column {name} is there twice")
    return [n for n in dict.fromkeys(names) if n and n not in REQUIRED + OPTIONAL]


@dataclass(frozen=True)
class _Place:
    """One line of the file, for its values and for errors about them."""

    path: Path
    line: int
    folder: Path
    row: dict[str, str | None]

    def wrong(self, column: str, why: str) -> InputError:
        return InputError(f"{self.path}: line {self.line}, column {column}: {why}")

    def text(self, column: str) -> str:
        value = self.row.get(column)
        return value.strip() if isinstance(value, str) else ""

    def file(self, column: str, *, required: bool = False) -> Path | None:
        text = self.text(column)
        if not text:
            if required:
                raise self.wrong(column, "is empty")
            return None
        path = self.folder / text
        if not path.is_file():
            raise self.wrong(column, f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
        return path


def read_folders(sources: Path, targets: Path, swapped: Sequence[Path] = ()) -> Pairs:
    """Pairs of two folders: by file name without its suffix, or in sorted order if no names match.

    ``swapped`` are folders of finished pictures named (or ordered) like the targets; each is a variant
    of its folder's name.

    Raises:
        InputError: no such folder, no pictures in it, or nothing tells what belongs together.
    """
    ours, theirs = _pictures(sources, "--sources"), _pictures(targets, "--targets")
    root = sources.parent if sources.parent == targets.parent else Path()
    common = [stem for stem in theirs if stem in ours]
    messages = []
    if common:
        how, pairs = "by file name", [Pair(ours[stem], theirs[stem]) for stem in common]
        stems = common
        alone = [p.name for names in (ours, theirs) for s, p in names.items() if s not in common]
        if alone:
            messages.append(f"left out, as nothing has their name: {_some(alone)}")
    elif len(ours) == len(theirs):
        how = "in sorted order, as no file names match"
        pairs, stems = [Pair(s, t) for s, t in zip(ours.values(), theirs.values(), strict=True)], list(theirs)
    else:
        raise InputError(
            f"{sources} and {targets}: no file names match, and {len(ours)} and {len(theirs)} pictures "
            "can't be paired in order; name them alike, or write a CSV file of pairs"
        )
    for folder in swapped:
        pairs = _with_given(pairs, stems, folder, in_order=not common)
    messages.append(f"{counted(len(pairs), 'pair')}, {how}")
    return Pairs(tuple(pairs), root, how, tuple(messages))


def _with_given(pairs: list[Pair], stems: list[str], folder: Path, *, in_order: bool) -> list[Pair]:
    made = _pictures(folder, "--swapped")
    name = folder.resolve().name
    if any(name in pair.given for pair in pairs):
        raise SettingsError(f"--swapped {folder}: another folder is called {name} too; rename one")
    if all(stem in made for stem in stems):
        ours = [made[stem] for stem in stems]
    elif in_order and len(made) == len(pairs) and not any(stem in made for stem in stems):
        ours = list(made.values())
    else:
        missing = [stem for stem in stems if stem not in made]
        raise InputError(f"--swapped {folder}: no picture of the name {_some(missing)}")
    return [
        replace(pair, given={**pair.given, name: path}, wanted=False)
        for pair, path in zip(pairs, ours, strict=True)
    ]


def _pictures(folder: Path, flag: str) -> dict[str, Path]:
    """Stem → picture, in natural order."""
    from ..stages.folder import frame_files

    if not folder.is_dir():
        raise InputError(f"{flag} {folder}: {'is no folder' if folder.exists() else 'no such folder'}")
    found: dict[str, Path] = {}
    for name in frame_files(folder):
        if (stem := Path(name).stem) in found:
            raise InputError(f"{flag} {folder}: {found[stem].name} and {name} have one name")
        found[stem] = folder / name
    if not found:
        raise InputError(f"{flag} {folder}: holds no pictures (PNG, JPEG, WebP or TIFF files)")
    return found


def counted(n: int, what: str) -> str:
    """``1 pair``, ``2 pairs``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
