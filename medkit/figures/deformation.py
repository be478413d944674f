"""What a map of points does to a grid of squares, drawn on the planes of a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medkit.figures.layout import Segments
from medkit.figures.planes import Plane
from medkit.figures.scales import ColourScale

PointMap = Callable[[np.ndarray], np.ndarray]
"""Takes points (N, 3) to points (N, 3), RAS+ mm."""
SQUARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""mm; sides of squares."""
SMALLEST = 14
"""Pixels; smallest side of a square."""
DIMMED = 0.55
"""Brightness of the image under the lines."""
FOLD = (255, 0, 160)
"""Colour of places where the map folds: their neighbours have changed sides."""


@dataclass(frozen=True, eq=False)
class Deformation:
    """A map of points whose effect on a grid is drawn."""

    name: str
    """What it is, in words such as `the transform`."""
    moves: PointMap
    """From points of the background."""


def draw_deformation(
    tiles: Sequence[np.ndarray], planes: Sequence[Plane], moves: PointMap
) -> tuple[list[np.ndarray], ColourScale, float, bool]:
    """Return the tiles with the lines of a grid of squares through the map.

    A line joins the points that the map takes to one line of the grid. Its colour tells how far points move. Also
    returns the scale of these colours, the side of the squares in mm, and whether the map folds anywhere on the planes.
    """
    pixel = float(np.linalg.norm(planes[0].down))
    square = next((side for side in SQUARES if side >= SMALLEST * pixel), SQUARES[-1])
    places = [_places(plane) for plane in planes]
    moved = [moves(place.reshape(-1, 3)).reshape(place.shape) for place in places]
    lengths = [np.linalg.norm(after - before, axis=-1) for before, after in zip(places, moved, strict=True)]
    most = float(np.percentile(np.concatenate([length.ravel() for length in lengths]), 99.5))
    scale = ColourScale.sequential(_rounded_up(max(most, 0.1)), " mm")
    folds = [_folds(*pair, moves) for pair in zip(planes, moved, strict=True)]
    drawn = []
    for tile, plane, after, length, fold in zip(tiles, planes, moved, lengths, folds, strict=True):
        alpha = _lines(after, plane, square)[..., None]
        dim = tile * DIMMED
        out = dim + alpha * (scale.colours(length) - dim)
        drawn.append(np.where(fold[..., None], np.array(FOLD), np.rint(out)).astype(np.uint8))
    return drawn, scale, square, any(fold.any() for fold in folds)


def fold_note(folds: bool) -> Segments:
    """Return the header's words about folds; empty if there are none."""
    return [("the map folds here", FOLD)] if folds else []


def _places(plane: Plane) -> np.ndarray:
    """Return the centres of a plane's pixels, (rows, columns, 3) RAS+ mm."""
    rows, columns = plane.shape
    return plane.origin + np.arange(rows)[:, None, None] * plane.down + np.arange(columns)[:, None] * plane.across


def _lines(moved: np.ndarray, plane: Plane, square: float) -> np.ndarray:
    """Return the opacity of the lines, (rows, columns) from 0 to 1, about one pixel wide."""
    total = np.zeros(plane.shape)
    for direction in (plane.down, plane.across):
        if min(plane.shape) < 2:
            continue
        value = moved @ (direction / np.linalg.norm(direction)) / square
        slope = np.hypot(*np.gradient(value)) + 1e-6
        distance = np.abs(value - np.rint(value)) / slope  # in pixels, to first order
        # where a map jumps, as at the edge of a field, there is no line
        total = np.maximum(total, np.where(slope < 0.5, np.clip(1.0 - distance, 0, 1), 0))
    return total


def _folds(plane: Plane, moved: np.ndarray, moves: PointMap) -> np.ndarray:
    """Return where the map turns neighbours round, (rows, columns) bool: its Jacobian determinant is negative."""
    if min(plane.shape) < 2:
        return np.zeros(plane.shape, bool)
    step = float(np.linalg.norm(plane.down))
    normal = np.cross(plane.down, plane.across) / step
    behind = moves((_places(plane) + normal).reshape(-1, 3)).reshape(moved.shape)
    down, across = np.gradient(moved, axis=(0, 1))
    determinant = np.einsum("...i,...i", np.cross(down, across), behind - moved) / step**3
    folded: np.ndarray = determinant < 0
    folded[[0, -1]] = folded[:, [0, -1]] = False  # where a field ends, its map jumps
    return folded


def _rounded_up(value: float) -> float:
    """Return the next number of one digit, or of two that end in 5, such as 0.15, 2, 30."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(power * m for m in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if power * m >= value * 0.9999))
