"""``ldvid swap``: one clip, one source, one output. Everything the command does, callable from Python."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import Interrupted
from .assign import check_plan, given_plan, load_sources
from .deliver import Delivery, copied, passed_through, ranges_of
from .device import cpu_threads, limit_gpu_memory
from .files import sha256_of
from .job import Identity, Job
from .ledger import Done
from .mirror import Mirror
from .opening import check_request, identity_of
from .placing import Placing, plan_digest
from .plan import Plan
from .planning import found_plan, look_early, taken_plan
from .progress import Listener, Silent, Stopwatch, peak_memory
from .provenance import report_path
from .request import Summary, SwapRequest
from .resume import request_values
from .target import (
    check_container,
    check_replaced,
    default_output,
    staged,
)
from .work import Rendering, View, compiled_for, work_order

if TYPE_CHECKING:
    from ..stages.records import ClipInfo, SourceFace
    from ..stages.swap.networks import Networks
    from ..stages.swap.pack import Pack
    from .executor import Executor, Looks
    from .helpers import Helpers


def swap_clip(
    request: SwapRequest, listener: Listener | None = None, executor: Executor | None = None
) -> Summary:
    """Swap the source's face onto the chosen person of the clip.

    ``executor`` None is this process, or the cluster that ``request.ray`` asks for.

    Raises:
        LdvidError: any of the tree in ``errors``; bad input leaves nothing behind, anything later keeps
            the job folder, and the same call again goes on where this one stopped.
    """
    listener = listener if listener is not None else Silent()
    try:
        with cpu_threads(request.threads), contextlib.ExitStack() as stack:
            return _Run(request, listener, executor, stack).run()
    finally:
        listener.close()


class _Run:
    """One call of ``swap_clip``: checks, analysis, rendering, delivery."""

    def __init__(
        self,
        request: SwapRequest,
        listener: Listener,
        executor: Executor | None,
        stack: contextlib.ExitStack,
    ) -> None:
        self.request, self.listener, self.settings = request, listener, request.settings
        self._given, self._stack = executor, stack
        self.watch = Stopwatch()
        self.rendering = Rendering()
        self.warnings: list[str] = []
        self.output = request.output or default_output(request.clip, debug=request.settings.debug_overlay)
        self.report = report_path(self.output)
        self.job_folder = (
            request.job if request.job is not None else self.output.with_name(f"{self.output.name}.ldvid-job")
        )
        folder = request.pack_folder
        self._pack_name = request.settings.pack if folder is None else str(folder)
        self.resumable = False
        self.helpers: Helpers | None = None  # who look at the clip already
        self.early: Looks | None = None
        self.placing: Placing | None = None  # of an earlier run that was killed in its last moment
        self.given: Plan | None = None  # what --plan says

    @cached_property
    def executor(self) -> Executor:
        """Made when it is first needed: what can be refused is refused before torch or Ray is imported."""
        if self._given is not None:
            return self._given
        if self.request.ray is not None:
            from .cluster.executor import RayExecutor

            return self._stack.enter_context(RayExecutor(self.request.ray, self.request.policy))
        from .executor import LocalExecutor

        return self._stack.enter_context(LocalExecutor(self.request.policy, self.helpers))

    def run(self) -> Summary:
        """Everything, in the order in which it can fail cheapest."""
        try:
            self.placing = check_request(self.request, self.output, self.report, self.job_folder)
            with self.watch.time("check"):
                info, pack, identity = self._inputs()
            if self.request.plan is not None:  # read before --restart empties the folder it may lie in
                self.given = given_plan(self.request.plan, info, self.settings)
            own = self._own_plan()
            request = request_values(self.request, self.output)
            mirror = None if self.request.urls.job is None else Mirror(self.request.urls.job)
            job = Job.open(
                self.job_folder, identity, restart=self.request.restart, request=request, mirror=mirror
            )
            # A plan is worth keeping from here on, also if the next lines fail or Ctrl-C comes; and a job
            # that was asked to go on says in job.json how.
            self.resumable = job.has_plan or self.request.plan_rules
            with job, self._kept_if_resumable(job, own):
                return self._work(info, pack, job)
        except KeyboardInterrupt as error:
            where = (
                f"what is done is kept in {self.job_folder}; run the same command again to go on"
                if self.resumable
                else "nothing was kept, as nothing was finished yet"
            )
            raise Interrupted(f"stopped; {where}") from error

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        self.listener.warn(message)

    def _inputs(self) -> tuple[ClipInfo, Pack, Identity]:
        from ..stages.decode import probe
        from ..stages.encode import EncodeOptions
        from ..stages.swap.pack import open_pack

        request, settings = self.request, self.settings
        info = probe(request.clip, start=request.start, end=request.end)
        for message in info.warnings:
            self._warn(message)
        check_replaced(self.output, info.files)
        options = EncodeOptions.from_settings(settings, info)
        check_container(self.output, options.codec if info.kind == "video" else None)
        pack = open_pack(self._pack_name)
        pack.manifest.check(settings.conditioning)
        if self._given is None:
            begun = look_early(self._view(info), request, self.job_folder, self.watch, self._stack)
            if begun is not None:
                self.helpers, self.early = begun
        from ..stages.swap.networks import resolve_compile, resolve_dtype  # torch: seconds of it

        device, threads = self.executor.device(request.device, request.threads)
        if device == "cpu" and self.helpers is not None:  # torch can't use what seemed to be a GPU
            self.helpers.close()
            self.helpers = self.early = None
            del self.executor  # the next is made without them
        # Decided once, for all workers.
        compiled = resolve_compile(settings.compile, device, info.frames * settings.steps)
        self.settings = settings.model_copy(
            update={
                "dtype": resolve_dtype(settings.dtype, device),
                "compile": "on" if compiled else "off",
            }
        )
        clip, dtype = sha256_of(info.path, info.files or None), self.settings.dtype
        identity = identity_of(request, clip, pack, (device, threads), dtype, compiled=compiled)
        return info, pack, identity

    def _own_plan(self) -> bytes | None:
        """The file of ``--plan`` if it is the job's own, which ``--restart`` deletes."""
        plan = self.request.plan
        if plan is None or plan.resolve() != (self.job_folder / "plan.json").resolve():
            return None
        return plan.read_bytes()

    @contextlib.contextmanager
    def _kept_if_resumable(self, job: Job, own: bytes | None) -> Iterator[None]:
        """Before there is a plan nothing is worth keeping but the user's ``own``; after it, everything is,
        and that is said."""
        given = self.request.job is not None
        try:
            yield
        except BaseException as error:
            if not self.resumable:
                job.discard(keep_folder=given and not job.created)
                if own is not None:
                    (self.job_folder / "plan.json").write_bytes(own)
            elif not isinstance(error, KeyboardInterrupt):
                error.add_note(
                    f"what is done is kept in {self.job_folder}; the same command goes on from there"
                )
            raise
        if not given and not self.request.keep_job:
            job.discard()
        else:
            job.placed()

    def _work(self, info: ClipInfo, pack: Pack, job: Job) -> Summary:
        from ..stages.swap.guidance import build_terms

        if (summary := self._made_before(job)) is not None:
            return summary
        build_terms(self.settings.guidance)  # refused now, not after the analysis
        plan, networks, sources = self._planned_and_loaded(info, pack, job)
        for message in check_plan(
            plan, self.request.wanted, str(self.request.plan or job.folder / "plan.json")
        ):
            self._warn(message)
        delivery = Delivery(
            self.request,
            self.output,
            self.report,
            job,
            pack,
            self.placing,
            lambda m: self._warn(m),
            self.watch.seconds,
        )
        with staged(self.output) as part:
            done: list[Done] = []
            resumed = 0
            if plan.sources or not copied(plan, self.request, part, self._warn):
                done, resumed = self._render(plan, job, pack, networks, sources)
            facts = {
                "frames": info.frames,
                "frames_swapped": sum(b - a + 1 for a, b in ranges_of(done)),
                "faces": len(plan.tracks),
                "segments": len(plan.segments),
            }
            device = ", ".join(self.rendering.devices) or job.identity.device or ""
            self.listener.start("finish", info.frames)
            with self.watch.time("finish"):
                delivery.deliver(plan, done, device, part, facts)
            self.listener.advance("finish", info.frames)
            self.listener.finish("finish")
        return self._summary(facts, resumed, device, done)

    def _planned_and_loaded(
        self, info: ClipInfo, pack: Pack, job: Job
    ) -> tuple[Plan, Networks, tuple[SourceFace, ...]]:
        """The job's plan, found out now if it has none; while the networks are loaded here, others look."""
        from ..stages.detect import open_detector

        plan = job.load_plan() if self.request.plan is None else None
        kind = self.settings.dtype, compiled_for(self.settings)
        self.executor.prepare(self._pack_name, pack.digest(), *kind)
        limit_gpu_memory(self.request.max_memory)
        with contextlib.ExitStack() as until_planned:
            looks: Looks | None = None
            if plan is None and self.given is None:
                looks = self.early or self.executor.looks(self._view(info), pack, self.watch)
                until_planned.enter_context(contextlib.closing(looks))
            with self.watch.time("load"):
                networks = self.executor.networks(pack, self.request.device, *kind)
                detector = open_detector(pack, self.settings.detector_threshold)
                sources, reference, messages = load_sources(self.request, pack, detector, networks)
            for message in messages:
                self._warn(message)
            if plan is not None:
                self.listener.log(f"going on with the job in {self.job_folder}")
                return replace(plan, clip=info), networks, sources
            if looks is None:
                assert self.given is not None
                plan = taken_plan(self.given, self.request, reference)
            else:
                view, embed = self._view(info), lambda face: networks.recognise(face[None])[0]
                with self.executor.warming(networks, self.settings, sources[0], self.watch):
                    plan = found_plan(view, self.request, looks, embed, reference, self.listener, self.watch)
                if not plan.sources:
                    self._warn("no face was found in the clip: the output is a copy of it")
        plan = job.save_plan(plan)
        self.resumable = True
        return plan, networks, sources

    def _summary(
        self, facts: dict[str, int], resumed: int, device: str, done: Sequence[Done] = ()
    ) -> Summary:
        return Summary(
            output=self.output,
            report=self.report,
            **facts,
            segments_resumed=resumed,
            seconds={k: round(v, 3) for k, v in self.watch.seconds.items()},
            warnings=tuple(self.warnings),
            device=device,
            peak_memory=peak_memory(),
            workers=self.rendering.workers,
            swap_share=round(self.rendering.share, 4),
            retried=tuple(self.rendering.retried),
            passed_through=tuple(why for _, why in passed_through(done)),
        )

    def _made_before(self, job: Job) -> Summary | None:
        """What an earlier run did that was killed after its output and record were put in place."""
        placing = self.placing
        if placing is None or self.request.plan is not None or not placing.complete(self.report):
            return None
        plan = job.load_plan()
        if plan is not None and plan_digest(plan, job.ledger.identity) != placing.plan:
            return None
        self.listener.log(f"{self.output} is complete already")
        return self._summary(placing.facts, placing.facts["segments"], job.identity.device or "")

    def _view(self, info: ClipInfo) -> View:
        tolerant = self.request.policy.on_error == "passthrough"
        return View(info, self.settings, self._pack_name, self.request.urls.clip, tolerant)

    def _render(
        self, plan: Plan, job: Job, pack: Pack, networks: Networks, sources: tuple[SourceFace, ...]
    ) -> tuple[list[Done], int]:
        """All segments done, in order, and how many of them were done before."""
        finished = job.finished(plan)
        if self.request.policy.on_error == "fail":  # what was passed through is tried once more, and what
            # had to do without such neighbours
            finished = {i: d for i, d in finished.items() if not {"passed", "alone"} & d.notes.keys()}
        todo = [s for s in plan.segments if s.index not in finished]
        before = [d.segment for d in finished.values()]
        faces = [sum(len(t.frames) for t in plan.swapped_tracks(s)) for s in before]
        if plan.sources:
            self.listener.start("swap", plan.swapped_frames(), sum(faces))
        self.listener.start("encode", plan.clip.frames, sum(s.stop - s.start for s in before))
        work = work_order(plan, self.request, self.settings, sources, pack, job)
        self.rendering = self.executor.render(work, job.ledger, todo, networks, self.listener, self.watch)
        if plan.sources:
            self.listener.finish("swap")
        self.listener.finish("encode")
        after = job.finished(plan)
        done = [after[s.index] for s in plan.segments]
        for d in done:
            if (size := d.notes.get("micro_batch")) is not None:
                self._warn(
                    f"segment {d.segment.index}: the GPU's memory was too small for {self.settings.batch} "
                    f"crops at once; it took {size}, and the last bits differ from --set batch={size}"
                )
        return done, len(before)
