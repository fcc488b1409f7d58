"""``ldvid render``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import hush
from .options import Debug, Overwrite, Quiet


def render(
    job: Annotated[
        Path, typer.Argument(metavar="DIR", help="A job folder, kept by --job, --keep-job or a stopped run.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Default: the output of the last call."),
    ] = None,
    overwrite: Overwrite = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        typer.Option(help="Where the networks run. Default: where the job was begun."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Go on with the job in DIR from its plan.json, which may have been edited.

    Only segments that are missing or whose part of the plan changed are rendered. The job folder is kept.
    """
    from ..pipeline.progress import open_listener, print_summary
    from ..pipeline.resume import continue_job

    if not debug:
        hush()
    summary = continue_job(
        job, output=output, overwrite=overwrite, device=device, listener=open_listener(quiet=quiet)
    )
    if as_json:
        typer.echo(json.dumps(asdict(summary), default=str, ensure_ascii=False))
    elif not quiet:
        print_summary(summary, sys.stdout)
