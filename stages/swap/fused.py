"""The same networks in forms that a compiler makes fast on a GPU (``compiled`` has it do so).

Every exchange computes the same function and differs in rounding only:

- GroupNorm in channels-last layout: a group is a few neighbouring channels of every pixel, which no kernel
  reads well. Here sums are taken per channel, over whole rows, and joined to groups afterwards; gain and
  shift of each channel are worked out once (``held``).
- A nearest upsampling before a 3×3 convolution repeats every pixel four times and then multiplies it nine
  times. The four results that a pixel can give are 2×2 convolutions of the small picture: 16 products
  instead of 36.
- Attention with one wide head as plain products (``wide_heads``).
- Convolutions to or from three channels are padded to eight or sixteen, which tensor cores need; a 7×7 one
  with stride two becomes a 4×4 one of a picture with half the side and four times the channels.
- The bias before a norm, or before a time embedding is added, goes there.
- Nearest codes of a codebook without the matrix of all distances.
- A parser's logits are resized by two matrix products, which have a gradient without atomic additions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor, nn

from .face_parser import FaceParser
from .unet import ResidualBlock, Upsample
from .wide_heads import theirs, with_wide_heads

EIGHT = 8  # what tensor cores want numbers of channels to be multiples of
SIXTEEN = 16  # what their gradient wants, of what comes out


@torch.library.custom_op("ldvid::held", mutates_args=())
def held(x: Tensor) -> Tensor:
    """A copy that a compiler can't look through: what it is made of is computed once, not again for every
    pixel it is used for. So is its gradient."""
    return x.clone()


@held.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


held.register_autograd(lambda _, gradient: held(gradient))


class RowNorm(nn.Module):
    """``nn.GroupNorm`` by sums per channel. (B, C, …), any layout; float32 inside.

    ``offset`` (C,) is what its input should have been raised by, such as the bias of the convolution before
    it: to add it here costs nothing, there a pass over all pixels.
    """

    def __init__(self, norm: nn.GroupNorm, offset: nn.Parameter | None = None) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias, self.offset = norm.weight, norm.bias, offset

    def forward(self, x: Tensor) -> Tensor:
        whole, over = x.float(), tuple(range(2, x.ndim))
        shape = (len(x), self.groups, x.shape[1] // self.groups)
        count = x[0, 0].numel() * shape[2]
        sums = torch.stack([whole.sum(over), (whole * whole).sum(over)])
        offset = None if self.offset is None else self.offset.float()
        if offset is not None:
            pixels = x[0, 0].numel()
            first, second = sums.unbind()
            second = second + offset * (2 * first + pixels * offset)
            sums = torch.stack([first + pixels * offset, second])
        sums = held(sums)
        mean, square = (sums.view(2, *shape).sum(3) / count).unbind()
        variance = (square - mean * mean).clamp(min=0)
        gain = self.weight.float().view(1, *shape[1:])
        scale = ((variance + self.eps).rsqrt()[..., None] * gain).flatten(1)
        shift = self.bias.float() - mean[..., None].expand(shape).flatten(1) * scale
        if offset is not None:
            shift = shift + offset * scale
        scale, shift = held(torch.stack([scale, shift])).unbind()
        at = (..., *(None for _ in over))
        return cast(Tensor, (whole * scale[at] + shift[at]).to(x.dtype))


class SubpixelUpsample(nn.Module):
    """Nearest upsampling by two and a 3×3 convolution with padding 1: (B, C, h, w) → (B, D, 2h, 2w)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        w = conv.weight.detach().float()  # (D, C, 3, 3)
        # Rows of the upsampled picture beside each other are one row of the small one.
        rows = (torch.stack([w[:, :, 0], w[:, :, 1] + w[:, :, 2]], 2),
                torch.stack([w[:, :, 0] + w[:, :, 1], w[:, :, 2]], 2))  # fmt: skip
        kernels = [
            torch.stack([r[..., 0], r[..., 1] + r[..., 2]], 3)
            if right == 0
            else torch.stack([r[..., 0] + r[..., 1], r[..., 2]], 3)
            for r in rows
            for right in (0, 1)
        ]
        four = torch.cat(kernels).to(conv.weight.dtype)  # (4D, C, 2, 2)
        self.weight = nn.Parameter(four, requires_grad=False)
        bias = conv.bias if conv.bias is not None else torch.zeros(len(w), dtype=w.dtype, device=w.device)
        self.bias = nn.Parameter(bias.detach().repeat(4).to(conv.weight.dtype), requires_grad=False)

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """What diffusers passes besides is not used."""
        h, w = x.shape[2:]
        four = F.conv2d(x, self.weight, self.bias, padding=1).permute(0, 2, 3, 1).chunk(4, 3)
        # Interleaved with the channels last, as they lie in memory: else everything after it is copied about.
        parts = [four[2 * a + b][:, a : a + h, b : b + w] for a in (0, 1) for b in (0, 1)]
        rows = [torch.stack(parts[i : i + 2], 3) for i in (0, 2)]  # (B, h, w, 2, D)
        return torch.stack(rows, 2).view(len(x), 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


class PaddedConv(nn.Module):
    """A convolution with its channels filled up with zeros, to multiples of eight and (out) of sixteen."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        out, inner = conv.weight.shape[:2]
        self.out, self.more = out, -inner % EIGHT
        self.stride, self.padding = conv.stride, conv.padding
        weight = F.pad(conv.weight.detach(), (0, 0, 0, 0, 0, self.more, 0, -out % SIXTEEN))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None
        if conv.bias is not None:
            self.bias = nn.Parameter(F.pad(conv.bias.detach(), (0, -out % SIXTEEN)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, 0, self.more))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)[:, : self.out]


class Stem(nn.Module):
    """A 7×7 convolution of a few channels with stride two and padding 3, of (B, C, H, W) with H and W even.

    Four pixels become four times the channels of one, and the kernel a 4×4 one without a stride.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        out, inner = conv.weight.shape[:2]
        self.more = -4 * inner % SIXTEEN
        weight = F.pad(conv.weight.detach(), (1, 0, 1, 0)).view(out, inner, 4, 2, 4, 2)
        weight = F.pad(_quartered(weight), (0, 0, 0, 0, 0, self.more))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (4, 2, 4, 2))
        b, c, h, w = x.shape
        x = _quartered(x.reshape(b, c, h // 2, 2, w // 2, 2))
        return F.conv2d(F.pad(x, (0, 0, 0, 0, 0, self.more)), self.weight, self.bias)


def _quartered(x: Tensor) -> Tensor:
    """(B, C, h, 2, w, 2) → (B, 4C, h, w)."""
    return x.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


class NearestCodes(nn.Module):
    """A codebook: (B, C, h, w) → the nearest codes, with the gradient of the identity."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.codes = nn.Parameter(codes.detach(), requires_grad=False)  # (K, C)

    def forward(self, z: Tensor) -> tuple[Tensor]:
        rows = z.permute(0, 2, 3, 1)
        with torch.no_grad():
            # The square of z itself is the same for all codes.
            distance = (self.codes**2).sum(1)
            for channel in range(z.shape[1]):
                distance = distance - 2 * self.codes[:, channel] * rows[..., channel, None]
            nearest = self.codes[distance.argmin(3)].permute(0, 3, 1, 2)
        return (z + (nearest - z).detach(),)


def prepared(net: nn.Module) -> nn.Module:
    """The module with its parts exchanged in place where that pays; weights as they are."""
    if isinstance(net, FaceParser):
        net.separable = True
    for name, part in net.named_children():
        exchanged: nn.Module | None = None
        if isinstance(part, nn.GroupNorm):
            exchanged = RowNorm(part)
        elif isinstance(part, Upsample) or (
            isinstance(part, theirs("upsampling.Upsample2D")) and _plain(part)
        ):
            exchanged = SubpixelUpsample(cast(nn.Conv2d, part.conv))
        elif isinstance(part, nn.Conv2d) and _narrow(part):
            exchanged = Stem(part) if _is_stem(part) else PaddedConv(part)
        if exchanged is not None:
            setattr(net, name, exchanged.to(memory_format=torch.channels_last))
            continue
        if isinstance(part, (ResidualBlock, *theirs("resnet.ResnetBlock2D"))):
            _without_bias(part)
        prepared(part)
        with_wide_heads(part)
    return net


def _without_bias(block: Any) -> None:
    """The bias of a residual block's first convolution, added where something is added anyway."""
    conv, proj = block.conv1, getattr(block, "time_emb_proj", None)
    bias, conv.bias = conv.bias, None
    scale_shift = getattr(block, "scale_shift", getattr(block, "time_embedding_norm", "") == "scale_shift")
    if proj is None or scale_shift:
        block.norm2 = RowNorm(block.norm2, bias)
    else:
        both = (proj.bias.detach().float() + bias.detach().float()).to(bias.dtype)
        proj.bias = nn.Parameter(both, requires_grad=False)


def _plain(part: Any) -> bool:
    """An upsampling that is nearest by two, then a 3×3 convolution."""
    conv = getattr(part, "conv", None)
    return (
        isinstance(conv, nn.Conv2d)
        and part.norm is None
        and part.interpolate
        and not part.use_conv_transpose
        and conv.kernel_size == (3, 3)
        and conv.padding == (1, 1)
        and conv.stride == (1, 1)
    )


def _is_stem(conv: nn.Conv2d) -> bool:
    """As ``Stem`` takes it."""
    return (conv.kernel_size, conv.stride, conv.padding) == ((7, 7), (2, 2), (3, 3)) and conv.in_channels <= 4


def _narrow(conv: nn.Conv2d) -> bool:
    """To or from fewer than eight channels, and wide on the other side."""
    return (
        min(conv.in_channels, conv.out_channels) < EIGHT
        and max(conv.in_channels, conv.out_channels) >= 4 * EIGHT
        and conv.groups == 1
        and conv.dilation == (1, 1)
        and not isinstance(conv.padding, str)
        and conv.padding_mode == "zeros"
    )
