"""What ``swap_clip`` is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..configs import Settings
from .failure import Policy


@dataclass(frozen=True)
class RayOptions:
    """Where and how widely the swap runs on a Ray cluster.

    ``address`` None is RAY_ADDRESS or, without it, a cluster started on this machine for this call.
    ``gpus`` are used in all, None all that there are, each shared by 1 / ``gpu_fraction`` workers;
    ``workers`` None is what fits. ``runtime_env`` is a YAML or JSON file, or JSON, of what the workers run
    in; ``dashboard`` starts Ray's if the cluster is started here, and its address is told; ``debug`` shows
    what its workers print.
    """

    address: str | None = None
    gpus: int | None = None
    gpu_fraction: float = 1.0
    workers: int | None = None
    dashboard: bool = False
    runtime_env: str | None = None
    debug: bool = False


@dataclass(frozen=True)
class Urls:
    """Where things lie that a request names by their local copies; None: where the request says."""

    clip: str | None = None
    output: str | None = None
    job: str | None = None


@dataclass(frozen=True)
class SourceFor:
    """One face to put in: photographs of it, whose embeddings are averaged, and the number of the person
    who gets it, None for whoever is selected."""

    photos: tuple[Path, ...]
    person: int | None = None


@dataclass(frozen=True)
class SwapRequest:
    """What to do. ``start`` and ``end`` are seconds of the clip, ``output`` None is ``default_output``,
    ``job`` None is a folder beside the output that is deleted when the output is complete. ``threads`` are
    the networks' where they run on the CPU, None as many as torch would use; ``pack_folder`` is where the
    settings' pack lies, None where its name says. ``ray`` None renders in this process.

    ``sources`` are all faces with the people who get them, empty where ``source`` is the only one; else
    ``source`` is the first one's first photograph. A face for nobody by number goes to whom ``select``
    names (None: the largest) or to the person on the photograph ``reference``. ``plan`` is a file with
    the plan to render, instead of an analysis of the clip; with ``plan_rules`` its own sources count,
    whatever else the request says of people. ``max_memory`` is what it may take of a GPU's memory, in
    bytes."""

    clip: Path
    source: Path
    settings: Settings
    output: Path | None = None
    start: float | None = None
    end: float | None = None
    job: Path | None = None
    overwrite: bool = False
    restart: bool = False
    keep_job: bool = False
    device: str = "auto"
    source_face: int | None = None
    allow_no_face: bool = False
    threads: int | None = None
    pack_folder: Path | None = None
    policy: Policy = field(default_factory=Policy)
    ray: RayOptions | None = None
    urls: Urls = field(default_factory=Urls)
    sources: tuple[SourceFor, ...] = ()
    select: Literal["largest", "all", "left", "right"] | None = None
    reference: Path | None = None
    plan: Path | None = None
    plan_rules: bool = False
    max_memory: int | None = None

    @property
    def wanted(self) -> tuple[SourceFor, ...]:
        """All faces to put in, with the people who get them."""
        return self.sources or (SourceFor((self.source,)),)

    @property
    def pictures(self) -> tuple[Path, ...]:
        """All photographs that are read."""
        photos = [p for wanted in self.wanted for p in wanted.photos]
        return (*photos, *([self.reference] if self.reference is not None else []))


@dataclass(frozen=True)
class Summary:
    """What was done. ``faces`` counts the tracks found; ``seconds`` is by stage, summed over threads, so
    that their sum can exceed the wall clock; ``peak_memory`` is in bytes, of the process. The swap ran on
    ``workers`` processes, which computed for ``swap_share`` of the rendering's wall clock. ``retried`` and
    ``passed_through`` name segments with frame, stage and reason. ``output`` may be a URL."""

    output: Path | str
    report: Path | str
    frames: int
    frames_swapped: int
    faces: int
    segments: int
    segments_resumed: int
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    device: str
    peak_memory: int
    workers: int = 1
    swap_share: float = 0.0
    retried: tuple[str, ...] = ()
    passed_through: tuple[str, ...] = ()
