"""The parts of a report's page that show frames: worst ones, plots, stills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from ..metrics.timeline import Limit, Series, Span, presence, timeline
from ..metrics.worst import DRIFT, POSE, STILLNESS, WEAK, FaceFrame, Finding, drift_limit, typical_of
from ..stages.records import ClipInfo
from .job_report_inputs import Inputs
from .job_report_measure import Measured, people_of
from .job_report_pictures import Pair, Pictures
from .plan import frame_ranges


def timecode(clip: ClipInfo, frame: int) -> str:
    """``1:02.417`` from the first frame on; a folder of frames has the frame's name."""
    if clip.kind == "folder":
        return clip.files[frame] if frame < len(clip.files) else str(frame)
    ms = round((clip.timestamps[frame] - clip.timestamps[0]) * clip.time_base * 1000)
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}:{minutes:02d}" if hours else str(minutes)
    return f"{head}:{seconds:02d}.{ms:03d}"


def pair(pictures: Pair, what: str) -> str:
    """Both pictures side by side; pointing at the swapped one shows the original in its place."""
    size = f'width="{pictures.width}" height="{pictures.height}"'
    return (
        '<div class="pair"><figure class="after" tabindex="0">'
        f'<img src="{pictures.after}" {size} alt="{escape(what)}, swapped">'
        "<figcaption>swapped</figcaption></figure>"
        f'<figure class="before"><img src="{pictures.before}" {size} alt="{escape(what)}, original">'
        "<figcaption>original</figcaption></figure></div>"
    )


def worst(inputs: Inputs, found: Sequence[Finding], pictures: Sequence[Pair]) -> str:
    """Cards, the worst first."""
    cards = []
    for i, (finding, shown) in enumerate(zip(found, pictures, strict=True)):
        face = finding.face
        where = f"frame {face.frame}"
        reasons = "".join(f"<li>{escape(r)}</li>" for r in finding.reasons)
        reasons += "".join(f'<li class="why">{escape(c)}</li>' for c in finding.context)
        cards.append(
            f'<div class="card" id="w{i + 1}"><h3><span>{i + 1}. {where}, person {face.person}</span>'
            f'<span class="soft">{escape(timecode(inputs.plan.clip, face.frame))}</span></h3>'
            f"{pair(shown, f'{where}, person {face.person}')}<ul>{reasons}</ul></div>"
        )
    return f'<div class="worst">{"".join(cards)}</div>'


def _span(inputs: Inputs, every: int = 1) -> Span:
    plan = inputs.plan
    return Span(0, plan.clip.frames, every, tuple(start for start, _ in plan.shots[1:]))


def overview(inputs: Inputs) -> str:
    """Who is there when, those who were left alone too."""
    plan = inputs.plan
    people = people_of(plan)
    order = sorted(set(people.values()))
    rows = []
    for person in order:
        runs = []
        for track in (t for t in plan.tracks if people[t.id] == person):
            there = [int(f) for f in track.frames]
            done = [f for f in there if track.id in plan.sources and f in inputs.swapped]
            runs += [(a, b, True) for a, b in frame_ranges(done)]
            runs += [(a, b, False) for a, b in frame_ranges(set(there) - set(done))]
        rows.append(sorted(runs))
    said = "people on screen: swapped in colour, left alone in grey; upright lines are cuts"
    svg = presence(rows, [f"{p}" for p in order], _span(inputs))
    head = f'<div class="measure"><b>People</b><span class="soft">{said}</span></div>'
    return f'<div class="card">{head}{svg}</div>'


def plots(inputs: Inputs, measured: Measured, found: Sequence[Finding]) -> str:
    """Five plots for each person, one above the other so that they can be read together."""
    typical = typical_of(measured.faces)
    parts = []
    for person in sorted(typical):
        faces = [f for f in measured.faces if f.person == person]
        marks = [(f.face, f"w{i + 1}") for i, f in enumerate(found) if f.face.person == person]
        body = "".join(
            _plot(what, faces, _span(inputs, measured.every), marks)
            for what in (
                _What(
                    "Identity",
                    "judge's cosine to the source",
                    {"identity": "swapped", "before": "original"},
                    Limit(typical[person].least, "limit: a quarter of the gain lost"),
                ),
                _What("Pose error", "degrees", {"pose_error": "error"}, _at(POSE, "°"), (0, POSE), 0),
                _What(
                    "Stillness",
                    "change from the frame before over the original's; 1 is as still",
                    {"stillness": "ratio"},
                    _at(STILLNESS),
                    (0.8, STILLNESS),
                    1,
                ),
                _What(
                    "Landmarks",
                    "how far features moved, in per cent of the eye distance",
                    {"drift": "moved"},
                    _at(drift_limit(float(np.median([f.eyes for f in faces]))), " %"),
                    (0, DRIFT),
                    0,
                ),
                _What(
                    "Detection score",
                    "0 where no face is found",
                    {"found": "swapped", "score": "original"},
                    Limit(WEAK, f"weak below {WEAK:g}"),
                    (0.5, 1.0),
                    1,
                ),
            )
        )
        mean = sum(f.identity for f in faces) / len(faces)
        ratio = measured.ratios.get(person)
        said = f"{len(faces)} measured, identity {mean:.2f}" + (
            "" if ratio is None else f", stillness {ratio:.2f}×"
        )
        parts.append(
            f'<div class="card" data-person="{person}"><h3>Person {person} '
            f'<span class="soft small">{said}</span></h3>{body}</div>'
        )
    return "".join(parts)


@dataclass(frozen=True)
class _What:
    """One plot: ``keys`` are ``FaceFrame``'s, the first the swap's own, with what each is called."""

    name: str
    unit: str
    keys: dict[str, str]
    limit: Limit
    bounds: tuple[float | None, float | None] = (None, None)
    digits: int = 2


def _at(value: float, unit: str = "") -> Limit:
    return Limit(value, f"limit: {value:.3g}{unit}")


def _plot(what: _What, faces: Sequence[FaceFrame], span: Span, marks: Sequence[tuple[FaceFrame, str]]) -> str:
    main = next(iter(what.keys))
    series = []
    for key, called in reversed(what.keys.items()):  # the swap's own on top
        known = [(f.frame, float(v)) for f in faces if (v := getattr(f, key)) is not None]
        series.append(Series(called, "after" if key == main else "before", known))
    if not any(s.points for s in series):
        return ""
    legend = "".join(
        f'<span class="key {"after" if k == main else "before"}"></span>{escape(called)}'
        for k, called in what.keys.items()
    )
    legend += f'<span class="key limit"></span>{escape(what.limit.name)}'
    at = [(f.frame, float(v), to) for f, to in marks if (v := getattr(f, main)) is not None]
    svg = timeline(
        f"{what.name} over time",
        series,
        span,
        limit=what.limit,
        marks=at,
        bounds=what.bounds,
        digits=what.digits,
    )
    return (
        f'<div data-series="{" ".join(what.keys)}"><div class="measure"><span><b>{what.name}</b> '
        f'<span class="soft">{what.unit}</span></span><span class="read">{legend}</span></div>{svg}</div>'
    )


def shots(inputs: Inputs, shown: Pictures) -> str:
    """A frame of each shot, and the heads in it; typical ones, neither best nor worst."""
    clip, parts = inputs.plan.clip, []
    for shot in shown.shots:
        frames = f"frames {shot.start}–{shot.stop - 1}"
        times = f"{timecode(clip, shot.start)} to {timecode(clip, shot.stop - 1)}"
        heads = "".join(
            f'<div><p class="small"><b>person {f.person}</b> <span class="soft">frame {f.frame}, identity '
            f"{f.identity:.2f}</span></p>{pair(p, f'shot {shot.number + 1}, person {f.person}')}</div>"
            for f, p in shot.heads
        )
        whole = pair(shot.whole, f"shot {shot.number + 1}, frame {shot.frame}")
        parts.append(
            f'<div class="card"><h3>Shot {shot.number + 1} <span class="soft small">{frames}, {escape(times)}'
            f'</span></h3><div class="shot"><div>{whole}</div><div class="heads">{heads}</div></div></div>'
        )
    if shown.left_out:
        parts.append(
            f'<p class="soft">{shown.left_out} more shots are not shown here; the plots have them.</p>'
        )
    return "".join(parts)
