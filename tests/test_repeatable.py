"""What makes results repeatable, as far as it can be seen on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from hypothesis import given, settings
from hypothesis import strategies as st
from ldvid.stages.swap.repeatable import repeatable, sample_bilinear, tensor


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


def test_a_term_that_picks_pixels_is_repeatable_on_a_cpu() -> None:
    """Its gradient adds up where many samples fall on few pixels, for which threads race otherwise."""
    random = torch.Generator().manual_seed(0)
    image = torch.rand(4, 3, 64, 64, generator=random, requires_grad=True)
    grid = torch.rand(4, 112, 112, 2, generator=random) * 0.02
    weight = torch.randn(4, 3, 112, 112, generator=random)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        with repeatable():
            first, *others = (
                torch.autograd.grad((sample_bilinear(image, grid) * weight).sum(), image)[0]
                for _ in range(30)
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first, other) for other in others)


@given(start=st.integers(0, 15))
def test_tensors_begin_where_sums_are_aligned(start: int) -> None:
    array = np.arange(200, dtype=np.float32)[start : start + 24].reshape(1, 2, 12)
    copy = tensor(array, torch.device("cpu"))
    assert copy.data_ptr() % 64 == 0
    np.testing.assert_array_equal(copy.numpy(), array)


def test_libraries_are_told_to_be_repeatable() -> None:
    """Before they compute for the first time, in every process that imports the package, and silently."""
    code = "import ldvid, os, cv2; print(os.environ['MKL_CBWR'], cv2.ipp.useIPP())"
    ours = ("MKL_CBWR", "OPENCV_IPP", "OPENCV_LOG_LEVEL")
    clean = {k: v for k, v in os.environ.items() if k not in ours}
    told = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["AUTO", "False"]
    assert told.stderr == ""


def test_the_setting_is_put_back() -> None:
    with repeatable():
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_sums_of_a_whole_view_and_what_is_not_finite() -> None:
    """A view as large as the real one, gradients as small and as large as there are, and a NaN."""
    random = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 256, 256, generator=random, requires_grad=True)
    theta = torch.tensor([[0.6, 0.2, 0.1], [-0.2, 0.6, 0.0]]).expand(2, 2, 3)
    grid = F.affine_grid(theta, [2, 3, 112, 112], align_corners=False)
    for size in (1e-30, 1e-9, 1.0, 1e9):
        weight = torch.randn(2, 3, 112, 112, generator=random) * size
        ours, theirs = (
            torch.autograd.grad((f(image, grid) * weight).sum(), image)[0]
            for f in (
                sample_bilinear,
                lambda x, g: F.grid_sample(x, g, "bilinear", "border", align_corners=False),
            )
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * size)
    weight[1, 0, 5, 5] = torch.nan
    (gradient,) = torch.autograd.grad((sample_bilinear(image, grid) * weight).sum(), image)
    assert gradient[0].isfinite().all() and gradient[1].isnan().all()
    none = torch.autograd.grad((sample_bilinear(image, grid) * 0).sum(), image)[0]
    assert torch.equal(none, torch.zeros_like(none))


def test_strictness_is_put_back_whoever_ends_first() -> None:
    def state() -> tuple[bool, bool]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )

    before = state()
    with repeatable():
        assert state() == (True, True)
        with repeatable(strict=True):
            assert state() == (True, False)
            with repeatable():
                assert state() == (True, False)
        assert state() == (True, True)
    with repeatable(strict=True):
        assert state() == (True, False)
    assert state() == before
