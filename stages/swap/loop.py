"""One batch of the guided swap: what of Algorithm 1 lies on the networks' device."""

from __future__ import annotations

import torch
from torch import Tensor

from ...configs import Settings
from . import device_colour
from .blend import downsample_mask
from .context import Context, SourcePicture
from .drawn import Drawn
from .guidance import build_terms, parse_once
from .networks import Networks
from .sampler import Sampling, guided_swap


class Loop:
    """The loop that settings ask for, with these networks.

    Raises, when it is made:
        SettingsError: as ``build_terms``.
    """

    def __init__(self, networks: Networks, settings: Settings) -> None:
        self.networks, self.settings = networks, settings
        self.terms = build_terms(settings.guidance)
        self.sampling = Sampling(
            steps=settings.steps,
            start_level=settings.start_level,
            eta=settings.eta,
            temperature=settings.temperature,
            gradient=settings.gradient,
            step_size=settings.step_size,
            preview=settings.guidance_decoder == "preview",
            conditioning=settings.conditioning,
            cfg_scale=settings.cfg_scale,
            guidance_every=settings.guidance_every,
        )

    @property
    def parse_size(self) -> int | None:
        """What x̂ is parsed at, where that isn't the size of the masks' parses."""
        return self.networks.manifest.parser.guidance_size if self.sampling.preview else None

    def sampled(
        self,
        inputs: dict[str, Tensor],
        track: int,
        picture: SourcePicture,
        *,
        verdicts: bool,
        matched: bool,
        drawn: Drawn | None = None,
    ) -> tuple[Tensor, ...]:
        """The swapped batch (B, S, S, 3) in [0, 255] of what ``SwapStage`` gathers, on the networks' device.

        With ``verdicts`` it never waits for the device: a second value says whether all it met was finite.
        ``matched``: with the target's colours, which on a processor come after it.
        """
        net = self.networks
        with torch.no_grad():
            target = _planes(inputs["images"])
            mask = inputs["masks"][:, None]
            z0 = net.encode(target)  # line 3 of Algorithm 1: z_0 = E(x_targ)
            start, latent_mask = z0, mask
            if "starts" in inputs:
                start = net.encode(_planes(inputs["starts"]))
                latent_mask = mask * (1 - inputs["kept"][:, None] * self.settings.start_hold)
            parse = inputs["parses"] if "parses" in inputs else net.parse(target, self.parse_size)
        context = Context(
            networks=net,
            source=inputs["sources"],
            target=target,
            target_parse=parse,
            mask=mask,
            to_arcface=inputs["theta"],
            landmarks=inputs["landmarks"],
            source_picture=picture,
            seed=self.settings.seed,
            track=track,
            drawn=drawn,
            verdicts=[] if verdicts else None,
            parse_once=parse_once(self.terms),
        )
        m = downsample_mask(latent_mask, net.manifest.autoencoder.downscale)  # line 5
        z = guided_swap(context, z0, start, m, self.terms, self.sampling)  # lines 4 and 6–18
        with torch.no_grad():
            swapped = net.decode(z).clamp(0, 1) * 255  # line 19: x̂_0 = D(z_0)
            if matched:
                strength = self.settings.colour_match
                swapped = device_colour.match_colour(swapped, target * 255, inputs["masks"], strength)
        swapped = swapped.permute(0, 2, 3, 1).contiguous()
        return (swapped, torch.stack(context.verdicts).all()) if context.verdicts else (swapped,)


def _planes(pictures: Tensor) -> Tensor:
    """(B, S, S, 3) in [0, 255] → (B, 3, S, S) float32 in [0, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 255
