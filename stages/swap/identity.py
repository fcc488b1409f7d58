"""D_I of the paper: the identity network of a pack, or two as one.

What fools one small network need not fool another that learned from other people by another loss: a pack may
name a ``second``, whose embedding is set beside the first's. Both have half of the length, so the cosine of
two such embeddings is the mean of both networks' cosines, and eq. 3 asks both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor, nn

from .loaders import naming
from .manifest import IdentityEntry, SecondIdentityEntry
from .onnx_torch import OnnxModule


class IdentityNetwork(nn.Module):
    """One network: aligned (B, 3, size, size) RGB in [0, 1] → unit embeddings (B, D), float32."""

    def __init__(self, file: Path, entry: IdentityEntry | SecondIdentityEntry) -> None:
        super().__init__()
        self.entry = entry
        with naming(file):
            self.network = OnnxModule(file)

    def forward(self, image: Tensor) -> Tensor:
        e = self.entry
        x = ((image.flip(1) if e.channels == "bgr" else image) * 255 - e.mean) / e.scale
        return F.normalize(self.network(x.to(self.network.dtype)).float().flatten(1), dim=1)


class IdentityNetworks(nn.Module):
    """All of a pack's: unit embeddings (B, D), D the sum of theirs.

    ``first`` is the one that tells people apart in the analysis, where nothing is there to be fooled.

    Raises:
        PackError: a file can't be read, or has an operator that ``OnnxModule`` does not know.
    """

    def __init__(self, entry: IdentityEntry, path: Callable[[str], Path]) -> None:
        super().__init__()
        self.first = IdentityNetwork(path(entry.file), entry)
        self.second = IdentityNetwork(path(entry.second.file), entry.second) if entry.second else None

    def forward(self, image: Tensor) -> Tensor:
        """As ``IdentityNetwork``."""
        first = cast(Tensor, self.first(image))
        return first if self.second is None else torch.cat([first, self.second(image)], 1) * 0.5**0.5
