"""Colours for values, and the bars that say which colour is which value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medkit.figures.layout import DIM, WHITE, text_width, write_text

LEVELS = 65
"""Number of colours of a scale: as many look smooth, and the PNG is half as large; odd, so that the middle has one."""
_DIVERGING = ((90, 200, 255), (30, 80, 190), (12, 12, 12), (190, 70, 10), (255, 190, 70))
_SEQUENTIAL = ((80, 120, 255), (60, 215, 200), (250, 230, 70), (255, 90, 40))
_HEAT = ((120, 0, 60), (230, 60, 0), (255, 225, 90))
_HEIGHT, _BAR, _MARGIN = 24, (180, 12), 8
"""Pixels: height of a bar's picture, size of the bar, margin."""


@dataclass(frozen=True)
class ColourScale:
    """Colours for values between two ends; values beyond have the colours of the ends."""

    low: float
    high: float
    anchors: tuple[tuple[int, int, int], ...]
    """Colours from the lowest to the highest value, evenly spread."""
    unit: str = ""
    """Such as ` mm`."""

    @classmethod
    def diverging(cls, most: float, unit: str = "", *, around: float = 0.0) -> ColourScale:
        """Return blue below the value `around`, which is nearly black, and orange above it, up to `most` away."""
        return cls(around - most, around + most, _DIVERGING, unit)

    @classmethod
    def sequential(cls, high: float, unit: str = "") -> ColourScale:
        """Return bright colours from blue for 0 to red for `high`, for lines."""
        return cls(0.0, high, _SEQUENTIAL, unit)

    @classmethod
    def heat(cls) -> ColourScale:
        """Return dark red for 0 to yellow for 1."""
        return cls(0.0, 1.0, _HEAT)

    def colours(self, values: np.ndarray) -> np.ndarray:
        """Return the colours of values (...,) as (..., 3) uint8."""
        part = np.clip((values - self.low) / (self.high - self.low), 0, 1)
        level = np.rint(part * (LEVELS - 1)).astype(np.intp)
        return self._table()[level]

    def _table(self) -> np.ndarray:
        anchors = np.array(self.anchors, float)
        at = np.linspace(0, len(anchors) - 1, LEVELS)
        channels = [np.interp(at, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
        return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def scale_bar(scale: ColourScale, text: str) -> np.ndarray:
    """Return a line (H, W, 3) uint8: what is shown, and a bar of the colours between the lowest and highest value."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    ends = [f"{value:.3g}{scale.unit}" for value in (scale.low, scale.high)]
    widths = [text_width(words, 13) for words in (text, *ends)]
    at = np.cumsum([_MARGIN, widths[0] + 14, widths[1] + 6, _BAR[0] + 6, widths[2] + _MARGIN]).astype(int)
    out = Pillow.new("RGB", (int(at[-1]), _HEIGHT))
    draw = ImageDraw.Draw(out)
    write_text(draw, (int(at[0]), 4), text, DIM, "la", 13)
    write_text(draw, (int(at[1]), 4), ends[0], WHITE, "la", 13)
    values = np.linspace(scale.low, scale.high, _BAR[0])[None].repeat(_BAR[1], axis=0)
    out.paste(Pillow.fromarray(scale.colours(values)), (int(at[2]), 6))
    write_text(draw, (int(at[3]), 4), ends[1], WHITE, "la", 13)
    return np.asarray(out).copy()
