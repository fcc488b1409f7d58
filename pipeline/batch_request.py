"""What ``run_batch`` is asked, and what that means for each clip."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..configs import Settings
from ..errors import SettingsError
from .batch_list import Item
from .batch_places import job_path, output_paths
from .failure import Policy
from .request import RayOptions, SwapRequest
from .target import check_inputs


@dataclass(frozen=True)
class BatchRequest:
    """What to do. ``output`` is the folder of all outputs, ``settings`` gives those of a preset and a seed
    (None: the batch's own). ``source_face`` belongs to ``source``. ``at_once`` is the number of clips open at
    once on a cluster, None two more than there are workers. ``report``: one of a few frames beside each
    output. The rest is as in ``SwapRequest``."""

    items: Sequence[Item]
    output: Path
    settings: Callable[[str | None, int | None], Settings]
    source: Path | None = None
    source_face: int | None = None
    overwrite: bool = False
    restart: bool = False
    keep_jobs: bool = False
    report: bool = False
    device: str = "auto"
    allow_no_face: bool = False
    threads: int | None = None
    max_memory: int | None = None
    policy: Policy = field(default_factory=Policy)
    ray: RayOptions | None = None
    at_once: int | None = None
    debug: bool = False


def swap_requests(request: BatchRequest) -> list[SwapRequest]:
    """One for each clip; what concerns the list as a whole is refused here, before anything is touched.

    Raises:
        SettingsError: no source for a clip, settings that can't be, outputs in each other's way.
        InputError: the source of all clips can't be read.
    """
    sources, settings = [], []
    known: dict[tuple[str | None, int | None], Settings] = {}
    for item in request.items:
        where = item.where or str(item.clip)
        if (source := item.source or request.source) is None:
            raise SettingsError(f"{where}: names no source, and there is no --source")
        sources.append(source)
        key = (item.preset, item.seed)
        try:
            known[key] = known[key] if key in known else request.settings(*key)
        except SettingsError as error:
            raise SettingsError(f"{item.where}: {error}" if item.where else str(error)) from error
        settings.append(known[key])
    if request.source is not None:
        check_inputs(Path(os.curdir), request.source)  # the clips are each one's own affair
    outputs = output_paths(request.items, request.output, set(sources))
    return [
        SwapRequest(
            clip=item.clip,
            source=source,
            settings=chosen,
            output=output,
            start=item.start,
            end=item.end,
            job=job_path(request.output, output),
            overwrite=request.overwrite,
            restart=request.restart,
            device=request.device,
            # the flag's number is that of a face in the flag's picture
            source_face=item.source_face or (request.source_face if item.source is None else None),
            allow_no_face=request.allow_no_face,
            threads=request.threads,
            max_memory=request.max_memory,
            policy=request.policy,
        )
        for item, source, chosen, output in zip(request.items, sources, settings, outputs, strict=True)
    ]
