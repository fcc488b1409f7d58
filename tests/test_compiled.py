"""Networks through a compiler: which batches, where its code is kept, other threads meanwhile."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from ldvid.stages.swap.compiled import CACHE, CompiledFor, plain
from ldvid.stages.swap.networks import Networks
from ldvid.stages.swap.pack import Pack
from ldvid.stages.swap.repeatable import repeatable
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


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """torch.compile as far as it goes without a GPU's code generator; lists what it was asked for."""
    asked: list[str] = []
    compile_ = torch.compile

    def interpreting(net: nn.Module, **options: Any) -> Any:
        asked.append(type(net).__name__)
        return compile_(net, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", interpreting)
    monkeypatch.setenv("LDVID_HOME", str(tmp_path))
    monkeypatch.setenv(CACHE, "")
    return asked


def test_the_networks_of_a_pack(pack: Pack, networks: Networks, interpreted: list[str]) -> None:
    """Compiled for batches of two, each gives what it gave; what sees one picture is not compiled."""
    fast = Networks.load(pack, "cpu", "float32", 2)
    assert sorted(interpreted) == [
        "IdentityNetworks", "IdentityUNet", "ParseDistance", "Probabilities", *["Sequential"] * 3,
    ]  # fmt: skip
    random = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 256, 256, generator=random)
    face = torch.rand(2, 3, 112, 112, generator=random)
    who = F.normalize(torch.randn(2, 640, generator=random), dim=1)
    with torch.no_grad(), repeatable():
        z = networks.encode(image)
        pairs = [
            (n.encode(image), n.decode(z), n.decode_preview(z), n.parse(image), n.embed_aligned(face),
             n.predict_noise(z, 300), n.predict_noise(z, 300, who, 2.0))
            for n in (fast, networks)
        ]  # fmt: skip
    for ours, theirs in zip(*pairs, strict=True):
        scale = theirs.abs().max()
        assert (ours - theirs).abs().max() < 1e-3 * scale
        assert not torch.equal(ours, torch.zeros_like(ours))
    images = (face[:1] * 255).byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(fast.embed(images), networks.embed(images))
    assert plain(fast.identity) is not fast.identity and plain(networks.identity) is networks.identity


def test_only_whole_batches_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(torch, "compile", lambda net, **_: lambda x: calls.append(len(x)) or net(x))
    layer = CompiledFor(nn.Identity(), 4)
    for rows in (1, 4, 3, 8, 4):
        x = torch.zeros(rows, 2)
        assert layer(x) is x
    assert calls == [4, 8, 4]


def test_compiled_code_is_kept_where_packs_are(
    pack: Pack, tmp_path: Path, interpreted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("LDVID_HOME", str(tmp_path))
    Networks.load(pack, "cpu", "float32", 4)
    assert os.environ.pop(CACHE) == str(tmp_path / "compiled")
    assert interpreted
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LDVID_HOME", str(tmp_path / "file"))
    Networks.load(pack, "cpu", "float32", 4)  # nowhere to keep it: it is compiled all the same
    assert str(tmp_path) not in os.environ.get(CACHE, "")
