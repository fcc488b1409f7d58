"""Reaching a Ray cluster, or starting one on this machine, and whether it can hold the pool."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from ...errors import SettingsError
from ..request import RayOptions
from .environment import passed_on, read_runtime_env

_SPARE = 2  # CPUs beside the swap's workers, for decoding and encoding
_STORE = 2 * 2**30  # bytes of object store at most; on their way are about 1.3 MB a face and frame


@dataclass(frozen=True)
class Size:
    """The pool of swap workers: how many, and what each takes of the cluster. ``notes`` are what the user
    should know of the connection."""

    workers: int
    cpus: float
    gpus: float
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        """Where the workers' networks run: ``cuda`` or ``cpu``."""
        return "cuda" if self.gpus else "cpu"


@contextmanager
def connected(options: RayOptions, device: str, threads: int | None) -> Iterator[Size]:
    """A connection to the cluster, and the pool's size there.

    ``device`` is ``auto``, ``cpu`` or ``cuda``. A cluster that was started for this is ended afterwards;
    one that was there, or that this process was connected to already, is left as it is.

    Raises:
        SettingsError: no cluster at the address, or one too small for what was asked.
    """
    ours = not ray.is_initialized()
    address = options.address or os.environ.get("RAY_ADDRESS")
    notes = _start(address, options, threads) if ours else ()
    try:
        yield replace(_size(options, device, threads), notes=notes)
    finally:
        if ours:
            ray.shutdown()


def _start(address: str | None, options: RayOptions, threads: int | None) -> tuple[str, ...]:
    given: dict[str, Any] = {"log_to_driver": options.debug, "include_dashboard": options.dashboard}
    given["logging_level"] = logging.INFO if options.debug else logging.ERROR
    if address is None:
        cores = os.cpu_count() or 1
        # Logical CPUs: the workers', and some that are always free for decoding and encoding.
        wanted = (options.workers or 1) * (threads or 1) + _SPARE
        given |= {"address": "local", "num_cpus": max(cores, wanted), "object_store_memory": _STORE}
    else:
        given["address"] = address
        del given["include_dashboard"]
    notes = _set_environment(given, options)
    try:
        with contextlib.nullcontext() if options.debug else _hushed():
            context = ray.init(**given)
    except Exception as error:
        text = " ".join(str(error).split())
        if options.dashboard and "missing packages" in text:
            raise SettingsError("--ray-dashboard: needs pip install 'ray[default]'") from error
        if address is None:
            raise SettingsError(f"--executor ray: Ray can't be started here: {text}") from error
        raise SettingsError(
            f"--ray-address {address}: no Ray cluster answers there: {text}; give the address "
            "'ray start --head' printed, with RAY_AUTH_MODE and token as there (see docs/cluster.md), "
            "or leave the flag away to start one here"
        ) from error
    if options.dashboard:
        url = context.dashboard_url
        notes = (
            *notes,
            f"Ray's dashboard: http://{url}" if url else "--ray-dashboard: the cluster runs none",
        )
    return notes


def _set_environment(given: dict[str, Any], options: RayOptions) -> tuple[str, ...]:
    """Into ``given``, the runtime environment; what of the driver's own it has is said."""
    environment = {} if options.runtime_env is None else read_runtime_env(options.runtime_env)
    more = passed_on(environment) if given["address"] != "local" else {}
    if more:
        environment["env_vars"] = {**more, **environment.get("env_vars", {})}
    if environment:
        given["runtime_env"] = environment
    return (f"the workers are given this machine's {', '.join(more)}",) if more else ()


@contextmanager
def _hushed() -> Iterator[None]:
    """Ray says nothing on our terminal: what matters of it is in the errors and in the summary.

    Its Python half prints to stdout what it hears of workers that died, with ``log_to_driver`` or without;
    its C++ half writes errors to stderr, unless its level is set, and then it writes that its level is set.
    """
    ray._private.worker._worker_logs_enabled = False
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # such as a step's that broke off with its pool
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _size(options: RayOptions, device: str, threads: int | None) -> Size:
    """How many workers of which size: what was asked for, or all that the cluster holds."""
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus, cpus = total.get("GPU", 0.0), total.get("CPU", 0.0)
    if device == "cuda" and not gpus:
        raise SettingsError("--device cuda: the cluster has no GPU")
    if device != "cpu" and gpus:
        wanted = gpus if options.gpus is None else float(options.gpus)
        if wanted > gpus:
            raise SettingsError(f"--gpus {wanted:g}: the cluster has {gpus:g}")
        workers = options.workers or int(wanted / options.gpu_fraction)
        if workers * options.gpu_fraction > wanted:
            held = "the cluster has" if options.gpus is None else "--gpus gives"
            raise SettingsError(
                f"--workers {workers}: with --gpu-fraction {options.gpu_fraction:g} they need "
                f"{workers * options.gpu_fraction:g} GPUs, {held} {wanted:g}"
            )
        return Size(workers, 1.0, options.gpu_fraction)
    if options.gpus:
        raise SettingsError(f"--gpus {options.gpus}: the swap runs on CPUs here; use --workers")
    each = float(threads or 1)
    workers = options.workers or max(1, int((cpus - _SPARE) / each))
    if workers * each + 1 > cpus:
        raise SettingsError(
            f"--workers {workers}: with {each:g} threads each and one CPU for decoding they need "
            f"{workers * each + 1:g} CPUs, the cluster has {cpus:g}; see --threads"
        )
    return Size(workers, each, 0.0)
