"""``ldvid evaluate`` on pairs of pictures: swap them where nobody has, and judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import FaceError, SettingsError
from ..metrics.pair import compare, outside_psnr
from ..metrics.sheet import cell
from ..stages.decode import read_picture
from ..stages.records import F32, U8, Detection
from .bench import Bench, Known, Results, Row
from .evaluate_files import Folder
from .pairs import Pair, Pairs
from .progress import Listener, Stopwatch
from .provenance import container_tags
from .still import StillSwap, StillSwapper

if TYPE_CHECKING:
    from .evaluate import EvaluateRequest


def judge_pairs(
    pairs: Pairs, request: EvaluateRequest, listener: Listener, watch: Stopwatch, folder: Folder | None
) -> tuple[Bench, Results, dict[str, Any]]:
    """All variants of all pairs. Pairs without a face are skipped, with their reason.

    Raises:
        SettingsError: a variant to be made here has the name of one that is given.
    """
    settings = dict(request.variants) if any(p.wanted or request.all_pairs for p in pairs.pairs) else {}
    for name in pairs.variants():
        if name in settings:
            raise SettingsError(
                f"variant {name}: is given by the pairs and made by --preset; rename the first"
            )
    with watch.time("load"):
        bench = Bench(request.variants[0][1], request.device, request.identity_judge, request.pose_judge)
        swappers = {name: bench.swapper(s) for name, s in settings.items()}
    results = Results([*settings, *pairs.variants()], settings, request.sheet_rows if folder else 0)
    work = _Work(pairs, bench, swappers, results, watch, folder if request.keep_pictures else None)
    wanted = {i: list(settings) if p.wanted or request.all_pairs else [] for i, p in enumerate(pairs.pairs)}
    listener.start("evaluate", sum(len(wanted[i]) + len(p.given) for i, p in enumerate(pairs.pairs)))
    # As many pairs go through the networks together as the settings allow.
    size = min((s.batch for s in settings.values()), default=1)
    for first in range(0, len(pairs.pairs), size):
        part = range(first, min(first + size, len(pairs.pairs)))
        reasons = work.judge([(i + 1, pairs.pairs[i], wanted[i]) for i in part])
        for reason in reasons:
            listener.warn(f"skipped: {reason}")
        listener.advance("evaluate", sum(len(wanted[i]) + len(pairs.pairs[i].given) for i in part))
    listener.finish("evaluate")
    about = {
        "kind": "folders" if request.pairs is None else "pairs",
        "paired": pairs.how,
        "pairs": len(pairs.pairs),
    }
    return bench, results, about


@dataclass(frozen=True, slots=True)
class _Scene:
    """What all variants of a pair share."""

    pair: Pair
    source: Known
    picture: U8
    face: Detection
    target: Known
    same: float | None


@dataclass
class _Work:
    """Swaps and judges some pairs at a time."""

    pairs: Pairs
    bench: Bench
    swappers: dict[str, StillSwapper]
    results: Results
    watch: Stopwatch
    folder: Folder | None  # for the pictures, where they are kept

    def judge(self, part: Sequence[tuple[int, Pair, Sequence[str]]]) -> list[str]:
        """Numbered pairs and the variants wanted of each; returns why some could not be judged."""
        reasons: list[str] = []
        scenes: list[tuple[_Scene, list[Row]]] = []
        for number, pair, wanted in part:
            rows = self._rows(number, pair, wanted)
            try:
                scene, said = self._scene(pair)
            except FaceError as error:
                for row in rows:
                    self.results.skip(replace(row, reason=str(error)))
                reasons.append(str(error))
                continue
            reasons += said
            scenes.append((scene, rows))
        made = {name: self._make(name, scenes) for name in self.swappers}
        for scene, rows in scenes:
            cells = {}
            for row in rows:
                try:
                    cells[row.variant] = self._one(row, scene, made.get(row.variant, {}).get(row.pair))
                except FaceError as error:
                    self.results.skip(replace(row, reason=str(error)))
                    reasons.append(str(error))
            self.results.show(scene.source.cell, scene.target.cell, cells)
        return reasons

    def _rows(self, number: int, pair: Pair, wanted: Sequence[str]) -> list[Row]:
        shown = self.pairs.shown
        given = {variant: shown(path) for variant, path in pair.given.items()}
        row = Row(
            number, "", shown(pair.source), shown(pair.target), same=shown(pair.same) if pair.same else ""
        )
        return [replace(row, variant=v, swapped=f) for v, f in {**dict.fromkeys(wanted, ""), **given}.items()]

    def _make(self, variant: str, scenes: Sequence[tuple[_Scene, list[Row]]]) -> dict[int, StillSwap]:
        """The swaps of one variant, by the number of the pair."""
        wanted = [
            (scene, row.pair)
            for scene, rows in scenes
            for row in rows
            if row.variant == variant and not row.swapped
        ]
        with self.watch.time("swap"):
            stills = self.swappers[variant].swap_pairs(
                [scene.picture for scene, _ in wanted],
                [self.bench.source(scene.pair.source) for scene, _ in wanted],
                [scene.face for scene, _ in wanted],
            )
        return {number: still for (_, number), still in zip(wanted, stills, strict=True)}

    def _scene(self, pair: Pair) -> tuple[_Scene, list[str]]:
        """The pair's own pictures, measured; an anchor without a face costs the recovery only."""
        reasons, same = [], None
        with self.watch.time("judge"):
            source = self.bench.known(pair.source)
            picture = read_picture(pair.target)
            face = self.bench.base.find(picture, str(pair.target))
            target = Known(self.bench.measure(picture, face.landmarks), cell(picture, face.landmarks))
            try:
                if pair.same is not None:
                    same = float(self.bench.known(pair.same).face.identity @ source.face.identity)
            except FaceError as error:
                reasons.append(f"{error} (identity recovery leaves the pair out)")
        return _Scene(pair, source, picture, face, target, same), reasons

    def _one(self, row: Row, scene: _Scene, still: StillSwap | None) -> U8:
        """Judge one variant, made here or given; returns its cell for the sheet."""
        mask: F32 | None
        landmarks = scene.face.landmarks
        if row.swapped:
            path = scene.pair.given[row.variant]
            with self.watch.time("judge"):
                swapped = read_picture(path)
                if swapped.shape == scene.picture.shape:
                    mask = self.bench.touched(scene.picture, scene.face)
                else:
                    landmarks, mask = self.bench.base.find(swapped, str(path)).landmarks, None
        else:
            assert still is not None
            swapped, mask = still.swapped, still.mask
            if self.folder is not None:
                tags = container_tags(self.bench.base.pack, "picture")
                name = self.folder.keep(row.variant, row.pair, scene.pair.target, swapped, tags)
                row = replace(row, swapped=name)
        with self.watch.time("judge"):
            made = self.bench.measure(swapped, landmarks)
            psnr = None if mask is None else outside_psnr(scene.picture, swapped, mask)
        figures = compare(scene.source.face, scene.target.face, made, same=scene.same, psnr=psnr)
        self.results.add(replace(row, figures=figures), scene.source.face, made)
        return cell(swapped, landmarks)
