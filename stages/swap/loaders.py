"""Reading a pack's weights into networks: safetensors, diffusers folders, and state dicts of torch.

No code is ever unpickled: ``torch.load(weights_only=True)`` reads tensors and containers and refuses the
rest, here and inside diffusers. Each loader says which file it could not read.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import PackError
from .autoencoder import TinyAutoencoder
from .compact import CompactAutoencoder, build_guidance_decoder
from .identity_unet import IdentityUNet
from .manifest import TaesdEntry, UNetFileEntry, UNetFolderEntry, VQEntry
from .unet import build_unet
from .vq import VQAutoencoder

if TYPE_CHECKING:
    from .pack import Pack


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever torch, safetensors or diffusers raise inside becomes a PackError that names ``path``."""
    try:
        yield
    except PackError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own message advises to unpickle it all the same.
        raise PackError(f"{path}: damaged, or holds more than tensors, which is never read") from error
    except Exception as error:  # each library has its own, some of many lines
        raise PackError(f"{path}: can't be loaded: {' '.join(str(error).split())[:400]}") from error


def load_quantised(path: Path) -> dict[str, Tensor]:
    """Read safetensors in which ``NAME.int8`` × ``NAME.scale`` stands for the weight NAME.

    All floating tensors come back as float32; anything else as it is stored.
    """
    state: dict[str, Tensor] = {}
    with safe_open(str(path), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            tensor = file.get_tensor(key)
            if key.endswith(".scale"):
                continue
            if key.endswith(".int8"):
                name = key.removesuffix(".int8")
                state[name] = tensor.float() * file.get_tensor(f"{name}.scale").float()
            else:
                state[key] = tensor.float() if tensor.is_floating_point() else tensor
    return state


def load_state(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """A state dict that ``torch.save`` wrote, on the CPU; ``key`` where it lies inside another dict.

    Raises:
        PackError: not such a file, or one that holds more than tensors.
    """
    with naming(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state[key] if key is not None else state
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise PackError(f"{path}: holds no state dict{f' under {key!r}' if key else ''}")
        return cast(dict[str, Tensor], state)


@contextmanager
def _quiet() -> Iterator[None]:
    """No remarks of diffusers on old configs; what matters in them is checked here and raised."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def load_folder(kind: Any, folder: Path) -> Any:
    """A diffusers model class from a folder on disk (``config.json`` and weights), never from the hub.

    Attention weights under their names of 2022 (``query``, ``key``, ``value``, ``proj_attn``) are renamed
    by diffusers. Safetensors are taken where the folder has them.

    Raises:
        PackError: a file that is missing or can't be read, another class's config, or weights that do
            not fit: diffusers would only remark on those and leave random numbers.
    """
    weights = folder / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        weights = folder / "diffusion_pytorch_model.bin"
    with naming(folder / "config.json"), _quiet():
        name = kind.load_config(str(folder), local_files_only=True).get("_class_name")
        if name != kind.__name__:
            raise PackError(f"{folder / 'config.json'}: describes a {name}, not a {kind.__name__}")
    with naming(weights), _quiet():
        model, found = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=weights.suffix == ".safetensors",
            low_cpu_mem_usage=False,  # the other way needs accelerate
            output_loading_info=True,
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found[what]:
            raise PackError(
                f"{weights}: does not fit its config.json: {len(found[what])} {what.replace('_', ' ')}, "
                f"the first is {sorted(map(str, found[what]))[0]}"
            )
    return model


def load_autoencoder(pack: Pack) -> tuple[TinyAutoencoder | VQAutoencoder, nn.Module | None]:
    """E and D of the paper, and the preview decoder where the pack has one."""
    entry = pack.manifest.autoencoder
    if isinstance(entry, VQEntry):
        return _load_vq(pack, entry), _load_guidance(pack, entry)
    halves = pack.path(entry.encoder), pack.path(entry.decoder)
    with naming(halves[0].parent):
        if isinstance(entry, TaesdEntry):
            tiny, preview = TinyAutoencoder.load(*halves, entry.latent_channels), entry.preview
        else:
            preview = entry.guidance
            tiny = CompactAutoencoder.load(*halves, entry.latent_channels)
    if preview is None:
        return tiny, None
    head = pack.path(preview)
    with naming(head):
        return tiny, tiny.attach_preview(head)


def _load_vq(pack: Pack, entry: VQEntry) -> VQAutoencoder:
    from diffusers import VQModel

    folder = pack.path(entry.folder)
    model = load_folder(VQModel, folder)
    factor = 2 ** (len(model.config.block_out_channels) - 1)
    told, has = (entry.latent_channels, entry.downscale), (model.config.latent_channels, factor)
    if told != has:
        raise PackError(
            f"{folder / 'config.json'}: {has[0]} latent channels at 1/{has[1]}, but the manifest says "
            f"{told[0]} at 1/{told[1]}"
        )
    return VQAutoencoder(model, entry.scale)


def _load_guidance(pack: Pack, entry: VQEntry) -> nn.Module | None:
    if entry.guidance is None:
        return None
    path = pack.path(entry.guidance)
    with naming(path):
        small = build_guidance_decoder(entry.latent_channels)
        small.load_state_dict(load_file(path))
        return small


def load_unet(pack: Pack) -> tuple[nn.Module, Tensor, Tensor]:
    """ε_θ, and the mean and deviation per channel (C,) of the latents it was trained on."""
    entry, channels = pack.manifest.unet, pack.manifest.autoencoder.latent_channels
    if isinstance(entry, UNetFolderEntry):
        from diffusers import UNet2DModel

        folder = pack.path(entry.folder)
        unet = load_folder(UNet2DModel, folder)
        if unet.config.in_channels != channels:
            has = unet.config.in_channels
            raise PackError(f"{folder / 'config.json'}: {has} input channels for latents of {channels}")
        return unet, torch.zeros(channels), torch.ones(channels)
    return _load_unet_file(pack.path(entry.file), entry)


def _load_unet_file(path: Path, entry: UNetFileEntry) -> tuple[nn.Module, Tensor, Tensor]:
    with naming(path):
        state = load_quantised(path)
        mean, std = state.pop("latent_mean"), state.pop("latent_std")
        unet: nn.Module
        with torch.device("meta"):  # no weights are drawn that the file's replace
            if entry.condition is None:
                unet = build_unet(entry.arguments)
            else:
                unet = IdentityUNet(entry.arguments, state["project.0.weight"].shape[1])
        unet.load_state_dict(state, assign=True)
        return unet, mean, std


def load_parser(pack: Pack) -> nn.Module:
    """D_F: facexlib's BiSeNet, from safetensors or from facexlib's own ``.pth``."""
    from .face_parser import FaceParser

    entry = pack.manifest.parser
    path = pack.path(entry.file)
    with naming(path):
        with torch.device("meta"):
            parser = cast(nn.Module, FaceParser(num_class=len(entry.classes)))
        state = load_quantised(path) if path.suffix == ".safetensors" else load_state(path)
        parser.load_state_dict(state, assign=True)
        return parser
