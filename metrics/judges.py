"""The judges of an evaluation: networks that never guide, embedded so that it runs offline."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ..errors import PackError
from ..stages.records import F32, U8
from ..stages.swap.pack import EMBEDDED, Pack, hash_file
from .expression import expression
from .judge import IdentityJudge, PoseJudge
from .mesh import FaceMesh

FOLDER: Final = EMBEDDED / "judges"


class PoseNetwork(Protocol):
    """Anything that tells where a head points."""

    def pose(self, picture: U8, landmarks: F32) -> F32:
        """(3,) degrees yaw, pitch, roll of the face with these landmarks (5, 2) in (H, W, 3) uint8 RGB."""
        ...


@dataclass(frozen=True)
class Judges:
    """The networks an evaluation asks."""

    identity: IdentityJudge
    pose: PoseNetwork
    mesh: FaceMesh

    def expression(self, picture: U8, landmarks: F32) -> F32:
        """The measures ``expression.FEATURES`` (E,), in per cent of the eye distance, of the face with
        these landmarks (5, 2) in (H, W, 3) uint8 RGB."""
        return expression(self.mesh.points(picture, landmarks))


def embedded(role: str, folder: Path = FOLDER) -> Path:
    """The embedded file of a role (``identity``, ``pose``, ``mesh``), its SHA-256 verified.

    Raises:
        PackError: ``judges.toml`` or the file is missing or is not what it should be.
    """
    listing = folder / "judges.toml"
    try:
        entry: dict[str, Any] = tomllib.loads(listing.read_text(encoding="utf-8"))[role]
        path, wanted = folder / str(entry["file"]), str(entry["sha256"])
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise PackError(f"{listing}: can't be read for the {role} judge: {error!r}") from error
    if not path.is_file():
        raise PackError(f"{path} is missing; install ldvid again")
    if hash_file(path) != wanted:
        raise PackError(
            f"{path} is not the file {listing.name} names (its SHA-256 differs); "
            "it is damaged or was replaced, install ldvid again"
        )
    return path


def open_judges(pack: Pack, *, identity: Path | None = None, pose: Path | None = None) -> Judges:
    """Load the judges: the embedded ones, or the files given.

    Args:
        pack: its manifest names the pose network: ``judge`` is the embedded one, ``hopenet`` facexlib's
            from the pack's own files.
        identity: another ONNX file with the interface of ``IdentityJudge``.
        pose: another file for the kind of pose network that the pack names.

    Raises:
        PackError: a file is missing, damaged or can't be loaded.
    """
    for given, what in ((identity, "identity"), (pose, "pose")):
        if given is not None and not given.is_file():
            raise PackError(f"{given}: no such file for the {what} judge")
    return Judges(
        identity=IdentityJudge(identity or embedded("identity")),
        pose=_open_pose(pack, pose),
        mesh=FaceMesh(embedded("mesh")),
    )


def _open_pose(pack: Pack, path: Path | None) -> PoseNetwork:
    entry = pack.manifest.pose
    if entry.kind == "judge":
        return PoseJudge(path or embedded("pose"))
    from .hopenet import HopenetPose  # needs torch and facexlib, and only this kind of pack has it

    if path is None and entry.file is None:
        raise PackError(f"pack {pack.manifest.name}: [pose] is hopenet but names no file")
    return HopenetPose(path if path is not None else pack.path(str(entry.file)))
