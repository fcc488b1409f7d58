"""Guidance terms from a user's own file, and what may be wrong with them, said for people."""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from ...configs.guidance import GuidanceTerm, read_term
from ...errors import SettingsError


class _Loader(importlib.abc.ExecutionLoader):
    """Runs exactly the bytes that were hashed, and leaves no ``__pycache__`` beside the user's file."""

    def __init__(self, file: Path, source: bytes) -> None:
        self.file, self.source = file, source

    def get_filename(self, fullname: str) -> str:
        return str(self.file)

    def is_package(self, fullname: str) -> bool:
        return False

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.source)


def where_in(file: Path, error: BaseException) -> str:
    """``my_term.py, line 12``: the last line of the file that an exception passed through."""
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(file) else None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(file):
            line = frame.lineno
    return file.name if line is None else f"{file.name}, line {line}"


def _said(error: BaseException) -> str:
    """An exception on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _load_module(file: Path, source: bytes, term: str) -> ModuleType:
    digest = hashlib.sha256(str(file).encode() + b"\0" + source).hexdigest()
    name = f"_ldvid_term_{digest[:16]}"
    if name in sys.modules:  # once a process, like any module
        return sys.modules[name]
    spec = importlib.util.spec_from_loader(name, _Loader(file, source))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look themselves up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise SettingsError(f"guidance term {term}: {where_in(file, error)}: {_said(error)}") from error
    return module


def load_user_term(entry: GuidanceTerm) -> Any:
    """The object that ``FILE.py:Class`` makes of the entry's parameters.

    The file is run as Python: it may do whatever the user may.

    Raises:
        SettingsError: the file isn't there, has changed since the settings were read, fails on import
            or has no such class; the class doesn't take the parameters, or has no ``loss``.
    """
    file = entry.file
    assert file is not None
    term = f"{file.name}:{entry.name}"
    source = read_term(file, term)
    if entry.sha256 is not None and hashlib.sha256(source).hexdigest() != entry.sha256:
        raise SettingsError(f"guidance term {term}: {file} is not the file these settings were made with")
    made = getattr(_load_module(file, source, term), entry.name, None)
    if not callable(made):
        raise SettingsError(f"guidance term {term}: {file} has no class {entry.name}")
    try:
        built = made(**(entry.model_extra or {}))
    except TypeError as error:  # most likely a parameter it does not take
        raise SettingsError(f"guidance term {term}: {error}") from error
    except Exception as error:
        raise SettingsError(f"guidance term {term}: {where_in(file, error)}: {_said(error)}") from error
    if not callable(getattr(built, "loss", None)):
        raise SettingsError(f"guidance term {term}: {entry.name} has no method loss(x_hat, context)")
    return built


def failed_in(file: Path, term: str, error: Exception) -> SettingsError:
    """What to raise when a user's ``loss`` did."""
    return SettingsError(f"guidance term {term}: {where_in(file, error)}: {_said(error)}")
