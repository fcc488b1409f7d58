"""What makes a GPU's results repeatable, as far as it can be seen on a CPU; on a GPU, the bytes."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.stages.swap.repeatable import repeatable, sample_bilinear


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    wide=st.floats(0.2, 3.0),
)
def test_sampling_is_torchs_own(seed: int, size: tuple[int, int], wide: float) -> None:
    random = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 3, *size, generator=random, dtype=torch.float64, requires_grad=True)
    grid = (torch.rand(2, 5, 4, 2, generator=random, dtype=torch.float64) * 2 - 1) * wide
    weight = torch.rand(2, 3, 5, 4, generator=random, dtype=torch.float64)
    ours = sample_bilinear(image, grid)
    theirs = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad((v * weight).sum(), image)[0] for v in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_a_cpu_is_left_as_it_is() -> None:
    with repeatable(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()


def test_the_setting_is_put_back() -> None:
    with repeatable(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
