"""One settings model, filled from preset ← config file ← flags.

Every value that changes a picture lives here, so that a hash of the model names a result.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import SettingsError
from .guidance import GuidanceTerm, located, split_reference


class Settings(BaseModel):
    """Everything that decides what the output looks like (see ``docs/settings.md``)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    preset: str = "cpu"
    pack: str = "starter"
    seed: int = Field(default=0, ge=0, lt=2**63)

    # analyse
    decoder: Literal["pyav", "decord"] = "pyav"
    detector_threshold: float = Field(default=0.6, gt=0, lt=1)
    min_track_frames: int = Field(default=3, ge=1)
    smoothing: float = Field(default=1.0, ge=0, description="σ of the landmark smoothing, in frames")
    cut_threshold: float = Field(default=0.5, gt=0, le=1)

    # render
    segment_frames: int = Field(default=48, ge=1)
    batch: int = Field(default=4, ge=1, description="crops a network call sees; short ones are padded")
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    compile: Literal["auto", "on", "off"] = Field(default="off", description="auto: long clips on a GPU")

    # the sampler (Algorithm 1)
    steps: int = Field(default=20, ge=1)
    start_level: float = Field(default=0.5, gt=0, le=1, description="k as a share of T")
    eta: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=1.0, ge=0, le=1, description="standard deviation of all noise")
    gradient: Literal["full", "clean"] = "clean"
    step_size: float | None = Field(default=None, gt=0, description="RMS move of ẑ_0; None: gradient as is")
    guidance_decoder: Literal["full", "preview"] = "full"
    start: Literal["target", "source"] = "target"
    start_mirror: bool = Field(default=True, description="of the source, where its mirror image fits better")
    start_keep: float = Field(default=1.0, ge=0, description="keep the target where parses differ; 0: never")
    start_hold: float = Field(default=0.0, ge=0, le=1, description="hold what was kept through the loop")
    conditioning: Literal["gradient", "cfg", "both"] = "gradient"
    cfg_scale: float = Field(default=1.0, ge=0, description="of cfg and both; 1: one evaluation a step")
    guidance_every: int = Field(default=1, ge=1, description="guide every n-th step, the last for certain")
    guidance: tuple[GuidanceTerm, ...] = ()

    # mask and paste (pixels of the crop)
    mask_grow: float = Field(default=4.0)
    mask_feather: float = Field(default=6.0, ge=0)
    colour_match: float = Field(default=1.0, ge=0, le=1)
    occlusion: float = Field(default=1.0, ge=0, le=1, description="leave what is in front of the face alone")
    detail: float = Field(default=1.0, ge=0, le=1, description="of the frame, beyond the model's resolution")
    motion_blur: float = Field(default=1, ge=0, le=1, description="blur a face sharper than its shot")
    grain: float = Field(default=1.0, ge=0, le=1, description="noise a face lacks of its shot's")
    steady: float = Field(default=1.2, ge=0, le=4, description="σ in frames of the average along a track")
    fade_frames: int = Field(
        default=6, ge=0, le=11, description="over which a swap comes and goes; 0: at once"
    )
    debug_overlay: bool = Field(default=False, description="draw boxes, tracks, landmarks, mask outlines")

    # encode
    codec: str = "libx264"
    quality: float | None = Field(default=None, description="CRF; None: visually lossless")
    pix_fmt: str | None = Field(default=None, description="None: the input's, where the codec takes it")
    keyframe_interval: int = Field(default=48, ge=1)

    @model_validator(mode="after")
    def _segments_hold_whole_intervals(self) -> Settings:
        if self.segment_frames % self.keyframe_interval:
            raise ValueError(
                f"segment_frames ({self.segment_frames}) must be a multiple of keyframe_interval "
                f"({self.keyframe_interval}), so that the bytes do not depend on where segments end"
            )
        return self

    def digest(self) -> str:
        """SHA-256 over the canonical JSON of all settings that can change a byte of the output."""
        return hashlib.sha256(
            json.dumps(self.model_dump(mode="json", exclude={"segment_frames"}), sort_keys=True).encode()
        ).hexdigest()


def preset_names() -> list[str]:
    """Names of the presets that ship with ldvid, sorted."""
    return sorted(
        f.name.removesuffix(".toml")
        for f in resources.files(__package__).iterdir()
        if f.name.endswith(".toml")
    )


def _preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        raise SettingsError(f"--preset {name}: no such preset; there are {', '.join(preset_names())}")
    text = resources.files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return {"preset": name, **tomllib.loads(text)}


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """``steps=10``, or ``guidance.identity.scale=30`` for a field of the term of that name.

    A term of a user's file goes by its class; one that isn't there yet is added.
    """
    head, *rest = key.split(".")
    if not rest:
        values[head] = value
        return
    if head != "guidance" or len(rest) != 2:
        raise SettingsError(f"--set {key}: nested keys are written guidance.TERM.FIELD")
    terms = _terms(values)
    for term in terms:
        if _name(term) == rest[0]:
            term[rest[1]] = value
            break
    else:
        terms.append({"term": rest[0], rest[1]: value})
    values["guidance"] = terms


def _terms(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A copy of the list of guidance terms so far."""
    terms = values.get("guidance", ())
    if not isinstance(terms, list | tuple) or not all(isinstance(t, dict) for t in terms):
        raise SettingsError("setting guidance: it must be a list of tables, [[guidance]] in a TOML file")
    return [dict(t) for t in terms]


def _name(term: Mapping[str, Any]) -> str:
    reference = split_reference(str(term.get("term", "")))
    return str(term.get("term", "")) if reference is None else reference[1]


def parse_assignment(text: str) -> tuple[str, Any]:
    """``key=value`` with a TOML value; a bare word is taken as a string."""
    key, sep, raw = text.partition("=")
    if not sep or not key.strip():
        raise SettingsError(f"--set {text}: write it as key=value, for example --set steps=10")
    try:
        value = tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    return key.strip(), value


def _read_config(config: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config}: can't be read as settings: {error}") from error
    if "guidance" in values:
        values["guidance"] = [located(term, config.parent) for term in _terms(values)]
    return values


def load_settings(
    preset: str = "cpu",
    *,
    config: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    guidance: Iterable[str] = (),
    assignments: Iterable[str] = (),
) -> Settings:
    """Fill the model: preset, then a TOML file, then named flags, then ``--guidance``, then ``--set``.

    Args:
        guidance: terms to add, with scale 1, unless they are there: names, or ``FILE.py:Class`` from the
            working directory.
        assignments: ``key=value``, in order.

    Raises:
        SettingsError: an unknown preset or key, a value out of range, a term's file that isn't there.
    """
    values = _preset(preset)
    if config is not None:
        values |= _read_config(config)
    values |= {k: v for k, v in (overrides or {}).items() if v is not None}
    for name in guidance:
        terms = _terms(values)
        if all(term.get("term") != name for term in terms):
            values["guidance"] = [*terms, {"term": name}]
    for text in assignments:
        _assign(values, *parse_assignment(text))
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "settings"
        known = where in Settings.model_fields or where == "settings" or "." in where
        hint = "" if known else f"; known settings: {', '.join(sorted(Settings.model_fields))}"
        raise SettingsError(f"setting {where}: {first['msg']}{hint}") from error
