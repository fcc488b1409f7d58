"""What ``ldvid inspect`` looks at people again for: a sheet of their pictures, and where they turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..configs import Settings
from ..metrics.judge import PoseJudge
from ..metrics.judges import embedded
from ..metrics.sheet import CELL, cell, sheet
from ..stages.decode import open_reader
from ..stages.people import Person
from ..stages.records import F32, F64, U8, ClipInfo
from ..stages.track import frontal
from ..stages.turned import roll_of

if TYPE_CHECKING:
    from PIL import ImageFont

VIEWS = 5  # pictures of a person
MOST = 40  # people on the sheet: those longest on screen
EVENLY = 8  # poses measured over a person's time, beside the extremes


def gather(info: ClipInfo, settings: Settings, people: Sequence[Person]) -> tuple[U8, dict[int, F64]]:
    """The sheet, and the poses of the people on it, from one pass over the frames that are needed.

    Returns:
        (H, W, 3) uint8 RGB: for each person number and time on screen, and up to ``VIEWS`` pictures in the
        clip's order, each with its time. Yaw, pitch and roll in degrees (N, 3) by person: the first two as
        ``PoseJudge`` measures them (it guides nothing here), roll by the landmarks.

    Raises:
        InputError: a frame can't be decoded.
        PackError: the network that tells poses is damaged.
    """
    shown = people[:MOST]
    rows: list[list[U8 | None]] = [[_label(p), *[None] * VIEWS] for p in shown]
    cells: dict[int, list[tuple[int, int, F32]]] = {}
    heads: dict[int, list[tuple[int, F32]]] = {}
    for row, person in enumerate(shown):
        for column, (frame, points) in enumerate(views(person), start=1):
            cells.setdefault(frame, []).append((row, column, points))
        for frame, points in turns(person):
            heads.setdefault(frame, []).append((person.number, points))
    judge, poses = PoseJudge(embedded("pose")), dict[int, list[tuple[float, float, float]]]()
    times, reader = info.seconds, open_reader(info, settings.decoder)
    try:
        for frame in sorted(cells.keys() | heads.keys()):
            picture = next(iter(reader.read(frame, frame + 1))).rgb
            for row, column, points in cells.get(frame, ()):
                rows[row][column] = _captioned(cell(picture, points), f"{times[frame]:.1f} s")
            for number, points in heads.get(frame, ()):
                yaw, pitch, _ = judge.pose(picture, points)
                poses.setdefault(number, []).append((float(yaw), float(pitch), roll_of(points)))
    finally:
        reader.close()
    more = f"{len(people) - MOST} more in plan.json" if len(people) > MOST else ""
    drawn = sheet(rows, ["people", *[""] * (VIEWS - 1), more])
    return drawn, {number: np.array(found, np.float64) for number, found in poses.items()}


def turns(person: Person) -> list[tuple[int, F32]]:
    """Frames that span a person's poses, (index, landmarks (5, 2)): the extremes, by where nose and eyes
    lie, and others evenly over their time."""
    frames = np.concatenate([t.frames for t in person.tracks])
    points = np.concatenate([t.landmarks for t in person.tracks])
    eyes, mouth = points[:, :2].mean(1), points[:, 3:].mean(1)
    across, down = points[:, 1] - points[:, 0], mouth - eyes
    nose = points[:, 2] - eyes
    measures = (
        (nose * across).sum(1) / (across**2).sum(1).clip(1e-6),
        (nose * down).sum(1) / (down**2).sum(1).clip(1e-6),
        np.arctan2(across[:, 1], across[:, 0]),
    )
    picked = {int(end(m)) for m in measures for end in (np.argmin, np.argmax)}
    picked |= {int(i) for i in np.linspace(0, len(frames) - 1, EVENLY).round()}
    return [(int(frames[i]), points[i]) for i in sorted(picked)]


def views(person: Person) -> list[tuple[int, F32]]:
    """Frames that show a person well, (index, landmarks (5, 2)): of each ``VIEWS``-th of their time the best
    by detection score, frontality and size."""
    rows = []
    for track in person.tracks:
        for i, frame in enumerate(track.frames.tolist()):
            side = float(np.sqrt((track.boxes[i, 2:] - track.boxes[i, :2]).clip(0).prod()))
            rows.append(
                (frame, track.landmarks[i], float(track.scores[i]) * frontal(track.landmarks[i]) * side)
            )
    rows.sort(key=lambda r: r[0])
    parts = np.array_split(np.arange(len(rows)), min(VIEWS, len(rows)))
    best = [max((rows[i] for i in part), key=lambda r: (r[2], -r[0])) for part in parts]
    return [(frame, points) for frame, points, _ in best]


def _label(person: Person) -> U8:
    """A cell that says who it is: the number large, the time below."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (CELL, CELL), "white")
    draw = ImageDraw.Draw(canvas)
    middle = CELL / 2
    draw.text((middle, middle - 12), str(person.number), fill="black", font=_font(72), anchor="mm")
    draw.text((middle, middle + 48), f"{person.seconds:.1f} s", fill="black", font=_font(18), anchor="mm")
    return np.array(canvas)


def _captioned(picture: U8, text: str) -> U8:
    """A caption at the lower left, readable on light and dark."""
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(picture)
    ImageDraw.Draw(canvas).text(
        (6, CELL - 6), text, fill="white", font=_font(14), anchor="ls", stroke_width=2, stroke_fill="black"
    )
    return np.array(canvas)


def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
