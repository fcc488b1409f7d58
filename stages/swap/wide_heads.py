"""Attention whose heads are wider than fused kernels take, by plain matrix products.

The paper's autoencoder has such a head, of 512 over 64×64 positions. Products take a fraction of what torch's
fallback does.
"""

from __future__ import annotations

import sys
from typing import Any, cast

from torch import Tensor, nn

WIDEST_HEAD = 256  # that fused attention kernels take


class WideHeads:
    """diffusers' attention processor for a head that fused kernels don't take: plain products."""

    def __call__(
        self,
        attention: Any,
        x: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """(B, C, h, w) or (B, N, C) → the same. The others are None in the networks this is for."""
        kept, shape = x, x.shape
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)  # (B, N, C)
        if attention.group_norm is not None:
            x = attention.group_norm(x.transpose(1, 2)).transpose(1, 2)
        heads, width = attention.heads, attention.to_q.out_features // attention.heads

        def split(y: Tensor) -> Tensor:
            return y.view(len(y), -1, heads, width).transpose(1, 2)

        q, k, v = (split(f(x)) for f in (attention.to_q, attention.to_k, attention.to_v))
        score = (q * attention.scale) @ k.transpose(2, 3)
        # Divided after the product with v: what is stored of the square matrix is half as wide.
        weight = (score.float() - score.float().amax(3, keepdim=True).detach()).exp()
        y = ((weight.to(v.dtype) @ v).float() / weight.sum(3, keepdim=True)).to(v.dtype)
        y = attention.to_out[0](y.transpose(1, 2).flatten(2))
        if x.ndim == 3 and len(shape) == 4:
            y = y.transpose(1, 2).reshape(shape)
        if attention.residual_connection:
            y = y + kept
        return cast(Tensor, y / attention.rescale_output_factor)


def with_wide_heads(net: nn.Module) -> nn.Module:
    """The module with ``WideHeads`` wherever a head is that wide, in place.

    Worth it on any GPU: the gradient of the fallback, where it must be repeatable, is taken by one block of
    threads for each frame.
    """
    for part in net.modules():
        if isinstance(part, theirs("attention_processor.Attention")):
            attention = cast(Any, part)
            if attention.to_q.out_features // attention.heads > WIDEST_HEAD:
                attention.set_processor(WideHeads())
    return net


def theirs(name: str) -> tuple[type, ...]:
    """For ``isinstance``: a class of diffusers' models, or none where nothing has imported it, and no part
    can be of it."""
    module, _, kind = name.rpartition(".")
    found = getattr(sys.modules.get(f"diffusers.models.{module}"), kind, None)
    return () if found is None else (found,)
