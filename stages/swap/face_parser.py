"""facexlib's BiSeNet (Yu et al. 2018, arXiv 1808.00897), as a swap needs it: its main output alone.

The two heads beside it serve training; each costs a map of every class at the full size of the picture.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from functools import reduce
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor, nn

_ALIAS = "ldvid_facexlib_parsing"


def _bisenet() -> Any:
    """facexlib's class. Its package imports all it has, torchvision's models among it, which takes seconds at
    every start; so its folder of parsers is imported as a package of its own."""
    spec = importlib.util.find_spec("facexlib")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'facexlib'; pip install facexlib", name="facexlib")
    parsing = ModuleType(_ALIAS)
    parsing.__path__ = [f"{place}/parsing" for place in spec.submodule_search_locations]
    sys.modules.setdefault(_ALIAS, parsing)
    return importlib.import_module(f"{_ALIAS}.bisenet").BiSeNet


class FaceParser(_bisenet()):  # type: ignore[misc]
    """(B, 3, H, W) normalised → logits (B, K, H, W), the same numbers as facexlib's first output.

    ``separable`` resizes by matrix products and by repeating: another rounding, but a gradient that adds up
    in a fixed order without sorting, which a GPU computes many times faster.
    """

    separable = False

    def forward(self, x: Tensor) -> Tensor:
        """H and W: multiples of 32."""
        size = (x.shape[2], x.shape[3])
        eighth, context = self._context(x) if self.separable else self.cp(x)[:2]
        logits = self.conv_out(self.ffm(eighth, context))[0]
        if self.separable:
            return resized(logits, size)
        return F.interpolate(logits, size, mode="bilinear", align_corners=True)

    def _context(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The context path's two outputs at an eighth of the size, enlarging by ``doubled``."""
        path = self.cp
        eighth, sixteenth, last = path.resnet(x)
        mean = path.conv_avg(last.mean((2, 3), keepdim=True))
        last = path.conv_head32(doubled(path.arm32(last) + mean))
        return eighth, path.conv_head16(doubled(path.arm16(sixteenth) + last))


class Probabilities(nn.Module):
    """What a parser says of a picture: (B, 3, H, W) RGB in [0, 1] → probabilities (B, K, H, W), float32.

    One module, so that a compiler sees the whole of it. ``enlarge`` looks at the picture at twice its size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, parser: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """``mean`` and ``std`` of the three colours are what the parser was trained with."""
        super().__init__()
        self.parser = parser
        like = next(parser.parameters())
        self.dtype = like.dtype
        for name, values in (("mean", mean), ("std", std)):
            row = torch.tensor(values, dtype=torch.float32, device=like.device)
            self.register_buffer(name, row[:, None, None])

    def logits(self, image: Tensor, enlarge: bool = False) -> Tensor:
        """What the softmax is taken of."""
        image = twice(twice(image, 2), 3) if enlarge else image
        seen: Tensor = self.parser(((image - self.mean) / self.std).to(self.dtype))
        return seen.float()

    def forward(self, image: Tensor, enlarge: bool = False) -> Tensor:
        """H and W, after enlarging: multiples of 32."""
        return self.logits(image, enlarge).softmax(1)


class ParseDistance(nn.Module):
    """How far what a parser says of a picture is from what it should say: (B, 3, H, W) → (B,).

    The squared distance of ``Probabilities``, class by class times ``weights`` (K,), its mean over pixels.
    Written out class by class: a compiler makes one pass over the maps of that, and a slow kernel of a sum
    over an axis whose values lie far apart in memory.
    """

    def __init__(self, probabilities: Probabilities) -> None:
        super().__init__()
        self.probabilities = probabilities

    def forward(self, image: Tensor, target: Tensor, weights: Tensor, enlarge: bool = False) -> Tensor:
        """``target`` (B, K, p, p) probabilities; ``enlarge`` as in ``Probabilities``."""
        logits = self.probabilities.logits(image, enlarge).unbind(1)
        most = reduce(torch.maximum, logits).detach()
        parts = [(each - most).exp() for each in logits]
        scale = 1 / reduce(torch.add, parts)
        off = [(part * scale - target[:, k]) ** 2 * weights[k] for k, part in enumerate(parts)]
        return reduce(torch.add, off).mean((1, 2))


def twice(x: Tensor, axis: int) -> Tensor:
    """Enlarged by two along an axis: bilinear, between pixel centres (``align_corners=False``)."""
    size = x.shape[axis]
    before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, size - 1)], axis)
    after = torch.cat([x.narrow(axis, 1, size - 1), x.narrow(axis, size - 1, 1)], axis)
    both = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    return both.flatten(axis, axis + 1)


def doubled(x: Tensor) -> Tensor:
    """Every pixel four times: (B, C, h, w) → (B, C, 2h, 2w), channels last in memory."""
    b, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1)[:, :, None, :, None]
    return rows.expand(b, h, 2, w, 2, c).reshape(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners: (B, C, h, w) → (B, C, *size), float32."""
    rows, columns = (_weights(n, m, x.device) for n, m in zip(x.shape[2:], size, strict=True))
    return rows @ x.float() @ columns.T


def _weights(n: int, m: int, device: torch.device) -> Tensor:
    """(m, n): what each of m results takes of n values."""
    at = torch.arange(m, device=device, dtype=torch.float32) * ((n - 1) / max(m - 1, 1))
    return (1 - (at[:, None] - torch.arange(n, device=device)).abs()).clamp(min=0)
