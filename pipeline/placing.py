"""The last step after a crash: what stands at the output's place already, and whether it is this job's own.

Before anything is put in place, the job folder says what it will be ("placing" in ``job.json``); that goes
with the folder, or is taken back when both output and record stand there. A run that finds it may replace
what it vouches for, and nothing else, without ``--overwrite``.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import JobError
from .files import sha256_of
from .job import read_job
from .plan import Plan


@dataclass(frozen=True)
class Placing:
    """An output about to be put in place: its absolute path, its SHA-256, a digest of the plan it was made
    of, and what the summary says of it (``frames``, ``frames_swapped``, ``faces``, ``segments``)."""

    output: str
    sha256: str
    plan: str
    facts: dict[str, Any]

    @classmethod
    def of(cls, output: Path, sha256: str, plan: Plan, identity: str, facts: dict[str, Any]) -> Placing:
        """``identity`` is the digest of the job's identity."""
        return cls(str(output.absolute()), sha256, plan_digest(plan, identity), facts)

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def complete(self, report: Path) -> bool:
        """Whether both the output and its record are in place (that they are this one's was checked)."""
        return os.path.lexists(self.output) and os.path.lexists(report)


def left_by_a_crash(folder: Path, output: Path, report: Path) -> Placing | None:
    """What an earlier run of the job in ``folder`` was putting in place, if some of it stands there and
    everything that stands there is it."""
    try:
        placing = Placing(**read_job(folder)["placing"])
    except (JobError, KeyError, TypeError):
        return None
    there = [p for p in (output, report) if os.path.lexists(p)]
    if not there or placing.output != str(output.absolute()):
        return None
    try:
        if output in there and sha256_of(output) != placing.sha256:
            return None
        if report in there:
            record = json.loads(report.read_text(encoding="utf-8"))
            if record["output"]["sha256"] != placing.sha256:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return placing


def plan_digest(plan: Plan, identity: str) -> str:
    """SHA-256 over what all segments must hold."""
    whole = hashlib.sha256()
    for segment in plan.segments:
        whole.update(plan.segment_digest(segment, identity).encode())
    return whole.hexdigest()
