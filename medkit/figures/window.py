"""Grey windows: which values of an image are black and white, and which levels separate its structures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from medkit.images.modality import is_ct
from medkit.scanner.intensity import otsu_threshold

if TYPE_CHECKING:
    from medkit.images.image import Image

CT_LEVELS = (-300.0, 200.0)
"""Hounsfield units between air and tissue, and between tissue and bone."""


@dataclass(frozen=True)
class Window:
    """The grey window of an image."""

    low: float
    """Value that is shown black."""
    high: float
    """Value that is shown white."""
    levels: tuple[float, ...]
    """Values between air and tissue, and between tissue and bright tissue or bone; none for a constant image."""
    unit: str = ""
    """` HU` for a CT, else empty."""

    def grey(self, values: np.ndarray) -> np.ndarray:
        """Return values of any shape as greys from 0 (black) to 1 (white), float32."""
        return ((np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)).astype(np.float32)

    def around_levels(self, values: np.ndarray) -> np.ndarray:
        """Return values scaled like greys, in a window with room around the levels: a CT's may be below black."""
        if not self.levels:
            return self.grey(values)
        room = self.levels[-1] - self.levels[0]
        low, high = min(self.low, self.levels[0] - room), max(self.high, self.levels[-1] + room)
        return replace(self, low=low, high=high).grey(values)


def choose_window(image: Image) -> Window:
    """Return the grey window and the levels of an image; a CT is recognised by its air and water."""
    values = thinned(image)[0].astype(np.float64).ravel()
    if is_ct(values):
        return _ct_window(values)
    distinct, counts = np.unique(values[:: len(values) // 200_000 + 1], return_counts=True)
    padding = distinct[counts.argmax()] if counts.max() > 0.2 * counts.sum() else np.nan
    shown = values[values != padding]
    if len(distinct) == 1 or len(shown) == 0:
        return Window(float(values[0]), float(values[0]) + 1, ())
    low, high = (float(v) for v in np.percentile(shown, [0.5, 99.7]))
    if not high > low:  # nearly constant: a mask, or a few bright voxels
        low, high = float(values.min()), float(values.max())
    elif padding < low:  # skull-stripped: black is half way between padding and image, so that fluid stays visible
        low = (low + float(padding)) / 2
    inside = np.clip(values, np.fmin(low, padding), high)
    outline = otsu_threshold(inside)
    return Window(low, high, (outline, otsu_threshold(inside[inside > outline])))


def _ct_window(values: np.ndarray) -> Window:
    """Return the window of soft tissue, or a wider one if lungs make up much of the body."""
    lung, tissue = np.mean((values > -920) & (values < -500)), np.mean(np.abs(values) < 200)
    low, high = (-1000.0, 400.0) if lung > 0.25 * tissue else (-160.0, 240.0)
    return Window(low, high, CT_LEVELS, " HU")


def thinned(image: Image) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return the first channel with about 100 voxels along each axis, enough for statistics, and the steps between."""
    i, j, k = (max(1, round(n / 100)) for n in image.grid.shape)
    values = image.data[0][::i, ::j, ::k]
    if values.min() == values.max():  # a few bright voxels may lie between the steps
        return image.data[0], (1, 1, 1)
    return values, (i, j, k)
