"""Clips, sources, outputs and jobs at URLs: brought to this machine before a swap, taken back after it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ..errors import OutputExistsError, SettingsError
from .cache_space import home
from .files import remove
from .picture import is_picture
from .provenance import report_path
from .request import Summary, SwapRequest, Urls
from .storage import Mirror, exists, filesystem, join_url, local_path, localise, shown, upload


@dataclass(frozen=True)
class Errand:
    """One swap's places on this machine, and in ``urls`` where they stand for something elsewhere;
    ``sources`` are all pictures that were named, in their order."""

    clip: Path
    sources: tuple[Path, ...]
    output: Path | None
    job: Path | None
    urls: Urls

    def request(self, request: SwapRequest) -> SwapRequest:
        """The same request with these places. An output elsewhere is first made in ldvid's cache folder,
        whatever an interrupted run left there, and its job is kept until it has arrived."""
        away = self.urls.output is not None
        return replace(
            request,
            clip=self.clip,
            output=self.output,
            job=self.job,
            urls=self.urls,
            overwrite=request.overwrite or away,
            keep_job=request.keep_job or away,
        )

    def deliver(self, summaries: Sequence[Summary], *, overwrite: bool) -> list[Summary]:
        """Take outputs and records to their URLs, each record first, so that no output is without one.

        Raises:
            OutputExistsError: something has appeared there meanwhile and ``overwrite`` is not given.
            OutputError: it can't be written there; what was made stays in the cache for the next try.
        """
        if self.urls.output is None:
            return list(summaries)
        assert self.output is not None
        folder, delivered = self.urls.output.rstrip("/").rpartition("/")[0], []
        for summary in summaries:
            record, output = (join_url(folder, Path(p).name) for p in (summary.report, summary.output))
            upload(Path(summary.report), record, overwrite=overwrite or _left_alone(record, output))
            upload(Path(summary.output), output, overwrite=overwrite)
            delivered.append(replace(summary, report=record, output=output))
        remove(self.output.parent)
        return delivered


def destination(clip: str, output: str | None) -> str | None:
    """The URL that the output goes to, None where that is a path; nothing is fetched to know it.

    Raises:
        SettingsError: a picture at a URL, and nothing said of where its output goes.
    """
    if output is not None:
        return output if local_path(output) is None else None
    if local_path(clip) is not None:
        return None
    if is_picture(Path(clip)):
        raise SettingsError(f"{shown(clip)}: say with -o where the swapped picture goes")
    folder, _, name = clip.rstrip("/").rpartition("/")
    suffix = PurePosixPath(name).suffix
    return join_url(folder, f"{PurePosixPath(name).stem}.swapped.mp4" if suffix else f"{name}.swapped")


def errand(
    clip: str,
    sources: str | Sequence[str],
    output: str | None,
    job: str | None,
    *,
    overwrite: bool,
    restart: bool,
) -> Errand:
    """Bring here what lies elsewhere. Plain paths and ``file://`` stay where they are.

    Raises:
        InputError: clip or source can't be fetched.
        OutputExistsError: something is at the output's URL and ``overwrite`` is not given.
        JobError, OutputError: the job's URL can't be read, or the cache folder not be written.
        SettingsError: a URL of an unknown kind, or without its driver or credentials.
    """
    clip_here, output_here = local_path(clip), None if output is None else local_path(output)
    output_url = destination(clip, output)
    if output_url is not None:
        record = _record_url(output_url)
        for url in (output_url, record):
            if not overwrite and exists(url) and not (url == record and _left_alone(record, output_url)):
                raise OutputExistsError(
                    f"{shown(url)} exists; give --overwrite to replace it, or another name with -o"
                )
        digest = hashlib.sha256(output_url.encode()).hexdigest()[:16]
        output_here = home() / "outputs" / digest / PurePosixPath(output_url.rstrip("/")).name
        output_here.parent.mkdir(parents=True, exist_ok=True)
    clip_path = localise(clip) if clip_here is None else clip_here
    texts = [sources] if isinstance(sources, str) else list(sources)
    pictures = tuple(localise(s) if (path := local_path(s)) is None else path for s in texts)
    job_here = None if job is None else local_path(job)
    job_url = job if job is not None and job_here is None else None
    if job_url is not None:  # only now that the inputs are here: --restart deletes
        mirror = Mirror(job_url)
        if restart:
            mirror.remove()
        mirror.pull()
        job_here = mirror.folder
    return Errand(
        clip=clip_path,
        sources=pictures,
        output=output_here,
        job=job_here,
        urls=Urls(clip=clip if clip_here is None else None, output=output_url, job=job_url),
    )


def _record_url(output: str) -> str:
    return f"{output.rstrip('/').rpartition('/')[0]}/{report_path(Path(output)).name}"


def _left_alone(record: str, output: str) -> bool:
    """Whether a record stands there without its output: a run was stopped between the two."""
    if exists(output):
        return False
    fs, path = filesystem(record)
    try:
        made = json.loads(fs.cat_file(path))["output"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(made == PurePosixPath(output.rstrip("/")).name)
