"""Flags that several commands take, with the same names and the same help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Source = Annotated[
    Path, typer.Option("--source", "-s", metavar="FACE", help="A picture of the face to put in.")
]
SourceTexts = Annotated[
    list[str],
    typer.Option(
        "--source",
        "-s",
        metavar="FACE[@N]",
        help="A picture of the face to put in, or its URL; several of one face: A.png,B.png. With @N for "
        "person N of 'ldvid inspect'; may be repeated.",
    ),
]
Select = Annotated[
    Literal["largest", "all", "left", "right"] | None,
    typer.Option(help="Who gets a face without @N. Default: the largest person."),
]
Reference = Annotated[
    str | None,
    typer.Option(metavar="WHO", help="A picture, or its URL, of the person who gets a face without @N."),
]
SourceFace = Annotated[
    int | None,
    typer.Option("--source-face", metavar="N", min=1, help="Which face of the source, 1 being the largest."),
]
Preset = Annotated[str, typer.Option(help="Settings to start from; see 'ldvid presets'.")]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file with settings.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated."),
]
Guidance = Annotated[
    list[str] | None,
    typer.Option(
        "--guidance",
        metavar="TERM",
        help="Add a guidance term: a name, or FILE.py:Class of your own; may be repeated.",
    ),
]
Pack = Annotated[str | None, typer.Option(help="Model pack: a name or a folder.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the noise.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the networks run.")]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="CPU threads of the networks; another number rounds differently."),
]
Compile = Annotated[
    Literal["auto", "on", "off"] | None,
    typer.Option(
        "--compile",
        help="Compile networks for the GPU; auto: for long clips (docs/performance.md).",
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="Of the GPU's memory to use at most, as 10GB; batches shrink.",
    ),
]
DebugOverlay = Annotated[
    bool, typer.Option("--debug-overlay", help="Draw boxes, tracks, landmarks and mask outlines on it.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' warnings.")]

# Where and how the work runs.
Executor = Annotated[
    Literal["local", "ray"], typer.Option(help="This process, or a Ray cluster (see docs/cluster.md).")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Of the cluster. Default: RAY_ADDRESS, else one is started on this machine."
    ),
]
Gpus = Annotated[int | None, typer.Option(metavar="N", min=1, help="With Ray: GPUs to use. Default: all.")]
GpuFraction = Annotated[
    float, typer.Option(metavar="F", min=0.01, max=1, help="With Ray: share of a GPU for each worker.")
]
Workers = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="With Ray: processes that swap. Default: what fits.")
]
RayDashboard = Annotated[
    bool, typer.Option("--ray-dashboard", help="With Ray: say where its dashboard is; start it if need be.")
]
RayRuntimeEnv = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="With Ray: what workers run in, as YAML or JSON (see docs/cluster.md)."
    ),
]
Retries = Annotated[int, typer.Option(metavar="N", min=0, help="How often a failed segment is tried again.")]
TimeLimit = Annotated[
    float | None,
    typer.Option(metavar="S", min=0.1, help="With Ray: seconds that a stage may take over a segment."),
]
OnError = Annotated[
    Literal["fail", "passthrough"],
    typer.Option(help="A segment that fails for good ends the job, or keeps its original frames."),
]
Report = Annotated[
    bool | None,
    typer.Option(
        "--report/--no-report",
        envvar="LDVID_REPORT",
        show_default=False,
        help="OUT.report.html in full, as 'ldvid report' makes it, or none. Default: of a few frames.",
    ),
]
