"""The command line: parse, call one function of ``pipeline``, render. Heavy imports wait for a command."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import __version__
from .errors import LdvidError, SettingsError

app = typer.Typer(
    name="ldvid",
    help="Swap a face in a video by guided latent diffusion.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_TIME = re.compile(r"(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:\.\d*)?|\.\d+)(s|ms|us)?")


def parse_time(text: str, flag: str) -> float:
    """Seconds from ``12.5``, ``200ms``, ``MM:SS`` or ``HH:MM:SS.ms``, as FFmpeg reads them."""
    match = _TIME.fullmatch(text.strip())
    sexagesimal = match is not None and match[2] is not None
    if match is None or (sexagesimal and (match[4] or float(match[3]) >= 60)):
        raise SettingsError(f"{flag} {text}: not a time; write seconds (12.5) or HH:MM:SS.ms (00:01:02.5)")
    unit = {"ms": 1e-3, "us": 1e-6}.get(match[4], 1.0)
    return (int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + float(match[3])) * unit


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ldvid {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Swap a face in a video by guided latent diffusion."""


@app.command()
def swap(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A video, a GIF, or a folder of frames.")],
    source: Annotated[
        Path, typer.Option("--source", "-s", metavar="FACE", help="A picture of the face to put in.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Default: CLIP.swapped.mp4 beside the clip."),
    ] = None,
    preset: Annotated[str, typer.Option(help="Settings to start from; see 'ldvid presets'.")] = "cpu",
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file with settings.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated."),
    ] = None,
    pack: Annotated[str | None, typer.Option(help="Model pack: a name or a folder.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.")] = None,
    start: Annotated[
        str | None, typer.Option(metavar="T", help="Begin here: seconds or HH:MM:SS.ms.")
    ] = None,
    end: Annotated[str | None, typer.Option(metavar="T", help="Stop here, same notation.")] = None,
    source_face: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Which face of the source, 1 being the largest.")
    ] = None,
    allow_no_face: Annotated[
        bool, typer.Option("--allow-no-face", help="Copy a clip in which no face is found.")
    ] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the networks run.")] = "auto",
    job: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Job folder; kept. Default: OUT.ldvid-job.")
    ] = None,
    keep_job: Annotated[bool, typer.Option("--keep-job", help="Keep the job folder when done.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what an earlier job has done.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and the libraries' warnings.")
    ] = False,
) -> None:
    """Put the face of FACE on the person in CLIP.

    A stopped run goes on where it was when the same command is given again.
    """
    from .configs import load_settings
    from .pipeline.progress import open_listener, print_summary
    from .pipeline.request import SwapRequest
    from .pipeline.swap import swap_clip

    if not debug:
        _hush()
    settings = load_settings(
        preset, config=config, overrides={"pack": pack, "seed": seed}, assignments=assignments or ()
    )
    request = SwapRequest(
        clip=clip,
        source=source,
        settings=settings,
        output=output,
        start=None if start is None else parse_time(start, "--start"),
        end=None if end is None else parse_time(end, "--end"),
        job=job,
        overwrite=overwrite,
        restart=restart,
        keep_job=keep_job,
        device=device,
        source_face=source_face,
        allow_no_face=allow_no_face,
    )
    summary = swap_clip(request, open_listener(quiet=quiet))
    if as_json:
        typer.echo(json.dumps(asdict(summary), default=str, ensure_ascii=False))
    elif not quiet:
        print_summary(summary, sys.stdout)


@app.command()
def presets(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all settings of all presets as JSON.")
    ] = False,
) -> None:
    """List the presets and what they set."""
    from .configs import load_settings, preset_names

    all_presets = {name: load_settings(name).model_dump(mode="json") for name in preset_names()}
    if as_json:
        typer.echo(json.dumps(all_presets))
        return
    shown = ("steps", "start_level", "gradient", "batch", "dtype", "segment_frames")
    typer.echo("  ".join(["preset".ljust(10), *(key.ljust(14) for key in shown)]).rstrip())
    for name, values in all_presets.items():
        typer.echo("  ".join([name.ljust(10), *(str(values[key]).ljust(14) for key in shown)]).rstrip())


def _hush() -> None:
    """Keep the libraries' warnings off the user's terminal."""
    import logging

    warnings.simplefilter("ignore")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # it sets its logger's level from this alone
    logging.getLogger("libav").setLevel(logging.CRITICAL)


def _line(error: BaseException) -> str:
    notes: list[str] = getattr(error, "__notes__", [])
    text = "; ".join([str(error).strip() or type(error).__name__, *notes])
    return " ".join(text.split())


def _interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is behind it: a library that was just being imported wraps it in an error of its own."""
    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, KeyboardInterrupt):
        chain = chain.__cause__ or chain.__context__
    return chain is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (see ``docs/exit-codes.md``).

    Whatever goes wrong is one line on stderr, ``ldvid: error: …``; with ``--debug`` the traceback too.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    # Threads that spin while they wait gain nothing on an idle machine and cost half the speed on a busy one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not arguments:
        main(["--help"])
        return 2
    shown: BaseException
    try:
        code: Any = app(args=arguments, prog_name="ldvid", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except LdvidError as error:
        line, code, shown = _line(error), error.exit_code, error
    except KeyboardInterrupt as error:
        line, code, shown = "stopped", 130, error
    except Exception as error:
        shown = error
        if _interrupted(error):
            line, code = "stopped", 130
        elif hasattr(error, "format_message"):  # a usage error of the parser's, which typer may vendor
            line, code = f"{error.format_message()} See 'ldvid --help'.", 2
        elif type(error).__name__ == "Abort":
            line, code = "stopped", 130
        else:
            hint = "" if debug else "; this is a defect of ldvid, --debug shows where"
            line, code = f"{type(error).__name__}: {_line(error)}{hint}", 1
    if debug:
        traceback.print_exception(shown)
    print(f"ldvid: error: {' '.join(line.split())}", file=sys.stderr)  # noqa: T201
    return int(code)
