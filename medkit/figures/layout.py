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
TITLE_LINES = 6
"""Lines that a title above a picture has at most."""
_HEADING_ROW = 20
"""Pixels above the tiles for the headings of columns."""
MIN_WIDTH = 620
"""Smallest width of a picture in pixels, so that the header fits."""
WHITE, DIM, WARNING = (255, 255, 255), (175, 175, 175), (255, 210, 60)

Segments = list[tuple[str, tuple[int, int, int]]]
"""A line of text as pieces, each with its colour."""


def compose(
    tiles: list[list[np.ndarray]],
    planes: list[list[Plane]],
    header: Sequence[Segments],
    headings: Sequence[str] = (),
) -> np.ndarray:
    """Return a picture (H, W, 3) uint8: tiles in rows under the lines of the header, with letters and positions.

    `headings`: what stands above each column; none, if empty.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    lines = [(line, 15 if n == 0 else 13) for n, line in enumerate(header) if any(text for text, _ in line)]
    heights = [max(MIN_CELL[0], *(tile.shape[0] for tile in row)) for row in tiles]
    width = max(MIN_CELL[1], *(tile.shape[1] for row in tiles for tile in row))
    columns = max(map(len, tiles))
    top = 8 + 20 * len(lines) + (_HEADING_ROW if headings else 0)
    tops = np.cumsum([top, *(height + GAP for height in heights)])
    picture = Pillow.new("RGB", (max(MIN_WIDTH, GAP + columns * (width + GAP)), int(tops[-1])))
    draw = ImageDraw.Draw(picture)
    _write_header(draw, lines, picture.width)
    for column, heading in enumerate(headings):
        middle = GAP + column * (width + GAP) + width // 2
        shown = fitting_text(heading, width - 4, 13)
        write_text(draw, (middle, int(tops[0]) - 4), shown, WHITE, "md", 13)
    for row, row_planes, top, height in zip(tiles, planes, tops, heights, strict=False):
        for column, (tile, plane) in enumerate(zip(row, row_planes, strict=True)):
            left = GAP + column * (width + GAP)
            place = left + (width - tile.shape[1]) // 2, int(top) + (height - tile.shape[0]) // 2
            picture.paste(Pillow.fromarray(tile), place)
            first = column == 0 or plane.view != row_planes[column - 1].view
            _write_marks(draw, (left, int(top), left + width, int(top) + height), plane, first)
    return np.asarray(picture).copy()


def under_title(picture: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Return a picture, (H, W) or (H, W, 3) uint8, as (H, W, 3) under a title in the colour of warnings.

    Long lines are wrapped; of more than `TITLE_LINES` rows the last one counts the lines that are left out.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    width = max(MIN_WIDTH, picture.shape[1])
    shown: list[str] = []
    for number, line in enumerate(lines):
        rows, left = wrapped_text(line, width - 16, 15), len(lines) - number
        if len(shown) + len(rows) > TITLE_LINES - (left > 1):
            # a single line that is too long keeps its beginning
            shown += rows[:TITLE_LINES] if not shown else [f"and {left} more"]
            break
        shown += rows
    top = 8 + 20 * len(shown)
    out = Pillow.new("RGB", (width, top + picture.shape[0]))
    draw = ImageDraw.Draw(out)
    for number, text in enumerate(shown):
        write_text(draw, (8, 6 + 20 * number), text, WARNING, "la", 15)
    out.paste(Pillow.fromarray(np.ascontiguousarray(picture)).convert("RGB"), (0, top))
    return np.asarray(out).copy()


def stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return pictures (H, W, 3) uint8 below each other, on black."""
    out = np.zeros((sum(len(one) for one in pictures), max(one.shape[1] for one in pictures), 3), np.uint8)
    top = 0
    for one in pictures:
        out[top : top + len(one), : one.shape[1]] = one
        top += len(one)
    return out


def _write_header(draw: ImageDraw.ImageDraw, lines: Sequence[tuple[Segments, int]], width: int) -> None:
    """Write lines below each other, each in its own size."""
    for number, (line, size) in enumerate(lines):
        x, y = 8.0, 6 + 20 * number
        for text, colour in line:
            text = fitting_text(text, width - 8 - x, size)
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


def text_width(text: str, size: int) -> float:
    """Return the width of a text in pixels."""
    return float(_font(size).getlength(drawable(text)))


def drawable(text: str) -> str:
    """Return a text as one line in the characters of Pillow's own font."""
    return " ".join(text.split("\n")).encode("latin-1", "replace").decode("latin-1")


def wrapped_text(text: str, width: float, size: int) -> list[str]:
    """Return a text as lines of at most `width` pixels, broken between words; words that are too long are shortened."""
    lines = [""]
    for word in drawable(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, size) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line if text_width(line, size) <= width else _shortened(line, width, size) for line in lines]


def fitting_text(text: str, width: float, size: int) -> str:
    """Return a text as one line in the characters of Pillow's own font, shortened to `width` pixels.

    The middle is left out, because names of cases differ at their ends.
    """
    return _shortened(drawable(text), width, size)


def _shortened(full: str, width: float, size: int) -> str:
    full = full if len(full) < 400 else full[:200] + full[-200:]
    text, kept = full, len(full)
    while kept > 3 and text_width(text, size) > width:
        kept -= 1
        text = f"{full[: kept // 2]}...{full[len(full) - kept // 2 :]}"
    return text
