"""What can be checked of a swap, and said of it, before there is a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import SettingsError
from .assign import check_sources, identity_values
from .files import sha256_of
from .job import Identity
from .placing import Placing, left_by_a_crash
from .request import SwapRequest
from .target import check_inputs, check_output

if TYPE_CHECKING:
    from ..stages.swap.pack import Pack


def check_request(request: SwapRequest, output: Path, report: Path, job_folder: Path) -> Placing | None:
    """What an earlier run left that was killed in its last moment, if one was.

    Raises:
        SettingsError: flags that contradict each other.
        InputError: a file that isn't there, or none that is meant.
        OutputError: an output that may not be written.
    """
    if request.start is not None and request.end is not None and request.end <= request.start:
        raise SettingsError(f"--end {request.end:g} s is not after --start {request.start:g} s")
    if request.job is not None and not request.job.absolute().parent.is_dir():
        raise SettingsError(f"--job {request.job}: there is no folder {request.job.absolute().parent}")
    check_sources(request)
    for photo in (p for wanted in request.wanted for p in wanted.photos):
        check_inputs(request.clip, photo)
    if request.reference is not None:
        check_inputs(request.clip, request.reference, "--reference")
    inputs = (request.clip, *request.pictures, *([] if request.plan is None else [request.plan]))
    placing = None if request.restart else left_by_a_crash(job_folder, output, report)
    check_output(output, report, inputs, overwrite=request.overwrite or placing is not None)
    return placing


def identity_of(
    request: SwapRequest,
    clip_sha256: str,
    pack: Pack,
    computed: tuple[str, int | None],
    dtype: str,
    *,
    compiled: bool = False,
) -> Identity:
    """What the bytes of a job, or of one picture, depend on.

    ``computed``: device and threads, as ``compute_device`` gives them. ``dtype`` and ``compiled`` say what
    the settings may leave to be found out.
    """
    device, threads = computed
    return Identity(
        clip=str(request.clip),
        clip_sha256=clip_sha256,
        start=request.start,
        end=request.end,
        source_sha256=sha256_of(request.source),
        source_face=request.source_face,
        settings=request.settings.model_dump(mode="json"),
        settings_digest=request.settings.digest(),
        pack=pack.manifest.name,
        pack_digest=pack.digest(),
        version=__version__,
        threads=threads,
        device=device,
        dtype=dtype,
        compiled=compiled,
        who=identity_values(request),
    )
