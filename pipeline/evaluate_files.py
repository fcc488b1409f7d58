"""The folder of an evaluation: there wholly or not at all, every picture in it marked as what it is."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError, OutputExistsError, SettingsError
from .target import put_in_place, staged, uninterrupted

if TYPE_CHECKING:
    from ..stages.records import U8
    from .evaluate_results import Results

PICTURES = "pictures"
FILES = ("table.json", "table.md", "pairs.csv", "plot.png", "sheet.png", PICTURES)
PAGE = re.compile(r"sheet-[1-9][0-9]*\.png")
PAGE_ROWS = 8  # of a sheet: a page is looked at in one piece
COLUMNS = (
    "pair", "variant", "source", "target", "swapped", "same", "identity_guiding", "identity", "unrelated",
    "same_identity", "recovery", "pose", "landmark", "expression", "delta_e", "delta_e_cast", "ita", "psnr",
    "sheet", "skipped",
)  # fmt: skip


def check_folder(output: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Whether an evaluation may be written there.

    Raises:
        SettingsError: an input lies there.
        OutputExistsError: it is a file, or a folder with something in it; with ``overwrite``, a folder
            with anything in it but an evaluation.
        OutputError: no folder to put it in, or no permission.
    """
    for path in inputs:
        if output.resolve() in (path.resolve(), *path.resolve().parents):
            raise SettingsError(f"--output {output}: {path}, which is an input, lies there; choose another")
    if output.is_dir():
        names = sorted(p.name for p in output.iterdir())
        if names and not overwrite:
            raise OutputExistsError(f"{output} exists and is not empty; give --overwrite to replace it")
        others = [n for n in names if n not in FILES and not PAGE.fullmatch(n)] or (
            names if names and FILES[0] not in names else []
        )
        if others:
            raise OutputExistsError(
                f"{output} holds {others[0]}, which no evaluation wrote; --overwrite would delete it. "
                "Choose another folder with -o"
            )
    elif os.path.lexists(output):
        raise OutputExistsError(f"{output} is a file, the results are a folder; choose another name with -o")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"{output}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{output}: no permission to write in {folder}")


@contextlib.contextmanager
def results_folder(
    output: Path | None, inputs: Sequence[Path], *, overwrite: bool
) -> Iterator[Folder | None]:
    """A hidden folder beside ``output``, renamed to it at the end; None where nothing is to be written."""
    if output is None:
        yield None
        return
    check_folder(output, inputs, overwrite=overwrite)
    whole = output.resolve() if output.name in ("", "..") else output
    with staged(whole) as part:
        try:
            part.mkdir()
            yield Folder(part)
        except OSError as error:
            raise OutputError(f"{output}: can't be written: {error.strerror or error}") from error
        check_folder(output, inputs, overwrite=overwrite)  # it may have filled meanwhile
        with uninterrupted():
            put_in_place(part, whole, overwrite=True)


class Folder:
    """The files of one evaluation. Methods raise OSError, which ``results_folder`` makes an OutputError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, variant: str, pair: int, target: Path, picture: U8, tags: Mapping[str, str]) -> str:
        """Write a swapped picture, marked, with the target's colour profile; returns its name here."""
        folder = re.sub(r"[^\w.+-]+", "-", variant).strip(".-") or "_"
        name = f"{PICTURES}/{folder}/{pair:04d}.png"
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        self._picture(name, picture, tags, target)
        return name

    def _picture(self, name: str, picture: U8, tags: Mapping[str, str], original: Path | None) -> None:
        from ..stages.encode import encode_picture
        from ..stages.picture_tags import tag_picture

        (self.path / name).write_bytes(tag_picture(encode_picture(picture, ".png"), ".png", tags, original))

    def write(self, table: Mapping[str, Any], results: Results, tags: Mapping[str, str]) -> None:
        """The table in its three forms, the plot, and the sheet if there are rows for it."""
        from ..metrics.plots import plot
        from ..metrics.sheet import sheet
        from ..metrics.table import markdown

        text = json.dumps(table, indent=2, ensure_ascii=False) + "\n"
        (self.path / "table.json").write_text(text, encoding="utf-8")
        (self.path / "table.md").write_text(markdown(table), encoding="utf-8")
        self._pairs(results)
        plot(table, self.path / "plot.png")
        for first in range(0, len(results.cells), PAGE_ROWS):
            rows = results.cells[first : first + PAGE_ROWS]
            name = "sheet.png" if not first else f"sheet-{first // PAGE_ROWS + 1}.png"
            self._picture(name, sheet(rows, ["source", "target", *results.variants]), tags, None)

    def _pairs(self, results: Results) -> None:
        """``sheet`` is where the contact sheet shows a pair, ``2:3`` being the second page's third row."""
        from ..metrics.report import rounded

        shown = {p: f"{i // PAGE_ROWS + 1}:{i % PAGE_ROWS + 1}" for i, p in enumerate(results.shown)}
        with (self.path / "pairs.csv").open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow([*COLUMNS, *(f"by_{column}" for column in results.by)])
            for row in results.rows:
                f = row.figures
                values = [None] * 12 if f is None else [
                    f.identity_guiding, f.identity, f.unrelated, f.same, f.recovery,
                    f.pose, f.landmark, f.expression, f.delta_e, f.delta_e_cast, f.ita, f.psnr,
                ]  # fmt: skip
                names = (row.pair, row.variant, row.source, row.target, row.swapped, row.same)
                more = [row.labels.get(column, "") for column in results.by]
                place = shown.get(row.pair, "")
                writer.writerow([*names, *map(rounded, values), place, row.reason, *more])
