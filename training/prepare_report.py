"""What a run of ``prepare`` made: numbers for people, and ``prepare.json`` beside the shards."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .log import say
from .shards import CLASSES, IGNORE, pieces, stored

FACTS = "prepare.json"


def report(
    folder: Path, settings: dict[str, Any], dropped: Counter[str], examples: dict[str, str]
) -> dict[str, Any]:
    """Say how many faces were kept, of which sets and splits, what was dropped and why; the same as facts.

    Class shares are of the pixels that are labelled, mean over all faces.
    """
    kept: dict[str, Counter[str]] = {}
    guessed = outside = labelled = 0
    shares = np.zeros(len(CLASSES))
    for _, sample in stored(folder):
        facts = json.loads(sample["json"])
        kept.setdefault(facts["set"], Counter())[facts["split"]] += 1
        guessed += facts.get("landmarks_from") == "template"
        outside += "outside.png" in sample
        if "labels.png" in sample:
            labels = cv2.imdecode(np.frombuffer(sample["labels.png"], np.uint8), cv2.IMREAD_GRAYSCALE)
            known = np.asarray(labels)[np.asarray(labels) != IGNORE]
            counts = np.bincount(known, minlength=len(CLASSES))
            shares += counts / max(counts.sum(), 1)
            labelled += 1
    total = sum(sum(c.values()) for c in kept.values())
    size = sum(p.stat().st_size for p in pieces(folder))
    say(f"{total} faces kept, {size / 2**20:.1f} MiB; {outside} reach outside their photo")
    for name, splits in sorted(kept.items()):
        say(f"  {name}: {splits['train']} train, {splits['held']} held")
    if guessed:
        say(f"  {guessed} without a detection: the template's landmarks")
    for why, count in dropped.most_common():
        say(f"  {count} dropped: {why} (such as {examples[why]})")
    means = {name: float(s / labelled) for name, s in zip(CLASSES, shares, strict=True)} if labelled else {}
    if means:
        say("  pixels: " + ", ".join(f"{name} {share:.2%}" for name, share in means.items()))
    return {
        "settings": settings,
        "classes": list(CLASSES),
        "faces": total,
        "sets": {name: dict(splits) for name, splits in sorted(kept.items())},
        "dropped": dict(dropped),
        "without_detection": guessed,
        "outside": outside,
        "shares": means,
    }
