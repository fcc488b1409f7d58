"""``ldvid swap``: one clip, one source, one output. Everything the command does, callable from Python."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import FaceError, Interrupted, JobError, SettingsError
from .device import compute_device, cpu_threads
from .files import copy_file, sha256_of, sync, sync_folder
from .job import Identity, Job
from .ledger import Done
from .local import run_segments
from .placing import Placing, left_by_a_crash, plan_digest
from .plan import Plan, frame_ranges
from .progress import Listener, Silent, Stopwatch, peak_memory
from .provenance import container_tags, describe_device, record, report_path, write_record
from .request import Summary, SwapRequest
from .resume import request_values
from .target import (
    check_container,
    check_inputs,
    check_output,
    check_replaced,
    default_output,
    put_in_place,
    staged,
    uninterrupted,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ..stages.records import ClipInfo, SourceFace
    from ..stages.swap.networks import Networks
    from ..stages.swap.pack import Pack


def swap_clip(request: SwapRequest, listener: Listener | None = None) -> Summary:
    """Swap the source's face onto the chosen person of the clip.

    Raises:
        LdvidError: any of the tree in ``errors``; bad input leaves nothing behind, anything later keeps
            the job folder, and the same call again goes on where this one stopped.
    """
    listener = listener if listener is not None else Silent()
    try:
        with cpu_threads(request.threads):
            return _Run(request, listener).run()
    finally:
        listener.close()


class _Run:
    """One call of ``swap_clip``: checks, analysis, rendering, finish."""

    def __init__(self, request: SwapRequest, listener: Listener) -> None:
        self.request, self.listener, self.settings = request, listener, request.settings
        self.watch = Stopwatch()
        self.warnings: list[str] = []
        self.output = request.output if request.output is not None else default_output(request.clip)
        self.report = report_path(self.output)
        self.job_folder = (
            request.job if request.job is not None else self.output.with_name(f"{self.output.name}.ldvid-job")
        )
        self.resumable = False
        self.placing: Placing | None = None  # of an earlier run that was killed in its last moment

    def run(self) -> Summary:
        """Everything, in the order in which it can fail cheapest."""
        try:
            self._check()
            with self.watch.time("check"):
                info, pack, identity = self._inputs()
            request = request_values(self.request, self.output)
            job = Job.open(self.job_folder, identity, restart=self.request.restart, request=request)
            # A plan is worth keeping from here on, also if the next lines fail or Ctrl-C comes.
            self.resumable = job.has_plan
            with job, self._kept_if_resumable(job):
                return self._work(info, pack, job)
        except KeyboardInterrupt as error:
            where = (
                f"what is done is kept in {self.job_folder}; run the same command again to go on"
                if self.resumable
                else "nothing was kept, as nothing was finished yet"
            )
            raise Interrupted(f"stopped; {where}") from error

    def _check(self) -> None:
        request = self.request
        if request.start is not None and request.end is not None and request.end <= request.start:
            raise SettingsError(f"--end {request.end:g} s is not after --start {request.start:g} s")
        if request.job is not None and not request.job.absolute().parent.is_dir():
            raise SettingsError(f"--job {request.job}: there is no folder {request.job.absolute().parent}")
        check_inputs(request.clip, request.source)
        inputs = (request.clip, request.source)
        if not request.restart:
            self.placing = left_by_a_crash(self.job_folder, self.output, self.report)
        overwrite = request.overwrite or self.placing is not None
        check_output(self.output, self.report, inputs, overwrite=overwrite)

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
        pack = open_pack(settings.pack if request.pack_folder is None else str(request.pack_folder))
        device, threads = compute_device(request.device, request.threads)
        identity = Identity(
            clip=str(request.clip),
            clip_sha256=sha256_of(info.path, info.files or None),
            start=request.start,
            end=request.end,
            source_sha256=sha256_of(request.source),
            source_face=request.source_face,
            settings=settings.model_dump(mode="json"),
            settings_digest=settings.digest(),
            pack=pack.manifest.name,
            pack_digest=pack.digest(),
            version=__version__,
            threads=threads,
            device=device,
        )
        return info, pack, identity

    @contextlib.contextmanager
    def _kept_if_resumable(self, job: Job) -> Iterator[None]:
        """Before there is a plan nothing is worth keeping; after it, everything is, and that is said."""
        given = self.request.job is not None
        try:
            yield
        except BaseException as error:
            if not self.resumable:
                job.discard(keep_folder=given and not job.created)
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
        from ..stages.swap.networks import Networks

        if (summary := self._made_before(job)) is not None:
            return summary
        build_terms(self.settings.guidance)  # refused now, not after the analysis
        plan = job.load_plan()
        with self.watch.time("load"):
            networks = Networks.load(pack, self.request.device, self.settings.dtype)
            source = self._source(pack, networks)
        if plan is None:
            plan = self._plan(info, pack, networks, job)
        else:
            self.listener.log(f"going on with the job in {self.job_folder}")
            plan = replace(plan, clip=info)
        device = describe_device(networks)
        with staged(self.output) as part:
            done: list[Done] = []
            resumed = 0
            if plan.sources or not self._copied(plan, part):
                done, resumed = self._render(plan, job, networks, source, container_tags(pack))
            swapped = frame_ranges(f for d in done for a, b in d.swapped for f in range(a, b + 1))
            facts = {
                "frames": info.frames,
                "frames_swapped": sum(b - a + 1 for a, b in swapped),
                "faces": len(plan.tracks),
                "segments": len(plan.segments),
            }
            self._finish(plan, pack, job, done, swapped, device, part, facts)
        return self._summary(facts, resumed, device)

    def _summary(self, facts: dict[str, int], resumed: int, device: str) -> Summary:
        return Summary(
            output=self.output,
            report=self.report,
            **facts,
            segments_resumed=resumed,
            seconds={k: round(v, 3) for k, v in self.watch.seconds.items()},
            warnings=tuple(self.warnings),
            device=device,
            peak_memory=peak_memory(),
        )

    def _made_before(self, job: Job) -> Summary | None:
        """What an earlier run did that was killed after its output and record were put in place."""
        placing = self.placing
        if placing is None or not placing.complete(self.report):
            return None
        plan = job.load_plan()
        if plan is not None and plan_digest(plan, job.ledger.identity) != placing.plan:
            return None
        self.listener.log(f"{self.output} is complete already")
        return self._summary(placing.facts, placing.facts["segments"], job.identity.device or "")

    def _source(self, pack: Pack, networks: Networks) -> SourceFace:
        from ..stages.detect import open_detector
        from ..stages.source import load_source

        detector = open_detector(pack, self.settings.detector_threshold)
        source, messages = load_source(
            self.request.source, pack, detector, networks.embed, face=self.request.source_face
        )
        for message in messages:
            self._warn(message)
        return source

    def _plan(self, info: ClipInfo, pack: Pack, networks: Networks, job: Job) -> Plan:
        from .analyse import analyse

        plan = analyse(
            info, self.settings, pack, lambda c: networks.embed(c[None])[0], self.listener, self.watch
        )
        if not plan.sources:
            if not self.request.allow_no_face:
                raise FaceError(
                    f"{info.path}: no face was found in the clip; give --allow-no-face for a copy of it, or "
                    f"--set detector_threshold= with less than {self.settings.detector_threshold:g}"
                )
            self._warn("no face was found in the clip: the output is a copy of it")
        plan = job.save_plan(plan)
        self.resumable = True
        return plan

    def _render(
        self, plan: Plan, job: Job, networks: Networks, source: SourceFace, tags: dict[str, str]
    ) -> tuple[list[Done], int]:
        """All segments done, in order, and how many of them were done before."""
        from .render import Renderer

        finished = job.finished(plan)
        todo = [s for s in plan.segments if s.index not in finished]
        before = [d.segment for d in finished.values()]
        faces = [sum(len(t.frames) for t in plan.swapped_tracks(s)) for s in before]
        if plan.sources:
            self.listener.start("swap", plan.swapped_frames(), sum(faces))
        self.listener.start("encode", plan.clip.frames, sum(s.stop - s.start for s in before))
        listener, watch = self.listener, self.watch
        renderer = Renderer(job, plan, self.settings, networks, source, listener, watch, tags)
        run_segments(todo, renderer.load, renderer.swap, renderer.write)
        if plan.sources:
            self.listener.finish("swap")
        self.listener.finish("encode")
        after = job.finished(plan)
        return [after[s.index] for s in plan.segments], len(before)

    def _copied(self, plan: Plan, part: Path) -> bool:
        """Copy a clip without a face, its coded frames included; False if only encoding will do."""
        from .finish import join

        clip, request = plan.clip, self.request
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
            self._warn(message)
        return messages is not None

    def _finish(
        self,
        plan: Plan,
        pack: Pack,
        job: Job,
        done: list[Done],
        swapped: list[tuple[int, int]],
        device: str,
        part: Path,
        facts: dict[str, int],
    ) -> None:
        """Join the segments (if the output isn't made yet), write the record, put both in place."""
        from .finish import join

        request = self.request
        self.listener.start("finish", plan.clip.frames)
        with staged(self.report) as record_part, self.watch.time("finish"):
            if done:
                tags = container_tags(pack) if swapped else {}
                for message in join(plan.clip, [d.path for d in done], part, tags, overwrite=False):
                    self._warn(message)
            values = record(
                identity=job.identity,
                settings=self.settings,
                pack=pack,
                source=request.source,
                device=device,
                frames=plan.clip.frames,
                swapped=swapped,
                made=part,
                name=self.output.name,
            )
            write_record(record_part, values)
            sync(part)
            made = values["output"]["sha256"]
            ours = self.placing is not None and self.placing.sha256 == made
            job.placing(Placing.of(self.output, made, plan, job.ledger.identity, facts).values())
            with uninterrupted():  # an output never stands there without its record
                put_in_place(part, self.output, overwrite=request.overwrite or ours)
                sync_folder(self.output.absolute().parent)
                put_in_place(record_part, self.report, overwrite=True)
                sync_folder(self.output.absolute().parent)
        self.listener.advance("finish", plan.clip.frames)
        self.listener.finish("finish")
