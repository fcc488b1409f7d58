"""What several commands need: times as FFmpeg reads them, quiet libraries."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import warnings
from typing import TYPE_CHECKING

from ..errors import SettingsError

if TYPE_CHECKING:
    from ..pipeline.request import RayOptions

_TIME = re.compile(r"(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:\.\d*)?|\.\d+)(s|ms|us)?")


def parse_time(text: str, flag: str) -> float:
    """Seconds from ``12.5``, ``200ms``, ``MM:SS`` or ``HH:MM:SS.ms``, as FFmpeg reads them."""
    match = _TIME.fullmatch(text.strip())
    sexagesimal = match is not None and match[2] is not None
    if match is None or (sexagesimal and (match[4] or float(match[3]) >= 60)):
        raise SettingsError(f"{flag} {text}: not a time; write seconds (12.5) or HH:MM:SS.ms (00:01:02.5)")
    unit = {"ms": 1e-3, "us": 1e-6}.get(match[4], 1.0)
    return (int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + float(match[3])) * unit


def parse_size(text: str, flag: str) -> int:
    """Bytes from ``10GB``, ``800 MiB`` or a plain number."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = int(TypeAdapter(ByteSize).validate_python(text.strip()))
    except ValidationError:
        size = 0
    if size <= 0:
        raise SettingsError(f"{flag} {text}: not a size; write it like 10GB or 800MiB")
    return size


def ray_options(
    executor: str,
    *,
    address: str | None,
    gpus: int | None,
    gpu_fraction: float,
    workers: int | None,
    time_limit: float | None,
    dashboard: bool = False,
    runtime_env: str | None = None,
    debug: bool = False,
) -> RayOptions | None:
    """What ``--executor`` and the flags that belong to it ask for; None: this process.

    Raises:
        SettingsError: such a flag without ``--executor ray``, or Ray is not installed.
    """
    from ..pipeline.request import RayOptions

    given = {
        "--ray-address": address is not None,
        "--gpus": gpus is not None,
        "--gpu-fraction": gpu_fraction != 1,
        "--workers": workers is not None,
        "--time-limit": time_limit is not None,
        "--ray-dashboard": dashboard,
        "--ray-runtime-env": runtime_env is not None,
    }
    if executor == "local":
        for flag, there in given.items():
            if there:
                raise SettingsError(f"{flag}: only with --executor ray")
        return None
    if importlib.util.find_spec("ray") is None:
        raise SettingsError("--executor ray: Ray is not installed; pip install 'ldvid[ray]'")
    return RayOptions(address, gpus, gpu_fraction, workers, dashboard, runtime_env, debug)


def hush() -> None:
    """Keep the libraries' warnings off the user's terminal."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # it sets its logger's level from this alone
    logging.getLogger("libav").setLevel(logging.CRITICAL)
