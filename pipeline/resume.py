"""A job continued from its folder alone: the request that made it, stored in ``job.json`` and read back."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from .. import __version__
from ..configs import Settings
from ..configs.guidance import split_reference
from ..errors import JobError
from .job import JobChangedError, load_plan, read_job
from .request import SourceFor, SwapRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .failure import Policy
    from .progress import Listener
    from .request import RayOptions, Summary

_PATHS = tuple(f.name for f in fields(SwapRequest) if "Path" in str(f.type))
# The first in a form of its own; the last say how a call works, not what it makes.
_NOT_STORED = ("settings", "job", "restart", "policy", "ray", "urls", "plan", "plan_rules", "sources")


def request_values(request: SwapRequest, output: Path) -> dict[str, Any]:
    """A request as JSON that holds wherever it is read: paths are absolute, those of the user's guidance
    terms and of a pack that is a folder included."""
    from ..stages.swap.pack import find_pack, known_packs

    values = {f.name: getattr(request, f.name) for f in fields(request) if f.name not in _NOT_STORED}
    values["output"] = output
    if request.pack_folder is None and (name := request.settings.pack) not in known_packs():
        values["pack_folder"] = find_pack(name)
    stored = {k: str(v.absolute()) if isinstance(v, Path) else v for k, v in values.items()}
    files = [None if term.file is None else str(term.file) for term in request.settings.guidance]
    stored["sources"] = [
        {"photos": [str(p.absolute()) for p in s.photos], "person": s.person} for s in request.sources
    ]
    return stored | {"settings": request.settings.model_dump(mode="json"), "term_files": files}


def stored_request(folder: Path) -> SwapRequest:
    """The request that made the job in ``folder``, as a call that continues it.

    Raises:
        JobError: no job, a damaged one, or one that another version of ldvid stored and this one can't read.
        SettingsError: the file of a guidance term is gone.
    """
    job = read_job(folder)
    stored = job.get("request")
    if not isinstance(stored, dict):
        raise JobError(
            f"{folder / 'job.json'}: doesn't say which call made it; give the same swap command again"
        )
    try:
        known = {f.name for f in fields(SwapRequest)} - set(_NOT_STORED)
        values = dict(stored)
        settings = _settings(values.pop("settings"), values.pop("term_files"))
        sources = tuple(
            SourceFor(tuple(Path(p) for p in s["photos"]), s["person"]) for s in values.pop("sources", ())
        )
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"{', '.join(unknown)} not known")
        values |= {k: Path(v) for k in _PATHS if isinstance(v := values.get(k), str) and "://" not in v}
        values["threads"] = job["identity"].get("threads")  # those it was begun with, also on another machine
        return SwapRequest(settings=settings, job=folder, sources=sources, **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        version, why = job["identity"].get("version"), _reason(error)
        cause = f"ldvid {version} wrote it, this is {__version__}" if version != __version__ else "damaged"
        raise JobError(f"{folder / 'job.json'}: its request can't be used ({cause}): {why}") from error


def continue_job(
    folder: Path,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    device: str | None = None,
    policy: Policy | None = None,
    ray: RayOptions | None = None,
    plan: Path | None = None,
    listener: Listener | None = None,
) -> Summary:
    """Go on with the job in ``folder`` from its plan, which may have been edited: what changed and what is
    missing is rendered, and the output put together. The folder is kept.

    ``output`` None and ``device`` None are those of the last call; ``overwrite`` is asked for each time.
    ``policy`` and ``ray`` are as in ``SwapRequest``; ``plan`` is a file with a plan to take the place of
    the job's own.

    Raises:
        JobError: no job, one that isn't analysed yet, a plan that an edit broke, or one whose clip, source,
            settings, pack, device or version of ldvid changed (says which).
        LdvidError: as ``swap_clip``.
    """
    from .swap import swap_clip

    request = stored_request(folder)
    if plan is None and not (folder / "plan.json").is_file():
        raise JobError(f"{folder}: is not analysed yet; the swap command that made it does that and goes on")
    if plan is None:
        load_plan(folder)  # a broken one is said before anything is loaded
    request = replace(
        request,
        output=request.output if output is None else output,
        overwrite=overwrite,
        device=request.device if device is None else device,
        policy=request.policy if policy is None else policy,
        ray=ray,
        plan=plan,
        plan_rules=True,  # who gets what was settled when the job was begun
    )
    try:
        return swap_clip(request, listener)
    except JobChangedError as error:
        raise JobError(
            f"{folder}: the job can't go on, something has changed: {'; '.join(error.changes)}. Put it back, "
            "or give the swap command with --restart"
        ) from error


def _settings(values: Mapping[str, Any], files: list[str | None]) -> Settings:
    """Settings as stored, their terms found where they were. A term's hash is taken anew: a file that
    changed is a change of the job."""
    terms = []
    for term, file in zip(values["guidance"], files, strict=True):
        if file is not None:
            reference = split_reference(str(term["term"]))
            if reference is None:
                raise ValueError(f"guidance term {term['term']} is no file")
            term = {k: v for k, v in term.items() if k != "sha256"} | {"term": f"{file}:{reference[1]}"}
        terms.append(term)
    return Settings.model_validate({**values, "guidance": terms})


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"setting {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
