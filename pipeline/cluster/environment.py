"""What the cluster's processes run in: Ray's ``runtime_env``, and what they don't inherit from the driver."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...errors import SettingsError

FLAG = "--ray-runtime-env"
# Where to fetch from, the same for all machines. Keys are secret, and folders are each machine's own.
PASSED_ON = (
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "HF_ENDPOINT",
    "LDVID_MIRROR",
)
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set where 'ray job submit' runs a driver


def read_runtime_env(text: str) -> dict[str, Any]:
    """A runtime environment from a YAML or JSON file, or from JSON as it stands.

    Raises:
        SettingsError: no such file, no such field, or a value that Ray does not take.
    """
    if text.lstrip().startswith("{"):
        what, read = FLAG, text
    else:
        what = f"{FLAG} {text}"
        try:
            read = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SettingsError(
                f"{what}: can't be read: {reason}; give a YAML or JSON file, or JSON in quotes"
            ) from error
    value = _parsed(what, read)
    from ray.runtime_env import RuntimeEnv

    if not isinstance(value, dict):
        raise SettingsError(f"{what}: a mapping is expected, such as env_vars: {{NAME: value}}")
    known = sorted(field for field in RuntimeEnv.known_fields if not field.startswith("_"))
    if unknown := sorted(str(key) for key in value if key not in known):
        raise SettingsError(f"{what}: no field is called {', '.join(unknown)}; there are {', '.join(known)}")
    try:
        RuntimeEnv(**value)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{what}: {' '.join(str(error).split())}") from error
    return value


def _parsed(what: str, text: str) -> Any:
    import yaml  # type: ignore[import-untyped]  # comes with Ray

    try:
        return json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"{what}: neither YAML nor JSON: {' '.join(str(error).split())}") from error


def passed_on(given: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The driver's variables that workers elsewhere need and that are no secret.

    Nothing if ``ray job submit`` started the driver: there the submitted environment holds for all, and Ray
    refuses two that differ. What ``given``, a runtime environment, sets itself is left to it.
    """
    if _SUBMITTED in environ:
        return {}
    own = given.get("env_vars", {})
    return {n: environ[n] for n in PASSED_ON if n in environ and n not in own and not _secret(environ[n])}


def _secret(value: str) -> bool:
    """Whether there is a password in it, as in ``https://user:password@host``."""
    return any("@" in urlsplit(part).netloc for part in value.replace("=", " ").replace(",", " ").split())
