"""``ldvid evaluate``: the paper's table over pairs of pictures, or over the frames of a finished job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..configs import Settings
from ..errors import SettingsError
from .evaluate_files import Folder, results_folder
from .pairs import SKIN, Pairs, counted, read_csv, read_folders
from .progress import Listener, Silent, Stopwatch
from .provenance import DIGITAL_SOURCE_TYPE, describe_device, versions

if TYPE_CHECKING:
    from .bench import Bench
    from .evaluate_results import Results

ABLATION = {
    "none": (),
    "identity": ("identity",),
    "identity and segmentation": ("identity", "segmentation"),
}


@dataclass(frozen=True)
class EvaluateRequest:
    """What to judge and where to put it.

    One of three inputs: ``pairs`` (a CSV file), ``sources`` and ``targets`` (folders, and ``swapped`` ones
    beside them), or ``job`` (a job folder, with the job's ``source`` and, to judge the output rather than the
    segments, ``finished``). ``variants`` are the settings to swap with, by name; ``all_pairs`` swaps
    pairs that came with a swapped picture too. ``only`` keeps pairs by labels (columns of the CSV file),
    ``by`` tells the figures by labels too, of which ``skin``, the target's skin tone, is always there.
    ``output`` None writes nothing.
    """

    variants: tuple[tuple[str, Settings], ...]
    pairs: Path | None = None
    root: Path | None = None
    sources: Path | None = None
    targets: Path | None = None
    swapped: tuple[Path, ...] = ()
    job: Path | None = None
    source: Path | None = None
    finished: Path | None = None
    every: int | None = None
    all_pairs: bool = False
    by: tuple[str, ...] = ()
    only: tuple[tuple[str, str], ...] = ()
    limit: int | None = None
    output: Path | None = None
    overwrite: bool = False
    sheet_rows: int = 8
    keep_pictures: bool = False
    device: str = "auto"
    identity_judge: Path | None = None
    pose_judge: Path | None = None


def ablation(name: str, settings: Settings, *, several: bool = False) -> list[tuple[str, Settings]]:
    """The paper's three variants (§5.2) of one preset: every other term's λ is 0, the rest as it is.

    Raises:
        SettingsError: a preset without an identity and a segmentation term.
    """
    for term in ABLATION["identity and segmentation"]:
        if not any(t.term == term and t.scale > 0 for t in settings.guidance):
            raise SettingsError(f"--ablation: {name} has no {term} guidance that could be left out")
    variants = []
    for label, kept in ABLATION.items():
        terms = tuple(t if t.term in kept else t.model_copy(update={"scale": 0.0}) for t in settings.guidance)
        variants.append(
            (f"{name}: {label}" if several else label, settings.model_copy(update={"guidance": terms}))
        )
    return variants


def evaluate(request: EvaluateRequest, listener: Listener | None = None) -> dict[str, Any]:
    """Judge what the request names; returns what ``table.json`` holds and writes ``output``.

    Raises:
        LdvidError: any of the tree in ``errors``; FaceError if no pair at all could be judged. Nothing is
            left of an output that was not finished.
    """
    listener = listener if listener is not None else Silent()
    watch = Stopwatch()
    try:
        return _evaluate(request, listener, watch)
    finally:
        listener.close()


def _evaluate(request: EvaluateRequest, listener: Listener, watch: Stopwatch) -> dict[str, Any]:
    _check(request)
    if request.job is not None:
        from .evaluate_job import judge_job, open_job

        assert request.source is not None
        job = open_job(request.job, request.source, request.finished)
        inputs = [request.job, request.source, *([request.finished] if request.finished else [])]
        with results_folder(request.output, inputs, overwrite=request.overwrite) as folder:
            bench, results, about = judge_job(job, request, listener, watch)
            return _finish(bench, results, about, folder, watch, f"{job.clip_name} ← {request.source.name}")
    pairs = _pairs(request)
    for column in request.by:
        if column != SKIN:
            pairs.check_column("--by", column)
    unused = [c for c in pairs.columns if c not in {*request.by, *(c for c, _ in request.only)}]
    if unused:
        listener.log(f"not used: column {', '.join(unused)} (--by and --only can use such columns)")
    pairs = pairs.where(request.only).limited(request.limit)
    for message in pairs.messages:
        listener.log(message)
    from .evaluate_pairs import judge_pairs

    inputs = [p for p in (request.pairs, request.sources, request.targets, *request.swapped) if p is not None]
    inputs += [p for pair in pairs.pairs for p in (pair.source, pair.target, *pair.given.values())]
    with results_folder(request.output, inputs, overwrite=request.overwrite) as folder:
        bench, results, about = judge_pairs(pairs, request, listener, watch, folder)
        title = f"{counted(len(pairs.pairs), 'pair')} {pairs.how}"
        return _finish(bench, results, about, folder, watch, title)


def _check(request: EvaluateRequest) -> None:
    given = [request.pairs is not None, request.sources is not None, request.job is not None]
    if (request.sources is None) != (request.targets is None):
        raise SettingsError("--sources and --targets are given together")
    if sum(given) != 1:
        raise SettingsError("give one of: a CSV file of pairs, --sources and --targets, or a job folder")
    if request.job is not None and request.source is None:
        raise SettingsError(f"{request.job}: give the job's source picture with --source")
    for flag, value, wanted in (
        ("--source", request.source, request.job),
        ("--finished", request.finished, request.job),
        ("--every", request.every, request.job),
        ("--root", request.root, request.pairs),
        ("--swapped", request.swapped or None, request.sources),
        ("--only", request.only or None, request.pairs),
        ("--by", request.by or None, request.pairs or request.sources),
    ):
        if value is not None and wanted is None:
            csv = "a CSV file of pairs"
            what = {
                "--root": csv,
                "--swapped": "--sources and --targets",
                "--only": csv,
                "--by": "pairs",
            }.get(flag, "a job")
            raise SettingsError(f"{flag}: goes with {what}")
    if request.keep_pictures and (request.output is None or request.job is not None):
        raise SettingsError("--keep-pictures: goes with --output, and with pairs that are swapped here")
    if request.job is None and not request.variants:
        raise SettingsError("there are no settings to swap with")
    packs = {settings.pack for _, settings in request.variants}
    if len(packs) > 1:
        raise SettingsError(
            f"one pack an evaluation: the presets name {', '.join(sorted(packs))}; give --pack"
        )


def _pairs(request: EvaluateRequest) -> Pairs:
    if request.pairs is not None:
        return read_csv(request.pairs, request.root)
    assert request.sources is not None and request.targets is not None
    return read_folders(request.sources, request.targets, request.swapped)


def _finish(
    bench: Bench, results: Results, about: dict[str, Any], folder: Folder | None, watch: Stopwatch, title: str
) -> dict[str, Any]:
    """The table, and its files if a folder was asked for."""
    results.check()
    summaries = results.summaries()
    pack = bench.base.pack
    table = {
        "title": title,
        "input": about,
        "variants": summaries,
        "notes": results.notes(summaries),
        "skipped": results.skipped(),
        "judges": bench.judge_records(),
        "pack": {
            "name": pack.manifest.name,
            "version": pack.manifest.version,
            "licence": pack.manifest.licence,
            "digest": pack.digest(),
        },
        "device": describe_device(bench.base.networks),
        "versions": versions(),
        "seconds": {k: round(v, 3) for k, v in sorted(watch.seconds.items())},
    }
    if folder is not None:
        comment = f"Altered by AI: it shows pictures in which faces were swapped (ldvid {__version__})."
        folder.write(table, results, {"comment": comment, "digital_source_type": DIGITAL_SOURCE_TYPE})
    return table
