"""Where a training of the UNet starts from other than nothing, and what of a picture it learns most."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..errors import SettingsError
from ..stages.swap.identity_unet import IdentityUNet
from ..stages.swap.loaders import load_unet
from ..stages.swap.manifest import Manifest
from ..stages.swap.pack import Pack
from .unet_trainer import Trainer

FACE = 0.31, 0.41  # half axes of what a swap replaces, as shares of a crop on the template


def start_from(trainer: Trainer, pack: Pack) -> None:
    """Give the trainer the UNet of a pack: it draws at first what the pack's does.

    A pack whose embeddings are the first part of this recipe's will do: it was not told the rest.

    Raises:
        SettingsError: its UNet is of another architecture, or is not told identities.
    """
    entry, network = pack.manifest.unet, trainer.network
    if entry.kind != "file" or entry.condition != "identity" or entry.arguments != trainer.arguments:
        raise SettingsError(f"--start {pack.folder}: its UNet is another than the recipe's")
    loaded = cast(IdentityUNet, load_unet(pack)[0])
    state = dict(loaded.state_dict())
    state["project.0.weight"] = widened(state["project.0.weight"], network.dimensions)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    trainer.average.reset(network.parameters())


def widened(weight: Tensor, dimensions: int) -> Tensor:
    """Weights (W, D) for embeddings of D numbers → (W, ``dimensions``) for those that have D in half of their
    length (``stages.swap.identity``) and the rest beside them: the same sums, whatever the rest.

    Raises:
        SettingsError: there are fewer than D.
    """
    before = weight.shape[1]
    if dimensions == before:
        return weight
    if dimensions < before:
        raise SettingsError(f"a UNet told {before} numbers can't start one told {dimensions}")
    # A layer sees unit vectors times the root of their length: u √D before, u / √2 · √dimensions now.
    wide = weight.new_zeros(len(weight), dimensions)
    wide[:, :before] = weight * (2 * before / dimensions) ** 0.5
    return wide


def importance(manifest: Manifest, side: int, face: float, device: torch.device) -> Tensor:
    """How much each latent of a crop counts, (1, 1, side, side): ``face`` where a swap draws, else 1.

    An ellipse about the middle of the template's landmarks with a soft edge.
    """
    middle = torch.from_numpy(manifest.template_points().mean(0) / manifest.crop_size)
    at = (torch.arange(side) + 0.5) / side
    across, down = (at - middle[0]) / FACE[0], (at - middle[1]) / FACE[1]
    away = (across[None] ** 2 + down[:, None] ** 2).sqrt()
    return (1 + (face - 1) * ((1.15 - away) / 0.3).clamp(0, 1))[None, None].float().to(device)
