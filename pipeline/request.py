"""What ``swap_clip`` is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..configs import Settings


@dataclass(frozen=True)
class SwapRequest:
    """What to do. ``start`` and ``end`` are seconds of the clip, ``output`` None is ``default_output``,
    ``job`` None is a folder beside the output that is deleted when the output is complete. ``threads`` are
    the networks' where they run on the CPU, None as many as torch would use; ``pack_folder`` is where the
    settings' pack lies, None where its name says."""

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


@dataclass(frozen=True)
class Summary:
    """What was done. ``faces`` counts the tracks found; ``seconds`` is by stage, summed over threads, so
    that their sum can exceed the wall clock; ``peak_memory`` is in bytes, of the process."""

    output: Path
    report: Path
    frames: int
    frames_swapped: int
    faces: int
    segments: int
    segments_resumed: int
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    device: str
    peak_memory: int
