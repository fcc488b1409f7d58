"""What the record of an output holds so that a report can be made of it when its job folder is gone.

``OUT.json`` gets two more keys: "seconds", by stage, and "plan": the plan as rendered, deflated and in
base64 (20 to 60 bytes a face and frame). A record may go where the output goes. Left out are therefore the
clip's folder and all that would tell people apart by their faces: the tracks' embeddings.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import JobError
from .plan import Plan

Range = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]
Face = Annotated[int, Field(ge=1)] | None


class _Part(BaseModel):
    """Part of a record: what a report reads of it; whatever else is there is not looked at."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _File(_Part):
    name: str
    sha256: str


class _Clip(_File):
    start: float | None = None
    end: float | None = None


class _Source(_File):
    face: Face = None


class _Photos(_Part):
    names: Annotated[list[str], Field(min_length=1)]
    sha256: Annotated[list[str], Field(min_length=1)]
    person: int | None = None
    face: Face = None


class _Passed(_Part):
    frames: Range
    reason: str


class _Settings(_Part):
    preset: str = ""
    detector_threshold: float = Field(default=0.6, gt=0, lt=1)
    keyframe_interval: int = Field(default=48, ge=1)
    guidance: list[dict[str, Any]] = []


class _Pack(_Part):
    name: str
    version: str = ""
    licence: str = ""
    digest: str


class _Record(_Part):
    notice: str
    created: str
    input: _Clip
    source: _Source
    sources: list[_Photos] = []
    output: _File
    frames_swapped: list[Range]
    passed_through: list[_Passed] = []
    settings: _Settings
    settings_digest: str
    pack: _Pack
    versions: dict[str, str] = {}
    seconds: dict[str, Annotated[float, Field(ge=0)]] = {}
    plan: str


def check_record(record: Mapping[str, Any]) -> None:
    """Whether a record with a plan, which may come from anywhere, holds what a report takes from it.

    Raises:
        ValueError: it doesn't; says what, in a line.
    """
    try:
        checked = _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for number, source in enumerate(checked.sources):
        if len(source.names) != len(source.sha256):
            raise ValueError(f"sources.{number}: not as many names as hashes")
    if any(first > last for first, last in checked.frames_swapped):
        raise ValueError("frames_swapped: a range ends before it begins")
    if Path(checked.input.name).name in ("", ".."):
        raise ValueError("input.name: no name of a file")
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a text that is no text") from error


def report_values(plan: Plan, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The keys for the record; ``seconds`` are those of this run alone."""
    return {"seconds": {k: round(v, 3) for k, v in seconds.items()}, "plan": packed(plan)}


def packed(plan: Plan) -> str:
    """A plan as a string for JSON, without folder and embeddings."""
    bare = replace(
        plan,
        clip=replace(plan.clip, path=Path(plan.clip.path.name), warnings=()),  # they name it in full
        tracks=tuple(replace(t, embedding=np.zeros(0, np.float32)) for t in plan.tracks),
    )
    return base64.b64encode(zlib.compress(bare.to_json().encode(), 9)).decode("ascii")


def unpacked(text: str, name: str) -> Plan:
    """The plan back; ``name`` is the record's, for the message.

    Raises:
        JobError: it is damaged, or of another version of ldvid.
    """
    try:
        plain = zlib.decompress(base64.b64decode(text, validate=True)).decode()
    except (ValueError, TypeError, zlib.error) as error:
        raise JobError(f"{name}: its plan is damaged: {error}") from error
    return Plan.from_json(plain, name)
