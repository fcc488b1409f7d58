"""The UNet without diffusers is diffusers' to the bit: weights, values, gradients, and a network's start."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import Any, cast

import pytest
import torch
from diffusers import UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.stages.swap.fused import PaddedConv, RowNorm, SubpixelUpsample, prepared
from ldvid.stages.swap.identity_unet import IdentityUNet
from ldvid.stages.swap.loaders import load_quantised, load_unet
from ldvid.stages.swap.pack import Pack
from ldvid.stages.swap.unet import Attention, UNet, Upsample, build_unet
from ldvid.stages.swap.wide_heads import WIDEST_HEAD
from torch import Tensor, nn

SMALL: dict[str, Any] = {
    "sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1,
    "block_out_channels": [32, 64], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


def diffusers_own(arguments: dict[str, Any]) -> Any:
    return cast(Any, UNet2DModel)(**arguments)


@st.composite
def architectures(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments as packs have them, of small networks."""
    head = draw(st.sampled_from([8, 32]))
    levels = draw(st.integers(1, 3))
    attend = draw(st.lists(st.booleans(), min_size=levels, max_size=levels))
    back = draw(st.one_of(st.just(attend[::-1]), st.lists(st.booleans(), min_size=levels, max_size=levels)))
    channels = draw(st.sampled_from([3, 16]))
    return {
        "sample_size": 8, "in_channels": channels, "out_channels": draw(st.sampled_from([channels, 4])),
        "layers_per_block": draw(st.integers(1, 2)),
        # With 40 channels and a head of 32 the heads don't make up all channels.
        "block_out_channels": draw(st.lists(st.sampled_from([32, 40, 64]), min_size=levels, max_size=levels)),
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attend],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in back],
        "attention_head_dim": head, "norm_num_groups": draw(st.sampled_from([4, 8])),
        "resnet_time_scale_shift": draw(st.sampled_from(["default", "scale_shift"])),
        "class_embed_type": draw(st.sampled_from([None, "identity"])),
    }  # fmt: skip


def results(net: Any, x: Tensor, t: Any, told: Tensor | None) -> list[Tensor]:
    """A network's output, and the gradients of its squares' sum by z, what it was told, and all weights."""
    points = [p.detach().clone().requires_grad_(True) for p in (x, told) if p is not None]
    net.zero_grad()
    out = net(points[0], t, *points[1:]).sample
    wanted = [*points, *net.parameters()]
    return [out.detach(), *torch.autograd.grad((out.float() ** 2).sum(), wanted)]


@settings(max_examples=40)
@given(
    arguments=architectures(),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    last=st.booleans(),
    training=st.booleans(),
    t=st.one_of(st.integers(0, 999), st.sampled_from(["0-d", "one", "each", "float"])),
)
def test_it_is_diffusers_own_to_the_bit(
    arguments: dict[str, Any], seed: int, dtype: torch.dtype, last: bool, training: bool, t: int | str
) -> None:
    torch.manual_seed(seed)
    theirs = diffusers_own(arguments)
    torch.manual_seed(seed)
    ours: Any = build_unet(arguments)
    assert type(ours) is UNet
    state, mine = theirs.state_dict(), ours.state_dict()
    assert list(mine) == list(state)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert all(torch.equal(mine[name], state[name]) for name in state), "another random start"
    for parameter in theirs.parameters():  # norms begin as 1 and 0, which hides what they do
        nn.init.normal_(parameter, std=0.2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    layout = torch.channels_last if last else torch.contiguous_format
    for net in (ours, theirs):
        nn.Module.to(net, dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
        net.train(training)
    x = torch.randn(2, arguments["in_channels"], 8, 12).to(dtype, memory_format=layout)
    told = None
    if arguments["class_embed_type"] is not None:
        told = torch.randn(2, 4 * arguments["block_out_channels"][0]).to(dtype)
    steps = {
        "0-d": torch.tensor(seed), "one": torch.tensor([seed]), "each": torch.tensor([seed, 999 - seed]),
        "float": torch.tensor([seed + 0.25, 3.5]),
    }  # fmt: skip
    at = steps[t] if isinstance(t, str) else t
    for a, b in zip(results(ours, x, at, told), results(theirs, x, at, told), strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    with torch.no_grad():
        assert torch.equal(*(net(x, at, told).sample for net in (ours, theirs)))


@torch.no_grad()
@pytest.mark.parametrize("batch", [63, 64])
def test_a_batch_of_many_is_upsampled_in_the_layout_that_diffusers_chooses(batch: int) -> None:
    torch.manual_seed(0)
    theirs = diffusers_own(SMALL)
    ours: Any = build_unet(SMALL)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(batch, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    values, strides = [], []
    for net in (ours, theirs):
        nn.Module.to(net, memory_format=torch.channels_last)  # type: ignore[call-overload]
        upsampling = net.up_blocks[0].upsamplers[0].conv
        upsampling.register_forward_pre_hook(lambda _, inputs: strides.append(inputs[0].stride()))
        values.append(net(x, 1).sample)
    assert torch.equal(*values)
    assert strides[0] == strides[1] and (strides[0][1] == 1) == (batch < 64)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_starter_pack_says_what_it_said_with_diffusers(pack: Pack, dtype: torch.dtype) -> None:
    entry = pack.manifest.unet
    ours, mean, std = load_unet(pack)
    assert isinstance(ours, IdentityUNet) and type(ours.unet) is UNet
    theirs = IdentityUNet(entry.arguments, ours.dimensions)  # type: ignore[union-attr]
    theirs.unet = diffusers_own(entry.arguments | {"class_embed_type": "identity"})  # type: ignore[union-attr]
    state = load_quantised(pack.path(entry.file))  # type: ignore[union-attr]
    assert torch.equal(mean, state.pop("latent_mean")) and torch.equal(std, state.pop("latent_std"))
    theirs.load_state_dict(state)
    for net in (ours, theirs):
        nn.Module.to(net.eval(), dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    random = torch.Generator().manual_seed(0)
    z = torch.randn(2, len(mean), 32, 32, generator=random).to(dtype)
    who = nn.functional.normalize(torch.randn(2, ours.dimensions, generator=random), dim=1)
    t = torch.tensor([130, 700])
    for identity in (None, who):
        assert torch.equal(ours(z, t, identity), theirs(z, t, identity))


@pytest.mark.parametrize(
    "other",
    [
        {"down_block_types": ["DownBlock2D", "ResnetDownsampleBlock2D"]},
        {"up_block_types": ["SkipUpBlock2D", "UpBlock2D"]},
        {"act_fn": "gelu"},
        {"block_out_channels": [32, 2 * WIDEST_HEAD], "attention_head_dim": 2 * WIDEST_HEAD},
        {"attention_head_dim": None},
        {"class_embed_type": "timestep"},
        {"num_class_embeds": 3},
        {"block_out_channels": [33, 66], "norm_num_groups": 3},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_it_does_not_know_is_left_to_diffusers(other: dict[str, Any]) -> None:
    with torch.device("meta"):
        assert type(build_unet(SMALL | other)) is UNet2DModel


def test_arguments_that_fit_together_nowhere_are_diffusers_to_refuse() -> None:
    with pytest.raises(ValueError, match="same number"):
        build_unet(SMALL | {"down_block_types": ["DownBlock2D"]})


def test_embeddings_are_needed_where_it_takes_them_and_only_there() -> None:
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="class_labels are needed"):
        build_unet(SMALL, class_embed_type="identity")(x, 0)
    with pytest.raises(ValueError, match="class_labels are not taken"):
        build_unet(SMALL)(x, 0, torch.zeros(1, 128))


def test_prepared_for_a_compiler_it_is_what_diffusers_is() -> None:
    """The same exchanges as in diffusers' own, which give the same numbers; and compiled, as far as it goes
    without a code generator."""
    torch.manual_seed(0)
    theirs = diffusers_own(SMALL).eval().requires_grad_(False)
    ours = build_unet(SMALL).eval().requires_grad_(False)
    ours.load_state_dict(theirs.state_dict())
    fast = [cast(Any, prepared(copy.deepcopy(net))) for net in (ours, theirs)]
    kinds = [[type(m) for m in net.modules()] for net in fast]
    for kind in (RowNorm, SubpixelUpsample, PaddedConv):
        assert kinds[0].count(kind) == kinds[1].count(kind) > 0
    assert nn.GroupNorm not in kinds[0] and Upsample not in kinds[0] and Attention in kinds[0]
    x = torch.randn(2, 3, 8, 8)
    values = [results_by_z(net, x) for net in (*fast, torch.compile(fast[0], backend="eager"), ours)]
    for value, gradient in values[1:3]:
        assert torch.equal(value, values[0][0]) and torch.equal(gradient, values[0][1])
    torch.testing.assert_close(values[0], values[3], rtol=1e-3, atol=2e-5)


def results_by_z(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    point = x.clone().requires_grad_(True)
    out = net(point, torch.tensor([3, 900])).sample
    return out.detach(), torch.autograd.grad((out**2).sum(), point)[0]


def test_a_start_imports_no_diffusers() -> None:
    """Not even one that compiles the UNet."""
    code = """
import sys
from ldvid.stages.swap.fused import prepared
from ldvid.stages.swap.loaders import load_unet
from ldvid.stages.swap.pack import open_pack
unet = load_unet(open_pack("starter"))[0].requires_grad_(False)
prepared(unet)
assert unet(*map(__import__("torch").zeros, [(1, 16, 32, 32), 1]), None).shape == (1, 16, 32, 32)
print(sorted(m for m in sys.modules if m.split(".")[0] in ("diffusers", "transformers", "scipy")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
