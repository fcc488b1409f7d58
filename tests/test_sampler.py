"""Algorithm 1: its equations, against references and by property."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from ldvid.configs import GuidanceTerm
from ldvid.errors import SettingsError
from ldvid.stages.records import SourceFace
from ldvid.stages.swap import sampler
from ldvid.stages.swap.blend import at_level, blend, downsample_mask
from ldvid.stages.swap.guidance import (
    Context,
    Identity,
    Scheduled,
    SourcePicture,
    arcface_theta,
    build_terms,
    guidance_loss,
)
from ldvid.stages.swap.networks import Networks, to_tensor
from ldvid.stages.swap.noise import generator, standard_normal
from ldvid.stages.swap.sampler import (
    Sampling,
    clean_estimate,
    ddim_step,
    guidance_gradient,
    guided_swap,
    implied_noise,
)
from ldvid.stages.swap.schedule import alpha_bars, stepwise, timesteps
from torch import Tensor

CPU = torch.device("cpu")
FEW = Sampling(steps=3, start_level=0.4, preview=True)


@pytest.fixture(scope="module")
def context(networks: Networks, faces: tuple[SourceFace, SourceFace]) -> Context:
    """Two portraits as targets, each to become the other."""
    target = to_tensor(np.stack([f.image for f in faces]), CPU)
    with torch.no_grad():
        parse = networks.parse(target)
    mask = torch.zeros(2, 1, 256, 256)
    mask[:, :, 64:232, 56:200] = 1
    landmarks = np.stack([f.landmarks for f in faces])
    source = torch.from_numpy(np.stack([f.embedding for f in reversed(faces)]))
    theta = arcface_theta(landmarks, networks.identity_template(), 256, 112)
    points = torch.from_numpy(landmarks)
    picture = SourcePicture(target[:1], faces[0].landmarks)
    return Context(networks, source, target, parse, mask, theta, points, picture)


@pytest.fixture(scope="module")
def z0(context: Context) -> Tensor:
    with torch.no_grad():
        return context.networks.encode(context.target)


def terms(identity: float = 1.0, segmentation: float = 0.005) -> list[GuidanceTerm]:
    return [
        GuidanceTerm(term="identity", scale=identity),
        GuidanceTerm(term="segmentation", scale=segmentation),
    ]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_estimate_and_step_are_ddim(eta: float) -> None:
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=True, steps_offset=0, timestep_spacing="leading",
    )  # fmt: skip
    scheduler.set_timesteps(50)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    ours = alpha_bars(1000, "scaled_linear", 0.0015, 0.0195)
    np.testing.assert_allclose(ours.numpy(), scheduler.alphas_cumprod.numpy(), atol=1e-6)
    g = torch.Generator().manual_seed(0)
    z, eps, fresh = (torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=g) for _ in range(3))
    t = 480
    a, previous = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[t - 20]
    wanted = scheduler.step(eps, t, z, eta=eta, variance_noise=fresh if eta else None)
    clean = clean_estimate(z, eps, a)
    torch.testing.assert_close(clean, wanted.pred_original_sample, atol=1e-9, rtol=0)
    stepped = ddim_step(clean, eps, a, previous, eta, fresh if eta else None)
    torch.testing.assert_close(stepped, wanted.prev_sample, atol=1e-9, rtol=0)
    torch.testing.assert_close(implied_noise(z, clean, a), eps, atol=1e-9, rtol=0)


@given(st.floats(0.01, 1.0), st.integers(1, 200))
def test_timesteps_fall_from_k_to_the_bottom(level: float, steps: int) -> None:
    values = timesteps(1000, level, steps)
    assert values[0] == max(1, min(999, round(level * 1000)))
    assert all(a > b for a, b in itertools.pairwise(values))
    assert values[-1] >= 1
    assert len(values) <= steps


@given(st.floats(0, 0.999))
def test_lambda_never_rises(progress: float) -> None:
    schedule = ((0.5, 1.0), (0.8, 0.6), (1.0, 0.3))
    assert stepwise(schedule, progress) == (1.0 if progress < 0.5 else 0.6 if progress < 0.8 else 0.3)
    assert stepwise(((0.5, 1.0),), progress) == (1.0 if progress < 0.5 else 0.0)


def test_noise_is_keyed_and_nothing_else() -> None:
    def draw(**key: int) -> Tensor:
        chosen = {"seed": 1, "track": 2, "step": 3} | key
        return standard_normal((4, 8, 8), generator(purpose="start", **chosen))

    torch.manual_seed(5)
    first = draw()
    torch.manual_seed(6)
    assert torch.equal(first, draw())
    for key in ("seed", "track", "step"):
        assert not torch.equal(first, draw(**{key: 9})), key


def test_a_mask_of_zero_returns_the_target_itself(context: Context, z0: Tensor) -> None:
    m = torch.zeros(2, 1, *z0.shape[-2:])
    z = guided_swap(context, z0, torch.zeros_like(z0), m, build_terms(terms()), replace(FEW, step_size=0.1))
    assert torch.equal(z, z0)


def test_outside_the_mask_every_level_is_the_targets(context: Context, z0: Tensor) -> None:
    net = context.networks
    m = downsample_mask(context.mask, 8)
    noise = standard_normal(tuple(z0.shape[1:]), generator(0, 0, "start"))[None]
    ts = timesteps(1000, FEW.start_level, FEW.steps)
    seen: list[int] = []

    def check(step: int, z: Tensor) -> None:
        alpha_bar = net.alpha_bar[ts[step + 1]] if step + 1 < len(ts) else torch.ones(())
        outside = (m == 0).expand_as(z)
        assert torch.equal(z[outside], at_level(z0, noise, alpha_bar)[outside])
        assert not torch.equal(z[~outside], at_level(z0, noise, alpha_bar)[~outside])
        seen.append(step)

    guided_swap(context, z0, z0, m, build_terms(terms()), FEW, check)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("gradient", ["clean", "full"])
@pytest.mark.parametrize("step_size", [None, 0.2])
def test_guidance_moves_towards_the_source(
    context: Context, z0: Tensor, gradient: str, step_size: float | None
) -> None:
    m = downsample_mask(context.mask, 8)
    sampling = replace(FEW, gradient=gradient, step_size=step_size)  # type: ignore[arg-type]
    identity = build_terms(terms(40.0, 0.0))[:1]

    def loss(chosen: list[object]) -> Tensor:
        z = guided_swap(context, z0, z0, m, chosen, sampling)  # type: ignore[arg-type]
        with torch.no_grad():
            return identity[0].term.loss(context.networks.decode(z), context)

    guided, free = loss(list(identity)), loss([])
    assert (guided < free - 0.03).all(), (guided, free)


def test_segmentation_keeps_the_layout(context: Context, z0: Tensor) -> None:
    """From another face, its guidance brings the target's parse back."""
    start = z0.flip(0)
    m = downsample_mask(context.mask, 8)
    term = build_terms([GuidanceTerm(term="segmentation", scale=1.0)])

    def loss(chosen: list[Scheduled]) -> Tensor:
        z = guided_swap(context, z0, start, m, chosen, replace(FEW, step_size=0.2))
        with torch.no_grad():
            return term[0].term.loss(context.networks.decode(z), context)

    guided, free = loss(term), loss([])
    assert (guided < 0.8 * free).all(), (guided, free)


def test_jitter_moves_the_view_and_is_keyed(context: Context) -> None:
    plain, moved = Identity(), Identity(jitter=1.0)
    values = [
        moved.loss(context.target, replace(context, step=step, seed=seed))
        for step, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2]) and not torch.equal(values[0], values[3])
    assert (torch.stack(values) - plain.loss(context.target, context)).abs().max() < 0.3


def one_row(context: Context, i: int) -> Context:
    names = ("source", "target", "target_parse", "mask", "to_arcface", "landmarks")
    return replace(context, **{n: getattr(context, n)[i : i + 1] for n in names})


def test_networks_and_gradient_treat_rows_alone(context: Context, z0: Tensor) -> None:
    """float32 kernels may differ with the batch (the UNet's do, by 3e-6); nothing else may."""
    net, chosen = context.networks, build_terms(terms())
    guidance = guidance_gradient(z0, 400, net.alpha_bar[400], context, chosen, FEW, 0.0)
    assert guidance.gradient is not None
    with torch.no_grad():
        calls = [
            (lambda x: net.predict_noise(x, 400), z0), (net.decode, z0), (net.decode_preview, z0),
            (net.parse, context.target), (net.embed_aligned, context.target[..., 64:176, 72:184]),
        ]  # fmt: skip
        for call, x in calls:
            both = call(x)
            for i in range(2):
                torch.testing.assert_close(call(x[i : i + 1]), both[i : i + 1], atol=2e-5, rtol=1e-4)
    for i in range(2):
        clean = guidance.clean[i : i + 1].clone().requires_grad_(True)  # the same ẑ, not the UNet's again
        loss = guidance_loss(chosen, net.decode_preview(clean), one_row(context, i), 0.0)
        assert loss is not None
        (alone,) = torch.autograd.grad(loss.sum(), clean)
        assert (alone - guidance.gradient[i]).norm() < 1e-3 * alone.norm()


def test_a_batch_is_its_rows(context: Context, z0: Tensor) -> None:
    """Without guidance to rounding. With it, in the picture: the gradient of networks of ReLUs turns the
    UNet's 3e-6 into some 1e-3 in single latents, as it does any such change (batch of 3 = 3 of 1, exact
    to 1e-9 in float64: ``test_algorithm``)."""
    m = downsample_mask(context.mask, 8)
    sampling = replace(FEW, steps=2, step_size=0.045)
    for chosen, latents, grey in ((terms()[:0], 5e-5, 0.01), (terms(), 0.05, 0.05)):
        both = guided_swap(context, z0, z0, m, build_terms(chosen), sampling)
        rows = [
            guided_swap(one_row(context, i), z0[[i]], z0[[i]], m[[i]], build_terms(chosen), sampling)
            for i in range(2)
        ]
        alone = torch.cat(rows)
        torch.testing.assert_close(alone, both, atol=latents, rtol=0)
        with torch.no_grad():
            pictures = [context.networks.decode(z).clamp(0, 1) * 255 for z in (alone, both)]
        assert float((pictures[0] - pictures[1]).square().mean().sqrt()) < grey  # of 255; measured 0.005


@given(steps=st.integers(1, 30), every=st.integers(1, 40))
def test_every_nth_step_is_guided_counted_from_the_last(steps: int, every: int) -> None:
    sampling = replace(FEW, steps=steps, guidance_every=every)
    guided = [step for step in range(steps) if sampling.guides(step)]
    assert guided[-1] == steps - 1 and len(guided) == -(-steps // every)
    assert {b - a for a, b in itertools.pairwise(guided)} <= {every}


def test_steps_between_only_denoise(context: Context, z0: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(*values: Any) -> Tensor | None:
        seen.append(context.step)
        return guidance_loss(*values)

    monkeypatch.setattr(sampler, "guidance_loss", counted)
    m, chosen = downsample_mask(context.mask, 8), build_terms(terms())
    results = []
    for every, guided in ((1, [0, 1, 2]), (2, [0, 2]), (9, [2])):
        seen.clear()
        sampling = replace(FEW, step_size=0.05, guidance_every=every)
        results.append(guided_swap(context, z0, z0, m, chosen, sampling))
        assert seen == guided
    plain = guided_swap(context, z0, z0, m, build_terms([]), FEW)
    away = [float((r - plain).square().mean().sqrt()) for r in results]
    assert away[0] > away[1] > away[2] > 0


def test_masks_average_down_and_blends_are_exact_at_the_ends() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8, :4] = 1
    assert downsample_mask(mask, 8).flatten().tolist() == [0.5, 0, 0, 0]
    a, b = torch.randn(2, 1, 4, 2, 2).unbind()
    m = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(blend(a, b, m), torch.where(m.bool(), a, b))


def test_unknown_terms_and_parameters_are_named() -> None:
    with pytest.raises(
        SettingsError, match="term smile: no such term; there are geometry, identity, identity_crop"
    ):
        build_terms([GuidanceTerm(term="smile", scale=1)])
    with pytest.raises(SettingsError, match=r"guidance term identity: .*colour"):
        build_terms([GuidanceTerm.model_validate({"term": "identity", "scale": 1, "colour": 2})])
