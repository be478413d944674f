"""Probabilities of classes as bars under a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medkit.figures.layout import DIM, MIN_WIDTH, WARNING, WHITE, fitting_text, write_text

if TYPE_CHECKING:
    from PIL import ImageDraw

_LINE, _MARGIN, _HEADING, _LABEL = 20, 8, 15, 13
"""Pixels: height of a line, margin; sizes of the two fonts."""
_NAMES = 0.38
"""Part of the width for the names of classes."""
_MOST_BARS, _MOST_GROUPS = 8, 6
_BAR, _CHOSEN = (90, 110, 140), (70, 160, 230)


@dataclass(frozen=True)
class BarGroup:
    """A line of text with the probabilities under it."""

    heading: str
    """What was found."""
    probabilities: Mapping[str, float]
    """Class -> probability; NaN where there is none."""
    chosen: str = ""
    """The class whose bar is bright; empty: none of them."""
    doubtful: bool = False
    """Whether the heading has the colour of warnings."""


def bars_under(picture: np.ndarray | None, title: str, groups: Sequence[BarGroup]) -> np.ndarray:
    """Return a picture (H, W, 3) uint8: `picture`, (H, W, 3) uint8 or None, under it bars from 0 to 1 in groups.

    Long lists are cut, and what was left out is counted: bars beyond the eight most probable classes, and groups.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    lines = [row for group in groups[:_MOST_GROUPS] for row in _rows(group)]
    if len(groups) > _MOST_GROUPS:
        lines.append((f"and {len(groups) - _MOST_GROUPS} more", None, DIM))
    above = np.zeros((0, MIN_WIDTH, 3), np.uint8) if picture is None else picture
    top = _MARGIN + _LINE * (1 if title else 0)
    size = (max(MIN_WIDTH, above.shape[1]), top + above.shape[0] + _MARGIN + _LINE * len(lines))
    out = Pillow.new("RGB", size)
    draw = ImageDraw.Draw(out)
    write_text(draw, (_MARGIN, 6), fitting_text(title, size[0] - 2 * _MARGIN, _HEADING), WHITE, "la", _HEADING)
    out.paste(Pillow.fromarray(above), (0, top))
    for number, (text, value, colour) in enumerate(lines):
        y = top + above.shape[0] + _MARGIN + _LINE * number
        width = size[0] - 2 * _MARGIN if value is None else _NAMES * size[0] - _MARGIN
        shown = fitting_text(text, width, _LABEL)
        write_text(draw, (_MARGIN, y), shown, WHITE if value is not None else colour, "la", _LABEL)
        if value is not None:
            _draw_bar(draw, (_NAMES * size[0], y, size[0] - 60.0), value, colour)
    return np.asarray(out).copy()


_Row = tuple[str, float | None, tuple[int, int, int]]
"""A text, its value if it has a bar, and a colour."""


def _rows(group: BarGroup) -> list[_Row]:
    ranked = sorted(group.probabilities.items(), key=lambda pair: -np.nan_to_num(pair[1], nan=-1.0))
    rows: list[_Row] = [(group.heading, None, WARNING if group.doubtful else WHITE)]
    rows += [(name, p, _CHOSEN if name == group.chosen else _BAR) for name, p in ranked[:_MOST_BARS] if np.isfinite(p)]
    if len(ranked) > _MOST_BARS:
        rows.append((f"and {len(ranked) - _MOST_BARS} less probable classes", None, DIM))
    return rows


def _draw_bar(
    draw: ImageDraw.ImageDraw, place: tuple[float, float, float], value: float, colour: tuple[int, int, int]
) -> None:
    left, y, right = place
    draw.rectangle((left, y + 3, right, y + _LINE - 5), outline=(70, 70, 70))
    draw.rectangle((left, y + 3, left + (right - left) * min(max(value, 0.0), 1.0), y + _LINE - 5), fill=colour)
    write_text(draw, (right + 8, y), f"{value:.3f}", WHITE, "la", _LABEL)
