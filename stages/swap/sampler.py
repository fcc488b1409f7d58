"""Algorithm 1 of LDFaceNet (arXiv 2408.02078), on a batch of aligned crops.

Where the paper is silent or slips, and what we chose: ``docs/method.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .blend import at_level, blend
from .guidance import Context, Scheduled, guidance_loss
from .noise import latent_noise
from .schedule import timesteps

StepCallback = Callable[[int, Tensor], None]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to run the loop.

    ``start_level`` is k/T. ``gradient``: "full" differentiates G with respect to z_t, through the UNet
    and the decoder (the paper); "clean" with respect to ẑ_0, through the decoder only (MPGD, arXiv
    2311.16424). ``step_size`` None uses the gradient as it is (the paper); a number scales it per
    picture so that ẑ_0 moves by λ-weighted ``step_size`` (RMS within the mask, in units of the latents'
    standard deviation): the direction comes from the networks, the length from us (after DSG, arXiv
    2402.03201), so that no frame burns and none stays untouched. ``preview`` guides through the cheap
    half-resolution decode.
    """

    steps: int
    start_level: float
    eta: float = 0.0
    gradient: Literal["full", "clean"] = "clean"
    step_size: float | None = None
    preview: bool = False


def clean_estimate(z: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Line 8: ẑ_0 = (z_t − √(1−ᾱ_t) ε) / √ᾱ_t."""
    return (z - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5


def implied_noise(z: Tensor, clean: Tensor, alpha_bar: Tensor) -> Tensor:
    """Line 8 solved for ε: the noise that a changed ẑ_0 implies."""
    return (z - alpha_bar**0.5 * clean) / (1 - alpha_bar) ** 0.5


def ddim_step(
    clean: Tensor, noise: Tensor, alpha_bar: Tensor, previous: Tensor, eta: float, fresh: Tensor | None
) -> Tensor:
    """Line 15: DDIM from ᾱ_t to ᾱ_{t−1} (``previous``), σ = η √((1−ᾱ')/(1−ᾱ)) √(1−ᾱ/ᾱ')."""
    sigma = eta * ((1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous)).clamp(min=0) ** 0.5
    step = previous**0.5 * clean + (1 - previous - sigma**2).clamp(min=0) ** 0.5 * noise
    return step if fresh is None else step + sigma * fresh


def _gradient_length(gradient: Tensor, m: Tensor) -> Tensor:
    """RMS per picture over the masked latents, (B, 1, 1, 1)."""
    weight = m.expand_as(gradient)
    square = (gradient**2 * weight).sum((1, 2, 3), keepdim=True) / weight.sum((1, 2, 3), keepdim=True).clamp(
        min=1
    )
    return square.sqrt().clamp(min=1e-12)


def guided_swap(
    context: Context,
    z0: Tensor,
    start: Tensor,
    m: Tensor,
    terms: Sequence[Scheduled],
    sampling: Sampling,
    callback: StepCallback | None = None,
) -> Tensor:
    """Run Algorithm 1; returns the swapped latents z_0, like ``z0``.

    Args:
        context: what the terms look at, and (seed, track), the key of all noise.
        z0: the target's latents E(x_targ), (B, C, h, w), normalised, float32.
        start: what is noised to level k: ``z0`` in the paper, or a better guess of the result.
        m: the latent mask (B, 1, h, w) in [0, 1], 1 where the face is replaced.
        terms: the guidance losses; none at all is plain regeneration of the masked region.
        callback: called after every step with its index and z_{t−1}.
    """
    net = context.networks
    key = {"seed": context.seed, "track": context.track}
    shape = tuple(z0.shape[1:])
    noise = latent_noise(shape, z0.device, purpose="start", **key)[None]
    ts = timesteps(len(net.alpha_bar), sampling.start_level, sampling.steps)
    one = torch.ones((), device=z0.device)
    levels = [net.alpha_bar[t] for t in ts] + [one]
    z = blend(at_level(start, noise, levels[0]), at_level(z0, noise, levels[0]), m)  # line 4
    decode = net.decode_preview if sampling.preview else net.decode
    for step, t in enumerate(ts):
        context.step = step
        alpha_bar, previous = levels[step], levels[step + 1]
        progress = step / len(ts)
        guided = any(s.weight(progress) > 0 for s in terms)
        through_unet = guided and sampling.gradient == "full"
        with torch.set_grad_enabled(through_unet):
            if through_unet:
                z = z.detach().requires_grad_(True)
            eps = net.predict_noise(z, t)  # line 7
            clean = clean_estimate(z, eps, alpha_bar)  # line 8
        if guided:
            with torch.enable_grad():
                wrt = z if through_unet else clean.requires_grad_(True)
                loss = guidance_loss(terms, decode(clean), context, progress)  # lines 9–12, eq. 3–5
                assert loss is not None
                (gradient,) = torch.autograd.grad(loss.sum(), wrt)
            z, eps, clean = z.detach(), eps.detach(), clean.detach()
            if sampling.step_size is not None:
                decay = max(s.weight(progress) / s.scale for s in terms if s.scale > 0)
                gradient = gradient * (sampling.step_size * decay / _gradient_length(gradient, m))
            if through_unet and sampling.step_size is None:
                eps = eps + (1 - alpha_bar) ** 0.5 * gradient  # line 13
                clean = clean_estimate(z, eps, alpha_bar)  # line 14
            else:
                clean = clean - gradient
                eps = implied_noise(z, clean, alpha_bar)
        fresh = None
        if sampling.eta > 0 and step + 1 < len(ts):
            fresh = latent_noise(shape, z0.device, purpose="step", step=step, **key)[None]
        foreground = ddim_step(clean, eps, alpha_bar, previous, sampling.eta, fresh)  # line 15
        z = blend(foreground, at_level(z0, noise, previous), m)  # lines 16–17, eq. 2 and 6
        if callback is not None:
            callback(step, z)
    return z
