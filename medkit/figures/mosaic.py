"""Pictures for `--qc`: mosaics of slices that let a reader judge a result at a glance.

Display convention: radiological. The patient's right is on the left of axial and coronal tiles, anterior is on the
left of sagittal ones; letters on the tiles say so. Only the shown slices are interpolated. A picture is drawn for every
image and overlay there is (constant, empty, one voxel thick, in another place): what cannot be shown is said in its
header instead of raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from medkit.figures.planes import (
    GAP,
    MosaicAxes,
    Plane,
    Window,
    choose_axes,
    choose_planes,
    choose_window,
    label_points,
    sample,
    sample_labels,
)

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

    from medkit.images.image import Image

MIN_CELL = (54, 116)
"""Rows and columns a tile gets at least, so that its letters and its position fit."""
MIN_WIDTH = 620
"""Pixels the picture is wide at least, so that the header fits."""
STEP = 4
"""Grey levels are multiples of this: 64 levels look like 256 at this size and halve the PNG."""
WHITE, DIM, WARNING = (255, 255, 255), (175, 175, 175), (255, 210, 60)
LEVEL_COLOURS = ((0, 215, 255), (255, 90, 40))
"""Contours of the overlay's outline and of its brighter structures."""
CHECKER_TINT = (1.0, 0.87, 0.64)
"""The overlay's squares are warmer than the background's, so that one knows which is which."""

Segments = list[tuple[str, tuple[int, int, int]]]
"""A line of text in pieces, each with its colour."""


def overlay_mosaic(
    background: Image,
    overlay: Image | None = None,
    *,
    kind: Literal["image", "labels"] = "image",
    title: str = "",
    slices: int = 5,
) -> np.ndarray:
    """Rows of axial, coronal and sagittal slices of an image, with another image or labels drawn over it.

    Both may lie on any grid: they are sampled where they are in RAS+ mm; of several channels the first is shown.
    `slices` is the number of slices per row, fewer where the image has fewer. `kind="image"`: contours of the overlay
    over the background, and a last row where the two take turns in a checkerboard. `kind="labels"`: a light fill and
    a contour per label, in slices that hold labels; a label has the same colour in every picture.

    Gives (H, W, 3) uint8, radiological convention. Planes follow the RAS+ axes; those of a planar or strongly
    anisotropic scan follow its own slices. Never raises for what the images hold.
    """
    window = choose_window(background)
    frame = choose_axes(background.grid)
    marked = label_points(overlay, frame) if overlay is not None and kind == "labels" else None
    planes = choose_planes(background, window, frame, marked, slices)
    tiles = [[_rgb(window.grey(sample(background, plane, window.low))) for plane in row] for row in planes]
    note: Segments = []
    if overlay is not None and kind == "labels":
        tiles, note = _with_labels(tiles, planes, overlay)
    elif overlay is not None:
        tiles, planes, note = _with_contours(tiles, planes, overlay, frame, window)
    convention = "patient's right on the left (radiological)   grey: "
    convention += f"{window.low:.4g} to {window.high:.4g}{window.unit}"
    convention += "" if np.allclose(frame.axes, np.eye(3), atol=1e-3) else "   planes of the scan, oblique to RAS"
    return _compose(tiles, planes, [[(title, WHITE)], [(convention, DIM)], note])


def comparison_mosaic(before: Image, after: Image, *, title: str = "", slices: int = 1) -> np.ndarray:
    """Slices of an image, the same of one on its grid that was made from it, and the difference of the two.

    Both images have the grey window of the first; in the difference (second minus first) mid-grey is none, and the
    header says what black and white are. Gives (H, W, 3) uint8, radiological convention.
    """
    window, frame = choose_window(before), choose_axes(before.grid)
    planes = [plane for row in choose_planes(before, window, frame, None, slices) for plane in row]
    change = before.with_data(after.data.astype(np.float32) - before.data)
    most = float(np.percentile(np.abs(change.data), 99.9)) or 1.0
    tiles = [
        [
            *(_rgb(window.grey(sample(image, plane, window.low))) for image in (before, after)),
            _rgb(np.clip(0.5 + sample(change, plane) / (2 * most), 0, 1)),
        ]
        for plane in planes
    ]
    what = f"before, after (grey: {window.low:.4g} to {window.high:.4g}{window.unit})"
    note = f"{what}, difference ({-most:.3g} to {most:.3g}); patient's right on the left (radiological)"
    return _compose(tiles, [[plane] * 3 for plane in planes], [[(title, WHITE)], [(note, DIM)]])


def sample_sheet(samples: Sequence[tuple[np.ndarray, np.ndarray | None]], columns: int = 4) -> np.ndarray:
    """What a network is trained with: a slice of each sample, and beside it the same slice with its labels.

    samples: images (I, J, K) with axes along RAS+, or planar (I, J), and labels of the same shape or None. The slice is
    the coronal one through the middle of the labels, or of the image. Gives (H, W, 3) uint8, radiological convention.
    """
    tiles = [_sample_tile(image, labels) for image, labels in samples]
    height, width = (max(tile.shape[axis] for tile in tiles) + GAP for axis in (0, 1))
    columns = min(columns, len(tiles))
    sheet = np.zeros((height * -(-len(tiles) // columns), width * columns, 3), np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet[row * height : row * height + tile.shape[0], column * width : column * width + tile.shape[1]] = tile
    return sheet


def _sample_tile(image: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """A slice, alone and with its labels, every pixel twice as large."""
    if image.ndim == 3:
        marked = np.zeros(0) if labels is None else np.flatnonzero(labels.any(axis=(0, 2)))
        at = int(np.median(marked)) if len(marked) else image.shape[1] // 2
        image, labels = image[:, at], None if labels is None else labels[:, at]
    low, high = np.percentile(image, [0.5, 99.5])
    tile = _rgb(Window(float(low), float(max(high, low + 1e-6)), ()).grey(_doubled(image)))
    return tile if labels is None else np.hstack([tile, _draw_labels(tile, _doubled(labels).astype(np.int64))])


def _doubled(plane: np.ndarray) -> np.ndarray:
    """(right, up) -> (2 rows, 2 columns), the patient's right on the left."""
    return plane[::-1, ::-1].T.repeat(2, axis=0).repeat(2, axis=1)


def write_png(array: np.ndarray, file: Path | BinaryIO) -> None:
    """Write (H, W) or (H, W, 3) uint8 as PNG, without loss; the same array gives the same bytes."""
    from PIL import Image as Pillow

    Pillow.fromarray(np.ascontiguousarray(array)).save(file, format="PNG", compress_level=7)


def label_colours(labels: np.ndarray) -> np.ndarray:
    """The colour of each label, a fixed function of its number: (...,) integers -> (..., 3) uint8.

    Hues a golden ratio apart keep neighbouring numbers far from each other; brightness and saturation change slowly, so
    that labels whose hues meet still differ.
    """
    index = np.abs(np.asarray(labels)).astype(np.int64) - 1
    hue = (index * 0.618034) % 1.0
    saturation = np.where(index // 8 % 2 == 0, 0.9, 0.6)[..., None]
    value = np.where(index // 16 % 2 == 0, 1.0, 0.78)[..., None]
    wheel = np.abs((hue[..., None] + np.array([0, 2 / 3, 1 / 3])) % 1.0 * 6 - 3) - 1
    return np.rint(255 * value * (1 - saturation * (1 - np.clip(wheel, 0, 1)))).astype(np.uint8)


def _rgb(grey: np.ndarray) -> np.ndarray:
    """0..1 (rows, columns) -> uint8 (rows, columns, 3)."""
    levels = (grey * (255 // STEP)).round() * STEP
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=-1)


def _blend(tile: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Paint `colour` over a tile with opacity `alpha` (rows, columns)."""
    alpha = alpha[..., None].astype(np.float32)
    return np.rint(tile + alpha * (np.asarray(colour, np.float32) - tile)).astype(np.uint8)


def _with_labels(
    tiles: list[list[np.ndarray]], planes: list[list[Plane]], labels: Image
) -> tuple[list[list[np.ndarray]], Segments]:
    maps = [[sample_labels(labels, plane) for plane in row] for row in planes]
    drawn = [[_draw_labels(*pair) for pair in zip(*rows, strict=True)] for rows in zip(tiles, maps, strict=True)]
    seen = np.unique(np.concatenate([np.unique(tile) for row in maps for tile in row]))
    seen = seen[seen != 0]
    if len(seen) == 0:
        empty = not np.any(labels.data[0])
        return drawn, [("no labels: the label image is empty" if empty else "no labels inside the image", WARNING)]
    if len(seen) > 24:
        return drawn, [(f"{len(seen)} labels shown", DIM)]
    colours = label_colours(seen)
    return drawn, [
        ("labels shown: ", DIM),
        *((f"{label}  ", (int(r), int(g), int(b))) for label, (r, g, b) in zip(seen, colours, strict=True)),
    ]


def _draw_labels(tile: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A light fill and, on the labels' own outermost pixels, a full contour."""
    padded = np.pad(labels, 1)
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = np.any([side != labels for side in around], axis=0)
    alpha = np.where(labels == 0, 0.0, np.where(edge, 1.0, 0.22))
    return _blend(tile, alpha, label_colours(labels))


def _with_contours(
    tiles: list[list[np.ndarray]], planes: list[list[Plane]], overlay: Image, frame: MosaicAxes, background: Window
) -> tuple[list[list[np.ndarray]], list[list[Plane]], Segments]:
    """Contours of the overlay over every tile, and a row of checkerboards."""
    window = choose_window(overlay)
    window = background if window.unit == background.unit != "" else window  # two CTs in one checkerboard
    values = [[sample(overlay, plane, window.low) for plane in row] for row in planes]
    smooth = [
        [_smoothed(window.around_levels(value), overlay, plane) for value, plane in zip(*rows, strict=True)]
        for rows in zip(values, planes, strict=True)
    ]
    drawn = [
        [_draw_contours(*pair, window) for pair in zip(*rows, strict=True)] for rows in zip(tiles, smooth, strict=True)
    ]
    chosen = _checker_choice(planes, only_first=frame.thick)
    board = [_checkerboard(tiles[r][c], _rgb(window.grey(values[r][c]))) for r, c in chosen]
    board_planes = [planes[r][c] for r, c in chosen]
    if len(board) == 1:  # a single slice: side by side
        return [drawn[0] + board], [planes[0] + board_planes], _contour_note(window, values)
    return [*drawn, board], [*planes, board_planes], _contour_note(window, values)


def _contour_note(window: Window, values: list[list[np.ndarray]]) -> Segments:
    if not window.levels:
        return [("the overlay is constant: no contours", WARNING)]
    if not any((tile != window.low).any() for row in values for tile in row):
        return [("nothing of the overlay lies inside the image", WARNING)]
    return [
        ("overlay: ", DIM),
        ("outline", LEVEL_COLOURS[0]),
        (" and ", DIM),
        ("bright structures", LEVEL_COLOURS[1]),
        (", warm squares of the checkerboard", DIM),
    ]


def _draw_contours(tile: np.ndarray, smooth: np.ndarray, window: Window) -> np.ndarray:
    """Lines about one and a half pixels wide where the overlay, scaled and smoothed, crosses its structure levels."""
    slope = np.hypot(*_gradient(smooth)) + 1e-3
    for level, colour in zip(window.levels, LEVEL_COLOURS, strict=False):
        distance = np.abs(smooth - window.around_levels(np.array(level))) / slope  # in pixels, to first order
        tile = _blend(tile, np.clip(1.25 - distance, 0, 1), np.array(colour))
    return tile


def _smoothed(tile: np.ndarray, image: Image, plane: Plane) -> np.ndarray:
    """Gaussian smoothing by 0.8 voxels, and 1.4 pixels at least: contours follow structures and not noise."""
    voxel = min(image.grid.spacing) / float(np.linalg.norm(plane.down))
    sigma = min(max(0.8 * voxel, 1.4), 8.0)
    rows, columns = (_gaussian_matrix(length, sigma) for length in tile.shape)
    return rows @ tile @ columns.T


def _gaussian_matrix(length: int, sigma: float) -> np.ndarray:
    """(length, length) float32; times a vector it smooths that, with weights of sum one at the ends as well."""
    at = np.arange(length, dtype=np.float32)
    weights = np.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


def _gradient(tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central differences per pixel along rows and columns, also of tiles one pixel wide."""
    padded = np.pad(tile, 1, mode="edge")
    return (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2, (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2


def _checker_choice(planes: list[list[Plane]], only_first: bool) -> list[tuple[int, int]]:
    """(row, column) of a row's worth of tiles to show as checkerboards: middle slices of each view, or of the first."""
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
    """Squares of two tiles in turn, the second one's tinted."""
    rows, columns = first.shape[:2]
    side = max(4, max(rows, columns) // 8)
    board = (np.arange(rows)[:, None] // side + np.arange(columns) // side) % 2 == 1
    return np.where(board[..., None], (second * np.array(CHECKER_TINT)).astype(np.uint8), first)


def _compose(tiles: list[list[np.ndarray]], planes: list[list[Plane]], header: Sequence[Segments]) -> np.ndarray:
    """Put tiles in rows under the header's lines and write letters and positions on them."""
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


def _write_header(draw: ImageDraw.ImageDraw, lines: Sequence[Segments], width: int) -> None:
    for number, line in enumerate(lines):
        x, y, size = 8.0, 6 + 20 * number, 15 if number == 0 else 13
        for text, colour in line:
            text = _fitting(draw, text, width - 8 - x, size)
            x += _text(draw, (x, y), text, colour, "la", size)


def _write_marks(draw: ImageDraw.ImageDraw, cell: tuple[int, int, int, int], plane: Plane, first: bool) -> None:
    """Position and the letters of left and right; those of top and bottom on the first tile of a view."""
    left, top, right, bottom = cell
    y, x = (top + bottom) // 2, (left + right) // 2
    spots = (((left + 3, y), "lm"), ((right - 3, y), "rm"), ((x, top + 2), "ma"), ((x, bottom - 17), "md"))
    for letter, (spot, anchor) in zip(plane.view.marks[: 4 if first else 2], spots, strict=False):
        _text(draw, spot, letter, WARNING, anchor, 13)
    _text(draw, (left + 4, bottom - 3), plane.caption, WHITE, "ld", 12)


def _text(
    draw: ImageDraw.ImageDraw,
    spot: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
    anchor: str,
    size: int,
) -> float:
    """Write with a dark rim, readable on white tissue; gives the text's width in pixels."""
    font = _font(size)
    draw.text(spot, text, fill=colour, font=font, anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))
    return draw.textlength(text, font=font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: float, size: int) -> str:
    """One line in the characters Pillow's own font has, its middle left out where wider than `width` pixels.

    The middle, because names of cases differ at their ends.
    """
    full = " ".join(text.split("\n")).encode("latin-1", "replace").decode("latin-1")
    full = full if len(full) < 400 else full[:200] + full[-200:]
    text, kept = full, len(full)
    while kept > 3 and draw.textlength(text, font=_font(size)) > width:
        kept -= 1
        text = f"{full[: kept // 2]}...{full[len(full) - kept // 2 :]}"
    return text
