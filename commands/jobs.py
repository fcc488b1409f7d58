"""``ldvid jobs``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import JobError
from .options import Debug


def jobs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR...", help="Job folders, or folders that hold some. Default: this one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Show how far jobs are; changes nothing.

    A table on a terminal, tab-separated lines elsewhere. The exit code is 8 if a folder is no job or damaged.
    """
    from ..pipeline.jobs import list_jobs, print_jobs

    found = list_jobs(folders or [Path()])
    if as_json:
        typer.echo(json.dumps([job.values() for job in found], indent=2, ensure_ascii=False))
    else:
        print_jobs(found, sys.stdout)
    if any(job.problem is not None for job in found):
        raise typer.Exit(JobError.exit_code)
