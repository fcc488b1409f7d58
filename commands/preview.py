"""``ldvid preview``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import hush, parse_time
from .options import (
    Assignments,
    Config,
    Debug,
    DebugOverlay,
    Device,
    Guidance,
    Overwrite,
    Pack,
    Preset,
    Seed,
    SourceFace,
)

if TYPE_CHECKING:
    from ..configs import Settings


def preview(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A video, a GIF, a folder, or a picture.")],
    source: Annotated[
        str,
        typer.Option(
            "--source",
            "-s",
            metavar="FACE[,FACE]",
            help="Pictures of the face to put in; several are averaged.",
        ),
    ],
    at: Annotated[str, typer.Option(metavar="T", help="Which moment: seconds or HH:MM:SS.ms.")] = "0",
    samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Swaps to show, of seeds SEED, SEED + 1, …")
    ] = 1,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B,C",
            help="Compare settings, or presets (preset=cpu,quality): a row of cells. Given twice: a matrix.",
        ),
    ] = None,
    zoom: Annotated[bool, typer.Option("--zoom", help="Show the head instead of the whole frame.")] = False,
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
    debug_overlay: DebugOverlay = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Show one frame of CLIP before and after: original, mask and swaps side by side, as a PNG."""
    from ..configs import load_settings
    from ..errors import SettingsError
    from ..pipeline.assign import parse_source
    from ..pipeline.preview import preview as make
    from ..pipeline.preview_grid import Grid
    from ..pipeline.progress import Warnings, open_listener
    from ..pipeline.request import SourceFor, SwapRequest

    if not debug:
        hush()

    def load(more: Sequence[str] = ()) -> Settings:
        # "preset" is where settings start from, not one that could be set after the others.
        start = [text.partition("=")[2] for text in more if text.startswith("preset=")]
        return load_settings(
            start[0] if start else preset,
            config=config,
            overrides={"pack": pack, "seed": seed, "debug_overlay": debug_overlay or None},
            guidance=guidance or (),
            assignments=[*(assignments or ()), *(t for t in more if not t.startswith("preset="))],
        )

    settings = load()
    compared = None if not grid else Grid.of(grid, load)
    names, person = parse_source(source)
    if person is not None:
        raise SettingsError(f"--source {source}: in a preview the largest face of the frame is swapped")
    photos = tuple(map(Path, names))
    request = SwapRequest(
        clip=clip,
        source=photos[0],
        sources=() if len(photos) == 1 else (SourceFor(photos),),
        settings=settings,
        output=output,
        overwrite=overwrite,
        device=device,
        source_face=source_face,
    )
    several = samples > 1 or compared is not None
    listener = open_listener(unit="swaps") if several else Warnings()
    typer.echo(make(request, parse_time(at, "--at"), samples, grid=compared, zoom=zoom, listener=listener))
