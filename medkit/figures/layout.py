"""The layout of a mosaic: tiles in rows under a header, with letters and positions on them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from medkit.figures.planes import GAP, Plane

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

MIN_CELL = (54, 116)
"""Smallest rows and columns of a tile, so that its letters and its position fit."""
TITLE_LINES = 4
"""Lines that a title above a picture has at most."""
MIN_WIDTH = 620
"""Smallest width of a picture in pixels, so that the header fits."""
WHITE, DIM, WARNING = (255, 255, 255), (175, 175, 175), (255, 210, 60)

Segments = list[tuple[str, tuple[int, int, int]]]
"""A line of text as pieces, each with its colour."""


def compose(tiles: list[list[np.ndarray]], planes: list[list[Plane]], header: Sequence[Segments]) -> np.ndarray:
    """Return a picture (H, W, 3) uint8: tiles in rows under the lines of the header, with letters and positions."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    lines = [line for line in header if any(text for text, _ in line)]
    heights = [max(MIN_CELL[0], *(tile.shape[0] for tile in row)) for row in tiles]
    width = max(MIN_CELL[1], *(tile.shape[1] for row in tiles for tile in row))
    columns = max(map(len, tiles))
    tops = np.cumsum([8 + 20 * len(lines), *(height + GAP for height in heights)])
    picture = Pillow.new("RGB", (max(MIN_WIDTH, GAP + columns * (width + GAP)), int(tops[-1])))
    draw = ImageDraw.Draw(picture)
    _write_header(draw, lines, picture.width)
    for row, row_planes, top, height in zip(tiles, planes, tops, heights, strict=False):
        for column, (tile, plane) in enumerate(zip(row, row_planes, strict=True)):
            left = GAP + column * (width + GAP)
            place = left + (width - tile.shape[1]) // 2, int(top) + (height - tile.shape[0]) // 2
            picture.paste(Pillow.fromarray(tile), place)
            first = column == 0 or plane.view != row_planes[column - 1].view
            _write_marks(draw, (left, int(top), left + width, int(top) + height), plane, first)
    return np.asarray(picture).copy()


def under_title(picture: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Return a picture, (H, W) or (H, W, 3) uint8, as (H, W, 3) under a title in the colour of warnings."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    shown: list[Segments] = [[(text, WARNING)] for text in lines[:TITLE_LINES]]
    if len(lines) > TITLE_LINES:
        shown[-1] = [(f"and {len(lines) - TITLE_LINES + 1} more", WARNING)]
    top = 8 + 20 * len(shown)
    out = Pillow.new("RGB", (max(MIN_WIDTH, picture.shape[1]), top + picture.shape[0]))
    _write_header(ImageDraw.Draw(out), shown, out.width)
    out.paste(Pillow.fromarray(np.ascontiguousarray(picture)).convert("RGB"), (0, top))
    return np.asarray(out).copy()


def _write_header(draw: ImageDraw.ImageDraw, lines: Sequence[Segments], width: int) -> None:
    for number, line in enumerate(lines):
        x, y, size = 8.0, 6 + 20 * number, 15 if number == 0 else 13
        for text, colour in line:
            text = fitting_text(draw, text, width - 8 - x, size)
            x += write_text(draw, (x, y), text, colour, "la", size)


def _write_marks(draw: ImageDraw.ImageDraw, cell: tuple[int, int, int, int], plane: Plane, first: bool) -> None:
    """Write a tile's position and its letters; those of top and bottom only on the `first` tile of a view."""
    left, top, right, bottom = cell
    y, x = (top + bottom) // 2, (left + right) // 2
    spots = (((left + 3, y), "lm"), ((right - 3, y), "rm"), ((x, top + 2), "ma"), ((x, bottom - 17), "md"))
    for letter, (spot, anchor) in zip(plane.view.marks[: 4 if first else 2], spots, strict=False):
        write_text(draw, spot, letter, WARNING, anchor, 13)
    write_text(draw, (left + 4, bottom - 3), plane.caption, WHITE, "ld", 12)


def write_text(
    draw: ImageDraw.ImageDraw,
    spot: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
    anchor: str,
    size: int,
) -> float:
    """Write a text with a dark rim, which is readable on white tissue. Return its width in pixels."""
    font = _font(size)
    draw.text(spot, text, fill=colour, font=font, anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))
    return draw.textlength(text, font=font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def fitting_text(draw: ImageDraw.ImageDraw, text: str, width: float, size: int) -> str:
    """Return a text as one line in the characters of Pillow's own font, shortened to `width` pixels.

    The middle is left out, because names of cases differ at their ends.
    """
    full = " ".join(text.split("\n")).encode("latin-1", "replace").decode("latin-1")
    full = full if len(full) < 400 else full[:200] + full[-200:]
    text, kept = full, len(full)
    while kept > 3 and draw.textlength(text, font=_font(size)) > width:
        kept -= 1
        text = f"{full[: kept // 2]}...{full[len(full) - kept // 2 :]}"
    return text
