"""Networks through ``torch.compile``, for one size of batch.

What is compiled depends on the shapes it sees, and each costs seconds to minutes. So only calls whose number
of rows is a multiple of the job's batch are compiled; the others (a source's picture, a face of the
analysis) run as they are. Compiled code is kept in ldvid's cache folder between runs.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from .face_parser import ParseDistance, Probabilities
from .fused import NearestCodes, prepared
from .pack import user_folder
from .quiet import Quiet
from .vq import VQAutoencoder

if TYPE_CHECKING:
    from .networks import Networks

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own name of the folder that holds compiled code


_compiling, _calls = threading.Lock(), Quiet()


class CompiledFor(nn.Module):
    """A network that is compiled for multiples of ``batch`` rows; ``plain`` is it as it was."""

    def __init__(self, plain: nn.Module, batch: int) -> None:
        super().__init__()
        self.plain, self.batch = plain, batch
        self._met: set[tuple[torch.Size, bool, tuple[bool, ...]]] = set()
        self._fast: Any = torch.compile(plain, dynamic=False)

    def forward(self, x: torch.Tensor, *more: Any) -> Any:
        """As ``plain``."""
        flags = tuple(m for m in more if isinstance(m, bool))
        met = (x.shape, torch.is_grad_enabled() and x.requires_grad, flags)
        if met in self._met or len(x) % self.batch:
            with _calls.use():
                known: Any = self.plain if len(x) % self.batch else self._fast
                return known(x, *more)
        # One thread compiles, and nobody calls a network meanwhile: while one is traced, all are.
        with _compiling, _calls.alone(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's, about code that isn't ours
            result = self._fast(x, *more)
        self._met.add(met)
        return result


def plain(net: nn.Module) -> nn.Module:
    """The network itself, where it was wrapped."""
    return net.plain if isinstance(net, CompiledFor) else net


def compile_networks(networks: Networks, batch: int) -> None:
    """Exchange the networks' parts for compiled ones, in place. Compilation itself happens at the first call.

    Numbers differ from those of the plain networks in rounding; they are the same from run to run.
    """
    cache = user_folder().with_name("compiled")
    with contextlib.suppress(OSError):  # nowhere to keep it: torch takes its own temporary folder
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            os.environ.setdefault(CACHE, str(cache))
    inductor: Any = torch._inductor.config
    if hasattr(inductor, "deterministic"):
        inductor.deterministic = True  # no choice between kernels by a stopwatch where it changes sums
    prepared(networks.parser)  # in place, within ``probabilities``
    networks.parse_distance = CompiledFor(ParseDistance(cast(Probabilities, networks.probabilities)), batch)
    for name in ("unet", "identity", "probabilities", "preview"):
        net = getattr(networks, name)
        if net is not None:
            setattr(networks, name, CompiledFor(prepared(net), batch))
    pictures = networks.autoencoder
    if isinstance(pictures, VQAutoencoder):
        model = pictures.model
        model.quantize = CompiledFor(NearestCodes(model.quantize.embedding.weight), batch)
        for name in ("encoder", "decoder"):
            setattr(model, name, CompiledFor(prepared(getattr(model, name)), batch))
    else:
        for name in ("encoder", "decoder"):
            setattr(pictures, name, CompiledFor(prepared(getattr(pictures, name)), batch))
