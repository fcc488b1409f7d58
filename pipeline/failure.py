"""What becomes of a segment that fails: tried again, then said with frame, stage and reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from ..errors import JobError, LdvidError, OutputError, PackError
from ..stages.records import Segment

# Trying again doesn't help, nor does another segment: they concern the whole job.
FATAL = (OutputError, PackError)


@dataclass(frozen=True)
class Policy:
    """What an executor does about failures: how often a segment is tried again, and what follows if that
    doesn't help: the job fails, or the segment's original frames pass through and the summary says so.
    ``time_limit`` is in seconds, for one stage of one segment; None has none."""

    retries: int = 2
    on_error: Literal["fail", "passthrough"] = "fail"
    time_limit: float | None = None


class Part(Protocol):
    """Something that renders, and says how far it got: the stage, and the frame if it is known."""

    @property
    def stage(self) -> str: ...
    @property
    def frame(self) -> int | None: ...


@dataclass(frozen=True)
class SegmentFailure:
    """Why a segment could not be rendered. ``frame`` counts the whole clip's frames, None where it isn't
    known; ``kind`` is the exception's class, by name as it may come from another machine."""

    segment: Segment
    stage: str
    frame: int | None
    kind: str
    reason: str
    attempts: int = 1

    @classmethod
    def of(
        cls, error: BaseException, segment: Segment, part: Part, first_frame: int, attempts: int
    ) -> SegmentFailure:
        """The failure that an exception in ``part`` means; ``first_frame`` is the clip's."""
        frame = None if part.frame is None else part.frame + first_frame
        return cls(segment, part.stage, frame, type(error).__name__, reason_of(error), attempts)

    def text(self) -> str:
        """``segment 3, frame 152, decode: …, 3 attempts``."""
        at = "" if self.frame is None else f", frame {self.frame}"
        tried = f" ({self.attempts} attempts)" if self.attempts > 1 else ""
        return f"segment {self.segment.index}{at}, {self.stage}: {self.reason}{tried}"

    def error(self) -> LdvidError:
        """The same as an error, of the class that was raised where it is one of ldvid's."""
        kinds = {c.__name__: c for c in _tree(LdvidError)}
        error = kinds.get(self.kind, JobError)(self.text())
        error.add_note("--on-error passthrough keeps such frames as they are")
        return error


def reason_of(error: BaseException) -> str:
    """An exception in one line; whose it is, unless it is one of ldvid's."""
    text = " ".join(str(error).split())
    if isinstance(error, LdvidError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _tree(kind: type[LdvidError]) -> list[type[LdvidError]]:
    return [kind, *(c for sub in kind.__subclasses__() for c in _tree(sub))]
