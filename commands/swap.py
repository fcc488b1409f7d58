"""``ldvid swap``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from ..errors import SettingsError
from .common import hush, parse_time, ray_options
from .options import (
    Assignments,
    Config,
    Debug,
    Device,
    Executor,
    GpuFraction,
    Gpus,
    Guidance,
    OnError,
    Overwrite,
    Pack,
    Preset,
    Quiet,
    RayAddress,
    RayDashboard,
    RayRuntimeEnv,
    Retries,
    Seed,
    SourceFace,
    SourceText,
    Threads,
    TimeLimit,
    Workers,
)


def swap(
    clip: Annotated[
        str,
        typer.Argument(metavar="CLIP", help="A video, a GIF, a folder of frames, or a picture; or its URL."),
    ],
    source: SourceText,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="OUT", help="Default: CLIP.swapped.mp4 beside the clip."),
    ] = None,
    preset: Preset = "cpu",
    config: Config = None,
    assignments: Assignments = None,
    guidance: Guidance = None,
    pack: Pack = None,
    seed: Seed = None,
    samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Of a picture: N variants, of seeds SEED, SEED + 1, …")
    ] = 1,
    start: Annotated[
        str | None, typer.Option(metavar="T", help="Begin here: seconds or HH:MM:SS.ms.")
    ] = None,
    end: Annotated[str | None, typer.Option(metavar="T", help="Stop here, same notation.")] = None,
    source_face: SourceFace = None,
    allow_no_face: Annotated[
        bool, typer.Option("--allow-no-face", help="Copy a clip in which no face is found.")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
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
    job: Annotated[
        str | None, typer.Option(metavar="DIR", help="Job folder; kept. Default: OUT.ldvid-job.")
    ] = None,
    keep_job: Annotated[bool, typer.Option("--keep-job", help="Keep the job folder when done.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what an earlier job has done.")] = False,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Put the face of FACE on the person in CLIP.

    A stopped run goes on where it was when the same command is given again.
    """
    from ..configs import load_settings
    from ..pipeline.failure import Policy
    from ..pipeline.picture import is_picture, swap_picture
    from ..pipeline.progress import open_listener, print_summary
    from ..pipeline.remote import errand
    from ..pipeline.request import SwapRequest
    from ..pipeline.swap import swap_clip

    if not debug:
        hush()
    settings = load_settings(
        preset,
        config=config,
        overrides={"pack": pack, "seed": seed},
        guidance=guidance or (),
        assignments=assignments or (),
    )
    places = errand(clip, source, output, job, overwrite=overwrite, restart=restart)
    request = SwapRequest(
        clip=places.clip,
        source=places.source,
        settings=settings,
        start=None if start is None else parse_time(start, "--start"),
        end=None if end is None else parse_time(end, "--end"),
        overwrite=overwrite,
        restart=restart,
        keep_job=keep_job,
        device=device,
        threads=threads,
        source_face=source_face,
        allow_no_face=allow_no_face,
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
    )
    request = places.request(request)
    if is_picture(request.clip):
        summaries = swap_picture(request, samples, open_listener(quiet=quiet, unit="pictures"))
    elif samples > 1:
        raise SettingsError(
            f"--samples {samples}: {clip} is a clip; 'ldvid preview' shows several of a frame"
        )
    else:
        summaries = [swap_clip(request, open_listener(quiet=quiet))]
    for summary in places.deliver(summaries, overwrite=overwrite):
        if as_json:
            typer.echo(json.dumps(asdict(summary), default=str, ensure_ascii=False))
        elif not quiet:
            print_summary(summary, sys.stdout)
