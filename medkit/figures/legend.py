"""The legend of labels: colour, name and volume of each structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from medkit.figures.layout import DIM, MIN_WIDTH, WHITE, fitting_text, text_width, write_text
from medkit.figures.overlays import label_colours

if TYPE_CHECKING:
    from PIL import ImageDraw

    from medkit.images.image import Image
    from medkit.space import Grid

MOST = 60
"""Largest number of structures in a legend: the largest ones; the others are counted."""
ABSENT_NAMED = 12
"""Largest number of absent structures that are named."""
_ROW, _MARGIN, _SWATCH, _TEXT = 19, 8, 12, 13
"""Pixels: height of a row, margin, side of a colour's square, size of the font."""
_NAME = 230
"""Most pixels for a name."""


def legend(labels: Image, names: Mapping[int, str], width: int, *, volumes: bool = True) -> np.ndarray:
    """Return the legend of a label map, (H, W, 3) uint8, at most `width` pixels wide if that is 620 or more.

    names: label -> name; the number stands for a label without one. Labels that are named and absent are listed below.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    counts = voxel_counts(labels)
    kept = sorted(sorted(counts, key=lambda label: -counts[label])[:MOST])
    grid = labels.grid
    rows = [(n, names.get(n) or f"label {n}", amount_text(counts[n], grid) if volumes else "") for n in kept]
    absent = [name for label, name in sorted(names.items()) if label and label not in counts]
    below = _in_words(len(counts) - len(kept), absent) if counts else []
    width = max(width, MIN_WIDTH)
    name_width = min(_NAME, max((text_width(name, _TEXT) for _, name, _ in rows), default=0.0))
    amount_width = max((text_width(amount, _TEXT) for _, _, amount in rows), default=0.0)
    column = int(_SWATCH + 8 + name_width + 14 + amount_width + 24)
    columns = max(1, (width - 2 * _MARGIN) // column)
    height = -(-len(rows) // columns)
    out = Pillow.new("RGB", (width, _ROW * (height + len(below)) + _MARGIN))
    draw = ImageDraw.Draw(out)
    for number, row in enumerate(rows):
        corner = _MARGIN + number // height * column, _MARGIN // 2 + number % height * _ROW
        _draw_row(draw, corner, row, (name_width, column - 24))
    for number, text in enumerate(below, start=height):
        shown = fitting_text(text, width - 2 * _MARGIN, _TEXT)
        write_text(draw, (_MARGIN, _MARGIN // 2 + number * _ROW), shown, DIM, "la", _TEXT)
    return np.asarray(out).copy()


def _draw_row(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], row: tuple[int, str, str], widths: tuple[float, float]
) -> None:
    """Draw a square of the label's colour, its name, and its size to the left of the column's end."""
    (x, y), (label, name, amount) = corner, row
    red, green, blue = (int(part) for part in label_colours(np.array(label)))
    draw.rectangle((x, y + 2, x + _SWATCH - 1, y + 1 + _SWATCH), fill=(red, green, blue))
    write_text(draw, (x + _SWATCH + 8, y), fitting_text(name, widths[0] + 1, _TEXT), WHITE, "la", _TEXT)
    write_text(draw, (x + widths[1], y), amount, DIM, "ra", _TEXT)


def _in_words(left_out: int, absent: list[str]) -> list[str]:
    lines = [f"and {left_out} smaller ones"] if left_out > 0 else []
    if absent:
        more = f" and {len(absent) - ABSENT_NAMED} more" if len(absent) > ABSENT_NAMED else ""
        lines.append(f"not found: {', '.join(absent[:ABSENT_NAMED])}{more}")
    return lines


def voxel_counts(labels: Image) -> dict[int, int]:
    """Return label -> number of its voxels in the first channel, without 0."""
    values = labels.data[0]
    total: dict[int, int] = {}
    for slab in values.T if values.flags.f_contiguous else values:
        found, counts = _counted(np.ravel(slab, order="K"))
        for label, count in zip(found.tolist(), counts.tolist(), strict=True):
            total[label] = total.get(label, 0) + count
    total.pop(0, None)
    return total


def _counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels in `values`, (N,), and how often each occurs."""
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        counts = np.bincount(values)
        found = np.flatnonzero(counts)
        return found, counts[found]
    found, counts = np.unique(np.rint(values), return_counts=True)
    return found.astype(np.int64), counts


def amount_text(voxels: int, grid: Grid) -> str:
    """Return the volume of voxels as text with about three digits, such as `12.3 ml`; of a plane's the area in mm².

    >>> from medkit.space import Grid
    >>> amount_text(12345, Grid((50, 50, 50), np.eye(4)))
    '12.3 ml'
    """
    if grid.dims == 2:
        amount, unit = voxels * float(np.prod(grid.spacing[:2])), "mm\N{SUPERSCRIPT TWO}"
    else:
        amount, unit = voxels * grid.voxel_volume / 1000, "ml"
    digits = 0 if amount >= 100 else 1 if amount >= 10 else 2 if amount >= 0.995 else 3
    return f"{amount:.{digits}f} {unit}"
