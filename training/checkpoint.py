"""State of a training, in pieces small enough to travel one by one.

A checkpoint is a folder: ``state-000.safetensors`` … and ``state.json``, which lists them. Pieces carry the
step in their names, and the list is replaced last: a run that is killed while it saves leaves the
checkpoint before it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import PackError

PIECE = 15 * 2**20
_LIST = "state.json"


def exists(folder: Path) -> bool:
    """Whether there is a whole checkpoint."""
    return (folder / _LIST).is_file()


def save(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors (any types, on any device) and what JSON can hold; an earlier state is replaced.

    A tensor larger than a piece is cut; every piece is at most 15 MiB and a little of header.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob("state-*.safetensors"))
    shapes: dict[str, list[int]] = {}
    pieces: list[dict[str, Tensor]] = [{}]
    room = PIECE
    for name, tensor in tensors.items():
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        shapes[name] = list(tensor.shape)
        start = 0
        while start < len(flat) or (start == 0 and not len(flat)):
            if room < flat.element_size():
                pieces.append({})
                room = PIECE
            count = min(len(flat) - start, room // flat.element_size())
            pieces[-1][f"{name}@{start}"] = flat[start : start + count].clone()
            room -= count * flat.element_size()
            start += max(count, 1)
    stamp = hashlib.sha256(json.dumps([facts, shapes], sort_keys=True).encode()).hexdigest()[:8]
    listed: dict[str, str] = {}
    for index, piece in enumerate(pieces):
        path = folder / f"state-{stamp}-{index:03d}.safetensors"
        part = path.with_suffix(".part")
        save_file(piece, part)
        listed[path.name] = hashlib.sha256(part.read_bytes()).hexdigest()
        part.replace(path)
    part = folder / f"{_LIST}.part"
    part.write_text(
        json.dumps({"pieces": listed, "shapes": shapes, "facts": facts}, indent=1) + "\n", encoding="utf-8"
    )
    part.replace(folder / _LIST)
    for path in before - {folder / name for name in listed}:
        path.unlink()


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``save`` wrote, on the CPU.

    Raises:
        PackError: no checkpoint there, or a piece is missing or damaged.
    """
    try:
        state = json.loads((folder / _LIST).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise PackError(f"{folder}: no checkpoint can be read there: {error}") from error
    parts: dict[str, list[tuple[int, Tensor]]] = {name: [] for name in state["shapes"]}
    for name, digest in state["pieces"].items():
        path = folder / name
        if not path.is_file():
            raise PackError(f"{path}: a piece of the checkpoint is missing")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise PackError(f"{path}: this piece of the checkpoint is damaged")
        for key, tensor in load_file(path).items():
            owner, _, start = key.rpartition("@")
            parts[owner].append((int(start), tensor))
    tensors = {}
    for name, shape in state["shapes"].items():
        ordered = [tensor for _, tensor in sorted(parts[name], key=lambda item: item[0])]
        tensors[name] = torch.cat(ordered).reshape(shape)
    return tensors, state["facts"]
