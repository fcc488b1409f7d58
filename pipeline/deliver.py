"""The last step of a swap: segments → output and record, both in place or neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import JobError, SettingsError
from ..stages.swap.pack import Pack
from .assign import sources_of
from .files import copy_file, sync, sync_folder
from .job import Job
from .job_report_record import report_values
from .ledger import Done
from .placing import Placing
from .plan import Plan, frame_ranges
from .provenance import container_tags, record, write_record
from .request import SwapRequest
from .target import put_in_place, staged, uninterrupted


def copied(plan: Plan, request: SwapRequest, part: Path, warn: Callable[[str], None]) -> bool:
    """Copy a clip without a face to ``part``, its coded frames included; False if only encoding will do."""
    from .finish import join

    clip = plan.clip
    if clip.kind != "video" or request.start is not None or request.end is not None:
        return False
    if clip.path.suffix.lower() == part.suffix.lower():
        copy_file(clip.path, part)
        return True
    try:
        messages = join(clip, [clip.path], part, {}, overwrite=False) if clip.rotation == 0 else None
    except (JobError, SettingsError):  # its packets are no frames, or the container doesn't take them
        return False
    for message in messages or ():
        warn(message)
    return messages is not None


def ranges_of(done: Sequence[Done]) -> list[tuple[int, int]]:
    """The frames that were swapped, as inclusive ranges."""
    return frame_ranges(f for d in done for a, b in d.swapped for f in range(a, b + 1))


@dataclass(frozen=True)
class Delivery:
    """Where to, and what it is made of. ``placing`` is what an earlier run put there and was killed;
    ``seconds``, by stage, are read when the record is written."""

    request: SwapRequest
    output: Path
    report: Path
    job: Job
    pack: Pack
    placing: Placing | None
    warn: Callable[[str], None]
    seconds: Mapping[str, float] = field(default_factory=dict)

    def deliver(
        self, plan: Plan, done: Sequence[Done], device: str, part: Path, facts: dict[str, int]
    ) -> None:
        """Join the segments (unless ``part`` is made already), write the record, put both in place."""
        from .finish import join

        swapped = ranges_of(done)
        with staged(self.report) as record_part:
            if done:
                tags = container_tags(self.pack) if swapped else {}
                # A job that goes with the output may share its files with it.
                link = self.request.job is None and not self.request.keep_job
                for message in join(
                    plan.clip, [d.path for d in done], part, tags, overwrite=False, link=link
                ):
                    self.warn(message)
            values = record(
                identity=self.job.identity,
                settings=self.request.settings,
                pack=self.pack,
                source=self.request.source,
                sources=sources_of(self.request, self.job.identity.who),
                device=device,
                frames=plan.clip.frames,
                swapped=swapped,
                passed=passed_through(done),
                made=part,
                name=self.output.name,
            )
            write_record(record_part, values | report_values(plan, self.seconds))
            sync(part)
            made = values["output"]["sha256"]
            ours = self.placing is not None and self.placing.sha256 == made
            self.job.placing(Placing.of(self.output, made, plan, self.job.ledger.identity, facts).values())
            with uninterrupted():  # an output never stands there without its record
                put_in_place(part, self.output, overwrite=self.request.overwrite or ours)
                sync_folder(self.output.absolute().parent)
                put_in_place(record_part, self.report, overwrite=True)
                sync_folder(self.output.absolute().parent)


def passed_through(done: Sequence[Done]) -> list[tuple[tuple[int, int], str]]:
    """Segments that could not be rendered and went through as they were: frames [first, last], why."""
    return [
        ((d.segment.start, d.segment.stop - 1), str(d.notes["passed"])) for d in done if "passed" in d.notes
    ]
