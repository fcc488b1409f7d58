"""The facial guidance module (§4.1–4.2, eq. 3–5): a list of terms, each with its λ schedule.

A term is any object with ``loss(x_hat, context) -> (B,)``. x̂ is RGB, about [0, 1], (B, 3, H, W); H and W
are the crop's side or half of it (a preview decode): terms work in coordinates relative to the crop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

from ...configs import GuidanceTerm
from ...errors import SettingsError
from ..align import estimate_similarity
from ..records import F32
from .networks import Networks
from .noise import generator
from .schedule import stepwise


@dataclass
class Context:
    """What the terms may look at. Built once per batch; ``step`` and ``seed`` change along the way.

    ``source`` (B, D) unit embeddings of the source; ``target`` (B, 3, S, S) the crop in [0, 1];
    ``target_parse`` (B, K, size, size) its parse; ``mask`` (B, 1, S, S); ``to_arcface`` (B, 2, 3) maps
    normalised ArcFace coordinates to normalised crop coordinates (``affine_grid``'s θ).
    """

    networks: Networks
    source: Tensor
    target: Tensor
    target_parse: Tensor
    mask: Tensor
    to_arcface: Tensor
    seed: int = 0
    track: int = 0
    step: int = 0


class Term(Protocol):
    """One guidance loss."""

    def loss(self, x_hat: Tensor, context: Context, /) -> Tensor: ...


def arcface_theta(landmarks: F32, template: F32, crop_size: int, size: int) -> Tensor:
    """θ (B, 2, 3) for ``affine_grid``: normalised ArcFace coordinates → normalised crop coordinates.

    ``landmarks`` (B, 5, 2) in crop pixels; ``template`` (5, 2) at ``size``. Both normalisations are
    those of ``align_corners=False``: −1 and 1 are the outer edges of the border pixels.
    """

    def normalised(n: int) -> Any:  # pixel centre coordinates → [−1, 1]
        return np.array([[2 / n, 0, 1 / n - 1], [0, 2 / n, 1 / n - 1], [0, 0, 1]])

    thetas = []
    for points in landmarks:
        to_crop = np.vstack([estimate_similarity(template, points), [0, 0, 1]])
        thetas.append((normalised(crop_size) @ to_crop @ np.linalg.inv(normalised(size)))[:2])
    return torch.from_numpy(np.stack(thetas).astype(np.float32))


def arcface_view(image: Tensor, theta: Tensor, size: int) -> Tensor:
    """The ArcFace crop of (B, 3, H, W), differentiable: (B, 3, size, size)."""
    grid = F.affine_grid(theta, [len(image), image.shape[1], size, size], align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


class Identity:
    """Eq. 3: 1 − cos(D_I(x_src), D_I(x̂)).

    ``jitter`` > 0 shows the network a slightly moved, scaled, turned and (every other step) mirrored
    crop, another one at each step: a change that fools the network from one viewpoint only is then
    not rewarded. The draw is keyed by (seed, track, step), the same for all frames.
    """

    def __init__(self, jitter: float = 0.0, views: int = 1) -> None:
        self.jitter = jitter
        self.views = views

    def _theta(self, context: Context, view: int) -> Tensor:
        theta = context.to_arcface
        if self.jitter == 0:
            return theta
        key = context.step * self.views + view
        draw = torch.rand(5, generator=generator(context.seed, context.track, "jitter", key)) * 2 - 1
        angle, scale = float(draw[0]) * 0.10 * self.jitter, 1 + float(draw[1]) * 0.08 * self.jitter
        flip = -1.0 if key % 2 else 1.0
        cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
        shift = (draw[2:4] * 0.06 * self.jitter).tolist()
        inner = theta.new_tensor([[cos * flip, -sin, shift[0]], [sin * flip, cos, shift[1]], [0, 0, 1]])
        bottom = theta.new_tensor([0.0, 0.0, 1.0]).expand(len(theta), 1, 3)
        return (torch.cat([theta, bottom], 1) @ inner)[:, :2]

    def loss(self, x_hat: Tensor, context: Context) -> Tensor:
        size = context.networks.manifest.identity.size
        total: Tensor | None = None
        for view in range(self.views):
            crop = arcface_view(x_hat, self._theta(context, view), size)
            value = 1 - (context.networks.embed_aligned(crop) * context.source).sum(1)
            total = value if total is None else total + value
        assert total is not None
        return total / self.views


class Segmentation:
    """Eq. 4: ‖D_F(x_targ) − D_F(x̂)‖², as the mean over pixels × 1000/256² of the paper's sum.

    Scaled so that λ does not depend on the parser's size; ``weights`` per class name stress the parts
    that carry expression.
    """

    def __init__(self, weights: dict[str, float] | None = None) -> None:
        self.weights = weights or {}

    def loss(self, x_hat: Tensor, context: Context) -> Tensor:
        parse = context.networks.parse(x_hat)
        square = (parse - context.target_parse) ** 2
        if self.weights:
            names = context.networks.manifest.parser.classes
            square = square * square.new_tensor([self.weights.get(n, 1.0) for n in names])[:, None, None]
        return square.sum(1).mean((1, 2)) * 1000


TERMS: dict[str, Callable[..., Term]] = {"identity": Identity, "segmentation": Segmentation}


@dataclass(frozen=True)
class Scheduled:
    """A term and its λ(t)."""

    name: str
    term: Term
    scale: float
    schedule: Sequence[tuple[float, float]]

    def weight(self, progress: float) -> float:
        """λ at ``progress`` in [0, 1), the share of steps done."""
        return self.scale * stepwise(self.schedule, progress)


def build_terms(terms: Sequence[GuidanceTerm]) -> list[Scheduled]:
    """The terms of the settings; SettingsError for an unknown one or a parameter it does not take."""
    built = []
    for t in terms:
        if t.term not in TERMS:
            raise SettingsError(f"guidance term {t.term}: no such term; there are {', '.join(sorted(TERMS))}")
        try:
            term = TERMS[t.term](**(t.model_extra or {}))
        except TypeError as error:
            raise SettingsError(f"guidance term {t.term}: {error}") from error
        built.append(Scheduled(t.term, term, t.scale, t.schedule))
    return built


def guidance_loss(
    terms: Sequence[Scheduled], x_hat: Tensor, context: Context, progress: float
) -> Tensor | None:
    """G_fac of eq. 5 per picture (B,); None when every λ is 0 at this step."""
    total: Tensor | None = None
    for scheduled in terms:
        weight = scheduled.weight(progress)
        if weight == 0:
            continue
        value = weight * scheduled.term.loss(x_hat, context)
        total = value if total is None else total + value
    return total
