"""The recipe: one TOML file, one section a stage."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import SettingsError

M = TypeVar("M", bound=BaseModel)


class Section(BaseModel):
    """Base of the stages' sections: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_section(path: Path, section: str, model: type[M]) -> M:
    """The section of that name, or the model's defaults where the file has none.

    Raises:
        SettingsError: the file can't be read, or holds what the model doesn't know.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return model.model_validate(values.get(section, {}))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"--config {path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (section, *first["loc"])))
        raise SettingsError(f"--config {path}: {where}: {first['msg']}") from error
