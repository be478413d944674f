"""Where a picture's slices lie, which grey window they get, and the values on them.

Planes are chosen for `medkit.figures.mosaic`: in RAS+ axes or a scan's own, through what the image holds, radiological.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from medkit.images.modality import is_ct

if TYPE_CHECKING:
    from medkit.images.image import Image
    from medkit.space import Grid

WIDTH, HEIGHT = 1240, 1200
"""Pixels the rows of tiles may take: five brain slices at about 0.75 mm a pixel."""
MAX_TILE = 480
"""Pixels a tile may be wide, so that a single slice does not fill the screen."""
GAP = 3
"""Pixels between tiles."""
MAX_COLUMNS = 8
"""Tiles side by side; more of them continue in a further row."""
MAX_ZOOM = 12
"""Pixels a voxel may measure."""
ANISOTROPIC = 2.0
"""Ratio of spacings above which the planes follow the scan's own slices: between thick slices there is no anatomy."""
CT_LEVELS = (-300.0, 200.0)
"""Hounsfield units between air and tissue, and between tissue and bone."""


@dataclass(frozen=True)
class View:
    """One anatomical plane as it is shown; axes are 0 (to the right), 1 (to the front), 2 (to the head)."""

    name: str
    normal: int  # the axis the slices are stacked along
    across: int  # the axis that falls from a tile's left edge to its right one
    down: int  # the axis that falls from a tile's top edge to its bottom
    marks: str  # letters of the left, right, top and bottom edge


VIEWS = (
    View("axial", 2, 0, 1, "RLAP"),
    View("coronal", 1, 0, 2, "RLSI"),
    View("sagittal", 0, 1, 2, "APSI"),
)
AXIS_ENDS = ("RL", "AP", "SI")


@dataclass(frozen=True, eq=False)
class MosaicAxes:
    """The orthonormal axes a mosaic is cut along."""

    axes: np.ndarray  # (3, 3), columns: the axes closest to right, anterior and superior, in RAS+
    voxel_axis: tuple[int, int, int]  # which axis of the voxel grid runs along each of them
    thick: bool  # the axes are the scan's own, because it is planar or strongly anisotropic


@dataclass(frozen=True, eq=False)
class Plane:
    """One tile's place in space: the centre of pixel (row, column) is `origin + row * down + column * across`."""

    view: View
    position: float  # mm along the view's normal
    shape: tuple[int, int]  # rows, columns
    origin: np.ndarray  # (3,) RAS+ mm
    down: np.ndarray  # (3,) RAS+ mm from one row to the next
    across: np.ndarray  # (3,) RAS+ mm from one column to the next

    def finer(self, factor: int) -> Plane:
        """The same area in `factor` times as many rows and columns."""
        down, across = self.down / factor, self.across / factor
        origin = self.origin - (factor - 1) / 2 * (down + across)
        shape = (self.shape[0] * factor, self.shape[1] * factor)
        return replace(self, shape=shape, origin=origin, down=down, across=across)

    @property
    def caption(self) -> str:
        """`axial S 12 mm`: the plane and where it cuts."""
        ends = AXIS_ENDS[self.view.normal]
        return f"{self.view.name} {ends[self.position < 0]} {abs(round(self.position, 1)):g} mm"


@dataclass(frozen=True)
class Window:
    """Which values are black and white, and which levels tell structures apart."""

    low: float
    high: float
    levels: tuple[float, ...]  # air | tissue | bright tissue or bone; none in a constant image
    unit: str = ""

    def grey(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape as 0 (black) to 1 (white), float32."""
        return ((np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)).astype(np.float32)

    def around_levels(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape scaled like greys, but with room about the levels: those of a CT may lie beyond black."""
        if not self.levels:
            return self.grey(values)
        room = self.levels[-1] - self.levels[0]
        low, high = min(self.low, self.levels[0] - room), max(self.high, self.levels[-1] + room)
        return replace(self, low=low, high=high).grey(values)


def choose_axes(grid: Grid) -> MosaicAxes:
    """The axes to cut along: RAS+, or the scan's own (nearest to RAS+) where it is planar or strongly anisotropic."""
    steps = np.asarray(grid.affine, float)[:3, :3]
    spacing = np.linalg.norm(steps, axis=0)
    directions = steps / spacing
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    order = max(orders, key=lambda p: sum(abs(directions[a, p[a]]) for a in range(3)))
    if 1 not in grid.shape and spacing.max() <= ANISOTROPIC * spacing.min():
        return MosaicAxes(np.eye(3), order, False)
    axes = directions[:, list(order)] * np.sign([directions[a, order[a]] or 1.0 for a in range(3)])
    left, _, right = np.linalg.svd(axes)  # nearest orthonormal axes: a gantry tilt shears the grid
    return MosaicAxes(left @ right, order, True)


def choose_planes(
    image: Image, window: Window, frame: MosaicAxes, marked: np.ndarray | None, slices: int
) -> list[list[Plane]]:
    """Rows of planes through the part of the image that holds something.

    `marked` (N, 3): points in mm along the frame's axes that the slices should meet (those of labels), or None.
    """
    low, high = _content_box(image, window, frame)
    if marked is not None:
        marked = marked[((marked >= low) & (marked <= high)).all(axis=1)]
    marked = marked if marked is not None and len(marked) else None
    slices = max(1, slices)

    def cuts(view: View, count: int) -> list[tuple[View, float]]:
        return [(view, at) for at in _positions(image.grid, frame, view.normal, (low, high), marked, count)]

    rows = _rows(_views(image.grid, frame), cuts, slices, frame.thick)
    margin = 0.04 * (high - low)
    fov_low, fov_high = _field_of_view(image.grid, frame)
    low, high = np.maximum(low - margin, fov_low), np.minimum(high + margin, fov_high)
    if marked is not None:
        low, high = _zoomed(low, high, marked)
    pixel = _pixel_size(high - low, [[view for view, _ in row] for row in rows], min(image.grid.spacing))
    return [[_plane(view, at, frame.axes, low, high, pixel) for view, at in row] for row in rows]


def _rows(
    views: list[View], cuts: Callable[[View, int], list[tuple[View, float]]], slices: int, thick: bool
) -> list[list[tuple[View, float]]]:
    """A row per view; of a thick-slice scan two rows of its own slices and one that the other two views share."""
    if not thick or len(views) == 1:
        return [part for view in views for part in _wrapped(cuts(view, slices), MAX_COLUMNS)]
    across = cuts(views[1], max(1, slices // 2)) + cuts(views[2], max(1, slices - slices // 2))
    return _wrapped(cuts(views[0], 2 * slices), min(slices, MAX_COLUMNS)) + _wrapped(across, MAX_COLUMNS)


def _wrapped(row: list[tuple[View, float]], columns: int) -> list[list[tuple[View, float]]]:
    """A row in lines of about equal length, none longer than `columns`."""
    lines = -(-len(row) // columns)
    length = -(-len(row) // lines)
    return [row[start : start + length] for start in range(0, len(row), length)]


def _views(grid: Grid, frame: MosaicAxes) -> list[View]:
    """All three, the plane of thick slices first; of a planar image the one that shows its plane."""

    def thickness(view: View) -> float:
        return float(grid.spacing[frame.voxel_axis[view.normal]])

    thin = [view for view in VIEWS if grid.shape[frame.voxel_axis[view.normal]] == 1]
    return thin[:1] or (sorted(VIEWS, key=thickness, reverse=True) if frame.thick else list(VIEWS))


def _zoomed(low: np.ndarray, high: np.ndarray, marked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The box, narrowed along the axes where the labels take less than a fifth of it: a cord in a neck, a lesion."""
    first, last = marked.min(axis=0), marked.max(axis=0)
    half = np.maximum(1.5 * (last - first), (high - low) / 8)
    small, centre = last - first < 0.2 * (high - low), (first + last) / 2
    return np.where(small, np.maximum(low, centre - half), low), np.where(small, np.minimum(high, centre + half), high)


def _plane(view: View, at: float, axes: np.ndarray, low: np.ndarray, high: np.ndarray, pixel: float) -> Plane:
    """The plane `at` mm along the view's normal that covers the box from `low` to `high` (mm along the axes)."""
    rows, columns = (max(1, int(np.ceil((high - low)[axis] / pixel - 1e-6))) for axis in (view.down, view.across))
    corner = (low + high) / 2
    corner[view.normal] = at
    corner[view.down] += (rows - 1) / 2 * pixel
    corner[view.across] += (columns - 1) / 2 * pixel
    return Plane(view, at, (rows, columns), axes @ corner, -pixel * axes[:, view.down], -pixel * axes[:, view.across])


def _pixel_size(extent: np.ndarray, rows: Sequence[Sequence[View]], spacing: float) -> float:
    """Millimetres per pixel, one for all tiles so that they compare."""
    tile = min(MAX_TILE, WIDTH // max(map(len, rows)) - GAP)
    across = max(extent[view.across] for row in rows for view in row) / tile
    heights = [max(extent[view.down] for view in row) for row in rows]
    height = HEIGHT * max(1.0, len(rows) / 4)
    return float(max(across, max(heights) / (2 * MAX_TILE), sum(heights) / height, spacing / MAX_ZOOM))


def _positions(
    grid: Grid, frame: MosaicAxes, axis: int, box: tuple[np.ndarray, np.ndarray], marked: np.ndarray | None, count: int
) -> list[float]:
    """Where to cut along one axis: evenly through the box, on slices of the scan, without repeating one."""
    low, high = (end[axis] for end in box)
    if marked is not None:
        low, high = marked[:, axis].min(), marked[:, axis].max()
    wanted = low + (high - low) * (np.arange(count) + 0.5) / count
    if marked is not None:
        occupied = np.unique(marked[:, axis].round(3))
        wanted = occupied[np.abs(wanted[:, None] - occupied).argmin(axis=1)]
    centre = (box[0] + box[1]) / 2
    return sorted({_snapped(grid, frame, axis, centre, at) for at in wanted})


def _snapped(grid: Grid, frame: MosaicAxes, axis: int, centre: np.ndarray, at: float) -> float:
    """The position nearest `at` that cuts through voxel centres, so that a slice is shown and not a mixture of two."""
    inverse = np.linalg.inv(grid.affine)
    point = centre.copy()
    point[axis] = at
    voxel_axis = frame.voxel_axis[axis]
    index = (inverse[:3, :3] @ frame.axes @ point + inverse[:3, 3])[voxel_axis]
    nearest = np.clip(np.rint(index), 0, grid.shape[voxel_axis] - 1)
    return float(np.round(at + (nearest - index) / (inverse[:3, :3] @ frame.axes)[voxel_axis, axis], 4))


def _field_of_view(grid: Grid, frame: MosaicAxes) -> tuple[np.ndarray, np.ndarray]:
    """The box around the whole grid, voxels' outer faces included: (3,) low and high, mm along the frame's axes."""
    corners = np.stack(np.meshgrid(*((-0.5, n - 0.5) for n in grid.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    points = _to_frame(corners, grid, frame)
    return points.min(axis=0), points.max(axis=0)


def _content_box(image: Image, window: Window, frame: MosaicAxes) -> tuple[np.ndarray, np.ndarray]:
    """The box around what is brighter than air; along an axis where that is next to nothing, the field of view."""
    fov_low, fov_high = _field_of_view(image.grid, frame)
    values, strides = _thinned(image)
    if not window.levels:
        return fov_low, fov_high
    air = window.levels[0] if window.unit else window.low + 0.5 * (window.levels[0] - window.low)
    points = _points(values > air, image.grid, frame, strides)
    if len(points) == 0:
        return fov_low, fov_high
    # a thousandth of the voxels may lie outside: noise and ghosts in the air do not set the scale
    low, high = np.quantile(points, [0.001, 0.999], axis=0)
    half = 0.5 * np.abs(frame.axes.T @ image.grid.affine[:3, :3]) @ np.array(strides)
    low, high = np.maximum(low - half, fov_low), np.minimum(high + half, fov_high)
    small = high - low < 0.25 * (fov_high - fov_low)
    return np.where(small, fov_low, low), np.where(small, fov_high, high)


def label_points(labels: Image, frame: MosaicAxes) -> np.ndarray:
    """Centres of labelled voxels, (N, 3) mm along the frame's axes; a hundred thousand at most, evenly picked."""
    return _points(labels.data[0] != 0, labels.grid, frame)


def _points(mask: np.ndarray, grid: Grid, frame: MosaicAxes, strides: Sequence[int] = (1, 1, 1)) -> np.ndarray:
    order: Literal["C", "F"] = "F" if mask.flags.f_contiguous else "C"
    found = np.flatnonzero(mask.ravel(order))
    found = found[:: len(found) // 100_000 + 1]
    return _to_frame(np.stack(np.unravel_index(found, mask.shape, order), axis=-1) * strides, grid, frame)


def _to_frame(voxels: np.ndarray, grid: Grid, frame: MosaicAxes) -> np.ndarray:
    """Voxel indices (N, 3) -> mm along the frame's axes (N, 3)."""
    return voxels @ (frame.axes.T @ grid.affine[:3, :3]).T + frame.axes.T @ grid.affine[:3, 3]


def choose_window(image: Image) -> Window:
    """Grey window and structure levels, from the image alone; a CT is known by its air and its water."""
    values = _thinned(image)[0].astype(np.float64).ravel()
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
    elif padding < low:  # skull-stripped: black half way down to the padding, so that fluid is not lost in it
        low = (low + float(padding)) / 2
    inside = np.clip(values, np.fmin(low, padding), high)
    outline = _otsu(inside)
    return Window(low, high, (outline, _otsu(inside[inside > outline])))


def _ct_window(values: np.ndarray) -> Window:
    """Soft tissue, or wide enough for the lungs where they make up much of the body."""
    lung, tissue = np.mean((values > -920) & (values < -500)), np.mean(np.abs(values) < 200)
    low, high = (-1000.0, 400.0) if lung > 0.25 * tissue else (-160.0, 240.0)
    return Window(low, high, CT_LEVELS, " HU")


def _otsu(values: np.ndarray) -> float:
    """The threshold that parts values into two classes best (Otsu 1979); of a constant, that constant."""
    if len(values) == 0 or values.min() == values.max():
        return float(values[0]) if len(values) else 0.0
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    weight = np.cumsum(counts)[:-1].astype(float)
    total = np.cumsum(counts * centres)
    above_weight = np.maximum(counts.sum() - weight, 1)
    between = weight * above_weight * (total[:-1] / weight - (total[-1] - total[:-1]) / above_weight) ** 2
    return float(edges[1:-1][between >= (1 - 1e-9) * between.max()].mean())  # the middle of a gap, not its start


def _thinned(image: Image) -> tuple[np.ndarray, tuple[int, int, int]]:
    """First channel with about 100 voxels along each axis, and the steps between those: enough for statistics."""
    i, j, k = (max(1, round(n / 100)) for n in image.grid.shape)
    values = image.data[0][::i, ::j, ::k]
    if values.min() == values.max():  # a few bright voxels may lie between the steps
        return image.data[0], (1, 1, 1)
    return values, (i, j, k)


def sample(image: Image, plane: Plane, outside: float = 0.0) -> np.ndarray:
    """Linear interpolation of the first channel on a plane, float32 (rows, columns), `outside` beyond the image.

    Where pixels are larger than voxels, means of several samples: single ones would show noise as speckle.
    """
    pixel = np.linalg.norm(plane.down)
    factor = 2 if pixel > 1.4 * min(image.grid.spacing) else 1
    fine = plane.finer(factor)
    rows, columns = plane.shape
    return _linear(image, fine, outside).reshape(rows, factor, columns, factor).mean(axis=(1, 3), dtype=np.float32)


def _linear(image: Image, plane: Plane, outside: float) -> np.ndarray:
    values = image.data[0]
    corners, inside = [], np.ones((1, 1), bool)
    for at, size in zip(_voxel_coordinates(image.grid, plane), values.shape, strict=True):
        inside = inside & (at >= -0.5) & (at < size - 0.5)
        at = np.clip(at, 0, size - 1)
        base = np.floor(at).astype(np.intp)
        upper = (at - base).astype(np.float32)
        pair = [(base, 1 - upper), (np.minimum(base + 1, size - 1), upper)]
        corners.append([(index, weight) for index, weight in pair if weight.any()])
    total = np.zeros(plane.shape, np.float32)
    for i, wi in corners[0]:
        for j, wj in corners[1]:
            for k, wk in corners[2]:
                total += wi * wj * wk * values[i, j, k].astype(np.float32)
    return np.where(inside, total, np.float32(outside))


def sample_labels(image: Image, plane: Plane) -> np.ndarray:
    """The nearest voxel's label on a plane, int64 (rows, columns), zero outside the image."""
    values = image.data[0]
    indices, inside = [], np.ones((1, 1), bool)
    for at, size in zip(_voxel_coordinates(image.grid, plane), values.shape, strict=True):
        inside = inside & (at >= -0.5) & (at < size - 0.5)
        indices.append(np.clip(np.floor(at + 0.5), 0, size - 1).astype(np.intp))
    labels = np.where(inside, np.rint(values[tuple(indices)]), 0)
    return np.broadcast_to(labels, plane.shape).astype(np.int64)


def _voxel_coordinates(grid: Grid, plane: Plane) -> list[np.ndarray]:
    """Continuous voxel indices of a plane's pixels, one array per voxel axis that broadcasts to (rows, columns).

    An index that does not change along the rows or columns keeps a length of one there: slices along the grid are
    then read row by row, several times faster.
    """
    inverse = np.linalg.inv(grid.affine)
    origin = inverse[:3, :3] @ plane.origin + inverse[:3, 3]
    down, across = inverse[:3, :3] @ plane.down, inverse[:3, :3] @ plane.across
    rows, columns = np.arange(plane.shape[0])[:, None], np.arange(plane.shape[1])[None, :]
    coordinates = []
    for axis in range(3):
        along_rows = rows * down[axis] if abs(down[axis]) > 1e-6 else np.zeros((1, 1))
        along_columns = columns * across[axis] if abs(across[axis]) > 1e-6 else np.zeros((1, 1))
        coordinates.append(np.round(origin[axis] + along_rows + along_columns, 4))
    return coordinates
