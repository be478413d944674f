"""What is drawn over the tiles of a mosaic: labels, contours, checkerboards."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from medkit.figures.layout import DIM, WARNING, Segments
from medkit.figures.planes import MosaicAxes, Plane
from medkit.figures.sampling import sample, sample_labels
from medkit.figures.window import Window, choose_window
from medkit.scanner.separable import gaussian_weights

if TYPE_CHECKING:
    from medkit.images.image import Image

STEP = 4
"""Grey levels are multiples of this: 64 levels look like 256 at this size, and the PNG is half as large."""
LEVEL_COLOURS = ((0, 215, 255), (255, 90, 40))
"""Colours of the overlay's outline and of the contours of its brighter structures."""
CHECKER_TINT = (1.0, 0.87, 0.64)
"""Factors of red, green and blue that make the overlay's squares warmer than those of the background."""


def label_colours(labels: np.ndarray) -> np.ndarray:
    """Return the colour of each label, a fixed function of its number: (...,) integers -> (..., 3) uint8.

    Hues differ by the golden ratio, so neighbouring numbers get very different ones. Brightness and saturation change
    slowly, so labels with similar hues still differ.
    """
    index = np.abs(np.asarray(labels)).astype(np.int64) - 1
    hue = (index * 0.618034) % 1.0
    saturation = np.where(index // 8 % 2 == 0, 0.9, 0.6)[..., None]
    value = np.where(index // 16 % 2 == 0, 1.0, 0.78)[..., None]
    wheel = np.abs((hue[..., None] + np.array([0, 2 / 3, 1 / 3])) % 1.0 * 6 - 3) - 1
    return np.rint(255 * value * (1 - saturation * (1 - np.clip(wheel, 0, 1)))).astype(np.uint8)


def rgb(grey: np.ndarray) -> np.ndarray:
    """Return greys (rows, columns) from 0 to 1 as (rows, columns, 3) uint8."""
    levels = (grey * (255 // STEP)).round() * STEP
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=-1)


def _blend(tile: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Return a tile with `colour` painted over it, with opacity `alpha` (rows, columns)."""
    alpha = alpha[..., None].astype(np.float32)
    return np.rint(tile + alpha * (np.asarray(colour, np.float32) - tile)).astype(np.uint8)


def with_labels(
    tiles: list[list[np.ndarray]], planes: list[list[Plane]], labels: Image
) -> tuple[list[list[np.ndarray]], Segments]:
    """Return the tiles with labels drawn over them, and the header's line about the labels."""
    maps = [[sample_labels(labels, plane) for plane in row] for row in planes]
    drawn = [[draw_labels(*pair) for pair in zip(*rows, strict=True)] for rows in zip(tiles, maps, strict=True)]
    shown = np.unique(np.concatenate([np.unique(tile) for row in maps for tile in row]))
    shown = shown[shown != 0]
    if len(shown) == 0:
        empty = not np.any(labels.data[0])
        return drawn, [("no labels: the label image is empty" if empty else "no labels inside the image", WARNING)]
    return drawn, [(f"labels on these slices: {len(shown)}", DIM)]


def draw_labels(tile: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return a tile with a light fill for each label, and a full contour on the outermost pixels of the label."""
    padded = np.pad(labels, 1)
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = np.any([side != labels for side in around], axis=0)
    alpha = np.where(labels == 0, 0.0, np.where(edge, 1.0, 0.22))
    return _blend(tile, alpha, label_colours(labels))


def with_contours(
    tiles: list[list[np.ndarray]], planes: list[list[Plane]], overlay: Image, frame: MosaicAxes, background: Window
) -> tuple[list[list[np.ndarray]], list[list[Plane]], Segments]:
    """Return the tiles with contours of the overlay and a row of checkerboards, their planes, and the header's line."""
    window = choose_window(overlay)
    window = background if window.unit == background.unit != "" else window  # the same window for two CTs
    values = [[sample(overlay, plane, window.low) for plane in row] for row in planes]
    smooth = [
        [smoothed(window.around_levels(value), overlay, plane) for value, plane in zip(*rows, strict=True)]
        for rows in zip(values, planes, strict=True)
    ]
    drawn = [
        [draw_contours(*pair, window) for pair in zip(*rows, strict=True)] for rows in zip(tiles, smooth, strict=True)
    ]
    chosen = middle_tiles(planes, only_first=frame.thick)
    board = [_checkerboard(tiles[r][c], rgb(window.grey(values[r][c]))) for r, c in chosen]
    board_planes = [planes[r][c] for r, c in chosen]
    if len(board) == 1:  # a single slice: the checkerboard stands next to it
        return [drawn[0] + board], [planes[0] + board_planes], _contour_note(window, values)
    return [*drawn, board], [*planes, board_planes], _contour_note(window, values)


def _contour_note(window: Window, values: list[list[np.ndarray]]) -> Segments:
    if not window.levels:
        return [("the overlay is constant: no contours", WARNING)]
    if not any((tile != window.low).any() for row in values for tile in row):
        return [("nothing of the overlay lies inside the image", WARNING)]
    return [("overlay: ", DIM), *level_names(), (", warm squares of the checkerboard", DIM)]


def level_names() -> Segments:
    """Return what the contours follow, in their colours."""
    return [("outline", LEVEL_COLOURS[0]), (" and ", DIM), ("bright structures", LEVEL_COLOURS[1])]


def draw_contours(tile: np.ndarray, smooth: np.ndarray, window: Window) -> np.ndarray:
    """Return a tile with lines, about 1.5 pixels wide, where the scaled and smoothed overlay crosses its levels."""
    slope = np.hypot(*_gradient(smooth)) + 1e-3
    for level, colour in zip(window.levels, LEVEL_COLOURS, strict=False):
        distance = np.abs(smooth - window.around_levels(np.array(level))) / slope  # in pixels, to first order
        tile = _blend(tile, np.clip(1.25 - distance, 0, 1), np.array(colour))
    return tile


def smoothed(tile: np.ndarray, image: Image, plane: Plane) -> np.ndarray:
    """Return a tile smoothed by 0.8 voxels, at least 1.4 pixels, so that contours follow structures and not noise."""
    voxel = min(image.grid.spacing) / float(np.linalg.norm(plane.down))
    sigma = min(max(0.8 * voxel, 1.4), 8.0)
    rows, columns = (_smoothing_matrix(length, sigma) for length in tile.shape)
    return rows @ tile @ columns.T


@lru_cache(maxsize=8)
def _smoothing_matrix(length: int, sigma: float) -> np.ndarray:
    """Return (length, length) float32 Gaussian weights; tiles of a mosaic have few different sizes."""
    return gaussian_weights(np.arange(length), length, sigma).astype(np.float32)


def _gradient(tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return central differences per pixel along rows and columns; a tile may be one pixel wide."""
    padded = np.pad(tile, 1, mode="edge")
    return (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2, (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2


def middle_tiles(planes: list[list[Plane]], only_first: bool) -> list[tuple[int, int]]:
    """Return (row, column) of the tiles for one more row: middle slices of each view, or of the first."""
    views: dict[str, list[tuple[int, int]]] = {}
    for r, row in enumerate(planes):
        for c, plane in enumerate(row):
            views.setdefault(plane.view.name, []).append((r, c))
    ranked = []
    for order, places in enumerate(list(views.values())[: 1 if only_first else None]):
        outward = sorted(range(len(places)), key=[abs(2 * n + 1 - len(places)) for n in range(len(places))].__getitem__)
        ranked += [(turn, order, places[n]) for turn, n in enumerate(outward)]
    return sorted(place for _, _, place in sorted(ranked)[: max(map(len, planes))])


def _checkerboard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return a checkerboard of two tiles, in which the squares of the second are tinted."""
    rows, columns = first.shape[:2]
    side = max(4, max(rows, columns) // 8)
    board = (np.arange(rows)[:, None] // side + np.arange(columns) // side) % 2 == 1
    return np.where(board[..., None], (second * np.array(CHECKER_TINT)).astype(np.uint8), first)
