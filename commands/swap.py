"""``ldvid swap``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import SettingsError
from .common import hush, parse_size, parse_time, ray_options
from .options import (
    Assignments,
    Compile,
    Config,
    Debug,
    DebugOverlay,
    Device,
    Executor,
    GpuFraction,
    Gpus,
    Guidance,
    MaxMemory,
    OnError,
    Overwrite,
    Pack,
    Preset,
    Quiet,
    RayAddress,
    RayDashboard,
    RayRuntimeEnv,
    Reference,
    Report,
    Retries,
    Seed,
    Select,
    SourceFace,
    SourceTexts,
    Threads,
    TimeLimit,
    Workers,
)


def swap(
    clip: Annotated[
        str,
        typer.Argument(metavar="CLIP", help="A video, a GIF, a folder of frames, or a picture; or its URL."),
    ],
    source: SourceTexts,
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
    select: Select = None,
    reference: Reference = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Render this plan.json, of 'ldvid inspect' or edited, without analysis."
        ),
    ] = None,
    allow_no_face: Annotated[
        bool, typer.Option("--allow-no-face", help="Copy a clip in which no face is found.")
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
    job: Annotated[
        str | None, typer.Option(metavar="DIR", help="Job folder; kept. Default: OUT.ldvid-job.")
    ] = None,
    keep_job: Annotated[bool, typer.Option("--keep-job", help="Keep the job folder when done.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what an earlier job has done.")] = False,
    debug_overlay: DebugOverlay = False,
    report: Report = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Put the face of FACE on the person in CLIP, or each of several on the person of its own.

    A stopped run goes on where it was when the same command is given again.
    """
    from ..configs import load_settings
    from ..pipeline.assign import check_sources, parse_source
    from ..pipeline.failure import Policy
    from ..pipeline.job_report import check_place, made_report
    from ..pipeline.picture import is_picture, swap_picture
    from ..pipeline.progress import open_listener, print_summary
    from ..pipeline.remote import destination, errand
    from ..pipeline.request import SourceFor, SwapRequest, Urls
    from ..pipeline.swap import swap_clip
    from ..pipeline.urls import is_url, local_path, shown

    if not debug:
        hush()
    settings = load_settings(
        preset,
        config=config,
        overrides={"pack": pack, "seed": seed, "debug_overlay": debug_overlay or None, "compile": compiled},
        guidance=guidance or (),
        assignments=assignments or (),
    )
    faces = [parse_source(text) for text in source]
    texts = [photo for photos, _ in faces for photo in photos] + ([] if reference is None else [reference])
    named = {text: Path(shown(text)) if is_url(text) else Path(text) for text in (clip, *texts)}
    asked = SwapRequest(
        clip=named[clip],
        source=named[texts[0]],
        sources=tuple(SourceFor(tuple(named[p] for p in photos), person) for photos, person in faces),
        settings=settings,
        source_face=source_face,
        select=select,
        reference=None if reference is None else named[reference],
        plan=plan,
    )
    check_sources(asked)  # before anything is fetched
    if report:
        check_place(
            replace(
                asked,
                clip=local_path(clip) or asked.clip,
                output=None if output is None else local_path(output),
                urls=Urls(output=destination(clip, output)),
                overwrite=overwrite,
            )
        )
    places = errand(clip, texts, output, job, overwrite=overwrite, restart=restart)
    pictures = iter(places.sources)
    sources = tuple(SourceFor(tuple(next(pictures) for _ in photos), person) for photos, person in faces)
    request = replace(
        asked,
        clip=places.clip,
        source=places.sources[0],
        # One picture for whoever is selected is the request's ``source``.
        sources=() if len(sources) == len(sources[0].photos) == 1 and faces[0][1] is None else sources,
        reference=None if reference is None else next(pictures),
        start=None if start is None else parse_time(start, "--start"),
        end=None if end is None else parse_time(end, "--end"),
        overwrite=overwrite,
        restart=restart,
        keep_job=keep_job,
        device=device,
        threads=threads,
        max_memory=None if max_memory is None else parse_size(max_memory, "--max-memory"),
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
        page = made_report(request, summary, open_listener(quiet=quiet), asked=report)
        if as_json:
            values = asdict(summary) | ({} if page is None else {"page": page})
            typer.echo(json.dumps(values, default=str, ensure_ascii=False))
        elif not quiet:
            print_summary(summary, sys.stdout)
            if page is not None:
                typer.echo(f"report: {page}")
