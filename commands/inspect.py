"""``ldvid inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .common import hush, parse_time
from .options import Assignments, Config, Debug, Device, Overwrite, Pack, Preset, Quiet, Threads


def inspect(
    clip: Annotated[
        str, typer.Argument(metavar="CLIP", help="A video, a GIF, or a folder of frames; or its URL.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Default: CLIP.people beside the clip."),
    ] = None,
    preset: Preset = "cpu",
    config: Config = None,
    assignments: Assignments = None,
    pack: Pack = None,
    start: Annotated[
        str | None, typer.Option(metavar="T", help="Begin here: seconds or HH:MM:SS.ms.")
    ] = None,
    end: Annotated[str | None, typer.Option(metavar="T", help="Stop here, same notation.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the people as JSON on stdout.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List the people in CLIP, with a sheet of their pictures and a plan to swap by.

    Writes people.png and plan.json. Their numbers are those of 'ldvid swap --source FACE@N'.
    """
    from ..configs import load_settings
    from ..errors import SettingsError
    from ..pipeline.inspect import InspectRequest, inspect_clip, table
    from ..pipeline.progress import open_listener
    from ..pipeline.urls import local_path, shown

    if not debug:
        hush()
    settings = load_settings(preset, config=config, overrides={"pack": pack}, assignments=assignments or ())
    here = local_path(clip)
    if here is None:
        if output is None:
            raise SettingsError(f"{shown(clip)}: say with -o in which folder the plan goes")
        from ..pipeline.storage import localise

        here = localise(clip)
    found = inspect_clip(
        InspectRequest(
            clip=here,
            settings=settings,
            folder=output,
            start=None if start is None else parse_time(start, "--start"),
            end=None if end is None else parse_time(end, "--end"),
            overwrite=overwrite,
            device=device,
            threads=threads,
        ),
        open_listener(quiet=quiet),
    )
    if as_json:
        values = {"people": found.people, "shots": found.shots, "plan": str(found.plan)}
        typer.echo(json.dumps(values | {"sheet": str(found.sheet)}, ensure_ascii=False))
    elif not quiet:
        for line in table(found):
            typer.echo(line)
        typer.echo(f"pictures: {found.sheet}\nplan: {found.plan}")
