"""The guidance terms that come with ldvid (§4.1–4.2, eq. 3 and 4, and two of ours)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import SettingsError
from .constants import constant
from .context import Context
from .geometry import FLOOR, PARTS, Windows
from .views import arcface_view, jittered, zoomed


class Identity:
    """Eq. 3: 1 − cos(D_I(x_src), D_I(x̂)).

    ``jitter`` > 0 shows the network a slightly moved, scaled, turned and (every other step) mirrored
    crop, another one at each step: a change that fools the network from one viewpoint only is then
    not rewarded. The draw is keyed by (seed, track, step), the same for all frames. ``views`` crops are
    averaged a step.
    """

    def __init__(self, jitter: float = 0.0, views: int = 1) -> None:
        if views < 1:
            raise ValueError(f"views must be 1 or more, not {views}")
        self.jitter = jitter
        self.views = views

    def _theta(self, context: Context, view: int) -> Tensor:
        if self.jitter == 0:
            return context.to_arcface
        key = context.step * self.views + view
        return jittered(context, context.to_arcface, self.jitter, "jitter", key, mirrored=key % 2 == 1)

    def loss(self, x_hat: Tensor, context: Context) -> Tensor:
        """(B,) in [0, 2]."""
        size = context.networks.manifest.identity.size
        total: Tensor | None = None
        for view in range(self.views):
            crop = arcface_view(x_hat, self._theta(context, view), size)
            value = 1 - (context.networks.embed_aligned(crop) * context.source).sum(1)
            total = value if total is None else total + value
        assert total is not None
        return total / self.views


class IdentityCrop:
    """Beyond the paper: eq. 3 through another framing, against the source in the same framing.

    ``zoom`` > 1 shows the network the inner features only, < 1 the whole head. Two framings are fooled
    by one change less easily than one is. ``jitter`` as in ``Identity``, drawn independently.
    """

    def __init__(self, zoom: float = 1.25, jitter: float = 0.0) -> None:
        if not 0.5 <= zoom <= 2:
            raise ValueError(f"zoom must lie between 0.5 and 2, not {zoom:g}")
        self.zoom = zoom
        self.jitter = jitter

    def loss(self, x_hat: Tensor, context: Context) -> Tensor:
        """(B,) in [0, 2]."""
        net = context.networks
        size = net.manifest.identity.size
        theta = zoomed(context.to_arcface, self.zoom, net.identity_template(), size)
        if self.jitter > 0:
            purpose, step = "jitter of the second crop", context.step
            theta = jittered(context, theta, self.jitter, purpose, step, mirrored=step % 2 == 1)
        own = net.embed_aligned(arcface_view(x_hat, theta, size))
        return 1 - (own * context.source_picture.embedding(net, self.zoom)).sum(1)


class Segmentation:
    """Eq. 4: ‖D_F(x_targ) − D_F(x̂)‖², as the mean over pixels × 1000/256² of the paper's sum.

    Scaled so that λ does not depend on the parser's size; ``weights`` stress the parts that carry
    expression, named as the pack's parser or its manifest's ``parts`` name them.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.weights = weights or {}

    def loss(self, x_hat: Tensor, context: Context) -> Tensor:
        """(B,), the squared distance of the class probabilities, summed over classes.

        Raises:
            SettingsError: a weight for a part that the parser does not know.
        """
        parser = context.networks.manifest.parser
        factors = [1.0] * len(parser.classes)
        for part, weight in self.weights.items():
            found = parser.indices(part)
            if not found:
                known = ", ".join(dict.fromkeys([*parser.parts, *parser.classes]))
                raise SettingsError(
                    f"guidance term segmentation: the parser knows no part {part}; there are {known}"
                )
            for i in found:
                factors[i] = weight
        return context.parse_distance(x_hat, factors) * 1000


class Geometry:
    """Beyond the paper: eyes, brows, nose and mouth where, as large and as open as the target's.

    The squared differences of soft landmarks (see ``geometry``) between x̂ and the target, in tenths of
    an eye distance and summed: 1 is one part off by one tenth. Where ``Segmentation`` counts
    pixels, most of them of skin and hair, this measures expression; it also has a direction where the
    parts don't overlap. ``weights`` per part (``right_eye``, ``left_eye``, ``right_brow``, ``left_brow``,
    ``mouth``, ``inner_mouth``, ``nose``) stress some.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        names = [p.name for p in PARTS]
        if unknown := sorted(set(weights or {}) - set(names)):
            raise ValueError(f"weights: no part is named {unknown[0]}; there are {', '.join(names)}")
        self.weights = [(weights or {}).get(name, 1.0) for name in names]

    def loss(self, x_hat: Tensor, context: Context) -> Tensor:
        """(B,)."""
        parser = context.networks.manifest.parser
        with torch.no_grad():
            windows = Windows(context.landmarks, context.target.shape[-1], context.target_parse.shape[-1])
            wanted = windows.measure(context.target_parse, parser)
        seen = windows.measure(context.parse(x_hat), parser, wanted)
        there = wanted.mass / (wanted.mass + FLOOR)  # what the target doesn't show has no place to keep
        spread, opening, weights = constant(
            [[p.spread for p in PARTS], [p.opening for p in PARTS], self.weights], x_hat
        )
        place = ((seen.centre - wanted.centre) ** 2).sum(2)
        extent = ((seen.spread - wanted.spread) ** 2).sum(2) * spread
        mass = (seen.mass - wanted.mass) ** 2 * opening
        off: Tensor = (there * (place + extent) + mass) * weights  # (B, P)
        return off.sum(1) * 100
