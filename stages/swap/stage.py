"""The guided swap as a stage: aligned crops and masks in, swapped crops out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch

from ...configs import Settings
from .. import Resources
from ..colour_match import match_colour
from ..records import F32, Crops, SourceFace
from .blend import downsample_mask
from .context import Context, SourcePicture
from .guidance import build_terms
from .networks import Networks, to_tensor
from .sampler import Sampling, guided_swap
from .start import SourceStart
from .views import arcface_theta

Progress = Callable[[int], None]


class SwapStage:
    """Runs Algorithm 1 on batches of a fixed size.

    A batch holds the frames whose index // ``batch`` is the same, each in the row of its index %
    ``batch``, and copies where a frame is missing: so the numbers a frame sees depend neither on where
    segments end nor on which frames have a face.
    """

    name: ClassVar[str] = "swap"
    resources: ClassVar[Resources] = Resources(cpus=1, gpus=1)

    def __init__(
        self, networks: Networks, settings: Settings, source: SourceFace, progress: Progress | None = None
    ) -> None:
        self.networks, self.settings, self.source, self.progress = networks, settings, source, progress
        self.terms = build_terms(settings.guidance)
        self.sampling = Sampling(
            steps=settings.steps,
            start_level=settings.start_level,
            eta=settings.eta,
            gradient=settings.gradient,
            step_size=settings.step_size,
            preview=settings.guidance_decoder == "preview",
        )
        self._start: SourceStart | None = None
        self._source_picture: SourcePicture | None = None

    def setup(self) -> None:
        """Holds the source's picture for the terms; parses it once, where the start needs it."""
        if self._source_picture is None:
            image = to_tensor(self.source.image[None], self.networks.device)
            self._source_picture = SourcePicture(image, self.source.landmarks)
        if self.settings.start == "source" and self._start is None:
            with torch.no_grad():
                parse = self.networks.parse(to_tensor(self.source.image[None], self.networks.device))
            self._start = SourceStart(self.source, parse[0].cpu().numpy(), self.networks.manifest.parser)

    def process(self, item: Crops, /) -> Crops:
        """Fills ``swapped``, (N, S, S, 3) float32 RGB in [0, 255]; needs ``masks``."""
        if item.masks is None:
            raise ValueError("crops need masks before they are swapped")
        self.setup()
        size, batch = item.images.shape[1], self.settings.batch
        swapped = np.zeros((len(item), size, size, 3), np.float32)
        groups = item.frames // batch
        for group in np.unique(groups):
            present = np.flatnonzero(groups == group)
            rows = np.full(batch, present[0])
            slots = item.frames[present] % batch
            rows[slots] = present
            swapped[present] = self._swap(item, rows)[slots]
            if self.progress is not None:
                self.progress(len(present))
        return replace(
            item, swapped=match_colour(swapped, item.images, item.masks, self.settings.colour_match)
        )

    def _swap(self, item: Crops, rows: np.ndarray) -> F32:
        """One batch (B, S, S, 3) in [0, 255]; ``rows`` index the crops."""
        net = self.networks
        assert item.masks is not None and self._source_picture is not None
        images, landmarks, masks = item.images[rows], item.landmarks[rows], item.masks[rows]
        size = images.shape[1]
        with torch.no_grad():
            target = to_tensor(images, net.device)
            mask = torch.from_numpy(masks).to(net.device)[:, None]
            parse = net.parse(target)
            z0 = net.encode(target)  # line 3 of Algorithm 1: z_0 = E(x_targ)
            start, latent_mask = z0, mask
            if self._start is not None:
                pictures, kept = self._start.compose(
                    images, landmarks, masks, parse.cpu().numpy(), self.settings.start_keep
                )
                start = net.encode(to_tensor(pictures, net.device))
                hold = torch.from_numpy(kept).to(net.device)[:, None] * self.settings.start_hold
                latent_mask = mask * (1 - hold)
        context = Context(
            networks=net,
            source=torch.from_numpy(self.source.embedding).to(net.device)[None].expand(len(rows), -1),
            target=target,
            target_parse=parse,
            mask=mask,
            to_arcface=arcface_theta(landmarks, net.identity_template(), size, net.manifest.identity.size).to(
                net.device
            ),
            landmarks=torch.from_numpy(landmarks).to(net.device),
            source_picture=self._source_picture,
            seed=self.settings.seed,
            track=item.track,
        )
        m = downsample_mask(latent_mask, net.manifest.autoencoder.downscale)  # line 5
        z = guided_swap(context, z0, start, m, self.terms, self.sampling)  # lines 4 and 6–18
        with torch.no_grad():
            picture = net.decode(z).clamp(0, 1) * 255  # line 19: x̂_0 = D(z_0)
        return picture.permute(0, 2, 3, 1).cpu().numpy()
