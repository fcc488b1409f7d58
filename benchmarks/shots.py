"""Which detector finds the cuts: ours, or one of PySceneDetect's, on takes joined in known ways.

    python benchmarks/shots.py CLIPS…          (pip install scenedetect)

Pieces of the clips are joined by hard cuts, fades through black and dissolves of 8 to 24 frames; between
them the takes go on, with flashes (1 to 3 frames of light), whip pans (the picture wiped over itself) and a
change of exposure in them. A join counts as found if a cut is reported within it, or 2 frames either side;
what else is reported is false. PySceneDetect's detectors run with their own defaults, ours with
``cut_threshold`` 0.5.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from ldvid.stages.decode import open_reader, probe
from ldvid.stages.records import U8
from ldvid.stages.shots import find_cuts

SIZE = (480, 270)
LENGTH = 60  # frames of a take
RATE = 25.0


@dataclass
class Film:
    """Frames, the joins in them as ranges of frames (first frame of the new take if it is a hard cut)."""

    frames: list[U8]
    joins: list[tuple[int, int]]


def takes(paths: Sequence[str]) -> list[list[U8]]:
    """Pieces of ``LENGTH`` frames of all clips, none beside a piece of its own clip where that can be had."""
    found: list[list[list[U8]]] = []
    for path in paths:
        info = probe(Path(path))
        reader = open_reader(info, "pyav")
        frames = [
            cv2.resize(f.rgb, SIZE, interpolation=cv2.INTER_AREA)
            for f in reader.read(0, min(info.frames, 240))
        ]
        reader.close()
        found.append([frames[i : i + LENGTH] for i in range(0, len(frames) - LENGTH + 1, LENGTH)])
    return [piece[k] for k in range(4) for piece in found if k < len(piece)]


def joined(pieces: list[list[U8]], kind: str, rng: np.random.Generator) -> Film:
    film, last = Film(list(pieces[0]), []), pieces[0]
    for piece in pieces[1:]:
        length = 0 if kind == "hard cut" else int(rng.integers(8, 25))
        start = len(film.frames)
        if kind == "fade":
            for i in range(length):
                film.frames.append(_mix(film.frames[start - 1], None, (i + 1) / length))
            film.frames += [_mix(piece[0], None, 1 - (i + 1) / length) for i in range(length)]
            film.joins.append((start, start + 2 * length))
        elif kind == "dissolve":
            # Both takes go on while one becomes the other.
            film.frames = film.frames[: start - length]
            old = last[-length:]
            film.frames += [
                _mix(a, b, (i + 1) / (length + 1)) for i, (a, b) in enumerate(zip(old, piece, strict=False))
            ]
            film.joins.append((start - length, start))
            film.frames += piece[length:]
            last = piece
            continue
        else:
            film.joins.append((start, start))
        film.frames += piece
    return film


def disturbed(pieces: list[list[U8]], kind: str, rng: np.random.Generator) -> Iterator[Film]:
    """Takes with something in them that is no cut, each a film of its own."""
    for piece in pieces:
        piece = list(piece)
        at = int(rng.integers(15, LENGTH - 20))
        if kind == "flash":
            for i in range(int(rng.integers(1, 4))):
                piece[at + i] = np.clip(piece[at + i].astype(float) * 1.5 + 110, 0, 255).astype(np.uint8)
        elif kind == "whip pan":
            length = int(rng.integers(5, 9))
            for i in range(length):
                shift = int(SIZE[0] * 0.9 * (1 - np.cos(2 * np.pi * (i + 1) / (length + 1))) / 2)
                wide = np.concatenate([piece[at + i], piece[at + i][:, ::-1]], 1)
                seen = wide[:, shift : shift + SIZE[0]]
                piece[at + i] = cv2.blur(seen, (max(3, SIZE[0] // length // 2), 1))
        else:
            for i in range(at, LENGTH):
                piece[i] = np.clip(piece[i].astype(float) * (1 - 0.5 * min(1, (i - at) / 10)), 0, 255).astype(
                    np.uint8
                )
        yield Film(piece, [])


def _mix(a: U8, b: U8 | None, share: float) -> U8:
    other = np.zeros_like(a) if b is None else b
    return cv2.addWeighted(a, 1 - share, other, share, 0)


def ours(frames: list[U8]) -> list[int]:
    return find_cuts(frames, 0.5, RATE)


def theirs(make: Callable[[], object]) -> Callable[[list[U8]], list[int]]:
    def run(frames: list[U8]) -> list[int]:
        from scenedetect.common import FrameTimecode

        detector = make()
        cuts: list[int] = []
        for i, frame in enumerate(frames):
            at = FrameTimecode(i, RATE)
            cuts += [c.frame_num for c in detector.process_frame(at, np.ascontiguousarray(frame[..., ::-1]))]
        cuts += [c.frame_num for c in detector.post_process(FrameTimecode(len(frames) - 1, RATE))]
        return sorted(set(cuts) - {0})

    return run


def score(films: Iterator[Film], detect: Callable[[list[U8]], list[int]]) -> tuple[int, int, int, float]:
    """Joins found, joins, false cuts, milliseconds a frame."""
    found = total = false = count = 0
    took = 0.0
    for film in films:
        began = time.perf_counter()
        cuts = detect(film.frames)
        took += time.perf_counter() - began
        count += len(film.frames)
        hit = [any(a - 2 <= c <= b + 2 for c in cuts) for a, b in film.joins]
        found, total = found + sum(hit), total + len(hit)
        false += sum(not any(a - 2 <= c <= b + 2 for a, b in film.joins) for c in cuts)
    return found, total, false, 1000 * took / count


def main(paths: list[str]) -> None:
    from scenedetect import (
        AdaptiveDetector,
        ContentDetector,
        HashDetector,
        HistogramDetector,
        ThresholdDetector,
    )

    cv2.setNumThreads(1)
    pieces = takes(paths)
    detectors = {"ldvid": ours} | {
        d.__name__: theirs(d)
        for d in (AdaptiveDetector, ContentDetector, HashDetector, HistogramDetector, ThresholdDetector)
    }
    kinds: dict[str, Callable[[], Iterator[Film]]] = {}
    for kind in ("hard cut", "fade", "dissolve"):
        kinds[kind] = lambda kind=kind: iter([joined(pieces, kind, np.random.default_rng(0))])  # type: ignore[misc]
    for kind in ("flash", "whip pan", "exposure"):
        kinds[kind] = lambda kind=kind: disturbed(pieces, kind, np.random.default_rng(0))  # type: ignore[misc]
    say(f"{len(pieces)} takes of {LENGTH} frames; joins found / joins (+ false cuts)\n")
    say("| detector | " + " | ".join(kinds) + " | ms a frame |\n|---|" + "---|" * (len(kinds) + 1))
    for name, detect in detectors.items():
        cells, spent = [], []
        for make in kinds.values():
            found, total, false, took = score(make(), detect)
            cells.append(f"{found}/{total} (+{false})" if total else f"+{false}")
            spent.append(took)
        say(f"| {name} | " + " | ".join(cells) + f" | {np.mean(spent):.1f} |")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
