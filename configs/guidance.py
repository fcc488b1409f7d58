"""Terms of the guidance loss as settings: which, with which λ schedule, from ldvid or from a user's file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    model_serializer,
    model_validator,
)

from ..errors import SettingsError

_REFERENCE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")


def split_reference(term: str) -> tuple[Path, str] | None:
    """``FILE.py:Name`` → file and name; None for the bare name of a term that comes with ldvid.

    Raises:
        SettingsError: it looks like a file and isn't written so.
    """
    if match := _REFERENCE.fullmatch(term):
        return Path(match["file"]), match["name"]
    if ":" in term or term.endswith(".py") or "/" in term:
        raise SettingsError(
            f"guidance term {term}: a term of your own is written FILE.py:Class, "
            "for example my_term.py:ColourTerm"
        )
    return None


def read_term(file: Path, term: str) -> bytes:
    """The bytes of a term's file; SettingsError if it can't be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise SettingsError(f"guidance term {term}: {file} can't be read: {error.strerror}") from error


def located(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A term as a settings file in ``folder`` names it: its own file, if any, is found from there."""
    term = entry.get("term")
    if isinstance(term, str) and (reference := split_reference(term)):
        return {**entry, "term": f"{folder / reference[0].expanduser()}:{reference[1]}"}
    return dict(entry)


class GuidanceTerm(BaseModel):
    """One term of the guidance loss and its λ schedule (eq. 5).

    ``term`` names one that comes with ldvid, or ``FILE.py:Class`` (made absolute here, from the working
    directory). ``schedule`` is a step-wise λ(t): pairs (progress, factor), the factor holding while the
    share of steps done is below ``progress``; λ is ``scale`` times that factor. Further fields are
    parameters of the term. ``sha256`` is that of the file, taken here unless it is given; so a changed
    file means changed settings. Written out, a file is named without its folder.

    Raises:
        SettingsError: the file can't be read.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    term: str
    scale: float = Field(default=1.0, ge=0)
    schedule: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="before")
    @classmethod
    def _find_file(cls, values: Any) -> Any:
        term = values.get("term") if isinstance(values, dict) else None
        if not isinstance(term, str) or (reference := split_reference(term)) is None:
            return values
        file = reference[0].expanduser().absolute()
        found = {**values, "term": f"{file}:{reference[1]}"}
        if found.get("sha256") is None:
            found["sha256"] = hashlib.sha256(read_term(file, term)).hexdigest()
        return found

    @property
    def file(self) -> Path | None:
        """The user's file, absolute; None for a term of ldvid's."""
        reference = split_reference(self.term)
        return None if reference is None else reference[0]

    @property
    def name(self) -> str:
        """``identity``, or the class of a user's file."""
        reference = split_reference(self.term)
        return self.term if reference is None else reference[1]

    @field_serializer("term")
    def _without_folder(self, term: str) -> str:
        reference = split_reference(term)
        return term if reference is None else f"{reference[0].name}:{reference[1]}"

    @model_serializer(mode="wrap")
    def _without_empty_hash(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if self.sha256 is None:
            values.pop("sha256", None)
        return values
