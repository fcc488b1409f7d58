"""The command line: the commands of ``commands/``, and what becomes of their errors."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from . import __version__
from .commands.batch import batch
from .commands.evaluate import evaluate
from .commands.inspect import inspect
from .commands.jobs import jobs
from .commands.packs import packs
from .commands.presets import presets
from .commands.preview import preview
from .commands.render import render
from .commands.report import report
from .commands.swap import swap
from .errors import LdvidError

app = typer.Typer(
    name="ldvid",
    help="Swap a face in a video by guided latent diffusion.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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


app.command()(swap)
app.command()(inspect)
app.command()(batch)
app.command()(render)
app.command()(jobs)
app.command()(preview)
app.command()(report)
app.command()(evaluate)
app.command()(presets)
app.add_typer(packs)


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
