"""The work, one stage a file. Stages know nothing of Ray, of jobs, or of files they do not own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one worker of a stage needs: CPU cores, and a share of a GPU if it can use one."""

    cpus: float = 1.0
    gpus: float = 0.0


class Stage(Protocol[In, Out]):
    """One step of the pipeline, run by any executor.

    ``setup`` loads what is expensive, once per worker; ``process`` is a pure function of its item
    (same item, same bytes), so that an executor may retry, reorder and spread items freely.
    """

    name: ClassVar[str]
    resources: ClassVar[Resources]

    def setup(self) -> None: ...

    def process(self, item: In, /) -> Out: ...
