"""``ldvid render``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import hush, ray_options
from .options import (
    Debug,
    Executor,
    GpuFraction,
    Gpus,
    OnError,
    Overwrite,
    Quiet,
    RayAddress,
    RayDashboard,
    RayRuntimeEnv,
    Report,
    Retries,
    TimeLimit,
    Workers,
)


def render(
    job: Annotated[
        Path, typer.Argument(metavar="DIR", help="A job folder, kept by --job, --keep-job or a stopped run.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Default: the output of the last call."),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Put this plan in the place of the job's plan.json."),
    ] = None,
    overwrite: Overwrite = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        typer.Option(help="Where the networks run. Default: where the job was begun."),
    ] = None,
    executor: Executor = "local",
    ray_address: RayAddress = None,
    gpus: Gpus = None,
    gpu_fraction: GpuFraction = 1.0,
    workers: Workers = None,
    ray_runtime_env: RayRuntimeEnv = None,
    ray_dashboard: RayDashboard = False,
    retries: Retries = 2,
    time_limit: TimeLimit = None,
    on_error: OnError = "fail",
    report: Report = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Go on with the job in DIR from its plan.json, which may have been edited.

    Only segments that are missing or whose part of the plan changed are rendered. The job folder is kept.
    """
    from ..pipeline.failure import Policy
    from ..pipeline.job_report import check_place, made_report
    from ..pipeline.progress import open_listener, print_summary
    from ..pipeline.resume import continue_job, stored_request

    if not debug:
        hush()
    stored = stored_request(job)
    asked = replace(stored, output=output or stored.output, overwrite=overwrite)
    if report:
        check_place(asked)
    summary = continue_job(
        job,
        output=output,
        overwrite=overwrite,
        plan=plan,
        device=device,
        policy=Policy(retries, on_error, time_limit),
        ray=ray_options(
            executor,
            address=ray_address,
            gpus=gpus,
            gpu_fraction=gpu_fraction,
            workers=workers,
            time_limit=time_limit,
            debug=debug,
            dashboard=ray_dashboard,
            runtime_env=ray_runtime_env,
        ),
        listener=open_listener(quiet=quiet),
    )
    page = made_report(asked, summary, open_listener(quiet=quiet), asked=report)
    if as_json:
        values = asdict(summary) | ({} if page is None else {"page": page})
        typer.echo(json.dumps(values, default=str, ensure_ascii=False))
    elif not quiet:
        print_summary(summary, sys.stdout)
        if page is not None:
            typer.echo(f"report: {page}")
