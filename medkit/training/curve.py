"""The picture of a training: loss and validation metric over the steps, drawn with Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medkit.training.history import Row

if TYPE_CHECKING:
    from PIL import ImageDraw

SIZE = (900, 480)
LEFT, RIGHT, TOP, BOTTOM = 78, 78, 56, 56
"""Margins around the axes, in pixels."""
INK, GRID, BACKGROUND = (40, 40, 40), (225, 225, 225), (255, 255, 255)
LOSS, METRIC = (204, 85, 0), (0, 90, 181)
"""Orange and blue: told apart with any colour vision."""
SCALE = 2
"""Drawn larger by this and then reduced, which smooths the lines."""

Points = list[tuple[float, float]]


def draw_curve(rows: Sequence[Row], metric_name: str | None, title: str = "") -> bytes:
    """A PNG with the loss (left axis) and, where there is one, the validation metric (right axis) over the steps."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIZE[0] * SCALE, SIZE[1] * SCALE), BACKGROUND)
    draw = ImageDraw.Draw(image)
    losses = [(float(r.step), r.loss) for r in rows if math.isfinite(r.loss)]
    metrics = [(float(r.step), r.metric) for r in rows if r.metric is not None and math.isfinite(r.metric)]
    steps = _ticks(0, max([1.0] + [r.step for r in rows]), 8, whole=True)
    _frame(draw, steps, title)
    legend = []
    if losses:
        _curve(draw, losses, steps, _ticks(*_range(losses), 6), LOSS, left=True)
        legend.append((f"training loss (last {losses[-1][1]:.4g})", LOSS))
    if metrics:
        _curve(draw, metrics, steps, _ticks(*_range(metrics), 6), METRIC, left=False)
        best = f"last {metrics[-1][1]:.4g}, highest {max(m for _, m in metrics):.4g}"
        legend.append((f"validation {metric_name} ({best})", METRIC))
    _legend(draw, legend)
    buffer = io.BytesIO()
    image.resize(SIZE, Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _range(points: Points) -> tuple[float, float]:
    values = [v for _, v in points]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - abs(low or 1) / 10, high + abs(high or 1) / 10)


def _ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round numbers that begin at or below `low` and end at or above `high`, about `count` of them."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    step = max(1.0, round(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def _place(value: float, ticks: Sequence[float], low: int, high: int) -> float:
    """The pixel (before scaling) of a value on an axis from pixel `low` to pixel `high`."""
    return low + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (high - low)


def _frame(draw: ImageDraw.ImageDraw, steps: Sequence[float], title: str) -> None:
    left, right, top, bottom = LEFT, SIZE[0] - RIGHT, TOP, SIZE[1] - BOTTOM
    for tick in steps:
        x = _place(tick, steps, left, right)
        _line(draw, [(x, top), (x, bottom)], GRID, 1)
        _line(draw, [(x, bottom), (x, bottom + 5)], INK, 1)
        _text(draw, (x, bottom + 9), f"{tick:g}", INK, "ma")
    _line(draw, [(left, top), (left, bottom), (right, bottom), (right, top), (left, top)], INK, 1)
    _text(draw, ((left + right) / 2, SIZE[1] - 8), "step", INK, "mb")
    _text(draw, (left, 8), title, INK, "la", 15)


def _curve(
    draw: ImageDraw.ImageDraw,
    points: Points,
    steps: Sequence[float],
    ticks: Sequence[float],
    colour: tuple[int, int, int],
    *,
    left: bool,
) -> None:
    edge = LEFT if left else SIZE[0] - RIGHT
    outwards = -1 if left else 1
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    for tick in ticks:
        y = _place(tick, ticks, SIZE[1] - BOTTOM, TOP)
        _line(draw, [(edge, y), (edge + 5 * outwards, y)], colour, 1)
        _text(draw, (edge + 9 * outwards, y), f"{tick:.{digits}f}", colour, "rm" if left else "lm")
    spots = [(_place(s, steps, LEFT, SIZE[0] - RIGHT), _place(v, ticks, SIZE[1] - BOTTOM, TOP)) for s, v in points]
    if len(spots) > 1:
        _line(draw, spots, colour, 2)
    for x, y in spots if len(spots) <= 40 else ():
        box = [(x - 2.5) * SCALE, (y - 2.5) * SCALE, (x + 2.5) * SCALE, (y + 2.5) * SCALE]
        draw.ellipse(box, fill=colour)


def _legend(draw: ImageDraw.ImageDraw, entries: Sequence[tuple[str, tuple[int, int, int]]]) -> None:
    x = float(LEFT)
    for text, colour in entries:
        _line(draw, [(x, TOP - 13), (x + 22, TOP - 13)], colour, 3)
        x += 28 + _text(draw, (x + 28, TOP - 13), text, INK, "lm") + 24


def _line(draw: ImageDraw.ImageDraw, points: Points, colour: tuple[int, int, int], width: int) -> None:
    scaled = [(x * SCALE, y * SCALE) for x, y in points]
    draw.line(scaled, fill=colour, width=width * SCALE, joint="curve")


def _text(
    draw: ImageDraw.ImageDraw,
    spot: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
    anchor: str,
    size: int = 13,
) -> float:
    """Writes, and gives the width in pixels (before scaling)."""
    from PIL import ImageFont

    font = ImageFont.load_default(size * SCALE)
    text = text.encode("latin-1", "replace").decode("latin-1")
    draw.text((spot[0] * SCALE, spot[1] * SCALE), text, fill=colour, font=font, anchor=anchor)
    return draw.textlength(text, font=font) / SCALE
