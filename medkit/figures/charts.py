"""Charts of lines over numbers, drawn with Pillow: axes, curves, a legend."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]

SIZE = (900, 480)
LEFT, RIGHT, TOP, BOTTOM = 78, 78, 56, 56
"""Margins around the axes, in pixels."""
INK, GRID, BACKGROUND = (40, 40, 40), (225, 225, 225), (255, 255, 255)
COLOURS: Sequence[Colour] = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (110, 110, 110),
    (120, 60, 20), (20, 20, 20),
)  # fmt: skip
"""Colours that differ for any colour vision (Okabe and Ito, 2008, with grey, brown and black instead of yellow)."""
SCALE = 2
"""Charts are drawn this many times larger and then reduced, which smooths the lines."""
_ROW = 18
"""Pixels between the lines of a key."""


class Chart:
    """A picture with a horizontal axis and one or two vertical ones. Lengths are pixels of the final picture."""

    def __init__(
        self, ticks: Sequence[float], name: str, title: str = "", size: tuple[int, int] = SIZE, room: int = 0
    ) -> None:
        """Draw the horizontal axis, called `name`. `room`: pixels that stay free between the axes and the margin."""
        from PIL import Image, ImageDraw

        self.size, self.ticks, self.right = size, ticks, size[0] - RIGHT - room
        self.image = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), BACKGROUND)
        self.draw: Any = ImageDraw.Draw(self.image)
        left, right, top, bottom = LEFT, self.right, TOP, size[1] - BOTTOM
        for tick in ticks:
            x = self.across(tick)
            self.line([(x, top), (x, bottom)], GRID, 1)
            self.line([(x, bottom), (x, bottom + 5)], INK, 1)
            self.text((x, bottom + 9), f"{tick:g}", INK, "ma")
        self.line([(left, top), (left, bottom), (right, bottom), (right, top), (left, top)], INK, 1)
        self.text(((left + right) / 2, size[1] - 8), name, INK, "mb")
        self.text((left, 8), title, INK, "la", 15)

    def across(self, value: float) -> float:
        """Return the pixel of a value on the horizontal axis."""
        return _pixel(value, self.ticks, LEFT, self.right)

    def up(self, value: float, ticks: Sequence[float]) -> float:
        """Return the pixel of a value on a vertical axis."""
        return _pixel(value, ticks, self.size[1] - BOTTOM, TOP)

    def vertical(self, ticks: Sequence[float], colour: Colour = INK, *, left: bool = True, name: str = "") -> None:
        """Draw the numbers of a vertical axis, and its name above it."""
        edge, outwards = (LEFT, -1) if left else (self.right, 1)
        digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
        for tick in ticks:
            y = self.up(tick, ticks)
            self.line([(edge, y), (edge + 5 * outwards, y)], colour, 1)
            self.text((edge + 9 * outwards, y), f"{tick:.{digits}f}", colour, "rm" if left else "lm")
        if name:
            self.text((edge, TOP - 8), name, colour, "lb" if left else "rb")

    def curve(self, points: Points, ticks: Sequence[float], colour: Colour, *, marked: bool = True) -> None:
        """Draw a line through points on the axis of `ticks`; if `marked`, with a dot at each point."""
        spots = [(self.across(x), self.up(y, ticks)) for x, y in points]
        if len(spots) > 1:
            self.line(spots, colour, 2)
        for x, y in spots if marked else ():
            box = [(x - 2.5) * SCALE, (y - 2.5) * SCALE, (x + 2.5) * SCALE, (y + 2.5) * SCALE]
            self.draw.ellipse(box, fill=colour)

    def bar(self, between: tuple[float, float], value: float, ticks: Sequence[float], colour: Colour) -> None:
        """Draw a bar from the bottom to a value on the axis of `ticks`, between two values of the horizontal axis."""
        left, right = (self.across(end) * SCALE for end in between)
        top, bottom = self.up(value, ticks) * SCALE, self.up(ticks[0], ticks) * SCALE
        self.draw.rectangle([left, top, right, bottom], fill=colour, outline=BACKGROUND, width=SCALE)

    def legend(self, entries: Mapping[str, Colour]) -> None:
        """Write the names of curves above the axes, next to each other."""
        x = float(LEFT)
        for text, colour in entries.items():
            self.line([(x, TOP - 13), (x + 22, TOP - 13)], colour, 3)
            x += 28 + self.text((x + 28, TOP - 13), text, INK, "lm") + 24

    def key(self, entries: Mapping[str, Colour], corner: tuple[float, float]) -> None:
        """Write the names of curves below each other; the first starts at the pixel `corner`."""
        for number, (text, colour) in enumerate(entries.items()):
            x, y = corner[0], corner[1] + number * _ROW
            self.line([(x, y), (x + 22, y)], colour, 3)
            self.text((x + 28, y), text, INK, "lm")

    def line(self, points: Points, colour: Colour, width: int) -> None:
        """Draw a line through pixels."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self.draw.line(scaled, fill=colour, width=width * SCALE, joint="curve")

    def text(self, spot: tuple[float, float], text: str, colour: Colour, anchor: str, size: int = 13) -> float:
        """Write a text at a pixel. Return its width in pixels."""
        from PIL import ImageFont

        font = ImageFont.load_default(size * SCALE)
        text = text.encode("latin-1", "replace").decode("latin-1")
        self.draw.text((spot[0] * SCALE, spot[1] * SCALE), text, fill=colour, font=font, anchor=anchor)
        return float(self.draw.textlength(text, font=font)) / SCALE

    def png(self) -> bytes:
        """Return the picture as a PNG."""
        from PIL import Image

        buffer = io.BytesIO()
        self.image.resize(self.size, Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
        return buffer.getvalue()


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    """Its name in the key; empty: it is not in the key."""
    points: Points
    """Pairs of the horizontal and the vertical value."""
    marked: bool = True
    """Whether each point has a dot."""


def line_chart(
    series: Sequence[Series],
    across: tuple[str, Sequence[float]],
    up: tuple[str, Sequence[float]],
    title: str = "",
    *,
    size: tuple[int, int] = SIZE,
    key: tuple[float, float] | None = None,
    room: int = 0,
    diagonal: bool = False,
) -> bytes:
    """Return a PNG of lines on one pair of axes, each given by its name and its ticks (see `round_ticks`).

    `key`: the pixel at which the names of the lines start; None: the upper left corner, or right of the axes if there
    are `room` pixels for it. `diagonal`: draw a grey line from corner to corner, as for chance or perfect calibration.
    """
    chart = Chart(across[1], across[0], title, size, room)
    chart.vertical(up[1], name=up[0])
    if diagonal:
        chart.curve([(across[1][end], up[1][end]) for end in (0, -1)], up[1], (170, 170, 170), marked=False)
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(series))]
    for line, colour in zip(series, colours, strict=True):
        chart.curve(line.points, up[1], colour, marked=line.marked)
    names = {line.name: colour for line, colour in zip(series, colours, strict=True) if line.name}
    chart.key(names, key or ((chart.right if room else LEFT) + 14, TOP + 16))
    return chart.png()


def round_ticks(low: float, high: float, count: int, *, whole: bool = False, most: float = math.inf) -> list[float]:
    """Return about `count` round numbers, the first one at or below `low`, the last one at or above `high`.

    most: none is larger, such as 1 for shares.
    """
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    step = max(1.0, round(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1) if n * step <= most * (1 + 1e-9)]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest value, moved apart if they are equal."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - abs(low or 1) / 10, high + abs(high or 1) / 10)


def _pixel(value: float, ticks: Sequence[float], low: float, high: float) -> float:
    """Return the pixel of a value on an axis from pixel `low` to pixel `high`."""
    return low + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (high - low)
