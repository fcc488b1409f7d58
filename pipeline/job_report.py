"""``ldvid report``: a finished job as one HTML file that needs nothing else to be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LdvidError, OutputError, OutputExistsError, SettingsError
from .job_report_inputs import Frames, Inputs, open_inputs
from .picture import is_picture
from .progress import Listener, Silent
from .request import Summary, SwapRequest
from .target import default_output, put_in_place, staged


@dataclass(frozen=True)
class ReportRequest:
    """What to report. ``given`` is a job folder or a finished output; ``output`` None is ``report_file``;
    ``clip`` and ``sources`` say where they lie now; ``every``: measure one frame in so many."""

    given: Path
    output: Path | None = None
    clip: Path | None = None
    sources: tuple[Path, ...] = ()
    every: int | None = None
    overwrite: bool = False


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
        text, figures = _made(inputs, listener, request.every)
        with staged(output) as part:
            try:
                part.write_text(text, encoding="utf-8")
            except OSError as error:
                raise OutputError(f"{output}: can't be written: {error.strerror or error}") from error
            put_in_place(part, output, overwrite=request.overwrite)
        return output, figures
    finally:
        listener.close()


def check_report(output: Path, *, overwrite: bool) -> None:
    """Whether a report could be written there.

    Raises:
        SettingsError: it isn't named as a page.
        OutputExistsError: something is there and ``overwrite`` was not given.
        OutputError: no such folder.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise SettingsError(f"--output {output}: a report is a page; name it .html")
    if output.is_dir() or (output.exists() and not overwrite):
        raise OutputExistsError(f"{output} exists; give --overwrite to replace it, or another name with -o")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output}: there is no folder {output.parent}; make it first")


def _made(inputs: Inputs, listener: Listener, every: int | None) -> tuple[str, dict[str, Any]]:
    from ..metrics.worst import findings
    from .job_report_measure import measure
    from .job_report_page import figures_of, page
    from .job_report_pictures import pictures
    from .provenance import DIGITAL_SOURCE_TYPE

    notice = str(inputs.facts.get("notice") or "Altered by AI: a face in this video was swapped by ldvid.")
    tags = {"comment": notice, "digital_source_type": DIGITAL_SOURCE_TYPE}
    frames = Frames(inputs)
    try:
        measured = measure(inputs, frames, listener, every)
        found = findings(measured.faces)
        shown = pictures(inputs, frames, measured, found, tags)
    finally:
        frames.close()
    figures = figures_of(inputs, measured, found)
    return page(inputs, measured, found, shown, figures, notice), figures


def check_place(request: SwapRequest) -> None:
    """Whether a report can follow this swap; errors as ``check_report``, SettingsError for what has none."""
    if is_picture(request.clip):
        raise SettingsError("--report: of a clip; a picture can be looked at as it is")
    if request.urls.output is not None:
        raise SettingsError("--report: the output goes to a URL; fetch it and give it to 'ldvid report'")
    if request.settings.debug_overlay:
        raise SettingsError("--report with --debug-overlay: what is drawn would be measured; give one")
    check_report(report_file(_output(request)), overwrite=request.overwrite)


def report_of(request: SwapRequest, summary: Summary, listener: Listener) -> Path | None:
    """The report of a swap that has just been done; None where nobody was swapped."""
    if not summary.frames_swapped:
        listener.log("no report: nobody was swapped")
        listener.close()
        return None
    output = _output(request)
    wanted = ReportRequest(output, clip=request.clip, sources=request.pictures, overwrite=request.overwrite)
    try:
        return make_report(wanted, listener)[0]
    except LdvidError as error:
        error.add_note(f"the swap itself is complete: {output}")
        raise


def _output(request: SwapRequest) -> Path:
    return request.output or default_output(request.clip, debug=request.settings.debug_overlay)
