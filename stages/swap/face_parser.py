"""facexlib's BiSeNet (Yu et al. 2018, arXiv 1808.00897), as a swap needs it: its main output alone.

The two heads beside it serve training; each costs a map of every class at the full size of the picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from facexlib.parsing.bisenet import BiSeNet
from torch import Tensor


class FaceParser(BiSeNet):  # type: ignore[misc]
    """(B, 3, H, W) normalised → logits (B, K, H, W), the same numbers as facexlib's first output.

    ``separable`` resizes by two matrix products: another rounding, but a gradient that adds up in a fixed
    order and that a GPU computes many times faster.
    """

    separable = False

    def forward(self, x: Tensor) -> Tensor:
        """H and W: multiples of 32."""
        size = (x.shape[2], x.shape[3])
        eighth, context, _ = self.cp(x)
        logits = self.conv_out(self.ffm(eighth, context))[0]
        if self.separable:
            return resized(logits, size)
        return F.interpolate(logits, size, mode="bilinear", align_corners=True)


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners: (B, C, h, w) → (B, C, *size), float32."""
    rows, columns = (_weights(n, m, x.device) for n, m in zip(x.shape[2:], size, strict=True))
    return rows @ x.float() @ columns.T


def _weights(n: int, m: int, device: torch.device) -> Tensor:
    """(m, n): what each of m results takes of n values."""
    at = torch.arange(m, device=device, dtype=torch.float32) * ((n - 1) / max(m - 1, 1))
    return (1 - (at[:, None] - torch.arange(n, device=device)).abs()).clamp(min=0)
