"""The guided swap as a stage: aligned crops and masks in, swapped crops out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch

from ...configs import Settings
from .. import Resources
from ..colour_match import match_colour
from ..records import F32, U8, Crops, SourceFace
from ..rows import batches
from .blend import downsample_mask
from .context import Context, SourcePicture
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

    ``micro_batch`` is the number of crops that go through the networks at once: the batch, halved each
    time the GPU's memory did not suffice. Halved batches differ in the last bits of their numbers.
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
        self.micro_batch = settings.batch
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
        if item.masks is None:
            raise ValueError("crops need masks before they are swapped")
        if len(self.sources) not in (1, len(item)):
            raise ValueError(f"{len(self.sources)} sources for {len(item)} crops")
        self.setup()
        swapped = np.zeros(item.images.shape, np.float32)
        for present, rows, slots in batches(item.frames, self.settings.batch):
            swapped[present] = self._fitting(item, rows)[slots]
            if self.progress is not None:
                self.progress(len(present))
        matched = match_colour(swapped, item.images, item.masks, self.settings.colour_match)
        return replace(item, swapped=matched, parses=None)

    def _fitting(self, item: Crops, rows: np.ndarray) -> F32:
        """One batch in pieces that fit into the memory."""
        while True:
            size = self.micro_batch
            try:
                with repeatable():
                    parts = [self._swap(item, rows[i : i + size]) for i in range(0, len(rows), size)]
                return np.concatenate(parts)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Out here, where the error no longer holds the tensors of the failed try.
            self.micro_batch = (size + 1) // 2
            if self.networks.device.type == "cuda":
                torch.cuda.empty_cache()

    def _swap(self, item: Crops, rows: np.ndarray) -> F32:
        """One batch (B, S, S, 3) in [0, 255]; ``rows`` index the crops."""
        net = self.networks
        assert item.masks is not None and self._picture is not None
        # Which source each row gets.
        of = rows if len(self.sources) > 1 else np.zeros(len(rows), int)
        images, landmarks, masks = item.images[rows], item.landmarks[rows], item.masks[rows]
        size = images.shape[1]
        with torch.no_grad():
            target = to_tensor(images, net.device)
            mask = tensor(masks, net.device)[:, None]
            parse = net.parse(target) if item.parses is None else tensor(item.parses[rows], net.device)
            z0 = net.encode(target)  # line 3 of Algorithm 1: z_0 = E(x_targ)
            start, latent_mask = z0, mask
            if self._starts:
                pictures, kept = self._composed(of, images, landmarks, masks, parse.cpu().numpy())
                start = net.encode(to_tensor(pictures, net.device))
                hold = tensor(kept, net.device)[:, None] * self.settings.start_hold
                latent_mask = mask * (1 - hold)
            small = net.manifest.parser.guidance_size if self.sampling.preview else None
            guided = parse if small is None else net.parse(target, small)
        context = Context(
            networks=net,
            source=tensor(np.stack([self.sources[i].embedding for i in of]), net.device),
            target=target,
            target_parse=guided,
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

    def _composed(
        self, of: np.ndarray, images: U8, landmarks: F32, masks: F32, parses: F32
    ) -> tuple[F32, F32]:
        """The start pictures and what was kept of the target, each row with its own source."""
        rows = []
        for i, source in enumerate(of):
            one = slice(i, i + 1)
            rows.append(
                self._starts[source].compose(
                    images[one], landmarks[one], masks[one], parses[one], self.settings.start_keep
                )
            )
        pictures, kept = zip(*rows, strict=True)
        return np.concatenate(pictures), np.concatenate(kept)
