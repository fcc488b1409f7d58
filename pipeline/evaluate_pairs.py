"""``ldvid evaluate`` on pairs of pictures: swap them where nobody has, and judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import FaceError, SettingsError
from ..metrics.pair import compare, landmark_error, outside_psnr
from ..metrics.sheet import cell
from ..metrics.skin import Skin, skin_difference, tone, typology_angle
from ..stages.folder import read_picture
from ..stages.records import F32, U8, Crops, Detection
from .bench import Bench, Known
from .evaluate_files import Folder
from .evaluate_results import Results, Row
from .pairs import SKIN, Pair, Pairs
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
    rows = request.sheet_rows if folder else 0
    results = Results([*settings, *pairs.variants()], settings, rows, request.by)
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
        **({"only": dict(request.only)} if request.only else {}),
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
    crops: Crops
    skin: Skin | None
    ita: float | None


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
            if SKIN in self.results.by:
                rows = [replace(row, labels={SKIN: tone(scene.ita), **row.labels}) for row in rows]
            for row in rows:
                try:
                    cells[row.variant] = self._one(row, scene, made.get(row.variant, {}).get(row.pair))
                except FaceError as error:
                    self.results.skip(replace(row, reason=str(error)))
                    reasons.append(str(error))
            self.results.show(rows[0].pair, scene.source.cell, scene.target.cell, cells)
        return reasons

    def _rows(self, number: int, pair: Pair, wanted: Sequence[str]) -> list[Row]:
        shown = self.pairs.shown
        given = {variant: shown(path) for variant, path in pair.given.items()}
        same = shown(pair.same) if pair.same else ""
        row = Row(number, "", shown(pair.source), shown(pair.target), same=same, labels=pair.labels)
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
            crops = self.bench.crops(picture, face)
            skin = self.bench.skin(picture, crops)
            ita = None if skin is None else typology_angle(skin)
            try:
                if pair.same is not None:
                    same = float(self.bench.known(pair.same).face.identity @ source.face.identity)
            except FaceError as error:
                reasons.append(f"{error} (identity recovery leaves the pair out)")
        return _Scene(pair, source, picture, face, target, same, crops, skin, ita), reasons

    def _one(self, row: Row, scene: _Scene, still: StillSwap | None) -> U8:
        """Judge one variant, made here or given; returns its cell for the sheet."""
        mask: F32 | None
        landmarks = scene.face.landmarks
        if row.swapped:
            path = scene.pair.given[row.variant]
            with self.watch.time("judge"):
                swapped = read_picture(path)
                if swapped.shape == scene.picture.shape:
                    mask = self.bench.touched(scene.picture, scene.crops)
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
            found = self._in_place(row, scene, swapped) if swapped.shape == scene.picture.shape else {}
        figures = compare(
            scene.source.face, scene.target.face, made, same=scene.same, psnr=psnr, ita=scene.ita, **found
        )
        self.results.add(replace(row, figures=figures), scene.source.face, made)
        return cell(swapped, landmarks)

    def _in_place(self, row: Row, scene: _Scene, swapped: U8) -> dict[str, Any]:
        """What is measured where the pictures coincide: landmarks and skin, as ``compare`` takes them."""
        found: dict[str, Any] = {}
        points = self.bench.points(swapped, scene.face.landmarks)
        if points is None:
            self.results.unseen.append(f"{row.variant}, pair {row.pair} ({row.target})")
        else:
            found["landmark"] = landmark_error(points, scene.face.landmarks)
        if scene.skin is not None and (made := self.bench.skin(swapped, scene.crops)) is not None:
            found["skin"] = skin_difference(scene.skin, made)
        return found
