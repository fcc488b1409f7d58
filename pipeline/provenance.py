"""Provenance: every output says what it is, in its container and in ``OUT.json`` beside it."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..configs import Settings
from ..stages.swap.pack import Pack
from .files import sha256_of, write_atomic
from .job import Identity

if TYPE_CHECKING:
    from ..stages.swap.networks import Networks

# https://cv.iptc.org/newscodes/digitalsourcetype/ : a composite in which some part is synthetic.
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


def notice(pack: Pack, kind: str = "video") -> str:
    """The sentence for people; ``kind`` is what was altered, a video or a picture."""
    return (
        f"Altered by AI: a face in this {kind} was swapped by ldvid {__version__} "
        f"(model pack {pack.manifest.name} {pack.manifest.version})."
    )


def container_tags(pack: Pack, kind: str = "video") -> dict[str, str]:
    """Tags for the output's container. No time and no path in them: same input, same bytes."""
    return {"comment": notice(pack, kind), "digital_source_type": DIGITAL_SOURCE_TYPE}


def report_path(output: Path) -> Path:
    """``clip.swapped.mp4`` → ``clip.swapped.mp4.json``; for a folder, beside it."""
    return output.with_name(f"{output.name}.json")


def versions() -> dict[str, str]:
    """Versions of what computed the picture."""
    names = ("torch", "av", "numpy", "opencv-python", "onnxruntime", "diffusers")
    found = {"ldvid": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def record(
    *,
    identity: Identity,
    settings: Settings,
    pack: Pack,
    source: Path,
    device: str,
    frames: int,
    swapped: Sequence[tuple[int, int]],
    made: Path,
    name: str,
    passed: Sequence[tuple[tuple[int, int], str]] = (),
    kind: str = "video",
    sources: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """What ``OUT.json`` says. ``made`` is the finished output, ``name`` its final name; ``swapped`` are
    inclusive ranges of frames, empty when nothing was (then the file is not marked as altered); ``passed``
    are ranges that failed and went through as they were, and why. ``sources`` are all of them, by number,
    where there is more to say than ``source``, the first."""
    altered = bool(swapped)
    return {
        "notice": notice(pack, kind) if altered else "Not altered: no face was swapped.",
        "digital_source_type": DIGITAL_SOURCE_TYPE if altered else None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "input": {
            "name": Path(identity.clip).name,
            "sha256": identity.clip_sha256,
            "start": identity.start,
            "end": identity.end,
        },
        "source": {"name": source.name, "sha256": identity.source_sha256, "face": identity.source_face},
        **({"sources": list(sources)} if sources else {}),
        "output": {"name": name, "sha256": sha256_of(made)},
        "frames": frames,
        "frames_swapped": [list(r) for r in swapped],
        "passed_through": [{"frames": list(r), "reason": why} for r, why in passed],
        "seed": settings.seed,
        "settings": settings.model_dump(mode="json"),
        "settings_digest": settings.digest(),
        "pack": {
            "name": pack.manifest.name,
            "version": pack.manifest.version,
            "licence": pack.manifest.licence,
            "digest": pack.digest(),
        },
        "device": device,
        "threads": identity.threads,
        "dtype": identity.dtype,
        "compiled": identity.compiled,
        "versions": versions(),
    }


def write_record(path: Path, values: dict[str, Any]) -> None:
    """Write ``OUT.json`` atomically; OutputError if that fails."""
    write_atomic(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def describe_device(networks: Networks) -> str:
    """``cpu``, or the GPU's name."""
    if networks.device.type != "cuda":
        return str(networks.device)
    import torch

    return f"{networks.device}: {torch.cuda.get_device_name(networks.device)}"
