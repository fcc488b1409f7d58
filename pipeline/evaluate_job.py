"""``ldvid evaluate`` on a finished job: frames of the clip against those that were made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..configs import Settings
from ..errors import InputError, JobError
from ..metrics.pair import Face, Figures, compare, landmark_error, outside_psnr
from ..metrics.sheet import cell
from ..metrics.skin import SkinDifference, skin_difference, typology_angle
from ..stages.decode import Reader, open_reader, probe
from ..stages.records import F32, U8, Detection, Track
from .bench import Bench
from .evaluate_results import Results, Row
from .files import sha256_of
from .plan import Plan
from .progress import Listener, Stopwatch

if TYPE_CHECKING:
    from .evaluate import EvaluateRequest

MOST = 64  # frames judged unless --every says otherwise
EDGE = 8  # pixels around the mask that a codec may smear into


@dataclass(frozen=True)
class FinishedJob:
    """A job folder, read; nothing in it is changed. ``finished`` None: its segments are judged."""

    folder: Path
    plan: Plan
    settings: Settings
    source: Path
    source_face: int
    finished: Path | None
    identity: dict[str, Any]

    @property
    def clip_name(self) -> str:
        return self.plan.clip.path.name


def open_job(folder: Path, source: Path, finished: Path | None = None) -> FinishedJob:
    """Read a job folder and check that the clip and the source are the ones it was made with.

    Raises:
        JobError: no job folder, a damaged one, no one swapped in it, or a segment not finished.
        InputError: the clip or the source is missing or is not the job's, or ``finished`` is of another
            length or size.
    """
    try:
        identity = json.loads((folder / "job.json").read_text(encoding="utf-8"))["identity"]
        plan = Plan.from_json((folder / "plan.json").read_text(encoding="utf-8"), str(folder / "plan.json"))
        settings = Settings.model_validate(identity["settings"])
        wanted = {key: identity[key] for key in ("clip_sha256", "source_sha256", "source_face")}
    except FileNotFoundError as error:
        raise JobError(
            f"{folder}: is no finished job folder; it has no {Path(error.filename).name}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{folder / 'job.json'}: can't be read as a job of this ldvid: {error}") from error
    clip = plan.clip
    if (who := identity.get("who")) is not None and len(who["sources"]) > 1:
        raise JobError(f"{folder}: has several sources; a job is judged against one, so swap one at a time")
    if not plan.swapped_frames():
        raise JobError(f"{folder}: nobody was swapped in this job, so there is nothing to judge")
    if not clip.path.exists():
        raise InputError(
            f"{clip.path}: no such file; it is the job's clip, as seen from where the job was run"
        )
    if not source.is_file():
        raise InputError(f"{source}: no such file; it was to be the job's source picture (--source)")
    if sha256_of(source) != wanted["source_sha256"]:
        raise InputError(f"--source {source}: is not the picture that the job in {folder} was made with")
    if sha256_of(clip.path, clip.files or None) != wanted["clip_sha256"]:
        raise InputError(f"{clip.path}: has changed since the job in {folder} was made")
    job = FinishedJob(folder, plan, settings, source, wanted["source_face"] or 1, finished, identity)
    if finished is None:
        for number in range(len(plan.segments)):
            segment_file(job, number)
    else:
        info = probe(finished)
        if (info.frames, info.width, info.height) != (clip.frames, clip.width, clip.height):
            raise InputError(
                f"--finished {finished}: {info.frames} frames of {info.width}×{info.height}, the job has "
                f"{clip.frames} of {clip.width}×{clip.height}"
            )
    return job


def segment_file(job: FinishedJob, number: int) -> Path:
    """A finished segment by its ledger entry; JobError if there is none or the file is another."""
    ledger = job.folder / "segments" / f"{number:06d}.json"
    try:
        entry = json.loads(ledger.read_text(encoding="utf-8"))
        path = ledger.with_name(Path(entry["file"]).name)
        if sha256_of(path) == entry["sha256"]:
            return path
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise JobError(f"{job.folder}: segment {number} is not finished; give the job's own command again first")


def sample(
    tracks: list[Track], every: int | None = None, limit: int | None = None
) -> list[tuple[Track, list[int]]]:
    """Rows of each track to judge: every so many, by default so that ``MOST`` are judged in all, and no
    more than ``limit``."""
    total = sum(len(t.frames) for t in tracks)
    step = every if every is not None else max(1, -(-total // (MOST - len(tracks) + 1 or 1)))
    picked, left = [], total if limit is None else limit
    for track in tracks:
        if rows := list(range(0, len(track.frames), step))[:left]:
            picked.append((track, rows))
            left -= len(rows)
    return picked


class _Frames:
    """Frames before and after, by index; read in order where they are asked for in order."""

    def __init__(self, job: FinishedJob) -> None:
        self.job = job
        self._before = open_reader(job.plan.clip, job.settings.decoder)
        self._after: Reader | None = None
        self._at = -1

    def before(self, index: int) -> U8:
        return next(iter(self._before.read(index, index + 1))).rgb

    def after(self, index: int) -> U8:
        job = self.job
        number, start = 0, 0
        if job.finished is None:
            segment = next(s for s in job.plan.segments if s.start <= index < s.stop)
            number, start = segment.index, segment.start
        if self._after is None or number != self._at:
            if self._after is not None:
                self._after.close()
            path = job.finished if job.finished is not None else segment_file(job, number)
            self._after, self._at = open_reader(probe(path), "pyav"), number
        return next(iter(self._after.read(index - start, index - start + 1))).rgb

    def close(self) -> None:
        self._before.close()
        if self._after is not None:
            self._after.close()


@dataclass(frozen=True, slots=True)
class _Judged:
    frame: int
    own: Face
    made: Face
    psnr: float | None
    landmark: float | None
    unseen: bool  # the detector lost the face in what was made
    skin: SkinDifference | None
    ita: float | None
    cells: tuple[U8, U8] | None


def judge_job(
    job: FinishedJob, request: EvaluateRequest, listener: Listener, watch: Stopwatch
) -> tuple[Bench, Results, dict[str, Any]]:
    """Every sampled face of the job against the frame it was made from.

    s_same is between frames of the original person half a clip apart: what a second picture would score.
    """
    name = str(job.settings.preset)
    with watch.time("load"):
        bench = Bench(job.settings, request.device, request.identity_judge, request.pose_judge)
    if bench.base.pack.digest() != job.identity.get("pack_digest"):
        listener.warn(f"pack {bench.base.pack.manifest.name} has changed since the job was made")
    results = Results([name], {name: job.settings}, request.sheet_rows if request.output else 0)
    source = bench.known(job.source, job.source_face)
    tracks = [t for t in job.plan.tracks if t.id in job.plan.sources]
    samples = sample(tracks, request.every, request.limit)
    total = sum(len(rows) for _, rows in samples)
    on_sheet = set(np.linspace(0, total - 1, results.sheet_rows).round().astype(int).tolist())
    listener.start("evaluate", total)
    frames, done = _Frames(job), 0
    try:
        for track, rows in samples:
            judged = []
            for item in _judge_track(bench, frames, track, rows, on_sheet, done, watch):
                judged.append(item)
                listener.advance("evaluate")
            for row, item in zip(_rows(job, name, track, judged, source.face), judged, strict=True):
                results.add(replace(row, pair=len(results.rows) + 1), source.face, item.made)
                if item.unseen:
                    results.unseen.append(f"{name}, {row.target}")
                if item.cells is not None:
                    results.show(len(results.rows), source.cell, item.cells[0], {name: item.cells[1]})
            done += len(rows)
    finally:
        frames.close()
    listener.finish("evaluate")
    about = {
        "kind": "job",
        "clip": {"name": job.clip_name, "sha256": job.identity["clip_sha256"]},
        "source": {"name": job.source.name, "sha256": job.identity["source_sha256"]},
        "made": job.finished.name if job.finished is not None else "segments",
        "frames": job.plan.clip.frames,
        "pairs": total,
    }
    return bench, results, about


def _judge_track(
    bench: Bench,
    frames: _Frames,
    track: Track,
    rows: list[int],
    on_sheet: set[int],
    done: int,
    watch: Stopwatch,
) -> Iterator[_Judged]:
    for n, row in enumerate(rows):
        index, points = int(track.frames[row]), track.landmarks[row]
        with watch.time("decode"):
            before, after = frames.before(index), frames.after(index)
        with watch.time("judge"):
            crops = bench.crops(before, Detection(track.boxes[row], points, float(track.scores[row])))
            mask: F32 = bench.touched(before, crops)
            was, now = (bench.points(picture, points) for picture in (before, after))
            skin, made = (bench.skin(picture, crops) for picture in (before, after))
            yield _Judged(
                frame=index,
                own=bench.measure(before, points),
                made=bench.measure(after, points),
                psnr=outside_psnr(before, after, mask, EDGE),
                landmark=None if was is None or now is None else landmark_error(now, was),
                unseen=was is not None and now is None,
                skin=None if skin is None or made is None else skin_difference(skin, made),
                ita=None if skin is None else typology_angle(skin),
                cells=(cell(before, points), cell(after, points)) if done + n in on_sheet else None,
            )


def _rows(job: FinishedJob, name: str, track: Track, judged: list[_Judged], source: Face) -> Iterator[Row]:
    half = len(judged) // 2
    for n, item in enumerate(judged):
        other = judged[(n + half) % len(judged)]
        same = float(item.own.identity @ other.own.identity) if half else None
        figures: Figures = compare(
            source,
            item.own,
            item.made,
            same=same,
            psnr=item.psnr,
            landmark=item.landmark,
            skin=item.skin,
            ita=item.ita,
        )
        yield Row(
            pair=0,
            variant=name,
            source=job.source.name,
            target=f"{job.clip_name} frame {job.plan.clip.first_frame + item.frame}, person {track.id}",
            swapped=job.finished.name if job.finished is not None else "segments",
            same=f"frame {job.plan.clip.first_frame + other.frame}" if half else "",
            figures=figures,
        )
