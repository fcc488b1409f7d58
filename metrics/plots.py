"""The paper's Figure 5: the variants on x, a panel for each measure."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .table import shown_measures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS, PANEL = 4, (3.6, 3.1)  # panels in a row; inches
DPI = 150


def draw(table: Mapping[str, Any]) -> Figure:
    """The figure of a ``table.json``: means with their intervals, a line from one variant to the next.

    Drawn without pyplot: no window, no state that outlives the call.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures, variants = shown_measures(table), table["variants"]
    columns = min(COLUMNS, len(measures))
    rows = math.ceil(len(measures) / columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(table["title"], parse_math=False)
    names = [v["name"] for v in variants]
    for i, m in enumerate(measures):
        axes = figure.add_subplot(rows, columns, i + 1)
        known = [(x, f) for x, v in enumerate(variants) if (f := v["figures"][m.key]) is not None]
        means = [f["mean"] for _, f in known]
        # An interval of resampled ratios may leave its own mean outside: then there is no bar on that side.
        below = [0 if f["low"] is None else max(f["mean"] - f["low"], 0) for _, f in known]
        above = [0 if f["high"] is None else max(f["high"] - f["mean"], 0) for _, f in known]
        axes.errorbar([x for x, _ in known], means, yerr=[below, above], marker="o", capsize=4)
        axes.set_title(m.heading, fontsize=10)
        axes.set_xticks(range(len(names)))
        axes.set_xticklabels(names, parse_math=False, fontsize=8, rotation=15 if len(names) > 2 else 0)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.grid(axis="y", alpha=0.3)
    return figure


def plot(table: Mapping[str, Any], path: Path) -> None:
    """Write ``draw``'s figure as PNG."""
    figure = draw(table)
    with warnings.catch_warnings():  # names in a script that the font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(path, format="png", dpi=DPI)
