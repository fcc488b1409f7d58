"""``ldvid report``: a finished job as one HTML file that needs nothing else to be looked at."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import Interrupted, LdvidError, OutputError, OutputExistsError, SettingsError
from .job_report_inputs import Frames, Inputs, open_inputs
from .picture import is_picture
from .progress import Listener, Silent
from .request import Summary, SwapRequest
from .target import default_output, put_in_place, staged

FULL = (
    "this page came with the swap and is of a few frames; 'ldvid report' with the output measures many more"
)
QUICK = ", with the swap"  # what made such a page, so that it is known again


@dataclass(frozen=True)
class ReportRequest:
    """What to report. ``given`` is a job folder or a finished output; ``output`` None is ``report_file``;
    ``clip`` and ``sources`` say where they lie now; ``every``: measure one frame in so many, None as many as
    a full report does, or a ``quick`` one; ``alone``: nothing else computes in this process, so that its
    threads may be shared out."""

    given: Path
    output: Path | None = None
    clip: Path | None = None
    sources: tuple[Path, ...] = ()
    every: int | None = None
    overwrite: bool = False
    quick: bool = False
    alone: bool = True


def report_file(given: Path) -> Path:
    """In a job folder ``report.html``; beside an output, ``OUT.report.html``."""
    if (given / "job.json").is_file():
        return given / "report.html"
    whole = given.resolve() if given.name in ("", "..") else given
    return whole.with_name(f"{whole.name}.report.html")


def make_report(request: ReportRequest, listener: Listener | None = None) -> tuple[Path, dict[str, Any]]:
    """Measure the job's frames and write the page; returns where it is and the figures in it.

    Raises:
        LdvidError: any of the tree in ``errors``; nothing is left of a page that was not finished.
    """
    listener = listener if listener is not None else Silent()
    try:
        output = request.output if request.output is not None else report_file(request.given)
        check_report(output, overwrite=request.overwrite)
        inputs = open_inputs(request.given, clip=request.clip, sources=request.sources)
        taken = [inputs.plan.clip.path, *(p for s in inputs.sources for p in s.paths), request.given]
        if output.resolve() in [p.resolve() for p in taken]:
            raise SettingsError(f"--output {output}: it would replace an input; choose another")
        text, figures = _made(inputs, listener, request)
        with staged(output) as part:
            try:
                part.write_text(text, encoding="utf-8")
            except OSError as error:
                raise OutputError(f"{output}: can't be written: {error.strerror or error}") from error
            put_in_place(part, output, overwrite=request.overwrite or is_quick(output))
        return output, figures
    finally:
        listener.close()


def is_quick(page: Path) -> bool:
    """Whether this is a page that was made with a swap, unasked; anything else is somebody's."""
    try:
        if not page.is_file():  # a pipe would be waited for
            return False
        with page.open("rb") as file:
            head = file.read(1024).decode("utf-8", "replace")
    except OSError:
        return False
    return re.search(f'<meta name="generator" content="ldvid [^"]*{QUICK}">', head) is not None


def check_report(output: Path, *, overwrite: bool) -> None:
    """Whether a report could be written there.

    Raises:
        SettingsError: it isn't named as a page.
        OutputExistsError: something is there and ``overwrite`` was not given.
        OutputError: no such folder.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise SettingsError(f"--output {output}: a report is a page; name it .html")
    free = overwrite or not output.exists() or is_quick(output)
    if output.is_dir() or not free:
        raise OutputExistsError(f"{output} exists; give --overwrite to replace it, or another name with -o")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output}: there is no folder {output.parent}; make it first")


def _made(inputs: Inputs, listener: Listener, request: ReportRequest) -> tuple[str, dict[str, Any]]:
    from ..metrics.worst import findings
    from .job_report_measure import FEW, MOST, measure
    from .job_report_page import figures_of, page
    from .job_report_pictures import pictures
    from .provenance import DIGITAL_SOURCE_TYPE

    notice = str(inputs.facts.get("notice") or "Altered by AI: a face in this video was swapped by ldvid.")
    tags = {"comment": notice, "digital_source_type": DIGITAL_SOURCE_TYPE}
    frames = Frames(inputs)
    try:
        most = FEW if request.quick else MOST
        measured = measure(inputs, frames, listener, request.every, most, alone=request.alone)
        found = findings(measured.faces)
        shown = pictures(inputs, frames, measured, found, tags)
    finally:
        frames.close()
    if request.quick and measured.every > 1:
        measured = replace(measured, notes=(*measured.notes, FULL))
    figures = figures_of(inputs, measured, found)
    generator = f"ldvid {__version__}{QUICK if request.quick else ''}"
    return page(inputs, measured, found, shown, figures, notice, generator), figures


def check_place(request: SwapRequest) -> None:
    """Whether a report can follow this swap; errors as ``check_report``, SettingsError for what has none."""
    if is_picture(request.clip):
        raise SettingsError("--report: of a clip; a picture can be looked at as it is")
    if request.urls.output is not None:
        raise SettingsError("--report: the output goes to a URL; fetch it and give it to 'ldvid report'")
    if request.settings.debug_overlay:
        raise SettingsError("--report with --debug-overlay: what is drawn would be measured; give one")
    check_report(report_file(_output(request)), overwrite=request.overwrite)


def made_report(
    request: SwapRequest, summary: Summary, listener: Listener, *, asked: bool | None, alone: bool = True
) -> Path | None:
    """The report of a swap that has just been done, None where there is none. ``alone`` as in
    ``ReportRequest``.

    ``asked`` for it is made in full; ``asked`` None is one of a few frames, which fails no swap and takes
    nobody's place; False is none.
    """
    if asked:
        return _report_of(request, summary, listener, alone=alone)
    page = report_file(_output(request))
    if request.overwrite and is_quick(page):  # of the output that was replaced
        page.unlink(missing_ok=True)
    if asked is None:
        return _quick_report(request, summary, listener, alone=alone)
    listener.close()
    return None


def _report_of(
    request: SwapRequest, summary: Summary, listener: Listener, *, quick: bool = False, alone: bool
) -> Path | None:
    if not summary.frames_swapped:
        listener.log("no report: nobody was swapped")
        listener.close()
        return None
    output = _output(request)
    wanted = ReportRequest(
        output,
        clip=request.clip,
        sources=request.pictures,
        quick=quick,
        overwrite=request.overwrite,
        alone=alone,
    )
    try:
        return make_report(wanted, listener)[0]
    except LdvidError as error:
        error.add_note(f"the swap itself is complete: {output}")
        raise


def _quick_report(request: SwapRequest, summary: Summary, listener: Listener, *, alone: bool) -> Path | None:
    try:
        check_place(request)
        return _report_of(request, summary, listener, quick=True, alone=alone)
    except SettingsError:  # of a picture, at a URL, drawn over: nothing to report
        return None
    except KeyboardInterrupt as error:
        done = f"stopped while the report was made; the swap itself is complete: {_output(request)}"
        raise Interrupted(done) from error
    except Exception as error:  # whatever it is, the swap is well
        listener.log(f"no report: {error if isinstance(error, LdvidError) else repr(error)}")
        return None
    finally:
        listener.close()


def _output(request: SwapRequest) -> Path:
    return request.output or default_output(request.clip, debug=request.settings.debug_overlay)
