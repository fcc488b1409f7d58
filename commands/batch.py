"""``ldvid batch``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SettingsError
from .common import hush, parse_size, parse_time, ray_options
from .options import (
    Assignments,
    Compile,
    Config,
    Debug,
    Device,
    Executor,
    GpuFraction,
    Gpus,
    Guidance,
    MaxMemory,
    OnError,
    Pack,
    Preset,
    Quiet,
    RayAddress,
    RayDashboard,
    RayRuntimeEnv,
    Retries,
    Seed,
    SourceFace,
    Threads,
    TimeLimit,
    Workers,
)

if TYPE_CHECKING:
    from ..configs import Settings


def batch(
    clips: Annotated[
        list[str],
        typer.Argument(
            metavar="CLIPS...",
            help="CSV files with a column clip, patterns in quotes ('takes/**/*.mp4'), folders, videos.",
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="Folder of the outputs; made if missing.")
    ],
    source: Annotated[
        str | None,
        typer.Option("--source", "-s", metavar="FACE", help="For clips whose list names no other."),
    ] = None,
    preset: Preset = "cpu",
    config: Config = None,
    assignments: Assignments = None,
    guidance: Guidance = None,
    pack: Pack = None,
    seed: Seed = None,
    source_face: SourceFace = None,
    allow_no_face: Annotated[
        bool, typer.Option("--allow-no-face", help="Copy clips in which no face is found.")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
    compiled: Compile = None,
    max_memory: MaxMemory = None,
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
    at_once: Annotated[
        int | None,
        typer.Option(
            "--at-once", metavar="N", min=1, help="With Ray: clips open at once. Default: workers and 2."
        ),
    ] = None,
    keep_jobs: Annotated[
        bool, typer.Option("--keep-jobs", help="Keep the job folders, in DIR/.ldvid-jobs.")
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report/--no-report",
            envvar="LDVID_REPORT",
            help="OUT.report.html of each clip, of a few frames.",
        ),
    ] = True,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what earlier jobs of unfinished clips have done.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace outputs that are others than asked for.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects as JSON.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Swap many clips as one job; the same command again goes on where it stopped.

    A clip that fails does not stop the others. The exit code is 100 and the number that failed (at most 25).
    """
    from ..configs import load_settings
    from ..pipeline.batch import run_batch
    from ..pipeline.batch_list import here, read_items
    from ..pipeline.batch_progress import open_progress
    from ..pipeline.batch_report import counted, exit_code, print_results
    from ..pipeline.batch_request import BatchRequest
    from ..pipeline.failure import Policy

    if not debug:
        hush()
    if at_once is not None and executor == "local":
        raise SettingsError("--at-once: only with --executor ray")

    def settings(its_preset: str | None, its_seed: int | None) -> Settings:
        return load_settings(
            its_preset or preset,
            config=config,
            overrides={"pack": pack, "seed": seed if its_seed is None else its_seed, "compile": compiled},
            guidance=guidance or (),
            assignments=assignments or (),
        )

    ray = ray_options(
        executor,
        address=ray_address,
        gpus=gpus,
        gpu_fraction=gpu_fraction,
        workers=workers,
        time_limit=time_limit,
        debug=debug,
        dashboard=ray_dashboard,
        runtime_env=ray_runtime_env,
    )
    progress = open_progress(quiet=quiet)
    folder = here(output, "-o")
    items, messages = read_items(clips, parse_time, skip=folder)
    for message in messages:
        progress.log(message)
    request = BatchRequest(
        items=items,
        output=folder,
        settings=settings,
        source=None if source is None else here(source, "--source"),
        source_face=source_face,
        overwrite=overwrite,
        restart=restart,
        keep_jobs=keep_jobs,
        report=report,
        device=device,
        allow_no_face=allow_no_face,
        threads=threads,
        max_memory=None if max_memory is None else parse_size(max_memory, "--max-memory"),
        policy=Policy(retries, on_error, time_limit),
        ray=ray,
        at_once=at_once,
        debug=debug,
    )
    results = run_batch(request, progress)
    if as_json:
        typer.echo(json.dumps([asdict(r) for r in results], indent=2, ensure_ascii=False))
    elif not quiet:
        print_results(results, sys.stdout)
    if not quiet and (as_json or not sys.stdout.isatty()):
        progress.log(counted(results))
    if code := exit_code(results):
        raise typer.Exit(code)
