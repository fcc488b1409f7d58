"""What a guidance term may look at, and what a term is."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

from ..records import F32
from .constants import constant
from .drawn import Drawn, Make
from .networks import Networks
from .noise import generator
from .views import arcface_theta, arcface_view, zoomed


@dataclass
class SourcePicture:
    """The sources' own pictures, for terms that want more of them than their embeddings.

    ``image`` (N, 3, S, S) RGB in [0, 1], the aligned crops; ``landmarks`` (N, 5, 2) in their pixels. N is
    1 where all rows of the batch get one source, else B.
    """

    image: Tensor
    landmarks: F32
    _embeddings: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False)

    def embedding(self, networks: Networks, zoom: float) -> Tensor:
        """The unit embeddings (N, D) of the sources framed ``zoom`` times closer than ArcFace frames them.

        Means of each face and its mirror image; computed once for each framing.
        """
        if zoom not in self._embeddings:
            size, template = networks.manifest.identity.size, networks.identity_template()
            with torch.no_grad():
                theta = arcface_theta(self.landmarks, template, self.image.shape[-1], size)
                view = arcface_view(self.image, zoomed(theta.to(self.image), zoom, template, size), size)
                # A CPU multiplies four rows otherwise than two: there each source is seen by itself.
                parts = [view] if view.is_cuda else view.split(1)  # type: ignore[no-untyped-call]
                seen = [networks.embed_aligned(torch.cat([v, v.flip(3)])).chunk(2) for v in parts]
                means = torch.cat([torch.stack(pair).mean(0) for pair in seen])
                self._embeddings[zoom] = F.normalize(means, dim=1)
        return self._embeddings[zoom]


@dataclass
class Context:
    """What the terms may look at. Built once per batch; only ``step`` changes along the way.

    Attributes:
        networks: D_I is ``networks.embed_aligned``, D_F ``networks.parse``; ``networks.manifest`` names
            the parser's classes.
        source: (B, D) unit embeddings of the source.
        target: (B, 3, S, S) RGB in [0, 1], the crop in which a face is replaced.
        target_parse: (B, K, p, p) its class probabilities; p is the size at which x̂ is parsed too.
        mask: (B, 1, S, S) in [0, 1], 1 where the face is replaced.
        to_arcface: (B, 2, 3) θ of the ArcFace view of each crop (see ``views``).
        landmarks: (B, 5, 2) the target's, in pixels of the crop, order as in ``records``.
        source_picture: the sources' aligned pictures and landmarks, one for all rows or one a row.
        seed, track: the key of all noise, of jitter too.
        step: index of the step, from 0.
        drawn: where what is random is kept from batch to batch, turned to this seed and track; None: it is
            drawn anew each time.
        verdicts: None, or where each step puts whether its loss and gradient were finite (a bool of no
            dimensions), which to look at at once would have the processor wait for the GPU.
        parse_once: whether a single term looks at D_F(x̂), so that nobody else needs it.
    """

    networks: Networks
    source: Tensor
    target: Tensor
    target_parse: Tensor
    mask: Tensor
    to_arcface: Tensor
    landmarks: Tensor
    source_picture: SourcePicture
    seed: int = 0
    track: int = 0
    step: int = 0
    drawn: Drawn | None = None
    verdicts: list[Tensor] | None = None
    parse_once: bool = False
    _parsed: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def random(self, purpose: str, make: Make, step: int = 0, what: Hashable = None) -> Tensor:
        """What ``make`` draws with the generator of (seed, track, purpose, step), on the target's device. Not
        to be changed in place; ``what`` tells apart what is made of the same numbers."""
        device = self.target.device
        if self.drawn is not None:
            return self.drawn.of(purpose, step, what, make, device)
        return make(generator(self.seed, self.track, purpose, step)).to(device)

    def parse(self, x_hat: Tensor) -> Tensor:
        """D_F(x̂), (B, K, p, p) with its gradient: computed once a step, however many terms ask."""
        if self._parsed is None or self._parsed[0] is not x_hat:
            self._parsed = (x_hat, self.networks.parse(x_hat, self.target_parse.shape[-1]))
        return self._parsed[1]

    def parse_distance(self, x_hat: Tensor, factors: Sequence[float]) -> Tensor:
        """(B,): the squared distance of D_F(x̂) from ``target_parse``, each class times its factor, summed
        over classes; the mean over pixels."""
        size = self.target_parse.shape[-1]
        net, known = self.networks, self._parsed is not None and self._parsed[0] is x_hat
        side = x_hat.shape[-1]
        if self.parse_once and net.parse_distance is not None and not known and size in (side, 2 * side):
            weights = constant(factors, self.target_parse)
            return cast(Tensor, net.parse_distance(x_hat, self.target_parse, weights, size == 2 * side))
        # One pass over the probabilities each way, where a difference and its square are two.
        square = F.mse_loss(self.parse(x_hat), self.target_parse, reduction="none")
        if any(f != 1 for f in factors):
            square = square * constant(factors, square)[:, None, None]
        return square.sum(1).mean((1, 2))

    def forget(self) -> None:
        """Let go of what was computed of the last x̂, its graph included."""
        self._parsed = None


class Term(Protocol):
    """One guidance loss: any object with this method.

    ``x_hat`` is the picture the loop is heading for, (B, 3, H, W) RGB, about [0, 1] and not clamped. H
    and W are the crop's side S, or half of it (a preview decode): work in coordinates relative to it.
    Returns one number a picture, (B,), the less the better, differentiable with respect to ``x_hat``;
    no row may depend on another.
    """

    def loss(self, x_hat: Tensor, context: Context, /) -> Tensor: ...
