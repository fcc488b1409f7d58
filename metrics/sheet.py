"""The paper's Figure 6: a contact sheet of source, target and what each variant made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from ..stages.align import ARCFACE_TEMPLATE, estimate_similarity, scale_of, warp
from ..stages.records import F32, F64, U8

if TYPE_CHECKING:
    from PIL import ImageFont

CELL, GAP, HEADER, FONT = 192, 4, 26, 14  # pixels
FRAMING = 1.8  # the cell's side in sides of the ArcFace crop: the head, and some of what is around


def cell(picture: U8, landmarks: F32, size: int = CELL) -> U8:
    """The head in (H, W, 3) uint8 RGB, not turned: a square of ``size`` pixels that lies in the picture."""
    height, width = picture.shape[:2]
    face = 112 / scale_of(estimate_similarity(landmarks, ARCFACE_TEMPLATE))
    side = min(FRAMING * face, height, width)
    centre = (landmarks[:2].mean(0) + landmarks[3:].mean(0)) / 2
    corner = np.clip(centre - side / 2, 0, [width - side, height - side]).astype(np.float64)
    scale = size / side
    # Pixels are areas here: the square's edge at x lies half a pixel before the centre of pixel x.
    shift = (0.5 - corner) * scale - 0.5
    matrix = cast(F64, np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]))
    return warp(picture, matrix, size)


def sheet(rows: Sequence[Sequence[U8 | None]], headings: Sequence[str]) -> U8:
    """Rows of cells under their headings, (H, W, 3) uint8 RGB on white; None leaves a cell empty.

    Raises:
        ValueError: rows whose length is not that of the headings.
    """
    from PIL import Image, ImageDraw

    step = CELL + GAP
    width, height = GAP + step * len(headings), HEADER + step * len(rows)
    canvas = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(canvas), _font()
    for x, text in enumerate(headings):
        left = GAP + x * step
        draw.text((left + CELL / 2, HEADER / 2), _cut(text, font), fill="black", font=font, anchor="mm")
    for y, row in enumerate(rows):
        if len(row) != len(headings):
            raise ValueError(f"row {y} has {len(row)} cells under {len(headings)} headings")
        for x, picture in enumerate(row):
            if picture is not None:
                canvas.paste(Image.fromarray(picture), (GAP + x * step, HEADER + y * step))
    return np.array(canvas)


def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans as it comes with matplotlib: names of files and variants may be in any script it has."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", FONT)


def _cut(text: str, font: ImageFont.FreeTypeFont) -> str:
    """As much of a heading as fits over a cell."""
    text = " ".join(text.split())
    if font.getlength(text) <= CELL:
        return text
    while text and font.getlength(f"{text}…") > CELL:
        text = text[:-1]
    return f"{text}…"
