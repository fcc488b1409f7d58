"""The diffusion model's loss and averages, apart from where its data comes from."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Generator, Tensor, nn

from ..stages.swap.identity_unet import IdentityUNet


def target_of(prediction: str, z0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """What the UNet is to say of √ᾱ z_0 + √(1−ᾱ) ε: ε, or v = √ᾱ ε − √(1−ᾱ) z_0."""
    return noise if prediction == "epsilon" else alpha_bar**0.5 * noise - (1 - alpha_bar) ** 0.5 * z0


def clean_of(prediction: str, z: Tensor, predicted: Tensor, alpha_bar: Tensor) -> Tensor:
    """ẑ_0 from z_t and what the UNet said of it."""
    if prediction == "epsilon":
        return (z - (1 - alpha_bar) ** 0.5 * predicted) / alpha_bar**0.5
    return alpha_bar**0.5 * z - (1 - alpha_bar) ** 0.5 * predicted


def loss_weight(prediction: str, alpha_bar: Tensor, gamma: float) -> Tensor:
    """Min-SNR-γ (arXiv 2303.09556): min(SNR, γ) times ẑ_0's squared error, in terms of what is predicted."""
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


def masked_loss(predicted: Tensor, wanted: Tensor, covered: Tensor, weight: Tensor) -> Tensor:
    """Weighted squared error over what the photo covers: (B, C, h, w) twice, (B, 1, h, w), (B,) → scalar.

    ``covered`` may count some of it more than once.
    """
    mask = covered.float()
    square = ((predicted - wanted) ** 2 * mask).mean((1, 2, 3)) / mask.mean((1, 2, 3)).clamp(min=0.2)
    return (square * weight).mean()


class Average:
    """Power-function average of weights (arXiv 2312.02696, eq. 123–127): its length grows with the training.

    ``sigma`` is its width as a share of the training so far. Unlike an exponential average of a fixed
    length it neither remembers the first random weights nor must be tuned to the number of steps.
    """

    def __init__(self, network: nn.Module, sigma: float) -> None:
        self.gamma = _gamma(sigma)
        self.tensors = [p.detach().clone() for p in network.parameters()]

    @torch.no_grad()
    def reset(self, parameters: Iterable[Tensor]) -> None:
        """Begin with these."""
        for own, parameter in zip(self.tensors, parameters, strict=True):
            own.copy_(parameter)

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor], step: int) -> None:
        """After step ``step``, counted from 1."""
        keep = (1 - 1 / step) ** (self.gamma + 1)
        torch._foreach_lerp_(self.tensors, [p.detach() for p in parameters], 1 - keep)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Put the averages into a network of the same make."""
        for own, average in zip(network.parameters(), self.tensors, strict=True):
            own.copy_(average)


def _gamma(sigma: float) -> float:
    """γ of the power function t^γ whose relative standard deviation is ``sigma``, by bisection."""
    if not 0 < sigma < 0.28:
        raise ValueError(f"an average's width is a share between 0 and 0.28, got {sigma}")
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        width = ((middle + 1) / ((middle + 2) ** 2 * (middle + 3))) ** 0.5
        low, high = (middle, high) if width > sigma else (low, middle)
    return (low + high) / 2


@torch.no_grad()
def sample(
    network: IdentityUNet,
    shape: tuple[int, ...],
    alpha_bar: Tensor,
    prediction: str,
    generator: Generator,
    *,
    steps: int,
    identity: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Latents (B, C, h, w) from noise alone by DDIM (η = 0), of nobody in particular or of ``identity``."""
    device = generator.device
    z = torch.randn(shape, generator=generator, device=device)
    levels = torch.linspace(len(alpha_bar) - 1, 0, steps + 1, device=device).round().long()[:-1]
    for index, t in enumerate(levels):
        a = alpha_bar[t]
        step = t.expand(len(z))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            said = network(z, step, identity).float()
            if identity is not None and scale != 1:
                nobody = network(z, step, None).float()
                said = nobody + scale * (said - nobody)
        clean = clean_of(prediction, z, said, a)
        noise = (z - a**0.5 * clean) / (1 - a) ** 0.5
        last = index + 1 == len(levels)
        b = torch.ones_like(a) if last else alpha_bar[levels[index + 1]]
        z = b**0.5 * clean + (1 - b) ** 0.5 * noise
    return z
