"""Which frames of a swap to look at first, and why, in words.

Each figure of a face has a limit beyond which somebody will notice; how far beyond it, in limits, is how
bad the frame is. The limits lie well above the judges' own noise (docs/evaluate.md) and above what frames
of good swaps scatter by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

IDENTITY_LOSS: Final = 0.25  # of what the swap gained in the person's median frame
IDENTITY_NOISE: Final = 0.02  # cosine: no less counts as a loss
POSE: Final = 8.0  # degrees between original and swap
STILLNESS: Final = 1.5  # change from the frame before, over the original's
DRIFT: Final = 8.0  # per cent of the eye distance that the features moved
DRIFT_PIXELS: Final = 2.0  # and at least so many: a detector is no more exact than that
PROFILE: Final = 45.0  # degrees of yaw
SMALL: Final = 32.0  # pixels between the eyes
WEAK: Final = 0.75  # score of the detector in the original
FAST: Final = 0.10  # eye distances moved since the frame before
APART: Final = 6  # frames between two that are shown of one person


@dataclass(frozen=True, slots=True)
class FaceFrame:
    """What is measured of one face in one frame; None where it can't be.

    ``identity`` and ``before``: the judge's cosine to the source after and before the swap; ``pose``: how far
    (yaw, pitch, roll) moved, in degrees, and ``yaw`` of the original; ``stillness``: change from the frame
    before over the original's; ``score``: the detector's in the original, ``found`` in the swap, 0 where it
    finds none; ``drift``: how far it finds the features moved, in per cent of the eye distance ``eyes``
    (pixels); ``motion``: eye distances moved since the frame before; ``cut``: the face reaches beyond the
    frame; ``fresh``: the encoder starts afresh here.
    """

    frame: int
    track: int
    person: int
    shot: int
    score: float
    identity: float
    before: float
    pose: tuple[float, float, float]
    yaw: float
    eyes: float
    found: float = 0.0
    drift: float | None = None
    stillness: float | None = None
    motion: float | None = None
    cut: bool = False
    fresh: bool = False

    @property
    def pose_error(self) -> float:
        """L2 of the pose's difference, degrees."""
        return float(np.linalg.norm(self.pose))


@dataclass(frozen=True, slots=True)
class Finding:
    """A face to look at: how bad (1 is at a limit), what is wrong, worst first, and what may explain it."""

    face: FaceFrame
    severity: float
    reasons: tuple[str, ...]
    context: tuple[str, ...] = field(default=())


def findings(faces: Sequence[FaceFrame], most: int = 12, least: int = 6) -> list[Finding]:
    """The worst faces, worst first, no two of one person within ``APART`` frames.

    Those that cross a limit, at most ``most``; where they are fewer than ``least``, also those that come
    nearest to one.
    """
    typical = typical_of(faces)
    judged = [_judged(f, typical[f.person]) for f in faces]
    judged.sort(key=lambda f: (-f.severity, f.face.frame, f.face.person))
    picked: list[Finding] = []
    for finding in judged:
        if len(picked) >= (most if finding.severity >= 1 else least):
            break
        same = (p.face.frame for p in picked if p.face.person == finding.face.person)
        if all(abs(frame - finding.face.frame) >= APART for frame in same):
            picked.append(finding)
    return picked


def drift_limit(eyes: float) -> float:
    """Per cent of an eye distance (pixels) that features may move."""
    return max(DRIFT, 100 * DRIFT_PIXELS / max(eyes, 1.0))


@dataclass(frozen=True, slots=True)
class Typical:
    """The median cosines to the source of one person's frames, after and before the swap."""

    identity: float
    before: float

    @property
    def least(self) -> float:
        """The identity below which a frame has lost too much."""
        return self.identity - max(IDENTITY_LOSS * (self.identity - self.before), IDENTITY_NOISE)


def typical_of(faces: Sequence[FaceFrame]) -> dict[int, Typical]:
    """Each person's."""
    found = {}
    for person in sorted({f.person for f in faces}):
        own = [f for f in faces if f.person == person]
        after, before = (float(np.median([getattr(f, k) for f in own])) for k in ("identity", "before"))
        found[person] = Typical(after, before)
    return found


def crossing(faces: Sequence[FaceFrame]) -> int:
    """How many faces cross a limit."""
    typical = typical_of(faces)
    return sum(_judged(f, typical[f.person]).severity >= 1 for f in faces)


def _judged(face: FaceFrame, typical: Typical) -> Finding:
    """All that is wrong with one face, or, if nothing is, what comes nearest to it."""
    names = ("yaw", "pitch", "roll")
    parts = ", ".join(f"{n} {v:+.0f}°" for n, v in zip(names, face.pose, strict=True) if abs(v) >= 1)
    turned = f"the head points {face.pose_error:.1f}° away from the original's"
    less = (
        f"less like the source: identity {face.identity:.2f}, this person's median is {typical.identity:.2f} "
        f"({typical.before:.2f} before the swap)"
    )
    lost = (typical.identity - face.identity) / (typical.identity - typical.least)
    wrong = [
        (lost, less),
        (face.pose_error / POSE, f"{turned} ({parts})" if parts else turned),
    ]
    if face.stillness is not None:
        flickers = f"flickers: changes {face.stillness:.2f} times as much from frame to frame as the original"
        wrong.append(((face.stillness - 1) / (STILLNESS - 1), flickers))
    if face.found == 0:
        wrong.append((3.0, f"the detector finds no face in the swap ({face.score:.2f} in the original)"))
    elif face.drift is not None:
        wrong.append(
            (face.drift / drift_limit(face.eyes), f"features moved by {face.drift:.1f} % of the eye distance")
        )
    wrong.sort(key=lambda w: -w[0])
    said = [words for severity, words in wrong if severity >= 1]
    return Finding(
        face,
        wrong[0][0],
        tuple(said) or (f"within all limits; nearest to one: {wrong[0][1]}",),
        tuple(_context(face)),
    )


def _context(face: FaceFrame) -> list[str]:
    found = []
    if abs(face.yaw) >= PROFILE:
        found.append(f"near profile (yaw {face.yaw:+.0f}°)")
    if face.eyes < SMALL:
        found.append(f"small face ({face.eyes:.0f} px between the eyes)")
    if face.cut:
        found.append("partly outside the frame")
    if face.score < WEAK:
        found.append(f"weakly detected in the original (score {face.score:.2f})")
    if face.motion is not None and face.motion >= FAST:
        found.append(f"fast: moved {face.motion:.2f} eye distances since the frame before")
    if face.fresh and face.stillness is not None and face.stillness >= STILLNESS:
        found.append("the encoder starts afresh at this frame, which shows as a change of its own")
    return found
