"""Algorithm 1 in float64, on networks small enough to check every number of it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from ldvid.configs import GuidanceTerm, load_settings
from ldvid.stages.swap.guidance import Context, Scheduled, SourcePicture, arcface_theta, build_terms
from ldvid.stages.swap.manifest import ParserEntry
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.noise import generator, standard_normal
from ldvid.stages.swap.sampler import Sampling, guidance_gradient, guide, guided_swap
from ldvid.stages.swap.schedule import alpha_bars, timesteps
from torch import Tensor

SIDE, LATENT, VIEW = 32, 4, 16
CLASSES = ("background", "skin", "eyes", "mouth")
PAPER = Sampling(steps=3, start_level=0.5, gradient="full")


class SmallNetworks:
    """The interface of ``Networks``, in float64 and smooth everywhere: latents (B, 3, 4, 4), crops 32²."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(7)

        def weights(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64) / np.sqrt(np.prod(shape[1:]))

        self.alpha_bar = alpha_bars(1000, "scaled_linear", 0.0015, 0.0195).double()
        self.device = torch.device("cpu")
        parser = ParserEntry(
            kind="bisenet",
            file="",
            size=SIDE,
            classes=CLASSES,
            face=CLASSES[1:],
            mean=(0, 0, 0),
            std=(1, 1, 1),
        )
        self.manifest = SimpleNamespace(identity=SimpleNamespace(size=VIEW), parser=parser)
        self._unet = weights(8, 3, 3, 3), weights(3, 8, 3, 3)
        self._decoder = weights(8, 3, 3, 3), weights(3, 8, 3, 3)
        self._identity = weights(8, 3, 3, 3), weights(6, 8 * 16)
        self._parser = 4 * weights(len(CLASSES), 3, 5, 5)

    def predict_noise(self, z: Tensor, t: int) -> Tensor:
        first, second = self._unet
        return z + F.conv2d(torch.tanh(F.conv2d(z, first, padding=1) + t / 500), second, padding=1)

    def decode(self, z: Tensor) -> Tensor:
        first, second = self._decoder
        up = F.interpolate(torch.tanh(F.conv2d(z, first, padding=1)), (SIDE, SIDE), mode="bilinear")
        return torch.sigmoid(2 * F.conv2d(up, second, padding=1))

    def decode_preview(self, z: Tensor) -> Tensor:
        return F.avg_pool2d(self.decode(z), 2)

    def embed_aligned(self, x: Tensor) -> Tensor:
        first, second = self._identity
        features = F.adaptive_avg_pool2d(torch.tanh(F.conv2d(x, first)), 4)
        return F.normalize(features.flatten(1) @ second.T, dim=1)

    def parse(self, x: Tensor, size: int | None = None) -> Tensor:
        if x.shape[-1] != SIDE:
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return F.conv2d(x - 0.5, self._parser, padding=2).softmax(1)

    def identity_template(self) -> np.ndarray:
        return np.float32([[5, 7], [10, 7], [7.5, 10], [6, 13], [9.5, 13]])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def net() -> SmallNetworks:
    return SmallNetworks()


@pytest.fixture(scope="module")
def context(net: SmallNetworks) -> Context:
    """Three different targets, one source."""
    target, landmarks = torch.sigmoid(draw(3, 3, SIDE, SIDE)), []
    for i in range(3):
        landmarks.append(np.float32([[11, 13], [21, 12], [16, 18], [12, 24], [20, 24]]) + i)
    points = np.stack(landmarks)
    theta = arcface_theta(points, net.identity_template(), SIDE, VIEW).double()
    source = F.normalize(draw(1, 6, seed=3), dim=1).expand(3, -1)
    picture = SourcePicture(torch.sigmoid(draw(1, 3, SIDE, SIDE, seed=4)), points[:1])
    mask = torch.ones(3, 1, SIDE, SIDE, dtype=torch.float64)
    return Context(
        cast(Networks, net), source, target, net.parse(target), mask, theta,
        torch.from_numpy(points).double(), picture, seed=5, track=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def z() -> Tensor:
    return draw(3, 3, LATENT, LATENT, seed=1)


def row(context: Context, i: int) -> Context:
    """The i-th picture alone."""
    names = ("source", "target", "target_parse", "mask", "to_arcface", "landmarks")
    return replace(context, **{n: getattr(context, n)[i : i + 1] for n in names})


def terms(*names: str, **parameters: Any) -> list[Scheduled]:
    scales = {"identity": 12.0, "segmentation": 0.3, "geometry": 20.0, "identity_crop": 5.0}
    return build_terms([GuidanceTerm(term=n, scale=scales[n], **parameters) for n in names])


def g_fac(
    net: SmallNetworks, z: Tensor, t: int, chosen: list[Scheduled], context: Context, at: str
) -> Tensor:
    """Lines 7–12 written out once more, as plainly as the paper has them; (B,)."""
    a = net.alpha_bar[t]
    clean = (z - torch.sqrt(1 - a) * net.predict_noise(z, t)) / torch.sqrt(a) if at == "full" else z
    x_hat = net.decode(clean)
    total = torch.zeros(len(z), dtype=z.dtype)
    for s in chosen:
        total = total + s.scale * s.term.loss(x_hat, context)
    return total


@pytest.mark.parametrize("gradient", ["full", "clean"])
@pytest.mark.parametrize(
    "names", [("identity", "segmentation"), ("geometry",), ("identity_crop",)], ids=lambda n: "+".join(n)
)
def test_the_gradient_is_the_finite_difference(
    net: SmallNetworks, context: Context, z: Tensor, gradient: str, names: tuple[str, ...]
) -> None:
    """Central differences of every coordinate; "clean" with respect to ẑ."""
    t, chosen = 480, terms(*names)
    sampling = replace(PAPER, gradient=gradient)  # type: ignore[arg-type]
    found = guidance_gradient(z, t, net.alpha_bar[t], context, chosen, sampling, 0.0)
    assert found.gradient is not None and found.gradient.dtype == torch.float64
    at = z if gradient == "full" else found.clean
    wanted, h = torch.zeros_like(at), 1e-5
    with torch.no_grad():
        for index in np.ndindex(*at.shape[1:]):
            step = torch.zeros_like(at)
            step[(slice(None), *index)] = h  # all pictures at once: no row depends on another
            up, down = (g_fac(net, at + s * step, t, chosen, context, gradient) for s in (1, -1))
            wanted[(slice(None), *index)] = (up - down) / (2 * h)
    length = wanted.norm()
    assert length > 1e-2
    assert (found.gradient - wanted).norm() < 1e-6 * length
    assert (found.gradient - wanted).abs().max() < 1e-6 * wanted.abs().max()


def test_one_step_is_lines_7_to_17(net: SmallNetworks, context: Context, z: Tensor) -> None:
    chosen, t = terms("identity", "segmentation"), 480
    a = net.alpha_bar[t]
    guidance = guidance_gradient(z, t, a, context, chosen, PAPER, 0.0)
    eps, clean = guide(z, guidance, a, torch.ones(1), chosen, PAPER, 0.0)
    leaf = z.clone().requires_grad_(True)
    (nabla,) = torch.autograd.grad(g_fac(net, leaf, t, chosen, context, "full").sum(), leaf)
    wanted = net.predict_noise(z, t) + torch.sqrt(1 - a) * nabla  # line 13
    torch.testing.assert_close(eps, wanted, rtol=1e-12, atol=1e-12)
    again = (z - torch.sqrt(1 - a) * wanted) / torch.sqrt(a)  # line 14
    torch.testing.assert_close(clean, again, rtol=1e-12, atol=1e-12)
    assert (eps - guidance.noise).norm() > 0.01 * eps.norm(), "guidance changed nothing"

    # The loop's own first step, from what it noised: lines 4, 15, 16, 17.
    m = draw(3, 1, LATENT, LATENT, seed=9).sigmoid()
    seen: list[Tensor] = []
    guided_swap(context, z, z, m, chosen, PAPER, lambda _, value: seen.append(value))
    noise = standard_normal((3, LATENT, LATENT), generator(context.seed, context.track, "start")).double()
    k, after = timesteps(1000, PAPER.start_level, PAPER.steps)[:2]
    a, b = net.alpha_bar[k], net.alpha_bar[after]
    zk = torch.sqrt(a) * z + torch.sqrt(1 - a) * noise
    leaf = zk.clone().requires_grad_(True)
    (nabla,) = torch.autograd.grad(g_fac(net, leaf, k, chosen, context, "full").sum(), leaf)
    eps = net.predict_noise(zk, k) + torch.sqrt(1 - a) * nabla
    clean = (zk - torch.sqrt(1 - a) * eps) / torch.sqrt(a)
    foreground = torch.sqrt(b) * clean + torch.sqrt(1 - b) * eps
    background = torch.sqrt(b) * z + torch.sqrt(1 - b) * noise
    torch.testing.assert_close(seen[0], foreground * m + background * (1 - m), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("background", ["previous", "start"])
def test_line_16_is_at_the_level_it_says(
    net: SmallNetworks, context: Context, z: Tensor, background: str
) -> None:
    """ "start" is as printed, and leaves the background noised to level k in the result."""
    sampling = replace(PAPER, background=background)  # type: ignore[arg-type]
    m = torch.zeros(3, 1, LATENT, LATENT, dtype=torch.float64)
    result = guided_swap(context, z, z, m, terms("identity"), sampling)
    if background == "previous":
        assert torch.equal(result, z)
        return
    noise = standard_normal((3, LATENT, LATENT), generator(5, 2, "start")).double()
    a = net.alpha_bar[500]
    torch.testing.assert_close(result, torch.sqrt(a) * z + torch.sqrt(1 - a) * noise)


def test_temperature_is_the_deviation_of_all_noise(context: Context, z: Tensor) -> None:
    """At 0 the draw makes no difference; in between, the start is noised by so much of what is drawn."""
    m = torch.ones(3, 1, LATENT, LATENT, dtype=torch.float64)
    other = replace(context, seed=context.seed + 1)
    for temperature, same in ((0.0, True), (0.5, False)):
        sampling = replace(PAPER, steps=6, eta=1.0, temperature=temperature)
        results = [guided_swap(c, z, z.flip(2), m, terms("identity"), sampling) for c in (context, other)]
        assert torch.equal(*results) == same
    left = replace(PAPER, background="start", temperature=0.3)
    result = guided_swap(context, z, z, 0 * m, terms("identity"), left)
    noise = standard_normal((3, LATENT, LATENT), generator(5, 2, "start")).double()
    a = context.networks.alpha_bar[500]
    torch.testing.assert_close(result, torch.sqrt(a) * z + torch.sqrt(1 - a) * 0.3 * noise)


@pytest.mark.parametrize("gradient", ["full", "clean"])
@pytest.mark.parametrize("step_size", [None, 0.1])
def test_a_batch_of_three_is_three_batches(
    context: Context, z: Tensor, gradient: str, step_size: float | None
) -> None:
    sampling = replace(PAPER, steps=6, eta=0.5, gradient=gradient, step_size=step_size)  # type: ignore[arg-type]
    chosen = terms("identity", "segmentation", "geometry", "identity_crop")
    m = draw(3, 1, LATENT, LATENT, seed=9).sigmoid()
    whole = guided_swap(context, z, z.flip(2), m, chosen, sampling)
    for i in range(3):
        part = slice(i, i + 1)
        alone = guided_swap(row(context, i), z[part], z.flip(2)[part], m[part], chosen, sampling)
        torch.testing.assert_close(alone, whole[part], atol=1e-9, rtol=1e-9)
    assert (whole - z).abs().max() > 0.1


def test_lambda_falls_as_the_paper_preset_says(net: SmallNetworks, context: Context, z: Tensor) -> None:
    """All 50 steps: λ is read back from what each step did to ẑ."""
    chosen = load_settings("paper")
    assert chosen.steps == 50
    wanted = {
        "identity": [2000.0] * 25 + [1200.0] * 15 + [600.0] * 10,
        "segmentation": [25.0] * 25 + [15.0] * 15 + [7.5] * 10,
    }
    assert [t.name for t in build_terms(chosen.guidance)] == list(wanted)

    class Linear:
        """A loss with gradient 1 in every latent."""

        def loss(self, x_hat: Tensor, context: Context) -> Tensor:
            return x_hat.sum((1, 2, 3))

    plain = cast(Any, SmallNetworks())
    plain.predict_noise = lambda z, t: torch.zeros_like(z)
    plain.decode = lambda z: z
    sampling = Sampling(chosen.steps, chosen.start_level, gradient="clean")
    m = torch.ones(3, 1, LATENT, LATENT, dtype=torch.float64)
    levels = [float(plain.alpha_bar[t]) for t in timesteps(1000, chosen.start_level, 50)] + [1.0]
    for scheduled in build_terms(chosen.guidance):
        line = Scheduled(scheduled.name, Linear(), scheduled.scale, scheduled.schedule)
        seen: list[Tensor] = []
        at = replace(context, networks=plain)
        guided_swap(at, z, z, m, [line], sampling, lambda _, value, seen=seen: seen.append(value))  # type: ignore[misc]
        assert len(seen) == 50
        for step in range(1, 50):
            a, b = levels[step], levels[step + 1]
            # z' = √b (z/√a − λ) + √(1−b) √a λ / √(1−a), ε being 0
            lam = (seen[step] - np.sqrt(b / a) * seen[step - 1]) / (
                np.sqrt((1 - b) * a / (1 - a)) - np.sqrt(b)
            )
            assert lam.mean().item() == pytest.approx(wanted[scheduled.name][step], rel=1e-6), step
        assert line.weight(0) == wanted[scheduled.name][0]


def test_float64_stays_float64(context: Context, z: Tensor) -> None:
    for preview in (False, True):
        sampling = replace(PAPER, eta=1.0, step_size=0.1, preview=preview)
        jittered = terms("identity", "identity_crop", jitter=1.0)
        m = torch.ones(3, 1, LATENT, LATENT, dtype=torch.float64)
        result = guided_swap(context, z, z, m, jittered, sampling)
        assert result.dtype == torch.float64 and result.isfinite().all()
