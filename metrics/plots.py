"""The paper's Figure 5: the variants on x, a panel for each measure."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .table import shown_measures

COLUMNS, PANEL = 4, (3.6, 3.1)  # panels in a row; inches
DPI = 150


def plot(table: Mapping[str, Any], path: Path) -> None:
    """Write the plot of a ``table.json`` as PNG: means with their intervals, lines from one to the next.

    Drawn without pyplot: no window, no state that outlives the call.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures, variants = shown_measures(table), table["variants"]
    columns = min(COLUMNS, max(len(measures), 1))
    rows = math.ceil(max(len(measures), 1) / columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(table["title"], parse_math=False)
    names = [v["name"] for v in variants]
    for i, m in enumerate(measures):
        axes = figure.add_subplot(rows, columns, i + 1)
        known = [(x, f) for x, v in enumerate(variants) if (f := v["figures"][m.key]) is not None]
        means = [f["mean"] for _, f in known]
        low = [f["mean"] - f["low"] if f["low"] is not None else 0 for _, f in known]
        high = [f["high"] - f["mean"] if f["high"] is not None else 0 for _, f in known]
        # A median can lie anywhere, but an interval of resampled ratios may leave its mean outside.
        bars = [[max(v, 0) for v in low], [max(v, 0) for v in high]]
        axes.errorbar([x for x, _ in known], means, yerr=bars, marker="o", capsize=4, color="tab:blue")
        axes.set_title(m.heading, fontsize=10)
        axes.set_xticks(range(len(names)))
        axes.set_xticklabels(names, parse_math=False, fontsize=8, rotation=20 if len(names) > 3 else 0)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.grid(axis="y", alpha=0.3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(path, format="png", dpi=DPI)
