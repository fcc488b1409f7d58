"""What a job is: everything that decides its bytes, and in words what changed since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Identity:
    """What a job is: two runs with equal identities make the same bytes.

    ``device`` is ``cpu`` or the GPU's name, ``threads`` the CPU threads of the networks, None on a GPU,
    ``dtype`` what they compute in and ``compiled`` whether through a compiler (``networks.resolve_dtype``,
    ``resolve_compile``).
    ``who`` says who gets which source (``assign.identity_values``), None where ``source_sha256`` is the
    only one and goes to the largest person.
    """

    clip: str
    clip_sha256: str
    start: float | None
    end: float | None
    source_sha256: str
    source_face: int | None
    settings: dict[str, Any]
    settings_digest: str
    pack: str
    pack_digest: str
    version: str
    who: dict[str, Any] | None = None
    threads: int | None = None
    device: str | None = None
    dtype: str = "float32"
    compiled: bool = False

    def digest(self) -> str:
        """SHA-256 over what decides the picture (not the clip's name)."""
        values = {k: v for k, v in asdict(self).items() if k not in ("clip", "settings")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Identity:
        """As ``job.json`` holds it.

        Raises:
            ValueError: it was stored by a version of ldvid with other fields.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"its identity can't be read by this ldvid: {error}") from error

    def differences(self, old: dict[str, Any]) -> list[str]:
        """What changed since ``old``, in words, for example ``steps: 12 → 20``."""
        named = {
            "clip_sha256": "the clip's content",
            "source_sha256": "the source picture",
            "pack_digest": "the files of the pack",
        }
        changes = [words for key, words in named.items() if old.get(key) != getattr(self, key)]
        plain = {"start": "--start", "end": "--end", "source_face": "--source-face", "version": "ldvid"}
        # On another kind of device the number of threads differs too, and is not what happened.
        same = old.get("device") == self.device
        plain |= {"threads": "--threads"} if same else {"device": "device"}
        if same and (old.get("settings") or {}).get("dtype") == self.settings.get("dtype"):
            plain["dtype"] = "what dtype=auto is on this machine"
        if same and (old.get("settings") or {}).get("compile") == self.settings.get("compile"):
            plain["compiled"] = "what compile=auto is for this clip"
        for key, words in plain.items():
            if old.get(key) != getattr(self, key):
                changes.append(f"{words}: {_show(old.get(key))} → {_show(getattr(self, key))}")
        if old.get("who") != json.loads(json.dumps(self.who)):
            changes.append("who gets which source (--source, --select, --reference)")
        before, after = _flat(old.get("settings") or {}), _flat(json.loads(json.dumps(self.settings)))
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                changes.append(f"{key}: {_show(before.get(key))} → {_show(after.get(key))}")
        return changes


def _show(value: Any) -> str:
    return "none" if value is None else json.dumps(value) if isinstance(value, dict | list) else str(value)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat = {k: v for k, v in settings.items() if k != "guidance"}
    for term in settings.get("guidance", ()):
        flat |= {f"guidance.{term['term']}.{k}": v for k, v in term.items() if k != "term"}
    return flat
