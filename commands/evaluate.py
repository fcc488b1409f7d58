"""``ldvid evaluate``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import hush
from .options import Assignments, Config, Debug, Device, Guidance, Pack, Quiet, Seed

if TYPE_CHECKING:
    from ..configs import Settings


def evaluate(
    given: Annotated[
        Path | None,
        typer.Argument(metavar="[PAIRS.csv|JOB]", help="A CSV file of pairs, or a finished job's folder."),
    ] = None,
    sources: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of sources, instead of a CSV file.")
    ] = None,
    targets: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of targets.")] = None,
    swapped: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Folder of finished swaps, named like the targets; may be repeated."
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What the CSV file's paths are relative to.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--source", "-s", metavar="FACE", help="Of a job: its source picture.")
    ] = None,
    finished: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Of a job: judge this output, not the segments.")
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of a job: judge every Nth frame. Default: 64 in all."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write tables, plot and sheet into this folder."),
    ] = None,
    presets: Annotated[
        list[str] | None,
        typer.Option("--preset", metavar="NAME", help="Swap with these settings; may be repeated."),
    ] = None,
    ablation: Annotated[
        bool,
        typer.Option("--ablation", help="Swap without guidance, with identity's, with both. Default: paper."),
    ] = False,
    config: Config = None,
    assignments: Assignments = None,
    guidance: Guidance = None,
    pack: Pack = None,
    seed: Seed = None,
    device: Device = "auto",
    identity_judge: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Another ONNX file to judge identity by.")
    ] = None,
    pose_judge: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Another file to judge pose by.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Only pairs whose row says so; may be repeated."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Also by the values of a column, or by skin; may be repeated."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Judge no more than N pairs or frames.")
    ] = None,
    sheet_rows: Annotated[
        int, typer.Option(metavar="N", min=0, help="Rows of the contact sheet, 8 a page.")
    ] = 8,
    keep_pictures: Annotated[
        bool, typer.Option("--keep-pictures", help="Keep the swapped pictures, in the output's folder.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier evaluation's folder.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print table.json on stdout.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure swaps: identity, pose, landmarks, expression, skin colour and more; of pairs or of a job.

    Pairs without a swapped picture are swapped, by each --preset (default: cpu).
    """
    from ..pipeline.evaluate import EvaluateRequest
    from ..pipeline.evaluate import evaluate as measure
    from ..pipeline.progress import open_listener

    if not debug:
        hush()
    is_job = given is not None and given.is_dir()
    chosen = _variants(presets or [], ablation, config, assignments or [], guidance or [], pack, seed, is_job)
    request = EvaluateRequest(
        variants=chosen,
        pairs=None if is_job else given,
        root=root,
        sources=sources,
        targets=targets,
        swapped=tuple(swapped or ()),
        job=given if is_job else None,
        source=source,
        finished=finished,
        every=every,
        all_pairs=bool(presets) or ablation,
        by=tuple(dict.fromkeys(column.strip().lower() for column in by or ())),
        only=tuple(_condition(text) for text in only or ()),
        limit=limit,
        output=output,
        overwrite=overwrite,
        sheet_rows=sheet_rows,
        keep_pictures=keep_pictures,
        device=device,
        identity_judge=identity_judge,
        pose_judge=pose_judge,
    )
    table = measure(request, open_listener(quiet=quiet, unit="pictures"))
    if as_json:
        typer.echo(json.dumps(table, ensure_ascii=False))
    elif not quiet:
        _print(table)


def _variants(
    presets: list[str],
    ablation: bool,
    config: Path | None,
    assignments: list[str],
    guidance: list[str],
    pack: str | None,
    seed: int | None,
    is_job: bool,
) -> tuple[tuple[str, Settings], ...]:
    """The settings to swap with, by name; none for a job, which has its own."""
    from ..configs import load_settings
    from ..errors import SettingsError
    from ..pipeline.evaluate import ablation as ablated

    flags = {
        "--preset": presets, "--ablation": ablation, "--config": config, "--set": assignments,
        "--guidance": guidance, "--pack": pack, "--seed": seed,
    }  # fmt: skip
    if is_job:
        if wrong := next((flag for flag, value in flags.items() if value not in (None, [], False)), None):
            raise SettingsError(f"{wrong}: a finished job is judged as it is, with its own settings")
        return ()
    names = list(dict.fromkeys(presets)) or ["paper" if ablation else "cpu"]
    found: list[tuple[str, Settings]] = []
    for name in names:
        settings = load_settings(
            name,
            config=config,
            overrides={"pack": pack, "seed": seed},
            guidance=guidance,
            assignments=assignments,
        )
        found += ablated(name, settings, several=len(names) > 1) if ablation else [(name, settings)]
    return tuple(found)


def _condition(text: str) -> tuple[str, str]:
    """``COLUMN=VALUE``, the column in lower case as the list's reader has it."""
    from ..errors import SettingsError

    column, equals, value = text.partition("=")
    if not equals or not column.strip():
        raise SettingsError(f"--only {text}: give COLUMN=VALUE")
    return column.strip().lower(), value.strip()


def _print(table: dict[str, object]) -> None:
    """The table and its notes on stdout; as wide as it needs to be where no terminal limits it."""
    from rich.console import Console

    from ..metrics.table import rich_tables

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200)
    for made in rich_tables(table):
        console.print(made)
    for note in table["notes"]:  # type: ignore[attr-defined]
        console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)
