"""The planes of a mosaic: along RAS+ axes or a scan's own, through the content of the image, radiological."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from medkit.figures.window import Window, thinned
from medkit.pipe.names import GREY_PICTURES, suffix_of

if TYPE_CHECKING:
    from medkit.images.image import Image
    from medkit.space import Grid

WIDTH, HEIGHT = 1240, 1200
"""Largest size of the rows of tiles in pixels: five brain slices with pixels of about 0.75 mm."""
MAX_TILE = 480
"""Largest width of a tile in pixels, so that a single slice does not fill the screen."""
GAP = 3
"""Pixels between tiles."""
MAX_COLUMNS = 8
"""Largest number of tiles next to each other; further ones go to another row."""
MAX_ZOOM = 12
"""Largest size of a voxel in pixels."""
ANISOTROPIC = 2.0
"""Ratio of spacings above which planes follow the scan's own slices, as nothing is known between thick slices."""


@dataclass(frozen=True)
class View:
    """An anatomical plane as it is shown; axes are 0 (to the right), 1 (to the front), 2 (to the head)."""

    name: str
    """Its name on the tiles."""
    normal: int
    """Axis along which the slices are stacked."""
    across: int
    """Axis that decreases from the left edge of a tile to its right edge."""
    down: int
    """Axis that decreases from the top edge of a tile to its bottom edge."""
    marks: str
    """Letters of the left, right, top and bottom edge."""


VIEWS = (
    View("axial", 2, 0, 1, "RLAP"),
    View("coronal", 1, 0, 2, "RLSI"),
    View("sagittal", 0, 1, 2, "APSI"),
)
PICTURE = View("", 2, 0, 1, "")
"""The plane of a picture that states no direction in the body, as its rows and columns lie."""
AXIS_ENDS = ("RL", "AP", "SI")
"""Letters of the positive and the negative end of each axis."""


@dataclass(frozen=True, eq=False)
class MosaicAxes:
    """The orthonormal axes along which a mosaic is cut."""

    axes: np.ndarray
    """(3, 3), in its columns the axes closest to right, anterior and superior, in RAS+."""
    voxel_axis: tuple[int, int, int]
    """The axis of the voxel grid that is closest to each of them."""
    thick: bool
    """Whether the axes are the scan's own, because it is planar or strongly anisotropic."""
    unknown: bool = False
    """Whether the file does not say how the axes lie in the body, as pictures and X-rays."""

    @property
    def oblique(self) -> bool:
        """Whether the axes are not those of RAS+."""
        return not np.allclose(self.axes, np.eye(3), atol=1e-3)


@dataclass(frozen=True, eq=False)
class Plane:
    """The position of a tile: the centre of pixel (row, column) is `origin + row * down + column * across`."""

    view: View
    """Its anatomical plane."""
    position: float
    """mm along the normal of the view."""
    shape: tuple[int, int]
    """Rows and columns."""
    origin: np.ndarray
    """(3,) RAS+ mm, the centre of the first pixel."""
    down: np.ndarray
    """(3,) RAS+ mm from one row to the next."""
    across: np.ndarray
    """(3,) RAS+ mm from one column to the next."""

    def finer(self, factor: int) -> Plane:
        """Return the same area with `factor` times as many rows and columns."""
        down, across = self.down / factor, self.across / factor
        origin = self.origin - (factor - 1) / 2 * (down + across)
        shape = (self.shape[0] * factor, self.shape[1] * factor)
        return replace(self, shape=shape, origin=origin, down=down, across=across)

    @property
    def caption(self) -> str:
        """The name of the plane and its position, such as `axial S 12 mm`; empty if nothing states where it lies."""
        if not self.view.name:
            return ""
        ends = AXIS_ENDS[self.view.normal]
        return f"{self.view.name} {ends[self.position < 0]} {abs(round(self.position, 1)):g} mm"


def axes_of(image: Image) -> MosaicAxes:
    """Return the axes of a mosaic of an image; they are `unknown` for pictures, and for DICOM planes at no place.

    The readers of these lay columns to the left and rows to the back, from the origin on, where nothing is stated.
    """
    affine = np.asarray(image.grid.affine)
    no_place = np.array_equal(affine[:3, :3], np.diag(np.diag(affine)[:3])) and not affine[:3, 3].any()
    left_and_back = affine[0, 0] < 0 and affine[1, 1] < 0 and affine[2, 2] == 1
    stating = image.path is None or suffix_of(image.path).lower() not in (*GREY_PICTURES, "", ".dcm", ".ima")
    unknown = not stating and image.grid.shape[2] == 1 and no_place and left_and_back
    return replace(choose_axes(image.grid), unknown=bool(unknown))


def choose_axes(grid: Grid) -> MosaicAxes:
    """Return the axes of a mosaic: RAS+, or the scan's own if it is planar or strongly anisotropic."""
    steps = np.asarray(grid.affine, float)[:3, :3]
    spacing = np.linalg.norm(steps, axis=0)
    directions = steps / spacing
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    order = max(orders, key=lambda p: sum(abs(directions[a, p[a]]) for a in range(3)))
    if 1 not in grid.shape and spacing.max() <= ANISOTROPIC * spacing.min():
        return MosaicAxes(np.eye(3), order, False)
    axes = directions[:, list(order)] * np.sign([directions[a, order[a]] or 1.0 for a in range(3)])
    left, _, right = np.linalg.svd(axes)  # the nearest orthonormal axes, since a gantry tilt shears the grid
    return MosaicAxes(left @ right, order, True)


def choose_planes(
    image: Image, window: Window, frame: MosaicAxes, marked: np.ndarray | None, slices: int, times: int = 0
) -> list[list[Plane]]:
    """Return rows of planes through the content of the image.

    With `times`, each plane is alone in its row, since as many images will be shown on it next to each other.

    `marked` (N, 3), if given, are points that the slices should cut, such as those of labels, in mm along the axes of
    `frame`.
    """
    low, high = _content_box(image, window, frame)
    if marked is not None:
        marked = marked[((marked >= low) & (marked <= high)).all(axis=1)]
    marked = marked if marked is not None and len(marked) else None
    slices = max(1, slices)

    def cuts(view: View, count: int) -> list[tuple[View, float]]:
        return [(view, at) for at in _positions(image.grid, frame, view.normal, (low, high), marked, count)]

    rows = _rows(_views(image.grid, frame), cuts, slices, frame.thick)
    if times:
        rows = [[pair] for row in rows for pair in row]
    margin = 0.04 * (high - low)
    fov_low, fov_high = _field_of_view(image.grid, frame)
    low, high = np.maximum(low - margin, fov_low), np.minimum(high + margin, fov_high)
    if marked is not None:
        low, high = _zoomed(low, high, marked)
    views = [[view for view, _ in row] * max(1, times) for row in rows]
    pixel = _pixel_size(high - low, views, min(image.grid.spacing))
    return [[_plane(view, at, frame.axes, low, high, pixel) for view, at in row] for row in rows]


def _rows(
    views: list[View], cuts: Callable[[View, int], list[tuple[View, float]]], slices: int, thick: bool
) -> list[list[tuple[View, float]]]:
    """Return a row for each view; for thick slices two rows of these slices and one that the other views share."""
    if not thick or len(views) == 1:
        return [part for view in views for part in _wrapped(cuts(view, slices), MAX_COLUMNS)]
    across = cuts(views[1], max(1, slices // 2)) + cuts(views[2], max(1, slices - slices // 2))
    return _wrapped(cuts(views[0], 2 * slices), min(slices, MAX_COLUMNS)) + _wrapped(across, MAX_COLUMNS)


def _wrapped(row: list[tuple[View, float]], columns: int) -> list[list[tuple[View, float]]]:
    """Return a row split into rows of about equal length, none longer than `columns`."""
    lines = -(-len(row) // columns)
    length = -(-len(row) // lines)
    return [row[start : start + length] for start in range(0, len(row), length)]


def _views(grid: Grid, frame: MosaicAxes) -> list[View]:
    """Return all three views, that of thick slices first; for a planar image only the view of its plane."""

    def thickness(view: View) -> float:
        return float(grid.spacing[frame.voxel_axis[view.normal]])

    if frame.unknown:
        return [PICTURE]
    thin = [view for view in VIEWS if grid.shape[frame.voxel_axis[view.normal]] == 1]
    return thin[:1] or (sorted(VIEWS, key=thickness, reverse=True) if frame.thick else list(VIEWS))


def _zoomed(low: np.ndarray, high: np.ndarray, marked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the box, narrowed along axes where labels take less than a fifth of it, as a lesion does."""
    first, last = marked.min(axis=0), marked.max(axis=0)
    half = np.maximum(1.5 * (last - first), (high - low) / 8)
    small, centre = last - first < 0.2 * (high - low), (first + last) / 2
    return np.where(small, np.maximum(low, centre - half), low), np.where(small, np.minimum(high, centre + half), high)


def _plane(view: View, at: float, axes: np.ndarray, low: np.ndarray, high: np.ndarray, pixel: float) -> Plane:
    """Return the plane `at` mm along the view's normal over the box from `low` to `high` (mm along the axes)."""
    rows, columns = (max(1, int(np.ceil((high - low)[axis] / pixel - 1e-6))) for axis in (view.down, view.across))
    corner = (low + high) / 2
    corner[view.normal] = at
    corner[view.down] += (rows - 1) / 2 * pixel
    corner[view.across] += (columns - 1) / 2 * pixel
    return Plane(view, at, (rows, columns), axes @ corner, -pixel * axes[:, view.down], -pixel * axes[:, view.across])


def _pixel_size(extent: np.ndarray, rows: Sequence[Sequence[View]], spacing: float) -> float:
    """Return the size of a pixel in mm, the same for all tiles so that they can be compared."""
    tile = min(MAX_TILE, WIDTH // max(map(len, rows)) - GAP)
    across = max(extent[view.across] for row in rows for view in row) / tile
    heights = [max(extent[view.down] for view in row) for row in rows]
    height = HEIGHT * max(1.0, len(rows) / 4)
    return float(max(across, max(heights) / (2 * MAX_TILE), sum(heights) / height, spacing / MAX_ZOOM))


def _positions(
    grid: Grid, frame: MosaicAxes, axis: int, box: tuple[np.ndarray, np.ndarray], marked: np.ndarray | None, count: int
) -> list[float]:
    """Return positions, mm along one axis, spread evenly through the box, on slices of the scan, each of them once."""
    low, high = (end[axis] for end in box)
    if marked is not None:
        # stray voxels of a label must not take a slice from the others
        low, high = np.quantile(marked[:, axis], [0.002, 0.998])
    wanted = low + (high - low) * (np.arange(count) + 0.5) / count
    if marked is not None:
        occupied = np.unique(marked[:, axis].round(3))
        wanted = occupied[np.abs(wanted[:, None] - occupied).argmin(axis=1)]
    centre = (box[0] + box[1]) / 2
    return sorted({_snapped(grid, frame, axis, centre, at) for at in wanted})


def _snapped(grid: Grid, frame: MosaicAxes, axis: int, centre: np.ndarray, at: float) -> float:
    """Return the position nearest to `at` that cuts voxel centres: a slice is shown there, not a mixture of two."""
    inverse = np.linalg.inv(grid.affine)
    point = centre.copy()
    point[axis] = at
    voxel_axis = frame.voxel_axis[axis]
    index = (inverse[:3, :3] @ frame.axes @ point + inverse[:3, 3])[voxel_axis]
    nearest = np.clip(np.rint(index), 0, grid.shape[voxel_axis] - 1)
    return float(np.round(at + (nearest - index) / (inverse[:3, :3] @ frame.axes)[voxel_axis, axis], 4))


def _field_of_view(grid: Grid, frame: MosaicAxes) -> tuple[np.ndarray, np.ndarray]:
    """Return the box around all voxels, with their outer faces: low and high (3,), mm along the frame's axes."""
    corners = np.stack(np.meshgrid(*((-0.5, n - 0.5) for n in grid.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    points = _to_frame(corners, grid, frame)
    return points.min(axis=0), points.max(axis=0)


def _content_box(image: Image, window: Window, frame: MosaicAxes) -> tuple[np.ndarray, np.ndarray]:
    """Return the box around what is brighter than air; along axes where it is very small, the field of view."""
    fov_low, fov_high = _field_of_view(image.grid, frame)
    values, strides = thinned(image)
    if not window.levels:
        return fov_low, fov_high
    air = window.levels[0] if window.unit else window.low + 0.5 * (window.levels[0] - window.low)
    points = _points(values > air, image.grid, frame, strides)
    if len(points) == 0:
        return fov_low, fov_high
    # a thousandth of the voxels may lie outside, so that noise and ghosts in the air do not enlarge the box
    low, high = np.quantile(points, [0.001, 0.999], axis=0)
    half = 0.5 * np.abs(frame.axes.T @ image.grid.affine[:3, :3]) @ np.array(strides)
    low, high = np.maximum(low - half, fov_low), np.minimum(high + half, fov_high)
    small = high - low < 0.25 * (fov_high - fov_low)
    return np.where(small, fov_low, low), np.where(small, fov_high, high)


def label_points(labels: Image, frame: MosaicAxes) -> np.ndarray:
    """Return centres of labelled voxels, (N, 3) mm along the frame's axes: an even choice of at most about 100000."""
    return _points(labels.data[0] != 0, labels.grid, frame)


def _points(mask: np.ndarray, grid: Grid, frame: MosaicAxes, strides: Sequence[int] = (1, 1, 1)) -> np.ndarray:
    """Return centres of voxels in a mask as `label_points`; the mask has only every `strides`-th voxel of the grid."""
    order: Literal["C", "F"] = "F" if mask.flags.f_contiguous else "C"
    found = np.flatnonzero(mask.ravel(order))
    found = found[:: len(found) // 100_000 + 1]
    return _to_frame(np.stack(np.unravel_index(found, mask.shape, order), axis=-1) * strides, grid, frame)


def _to_frame(voxels: np.ndarray, grid: Grid, frame: MosaicAxes) -> np.ndarray:
    """Return voxel indices (N, 3) as mm along the frame's axes (N, 3)."""
    return voxels @ (frame.axes.T @ grid.affine[:3, :3]).T + frame.axes.T @ grid.affine[:3, 3]
