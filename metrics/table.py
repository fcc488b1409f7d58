"""The table for people: Markdown for a file, rich for a terminal. Both show what ``table.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
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
    pack = table["pack"]
    lines += [
        "",
        f"ldvid {table['versions']['ldvid']}, pack {pack['name']} {pack['version']}, {table['device']}.",
    ]
    lines += [f"Network for {what}: {_judge(judge)}." for what, judge in table["judges"].items()]
    lines += ["", *(f"- {_escaped(note)}" for note in table["notes"])] if table["notes"] else []
    return "\n".join(lines) + "\n"


def _judge(judge: Values) -> str:
    digest = judge.get("sha256")
    return _escaped(str(judge["name"])) + (f" (SHA-256 {digest[:12]}…)" if digest else "")


def rich_table(table: Values) -> Table:
    """For a terminal: a line a measure and a column a variant, which fits where the wide table doesn't.

    A cell is the mean, its interval, and below them the median.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=Text(table["title"]), caption=f"mean ({LEVEL} % interval of the mean), below it the median"
    )
    made.add_column("")
    for v in table["variants"]:
        made.add_column(Text(f"{v['name']}\n(n = {v['pairs']})"), justify="right", overflow="fold")
    for m in shown_measures(table):
        cells = []
        for v in table["variants"]:
            f = v["figures"][m.key]
            cell = Text(mean_text(f, m), style="bold")
            if interval := interval_text(f, m):
                cell.append(f" ({interval})", style="not bold")
            if median := median_text(f, m):
                cell.append(f"\n{median}", style="not bold dim")
            cells.append(cell)
        made.add_row(Text(m.heading), *cells)
    return made
