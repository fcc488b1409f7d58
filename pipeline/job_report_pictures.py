"""The pictures of a report: frames and heads before and after, as data URIs, marked as what they are."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..metrics.sheet import cell
from ..metrics.worst import FaceFrame, Finding
from ..stages.picture_tags import tag_picture
from ..stages.picture_write import encode_picture
from ..stages.records import U8
from .job_report_inputs import Frames, Inputs
from .job_report_measure import Measured

HEAD, WIDE = 256, 640  # pixels of a side, and at most of a frame's width
MOST_SHOTS, MOST_HEADS = 24, 6  # shown


@dataclass(frozen=True)
class Pair:
    """Before and after as data URIs, with their size for the page's layout."""

    before: str
    after: str
    width: int
    height: int


@dataclass(frozen=True)
class Shot:
    """A shot: its number, frames [start, stop), a frame of it before and after, and the heads in it."""

    number: int
    start: int
    stop: int
    frame: int
    whole: Pair
    heads: tuple[tuple[FaceFrame, Pair], ...]


@dataclass(frozen=True)
class Pictures:
    """``worst`` in the order of the findings; ``sources`` in the job's; ``left_out``: shots not shown."""

    sources: tuple[str, ...]
    worst: tuple[Pair, ...]
    shots: tuple[Shot, ...]
    left_out: int


def pictures(
    inputs: Inputs, frames: Frames, measured: Measured, found: Sequence[Finding], tags: Mapping[str, str]
) -> Pictures:
    """Read the frames that are shown, each once and in order.

    ``tags`` mark what was altered (see ``provenance.container_tags``).
    """
    by_shot: dict[int, list[FaceFrame]] = {}
    for face in measured.faces:
        by_shot.setdefault(face.shot, []).append(face)
    numbers = sorted(by_shot)
    kept = {numbers[i] for i in np.linspace(0, len(numbers) - 1, MOST_SHOTS).round().astype(int)}
    stills = {n: _stills(by_shot[n]) for n in numbers if n in kept}
    wanted: dict[int, list[FaceFrame]] = {}
    for face in [f.face for f in found] + [f for faces in stills.values() for f in faces]:
        wanted.setdefault(face.frame, []).append(face)
    shown = {faces[0].frame for faces in stills.values()}
    heads: dict[tuple[int, int], Pair] = {}
    whole: dict[int, Pair] = {}
    points = {t.id: t for t in inputs.plan.tracks}
    for frame in sorted(wanted):
        before, after = frames.pair(frame)
        for face in wanted[frame]:
            track = points[face.track]
            at = track.landmarks[int(np.searchsorted(track.frames, frame))]
            heads[frame, face.track] = _pair(cell(before, at, HEAD), cell(after, at, HEAD), tags)
        if frame in shown:
            whole[frame] = _pair(_narrow(before), _narrow(after), tags)
    shots = []
    for number, faces in stills.items():
        start, stop = inputs.plan.shots[number]
        pairs = tuple((f, heads[f.frame, f.track]) for f in faces)
        shots.append(Shot(number, start, stop, faces[0].frame, whole[faces[0].frame], pairs))
    return Pictures(
        tuple(_uri(cell(s.picture, s.landmarks, 152), {}) for s in measured.sources),
        tuple(heads[f.face.frame, f.face.track] for f in found),
        tuple(shots),
        len(numbers) - len(shots),
    )


def _stills(faces: Sequence[FaceFrame]) -> list[FaceFrame]:
    """One face of each person of a shot: the one most like that person's median, so neither best nor worst;
    the largest person first."""
    people: dict[int, list[FaceFrame]] = {}
    for face in faces:
        people.setdefault(face.person, []).append(face)
    picked = []
    for own in people.values():
        middle = float(np.median([f.identity for f in own]))
        picked.append(min(own, key=lambda f: (abs(f.identity - middle), f.frame)))
    return sorted(picked, key=lambda f: -f.eyes)[:MOST_HEADS]


def _narrow(picture: U8) -> U8:
    height, width = picture.shape[:2]
    if width <= WIDE:
        return picture
    size = (WIDE, max(1, round(height * WIDE / width)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _pair(before: U8, after: U8, tags: Mapping[str, str]) -> Pair:
    return Pair(_uri(before, {}), _uri(after, tags), before.shape[1], before.shape[0])


def _uri(picture: U8, tags: Mapping[str, str]) -> str:
    data = tag_picture(encode_picture(picture, ".jpg"), ".jpg", tags)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
