"""``ldvid report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .common import hush
from .options import Debug, Quiet


def report(
    given: Annotated[
        Path, typer.Argument(metavar="JOB|OUT", help="A finished job's folder, or the output of one.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE.html", help="Default: OUT.report.html, or report.html in the job."
        ),
    ] = None,
    clip: Annotated[
        Path | None, typer.Option(metavar="CLIP", help="Where the original lies, if it was moved.")
    ] = None,
    source: Annotated[
        list[Path] | None,
        typer.Option(
            "--source", "-s", metavar="FACE", help="Where the source picture lies, if it was moved."
        ),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Measure every Nth frame. Default: 480 faces in all."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON on stdout.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show a finished job as one HTML file: before and after, plots over time, worst frames and why.

    Everything is in the file; nothing is sent or asked for when it is looked at.
    """
    from ..pipeline.job_report import ReportRequest, make_report
    from ..pipeline.progress import open_listener

    if not debug:
        hush()
    request = ReportRequest(given, output, clip, tuple(source or ()), every, overwrite=overwrite)
    made, figures = make_report(request, open_listener(quiet=quiet))
    if as_json:
        typer.echo(json.dumps({"report": str(made), **figures}, ensure_ascii=False))
    elif not quiet:
        typer.echo(made)
