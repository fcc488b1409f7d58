"""What an evaluation collects, pair by pair, and what it says of it in the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import FaceError
from ..metrics.pair import Face, Figures
from ..metrics.report import MEASURES, as_dict, summarise
from ..metrics.skin import TONES
from ..stages.records import F32, U8
from .pairs import counted

if TYPE_CHECKING:
    from ..configs import Settings


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
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Results:
    """What an evaluation collects.

    ``by``: labels of the rows to group them by. ``cells`` holds rows of the contact sheet: source, target,
    variants; ``shown`` the number of each row's pair. ``unseen`` names swaps in which the detector found
    no face.
    """

    variants: list[str]
    settings: dict[str, Settings]
    sheet_rows: int = 0
    by: Sequence[str] = ()
    rows: list[Row] = field(default_factory=list)
    features: dict[str, list[tuple[F32, F32]]] = field(default_factory=dict)
    cells: list[list[U8 | None]] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    def add(self, row: Row, source: Face, swapped: Face) -> None:
        """A judged pair and the features its Fréchet distance needs."""
        self.rows.append(row)
        self.features.setdefault(row.variant, []).append((swapped.identity, source.identity))

    def skip(self, row: Row) -> None:
        """A pair that can't be judged; ``row.reason`` says why."""
        self.rows.append(row)

    def show(self, pair: int, source: U8, target: U8, made: dict[str, U8]) -> None:
        """A row of the sheet, while there is room for it."""
        if len(self.cells) < self.sheet_rows and made:
            self.shown.append(pair)
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
        """Per variant that has figures: name, settings, number of pairs, the estimates, and by groups."""
        found = []
        anchor = self.anchor()
        for name in self.variants:
            rows = [row for row in self.judged() if row.variant == name]
            figures = [row.figures for row in rows if row.figures is not None]
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
                    "figures": _estimates(figures, swapped, sources, anchor),
                    "by": {column: self._groups(rows, column, anchor) for column in self.by},
                }
            )
        return found

    def anchor(self) -> float | None:
        """The mean s_same of the pairs that have one, for those that have none; None if all or none do."""
        pairs = {row.pair: row.figures.same for row in self.judged() if row.figures is not None}
        known = [same for same in pairs.values() if same is not None]
        return sum(known) / len(known) if 0 < len(known) < len(pairs) else None

    @staticmethod
    def _groups(rows: Sequence[Row], column: str, anchor: float | None) -> list[dict[str, Any]]:
        """The estimates of each value of a label: skin from light to dark, others in alphabetical order."""
        groups: dict[str, list[Figures]] = {}
        for row in rows:
            if row.figures is not None:
                groups.setdefault(row.labels.get(column, ""), []).append(row.figures)
        tones = [name for name, _ in TONES]
        order = sorted(groups, key=lambda v: (tones.index(v) if v in tones else -1, v))
        return [
            {
                "value": value,
                "pairs": len(groups[value]),
                "figures": _estimates(groups[value], (), (), anchor),
            }
            for value in order
        ]

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
            if m.key in ("frechet", "recovery_common"):
                continue
            found = {s["name"]: (s["figures"][m.key] or {"n": 0})["n"] for s in summaries}
            fewer = [
                f"{s['name']}: {found[s['name']]} of {s['pairs']}"
                for s in summaries
                if found[s["name"]] < s["pairs"]
            ]
            if fewer and any(found.values()):
                notes.append(f"{m.label}: not over all pairs ({'; '.join(fewer)})")
        if self.unseen:
            some = "; ".join(self.unseen[:8]) + ("; …" if len(self.unseen) > 8 else "")
            notes.append(f"the detector finds no face in {counted(len(self.unseen), 'swap')}: {some}")
        if (anchor := self.anchor()) is not None:
            notes.append(
                f"identity recovery, common anchor: over all pairs, with {anchor:.3f} for s_same, "
                "the mean of those that have another picture of the source"
            )
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


def _estimates(
    figures: Sequence[Figures], swapped: Sequence[F32], sources: Sequence[F32], anchor: float | None
) -> dict[str, Any]:
    return {k: as_dict(e) for k, e in summarise(figures, swapped, sources, anchor).items()}
