"""The parser's network: how it begins, what it is taught by, how a trained one is read.

facexlib's BiSeNet (Yu et al. 2018, arXiv 1808.00897) returns three heads of logits, each already at the
size of its input; the second and third only help training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from facexlib.parsing.bisenet import BiSeNet
from torch import Tensor, nn

from ..errors import PackError, SettingsError
from ..stages.swap.loaders import load_quantised, naming
from ..stages.swap.manifest import read_manifest
from . import checkpoint
from .log import say
from .shards import CLASSES, IGNORE

# Which class of a coarser parser each of ours begins as.
PARENTS = {
    "right_brow": "brows", "left_brow": "brows", "right_eye": "eyes", "left_eye": "eyes",
    "upper_lip": "lips", "lower_lip": "lips",
}  # fmt: skip
HEADS = (1.0, 0.5, 0.5)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(images: Tensor) -> Tensor:
    """[0, 1] RGB (B, 3, H, W) to ImageNet's mean and deviation, as the pack feeds its parser."""
    return (images - images.new_tensor(MEAN)[:, None, None]) / images.new_tensor(STD)[:, None, None]


def initial(pack: Path | None, seed: int) -> nn.Module:
    """BiSeNet with eleven classes: from the parser of the pack in this folder, or random without one.

    The rows of the output layers are copied to the classes that a class of the pack is split into; a pack
    with the eleven classes goes on as it is. One with others starts nothing.

    Raises:
        PackError: the pack or its parser can't be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = cast(nn.Module, BiSeNet(num_class=len(CLASSES)))
    if pack is None:
        return net
    entry = read_manifest(pack).parser
    names = [name if name in entry.classes else PARENTS.get(name, name) for name in CLASSES]
    if set(names) != set(entry.classes):
        say(f"{pack}: its parser has other classes ({', '.join(entry.classes)}): from scratch")
        return net
    path = pack / entry.file
    with naming(path):
        state = load_quantised(path)
        rows = [entry.classes.index(name) for name in names]
        for head in ("conv_out", "conv_out16", "conv_out32"):
            key = f"{head}.conv_out.weight"
            state[key] = state[key][rows]
        net.load_state_dict(state)
    return net


def soft_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """1 − Dice, averaged over the classes of the batch: (B, K, H, W), (B, H, W) int64 → scalar."""
    known = (labels != IGNORE)[:, None]
    wanted = torch.zeros_like(logits).scatter_(1, labels.where(known[:, 0], 0)[:, None], 1.0) * known
    share = logits.softmax(1) * known
    both, sums = (share * wanted).sum((0, 2, 3)), (share + wanted).sum((0, 2, 3))
    there = (wanted.sum((0, 2, 3)) > 0).float()
    dice = (2 * both + 1) / (sums + 1)
    return ((1 - dice) * there).sum() / there.sum().clamp(min=1)


def loss_of(heads: tuple[Tensor, ...], labels: Tensor, weights: Tensor, dice: float) -> Tensor:
    """Heads (B, K, H, W) and labels (B, H, W) uint8 of the same size → scalar; 255 counts for nothing."""
    target = labels.long()
    total = dice * soft_dice(heads[0].float(), target)
    for factor, logits in zip(HEADS, heads, strict=True):
        total = total + factor * F.cross_entropy(logits.float(), target, weights, ignore_index=IGNORE)
    return total


def resized(images: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A batch at another size, (B, 3, s, s) and uint8 (B, s, s): both by what a pixel covers.

    Pictures are averaged; of the labels the most frequent wins, the higher class in a tie. The nearest
    would lie a quarter of a pixel off at half the size.
    """
    if images.shape[-1] == size:
        return images, labels
    kinds = labels.clamp(max=len(CLASSES)).long()[:, None]  # 255 becomes one more class
    votes = torch.zeros(len(labels), len(CLASSES) + 1, *labels.shape[1:], device=labels.device)
    votes = F.interpolate(votes.scatter_(1, kinds, 1.0), (size, size), mode="area")
    winner = len(CLASSES) - votes.flip(1).argmax(1)
    small = torch.where(winner == len(CLASSES), IGNORE, winner).to(torch.uint8)
    return F.interpolate(images, (size, size), mode="area"), small


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The checkpoint of a run of this stage; SettingsError where it is another's."""
    tensors, facts = checkpoint.load(folder)
    if facts.get("stage") != "parser":
        raise SettingsError(f"--out {folder}: holds the state of another stage; name another folder")
    return tensors, facts


def placed(net: nn.Module, device: torch.device) -> nn.Module:
    """On the device, channels last in memory."""
    return nn.Module.to(net, device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def load_trained(folder: Path, device: torch.device | str = "cpu") -> nn.Module:
    """The averaged parser of a run, for evaluation and export: eval mode, float32, eleven classes.

    Raises:
        PackError: no checkpoint there, or a damaged one.
        SettingsError: another stage's.
    """
    tensors, _ = read_state(folder)
    net = cast(nn.Module, BiSeNet(num_class=len(CLASSES)))
    mine = {k.removeprefix("averaged/"): v for k, v in tensors.items() if k.startswith("averaged/")}
    try:
        net.load_state_dict(mine)
    except RuntimeError as error:
        raise PackError(f"{folder}: holds no parser of {len(CLASSES)} classes") from error
    return placed(net, torch.device(device)).eval().requires_grad_(False)
