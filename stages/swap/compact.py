"""The compact autoencoder: the tiny one around a trained bottleneck, so that diffusion has fewer channels.

The tiny autoencoder's 32 channels are redundant on faces, but not linearly: 16 principal components of 32
cost 7 dB. Here residual convolutions at the latents' own resolution fold 32 channels into C and unfold them
again, and the tiny autoencoder's layers are tuned along with them (``training/autoencoder.py``).

Pictures are RGB in [0, 1], (B, 3, H, W) with H and W multiples of 8; latents are (B, C, H/8, W/8).
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .autoencoder import TinyAutoencoder

TINY_CHANNELS = 32
WIDTH, BLOCKS = 128, 4
GUIDANCE_WIDTHS = 96, 48  # at the latents' resolution and at twice that
GUIDANCE_BLOCKS = 4, 2


class _Residual(nn.Module):
    """x + conv(SiLU(conv(SiLU(norm(x))))); at first x itself."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, n),
            nn.SiLU(),
            nn.Conv2d(n, n, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(n, n, 3, padding=1),
        )
        _silence(cast(nn.Conv2d, self.body[-1]))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.body(x))


class Bottleneck(nn.Module):
    """(B, i, h, w) → (B, o, h, w): a linear map per position, and a correction that begins at zero."""

    def __init__(self, i: int, o: int, width: int, blocks: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(i, o, 1)
        self.correction = nn.Sequential(
            nn.Conv2d(i, width, 3, padding=1),
            *(_Residual(width) for _ in range(blocks)),
            nn.SiLU(),
            nn.Conv2d(width, o, 3, padding=1),
        )
        _silence(cast(nn.Conv2d, self.correction[-1]))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(x) + self.correction(x))


def _silence(layer: nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class CompactAutoencoder(TinyAutoencoder):
    """Encoder and decoder with the interface of ``TinyAutoencoder``, of ``latent_channels`` instead of 32.

    ``encoder`` is (tiny encoder, bottleneck), ``decoder`` (bottleneck, tiny decoder).
    """

    def __init__(self, latent_channels: int, width: int = WIDTH, blocks: int = BLOCKS) -> None:
        super().__init__(TINY_CHANNELS)
        self.latent_channels = latent_channels
        self.encoder = nn.Sequential(self.encoder, Bottleneck(TINY_CHANNELS, latent_channels, width, blocks))
        self.decoder = nn.Sequential(Bottleneck(latent_channels, TINY_CHANNELS, width, blocks), self.decoder)

    @classmethod
    def load(cls, encoder: Path, decoder: Path, latent_channels: int | None = None) -> CompactAutoencoder:
        """Read both halves from safetensors files (fp16 or fp32), as ``save`` writes them.

        Width and depth of the bottlenecks are the files' own, and so are the channels if none are asked for.
        """
        fold, unfold = load_file(encoder), load_file(decoder)
        if latent_channels is None:
            latent_channels = fold["1.linear.weight"].shape[0]
        width = fold["1.correction.0.weight"].shape[0]
        blocks = len({key.split(".")[2] for key in fold if key.startswith("1.correction.")}) - 2
        model = cls(latent_channels, width, blocks)
        model.encoder.load_state_dict(fold)
        model.decoder.load_state_dict(unfold)
        return model.eval().requires_grad_(False)

    def save(self, encoder: Path, decoder: Path) -> None:
        """One file a half, fp16, each replaced only when it is whole."""
        save_half(self.encoder, encoder)
        save_half(self.decoder, decoder)

    @property
    def tiny(self) -> tuple[nn.Sequential, nn.Sequential]:
        """The layers that come from the tiny autoencoder: its encoder, its decoder."""
        return cast(nn.Sequential, self.encoder[0]), cast(nn.Sequential, self.decoder[1])

    @property
    def bottlenecks(self) -> tuple[Bottleneck, Bottleneck]:
        """What folds and what unfolds."""
        return cast(Bottleneck, self.encoder[1]), cast(Bottleneck, self.decoder[0])

    @torch.no_grad()
    def start_from(self, tiny: TinyAutoencoder, mean: Tensor, covariance: Tensor) -> None:
        """Take a tiny autoencoder's layers, and as the linear maps the principal components of its latents.

        ``mean`` (32,) and ``covariance`` (32, 32) are those of the tiny latents per position. From here
        the whole decodes as the best linear projection to C channels does, each of unit variance.
        """
        for own, given in zip(self.tiny, (tiny.encoder, tiny.decoder), strict=True):
            own.load_state_dict(given.state_dict())
        variance, vectors = torch.linalg.eigh(covariance.double().cpu())  # ascending
        variance, vectors = variance.flip(0), vectors.flip(1)
        scale = variance[: self.latent_channels].clamp(min=1e-8).sqrt()
        vectors, mean = vectors[:, : self.latent_channels], mean.double().cpu()
        fold, unfold = (b.linear for b in self.bottlenecks)
        down = (vectors / scale).T  # (C, 32)
        assert fold.bias is not None and unfold.bias is not None
        fold.weight.copy_(down[:, :, None, None])
        fold.bias.copy_(-down @ mean)
        unfold.weight.copy_((vectors * scale)[:, :, None, None])
        unfold.bias.copy_(mean)

    def attach_preview(self, head: Path) -> nn.Sequential:
        """The guidance decoder of ``head``, at half the resolution: it shares no layers with this decoder."""
        small = build_guidance_decoder(self.latent_channels)
        small.load_state_dict(load_file(head))
        return small.eval().requires_grad_(False)


class _Light(nn.Module):
    """x + conv(ReLU(conv(ReLU(x))))."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(), nn.Conv2d(n, n, 3, padding=1), nn.ReLU(), nn.Conv2d(n, n, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.body(x))


def build_guidance_decoder(latent_channels: int) -> nn.Sequential:
    """(B, C, h, w) → (B, 3, 4h, 4w), about [0, 1]: half the crop's resolution, 1.1 GMAC at 32×32.

    Work is done at h and 2h only; the last octave is a depth-to-space, as activations at 128×128 are what a
    backward pass on a CPU waits for.
    """
    (wide, narrow), (first, second) = GUIDANCE_WIDTHS, GUIDANCE_BLOCKS
    return nn.Sequential(
        nn.Conv2d(latent_channels, wide, 3, padding=1),
        *(_Light(wide) for _ in range(first)),
        nn.ReLU(),
        nn.Conv2d(wide, 4 * narrow, 3, padding=1),
        nn.PixelShuffle(2),
        *(_Light(narrow) for _ in range(second)),
        nn.ReLU(),
        nn.Conv2d(narrow, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )


def save_half(net: nn.Module, path: Path) -> None:
    """A network's weights as fp16 safetensors, written under another name and renamed."""
    part = path.with_name(f"{path.name}.part")
    save_file({k: v.detach().half().cpu().contiguous() for k, v in net.state_dict().items()}, part)
    part.replace(path)
