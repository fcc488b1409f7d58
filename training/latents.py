"""What the diffusion model learns from, in the device's memory: latents, who they show, what of them counts.

Every picture is encoded several times, moved, mirrored and lit a little differently, before the training
begins: encoding costs more than a step of the UNet. Each is seen by the identity network in several views as
well, so that a latent is never trained beside the embedding of exactly its own pixels: what view, light and
compression do to an embedding must not tell the UNet how the picture is to look.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor

from ..stages.align import ARCFACE_TEMPLATE
from ..stages.swap.autoencoder import TinyAutoencoder
from ..stages.swap.compact import CompactAutoencoder
from ..stages.swap.identity import IdentityNetworks
from ..stages.swap.loaders import load_autoencoder, naming
from ..stages.swap.manifest import read_manifest
from ..stages.swap.pack import Pack
from ..stages.swap.views import arcface_theta, arcface_view
from .augment import colour, jitter
from .shards import Faces
from .trainer import at_root

COVERED = 0.9  # share of a latent's 8×8 pixels that must lie inside the photo
STRANGERS = 0.5  # cosine above which two photographs may be of one person at all


def base_pack(folder: str) -> Pack:
    """A pack by its folder, relative ones at the repository; not verified, nor need all files be there."""
    return Pack(at_root(folder), read_manifest(at_root(folder)), {})


@dataclass(frozen=True)
class Bank:
    """N pictures, K latents and V views of each.

    Attributes:
        latents: (N, K, C, h, w) bfloat16 (float32 on a CPU), not normalised.
        covered: (N, K, 1, h, w) uint8, 1 where the latent shows the photo.
        views: (N, V, D) float32 unit embeddings.
        mean, std: (C,) of the latents.
    """

    latents: Tensor
    covered: Tensor
    views: Tensor
    mean: Tensor
    std: Tensor

    def normalised(self, index: Tensor, variant: Tensor) -> Tensor:
        """(B, C, h, w) float32, zero mean and unit deviation per channel over the set."""
        return (self.latents[index, variant].float() - self.mean[:, None, None]) / self.std[:, None, None]


def open_autoencoder(pack: Pack, folder: Path | None) -> TinyAutoencoder:
    """A compact autoencoder's two files in a folder, or the tiny one of a pack; PackError if unreadable."""
    if folder is None:
        model = load_autoencoder(pack)[0]
        assert isinstance(model, TinyAutoencoder)
        return model
    encoder, decoder = folder / "encoder.safetensors", folder / "decoder.safetensors"
    with naming(folder):
        return CompactAutoencoder.load(encoder, decoder)


class Embedder:
    """The pack's identity networks on aligned crops."""

    def __init__(self, pack: Pack, device: torch.device) -> None:
        self.entry = pack.manifest.identity
        self.network = IdentityNetworks(self.entry, pack.path).to(device).eval().requires_grad_(False)
        self.template = ARCFACE_TEMPLATE.astype(np.float32) * (self.entry.size / 112)

    def __call__(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """(B, 3, S, S) RGB in [0, 1] and (B, 5, 2) in their pixels → (B, D) unit vectors, float32."""
        e = self.entry
        theta = arcface_theta(landmarks.cpu().numpy(), self.template, images.shape[-1], e.size)
        return cast(Tensor, self.network(arcface_view(images, theta.to(images), e.size)))


@torch.no_grad()
def build_bank(
    faces: Faces,
    autoencoder: TinyAutoencoder,
    embedder: Embedder,
    generator: Generator,
    *,
    variants: int,
    views: int,
    scale: float,
    shift: float,
    rotate: float,
    batch: int = 128,
) -> Bank:
    """Encode ``variants`` of every face and embed ``views``; the first of both are unchanged.

    ``scale``, ``shift`` and ``rotate`` are ``jitter``'s. Colour is touched only by a few per cent of
    brightness and contrast: what it learns to draw is what it was shown.
    """
    device = generator.device
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    autoencoder.place(device, kind)
    latents, covered, seen = [], [], []
    for begin in range(0, len(faces), batch):
        some = slice(begin, begin + batch)
        images = torch.from_numpy(faces.images[some]).to(device).permute(0, 3, 1, 2).float() / 255
        inside = torch.from_numpy(faces.inside[some]).to(device)
        points = torch.from_numpy(faces.landmarks[some]).to(device)
        rows, masks, who = [], [], []
        for variant in range(variants):
            x, whole = images, inside
            if variant:
                moved = jitter(
                    images, generator, scale=scale, shift=shift, rotate=rotate, mirror=0.5, inside=inside
                )
                assert moved.inside is not None
                x, whole = moved.images, moved.inside
                x = colour(x, generator, brightness=0.03, contrast=0.05, gamma=0.06, saturation=0.05)
            rows.append(autoencoder.encode(x).to(kind))
            factor = x.shape[-1] // rows[-1].shape[-1]
            share = F.avg_pool2d(whole[:, None].float(), factor)
            masks.append((share > COVERED).to(torch.uint8))
        for view in range(views):
            x, where = images, points
            if view:
                x = colour(images, generator, brightness=0.1, contrast=0.2, gamma=0.3, saturation=0.3)
                where = points + 2.0 * torch.randn(points.shape, generator=generator, device=device)
                if view % 2:
                    x, where = x.flip(3), _mirrored(where, x.shape[-1])
            who.append(embedder(x, where))
        latents.append(torch.stack(rows, 1))
        covered.append(torch.stack(masks, 1))
        seen.append(torch.stack(who, 1))
    bank = torch.cat(latents)
    sample = bank[:: max(1, len(bank) // 4096), 0].float()
    mean, std = sample.mean((0, 2, 3)), sample.std((0, 2, 3)).clamp(min=1e-6)
    return Bank(bank, torch.cat(covered), torch.cat(seen), mean, std)


def _mirrored(points: Tensor, side: int) -> Tensor:
    """Landmarks (B, 5, 2) of the mirrored picture: the person's right is then the other eye."""
    flipped = points[:, [1, 0, 2, 4, 3]].clone()
    flipped[..., 0] = side - 1 - flipped[..., 0]
    return flipped


def companions(views: Tensor, threshold: float, most: int = 4) -> Tensor:
    """Other photographs of the same person: (N, most) indices, one's own where there are fewer.

    Args:
        views: (N, V, D) unit embeddings; a person's is their mean.
        threshold: least cosine between two people's means for them to be one.
    """
    if threshold < STRANGERS:
        raise ValueError(f"same_person must be at least {STRANGERS}, or strangers count as one person")
    mean = F.normalize(views.mean(1), dim=1)
    found: list[Tensor] = []
    for begin in range(0, len(mean), 1024):
        rows = mean[begin : begin + 1024]
        close, which = (rows @ mean.T).topk(min(most + 1, len(mean)), dim=1)
        own = torch.arange(begin, begin + len(rows), device=views.device)[:, None]
        others = (close >= threshold) & (which != own)
        # Their photographs first, one's own in the places that are left.
        order = others.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        picked = torch.where(others.gather(1, order), which.gather(1, order), own)
        found.append(picked)
    return torch.cat(found)
