"""What a batch looks at before any work: which clips can be swapped, and which are already."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import InputError, LdvidError, OutputExistsError, PackError, SettingsError
from .batch_places import Hashes, differences, read_record
from .batch_report import Result
from .batch_request import BatchRequest
from .files import remove
from .job import JobChangedError, read_job
from .picture import is_picture
from .provenance import report_path
from .request import SwapRequest
from .target import check_inputs, check_output


@contextlib.contextmanager
def looking(
    request: BatchRequest, swaps: Sequence[SwapRequest], results: Sequence[Result]
) -> Iterator[Iterator[Result]]:
    """Each clip's result as far as it can be said without work: "failed" for one that can't be swapped,
    "done before" for one that was. Several threads read the files that this takes.

    Raises:
        PackError: no clip's pack can be used.
    """
    packs, hashes = _packs(swaps), Hashes()
    threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "ldvid-look")
    try:
        yield threads.map(lambda swap, result: _look(request, swap, result, packs, hashes), swaps, results)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _packs(swaps: Sequence[SwapRequest]) -> dict[str, str | PackError]:
    """Pack → its digest, or why it can't be used."""
    from ..stages.swap.pack import open_pack

    found: dict[str, str | PackError] = {}
    for name in dict.fromkeys(swap.settings.pack for swap in swaps):
        try:
            found[name] = open_pack(name).digest()
        except PackError as error:
            found[name] = error
    errors = [e for e in found.values() if isinstance(e, PackError)]
    if len(errors) == len(found):
        raise errors[0]
    return found


def _look(
    request: BatchRequest,
    swap: SwapRequest,
    result: Result,
    packs: dict[str, str | PackError],
    hashes: Hashes,
) -> Result:
    assert swap.output is not None and swap.job is not None
    try:
        if swap.end is not None and swap.end <= (swap.start or 0):
            raise SettingsError(f"end {swap.end:g} s is not after start {swap.start or 0:g} s")
        check_inputs(swap.clip, swap.source)
        if is_picture(swap.clip):
            raise InputError(f"{swap.clip}: is a picture; 'ldvid swap' takes pictures")
        if isinstance(pack := packs[swap.settings.pack], PackError):
            raise pack
        anew = request.overwrite and request.restart
        record = None if anew else read_record(swap.output)
        other = [] if record is None else differences(swap, swap.output, record, pack, hashes)
        if record is not None and not other:
            _tidy(request, swap.job)
            return result.done_before(record)
        # A job of it may have been killed while it put the output in place: the job says whether it was.
        begun = (swap.job / "job.json").is_file()
        if other and not swap.overwrite and not begun:
            raise OutputExistsError(
                f"{swap.output} exists and differs in: {', '.join(other)}; give --overwrite to replace it"
            )
        if swap.output.is_relative_to(request.output):
            swap.output.parent.mkdir(parents=True, exist_ok=True)
        inputs = (swap.clip, swap.source)
        check_output(swap.output, report_path(swap.output), inputs, overwrite=swap.overwrite or begun)
    except (LdvidError, OSError) as error:
        return result.failed(one_line(error))
    return result


def _tidy(request: BatchRequest, job: Path) -> None:
    """Take away the job folder of a run that was killed when its output was in place."""
    with contextlib.suppress(LdvidError):
        if not request.keep_jobs and "placing" in read_job(job):
            remove(job)


def one_line(error: BaseException) -> str:
    """Why, in one line."""
    if isinstance(error, JobChangedError):
        return f"an unfinished job of it differs in: {'; '.join(error.changes)}; --restart discards it"
    text = " ".join(str(error).split())
    return text if isinstance(error, LdvidError) and text else f"{type(error).__name__}: {text}"
