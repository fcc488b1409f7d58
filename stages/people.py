"""People: which tracks show one person, who they are in number, and who is meant.

Tracks end at cuts. Their identity embeddings are clustered from the bottom up, by average linkage: the two
groups whose tracks are most alike on average are joined, as long as their mean cosine is above a
threshold; groups of which tracks share a frame never are, as nobody is in one frame twice. Ties go to the
earliest tracks: the same tracks give the same people.

People are numbered from 0 by their time on screen, longest first (who appears first, where that is equal).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from .records import F32, Track

# Mean cosine above which groups of tracks are one person: unrelated people score about 0.15 on the packs'
# identity networks, one person in another light and pose 0.5 and more.
PERSON_THRESHOLD = 0.4

Select = Literal["largest", "all", "left", "right"]
SURE = 0.8  # a detection score that what looks like a face somewhere in a tree doesn't reach


@dataclass(frozen=True)
class Person:
    """One person of a clip: ``number``, the ``tracks`` that show them, by first frame, and for how many
    ``frames`` and ``seconds``. ``embedding`` (D,) is the unit mean of their tracks', weighted by length."""

    number: int
    tracks: tuple[Track, ...]
    frames: int
    seconds: float
    embedding: F32

    @property
    def presence(self) -> float:
        """Pixels × frames: large for who is near the camera and long on screen."""
        return sum(t.mean_area * len(t.frames) for t in self.tracks)

    @property
    def score(self) -> float:
        """The best detection score in [0, 1]."""
        return max(float(t.scores.max()) for t in self.tracks)


def find_people(
    tracks: Sequence[Track], durations: Sequence[float], threshold: float = PERSON_THRESHOLD
) -> dict[int, int]:
    """The person of each track: id → number. ``durations`` are the seconds of all frames of the clip."""
    groups = cluster(tracks, threshold)
    seconds = np.asarray(durations, np.float64)

    def order(group: Sequence[Track]) -> tuple[float, int, int]:
        shown = sum(float(seconds[t.frames].sum()) for t in group)
        return -round(shown, 3), min(int(t.frames[0]) for t in group), min(t.id for t in group)

    return {t.id: number for number, group in enumerate(sorted(groups, key=order)) for t in group}


def cluster(tracks: Sequence[Track], threshold: float) -> list[list[Track]]:
    """Groups of tracks of one person each, by average linkage (see above)."""
    tracks = sorted(tracks, key=lambda t: t.id)
    groups = [[t] for t in tracks]
    if len(tracks) < 2:
        return groups
    vectors = np.stack([t.embedding for t in tracks]).astype(np.float64)
    alike = vectors @ vectors.T
    alike[_apart(tracks)] = -np.inf
    np.fill_diagonal(alike, -np.inf)
    sizes = np.ones(len(tracks))
    while True:
        a, b = divmod(int(alike.argmax()), len(tracks))  # the first of equals, and so a < b
        if not alike[a, b] > threshold:
            return [g for g in groups if g]
        # Lance and Williams' update: the mean over all pairs; −∞ (never together) stays.
        mean = (alike[a] * sizes[a] + alike[b] * sizes[b]) / (sizes[a] + sizes[b])
        alike[a], alike[:, a] = mean, mean
        alike[b], alike[:, b] = -np.inf, -np.inf
        groups[a], groups[b], sizes[a] = groups[a] + groups[b], [], sizes[a] + sizes[b]


def _apart(tracks: Sequence[Track]) -> np.ndarray:
    """(N, N) whether two tracks share a frame."""
    frames = [set(t.frames.tolist()) for t in tracks]
    shared = np.zeros((len(tracks), len(tracks)), bool)
    for i, track in enumerate(tracks):
        for j in range(i):
            if tracks[j].shot == track.shot:  # others can't
                shared[i, j] = shared[j, i] = not frames[i].isdisjoint(frames[j])
    return shared


def people_of(
    tracks: Sequence[Track], numbers: Mapping[int, int], durations: Sequence[float]
) -> list[Person]:
    """The people by number; ``numbers`` maps a track's id to its person (tracks without one are nobody's)."""
    seconds = np.asarray(durations, np.float64)
    people = []
    for number in sorted(set(numbers.values())):
        own = sorted(
            (t for t in tracks if numbers.get(t.id) == number and len(t.frames)),  # an edit may empty one
            key=lambda t: (int(t.frames[0]), t.id),
        )
        if not own:
            continue
        shown = np.unique(np.concatenate([t.frames for t in own]))
        mean = np.sum([t.embedding.astype(np.float64) * len(t.frames) for t in own], 0)
        unit = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
        people.append(Person(number, tuple(own), len(shown), float(seconds[shown].sum()), cast(F32, unit)))
    return people


def select_people(people: Sequence[Person], how: Select) -> list[Person]:
    """Who is meant: the ``largest`` (area × frames), ``all``, or who is most often at the ``left`` or
    ``right`` of the others in frames with several people (nearest that side, where there are none).

    Where anybody was surely a face at least once, the others, who may be none, don't count.
    """
    people = [p for p in people if p.score >= SURE] or list(people)
    if not people or how == "all":
        return people
    if how == "largest":
        return [max(people, key=lambda p: (p.presence, -p.number))]
    sign = 1.0 if how == "left" else -1.0
    places: dict[int, list[tuple[float, int]]] = {}
    own: dict[int, list[float]] = {}
    for person in people:
        for track in person.tracks:
            middle = sign * (track.boxes[:, 0] + track.boxes[:, 2]).astype(np.float64) / 2
            own.setdefault(person.number, []).extend(middle.tolist())
            for frame, x in zip(track.frames.tolist(), middle.tolist(), strict=True):
                places.setdefault(frame, []).append((x, person.number))
    votes = dict.fromkeys(own, 0)
    for seen in places.values():
        if len(seen) > 1:
            votes[min(seen)[1]] += 1
    return [min(people, key=lambda p: (-votes[p.number], float(np.median(own[p.number])), p.number))]


def nearest_person(people: Sequence[Person], embedding: F32) -> tuple[Person, float] | None:
    """Who looks most like a face, and the cosine: the best of the person's mean and their tracks."""
    best: tuple[Person, float] | None = None
    for person in people:
        looks = [person.embedding, *(t.embedding for t in person.tracks if len(t.frames) > 4)]
        cosine = max(float(v @ embedding) for v in looks)
        if best is None or cosine > best[1]:
            best = person, cosine
    return best
