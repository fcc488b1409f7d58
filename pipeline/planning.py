"""Where a job's plan comes from: the analysis, or ``--plan``; and looking at the clip before all else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FaceError
from .assign import assign, check_plan, explicit
from .plan import Plan
from .progress import Listener, Stopwatch
from .request import SwapRequest
from .work import View

if TYPE_CHECKING:
    from ..stages.records import F32, U8
    from .executor import Looks
    from .helpers import Helpers


def found_plan(
    view: View,
    request: SwapRequest,
    looks: Looks,
    embed: Callable[[U8], F32],
    reference: F32 | None,
    listener: Listener,
    watch: Stopwatch,
) -> Plan:
    """The plan that the analysis gives; ``embed`` and ``looks`` as for ``analyse``.

    Raises:
        FaceError: nobody is in the clip.
    """
    from .analyse import analyse

    plan = analyse(view.info, view.settings, looks, embed, listener, watch)
    if plan.sources:
        return assign(plan, request, reference) if explicit(request) else plan
    if not request.allow_no_face:
        raise FaceError(
            f"{view.info.path}: no face was found in the clip; give --allow-no-face for a copy of it, or "
            f"--set detector_threshold= with less than {view.settings.detector_threshold:g}"
        )
    return plan


def taken_plan(plan: Plan, request: SwapRequest, reference: F32 | None) -> Plan:
    """The plan of ``--plan`` in place of the job's own.

    Raises:
        FaceError: it gives nobody a source.
    """
    if explicit(request):
        plan = assign(plan, request, reference)
    check_plan(plan, request.wanted, str(request.plan))
    if not plan.sources and not request.allow_no_face:
        raise FaceError(
            f"--plan {request.plan}: no track in it has a source; give one a number instead of "
            "null, or say whom with --source FACE@PERSON"
        )
    return plan


def look_early(
    view: View, request: SwapRequest, job_folder: Path, watch: Stopwatch, stack: ExitStack
) -> tuple[Helpers, Looks] | None:
    """Where there is likely a GPU, helpers look at the clip while torch is imported; ``stack`` ends them.

    None where there is none, or somebody else's, or nothing to look for.
    """
    from .helpers import Helpers, gpu_in_sight, how_many

    elsewhere = request.ray is not None or request.device == "cpu"
    planned = request.plan is not None or (job_folder / "plan.json").exists()
    if elsewhere or planned or not gpu_in_sight() or not (count := how_many()):
        return None
    helpers = stack.enter_context(Helpers(count))
    return helpers, helpers.looks(view, watch)
