"""Names of frames: their order, and what in their numbers looks like a mistake.

A frame's number is the last group of digits in its name, without the suffix; what stands around it
names its sequence.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path, PurePath

_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)
_TYPES = {".jpeg": ".jpg", ".tiff": ".tif"}
_SHOWN = 3  # examples in a message

Numbers = list[tuple[int, str]]


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which ``f2.png`` comes before ``f10.png``."""
    parts = re.split(r"(\d+)", name.casefold())
    return (*((1, int(p), "") if p.isdecimal() else (0, 0, p) for p in parts), (2, 0, name))


def numbering_warnings(folder: Path, files: Sequence[str]) -> tuple[str, ...]:
    """Sentences about frames of several sequences or types, numbers given twice, and gaps.

    ``files`` are in natural order. Names without a number, and numbers that only one file of that
    pattern has, are no sequence: no gaps are looked for there.
    """
    sequences, others = _sequences(files)
    return tuple(
        f"{folder}: {text}"
        for text in (
            *_mixed(files),
            *_several(sequences, others),
            *_repeated(sequences),
            *(text for numbers in sequences for text in _gaps(numbers)),
        )
    )


def _sequences(files: Sequence[str]) -> tuple[list[Numbers], list[str]]:
    """The sequences, each in the order of its numbers, and the files that belong to none."""
    found: dict[tuple[str, str], Numbers] = {}
    others = []
    for name in files:
        match = _NUMBERED.fullmatch(PurePath(name).stem)
        if match is None:
            others.append(name)
        else:
            found.setdefault((match[1].casefold(), match[3].casefold()), []).append((int(match[2]), name))
    others += [numbers[0][1] for numbers in found.values() if len(numbers) == 1]
    # A stable sort: files of one number stay in the order of their names.
    return [sorted(n, key=lambda item: item[0]) for n in found.values() if len(n) > 1], others


def _mixed(files: Sequence[str]) -> Iterator[str]:
    types = Counter(_TYPES.get(s, s) for s in (PurePath(name).suffix.lower() for name in files))
    if len(types) > 1:
        counts = ", ".join(f"{n} {suffix}" for suffix, n in types.most_common())
        yield f"holds files of several types ({counts}); all are taken as frames of one clip"


def _several(sequences: list[Numbers], others: list[str]) -> Iterator[str]:
    if len(sequences) > 1:
        yield (
            f"holds {len(sequences)} numbered sequences: "
            f"{_some([f'{n[0][1]} to {n[-1][1]}' for n in sequences])}; they are taken as one clip, one "
            "after the other"
        )
    if sequences and others:
        yield f"{_some(others)}: numbered otherwise than the rest; taken as {_frames(len(others))} too"


def _repeated(sequences: list[Numbers]) -> Iterator[str]:
    twice = [f"{a[1]} and {b[1]}" for numbers in sequences for a, b in pairwise(numbers) if a[0] == b[0]]
    if twice:
        yield f"the same number is there more than once: {_some(twice)}; each file is taken as a frame"


def _gaps(numbers: Numbers) -> Iterator[str]:
    pairs = [(a, b) for a, b in pairwise(numbers) if a[0] != b[0]]
    steps = [b[0] - a[0] for a, b in pairs]
    if not steps:
        return
    step = math.gcd(*steps)
    if len(steps) < 2 or 2 * steps.count(step) < len(steps):
        step = 1
    gaps = [((b[0] - a[0]) // step - 1, a[1], b[1]) for a, b in pairs if b[0] - a[0] > step]
    stepped = f"the numbers from {numbers[0][1]} on go in steps of {step}" if step > 1 else ""
    missing = _some([f"{n} missing between {a} and {b}" for n, a, b in gaps])
    total = f", {_frames(sum(n for n, _, _ in gaps))} in all" if len(gaps) > 1 else ""
    if text := "; ".join(t for t in (stepped, missing + total) if t):
        yield f"{text}; what is there is taken as consecutive frames"


def _some(texts: list[str]) -> str:
    more = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _frames(n: int) -> str:
    return "1 frame" if n == 1 else f"{n} frames"
