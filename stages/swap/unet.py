"""The UNet of the packs: that of DDPM (arXiv 2006.11239, appendix B) in diffusers' form, without diffusers.

``UNet`` computes what diffusers' ``UNet2DModel`` does, to the bit, in values and gradients, and has its
weights' names, their order, and the same random start. It knows the arguments that packs use; for any others
``build_unet`` takes diffusers itself, whose import alone costs seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from inspect import signature
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor, nn

from .wide_heads import WIDEST_HEAD

EPS = 1e-5  # of all norms
NHWC_BATCH = 64  # from here on torch's nearest upsampling of channels-last tensors has failed
NHWC_NUMEL = 2**30  # likewise, with more elements than this


class Shape(NamedTuple):
    """What all blocks of a UNet have in common."""

    embedding: int  # width of the time embedding
    head: int  # channels of an attention head
    groups: int  # of all norms
    scale_shift: bool  # the time embedding scales and shifts normalised features; else it is added before


class Output(NamedTuple):
    """As callers of diffusers' models expect it."""

    sample: Tensor  # (B, C, h, w)


class TimeEmbedding(nn.Module):
    """Sines and cosines (B, ``width``), through two layers to (B, ``out``)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear_2(F.silu(self.linear_1(x))))


def waves(t: Tensor, width: int) -> Tensor:
    """Timesteps (B,) → their cosines and then sines at falling frequencies, (B, ``width``) float32."""
    half = width // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    angle = t[:, None].float() * exponent.exp()
    return torch.cat([angle.cos(), angle.sin()], 1)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions told the time: (B, ``inner``, h, w) and (B, E) → (B, ``out``, h, w)."""

    def __init__(self, inner: int, out: int, shape: Shape) -> None:
        super().__init__()
        self.scale_shift = shape.scale_shift
        self.norm1 = nn.GroupNorm(shape.groups, inner, EPS)
        self.conv1 = nn.Conv2d(inner, out, 3, padding=1)
        self.time_emb_proj = nn.Linear(shape.embedding, 2 * out if shape.scale_shift else out)
        self.norm2 = nn.GroupNorm(shape.groups, out, EPS)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inner, out, 1) if inner != out else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        time = self.time_emb_proj(F.silu(embedding))[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, 1)
            y = self.norm2(y) * (1 + scale) + shift
        else:
            y = self.norm2(y + time)
        y = self.conv2(F.silu(y))
        if self.conv_shortcut is not None:
            # In training as diffusers does it, for its gradients' strides (its issue 12975).
            x = self.conv_shortcut(x.contiguous() if self.training else x)
        return x + cast(Tensor, y)


class Attention(nn.Module):
    """Self-attention over all positions, added to what it saw: (B, C, h, w) → the same."""

    def __init__(self, channels: int, shape: Shape, *, norm: bool = True) -> None:
        super().__init__()
        self.heads = channels // shape.head
        inner = self.heads * shape.head
        self.group_norm = nn.GroupNorm(shape.groups, channels, EPS) if norm else None
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, inner) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2)
        rows = (rows if self.group_norm is None else self.group_norm(rows)).transpose(1, 2)  # (B, N, C)
        q, k, v = (
            part(rows).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q, self.to_k, self.to_v)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return cast(Tensor, self.to_out[0](y)).transpose(1, 2).reshape(x.shape) + x


class Downsample(nn.Module):
    """(B, C, h, w) → (B, C, ⌈h/2⌉, ⌈w/2⌉) by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x))


class Upsample(nn.Module):
    """(B, C, h, w) → (B, C, 2h, 2w): the nearest pixel, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) >= NHWC_BATCH or x.numel() > NHWC_NUMEL:
            x = x.contiguous()
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class Block(nn.Module):
    """Residual blocks of these channels (in, out) at one resolution, and attention behind the first so many.

    ``resize`` is what follows, in ``downsamplers`` or ``upsamplers``; an empty list has no weights to name.
    """

    def __init__(
        self,
        widths: Sequence[tuple[int, int]],
        shape: Shape,
        attentions: int,
        resize: type[Downsample | Upsample] | None = None,
        *,
        norm: bool = True,
    ) -> None:
        super().__init__()
        # Listed in the order of diffusers' parameters, drawn in the order of its random numbers.
        self.attentions, self.resnets = nn.ModuleList(), nn.ModuleList()
        for i, (inner, out) in enumerate(widths):
            self.resnets.append(ResidualBlock(inner, out, shape))
            if i < attentions:
                self.attentions.append(Attention(out, shape, norm=norm))
        out = widths[-1][1]
        self.downsamplers = nn.ModuleList([Downsample(out)] if resize is Downsample else [])
        self.upsamplers = nn.ModuleList([Upsample(out)] if resize is Upsample else [])

    def layer(self, i: int, x: Tensor, embedding: Tensor) -> Tensor:
        """The ``i``-th residual block, and its attention where it has one."""
        x = self.resnets[i](x, embedding)
        return cast(Tensor, self.attentions[i](x)) if i < len(self.attentions) else x


class UNet(nn.Module):
    """What a denoiser is trained to predict of z_t.

    Arguments have ``UNet2DModel``'s names, meanings and, where they have any, defaults. ``class_embed_type``
    "identity": what is told beside the time comes as an embedding of the time embedding's width.
    """

    def __init__(
        self,
        block_out_channels: Iterable[int],
        down_block_types: Iterable[str],
        up_block_types: Iterable[str],
        sample_size: int | None = None,  # says what it was trained for, and changes nothing
        in_channels: int = 3,
        out_channels: int = 3,
        layers_per_block: int = 2,
        attention_head_dim: int = 8,
        norm_num_groups: int = 32,
        resnet_time_scale_shift: str = "default",
        class_embed_type: str | None = None,
    ) -> None:
        super().__init__()
        widths = list(block_out_channels)
        scale_shift = resnet_time_scale_shift == "scale_shift"
        shape = Shape(4 * widths[0], attention_head_dim, norm_num_groups, scale_shift)
        self.width, self.told = widths[0], class_embed_type == "identity"
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], shape.embedding)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        finer = widths[:1] + widths[:-1]  # channels of the level above each
        n = layers_per_block
        for kind, above, out in zip(down_block_types, finer, widths, strict=True):
            sizes = [(above, out), *[(out, out)] * (n - 1)]
            resize = Downsample if len(self.down_blocks) < len(widths) - 1 else None
            self.down_blocks.append(Block(sizes, shape, n * kind.startswith("Attn"), resize))
        # Its attention has no norm where the residual blocks scale and shift: a quirk that weights rely on.
        self.mid_block = Block([(widths[-1],) * 2] * 2, shape, 1, norm=not scale_shift)
        below = widths[-1]
        for kind, above, out in zip(up_block_types, finer[::-1], widths[::-1], strict=True):
            # Beside its own channels each takes in a result of the way down, the last one the level's input.
            sizes = [(below + out, out), *[(2 * out, out)] * (n - 1), (out + above, out)]
            up = Upsample if len(self.up_blocks) < len(widths) - 1 else None
            self.up_blocks.append(Block(sizes, shape, (n + 1) * kind.startswith("Attn"), up))
            below = out
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[0], EPS)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor | int, class_labels: Tensor | None = None) -> Output:
        """z_t (B, C, h, w) in the weights' dtype at ``timestep``, one or (B,) → a prediction like it.

        ``class_labels`` (B, 4 · first width): what ``class_embed_type`` "identity" asks for, and only that.
        """
        if self.told != (class_labels is not None):
            raise ValueError(f"class_labels are {'needed' if self.told else 'not taken'} by this UNet")
        dtype = self.conv_in.weight.dtype
        t = timestep if isinstance(timestep, Tensor) else torch.tensor(int(timestep))
        t = t.to(sample.device).expand(len(sample))
        embedding = self.time_embedding(waves(t, self.width).to(dtype))
        if class_labels is not None:
            embedding = embedding + class_labels.to(dtype)
        x = self.conv_in(sample)
        skips = [x]
        for block in cast(Iterable[Block], self.down_blocks):
            for i in range(len(block.resnets)):
                x = block.layer(i, x, embedding)
                skips.append(x)
            for resize in block.downsamplers:
                x = resize(x)
                skips.append(x)
        for i in range(len(self.mid_block.resnets)):
            x = self.mid_block.layer(i, x, embedding)
        for block in cast(Iterable[Block], self.up_blocks):
            for i in range(len(block.resnets)):
                x = block.layer(i, torch.cat([x, skips.pop()], 1), embedding)
            for resize in block.upsamplers:
                x = resize(x)
        return Output(self.conv_out(F.silu(self.conv_norm_out(x))))


def build_unet(arguments: dict[str, Any], **more: Any) -> nn.Module:
    """``UNet`` where it knows all of the arguments, else diffusers' ``UNet2DModel``."""
    arguments = arguments | more
    if supports(arguments):
        return UNet(**arguments)
    from diffusers import UNet2DModel

    return cast(nn.Module, cast(Any, UNet2DModel)(**arguments))


def supports(arguments: dict[str, Any]) -> bool:
    """Whether ``UNet`` computes what diffusers' ``UNet2DModel`` does with these arguments."""
    try:
        bound = signature(UNet).bind(**arguments)
    except TypeError:  # others than it knows
        return False
    bound.apply_defaults()
    a = SimpleNamespace(**bound.arguments)
    return (
        0 < len(a.block_out_channels) == len(a.down_block_types) == len(a.up_block_types)
        and set(a.down_block_types) <= {"DownBlock2D", "AttnDownBlock2D"}
        and set(a.up_block_types) <= {"UpBlock2D", "AttnUpBlock2D"}
        and a.block_out_channels[0] % 2 == 0
        and None not in (a.attention_head_dim, a.norm_num_groups)
        and 0 < a.attention_head_dim <= min(WIDEST_HEAD, *a.block_out_channels)
        and a.layers_per_block > 0
        and a.resnet_time_scale_shift in ("default", "scale_shift")
        and a.class_embed_type in (None, "identity")
    )
