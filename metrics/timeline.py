"""Plots over time as SVG text: no library, no font, no request; colours come from the page's CSS.

Every measured frame is a point. Where frames are missing the line breaks; a point with no neighbour is
a dot. Nothing from a user goes in but numbers and what the caller names, which is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH, HEIGHT = 960, 118
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 18

Point = tuple[int, float]


@dataclass(frozen=True)
class Series:
    """A line: ``style`` is its CSS class (``after``, ``before``), ``points`` are (frame, value) in order."""

    name: str
    style: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Span:
    """The x axis: frames [start, stop), ``every`` how far measured ones are apart, ``cuts`` the first frames
    of shots."""

    start: int
    stop: int
    every: int = 1
    cuts: tuple[int, ...] = ()

    def x(self, frame: float) -> float:
        """Of a frame's middle."""
        share = (frame - self.start) / max(self.stop - 1 - self.start, 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT)


@dataclass(frozen=True)
class Limit:
    """A value that should not be crossed, drawn as a dashed line."""

    value: float
    name: str


def timeline(
    title: str,
    series: Sequence[Series],
    span: Span,
    *,
    limit: Limit | None = None,
    marks: Sequence[tuple[int, float, str]] = (),
    bounds: tuple[float | None, float | None] = (None, None),
    digits: int = 2,
) -> str:
    """One plot.

    Args:
        title: read aloud where the picture can't be seen.
        marks: frame, value and where a click leads (an id on the page).
        bounds: what the y axis at least reaches to; None: only the values.
        digits: after the point, on the y axis.
    """
    values = [v for s in series for _, v in s.points] + ([limit.value] if limit else [])
    values += [b for b in bounds if b is not None]
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    inner = HEIGHT - TOP - BOTTOM

    def y(value: float) -> float:
        return TOP + inner * (1 - (value - low) / (high - low))

    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        f'data-start="{span.start}" data-stop="{span.stop}" data-left="{LEFT}" data-right="{WIDTH - RIGHT}">'
    ]
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        )
        parts.append(f'<text class="tick y" x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}">{tick:.{digits}f}</text>')
    parts += _axis(span, HEIGHT)
    if limit is not None:
        at = y(limit.value)
        parts.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}">')
        parts.append(f"<title>{escape(limit.name)}</title></line>")
    for line in series:
        for run in _runs(line.points, span.every):
            points = [(f"{span.x(f):.1f}", f"{y(v):.1f}") for f, v in run]
            if len(points) == 1:
                parts.append(
                    f'<circle class="dot {line.style}" cx="{points[0][0]}" cy="{points[0][1]}" r="2"/>'
                )
            else:
                path = " ".join(",".join(p) for p in points)
                parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
    for frame, value, target in marks:
        at_mark = f'cx="{span.x(frame):.1f}" cy="{y(value):.1f}" r="4.5"'
        parts.append(f'<a href="#{escape(target)}"><circle class="mark" {at_mark}/></a>')
    parts.append(f'<line class="cross" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="0" x2="0"/></svg>')
    return "".join(parts)


def presence(rows: Sequence[Sequence[tuple[int, int, bool]]], labels: Sequence[str], span: Span) -> str:
    """Who is there when: one row a person, of runs (first, last, swapped) of frames."""
    step, bar = 22, 12
    height = TOP + step * len(rows) + BOTTOM
    parts = [
        f'<svg class="plot who" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="people over time">'
    ]
    parts += _axis(span, height)
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        top = TOP + i * step
        parts.append(f'<text class="tick y" x="{LEFT - 6}" y="{top + bar - 2}">{escape(label)}</text>')
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{top + bar / 2}" y2="{top + bar / 2}"/>'
        )
        for first, last, swapped in row:
            x0, x1 = span.x(first - 0.5), span.x(last + 0.5)
            x0, x1 = max(x0, LEFT), min(x1, WIDTH - RIGHT)
            kind = "swapped" if swapped else "alone"
            box = f'x="{x0:.1f}" y="{top}" width="{max(x1 - x0, 1):.1f}" height="{bar}" rx="2"'
            said = f"frames {first}–{last}, {'swapped' if swapped else 'left alone'}"
            parts.append(f'<rect class="bar {kind}" {box}><title>{said}</title></rect>')
    return "".join(parts) + "</svg>"


def _axis(span: Span, height: int) -> list[str]:
    """Cuts, and numbers of frames below."""
    parts = []
    for cut in span.cuts:
        x = (span.x(cut - 1) + span.x(cut)) / 2
        parts.append(f'<line class="cut" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height - BOTTOM}"/>')
    for frame in frame_ticks(span):
        anchor = {span.start: "start", span.stop - 1: "end"}.get(frame, "middle")
        place = f'text-anchor="{anchor}" x="{span.x(frame):.1f}" y="{height - 4}"'
        parts.append(f'<text class="tick" {place}>{frame}</text>')
    return parts


def _runs(points: Sequence[Point], every: int) -> list[list[Point]]:
    """Cut where a measured frame is missing."""
    runs: list[list[Point]] = []
    for point in points:
        if runs and point[0] - runs[-1][-1][0] <= every:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high`` (Heckbert, Graphics Gems 1990)."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / (about - 1)
    power: Final = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def frame_ticks(span: Span, about: int = 9) -> list[int]:
    """The first and the last frame and round ones between them, not too near to either."""
    last = span.stop - 1
    if last <= span.start:
        return [span.start]
    step = max(1, round(nice_ticks(0, (last - span.start) / about, 2)[-1]))
    room = (last - span.start) / about * 0.6
    between = range(-(-span.start // step) * step, last, step)
    return [span.start, *(f for f in between if f - span.start > room and last - f > room), last]
