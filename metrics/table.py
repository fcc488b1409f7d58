"""The table for people: Markdown for a file, rich for a terminal. Both show what ``table.json`` holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .report import LEVEL, MEASURES, Measure

if TYPE_CHECKING:
    from rich.table import Table

Values = Mapping[str, Any]


def shown_measures(table: Values) -> list[Measure]:
    """The measures that at least one variant has a figure for, in their order."""
    return [m for m in MEASURES if any(v["figures"][m.key] is not None for v in table["variants"])]


def _number(value: float | None, measure: Measure) -> str:
    return "–" if value is None else f"{value:.{measure.digits}f}"


def mean_text(figure: Values | None, measure: Measure) -> str:
    """The mean, ``–`` where there is none."""
    return _number(None if figure is None else figure["mean"], measure)


def interval_text(figure: Values | None, measure: Measure) -> str:
    """The interval of the mean, ``0.31 – 0.42``; empty where there is none."""
    if figure is None or figure["low"] is None:
        return ""
    return f"{_number(figure['low'], measure)} – {_number(figure['high'], measure)}"


def median_text(figure: Values | None, measure: Measure) -> str:
    """The median; empty where there is none."""
    return "" if figure is None or figure["median"] is None else _number(figure["median"], measure)


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def markdown(table: Values) -> str:
    """``table.md``: the means as the paper's Table 1 has them, then intervals and medians, then notes."""
    measures, variants = shown_measures(table), table["variants"]
    lines = [f"# Evaluation: {_escaped(table['title'])}", ""]
    lines += [
        f"| variant | n | {' | '.join(m.heading for m in measures)} |",
        f"|---|---|{'---|' * len(measures)}",
    ]
    for v in variants:
        cells = " | ".join(mean_text(v["figures"][m.key], m) for m in measures)
        lines.append(f"| {_escaped(v['name'])} | {v['pairs']} | {cells} |")
    lines += ["", f"Means over the pairs. Intervals ({LEVEL} %, bootstrap over pairs) and medians:", ""]
    lines += ["| variant | measure | n | mean | interval | median |", "|---|---|---|---|---|---|"]
    for v in variants:
        for m in measures:
            if (f := v["figures"][m.key]) is not None:
                cells = f"{f['n']} | {mean_text(f, m)} | {interval_text(f, m)} | {median_text(f, m)}"
                lines.append(f"| {_escaped(v['name'])} | {m.heading} | {cells} |")
    lines += _groups(variants, measures)
    pack = table["pack"]
    lines += [
        "",
        f"ldvid {table['versions']['ldvid']}, pack {pack['name']} {pack['version']}, {table['device']}.",
    ]
    lines += [f"Network for {what}: {_judge(judge)}." for what, judge in table["judges"].items()]
    lines += ["", *(f"- {_escaped(note)}" for note in table["notes"])] if table["notes"] else []
    return "\n".join(lines) + "\n"


def group_text(figure: Values | None, measure: Measure, pairs: int) -> str:
    """``0.71 (0.60 – 0.80; n = 9)``: mean, interval, and over how many pairs where not over all of them."""
    if figure is None:
        return "–"
    n = f"n = {figure['n']}" if figure["n"] != pairs else ""
    more = "; ".join(text for text in (interval_text(figure, measure), n) if text)
    return mean_text(figure, measure) + (f" ({more})" if more else "")


def groups(variants: Sequence[Values]) -> list[tuple[str, list[tuple[Values, Values]]]]:
    """What the pairs were grouped by: a column's name, and its variants each with their groups."""
    columns = dict.fromkeys(column for v in variants for column in v.get("by", {}))
    return [(c, [(v, g) for v in variants for g in v["by"].get(c, [])]) for c in columns]


def _groups(variants: Sequence[Values], measures: Sequence[Measure]) -> list[str]:
    shown, lines = [m for m in measures if m.key != "frechet"], []
    for column, found in groups(variants):
        lines += ["", f"By {_escaped(column)}, with intervals:", ""]
        lines += [
            f"| variant | {_escaped(column)} | n | {' | '.join(m.heading for m in shown)} |",
            f"|---|---|---|{'---|' * len(shown)}",
        ]
        for v, g in found:
            cells = " | ".join(group_text(g["figures"][m.key], m, g["pairs"]) for m in shown)
            value = _escaped(g["value"]) or "–"
            lines.append(f"| {_escaped(v['name'])} | {value} | {g['pairs']} | {cells} |")
    return lines


def _judge(judge: Values) -> str:
    digest = judge.get("sha256")
    return _escaped(str(judge["name"])) + (f" (SHA-256 {digest[:12]}…)" if digest else "")


def rich_tables(table: Values) -> Iterator[Table]:
    """For a terminal: a line a measure and a column a variant, which fits where the wide table doesn't.

    A cell is the mean, its interval, and below them the median. Then a table a column that the pairs were
    grouped by: a column a group, its intervals below the means.
    """
    variants, measures = table["variants"], shown_measures(table)
    heads = [f"{v['name']}\n(n = {v['pairs']})" for v in variants]
    caption = f"mean ({LEVEL} % interval of the mean), below it the median"
    yield _rich(
        table["title"],
        caption,
        heads,
        {
            m: [
                (mean_text(f, m), interval_text(f, m), median_text(f, m))
                for f in (v["figures"][m.key] for v in variants)
            ]
            for m in measures
        },
    )
    shown = [m for m in measures if m.key != "frechet"]
    for column, found in groups(variants):
        names = [g["value"] or "–" if len(variants) == 1 else f"{v['name']}\n{g['value']}" for v, g in found]
        heads = [f"{name}\n(n = {g['pairs']})" for name, (_, g) in zip(names, found, strict=True)]
        cells: dict[Measure, list[tuple[str, str, str]]] = {}
        for m in shown:
            pairs = [(g["figures"][m.key], g["pairs"]) for _, g in found]
            cells[m] = [
                (
                    mean_text(f, m),
                    f"n = {f['n']}" if f is not None and f["n"] != n else "",
                    interval_text(f, m),
                )
                for f, n in pairs
            ]
        yield _rich(f"by {column}", f"mean, below it its {LEVEL} % interval", heads, cells)


def _rich(
    title: str, caption: str, heads: Sequence[str], cells: Mapping[Measure, Sequence[tuple[str, str, str]]]
) -> Table:
    """A table whose cells are a figure, what stands beside it in brackets, and what stands below."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title), caption=caption)
    made.add_column("")
    for head in heads:
        made.add_column(Text(head), justify="right", overflow="fold")
    for m, row in cells.items():
        texts = []
        for figure, beside, below in row:
            text = Text(figure, style="bold")
            if beside:
                text.append(f" ({beside})", style="not bold")
            if below:
                text.append(f"\n{below}", style="not bold dim")
            texts.append(text)
        made.add_row(Text(m.heading), *texts)
    return made
