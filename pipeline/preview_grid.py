"""The settings that ``ldvid preview --grid`` compares: one key is a row of cells, two are a matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..errors import SettingsError

if TYPE_CHECKING:
    from ..configs import Settings
    from ..stages.records import U8
    from .still import StillSwap

# What shows in no single frame: tracking, what is averaged or faded over frames, segments, the encoder.
UNSEEN: Final = frozenset(
    {
        "batch",
        "codec",
        "cut_threshold",
        "decoder",
        "fade_frames",
        "keyframe_interval",
        "min_track_frames",
        "pix_fmt",
        "quality",
        "segment_frames",
        "smoothing",
        "steady",
    }
)
MOST: Final = 100  # cells


@dataclass(frozen=True)
class Axis:
    """A key and the values to compare, as they were written."""

    key: str
    values: tuple[str, ...]


def parse_axis(text: str) -> Axis:
    """``steps=2,4,8``; a comma inside brackets or quotes belongs to the value.

    Raises:
        SettingsError: no key, no value, one value twice, or a setting that no single frame shows.
    """
    key, equals, rest = text.partition("=")
    key, values = key.strip(), _split(rest)
    if not equals or not key or not all(values):
        raise SettingsError(f"--grid {text}: write it as key=a,b,c, for example --grid steps=2,4,8")
    if key in UNSEEN:
        raise SettingsError(f"--grid {text}: a preview is one frame, which {key} doesn't change")
    if twice := next((v for i, v in enumerate(values) if v in values[:i]), None):
        raise SettingsError(f"--grid {text}: {twice} is there twice")
    return Axis(key, tuple(values))


def _split(text: str) -> list[str]:
    """At the commas that are in no bracket and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth <= 0:
            parts.append("")
            continue
        parts[-1] += letter
    return [part.strip() for part in parts]


@dataclass(frozen=True)
class Grid:
    """One axis: a row of settings; two: the first goes down, the second across."""

    axes: tuple[Axis, ...]
    settings: tuple[tuple[Settings, ...], ...]
    labels: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, texts: Sequence[str], load: Callable[[list[str]], Settings]) -> Grid:
        """From ``--grid`` flags; ``load`` makes settings with these assignments ``key=value`` on top.

        Raises:
            SettingsError: more than two keys, one key twice, too many cells, or what ``load`` refuses.
        """
        axes = tuple(parse_axis(text) for text in texts)
        if len(axes) > 2:
            raise SettingsError(f"--grid {texts[2]}: two keys make a matrix, a third has no direction")
        if len({axis.key for axis in axes}) < len(axes):
            raise SettingsError(f"--grid {texts[1]}: {axes[1].key} is both rows and columns")
        down, across = axes if len(axes) == 2 else (None, axes[0])
        if len(across.values) * (len(down.values) if down else 1) > MOST:
            raise SettingsError(f"--grid: more than {MOST} cells; leave some values out")
        settings, labels = [], []
        for value in down.values if down else [None]:
            above = [] if down is None else [f"{down.key}={value}"]
            rows = [[*above, f"{across.key}={other}"] for other in across.values]
            settings.append(tuple(_loaded(row, load) for row in rows))
            labels.append(tuple(", ".join(row) for row in rows))
        return cls(axes, tuple(settings), tuple(labels))

    def draw(self, rows: Sequence[Sequence[StillSwap]]) -> U8:
        """The swaps under their labels; original and mask stand to the left, (H, W, 3) uint8 RGB."""
        from ..metrics.grid import grid

        first = rows[0][0]
        differ = any((s.mask != first.mask).any() for row in rows for s in row)
        name = f"mask ({self.labels[0][0]})" if differ else "mask"
        cells: list[list[U8 | None]] = [[s.swapped for s in row] for row in rows]
        labels = [list(row) for row in self.labels]
        if len(rows) == 1:
            lead: list[list[U8 | None]] = [[first.original, first.mask_picture()]]
            words = [["original", name]]
        else:
            lead = [[first.original], [first.mask_picture()]]
            lead += [[None] for _ in rows[2:]]
            words = [["original"], [name], *([""] for _ in rows[2:])]
        return grid(
            [a + b for a, b in zip(lead, cells, strict=True)],
            [a + b for a, b in zip(words, labels, strict=True)],
        )


def _loaded(assignments: list[str], load: Callable[[list[str]], Settings]) -> Settings:
    try:
        return load(assignments)
    except SettingsError as error:
        raise SettingsError(f"--grid {' --grid '.join(assignments)}: {error}") from error
