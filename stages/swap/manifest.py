"""Pack manifests: what ``pack.toml`` says, and the check that the files are what it says.

A pack is a folder with ``pack.toml`` and weights. Nothing is unpickled: weights are safetensors,
ONNX, or ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import PackError
from ..records import F32

EMBEDDED = Path(__file__).resolve().parents[2] / "packs"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Part):
    """One file: what it must hash to, whose it is, under which licence."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    source: str
    licence: str


class AutoencoderEntry(_Part):
    kind: Literal["taesd"]
    encoder: str
    decoder: str
    preview: str | None = None
    latent_channels: int
    downscale: int


class UNetEntry(_Part):
    kind: Literal["diffusers"]
    file: str
    arguments: dict[str, Any]
    class_label: int | None = None
    prediction: Literal["epsilon"] = "epsilon"


class ScheduleEntry(_Part):
    timesteps: int
    beta_schedule: Literal["scaled_linear", "linear"]
    beta_start: float
    beta_end: float


class IdentityEntry(_Part):
    """``(pixel − mean) / scale`` of a 0–255 RGB (or BGR) square crop aligned to ArcFace's template."""

    file: str
    size: int
    channels: Literal["rgb", "bgr"]
    mean: float
    scale: float


class ParserEntry(_Part):
    kind: Literal["bisenet"]
    file: str
    size: int
    classes: tuple[str, ...]
    face: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class DetectorEntry(_Part):
    kind: Literal["yunet", "scrfd"]
    file: str


class Manifest(_Part):
    """The whole of ``pack.toml``."""

    name: str
    version: str
    licence: str
    description: str
    crop_size: int
    template: tuple[tuple[float, float], ...] = Field(min_length=5, max_length=5)
    files: dict[str, FileEntry]
    autoencoder: AutoencoderEntry
    unet: UNetEntry
    schedule: ScheduleEntry
    identity: IdentityEntry
    parser: ParserEntry
    detector: DetectorEntry

    def template_points(self) -> F32:
        """The five landmarks at the crop's size, (5, 2), order as in ``records``."""
        return np.asarray(self.template, np.float32)


class Pack:
    """A folder whose files have been checked against its manifest."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    def path(self, file: str) -> Path:
        """Path of a file the manifest lists; PackError if it does not list it."""
        if file not in self.manifest.files:
            raise PackError(f"{self.folder / 'pack.toml'}: {file} is used but not listed under [files]")
        return self.folder / file

    def digest(self) -> str:
        """SHA-256 over the hashes of all files and the manifest's text."""
        return hashlib.sha256((self.folder / "pack.toml").read_bytes()).hexdigest()


def _folders() -> list[Path]:
    home = os.environ.get("LDVID_HOME")
    cache = Path(home) if home else Path(platformdirs.user_cache_dir("ldvid"))
    return [EMBEDDED, cache / "packs"]


def find_pack(name: str) -> Path:
    """The folder of a pack: a path to one, an embedded one, or one in ``$LDVID_HOME/packs``."""
    candidates = [Path(name), *(folder / name for folder in _folders())]
    for folder in candidates:
        if (folder / "pack.toml").is_file():
            return folder.resolve()
    have = sorted({p.parent.name for f in _folders() if f.is_dir() for p in f.glob("*/pack.toml")})
    raise PackError(f"--pack {name}: no such pack; there are {', '.join(have) or 'none'}")


@lru_cache(maxsize=64)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def open_pack(name: str) -> Pack:
    """Find a pack, read its manifest, and verify every file's SHA-256.

    Raises:
        PackError: no such pack, a manifest that can't be read, a missing or altered file.
    """
    folder = find_pack(name)
    try:
        manifest = Manifest.model_validate(tomllib.loads((folder / "pack.toml").read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise PackError(f"{folder / 'pack.toml'}: not a valid manifest: {error}") from error
    for file, entry in manifest.files.items():
        path = folder / file
        if Path(file).name != file or not path.is_file():
            raise PackError(f"pack {manifest.name}: {path} is missing")
        stat = path.stat()
        if _sha256(path, stat.st_size, stat.st_mtime_ns) != entry.sha256:
            raise PackError(
                f"pack {manifest.name}: {path} is not the file the manifest names (its SHA-256 differs); "
                "it is damaged or was replaced, install the pack again"
            )
    return Pack(folder, manifest)
