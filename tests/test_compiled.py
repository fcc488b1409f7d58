"""Networks through a compiler, while other threads use them."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from ldvid.stages.swap.compiled import CompiledFor
from torch import Tensor, nn


class Slow(nn.Module):
    """Many layers: it takes a while to trace."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return 2 * x if double else x


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's compiler up to where it would write code, which needs a compiler of C++ here."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, **more: compiler(net, backend="aot_eager", **more))


@pytest.mark.usefixtures("traced")
def test_others_use_networks_while_one_is_compiled() -> None:
    """torch refuses a compiled network while another thread traces: who comes then has to wait."""
    torch.manual_seed(0)
    small, large = CompiledFor(Slow(2), 2), CompiledFor(Slow(150), 2)
    x = torch.randn(2, 8)
    expected = {rows: small.plain(x[:rows]) for rows in (1, 2)}
    small(x)  # compiled already
    stop, wrong, calls = threading.Event(), list[Any](), [0]

    def use() -> None:
        while not stop.is_set():
            for rows, whole in expected.items():
                try:
                    if not torch.equal(small(x[:rows]), whole):
                        wrong.append(rows)
                except Exception as error:
                    wrong.append(error)
                calls[0] += 1
            time.sleep(1e-4)

    others = [threading.Thread(target=use) for _ in range(2)]
    for thread in others:
        thread.start()
    try:
        leaf = x.clone().requires_grad_(True)
        result = large(leaf)  # traced now, with its gradient
        (gradient,) = torch.autograd.grad(result.sum(), leaf)
    finally:
        stop.set()
        for thread in others:
            thread.join()
    assert not wrong and calls[0] > 0
    assert torch.allclose(result, large.plain(x)) and gradient.isfinite().all()


def test_nobody_calls_a_network_while_one_is_compiled() -> None:
    """Older releases of torch refuse it, this one doesn't always; here it is seen in any."""
    compiling, beside, begun = threading.Event(), list[str](), threading.Event()

    class Probe(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            if self.name == "compiled now":
                compiling.set()
                begun.wait(10)
                time.sleep(0.05)
                compiling.clear()
            elif compiling.is_set():
                beside.append(self.name)
            return x

    small, large = CompiledFor(Probe("plain"), 2), CompiledFor(Probe("plain"), 2)
    small._fast, large._fast = Probe("compiled before"), Probe("compiled now")
    x = torch.zeros(2, 8)
    small(x)

    def use() -> None:
        compiling.wait(10)
        begun.set()
        small(x)
        small(x[:1])

    others = [threading.Thread(target=use) for _ in range(3)]
    for thread in others:
        thread.start()
    large(x)
    for thread in others:
        thread.join()
    assert not beside


@pytest.mark.usefixtures("traced")
def test_flags_are_compiled_apart() -> None:
    net = CompiledFor(Slow(2), 2)
    x = torch.randn(4, 8)
    for double in (False, True, False):
        assert torch.equal(net(x, double), net.plain(x, double))
    assert len(net._met) == 2
