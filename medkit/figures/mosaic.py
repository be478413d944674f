"""Pictures for `--qc`: mosaics of slices that show at a glance whether a result is right.

Display convention: radiological. The patient's right is on the left of axial and coronal tiles, anterior is on the left
of sagittal ones; letters on the tiles show this. Only the shown slices are interpolated. Every image and overlay gets a
picture (also if constant, empty, one voxel thick, or elsewhere in space): the header states what cannot be shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from medkit.figures.layout import DIM, WHITE, Segments, compose
from medkit.figures.overlays import draw_labels, rgb, with_contours, with_labels
from medkit.figures.planes import GAP, choose_axes, choose_planes, label_points
from medkit.figures.sampling import sample
from medkit.figures.window import Window, choose_window

if TYPE_CHECKING:
    from medkit.images.image import Image


def overlay_mosaic(
    background: Image,
    overlay: Image | None = None,
    *,
    kind: Literal["image", "labels"] = "image",
    title: str = "",
    slices: int = 5,
) -> np.ndarray:
    """Return rows of axial, coronal and sagittal slices of an image, with another image or labels drawn over it.

    Both may lie on any grid, as they are sampled at the same positions in RAS+ mm. The first channel is shown, in rows
    of at most `slices`. `kind="image"`: contours of the overlay, and a last row with a checkerboard of both images.
    `kind="labels"`: a light fill and a contour for each label, whose colour is the same in every picture.

    The picture is (H, W, 3) uint8 in radiological convention. Planes follow the RAS+ axes, or the scan's own slices if
    it is planar or strongly anisotropic. No content of the images raises an error.
    """
    window = choose_window(background)
    frame = choose_axes(background.grid)
    marked = label_points(overlay, frame) if overlay is not None and kind == "labels" else None
    planes = choose_planes(background, window, frame, marked, slices)
    tiles = [[rgb(window.grey(sample(background, plane, window.low))) for plane in row] for row in planes]
    note: Segments = []
    if overlay is not None and kind == "labels":
        tiles, note = with_labels(tiles, planes, overlay)
    elif overlay is not None:
        tiles, planes, note = with_contours(tiles, planes, overlay, frame, window)
    convention = "patient's right on the left (radiological)   grey: "
    convention += f"{window.low:.4g} to {window.high:.4g}{window.unit}"
    convention += "" if np.allclose(frame.axes, np.eye(3), atol=1e-3) else "   planes of the scan, oblique to RAS"
    return compose(tiles, planes, [[(title, WHITE)], [(convention, DIM)], note])


def comparison_mosaic(before: Image, after: Image, *, title: str = "", slices: int = 1) -> np.ndarray:
    """Return slices of an image, of the result made from it on the same grid, and of their difference.

    Both images have the grey window of the first. In the difference (second minus first) mid-grey is 0, and the header
    states the values of black and white. The picture is (H, W, 3) uint8 in radiological convention.
    """
    window, frame = choose_window(before), choose_axes(before.grid)
    planes = [plane for row in choose_planes(before, window, frame, None, slices) for plane in row]
    change = before.with_data(after.data.astype(np.float32) - before.data)
    most = float(np.percentile(np.abs(change.data), 99.9)) or 1.0
    tiles = [
        [
            *(rgb(window.grey(sample(image, plane, window.low))) for image in (before, after)),
            rgb(np.clip(0.5 + sample(change, plane) / (2 * most), 0, 1)),
        ]
        for plane in planes
    ]
    what = f"before, after (grey: {window.low:.4g} to {window.high:.4g}{window.unit})"
    note = f"{what}, difference ({-most:.3g} to {most:.3g}); patient's right on the left (radiological)"
    return compose(tiles, [[plane] * 3 for plane in planes], [[(title, WHITE)], [(note, DIM)]])


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
