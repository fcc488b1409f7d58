"""Networks in the forms a compiler likes: the same function and gradient; compiled for one batch only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from diffusers import UNet2DModel, VQModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from facexlib.parsing.bisenet import BiSeNet
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.stages.swap import wide_heads
from ldvid.stages.swap.face_parser import FaceParser, ParseDistance, Probabilities, resized
from ldvid.stages.swap.filters import enlarged
from ldvid.stages.swap.fused import (
    NearestCodes,
    PaddedConv,
    RowNorm,
    Stem,
    SubpixelUpsample,
    prepared,
)
from ldvid.stages.swap.unet import ResidualBlock, Shape
from ldvid.stages.swap.wide_heads import WideHeads
from torch import Tensor, nn


def same(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Values and gradients of two functions, at these inputs."""
    weight = torch.randn(theirs(x).shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    values, gradients = [], []
    for function in (ours, theirs):
        point = x.clone().requires_grad_(True)
        value = function(point)
        values.append(value.detach())
        gradients += torch.autograd.grad((value * weight).sum(), point)
    torch.testing.assert_close(*values, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=2e-5)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 999),
    batch=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    size=st.tuples(st.integers(1, 6), st.integers(2, 6)),
    last=st.booleans(),
    rows=st.booleans(),
)
def test_norms(seed: int, batch: int, groups: int, size: tuple[int, int], last: bool, rows: bool) -> None:
    torch.manual_seed(seed)
    norm = nn.GroupNorm(groups, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(batch, 8, *size) * 3 + 2
    x = x.flatten(2) if rows else x.to(memory_format=torch.channels_last) if last else x
    same(RowNorm(norm), norm, x)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), groups=st.sampled_from([1, 2, 4]))
def test_norms_of_what_should_have_been_raised(seed: int, groups: int) -> None:
    torch.manual_seed(seed)
    norm, offset = nn.GroupNorm(groups, 8), nn.Parameter(torch.randn(8), requires_grad=False)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 8, 5, 4) * 3 + 2
    same(RowNorm(norm, offset), lambda x: norm(x + offset[:, None, None]), x)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 999),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    channels=st.integers(1, 4),
    bias=st.booleans(),
)
def test_stems(seed: int, size: tuple[int, int], channels: int, bias: bool) -> None:
    torch.manual_seed(seed)
    layer = nn.Conv2d(channels, 32, 7, 2, 3, bias=bias)
    x = torch.randn(2, channels, 2 * size[0], 2 * size[1])
    same(Stem(layer), layer, x)
    same(Stem(layer), layer, x.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("theirs", [True, False])
def test_residual_blocks_without_a_bias(scale_shift: bool, theirs: bool) -> None:
    torch.manual_seed(0)
    block: nn.Module
    if theirs:
        kind = "scale_shift" if scale_shift else "default"
        block = ResnetBlock2D(in_channels=8, out_channels=16, temb_channels=12, groups=4, eps=1e-5,
                              time_embedding_norm=kind)  # fmt: skip
    else:
        block = ResidualBlock(8, 16, Shape(12, 8, 4, scale_shift))
    block.eval().requires_grad_(False)
    told = torch.randn(2, 12)
    changed = prepared(nn.ModuleList([copy.deepcopy(block)]))[0]  # type: ignore[index]
    assert changed.conv1.bias is None and block.conv1.bias is not None
    same(lambda x: changed(x, told), lambda x: block(x, told), torch.randn(2, 8, 6, 4))


def test_the_distance_of_parses() -> None:
    """In one module, the same as from the probabilities; of a picture of half the size too."""
    torch.manual_seed(0)
    parser = FaceParser(num_class=5).eval().requires_grad_(False)
    says = Probabilities(parser, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    target, weights = torch.rand(2, 5, 64, 64).softmax(1), torch.tensor([1.0, 2, 0, 1, 0.5])

    def apart(x: Tensor) -> Tensor:
        larger = F.interpolate(x, (64, 64), mode="bilinear") if x.shape[-1] < 64 else x
        return ((says(larger) - target) ** 2 * weights[:, None, None]).sum(1).mean((1, 2))

    distance = ParseDistance(says)
    for side in (64, 32):
        x = torch.rand(2, 3, side, side)
        same(lambda x: distance(x, target, weights, x.shape[-1] < 64), apart, x)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), size=st.tuples(st.integers(1, 6), st.integers(1, 6)), bias=st.booleans())
def test_upsampling(seed: int, size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(seed)
    layer = Upsample2D(5, use_conv=True, out_channels=3, bias=bias)
    ours = SubpixelUpsample(layer.conv)
    x = torch.randn(2, 5, *size)
    same(ours, layer, x)
    assert ours(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 32, 7, 2, 3), nn.Conv2d(32, 3, 3, 1, 1, bias=False)])
def test_padded_convolutions(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    same(PaddedConv(layer), layer, torch.randn(2, layer.in_channels, 9, 8))


def test_nearest_codes() -> None:
    torch.manual_seed(0)
    model: Any = VQModel(num_vq_embeddings=64, norm_num_groups=32, block_out_channels=(32,))
    model.quantize.embedding.weight.data.normal_()
    ours = NearestCodes(model.quantize.embedding.weight)
    same(lambda z: ours(z)[0], lambda z: model.quantize(z)[0], torch.randn(2, 3, 5, 4))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), small=st.integers(2, 7), large=st.integers(2, 30))
def test_resizing_by_products(seed: int, small: int, large: int) -> None:
    torch.manual_seed(seed)
    size = (large, large + 1)
    theirs = partial(F.interpolate, size=size, mode="bilinear", align_corners=True)
    same(partial(resized, size=size), theirs, torch.randn(2, 3, small, small + 1))


def test_the_parser_gives_the_first_of_three_heads() -> None:
    torch.manual_seed(0)
    parser = FaceParser(num_class=5).eval().requires_grad_(False)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(parser(x), BiSeNet.forward(parser, x)[0])
    same(prepared(copy.deepcopy(parser)), parser, x)
    other = copy.deepcopy(parser)
    other.separable = True
    same(other, parser, torch.randn(2, 3, 96, 64).to(memory_format=torch.channels_last))


@given(seed=st.integers(0, 999), size=st.tuples(st.integers(1, 9), st.integers(1, 9)), more=st.integers(0, 9))
def test_pictures_enlarged(seed: int, size: tuple[int, int], more: int) -> None:
    """As torch does it, and its gradient."""
    torch.manual_seed(seed)
    wide = (size[0] * 2 + more, size[1] + more)
    theirs = partial(F.interpolate, size=wide, mode="bilinear", align_corners=False)
    same(lambda x: enlarged(x, *wide), theirs, torch.randn(2, 3, *size))


def test_whole_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's architectures, small; every kind of exchange happens."""
    torch.manual_seed(0)
    monkeypatch.setattr(wide_heads, "WIDEST_HEAD", 16)
    vq: Any = VQModel(
        block_out_channels=(32, 32, 64), layers_per_block=1, latent_channels=3, sample_size=32,
        num_vq_embeddings=8, norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    unet: Any = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 64),
        attention_head_dim=32, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    for net, x in (
        (vq.decoder, torch.randn(2, 3, 8, 8)),
        (vq.encoder, torch.randn(2, 3, 32, 32)),
        (unet, torch.randn(2, 3, 8, 8)),
    ):
        net.eval().requires_grad_(False)
        exchanged = prepared(copy.deepcopy(net))
        kinds = {type(m) for m in exchanged.modules()}
        assert {RowNorm, PaddedConv} <= kinds and nn.GroupNorm not in kinds
        if net is not vq.encoder:
            assert SubpixelUpsample in kinds
        processors = [m.processor for m in exchanged.modules() if hasattr(m, "processor")]
        assert processors and all(isinstance(p, WideHeads) for p in processors)
        if net is unet:
            same(lambda z: exchanged(z, 3).sample, lambda z: net(z, 3).sample, x)  # noqa: B023
        else:
            same(exchanged, net, x)


def test_only_wide_heads_are_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_heads, "WIDEST_HEAD", 16)
    net: Any = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 64),
        attention_head_dim=32, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    net.eval().requires_grad_(False)
    before = [type(m.processor) for m in net.modules() if hasattr(m, "processor")]
    exchanged = wide_heads.with_wide_heads(copy.deepcopy(net))
    assert all(isinstance(m.processor, WideHeads) for m in exchanged.modules() if hasattr(m, "processor"))
    assert {type(m) for m in exchanged.modules()} == {type(m) for m in net.modules()}
    same(lambda z: exchanged(z, 3).sample, lambda z: net(z, 3).sample, torch.randn(2, 3, 8, 8))
    monkeypatch.setattr(wide_heads, "WIDEST_HEAD", 32)
    wide_heads.with_wide_heads(net)
    assert [type(m.processor) for m in net.modules() if hasattr(m, "processor")] == before
