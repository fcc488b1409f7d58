"""Labelled pictures in rows and columns, to compare settings by eye."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from ..stages.records import U8

if TYPE_CHECKING:
    from PIL import ImageFont

GAP: Final = 4  # pixels between cells
INK, PAPER = (20, 20, 20), (255, 255, 255)


def grid(cells: Sequence[Sequence[U8 | None]], labels: Sequence[Sequence[str]]) -> U8:
    """Rows of pictures (h, w, 3) uint8 RGB of one size, each under its label, on white; None is empty.

    A label that is too long for its cell ends in an ellipsis; the letters grow with the cells.

    Raises:
        ValueError: no cell at all, pictures of several sizes, or labels that are not one for each cell.
    """
    from PIL import Image, ImageDraw

    shapes = {cell.shape for row in cells for cell in row if cell is not None}
    if len(shapes) != 1:
        raise ValueError(f"the cells of a grid must be of one size, these are {sorted(shapes)}")
    if [len(row) for row in cells] != [len(row) for row in labels]:
        raise ValueError("a grid needs a label for each cell")
    height, width = next(iter(shapes))[:2]
    font = _font(int(np.clip(width / 22, 11, 40)))
    header = round(font.size * 1.7)
    columns = max(len(row) for row in cells)
    size = (GAP + columns * (width + GAP), GAP + len(cells) * (header + height + GAP))
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for y, (row, words) in enumerate(zip(cells, labels, strict=True)):
        top = GAP + y * (header + height + GAP)
        for x, (cell, label) in enumerate(zip(row, words, strict=True)):
            if cell is None:
                continue
            left = GAP + x * (width + GAP)
            text = fitted(label, font, width - GAP)
            draw.text((left + 2, top + header / 2), text, fill=INK, font=font, anchor="lm")
            canvas.paste(Image.fromarray(cell), (left, top + header))
    return np.array(canvas)


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """As much of a line as ``width`` pixels hold."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as it comes with matplotlib."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
