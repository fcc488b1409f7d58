"""The networks of a pack, loaded and normalised to one interface.

Pictures are RGB in [0, 1], (B, 3, H, W) float32; crops have the pack's side S. Latents are the
diffusion's own: (encode(x) − mean) / std per channel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor, nn

from ...errors import SettingsError
from ..align import ARCFACE_TEMPLATE
from ..records import F32, U8
from .autoencoder import TinyAutoencoder
from .compiled import compile_networks, plain
from .face_parser import FaceParser, Probabilities
from .filters import enlarged
from .identity import IdentityNetworks
from .identity_unet import IdentityUNet
from .loaders import load_autoencoder, load_parser, load_unet
from .manifest import Manifest
from .onnx_torch import OnnxModule
from .pack import Pack
from .recorded import Recorder
from .repeatable import prepare, repeatable
from .schedule import alpha_bars
from .vq import VQAutoencoder

# Steps of all frames of a clip, which pay for the first compilation (docs/performance.md).
WORTH_COMPILING = 200_000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one; SettingsError if CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda: torch finds no CUDA device; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        prepare()
    return torch.device(name)


def resolve_dtype(name: str, device: str) -> str:
    """``auto`` is bfloat16 on a GPU, and on a CPU that multiplies it itself (AMX, AVX512_BF16); else float32.

    ``device`` is ``cpu``, or whatever names a GPU, which may be another machine's; one of this machine that
    is too old for bfloat16 (before Ampere) gets float32. Other names are returned as they are.
    """
    if name != "auto":
        return name
    if device != "cpu":
        old = torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)
        return "float32" if old else "bfloat16"
    known: Callable[[], dict[str, Any]] | None = getattr(torch.cpu, "get_capabilities", None)
    able = known is not None and any(known().get(k) for k in ("amx_bf16", "avx512_bf16"))
    return "bfloat16" if able else "float32"


def resolve_compile(name: str, device: str, steps: int) -> bool:
    """Whether networks are to be compiled for a clip of so many ``steps``, frames times those of the loop:
    ``auto`` does so on a GPU from ``WORTH_COMPILING`` on, whether or not compiled code is at hand, as it is
    part of what makes a job's bytes.

    Raises:
        SettingsError: ``on`` without a GPU.
    """
    if name == "on" and device == "cpu":
        raise SettingsError("--compile on: networks are compiled for a GPU only; leave it at auto")
    return name == "on" or (name == "auto" and device != "cpu" and steps >= WORTH_COMPILING)


@dataclass
class Networks:
    """Everything a swap evaluates, on one device.

    ``preview`` decodes at half the resolution for about a quarter of the cost (where the pack has
    such a head): guidance looks through it, the final picture never does.
    """

    manifest: Manifest
    device: torch.device
    dtype: torch.dtype
    autoencoder: TinyAutoencoder | VQAutoencoder
    unet: nn.Module
    identity: nn.Module
    parser: nn.Module
    latent_mean: Tensor
    latent_std: Tensor
    alpha_bar: Tensor
    preview: nn.Module | None = None
    probabilities: nn.Module = field(init=False, repr=False)  # ``Probabilities`` of the parser
    parse_distance: nn.Module | None = field(default=None, init=False, repr=False)  # once compiled
    recorder: Recorder = field(init=False, repr=False)
    _beside: Any = field(default=None, init=False, repr=False)  # a stream

    def __post_init__(self) -> None:
        p = self.manifest.parser
        self.probabilities = Probabilities(self.parser, p.mean, p.std)
        self.recorder = Recorder(self.device)
        if self.device.type == "cuda":
            cuda: Any = torch.cuda
            self._beside = cuda.Stream(self.device, priority=-1)

    @classmethod
    def load(cls, pack: Pack, device: str = "auto", dtype: str = "float32", compiled: int = 0) -> Networks:
        """Load all networks of a verified pack, frozen and in evaluation mode.

        ``compiled`` is the batch they are compiled for (``compiled.compile_networks``), 0 for not at all.

        Raises:
            PackError: weights that do not fit the architecture the manifest names.
            SettingsError: CUDA asked for where there is none.
        """
        m, place = pack.manifest, resolve_device(device)
        kind = DTYPES[resolve_dtype(dtype, place.type)]
        autoencoder, preview = load_autoencoder(pack)
        unet, mean, std = load_unet(pack)
        parser = load_parser(pack)
        identity = IdentityNetworks(m.identity, pack.path)
        autoencoder.place(place, kind)
        for net in (unet, parser, identity, preview):
            if net is not None:
                # Module.to itself: diffusers' own warns about a cast that is none.
                nn.Module.to(net, place, kind, memory_format=layout_of(net, place))  # type: ignore[call-overload]
        for net in (autoencoder, unet, parser, identity, preview):
            if net is not None:
                net.eval().requires_grad_(False)
        cast(FaceParser, parser).separable = place.type == "cuda"
        s = m.schedule
        made = cls(
            m, place, kind, autoencoder, unet, identity, parser,
            mean.to(place)[:, None, None], std.to(place)[:, None, None],
            alpha_bars(s.timesteps, s.beta_schedule, s.beta_start, s.beta_end, s.shift).to(place), preview,
        )  # fmt: skip
        if compiled:
            compile_networks(made, compiled)
        if place.type == "cuda":
            torch.cuda.synchronize(place)  # other streams are about to use the weights
        return made

    def encode(self, image: Tensor) -> Tensor:
        """E of the paper: (B, 3, S, S) in [0, 1] → normalised latents (B, C, S/f, S/f), float32."""
        return (self.autoencoder.encode(image) - self.latent_mean) / self.latent_std

    def decode(self, latent: Tensor) -> Tensor:
        """D of the paper: the inverse of ``encode``; not clamped."""
        return self.autoencoder.decode(latent * self.latent_std + self.latent_mean)

    def decode_preview(self, latent: Tensor) -> Tensor:
        """Like ``decode`` at half the resolution, or ``decode`` itself if the pack has no such head."""
        if self.preview is None:
            return self.decode(latent)
        return cast(
            Tensor, self.preview((latent * self.latent_std + self.latent_mean).to(self.dtype)).float()
        )

    def predict_noise(self, z: Tensor, t: int, identity: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """ε_θ(z_t, t): (B, C, h, w) float32 → same.

        With unit embeddings ``identity`` (B, D), for packs whose UNet takes them: ε of that person, led
        ``scale`` times as far from nobody in particular (arXiv 2207.12598, w + 1; 1 costs one
        evaluation, any other number two).
        """
        if identity is None or scale == 1:
            return self._noise(self._predict(z, t, identity), z, t)
        told, nobody = self._predict(z.repeat(2, 1, 1, 1), t, identity.repeat(2, 1), half=True).chunk(2)
        return self._noise(nobody + scale * (told - nobody), z, t)

    def _predict(self, z: Tensor, t: int, identity: Tensor | None, *, half: bool = False) -> Tensor:
        """The UNet's own output, float32; ``half``: the latter half of the rows is told nobody."""
        step = torch.full((len(z),), t, device=z.device)
        if isinstance(plain(self.unet), IdentityUNet):
            dropped = torch.arange(len(z), device=z.device) >= len(z) // 2 if half else None
            return cast(Tensor, self.unet(z.to(self.dtype), step, identity, dropped).float())
        if identity is not None:
            raise ValueError(f"the UNet of pack {self.manifest.name} takes no identity")
        label = self.manifest.unet.class_label
        labels = None if label is None else torch.full((len(z),), label, device=z.device)
        return cast(Tensor, self.unet(z.to(self.dtype), step, labels).sample.float())

    def _noise(self, predicted: Tensor, z: Tensor, t: int) -> Tensor:
        if self.manifest.schedule.prediction == "epsilon":
            return predicted
        alpha_bar = self.alpha_bar[t].to(z)
        return alpha_bar**0.5 * predicted + (1 - alpha_bar) ** 0.5 * z

    def parse(self, image: Tensor, size: int | None = None) -> Tensor:
        """D_F: (B, 3, H, W) in [0, 1] → class probabilities (B, K, p, p), p = ``size`` or the parser's."""
        size = size or self.manifest.parser.size
        side = image.shape[-1]
        if image.is_cuda and size == 2 * side:
            return cast(Tensor, self.probabilities(image, True))
        if side != size:
            if image.is_cuda and side < size:
                image = enlarged(image, size, size)
            else:
                image = F.interpolate(
                    image, (size, size), mode="bilinear", align_corners=False, antialias=side > size
                )
        return cast(Tensor, self.probabilities(image))

    def parse_crops(self, images: U8) -> F32:
        """Class probabilities (N, K, p, p) of crops (N, S, S, 3) uint8, no gradient."""
        with torch.no_grad(), self.beside():
            return cast(F32, self.parse(to_tensor(images, self.device)).cpu().numpy())

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Inside, a GPU computes beside what it is doing for other threads, not behind it.

        What is used must be made inside, and what is made, copied to the processor inside. Nothing is
        recorded meanwhile.
        """
        if self._beside is None:
            yield
            return
        with self.recorder.quiet.use(), torch.cuda.stream(self._beside):
            yield

    def embed_aligned(self, image: Tensor) -> Tensor:
        """D_I: ArcFace-aligned (B, 3, size, size) RGB in [0, 1] → unit embeddings (B, D)."""
        return cast(Tensor, self.identity(image))

    def embed(self, images: U8) -> F32:
        """What guides: unit embeddings (N, D) of aligned crops (N, size, size, 3) uint8 RGB, no gradient."""
        return self._embedded(plain(self.identity), images)

    def recognise(self, images: U8) -> F32:
        """What tells people apart: as ``embed``, by the first identity network alone."""
        return self._embedded(cast(IdentityNetworks, plain(self.identity)).first, images)

    def _embedded(self, network: nn.Module, images: U8) -> F32:
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be (N, H, W, 3), got {images.shape}")
        with self.recorder.quiet.use(), torch.no_grad(), repeatable():
            x = to_tensor(images, self.device)
            size = self.manifest.identity.size
            if x.shape[-1] != size:
                x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
            if x.is_cuda:  # a picture's channels lie last, and cuDNN goes by that too (``layout_of``)
                x = x.contiguous()
            return cast(F32, network(x).cpu().numpy().astype(np.float32))

    def identity_template(self) -> F32:
        """ArcFace's five points at the identity network's input size, (5, 2)."""
        return ARCFACE_TEMPLATE.astype(np.float32) * (self.manifest.identity.size / 112)


def layout_of(network: nn.Module, device: torch.device) -> torch.memory_format:
    """How its weights lie: channels last, as products want it.

    Not on a GPU where there are convolutions of a channel by itself: to plan one of those, channels last,
    takes cuDNN a quarter to nearly a whole second, for every shape and thread; torch has its own for the
    other layout.
    """
    inside = network.modules()
    grouped = any(m.grouped if isinstance(m, OnnxModule) else getattr(m, "groups", 1) > 1 for m in inside)
    return torch.contiguous_format if grouped and device.type == "cuda" else torch.channels_last


def to_tensor(images: U8 | F32, device: torch.device) -> Tensor:
    """(N, H, W, 3) in 0–255 → (N, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255
