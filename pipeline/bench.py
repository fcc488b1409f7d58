"""What every evaluation has: networks and judges, loaded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from ..errors import FaceError
from ..metrics.judges import Judges, embedded, open_judges
from ..metrics.pair import Face, measure_face
from ..metrics.sheet import cell
from ..metrics.skin import Skin, skin_of
from ..stages.align import warp
from ..stages.folder import read_picture
from ..stages.paste import paste
from ..stages.records import F32, U8, Crops, Detection, SourceFace
from ..stages.swap.networks import to_tensor
from ..stages.swap.pack import hash_file
from ..stages.swap.repeatable import repeatable
from .still import StillSwapper

if TYPE_CHECKING:
    from ..configs import Settings


@dataclass(frozen=True, slots=True)
class Known:
    """A face of a picture, measured: what is kept of pictures that many pairs share."""

    face: Face
    cell: U8


class Bench:
    """The networks of one pack and the judges; faces of sources are measured once."""

    def __init__(
        self, settings: Settings, device: str, identity: Path | None = None, pose: Path | None = None
    ) -> None:
        self.base = StillSwapper(settings, device=device)
        self.judges: Judges = open_judges(self.base.pack, identity=identity, pose=pose)
        self._device = device
        self._files = (identity, pose)
        self._known: dict[tuple[Path, int], Known | FaceError] = {}
        self._sources: dict[tuple[Path, int], SourceFace] = {}

    def swapper(self, settings: Settings) -> StillSwapper:
        """A swapper of other settings that shares the networks where their number format is the same."""
        same = all(getattr(settings, k) == getattr(self.base.settings, k) for k in ("dtype", "compile"))
        return StillSwapper(
            settings,
            device=self._device,
            pack=self.base.pack,
            networks=self.base.networks if same else None,
        )

    def measure(self, picture: U8, landmarks: F32) -> Face:
        """All judges on one face."""
        return measure_face(picture, landmarks, self.judges, self.base.networks.embed)

    def judge_records(self) -> dict[str, dict[str, str]]:
        """Name and SHA-256 of the files that judge and, for comparison, of the networks that guide."""
        pack, (identity, pose) = self.base.pack, self._files
        own = pack.manifest.pose
        if pose is None:
            pose = pack.path(own.file) if own.kind == "hopenet" and own.file else embedded("pose")
        files = {
            "identity": identity or embedded("identity"),
            "pose": pose,
            "expression": embedded("mesh"),
            "landmarks": pack.path(pack.manifest.detector.file),
            "skin": pack.path(pack.manifest.parser.file),
            "identity, guiding": pack.path(pack.manifest.identity.file),
        }
        if (second := pack.manifest.identity.second) is not None:
            files["identity, guiding too"] = pack.path(second.file)
        return {what: {"name": path.name, "sha256": hash_file(path)} for what, path in files.items()}

    def known(self, path: Path, number: int = 1) -> Known:
        """A face of a picture file (1 is the largest); FaceError if it is not there."""
        key = (path, number)
        if key not in self._known:
            try:
                self._known[key] = self._look(path, number)
            except FaceError as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, FaceError):
            raise found
        return found

    def _look(self, path: Path, number: int) -> Known:
        picture = read_picture(path)
        found = self.base.detector.detect(picture)
        if len(found) < number:
            raise FaceError(f"{path}: no face was found" if not found else f"{path}: has no face {number}")
        landmarks = found[number - 1].landmarks
        return Known(self.measure(picture, landmarks), cell(picture, landmarks))

    def source(self, path: Path, number: int = 1) -> SourceFace:
        """The face as the swap takes it; FaceError if there is none."""
        key = (path, number)
        if key not in self._sources:
            self._sources[key] = self.base.source(path, number)
        return self._sources[key]

    def crops(self, picture: U8, face: Detection) -> Crops:
        """The target's crop with its mask: where ``touched`` and ``skin`` look."""
        return self.base.crops(picture, face)

    def points(self, picture: U8, near: F32) -> F32 | None:
        """The landmarks (5, 2) that the detector finds for the face at ``near`` (5, 2), in pixels.

        None if it finds none there: the nearest is off by more than the eye distance.
        """
        found = [d.landmarks for d in self.base.detector.detect(picture)]
        if not found:
            return None
        off = [float(np.linalg.norm(points - near, axis=1).mean()) for points in found]
        best = int(np.argmin(off))
        return found[best] if off[best] <= np.linalg.norm(near[1] - near[0]) else None

    def skin(self, picture: U8, crops: Crops) -> Skin | None:
        """The skin of a picture (H, W, 3) uint8 RGB in a target's crop; None without such a class."""
        classes = self.base.pack.manifest.parser.classes
        if "skin" not in classes or crops.masks is None:
            return None
        mask = crops.masks[0]
        crop = warp(picture, crops.matrices[0], len(mask))
        networks = self.base.networks
        with torch.no_grad(), repeatable():
            parse = networks.parse(to_tensor(crop[None], networks.device))
        probability = parse[0, classes.index("skin")].cpu().numpy()
        if probability.shape != mask.shape:
            probability = cv2.resize(probability, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
        return skin_of(crop, probability, mask)

    def touched(self, picture: U8, crops: Crops) -> F32:
        """What our own paste would touch, (H, W) in [0, 1]: the mask for pictures that others made."""
        assert crops.masks is not None
        return paste(picture, crops.images[0].astype(np.float32), crops.masks[0], crops.matrices[0])[1]
