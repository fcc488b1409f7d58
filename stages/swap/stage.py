"""The guided swap as a stage: aligned crops and masks in, swapped crops out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import repeat
from typing import ClassVar, cast

import numpy as np
import torch

from ...configs import Settings
from .. import Resources
from ..colour_match import match_colour
from ..records import F32, U8, Crops, SourceFace
from ..rows import batches
from ..spread import spread
from .blend import downsample_mask
from .context import Context, SourcePicture
from .fitting import Fitting
from .guidance import build_terms
from .networks import Networks, to_tensor
from .repeatable import repeatable, tensor
from .sampler import Sampling, guided_swap
from .start import SourceStart
from .views import arcface_theta

Progress = Callable[[int], None]


class SwapStage:
    """Runs Algorithm 1 on batches of a fixed size.

    Which crops share a batch, and in which row each is, ``rows.batches`` says: their frames alone decide.

    ``source`` is one face for all crops, or a list, one for each crop in its order (pairs of pictures).

    Memory that does not suffice halves the batches (``fitting``).
    """

    name: ClassVar[str] = "swap"
    resources: ClassVar[Resources] = Resources(cpus=1, gpus=1)

    def __init__(
        self,
        networks: Networks,
        settings: Settings,
        source: SourceFace | Sequence[SourceFace],
        progress: Progress | None = None,
    ) -> None:
        networks.manifest.check(settings.conditioning)
        self.networks, self.settings, self.progress = networks, settings, progress
        self.sources = [source] if isinstance(source, SourceFace) else list(source)
        self.terms = build_terms(settings.guidance)
        self.sampling = Sampling(
            steps=settings.steps,
            start_level=settings.start_level,
            eta=settings.eta,
            gradient=settings.gradient,
            step_size=settings.step_size,
            preview=settings.guidance_decoder == "preview",
            conditioning=settings.conditioning,
            cfg_scale=settings.cfg_scale,
            guidance_every=settings.guidance_every,
        )
        self.fitting = Fitting(settings.batch, networks.device)
        self._starts: list[SourceStart] = []
        self._picture: SourcePicture | None = None

    def setup(self) -> None:
        """Holds the source's picture for the terms; parses each once, where the start needs it."""
        if self._picture is None:
            self._picture = self._pictured(self.sources)
        if self.settings.start == "source" and not self._starts:
            for source in self.sources:
                with torch.no_grad(), repeatable():
                    parse = self.networks.parse(to_tensor(source.image[None], self.networks.device))
                start = SourceStart(
                    source,
                    parse[0].cpu().numpy(),
                    self.networks.manifest.parser,
                    mirror=self.settings.start_mirror,
                )
                self._starts.append(start)

    def _pictured(self, sources: Sequence[SourceFace]) -> SourcePicture:
        image = to_tensor(np.stack([s.image for s in sources]), self.networks.device)
        return SourcePicture(image, np.stack([s.landmarks for s in sources]))

    def process(self, item: Crops, /) -> Crops:
        """Fills ``swapped``, (N, S, S, 3) float32 RGB in [0, 255]; needs ``masks``. Parses are used up."""
        return self.match(self.sample(self.prepare(item)))

    def prepare(self, item: Crops, /) -> Crops:
        """Fills ``starts`` and ``kept``, where the loop starts from the source: arithmetic that needs no GPU
        but for parses that aren't there."""
        self._check(item)
        self.setup()
        if not self._starts or item.starts is not None or not len(item):
            return item
        assert item.masks is not None
        parses = item.parses if item.parses is not None else self._parses(item)
        starts = self._starts if len(self._starts) > 1 else self._starts * len(item)
        keep = repeat(self.settings.start_keep, len(item))
        rows = (item.images, item.landmarks, item.masks, parses, keep)
        made = spread(lambda start, *row: start.compose_one(*row), starts, *rows)
        pictures, kept = zip(*made, strict=True)
        return replace(item, starts=np.stack(pictures), kept=np.stack(kept))

    def sample(self, item: Crops, /) -> Crops:
        """Fills ``swapped`` with what the networks make, in their own colours."""
        self._check(item)
        swapped = np.zeros(item.images.shape, np.float32)
        for present, rows, slots in batches(item.frames, self.settings.batch):
            swapped[present] = self.fitting.run(lambda part: self._swap(item, part), rows)[slots]
            if self.progress is not None:
                self.progress(len(present))
        return replace(item, swapped=swapped, parses=None, starts=None, kept=None)

    def match(self, item: Crops, /) -> Crops:
        """Gives ``swapped`` the colours of the target."""
        assert item.swapped is not None and item.masks is not None
        return replace(
            item, swapped=match_colour(item.swapped, item.images, item.masks, self.settings.colour_match)
        )

    def _check(self, item: Crops) -> None:
        if item.masks is None:
            raise ValueError("crops need masks before they are swapped")
        if len(self.sources) not in (1, len(item)):
            raise ValueError(f"{len(self.sources)} sources for {len(item)} crops")

    def _parses(self, item: Crops) -> F32:
        """Class probabilities (N, K, p, p) of the crops."""
        parses: F32 | None = None
        for present, rows, slots in batches(item.frames, self.settings.batch):
            parse = self.fitting.run(lambda part: self._parse(item.images[part]), rows)[slots]
            parses = np.zeros((len(item), *parse.shape[1:]), np.float32) if parses is None else parses
            parses[present] = parse
        assert parses is not None
        return parses

    @torch.no_grad()
    def _parse(self, images: U8) -> F32:
        return cast(F32, self.networks.parse(to_tensor(images, self.networks.device)).cpu().numpy())

    def _swap(self, item: Crops, rows: np.ndarray) -> F32:
        """One batch (B, S, S, 3) in [0, 255]; ``rows`` index the crops."""
        net = self.networks
        assert item.masks is not None and self._picture is not None
        # Which source each row gets.
        of = rows if len(self.sources) > 1 else np.zeros(len(rows), int)
        images, landmarks = item.images[rows], item.landmarks[rows]
        size = images.shape[1]
        with torch.no_grad():
            target = to_tensor(images, net.device)
            mask = tensor(item.masks[rows], net.device)[:, None]
            z0 = net.encode(target)  # line 3 of Algorithm 1: z_0 = E(x_targ)
            start, latent_mask = z0, mask
            if item.starts is not None and item.kept is not None:
                start = net.encode(to_tensor(item.starts[rows], net.device))
                hold = tensor(item.kept[rows], net.device)[:, None] * self.settings.start_hold
                latent_mask = mask * (1 - hold)
            small = net.manifest.parser.guidance_size if self.sampling.preview else None
            if small is None and item.parses is not None:
                parse = tensor(item.parses[rows], net.device)
            else:
                parse = net.parse(target, small)
        context = Context(
            networks=net,
            source=tensor(np.stack([self.sources[i].embedding for i in of]), net.device),
            target=target,
            target_parse=parse,
            mask=mask,
            to_arcface=arcface_theta(landmarks, net.identity_template(), size, net.manifest.identity.size).to(
                net.device
            ),
            landmarks=tensor(landmarks, net.device),
            source_picture=self._picture
            if len(self.sources) == 1
            else self._pictured([self.sources[i] for i in of]),
            seed=self.settings.seed,
            track=item.track,
        )
        m = downsample_mask(latent_mask, net.manifest.autoencoder.downscale)  # line 5
        z = guided_swap(context, z0, start, m, self.terms, self.sampling)  # lines 4 and 6–18
        with torch.no_grad():
            picture = net.decode(z).clamp(0, 1) * 255  # line 19: x̂_0 = D(z_0)
        return picture.permute(0, 2, 3, 1).cpu().numpy()
