"""A work order: all that a machine needs to render segments of one job.

A ``Work`` is made once, where the job is planned, and travels to wherever segments are rendered. What
it names by path (the clip, the job folder, the pack) must be found there under the same name, or lie
at a URL; ``at_hand`` checks that before any work is done.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..configs import Settings
from ..errors import InputError, JobError
from ..stages.records import F32, ClipInfo, SourceFace
from .ledger import Ledger
from .mirror import Mirror
from .plan import Plan
from .provenance import container_tags
from .request import SwapRequest, Urls
from .storage import localise

if TYPE_CHECKING:
    from ..stages.swap.pack import Pack
    from .job import Job


@dataclass(frozen=True)
class Work:
    """One job as its renderers see it.

    ``sources`` are by the numbers that the plan gives tracks. ``folder`` is the job folder, ``pack`` the
    pack's name or folder, ``digest`` the job's own (``Identity.digest``). ``template`` (5, 2) and
    ``crop_size`` are the pack's, so that aligning needs no network. ``threads`` is what torch computes
    with on a CPU: the bytes depend on it. ``terms`` holds the text of the user's guidance terms by their
    SHA-256, for machines that don't have the files; ``urls`` says where clip and job lie if not here.
    ``max_memory`` is what a worker may use of its GPU's, in bytes.
    """

    plan: Plan
    settings: Settings
    sources: tuple[SourceFace, ...]
    digest: str
    folder: Path
    template: F32
    crop_size: int
    pack: str
    pack_digest: str
    tags: dict[str, str] = field(default_factory=dict)
    threads: int | None = None
    version: str = __version__
    terms: dict[str, bytes] = field(default_factory=dict)
    max_memory: int | None = None
    urls: Urls = field(default_factory=Urls)

    def ledger(self) -> Ledger:
        """The job's ledger as this machine sees it."""
        mirror = None if self.urls.job is None else Mirror(self.urls.job)
        return Ledger(self.folder, self.digest, mirror)


def work_order(
    plan: Plan,
    request: SwapRequest,
    settings: Settings,
    sources: tuple[SourceFace, ...],
    pack: Pack,
    job: Job,
) -> Work:
    """The order for a plan of a job; ``settings`` as for ``opening.identity_of``."""
    return Work(
        plan=plan,
        settings=settings,
        sources=sources,
        digest=job.ledger.identity,
        folder=job.folder,
        template=pack.manifest.template_points(),
        crop_size=pack.manifest.crop_size,
        pack=settings.pack if request.pack_folder is None else str(request.pack_folder),
        pack_digest=pack.digest(),
        tags=container_tags(pack),
        threads=job.identity.threads,
        terms=term_files(settings),
        max_memory=request.max_memory,
        urls=request.urls,
    )


def compiled_for(settings: Settings) -> int:
    """The batch that a job's networks are compiled for, 0 for none; of settings that no longer say "auto"."""
    return settings.batch if settings.compile == "on" else 0


@dataclass(frozen=True)
class View:
    """A clip to look at, as any machine needs to know it: ``pack`` by name or folder, ``url`` of the clip
    if it isn't a path; ``tolerant`` of frames that can't be decoded."""

    info: ClipInfo
    settings: Settings
    pack: str
    url: str | None = None
    tolerant: bool = False


@dataclass
class Rendering:
    """How a rendering went: seconds of wall clock, the swap's workers and the share of that time in
    which they computed, and what had to be tried again."""

    seconds: float = 0.0
    workers: int = 0
    share: float = 0.0
    retried: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)


def term_files(settings: Settings) -> dict[str, bytes]:
    """The text of the user's guidance terms by SHA-256."""
    files = [term.file for term in settings.guidance if term.file is not None]
    return {hashlib.sha256(text).hexdigest(): text for text in (file.read_bytes() for file in files)}


def at_hand(work: Work) -> Work:
    """The same order with this machine's paths: what lies at URLs is fetched, and the user's terms are
    laid down where they are missing.

    Raises:
        JobError: another version of ldvid here, or a job folder that this machine doesn't see.
        InputError: this machine doesn't see the clip.
    """
    if work.version != __version__:
        raise JobError(
            f"ldvid {__version__} is installed here, the job was begun by {work.version}; "
            "give all machines the same version"
        )
    if work.urls.job is not None:
        folder = Mirror(work.urls.job).folder
        (folder / "segments").mkdir(parents=True, exist_ok=True)
        work = replace(work, folder=folder)
    elif not (work.folder / "job.json").is_file():
        raise JobError(
            f"the job folder {work.folder} isn't there on this machine; choose one with --job "
            "that all machines share, or a URL"
        )
    if work.urls.clip is not None:
        path = localise(work.urls.clip)
        work = replace(work, plan=replace(work.plan, clip=replace(work.plan.clip, path=path)))
    elif not work.plan.clip.path.exists():
        raise InputError(
            f"the clip {work.plan.clip.path} isn't there on this machine; it must lie where all see it"
        )
    if not work.terms:
        return work
    laid: Path | None = None
    terms = []
    for term in work.settings.guidance:
        if term.file is not None and term.sha256 in work.terms and not term.file.is_file():
            laid = laid or Path(tempfile.mkdtemp(prefix="ldvid-terms-"))
            file = laid / term.file.name
            file.write_bytes(work.terms[term.sha256])
            term = term.model_copy(update={"term": f"{file}:{term.name}"})
        terms.append(term)
    return replace(work, settings=work.settings.model_copy(update={"guidance": tuple(terms)}))
