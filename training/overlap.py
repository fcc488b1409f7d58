"""Overlap of a parse with its labels: confusions, intersection over union, classes merged."""

from __future__ import annotations

import torch
from torch import Tensor

from .shards import CLASSES

MERGED = ("background", "hair", "skin", "brows", "eyes", "nose", "lips", "mouth")
FACE_FROM = 2  # in CLASSES and in MERGED: skin and all after it


def merged_name(name: str) -> str:
    """The class of ``MERGED`` that a finer or an equal class belongs to: right_brow → brows."""
    part = name.split("_")[-1]
    return name if name in MERGED else f"{part}s"


def merge_table(classes: tuple[str, ...]) -> list[int]:
    """For each class, its index in ``MERGED``."""
    return [MERGED.index(merged_name(name)) for name in classes]


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K, K) int64 counts, [label, prediction]; labels outside 0 … K − 1 count for nothing."""
    known = labels < classes
    cells = labels.long() * classes + predicted.long()
    return torch.bincount(cells.where(known, classes * classes).flatten(), minlength=classes**2 + 1)[
        :-1
    ].reshape(classes, classes)


def iou(counts: Tensor) -> list[float | None]:
    """Intersection over union by class, from a confusion; None for a class that neither side has."""
    both = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - both
    return [round(int(b) / int(u), 4) if u else None for b, u in zip(both, union, strict=True)]


def merged(counts: Tensor) -> Tensor:
    """A confusion over ``CLASSES`` as one over ``MERGED``."""
    table = torch.tensor(merge_table(CLASSES), device=counts.device)
    rows = torch.zeros(len(MERGED), len(CLASSES), dtype=counts.dtype, device=counts.device)
    rows.index_add_(0, table, counts)
    out = torch.zeros(len(MERGED), len(MERGED), dtype=counts.dtype, device=counts.device)
    return out.index_add_(1, table, rows)


def face_iou(counts: Tensor) -> float | None:
    """IoU of face (skin, brows, eyes, nose, lips, mouth) against all else, from either confusion."""
    face = int(counts[FACE_FROM:, FACE_FROM:].sum())
    union = int(counts.sum()) - int(counts[:FACE_FROM, :FACE_FROM].sum())
    return round(face / union, 4) if union else None
