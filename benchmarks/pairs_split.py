"""Whether training sees a picture that it is judged on: a list of pairs against the shards of a training set.

    python benchmarks/pairs_split.py SHARDS [PAIRS.csv]

A source or target in the shards must belong to their held-out part; one that is not there at all (a
portrait) is nobody's training. Fails and names them otherwise.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from ldvid.training.shards import stored
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]


def splits(shards: Path) -> dict[str, str]:
    """Sample → ``train`` or ``held``."""
    return {name: str(json.loads(sample["json"])["split"]) for name, sample in stored(shards)}


def split_in(known: dict[str, str], picture: Path) -> str:
    """That of a photograph, whose sample is called like it, or FOLDER-NAME where it names no set itself."""
    return known.get(picture.stem) or known.get(f"{picture.parent.name}-{picture.stem}") or "not there"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("pairs", type=Path, nargs="?", default=ROOT / "benchmarks/pairs64.csv")
    args = parser.parse_args()
    with args.pairs.open(encoding="utf-8", newline="") as handle:
        names = sorted({row[column] for row in csv.DictReader(handle) for column in ("source", "target")})
    known = splits(args.shards)
    split = {name: split_in(known, Path(name)) for name in names}
    seen = [name for name, part in split.items() if part == "train"]
    console = Console()
    for part in ("held", "not there", "train"):
        console.print(f"{part}: {sum(value == part for value in split.values())} of {len(names)} pictures")
    if seen:
        console.print(f"training sees {', '.join(seen)}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
