"""What training compares pictures by: pixels, edges, and frozen networks. Never the judges."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..stages.align import ARCFACE_TEMPLATE
from ..stages.swap.autoencoder import TinyAutoencoder
from ..stages.swap.loaders import load_parser
from ..stages.swap.manifest import read_manifest
from ..stages.swap.onnx_torch import OnnxModule
from ..stages.swap.views import arcface_theta

TINY_FILES = "taef2_encoder.safetensors", "taef2_decoder.safetensors"
FEATURE_LAYERS = 5, 9, 13  # ends of the tiny encoder's levels at 1/2, 1/4 and 1/8


def load_tiny(folder: Path) -> TinyAutoencoder:
    """The tiny autoencoder everything starts from, frozen."""
    encoder, decoder = (folder / name for name in TINY_FILES)
    return TinyAutoencoder.load(encoder, decoder, 32)


class Perception(nn.Module):
    """A pack's identity network and parser and the tiny encoder, frozen, as measures of likeness.

    Pictures are (B, 3, H, W) RGB, about [0, 1], aligned to the pack's template, at any resolution.
    """

    theta: Tensor

    def __init__(self, pack: Path, tiny: TinyAutoencoder, parser_size: int = 128) -> None:
        super().__init__()
        self.manifest, self.parser_size = read_manifest(pack), parser_size
        self.identity = OnnxModule(pack / self.manifest.identity.file)
        # The loader asks a pack for its manifest and for paths, no more.
        self.parser = load_parser(cast(Any, SimpleNamespace(manifest=self.manifest, path=pack.joinpath)))
        self.features = tiny.encoder[: FEATURE_LAYERS[-1] + 1]
        entry, points = self.manifest.identity, self.manifest.template_points()
        template = (ARCFACE_TEMPLATE * (entry.size / 112)).astype("float32")
        # One view for all: both pictures are seen through it, so landmarks a little off do not matter.
        theta = arcface_theta(points[None], template, self.manifest.crop_size, entry.size)
        self.register_buffer("theta", theta)
        self.eval().requires_grad_(False)

    def embed(self, image: Tensor, theta: Tensor | None = None) -> Tensor:
        """Unit embeddings (B, D), in float32: a cosine near 1 has no digits left in bfloat16."""
        e = self.manifest.identity
        with torch.autocast(image.device.type, enabled=False):
            theta = self.theta.expand(len(image), 2, 3) if theta is None else theta
            grid = F.affine_grid(theta, [len(image), 3, e.size, e.size], align_corners=False)
            view = F.grid_sample(image.float(), grid, padding_mode="border", align_corners=False) * 255
            view = view.flip(1) if e.channels == "bgr" else view
            return F.normalize(self.identity((view - e.mean) / e.scale).flatten(1), dim=1)

    def parse(self, image: Tensor) -> Tensor:
        """Class probabilities (B, K, p, p) of the picture at ``parser_size``."""
        p, size = self.manifest.parser, (self.parser_size, self.parser_size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", align_corners=False)
        mean, std = (image.new_tensor(v)[:, None, None] for v in (p.mean, p.std))
        return cast(Tensor, self.parser((image - mean) / std).float().softmax(1))

    def identity_loss(self, image: Tensor, wanted: Tensor) -> Tensor:
        """1 − the cosine of the embeddings, mean; no gradient to ``wanted``."""
        with torch.no_grad():
            theirs = self.embed(wanted)
        return 1 - (self.embed(image) * theirs).sum(1).mean()

    def parse_loss(self, image: Tensor, wanted: Tensor) -> Tensor:
        """Squared distance of the class probabilities, mean over pixels."""
        with torch.no_grad():
            theirs = self.parse(wanted)
        return ((self.parse(image) - theirs) ** 2).sum(1).mean()

    def feature_loss(self, image: Tensor, wanted: Tensor) -> Tensor:
        """Differences of the tiny encoder's activations, each level in units of its own deviation."""
        with torch.no_grad():
            theirs = self._levels(wanted)
        losses = [
            F.l1_loss(a.float(), b.float()) / b.float().std().clamp(min=1e-3)
            for a, b in zip(self._levels(image), theirs, strict=True)
        ]
        return torch.stack(losses).mean()

    def _levels(self, x: Tensor) -> list[Tensor]:
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in FEATURE_LAYERS:
                found.append(x)
        return found


def pyramid_loss(image: Tensor, wanted: Tensor, levels: int = 4) -> Tensor:
    """L1 between Laplacian pyramids (Bojanowski et al. 2018, arXiv 1707.05776), mean over levels."""
    losses, difference = [], image - wanted  # the pyramid is linear
    for _ in range(levels - 1):
        smaller = F.avg_pool2d(difference, 2)
        larger = F.interpolate(smaller, scale_factor=2, mode="bilinear", align_corners=False)
        losses.append((difference - larger).abs().mean())
        difference = smaller
    losses.append(difference.abs().mean())
    return torch.stack(losses).mean()


def edge_loss(image: Tensor, wanted: Tensor) -> Tensor:
    """L1 between the differences of neighbouring pixels, along both axes."""
    d = image - wanted
    return d.diff(dim=2).abs().mean() + d.diff(dim=3).abs().mean()


def balanced_gradient(losses: dict[str, Tensor], shares: dict[str, float], picture: Tensor) -> Tensor:
    """A gradient for ``picture`` (a leaf) in which each loss has its share, whatever its scale.

    Σ share · g / ‖g‖ with g each loss's own gradient, after EnCodec's balancer (Défossez et al. 2022,
    arXiv 2210.13438, §3.4), with the batch's own norms. Losses may not share a graph but the picture.
    """
    total = torch.zeros_like(picture)
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, picture)
        total += gradient * (shares[name] / gradient.norm().clamp(min=1e-12))
    return total
