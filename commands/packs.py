"""``ldvid packs``: list, pull, verify, path."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .common import hush
from .options import Debug, Quiet

if TYPE_CHECKING:
    from ..pipeline.pack_check import Check
    from ..pipeline.packs import FileCheck

packs = typer.Typer(name="packs", rich_markup_mode=None)
_Name = Annotated[str, typer.Argument(metavar="NAME", help="A pack's name, or a folder with a pack.toml.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@packs.callback(invoke_without_command=True)
def _packs(context: typer.Context) -> None:
    """List, fetch and check model packs."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@packs.command("list")
def list_(as_json: _Json = False) -> None:
    """List the packs: version, state, size, licence, and where their files lie."""
    from ..pipeline.packs import list_packs
    from ..pipeline.transfers import human

    found = list_packs()
    if as_json:
        keys = ("name", "version", "state", "size", "files", "licence", "description")
        rows = [
            {**{k: getattr(p, k) for k in keys}, "folder": str(p.folder), "missing": list(p.missing)}
            for p in found
        ]
        typer.echo(json.dumps(rows))
        return
    for pack in found:
        size = "" if pack.size is None else human(pack.size)
        typer.echo(
            "  ".join([pack.name.ljust(14), pack.version.ljust(3), pack.state.ljust(24), size]).rstrip()
        )
        for line in (pack.description, f"licence: {pack.licence}" if pack.licence else "", str(pack.folder)):
            if line:
                typer.echo(f"    {line}")


@packs.command()
def pull(
    name: _Name,
    force: Annotated[bool, typer.Option("--force", help="Fetch all files again.")] = False,
    mirror: Annotated[
        list[str] | None,
        typer.Option(
            "--mirror",
            metavar="PREFIX=URL",
            envvar="LDVID_MIRROR",
            help="Fetch addresses that begin with PREFIX from URL; may be repeated. "
            "For the Hugging Face hub set HF_ENDPOINT.",
        ),
    ] = None,
    manual: Annotated[
        bool, typer.Option("--manual", help="Fetch nothing; print how to place missing files by hand.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch a pack's files, check them, and take those that lie in place already.

    A stopped download goes on where it was when the same command is given again.
    """
    from ..pipeline.packs import manual as instructions

    if manual:
        typer.echo(instructions(name), nl=False)
        return
    from ..pipeline.pull import pull as run
    from ..pipeline.transfers import open_transfers

    if not debug:
        hush()
    show = open_transfers(quiet=quiet)
    try:
        done = run(name, force=force, mirrors=tuple(mirror or ()), show=show)
    finally:
        show.close()
    if not quiet:
        typer.echo(f"{done.folder}: {len(done.fetched)} files fetched, {len(done.kept)} were there", err=True)


@packs.command()
def verify(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Default: every pack that is there.")
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Also load the networks and measure them on --picture.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="A portrait, for --run.")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where the networks run, for --run.")
    ] = "auto",
    as_json: _Json = False,
    debug: Debug = False,
) -> None:
    """Hash every file of a pack again, and see with --run whether its networks fit together."""
    from ..errors import PackError, SettingsError
    from ..pipeline.packs import list_packs
    from ..pipeline.packs import verify as check_files

    if run and (picture is None or name is None):
        raise SettingsError("--run: needs a NAME and --picture FILE, a picture of one face to measure on")
    if not debug:
        hush()
    names = [name] if name is not None else [p.name for p in list_packs() if p.state != "not downloaded"]
    files = {each: check_files(each) for each in names}
    bad = {each: [c for c in checks if c.state != "ok"] for each, checks in files.items()}
    measured: list[Check] = []
    if run and name is not None and picture is not None and not bad[name]:
        from ..pipeline.pack_check import check_pack

        measured = check_pack(name, picture, device)
    if as_json:
        typer.echo(json.dumps(_report(files, measured)))
    else:
        _show(files, measured)
    sys.stdout.flush()
    for each, wrong in bad.items():
        if wrong:
            states = ", ".join(f"{c.file} {c.state}" for c in wrong)
            raise PackError(f"pack {each}: {states}; 'ldvid packs pull {each}' fetches what is wrong")
    if failed := [c for c in measured if not c.ok]:
        raise PackError(f"pack {name}: its parts don't fit together: {', '.join(c.what for c in failed)}")


@packs.command()
def path(name: _Name) -> None:
    """Print the folder where a pack's files lie, or will lie."""
    from ..pipeline.packs import pack_folder

    typer.echo(str(pack_folder(name)))


def _show(files: dict[str, list[FileCheck]], measured: list[Check]) -> None:
    for name, checks in files.items():
        for c in checks:
            note = f"  ({c.note})" if c.note else ""
            typer.echo(f"{name}/{c.file}: {c.state}{note}")
    for m in measured:
        verdict = "ok" if m.ok else f"too low, {m.needed:g} needed"
        typer.echo(f"{m.what}: {f'{m.value:.2f} {m.unit}'.rstrip()}: {verdict}")


def _report(files: dict[str, list[FileCheck]], measured: list[Check]) -> dict[str, object]:
    from dataclasses import asdict

    report: dict[str, object] = {"files": {n: [asdict(c) for c in checks] for n, checks in files.items()}}
    if measured:
        report["checks"] = [{**asdict(m), "ok": m.ok} for m in measured]
    return report
