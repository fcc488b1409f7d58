"""Algorithm 1 of LDFaceNet (arXiv 2408.02078), on a batch of aligned crops.

Lines are those of Algorithm 1; α_t there is ᾱ_t of eq. 2. Line 3 (z_0 = E(x_targ)), 5 (m from M) and 19
(x̂_0 = D(z_0)) happen in ``stage``, which knows pictures; here are 4 and 6–18. Where the paper is silent or
slips, and what we chose: ``docs/method.md``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .blend import at_level, blend
from .guidance import Context, Scheduled, check_finite, guidance_loss
from .noise import standard_normal
from .repeatable import repeatable
from .schedule import timesteps
from .vq import VQAutoencoder

StepCallback = Callable[[int, Tensor], None]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to run the loop.

    ``start_level`` is k/T. ``temperature`` is the standard deviation of the noise, 1 in eq. 2; below it ẑ
    depends less on what was drawn. ``gradient``: "full" differentiates G with respect to z_t, through the
    UNet and the decoder (the paper); "clean" with respect to ẑ_0, through the decoder only (MPGD, arXiv
    2311.16424). ``step_size`` None uses the gradient as it is (the paper); a number scales it per
    picture so that ẑ_0 moves by λ-weighted ``step_size`` (RMS within the mask, in units of the latents'
    standard deviation): the direction comes from the networks, the length from us (after DSG, arXiv
    2402.03201), so that no frame burns and none stays untouched. ``preview`` guides through the cheap
    half-resolution decode. ``background`` "start" is line 16 as printed, with ᾱ_k at every step; it
    leaves the background noised to level k in the result. It is here to be measured, no setting leads
    to it; "previous" (ᾱ_{t−1}) is what §4.3 describes. ``conditioning`` "cfg" leaves
    lines 9–14 out and steers by the identity the UNet is told, ``cfg_scale`` times as far (§5.2 of the
    paper); "both" does both. ``guidance_every`` n guides every n-th step, the last for certain: the cost
    of a step is mostly its terms'.
    """

    steps: int
    start_level: float
    eta: float = 0.0
    temperature: float = 1.0
    gradient: Literal["full", "clean"] = "clean"
    step_size: float | None = None
    preview: bool = False
    background: Literal["previous", "start"] = "previous"
    conditioning: Literal["gradient", "cfg", "both"] = "gradient"
    cfg_scale: float = 1.0
    guidance_every: int = 1

    def guides(self, step: int) -> bool:
        """Whether this step of the loop, counted from 0, is guided by the terms."""
        return (self.steps - 1 - step) % self.guidance_every == 0


class Guidance(NamedTuple):
    """What lines 7–12 give: ε_t, ẑ, and ∇G_fac (None where every λ is 0), each (B, C, h, w)."""

    noise: Tensor
    clean: Tensor
    gradient: Tensor | None


def clean_estimate(z: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Lines 8 and 14: ẑ = (z_t − √(1−ᾱ_t) ε) / √ᾱ_t."""
    return (z - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5


def implied_noise(z: Tensor, clean: Tensor, alpha_bar: Tensor) -> Tensor:
    """Line 8 solved for ε: the noise that a changed ẑ implies."""
    return (z - alpha_bar**0.5 * clean) / (1 - alpha_bar) ** 0.5


def ddim_step(
    clean: Tensor, noise: Tensor, alpha_bar: Tensor, previous: Tensor, eta: float, fresh: Tensor | None
) -> Tensor:
    """Line 15: DDIM from ᾱ_t to ᾱ_{t−1} (``previous``), Σ = σ = η √((1−ᾱ')/(1−ᾱ)) √(1−ᾱ/ᾱ')."""
    sigma = eta * ((1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous)).clamp(min=0) ** 0.5
    step = previous**0.5 * clean + (1 - previous - sigma**2).clamp(min=0) ** 0.5 * noise
    return step if fresh is None else step + sigma * fresh


def predicted_noise(z: Tensor, t: int, context: Context, sampling: Sampling) -> Tensor:
    """Line 7: ε_θ(z_t, t), or ε_θ(z_t, t, identity) where the UNet is to be told whose face it is."""
    if sampling.conditioning == "gradient":
        return context.networks.predict_noise(z, t)
    return context.networks.predict_noise(z, t, context.source, sampling.cfg_scale)


def guidance_gradient(
    z: Tensor,
    t: int,
    alpha_bar: Tensor,
    context: Context,
    terms: Sequence[Scheduled],
    sampling: Sampling,
    progress: float,
) -> Guidance:
    """Lines 7–12, and ∇G_fac of line 13: with respect to z_t, or to ẑ (``sampling.gradient``).

    Args:
        z: z_t, (B, C, h, w); its type (float32, or float64 with networks of that type) is kept.
        t: the timestep the UNet is told. ``alpha_bar`` is ᾱ_t.
        progress: share of steps done, which λ(t) depends on.

    Raises:
        SettingsError: a term's loss or gradient can't be used (named).
    """
    guided = (
        sampling.conditioning != "cfg"
        and sampling.guides(context.step)
        and any(s.weight(progress) > 0 for s in terms)
    )
    through_unet = guided and sampling.gradient == "full"
    with torch.set_grad_enabled(through_unet):
        if through_unet:
            z = z.detach().requires_grad_(True)
        noise = predicted_noise(z, t, context, sampling)  # line 7: ε_t = ε_θ(z_t, t)
        clean = clean_estimate(z, noise, alpha_bar)  # line 8: ẑ
    if not guided:
        return Guidance(noise, clean, None)
    decode = context.networks.decode_preview if sampling.preview else context.networks.decode
    with torch.enable_grad():
        wrt = z if through_unet else clean.requires_grad_(True)
        x_hat = decode(clean)  # line 9: x̂ = D(ẑ)
        loss = guidance_loss(terms, x_hat, context, progress)  # lines 10–12: G_fac, eq. 3–5
        assert loss is not None
        (gradient,) = torch.autograd.grad(loss.sum(), wrt, allow_unused=True)  # ∇G_fac
    check_finite(loss, gradient, terms, x_hat, context, progress)
    return Guidance(noise.detach(), clean.detach(), gradient)


def _gradient_length(gradient: Tensor, m: Tensor) -> Tensor:
    """RMS per picture over the masked latents, (B, 1, 1, 1)."""
    weight = m.expand_as(gradient)
    square = (gradient**2 * weight).sum((1, 2, 3), keepdim=True) / weight.sum((1, 2, 3), keepdim=True).clamp(
        min=1
    )
    return square.sqrt().clamp(min=1e-12)


def guide(
    z: Tensor,
    guidance: Guidance,
    alpha_bar: Tensor,
    m: Tensor,
    terms: Sequence[Scheduled],
    sampling: Sampling,
    progress: float,
) -> tuple[Tensor, Tensor]:
    """Lines 13 and 14: the guided ε_t, and the ẑ that follows from it."""
    noise, clean, gradient = guidance
    if gradient is None:
        return noise, clean
    if sampling.gradient == "full" and sampling.step_size is None:
        noise = noise + (1 - alpha_bar) ** 0.5 * gradient  # line 13: ε_t + √(1−ᾱ_t) ∇G_fac
        return noise, clean_estimate(z, noise, alpha_bar)  # line 14
    # Beyond the paper: ẑ is moved, and ε_t follows from it.
    if sampling.step_size is not None:
        decay = max(s.weight(progress) / s.scale for s in terms if s.scale > 0)
        gradient = gradient * (sampling.step_size * decay / _gradient_length(gradient, m))
    clean = clean - gradient
    return implied_noise(z, clean, alpha_bar), clean


def _repeatable(
    z: Tensor, context: Context, terms: Sequence[Scheduled], sampling: Sampling
) -> contextlib.AbstractContextManager[None]:
    """Strictly so on a GPU where a gradient passes through attention, unless a term is the user's own, of
    which nobody knows whether it can be."""
    attends = z.is_cuda and (
        sampling.gradient == "full" or isinstance(context.networks.autoencoder, VQAutoencoder)
    )
    if attends and all(s.file is None for s in terms):
        return repeatable(strict=True)
    return contextlib.nullcontext()


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
        z0: the target's latents E(x_targ) (line 3), (B, C, h, w), normalised, float32.
        start: what is noised to level k: ``z0`` in the paper, or a better guess of the result.
        m: the latent mask (line 5), (B, 1, h, w) in [0, 1], 1 where the face is replaced.
        terms: the guidance losses; none at all is plain regeneration of the masked region.
        callback: called after every step with its index and z_{t−1}.

    Raises:
        SettingsError: a term's loss or gradient can't be used.
    """
    with _repeatable(z0, context, terms, sampling):
        normal = partial(standard_normal, tuple(z0.shape[1:]))
        noise = context.random("start", normal)[None].to(z0) * sampling.temperature
        ts = timesteps(len(context.networks.alpha_bar), sampling.start_level, sampling.steps)
        levels = [*(context.networks.alpha_bar[t] for t in ts), torch.ones((), device=z0.device)]
        # Line 4: z_k ~ q(z_k | start), the background being the target's whatever the start.
        z = blend(at_level(start, noise, levels[0]), at_level(z0, noise, levels[0]), m)
        for step, t in enumerate(ts):  # line 6: for t from k to 1
            context.step = step
            alpha_bar, previous = levels[step], levels[step + 1]
            progress = step / len(ts)
            guidance = guidance_gradient(z, t, alpha_bar, context, terms, sampling, progress)  # lines 7–12
            eps, clean = guide(z, guidance, alpha_bar, m, terms, sampling, progress)  # lines 13–14
            fresh = None
            if sampling.eta > 0 and step + 1 < len(ts):
                fresh = context.random("step", normal, step)[None].to(z0) * sampling.temperature
            foreground = ddim_step(clean, eps, alpha_bar, previous, sampling.eta, fresh)  # line 15
            level = previous if sampling.background == "previous" else levels[0]
            background = at_level(z0, noise, level)  # line 16, eq. 2; printed there: level k
            z = blend(foreground, background, m)  # line 17, eq. 6
            if callback is not None:
                callback(step, z)
    return z  # line 18: end for
