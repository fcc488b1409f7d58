"""``ldvid presets``."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def presets(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all settings of all presets as JSON.")
    ] = False,
) -> None:
    """List the presets and what they set."""
    from ..configs import load_settings, preset_names

    all_presets = {name: load_settings(name).model_dump(mode="json") for name in preset_names()}
    if as_json:
        typer.echo(json.dumps(all_presets))
        return
    shown = ("steps", "start_level", "gradient", "batch", "dtype", "segment_frames")
    typer.echo("  ".join(["preset".ljust(10), *(key.ljust(14) for key in shown)]).rstrip())
    for name, values in all_presets.items():
        typer.echo("  ".join([name.ljust(10), *(str(values[key]).ljust(14) for key in shown)]).rstrip())
