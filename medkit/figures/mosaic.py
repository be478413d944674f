"""Pictures for `--qc`: mosaics of slices that show at a glance whether a result is right.

Display convention: radiological. The patient's right is on the left of axial and coronal tiles, anterior is on the left
of sagittal ones; letters on the tiles show this. Only the shown slices are interpolated. Every image and overlay gets a
picture (also if constant, empty, one voxel thick, or elsewhere in space): the header states what cannot be shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from medkit.figures.deformation import Deformation, draw_deformation, fold_note
from medkit.figures.layout import DIM, WHITE, Segments, compose, stacked
from medkit.figures.legend import legend
from medkit.figures.overlays import (
    draw_contours,
    draw_labels,
    level_names,
    middle_tiles,
    rgb,
    smoothed,
    with_contours,
    with_labels,
)
from medkit.figures.planes import GAP, Plane, axes_of, choose_planes, label_points
from medkit.figures.sampling import sample, sample_mapped
from medkit.figures.scales import ColourScale, scale_bar
from medkit.figures.window import Window, choose_window

if TYPE_CHECKING:
    from medkit.figures.deformation import PointMap
    from medkit.figures.planes import MosaicAxes
    from medkit.images.image import Image


def overlay_mosaic(
    background: Image,
    overlay: Image | None = None,
    *,
    kind: Literal["image", "labels"] = "image",
    title: str = "",
    slices: int = 5,
    names: Mapping[int, str] | None = None,
    volumes: bool = True,
    deformation: Deformation | None = None,
) -> np.ndarray:
    """Return rows of axial, coronal and sagittal slices of an image, with another image or labels drawn over it.

    Both may lie on any grid, as they are sampled at the same positions in RAS+ mm. The first channel is shown, in rows
    of at most `slices`. `kind="image"`: contours of the overlay, and a row with a checkerboard of both images; with a
    `deformation`, also a row with a grid of squares through it.
    `kind="labels"`: a light fill and a thin contour for each label, whose colour is the same in every picture, and a
    legend of the labels with their `volumes`; `names`: label -> name.

    The picture is (H, W, 3) uint8 in radiological convention. Planes follow the RAS+ axes, or the scan's own slices if
    it is planar or strongly anisotropic. No content of the images raises an error.
    """
    window = choose_window(background)
    frame = axes_of(background)
    marked = label_points(overlay, frame) if overlay is not None and kind == "labels" else None
    planes = choose_planes(background, window, frame, marked, slices)
    plain = [[rgb(window.grey(sample(background, plane, window.low))) for plane in row] for row in planes]
    tiles, note, below = plain, list[tuple[str, tuple[int, int, int]]](), list[np.ndarray]()
    shown = planes
    if overlay is not None and kind == "labels":
        tiles, note = with_labels(plain, planes, overlay)
    elif overlay is not None:
        tiles, shown, note = with_contours(plain, planes, overlay, frame, window)
    if deformation is not None:
        chosen = middle_tiles(planes, only_first=frame.thick)
        places = [planes[r][c] for r, c in chosen]
        row, scale, square, folds = draw_deformation([plain[r][c] for r, c in chosen], places, deformation.moves)
        tiles, shown = _with_row(tiles, shown, row, places)
        note = [*note, *([("   ", DIM)] if note else []), *fold_note(folds)]
        below = [scale_bar(scale, f"grid of {square:g} mm squares through {deformation.name}; points move by")]
    picture = compose(tiles, shown, [[(title, WHITE)], _convention(frame, window), note])
    if overlay is not None and kind == "labels":
        below = [legend(overlay, names or {}, picture.shape[1], volumes=volumes)]
    return stacked([picture, *below])


def _with_row(
    tiles: list[list[np.ndarray]], planes: list[list[Plane]], row: list[np.ndarray], places: list[Plane]
) -> tuple[list[list[np.ndarray]], list[list[Plane]]]:
    """Return tiles and their planes with one more row; a single tile goes next to the others."""
    if len(row) == 1 and len(tiles) == 1:
        return [tiles[0] + row], [planes[0] + places]
    return [*tiles, row], [*planes, places]


def _convention(frame: MosaicAxes, window: Window | None = None) -> Segments:
    """Return the header's line about orientation and greys."""
    parts = [] if frame.unknown else ["patient's right on the left (radiological)"]
    parts += [f"grey: {window.low:.4g} to {window.high:.4g}{window.unit}"] if window else []
    parts += ["planes of the scan, oblique to RAS"] if frame.oblique else []
    return [("   ".join(parts), DIM)]


def heat_mosaic(image: Image, heat: Image, *, title: str = "", what: str = "", slices: int = 5) -> np.ndarray:
    """Return slices of an image with a map from 0 to 1 drawn over them, and a bar of its colours, called `what`.

    Both may lie on any grid. Of a plane, the image without the map stands next to it. The picture is (H, W, 3) uint8 in
    radiological convention.
    """
    window, frame, scale = choose_window(image), axes_of(image), ColourScale.heat()
    planes = choose_planes(image, window, frame, None, slices)
    plain = [[rgb(window.grey(sample(image, plane, window.low))) for plane in row] for row in planes]
    drawn = [
        [_with_heat(tile, sample(heat, plane), scale) for tile, plane in zip(*rows, strict=True)]
        for rows in zip(plain, planes, strict=True)
    ]
    if len(plain) == 1 and len(plain[0]) == 1:
        drawn, planes = [plain[0] + drawn[0]], [planes[0] * 2]
    picture = compose(drawn, planes, [[(title, WHITE)], _convention(frame, window)])
    return stacked([picture, scale_bar(scale, what)])


def heat_tiles(items: Sequence[tuple[str, Image, Image]], *, what: str) -> np.ndarray:
    """Return planes next to each other, each given by its name, image and map from 0 to 1, and below them with the map.

    All have the same grey window. Below is a bar of the map's colours, called `what`. The picture is (H, W, 3) uint8.
    """
    scale, rows, places = ColourScale.heat(), list[list[np.ndarray]]([[], []]), list[Plane]()
    own = [choose_window(image) for _, image, _ in items]
    window = replace(own[0], low=min(one.low for one in own), high=max(one.high for one in own))
    for _, image, heat in items:
        plane = choose_planes(image, window, axes_of(image), None, 1, times=len(items))[0][0]
        tile = rgb(window.grey(sample(image, plane, window.low)))
        rows[0].append(tile)
        rows[1].append(_with_heat(tile, sample(heat, plane), scale))
        places.append(plane)
    return stacked([compose(rows, [places, places], [], [name for name, _, _ in items]), scale_bar(scale, what)])


def _with_heat(tile: np.ndarray, heat: np.ndarray, scale: ColourScale) -> np.ndarray:
    """Return a tile under a map, which is the more opaque the larger its value; the tile stays visible."""
    alpha = 0.65 * np.clip(heat, 0, 1)[..., None]
    return np.rint((1 - alpha) * tile + alpha * scale.colours(heat)).astype(np.uint8)


def comparison_mosaic(
    before: Image,
    after: Image,
    *,
    title: str = "",
    slices: int = 1,
    headings: tuple[str, str, str] = ("input", "output", "difference"),
) -> np.ndarray:
    """Return slices of an image, of the result made from it on the same grid, and of their difference, with its scale.

    Both images have the grey window of the first. In the difference (second minus first) 0 is black, less is blue, more
    is orange. `headings` stand above the three columns. The picture is (H, W, 3) uint8 in radiological convention.
    """
    window, frame = choose_window(before), axes_of(before)
    planes = [plane for row in choose_planes(before, window, frame, None, slices, times=3) for plane in row]
    change = before.with_data(after.data.astype(np.float32) - before.data)
    scale = ColourScale.diverging(float(np.percentile(np.abs(change.data), 99.7)) or 1.0, window.unit)
    tiles = [
        [
            *(rgb(window.grey(sample(image, plane, window.low))) for image in (before, after)),
            scale.colours(sample(change, plane)),
        ]
        for plane in planes
    ]
    header: list[Segments] = [[(title, WHITE)], _convention(frame, window)]
    picture = compose(tiles, [[plane] * 3 for plane in planes], header, headings)
    same = not change.data.any()
    said = f"{headings[2]}: none, both are equal" if same else f"{headings[2]} ({headings[1]} minus {headings[0]})"
    return stacked([picture, scale_bar(scale, said)])


def value_mosaic(image: Image, *, around: float, title: str = "", what: str = "", slices: int = 5) -> np.ndarray:
    """Return slices of a map of values in colours: `around` is black, less is blue, more is orange; with their scale.

    The picture is (H, W, 3) uint8 in radiological convention.
    """
    frame = axes_of(image)
    shown = image.with_data(np.abs(image.data[:1].astype(np.float32) - around))
    most = float(np.percentile(shown.data, 98)) or 1.0
    scale = ColourScale.diverging(most, around=around)
    planes = choose_planes(image, Window(around, around + 1, ()), frame, None, slices)
    tiles = [[scale.colours(sample(image, plane, around)) for plane in row] for row in planes]
    picture = compose(tiles, planes, [[(title, WHITE)], _convention(frame)])
    return stacked([picture, scale_bar(scale, what)])


@dataclass(frozen=True, eq=False)
class Member:
    """A scan of a group, and where its points lie."""

    name: str
    image: Image
    moves: PointMap
    """Takes points of the template to points of the scan."""


def members_mosaic(template: Image, members: Sequence[Callable[[], Member]], *, title: str = "") -> np.ndarray:
    """Return the middle slices of a template, and of scans at the same points, with the template's contours on them.

    The members are read one after the other, by calls. The picture is (H, W, 3) uint8 in radiological convention.
    """
    window, frame = choose_window(template), axes_of(template)
    times = 1 + len(members)
    planes = [row[0] for row in choose_planes(template, window, frame, None, 1, times=times)]
    values = [sample(template, plane, window.low) for plane in planes]
    smooth = [smoothed(window.around_levels(v), template, plane) for v, plane in zip(values, planes, strict=True)]
    columns = [[rgb(window.grey(v)) for v in values]]
    headings = ["the template"]
    for read in members:
        member = read()
        own = choose_window(member.image)
        greys = [rgb(own.grey(sample_mapped(member.image, plane, member.moves, own.low))) for plane in planes]
        columns.append([draw_contours(*pair, window) for pair in zip(greys, smooth, strict=True)])
        headings.append(member.name)
    tiles = [list(row) for row in zip(*columns, strict=True)]
    header: list[Segments] = [
        [(title, WHITE)],
        [*_convention(frame), ("   lines: the template's ", DIM), *level_names()],
    ]
    return compose(tiles, [[plane] * len(columns) for plane in planes], header, headings)


def sample_sheet(samples: Sequence[tuple[np.ndarray, np.ndarray | None]], columns: int = 4) -> np.ndarray:
    """Return a sheet of training samples: a slice of each, and next to it the same slice with its labels.

    samples: images (I, J, K) with axes along RAS+, or planar (I, J), and labels of the same shape or None. The slice is
    the coronal one through the middle of the labels, or of the image. The picture is (H, W, 3) uint8 in radiological
    convention.
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
    """Return a slice without and with its labels, every pixel doubled."""
    if image.ndim == 3:
        marked = np.zeros(0) if labels is None else np.flatnonzero(labels.any(axis=(0, 2)))
        at = int(np.median(marked)) if len(marked) else image.shape[1] // 2
        image, labels = image[:, at], None if labels is None else labels[:, at]
    low, high = np.percentile(image, [0.5, 99.5])
    tile = rgb(Window(float(low), float(max(high, low + 1e-6)), ()).grey(_doubled(image)))
    return tile if labels is None else np.hstack([tile, draw_labels(tile, _doubled(labels).astype(np.int64))])


def _doubled(plane: np.ndarray) -> np.ndarray:
    """Return a plane (right, up) as (2 rows, 2 columns) with the patient's right on the left."""
    return plane[::-1, ::-1].T.repeat(2, axis=0).repeat(2, axis=1)


def write_png(array: np.ndarray, file: Path | BinaryIO, texts: Mapping[str, str] | None = None) -> None:
    """Write (H, W) or (H, W, 3) uint8 as PNG, with key -> text inside; equal values make equal bytes."""
    from PIL import Image as Pillow
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in (texts or {}).items():
        info.add_text(key, text)
    Pillow.fromarray(np.ascontiguousarray(array)).save(file, format="PNG", compress_level=7, pnginfo=info)


def text_in_png(path: Path, key: str) -> str | None:
    """Return the text under a key in a PNG file; None if it has none, or is no PNG file."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(path) as picture:
            found = picture.info.get(key)
    except (OSError, ValueError, SyntaxError):
        return None
    return found if isinstance(found, str) else None
