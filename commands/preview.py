"""``ldvid preview``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import hush, parse_time
from .options import (
    Assignments,
    Config,
    Debug,
    Device,
    Guidance,
    Overwrite,
    Pack,
    Preset,
    Seed,
    Source,
    SourceFace,
)


def preview(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A video, a GIF, a folder, or a picture.")],
    source: Source,
    at: Annotated[str, typer.Option(metavar="T", help="Which moment: seconds or HH:MM:SS.ms.")] = "0",
    samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Swaps to show, of seeds SEED, SEED + 1, …")
    ] = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT.png", help="Default: CLIP.preview-Ts.png beside it."),
    ] = None,
    preset: Preset = "cpu",
    config: Config = None,
    assignments: Assignments = None,
    guidance: Guidance = None,
    pack: Pack = None,
    seed: Seed = None,
    source_face: SourceFace = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Show one frame of CLIP before and after: original, mask and swaps side by side, as a PNG."""
    from ..configs import load_settings
    from ..pipeline.preview import preview as make
    from ..pipeline.request import SwapRequest

    if not debug:
        hush()
    settings = load_settings(
        preset,
        config=config,
        overrides={"pack": pack, "seed": seed},
        guidance=guidance or (),
        assignments=assignments or (),
    )
    request = SwapRequest(
        clip=clip,
        source=source,
        settings=settings,
        output=output,
        overwrite=overwrite,
        device=device,
        source_face=source_face,
    )
    typer.echo(make(request, parse_time(at, "--at"), samples))
