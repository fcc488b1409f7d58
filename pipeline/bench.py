"""What every evaluation has: networks and judges loaded once, and the figures as they come in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FaceError
from ..metrics.judges import Judges, embedded, open_judges
from ..metrics.pair import Face, Figures, measure_face
from ..metrics.report import MEASURES, as_dict, summarise
from ..metrics.sheet import cell
from ..stages.decode import read_picture
from ..stages.paste import paste
from ..stages.records import F32, U8, Detection, SourceFace
from ..stages.swap.pack import hash_file
from .pairs import counted
from .still import StillSwapper

if TYPE_CHECKING:
    from ..configs import Settings


@dataclass(frozen=True, slots=True)
class Known:
    """A face of a picture, measured: what is kept of pictures that many pairs share."""

    face: Face
    cell: U8


class Bench:
    """The networks of one pack and the judges; faces of sources are measured once."""

    def __init__(
        self, settings: Settings, device: str, identity: Path | None = None, pose: Path | None = None
    ) -> None:
        self.base = StillSwapper(settings, device=device)
        self.judges: Judges = open_judges(self.base.pack, identity=identity, pose=pose)
        self._device = device
        self._files = (identity, pose)
        self._known: dict[tuple[Path, int], Known | FaceError] = {}
        self._sources: dict[tuple[Path, int], SourceFace] = {}

    def swapper(self, settings: Settings) -> StillSwapper:
        """A swapper of other settings that shares the networks where their number format is the same."""
        same = settings.dtype == self.base.settings.dtype
        return StillSwapper(
            settings,
            device=self._device,
            pack=self.base.pack,
            networks=self.base.networks if same else None,
        )

    def measure(self, picture: U8, landmarks: F32) -> Face:
        """All judges on one face."""
        return measure_face(picture, landmarks, self.judges, self.base.networks.embed)

    def judge_records(self) -> dict[str, dict[str, str]]:
        """Name and SHA-256 of the files that judge and, for comparison, of the network that guides."""
        pack, (identity, pose) = self.base.pack, self._files
        own = pack.manifest.pose
        if pose is None:
            pose = pack.path(own.file) if own.kind == "hopenet" and own.file else embedded("pose")
        files = {
            "identity": identity or embedded("identity"),
            "pose": pose,
            "expression": embedded("mesh"),
            "identity, guiding": pack.path(pack.manifest.identity.file),
        }
        return {what: {"name": path.name, "sha256": hash_file(path)} for what, path in files.items()}

    def known(self, path: Path, number: int = 1) -> Known:
        """A face of a picture file (1 is the largest); FaceError if it is not there."""
        key = (path, number)
        if key not in self._known:
            try:
                self._known[key] = self._look(path, number)
            except FaceError as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, FaceError):
            raise found
        return found

    def _look(self, path: Path, number: int) -> Known:
        picture = read_picture(path)
        found = self.base.detector.detect(picture)
        if len(found) < number:
            raise FaceError(f"{path}: no face was found" if not found else f"{path}: has no face {number}")
        landmarks = found[number - 1].landmarks
        return Known(self.measure(picture, landmarks), cell(picture, landmarks))

    def source(self, path: Path, number: int = 1) -> SourceFace:
        """The face as the swap takes it; FaceError if there is none."""
        key = (path, number)
        if key not in self._sources:
            self._sources[key] = self.base.source(path, number)
        return self._sources[key]

    def touched(self, picture: U8, face: Detection) -> F32:
        """What our own paste would touch, (H, W) in [0, 1]: the mask for pictures that others made."""
        crops = self.base.crops(picture, face)
        assert crops.masks is not None
        return paste(picture, crops.images[0].astype(np.float32), crops.masks[0], crops.matrices[0])[1]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of ``pairs.csv``: names as the user wrote them, figures or why there are none."""

    pair: int
    variant: str
    source: str
    target: str
    swapped: str = ""
    same: str = ""
    figures: Figures | None = None
    reason: str = ""


@dataclass
class Results:
    """What an evaluation collects. ``cells`` holds rows of the contact sheet: source, target, variants."""

    variants: list[str]
    settings: dict[str, Settings]
    sheet_rows: int = 0
    rows: list[Row] = field(default_factory=list)
    features: dict[str, list[tuple[F32, F32]]] = field(default_factory=dict)
    cells: list[list[U8 | None]] = field(default_factory=list)

    def add(self, row: Row, source: Face, swapped: Face) -> None:
        """A judged pair and the features its Fréchet distance needs."""
        self.rows.append(row)
        self.features.setdefault(row.variant, []).append((swapped.identity, source.identity))

    def skip(self, row: Row) -> None:
        """A pair that can't be judged; ``row.reason`` says why."""
        self.rows.append(row)

    def show(self, source: U8, target: U8, made: dict[str, U8]) -> None:
        """A row of the sheet, while there is room for it."""
        if len(self.cells) < self.sheet_rows and made:
            self.cells.append([source, target, *(made.get(v) for v in self.variants)])

    def judged(self) -> list[Row]:
        """The rows with figures."""
        return [row for row in self.rows if row.figures is not None]

    def skipped(self) -> list[dict[str, Any]]:
        """The rows without figures and why, for JSON."""
        return [
            {"pair": r.pair, "variant": r.variant, "source": r.source, "target": r.target, "reason": r.reason}
            for r in self.rows
            if r.figures is None
        ]

    def check(self) -> None:
        """FaceError if not one pair could be judged."""
        if not self.judged():
            first = next((row.reason for row in self.rows), "there was none")
            raise FaceError(f"nothing could be judged ({counted(len(self.rows), 'row')}); the first: {first}")

    def summaries(self) -> list[dict[str, Any]]:
        """Per variant that has figures: name, settings, number of pairs, and the estimates."""
        found = []
        for name in self.variants:
            figures = [row.figures for row in self.rows if row.variant == name and row.figures is not None]
            if not figures:
                continue
            swapped, sources = zip(*self.features[name], strict=True)
            settings = self.settings.get(name)
            found.append(
                {
                    "name": name,
                    "settings": None if settings is None else settings.model_dump(mode="json"),
                    "settings_digest": None if settings is None else settings.digest(),
                    "pairs": len(figures),
                    "figures": {k: as_dict(e) for k, e in summarise(figures, swapped, sources).items()},
                }
            )
        return found

    def notes(self, summaries: Iterable[dict[str, Any]]) -> list[str]:
        """What a reader of the table must know: what was left out, and over how many pairs a column is."""
        notes = []
        summaries = list(summaries)
        skipped = [row for row in self.rows if row.figures is None]
        if skipped:
            notes.append(f"{len(skipped)} of {len(self.rows)} rows skipped; the first: {skipped[0].reason}")
        judged = {v: {row.pair for row in self.judged() if row.variant == v} for v in self.variants}
        if len({frozenset(pairs) for pairs in judged.values()}) > 1:
            notes.append("the variants were judged on different pairs: their rows can't be compared directly")
        for m in MEASURES:
            if m.key == "frechet":
                continue
            found = {s["name"]: (s["figures"][m.key] or {"n": 0})["n"] for s in summaries}
            fewer = [
                f"{s['name']}: {found[s['name']]} of {s['pairs']}"
                for s in summaries
                if found[s["name"]] < s["pairs"]
            ]
            if fewer and any(found.values()):
                notes.append(f"{m.label}: not over all pairs ({'; '.join(fewer)})")
        anchors = {row.pair: row.figures for row in self.judged()}.values()
        figures = [f for f in anchors if f is not None]
        low = sum(f.unrelated for f in figures) / len(figures)
        text = f"judge's identity, for comparison: {low:.3f} between source and untouched target"
        if same := [f.same for f in figures if f.same is not None]:
            text += f", {sum(same) / len(same):.3f} between two pictures of one person (n = {len(same)})"
        notes.append(text)
        ns = sorted({s["figures"]["frechet"]["n"] for s in summaries if s["figures"]["frechet"]})
        if ns:
            size = " and ".join(map(str, ns))
            notes.append(
                f"the Fréchet distance is over {size} pictures a side and depends on their number: "
                "compare variants of one list only"
            )
        return notes
