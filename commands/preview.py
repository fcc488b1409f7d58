"""``ldvid preview``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import hush, parse_time


def preview(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A video, a GIF, a folder, or a picture.")],
    source: Annotated[
        Path, typer.Option("--source", "-s", metavar="FACE", help="A picture of the face to put in.")
    ],
    at: Annotated[str, typer.Option(metavar="T", help="Which moment: seconds or HH:MM:SS.ms.")] = "0",
    samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Swaps to show, of seeds SEED, SEED + 1, …")
    ] = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT.png", help="Default: CLIP.preview-Ts.png beside it."),
    ] = None,
    preset: Annotated[str, typer.Option(help="Settings to start from; see 'ldvid presets'.")] = "cpu",
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file with settings.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated."),
    ] = None,
    guidance: Annotated[
        list[str] | None,
        typer.Option(
            "--guidance",
            metavar="TERM",
            help="Add a guidance term: a name, or FILE.py:Class of your own; may be repeated.",
        ),
    ] = None,
    pack: Annotated[str | None, typer.Option(help="Model pack: a name or a folder.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    source_face: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Which face of the source, 1 being the largest.")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the networks run.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and the libraries' warnings.")
    ] = False,
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
