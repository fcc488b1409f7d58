"""The tar files that shards are: samples as they are stored, written and read without decoding.

What a sample is made of stands in ``shards``.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, OutputExistsError

PIECE_BYTES = 15 * 2**20

F32 = NDArray[np.float32]

_PIECE = "faces-{:03d}.tar"
_END_BYTES = tarfile.RECORDSIZE  # what closing a tar may add to its members


@dataclass(frozen=True)
class Sample:
    """One face as it is stored: encoded pictures and facts.

    Attributes:
        name: unique, of letters, digits, ``-`` and ``_``.
        set: the set it is from.
        picture: the crop as WebP.
        landmarks: (5, 2) x, y in the crop.
        split: "train" or "held"; ``split_of`` of the photo's file name without its ending.
        outside: the mask of what lies outside the photo as PNG, or None.
        labels: the class indices as PNG, or None.
        more: further facts for the JSON member.
    """

    name: str
    set: str
    picture: bytes
    landmarks: F32
    split: Literal["train", "held"]
    outside: bytes | None = None
    labels: bytes | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def members(self) -> list[tuple[str, bytes]]:
        """File names and contents, as they go into the tar."""
        points = [[round(float(x), 2), round(float(y), 2)] for x, y in self.landmarks]
        facts = {**self.more, "set": self.set, "landmarks": points, "split": self.split}
        parts = {
            "webp": self.picture,
            "outside.png": self.outside,
            "labels.png": self.labels,
            "json": json.dumps(facts, sort_keys=True).encode(),
        }
        return [(f"{self.name}.{end}", part) for end, part in parts.items() if part is not None]


class ShardWriter:
    """Writes samples into ``folder/faces-000.tar`` and on, each piece at most ``limit`` bytes.

    A context manager; if the block ends by an exception, whole pieces stay and the unfinished one
    goes. Pieces already there are kept and written after, for a run that is resumed.
    """

    def __init__(self, folder: Path, limit: int = PIECE_BYTES) -> None:
        self.folder, self.limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.tar.part"):
            left.unlink()
        self.pieces = len(pieces(folder))
        self._file: tarfile.TarFile | None = None
        self._size = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._close()
        elif self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)

    @property
    def _part(self) -> Path:
        return self.folder / (_PIECE.format(self.pieces) + ".part")

    def write(self, sample: Sample) -> None:
        """Append a sample; its members stay in one piece.

        Raises:
            ValueError: a name that would not come back from the tar, or a sample beyond the limit.
            OutputExistsError: the next piece's name is taken.
        """
        if not sample.name.replace("-", "").replace("_", "").isalnum() or not sample.name.isascii():
            raise ValueError(f"a sample's name is of letters, digits, - and _, got {sample.name!r}")
        members = sample.members()
        size = sum(512 + -(-len(part) // 512) * 512 for _, part in members)
        if size + _END_BYTES > self.limit:
            raise ValueError(f"{sample.name}: {size} bytes do not fit a piece of {self.limit}")
        if self._file is not None and self._size + size + _END_BYTES > self.limit:
            self._close()
        if self._file is None:
            self._file = tarfile.open(self._part, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            self._size = 0
        for name, part in members:
            info = tarfile.TarInfo(name)  # no times and no owners: the same samples, the same bytes
            info.size = len(part)
            self._file.addfile(info, io.BytesIO(part))
        self._size += size

    def _close(self) -> None:
        if self._file is None:
            return
        self._file.close()
        target = self.folder / _PIECE.format(self.pieces)
        if target.exists():
            raise OutputExistsError(f"{target} appeared while the shards were being written")
        self._part.replace(target)
        self._file, self.pieces = None, self.pieces + 1


def pieces(folder: Path) -> list[Path]:
    """The shards of a folder, in their order."""
    return sorted(folder.glob("faces-[0-9]*.tar"))


def stored(folder: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Every sample of a folder, still encoded: its name, and its members by ending ("webp", …).

    Raises:
        InputError: a piece that is no whole tar file.
    """
    for piece in pieces(folder):
        content = piece.read_bytes()
        try:
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as file:
                members = [(m.name, m.offset_data, m.size) for m in file if m.isfile()]
        except tarfile.TarError as error:
            raise InputError(f"{piece}: can't be read as a shard ({error}); prepare it again") from error
        sample: dict[str, bytes] = {}
        for index, (full, start, size) in enumerate(members):
            name, _, end = full.partition(".")
            sample[end] = content[start : start + size]
            if index + 1 == len(members) or members[index + 1][0].partition(".")[0] != name:
                yield name, sample
                sample = {}
