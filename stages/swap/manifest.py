"""Pack manifests: what ``pack.toml`` says.

A pack is a manifest and weights. Nothing is unpickled: weights are safetensors, ONNX, or
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import tomllib
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...errors import PackError, SettingsError
from ..records import F32


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Origin(_Part):
    """Where a file is fetched from: a repository of the Hugging Face hub, or a URL.

    ``member`` is the file's name inside the zip at ``url``, whose own hash is ``archive_sha256``.
    ``revision`` is a branch, a tag or (best: it can't move) a commit of the repository.
    """

    repo: str | None = None
    revision: str = "main"
    path: str | None = None
    url: str | None = None
    member: str | None = None
    archive_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    archive_size: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_place(self) -> Origin:
        if (self.repo is None) == (self.url is None) or (self.repo is None) != (self.path is None):
            raise ValueError("an origin is either repo and path, or url")
        if self.url is not None and not self.url.startswith(("https://", "http://")):
            raise ValueError(f"{self.url}: an origin's url begins with https:// or http://")
        if self.member is None and (self.archive_sha256 or self.archive_size):
            raise ValueError("archive_sha256 and archive_size belong to an origin with a member")
        return self


class FileEntry(_Part):
    """One file: what it must hash to, whose it is, under which licence, where it is fetched.

    ``sha256`` None: no published hash is known; the hub's own is checked at the download and recorded
    in ``pack.lock``, which the file must match from then on.
    """

    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    size: int | None = Field(default=None, gt=0)
    source: str
    licence: str
    origin: Origin | None = None


class TaesdEntry(_Part):
    """The tiny autoencoder: one file a half, and the preview head."""

    kind: Literal["taesd"]
    encoder: str
    decoder: str
    preview: str | None = None
    latent_channels: int
    downscale: int


class CompactEntry(_Part):
    """The tiny autoencoder around a trained bottleneck: one file a half, and the guidance decoder."""

    kind: Literal["compact"]
    encoder: str
    decoder: str
    guidance: str | None = None
    latent_channels: int = Field(gt=0)
    downscale: Literal[8] = 8


class VQEntry(_Part):
    """A diffusers ``VQModel`` folder: pictures in [−1, 1], latents as they are before quantisation.

    ``scale`` multiplies the latents the UNet sees; diffusers' config is not asked, whose default of
    0.18215 is wrong for models older than the field. ``guidance`` is a small decoder to guide through
    (``compact.build_guidance_decoder``), which gives four times the latents' resolution.
    """

    kind: Literal["vq"]
    folder: str
    latent_channels: int
    downscale: int
    scale: float = 1.0
    guidance: str | None = None


class UNetFileEntry(_Part):
    """Weights in one safetensors file with latent mean and deviation; the architecture stands here.

    ``condition`` "identity": an ``IdentityUNet``, trained on the pack's own embeddings as a condition.
    """

    kind: Literal["file"]
    file: str
    arguments: dict[str, Any]
    class_label: int | None = None
    condition: Literal["identity"] | None = None


class UNetFolderEntry(_Part):
    """A diffusers ``UNet2DModel`` folder."""

    kind: Literal["diffusers"]
    folder: str
    class_label: int | None = None
    condition: None = None


class ScheduleEntry(_Part):
    """The noise levels of the training (see ``schedule.alpha_bars``), and what the UNet predicts: ε, or
    v = √ᾱ ε − √(1−ᾱ) z_0 (arXiv 2202.00512)."""

    timesteps: int = Field(gt=1)
    beta_schedule: Literal["scaled_linear", "linear", "cosine"]
    beta_start: float | None = None
    beta_end: float | None = None
    shift: float = Field(default=1.0, gt=0)
    prediction: Literal["epsilon", "v"] = "epsilon"

    @model_validator(mode="after")
    def _has_betas(self) -> ScheduleEntry:
        if (self.beta_schedule == "cosine") != (self.beta_start is None and self.beta_end is None):
            raise ValueError("beta_start and beta_end belong to scaled_linear and linear, which need both")
        return self


class SecondIdentityEntry(_Part):
    """Another identity network beside the first, which sees crops of the same size (see ``identity``)."""

    file: str
    channels: Literal["rgb", "bgr"]
    mean: float
    scale: float


class IdentityEntry(_Part):
    """``(pixel − mean) / scale`` of a 0–255 RGB (or BGR) square crop aligned to ArcFace's template."""

    file: str
    size: int
    channels: Literal["rgb", "bgr"]
    mean: float
    scale: float
    second: SecondIdentityEntry | None = None


class ParserEntry(_Part):
    """``parts`` groups a finer parser's classes under the names the stages know (eyes, brows, lips, …);
    ``face`` names classes. ``guidance_size``, where it was trained for that too, is the size at which
    guidance through the preview decoder parses."""

    kind: Literal["bisenet"]
    file: str
    size: int
    guidance_size: int | None = None
    classes: tuple[str, ...]
    face: tuple[str, ...]
    parts: dict[str, tuple[str, ...]] = {}
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def indices(self, part: str) -> list[int]:
        """The classes that make up a part, by position; empty where the parser does not know it."""
        return [self.classes.index(c) for c in self.parts.get(part, (part,)) if c in self.classes]


class DetectorEntry(_Part):
    kind: Literal["yunet", "scrfd"]
    file: str


class PoseEntry(_Part):
    """The pose network ``ldvid evaluate`` uses: facexlib's Hopenet, or the one that comes with ldvid."""

    kind: Literal["hopenet", "judge"]
    file: str | None = None


class Manifest(_Part):
    """The whole of ``pack.toml``."""

    name: str
    version: str
    licence: str
    description: str
    crop_size: int
    template: tuple[tuple[float, float], ...] = Field(min_length=5, max_length=5)
    files: dict[str, FileEntry]
    autoencoder: TaesdEntry | CompactEntry | VQEntry = Field(discriminator="kind")
    unet: UNetFileEntry | UNetFolderEntry = Field(discriminator="kind")
    schedule: ScheduleEntry
    identity: IdentityEntry
    parser: ParserEntry
    detector: DetectorEntry
    pose: PoseEntry = PoseEntry(kind="judge")

    def check(self, conditioning: str) -> None:
        """SettingsError if the UNet can't be steered in that way (``Settings.conditioning``)."""
        if conditioning != "gradient" and self.unet.condition is None:
            raise SettingsError(
                f"conditioning={conditioning}: the UNet of pack {self.name} was not trained to be told an "
                "identity; use --set conditioning=gradient, or another --pack"
            )

    def template_points(self) -> F32:
        """The five landmarks at the crop's size, (5, 2), order as in ``records``."""
        return np.asarray(self.template, np.float32)


def read_manifest(folder: Path) -> Manifest:
    """``pack.toml`` of a folder; PackError if it can't be read as one."""
    path = folder / "pack.toml"
    try:
        manifest = Manifest.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError, OSError) as error:
        raise PackError(f"{path}: not a valid manifest: {error}") from error
    for file in manifest.files:
        parts = PurePosixPath(file).parts
        if not parts or PurePosixPath(file).is_absolute() or ".." in parts or "\\" in file or ":" in file:
            raise PackError(f"{path}: {file}: files of a pack lie in its own folder")
        if file in ("pack.toml", "pack.lock") or parts[0].startswith("."):
            raise PackError(f"{path}: {file}: a name that ldvid keeps for itself")
    return manifest
