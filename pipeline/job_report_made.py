"""The part of a report's page that says how the job was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..configs import load_settings
from ..errors import SettingsError
from .job_report_inputs import Inputs
from .progress import clock


def made(inputs: Inputs) -> str:
    """Timings, hashes and versions, settings."""
    return (
        f'<div class="two"><div>{_timings(inputs)}{_hashes(inputs)}</div><div>{_settings(inputs)}</div></div>'
    )


def _code(value: object) -> str:
    return f"<code>{escape(str(value))}</code>"


def _rows(rows: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<tr><th>{escape(k)}</th><td>{v}</td></tr>" for k, v in rows)


def _timings(inputs: Inputs) -> str:
    seconds = {str(k): float(v) for k, v in (inputs.record.get("seconds") or {}).items()}
    passed = "".join(
        f"<p>frames {int(p['frames'][0])}–{int(p['frames'][1])} went through unchanged: "
        f"{escape(str(p['reason']))}</p>"
        for p in inputs.facts.get("passed_through") or ()
    )
    if not seconds:
        body = '<p class="soft">Not known: the record of the output is not there.</p>'
    else:
        most = max(seconds.values()) or 1.0
        body = "<table>" + "".join(
            f'<tr><th>{escape(k)}</th><td class="n">{escape(clock(v))}</td>'
            f'<td><div class="meter"><i style="width:{100 * v / most:.1f}%"></i></div></td></tr>'
            for k, v in sorted(seconds.items(), key=lambda kv: -kv[1])
        )
        body += '</table><p class="soft small">Summed over threads, of the run that finished the job.</p>'
    return f'<div class="card"><h3>Timings</h3>{body}{passed}</div>'


def _hashes(inputs: Inputs) -> str:
    facts = inputs.facts
    pack = facts.get("pack") or {}
    rows = [("input", f"{escape(inputs.plan.clip.path.name)}<br>{_code(facts['input']['sha256'])}")]
    for used in inputs.sources:
        for path, sha256 in zip(used.paths, used.sha256, strict=True):
            rows.append(("source", f"{escape(path.name)}, face {used.face}<br>{_code(sha256)}"))
    if output := facts.get("output"):
        rows.append(("output", f"{escape(str(output['name']))}<br>{_code(output['sha256'])}"))
    name = " ".join(str(pack[k]) for k in ("name", "version") if pack.get(k))
    licence = f", {pack['licence']}" if pack.get("licence") else ""
    rows.append(("pack", f"{escape(name + licence)}<br>{_code(pack.get('digest'))}"))
    rows.append(("settings", _code(facts.get("settings_digest"))))
    threads = f", {facts['threads']} threads" if facts.get("threads") else ""
    precision = f", {facts['dtype']}" if facts.get("dtype") else ""
    compiled = ", compiled" if facts.get("compiled") else ""
    rows.append(("device", escape(f"{facts.get('device')}{threads}{precision}{compiled}")))
    versions = ", ".join(f"{k} {v}" for k, v in (facts.get("versions") or {}).items())
    rows.append(("versions", escape(versions)))
    return f'<div class="card"><h3>Hashes and versions</h3><table>{_rows(rows)}</table></div>'


def _settings(inputs: Inputs) -> str:
    settings = dict(inputs.settings)
    try:
        usual = load_settings(str(settings.get("preset"))).model_dump(mode="json")
    except SettingsError:
        usual = settings
    rows, changed = [], 0
    for key, value in settings.items():
        other = value != usual.get(key)
        changed += other
        text = (
            json.dumps(value, ensure_ascii=False)
            if isinstance(value, dict | list | bool) or value is None
            else str(value)
        )
        if key == "guidance":
            text = "; ".join(_term(t) for t in value)
        kind = ' class="changed"' if other else ""
        rows.append(f"<tr><th>{escape(key)}</th><td{kind}>{escape(text)}</td></tr>")
    said = "as the preset has them" if not changed else f"{changed} changed from the preset, in bold"
    head = f'<h3>Settings</h3><p class="soft small">{said}</p>'
    return f'<div class="card">{head}<table class="settings">{"".join(rows)}</table></div>'


def _term(term: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{k} {v}" for k, v in term.items() if k not in ("term", "schedule", "sha256"))
    return f"{term.get('term')} ({rest})"
