"""A report as HTML. Every text that comes from outside goes through ``escape``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from .. import __version__
from ..metrics.report_style import CSS, SCRIPT
from ..metrics.worst import Finding, crossing
from .job_report_inputs import Inputs
from .job_report_made import made
from .job_report_measure import Measured
from .job_report_parts import overview, plots, shots, timecode, worst
from .job_report_pictures import Pictures
from .progress import clock

# What the figures on the page are called where the pointer is; the keys are ``FaceFrame``'s.
NAMES = {
    "identity": "swapped",
    "before": "original",
    "pose_error": "error",
    "yaw": "yaw",
    "stillness": "ratio",
    "drift": "moved",
    "score": "original",
    "found": "swapped",
}
HINT = '<p class="soft small">Point at a swapped picture to see the original in its place.</p>'
RATIO, SPREAD = 1.10, 0.01  # what the tiles call good: warp ratio, identity spread above the original's own


def figures_of(inputs: Inputs, measured: Measured, found: Sequence[Finding]) -> dict[str, Any]:
    """All numbers of the report, for JSON and for the page's script."""
    clip = inputs.plan.clip
    people = sorted({f.person for f in measured.faces})
    by_person = {p: [f for f in measured.faces if f.person == p] for p in people}
    return {
        "clip": clip.path.name,
        "frames": clip.frames,
        "frames_swapped": len(inputs.swapped),
        "faces": measured.total,
        "faces_measured": len(measured.faces),
        "every": measured.every,
        "faces_over_a_limit": crossing(measured.faces),
        "names": NAMES,
        "people": [
            {
                "person": p,
                "frames": [f.frame for f in faces],
                "times": [timecode(clip, f.frame) for f in faces],
                "warp_ratio": _rounded(measured.ratios.get(p)),
                "identity_spread": [_rounded(v) for v in measured.spreads[p]],
                "series": {k: [_rounded(getattr(f, k)) for f in faces] for k in NAMES},
            }
            for p, faces in by_person.items()
        ],
        "worst": [
            {
                "frame": f.face.frame,
                "person": f.face.person,
                "severity": _rounded(f.severity),
                "reasons": [*f.reasons, *f.context],
            }
            for f in found
        ],
        "seconds": dict(inputs.record.get("seconds") or {}),
        "notes": list(measured.notes),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def page(
    inputs: Inputs,
    measured: Measured,
    found: Sequence[Finding],
    shown: Pictures,
    figures: Mapping[str, Any],
    notice: str,
    generator: str,
) -> str:
    """The whole file. It asks for nothing: a policy in it forbids what it doesn't hold. ``generator`` says
    what made it."""
    title = f"{inputs.plan.clip.path.name} ← {', '.join(s.paths[0].name for s in inputs.sources)}"
    # "<" would end the script where a name holds "</script>".
    data = json.dumps(figures, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", " ")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    links = {
        "worst": "worst frames",
        "plots": "over time",
        "shots": "before and after",
        "made": "how it was made",
    }
    nav = "".join(f'<a href="#{k}">{v}</a>' for k, v in links.items())
    sources = "".join(
        f'<img src="{uri}" alt="source picture {i + 1}">' for i, uri in enumerate(shown.sources)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="generator" content="{escape(generator)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}: ldvid report</title><style>{CSS}</style></head><body>\n"
        f'<header><div class="sources">{sources}</div><div><h1>{escape(title)}</h1>'
        f'<p class="soft">{escape(_subtitle(inputs))}</p></div></header>\n<nav>{nav}</nav>\n'
        f"{_tiles(inputs, measured)}\n{_verdict(measured, found, figures)}\n"
        f'<h2 id="worst">Worst frames</h2>{HINT}\n{worst(inputs, found, shown.worst)}\n'
        f'<h2 id="plots">Over time</h2>\n{overview(inputs)}{plots(inputs, measured, found)}\n'
        f'<h2 id="shots">Before and after, by shot and person</h2>\n{shots(inputs, shown)}\n'
        f'<h2 id="made">How it was made</h2>\n{made(inputs)}\n'
        f"<footer><p>{escape(notice)}</p><p>Report by ldvid {escape(__version__)}. Identity and pose are "
        "measured by networks that did not guide the swap.</p></footer>\n"
        f'<script type="application/json" id="figures">{data}</script><script>{SCRIPT}</script>\n'
        "</body></html>\n"
    )


def _subtitle(inputs: Inputs) -> str:
    clip = inputs.plan.clip
    length = float(sum(clip.durations) * clip.time_base) if clip.durations else 0.0
    parts = [f"{clip.width}×{clip.height}", f"{float(clip.rate):g} frames/s", f"{clip.frames} frames"]
    if length and clip.kind == "video":
        parts.append(clock(length))
    parts.append(f"{len(inputs.plan.shots)} shot{'s' * (len(inputs.plan.shots) > 1)}")
    parts.append(f"preset {inputs.settings.get('preset', '?')}")
    if created := inputs.facts.get("created"):
        parts.append(str(created).replace("T", " ").replace("+00:00", " UTC"))
    return " · ".join(parts)


def _tile(value: str, label: str, kind: str = "") -> str:
    return f'<div class="tile"><b class="{kind}">{escape(value)}</b><span>{escape(label)}</span></div>'


def _tiles(inputs: Inputs, measured: Measured) -> str:
    faces = measured.faces
    mean = {k: float(np.mean([getattr(f, k) for f in faces])) for k in ("identity", "before", "pose_error")}
    lost = sum(f.found == 0 for f in faces)
    like = f"identity, likeness to the source: {mean['before']:.2f} before the swap (strangers: about 0.8)"
    tiles = [
        _tile(f"{len(inputs.swapped)} of {inputs.plan.clip.frames}", "frames swapped"),
        _tile(f"{mean['identity']:.2f}", like),
        _tile(f"{mean['pose_error']:.1f}°", "pose error, mean over frames"),
    ]
    worst_of = f" (worst of {len(measured.spreads)} people)" if len(measured.spreads) > 1 else ""
    if measured.ratios:
        ratio = max(measured.ratios.values())
        still = f"stillness{worst_of}: unexplained change over the original's, "
        still += f"{_against(ratio, RATIO)} {RATIO:.2f}"
        tiles.append(_tile(f"{ratio:.2f}×", still, "good" if ratio <= RATIO else "warn"))
    own, before = max(measured.spreads.values(), key=lambda s: s[0] - s[1])
    spread = f"identity's spread over time{worst_of}, {_against(own, before + SPREAD)} {before + SPREAD:.3f}"
    tiles.append(_tile(f"{own:.3f}", spread, "good" if own <= before + SPREAD else "warn"))
    share = 100 * (1 - lost / len(faces))
    tiles.append(_tile(f"{share:.3g} %", "of swapped faces are still found as faces", "bad" if lost else ""))
    if seconds := inputs.record.get("seconds"):
        tiles.append(_tile(clock(sum(float(v) for v in seconds.values())), "computing, over all threads"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _against(value: float, target: float) -> str:
    return "within the target of" if value <= target else "above the target of"


def _verdict(measured: Measured, found: Sequence[Finding], figures: Mapping[str, Any]) -> str:
    over, n = int(figures["faces_over_a_limit"]), len(measured.faces)
    what = "faces" if n != 1 else "face"
    if over:
        first = found[0]
        said = f"{over} of {n} measured {what} cross{'es' * (over == 1)} a limit. "
        said += f"The worst is frame {first.face.frame}: {first.reasons[0]}."
    else:
        said = f"None of {n} measured {what} crosses a limit."
    if measured.every > 1:
        said += f" One frame in {measured.every} was measured."
    notes = "".join(f'<p class="soft small">{escape(note)}</p>' for note in measured.notes)
    return f'<p class="verdict">{escape(said)}</p>{notes}'
