"""Swapping single pictures: what ``evaluate``, ``preview`` and ``swap PICTURE`` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from ..configs import Settings
from ..errors import FaceError
from ..metrics.sheet import FRAMING, cell
from ..stages.align import ARCFACE_TEMPLATE, AlignStage, estimate_similarity, scale_of
from ..stages.detect import open_detector
from ..stages.mask import MaskStage
from ..stages.overlay import BANNER, draw_overlay, marked
from ..stages.paste import PasteStage
from ..stages.records import F32, U8, Crops, Detection, Frame, SourceFace, Track
from ..stages.source import load_average, load_source
from ..stages.swap.networks import Networks
from ..stages.swap.pack import Pack, open_pack
from ..stages.swap.stage import SwapStage
from .work import compiled_for

ZOOM = (256, 640)  # least and most pixels of a side of ``zoomed``


@dataclass(frozen=True)
class StillSwap:
    """A picture before and after, both (H, W, 3) uint8 RGB.

    ``mask`` (H, W) float32 in [0, 1] is the paste's alpha: 0 where nothing was touched. ``landmarks``
    (5, 2) are the target face's, in pixels of the picture.
    """

    original: U8
    swapped: U8
    mask: F32
    landmarks: F32

    def mask_picture(self) -> U8:
        """The mask as (H, W, 3) uint8 grey."""
        return (self.mask[..., None] * np.float32(255)).round().astype(np.uint8).repeat(3, 2)


def zoomed(still: StillSwap, around: F32) -> StillSwap:
    """The head with these landmarks (5, 2) alone, square, at the picture's own scale within limits."""
    scale = scale_of(estimate_similarity(around, ARCFACE_TEMPLATE))
    size = int(np.clip(round(FRAMING * 112 / scale), *ZOOM))
    mask = cell(still.mask_picture(), around, size)[..., 0].astype(np.float32) / np.float32(255)
    return StillSwap(
        cell(still.original, around, size), cell(still.swapped, around, size), mask, still.landmarks
    )


def overlaid(still: StillSwap, faces: Sequence[Detection], more: str = "") -> StillSwap:
    """The same with a debug overlay, which ``mask`` then covers too; ``faces[0]`` is the one swapped, and
    the banner says ``more``."""
    drawn = [
        marked(f"face {i + 1}", f.box, f.landmarks, f.score, None if i else 0) for i, f in enumerate(faces)
    ]
    swapped, mask = draw_overlay(still.swapped, still.mask, drawn, BANNER + more)
    return replace(still, swapped=swapped, mask=mask)


class StillSwapper:
    """The stages of a swap on one picture at a time, with networks loaded once.

    Args:
        settings: preset and changes; ``swap`` takes one picture at a time whatever ``batch`` says.
        device: as for the command.
        pack, networks: to share what another swapper has loaded; by default those of the settings.

    Raises:
        PackError, SettingsError: as the loading does.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        device: str = "auto",
        pack: Pack | None = None,
        networks: Networks | None = None,
    ) -> None:
        self.settings = settings.model_copy(update={"batch": 1})
        self.pack = pack if pack is not None else open_pack(settings.pack)
        self.pack.manifest.check(settings.conditioning)
        if networks is None:
            networks = Networks.load(self.pack, device, settings.dtype, compiled_for(settings))
        self.networks = networks
        self.detector = open_detector(self.pack, settings.detector_threshold)

    def source(self, path: Path, face: int | None = None) -> SourceFace:
        """The face to put in, from a picture; errors as ``stages.source.load_source``."""
        return load_source(path, self.pack, self.detector, self.networks.embed, face=face)[0]

    def average(self, paths: Sequence[Path], face: int | None = None) -> SourceFace:
        """The same from several pictures of one person; errors as ``stages.source.load_average``."""
        return load_average(paths, self.pack, self.detector, self.networks.embed, face)[0]

    def like(self, settings: Settings) -> StillSwapper:
        """A swapper with other settings that shares pack, networks and detector with this one."""
        other = copy(self)
        other.settings = settings.model_copy(update={"batch": 1})
        return other

    def find(self, picture: U8, what: str = "the picture") -> Detection:
        """The largest face; FaceError naming ``what`` if there is none."""
        return self.faces(picture, what)[0]

    def faces(self, picture: U8, what: str = "the picture") -> list[Detection]:
        """All faces, the largest first; FaceError naming ``what`` if there is none."""
        found = self.detector.detect(picture)
        if not found:
            raise FaceError(
                f"{what}: no face was found; --set detector_threshold= with less than "
                f"{self.settings.detector_threshold:g} looks harder"
            )
        return found

    def crops(self, target: U8, face: Detection) -> Crops:
        """The face's crop with its mask."""
        track = Track(
            id=0,
            shot=0,
            frames=np.zeros(1, np.int64),
            boxes=face.box[None],
            landmarks=face.landmarks[None],
            scores=np.array([face.score], np.float32),
            embedding=np.zeros(0, np.float32),
        )
        manifest = self.pack.manifest
        crops = AlignStage(track, manifest.template_points(), manifest.crop_size).process([Frame(0, target)])
        return MaskStage(self.networks, self.settings).process(crops)

    def swap(
        self, target: U8, source: SourceFace, *, seed: int | None = None, face: Detection | None = None
    ) -> StillSwap:
        """Put the source on the target's largest face, or on ``face``.

        Args:
            target: (H, W, 3) uint8 RGB.
            seed: instead of the settings'.

        Raises:
            FaceError: no face in the target.
        """
        face = self.find(target) if face is None else face
        settings = self.settings if seed is None else self.settings.model_copy(update={"seed": seed})
        return self._swap([target], [source], [face], settings)[0]

    def swap_pairs(
        self, targets: Sequence[U8], sources: Sequence[SourceFace], faces: Sequence[Detection]
    ) -> list[StillSwap]:
        """``sources[i]`` onto ``faces[i]`` of ``targets[i]``, in one call of the networks.

        All share one draw of noise, as the frames of a clip do.
        """
        settings = self.settings.model_copy(update={"batch": max(len(targets), 1)})
        return self._swap(targets, sources, faces, settings) if targets else []

    def _swap(
        self,
        targets: Sequence[U8],
        sources: Sequence[SourceFace],
        faces: Sequence[Detection],
        settings: Settings,
    ) -> list[StillSwap]:
        pieces = [self.crops(t, f) for t, f in zip(targets, faces, strict=True)]
        masks = [p.masks for p in pieces if p.masks is not None]
        parses = [p.parses for p in pieces if p.parses is not None]
        crops = Crops(
            track=0,
            frames=np.arange(len(pieces)),
            images=np.concatenate([p.images for p in pieces]),
            matrices=np.concatenate([p.matrices for p in pieces]),
            landmarks=np.concatenate([p.landmarks for p in pieces]),
            masks=np.concatenate(masks),
            parses=np.concatenate(parses) if parses else None,
        )
        crops = SwapStage(self.networks, settings, sources).process(crops)
        frames = [Frame(i, t) for i, t in enumerate(targets)]
        pictures, touched = PasteStage(settings).process((frames, [crops]))
        return [
            StillSwap(t, cast(U8, p), np.zeros(t.shape[:2], np.float32) if m is None else m, f.landmarks)
            for t, p, m, f in zip(targets, pictures, touched, faces, strict=True)
        ]
