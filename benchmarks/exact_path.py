"""The exact path of ``swap_speed``: a naive loop as plain code, and what each remedy brings.

Steps of preset ``paper`` at the paper's sizes, with random weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from ldvid.configs import load_settings
from ldvid.stages.swap.blend import downsample_mask
from ldvid.stages.swap.context import Context
from ldvid.stages.swap.drawn import Drawn
from ldvid.stages.swap.guidance import build_terms, parse_once
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import Pack
from ldvid.stages.swap.repeatable import repeatable
from ldvid.stages.swap.sampler import Sampling, guided_swap
from paper_step import make_context
from speed_rows import Bench, Row
from torch import Tensor

WIDE32 = 16  # frames a batch in float32, which takes twice the memory


def naive(net: Networks, context: Context, z0: Tensor, m: Tensor, steps: int) -> Tensor:
    """Algorithm 1 of the paper as one would first write it: one gradient a step, through everything."""
    with torch.no_grad():
        parse = net.parse(context.target)
    levels = torch.linspace(0.1, 0.9, steps + 1, device=z0.device)
    z = levels[0] ** 0.5 * z0 + (1 - levels[0]) ** 0.5 * torch.randn_like(z0)
    for alpha_bar, previous in itertools.pairwise(levels):
        z = z.detach().requires_grad_(True)
        noise = net.predict_noise(z, 500)
        x_hat = net.decode((z - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5)
        grid = F.affine_grid(context.to_arcface, [len(z), 3, 112, 112], align_corners=False)
        face = net.embed_aligned(F.grid_sample(x_hat, grid, align_corners=False, padding_mode="border"))
        loss = (1 - (face * context.source).sum(1)).sum() + ((net.parse(x_hat) - parse) ** 2).mean()
        (gradient,) = torch.autograd.grad(loss, z)
        with torch.no_grad():
            noise = noise + (1 - alpha_bar) ** 0.5 * gradient
            clean = (z - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5
            z = previous**0.5 * clean + (1 - previous) ** 0.5 * noise
            behind = previous**0.5 * z0 + (1 - previous) ** 0.5 * torch.randn_like(z0)
            z = m * z + (1 - m) * behind
    return z


def exact(pack: Pack, fast: Pack, bench: Bench) -> Iterator[Row]:
    """The naive loop and the rungs after it; ``fast`` has the guidance decoder of the last."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def prepared(net: Networks, batch: int) -> tuple[Context, Tensor, Tensor]:
        context = make_context(net, batch)
        context.drawn = Drawn(context.seed, context.track)  # made once, as by a job
        factor = net.manifest.autoencoder.downscale
        with torch.no_grad():
            return context, net.encode(context.target), downsample_mask(context.mask, factor)

    def ours(
        net: Networks, batch: int, gradient: str, *, preview: bool = False, recorded: bool = False
    ) -> Callable[[], object]:
        context, z0, m = prepared(net, batch)
        paper = load_settings("paper")
        kind = cast(Any, gradient)
        sampling = Sampling(bench.steps, paper.start_level, gradient=kind, preview=preview)
        if preview and (small := net.manifest.parser.guidance_size):
            with torch.no_grad():
                context.target_parse = net.parse(context.target, small)
        terms = build_terms(paper.guidance)

        def swapped(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
            # As a job does it on a GPU: whether all was finite is looked at in the end.
            verdicts: list[Tensor] | None = [] if recorded else None
            own = replace(context, verdicts=verdicts, parse_once=parse_once(terms))
            z = guided_swap(own, inputs["z0"], inputs["z0"], m, terms, sampling)
            return (z, torch.stack(own.verdicts).all()) if own.verdicts else (z,)

        def run() -> object:
            with repeatable():
                if recorded:
                    return net.recorder.run((gradient, preview), swapped, {"z0": z0})
                return swapped({"z0": z0})

        if recorded:
            run()  # it is recorded at its second run
        return run

    wide = bench.wide
    if not bench.warm and not bench.short:
        net = Networks.load(pack, bench.device.type, "float32")
        yield bench.row("naive loop, float32", partial(naive, net, *prepared(net, 1), bench.steps), 1)
        yield bench.row("ours, float32", ours(net, 1, "full"), 1)
        some = min(wide, WIDE32)
        yield bench.row("batches", ours(net, some, "full"), some)
    if not bench.warm:
        net = Networks.load(pack, bench.device.type, "bfloat16")
        yield bench.row("bfloat16", ours(net, wide, "full"), wide)
    net = Networks.load(pack, bench.device.type, "bfloat16", wide)
    yield bench.row("compiled, parts exchanged", ours(net, wide, "full"), wide)
    again = not bench.warm
    if again:
        yield bench.row("recorded", ours(net, wide, "full", recorded=True), wide)
    yield bench.row("clean gradient", ours(net, wide, "clean", recorded=again), wide)
    net = Networks.load(fast, bench.device.type, "bfloat16", wide)
    last = ours(net, wide, "clean", preview=True, recorded=again)
    yield bench.row("guidance decoder, parser at 256", last, wide)
