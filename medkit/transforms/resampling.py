"""Resampling of an image onto another grid through a transform, as SimpleITK's Resample does it.

Outside the moving image the value is what surrounds it there (see `outside_value`). Inside means a continuous index
within [-0.5, n - 0.5) along each axis; between the outermost voxel centres and that edge the outermost voxel is
repeated (`itk::ResampleImageFilter`, `itk::LinearInterpolateImageFunction`). One thing differs: integers are rounded,
where ITK cuts off the fraction, which darkens an image by half a unit each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from medkit.images.image import Image
from medkit.space import Grid
from medkit.transforms.inverse import SLAB, InverseSearch
from medkit.transforms.transform import AffineTransform, DisplacementField, InverseField, Transform, parts_of

if TYPE_CHECKING:
    from torch import Tensor

Interpolation = Literal["linear", "nearest", "label"]
Coordinates = tuple["Tensor", "Tensor", "Tensor"]
"""x, y and z of the voxels of one slab, float64, each (rows, I) or broadcast to it."""


AIR = -1000.0
"""Hounsfield units of air."""


def outside_value(channel: np.ndarray) -> float:
    """Return the value that an image (I, J, K) has around it: air for a CT, its minimum if that is negative, else 0."""
    from medkit.images.modality import is_ct

    low = float(channel.min())
    if low >= 0:
        return 0.0
    return max(low, AIR) if is_ct(channel) else low


def resample(
    image: Image,
    grid: Grid,
    transform: Transform | None = None,
    interpolation: Interpolation = "linear",
    outside: float | None = None,
) -> Image:
    """Return the moving `image` on exactly the fixed `grid`, in the type `image.dtype`.

    `transform` takes points of the grid's space to the image's space, RAS+ mm; None is the identity. Interpolation:
    `linear` (integers are rounded), `nearest`, or `label`: the label with the largest sum of linear weights among the
    eight neighbours, and of equal ones the smaller label. `outside`: the value outside the image; None: 0 for `label`,
    else that of `outside_value`.
    """
    import torch

    if outside is None and interpolation == "label":
        outside = 0.0
    steps = _steps(grid, transform, image.grid)
    rows = grid.shape[1] * grid.shape[2]
    out = np.empty((len(image.data), rows, grid.shape[0]), image.dtype)  # axis I fastest, as in files
    with torch.inference_mode():
        volumes = [
            _Volume.padded(channel, interpolation, outside_value(channel) if outside is None else outside)
            for channel in image.data
        ]
        for slab in _slabs(rows, grid.shape[0]):
            index = _points_of(grid, slab)
            for step in steps:
                index = step(index, slab)
            for volume, target in zip(volumes, out, strict=True):
                target[slab] = _typed(_SAMPLERS[interpolation](volume, index), image.dtype)
    data = out.reshape(len(out), *grid.shape[::-1]).transpose(0, 3, 2, 1)
    return Image(data, grid, image.path, image.dtype, image.warnings, image.doubts)


def displacements(transform: Transform, grid: Grid) -> np.ndarray:
    """Return by how much `transform` moves the voxel centres of `grid`, (I, J, K, 3) float32, RAS+ mm."""
    import torch

    world = Grid((1, 1, 1), np.eye(4))
    leave, stay = _steps(grid, transform, world), _steps(grid, None, world)
    rows = grid.shape[1] * grid.shape[2]
    out = np.empty((rows, grid.shape[0], 3), np.float32)
    with torch.inference_mode():
        for slab in _slabs(rows, grid.shape[0]):
            moved = fixed = _points_of(grid, slab)
            for step in leave:
                moved = step(moved, slab)
            for step in stay:
                fixed = step(fixed, slab)
            for axis in range(3):
                out[slab, :, axis] = (moved[axis] - fixed[axis]).numpy()
    return out.reshape(*grid.shape[::-1], 3).transpose(2, 1, 0, 3)


Step = Callable[[Coordinates, slice], Coordinates]
"""Takes the coordinates of the voxels of one slab, and the slab, to other coordinates."""


def _steps(grid: Grid, transform: Transform | None, moving: Grid) -> list[Step]:
    """Return the steps from voxels of the fixed grid to voxels of the moving one; affine neighbours are one step."""
    parts = parts_of(transform)[::-1] if transform else ()
    steps: list[Step] = []
    matrix = grid.affine
    for number, part in enumerate(parts):
        if isinstance(part, AffineTransform):
            matrix = part.matrix @ matrix
            continue
        steps += [_affine_step(matrix), _warp_step(part, grid if number == 0 else None)]
        matrix = np.eye(4)
    to_index = moving.to_index if grid.dims == 2 else np.linalg.inv(moving.affine)
    return [*steps, _affine_step(to_index @ matrix)]


def _affine_step(matrix: np.ndarray) -> Step:
    rows = [[float(value) for value in row] for row in matrix[:3]]

    def step(points: Coordinates, _: slice) -> Coordinates:
        # small terms first: before a warp they are (rows, 1) and (1, I) and only meet in the last sum
        x, y, z = points
        a, b, c = ((z * row[2] + (y * row[1] + row[3])) + x * row[0] for row in rows)
        return a, b, c

    return step


def _warp_step(part: Transform, grid: Grid | None) -> Step:
    """Return `part` as a step between points in mm; `grid` is given if the points are its voxel centres."""
    if isinstance(part, InverseField):
        return _many_points_step(InverseSearch.of(part.forward.field, part.forward.grid))
    if not isinstance(part, DisplacementField):
        return _foreign_step(part)
    if grid is not None and part.grid.matches(grid):
        return _same_grid_step(part)
    volume = _Volume.padded(part.field, "linear")
    to_index = _affine_step(part.grid.to_index)

    def step(points: Coordinates, slab: slice) -> Coordinates:
        shift = _linear(volume, to_index(points, slab))
        x, y, z = (point + shift[..., axis] for axis, point in enumerate(points))
        return x, y, z

    return step


def _same_grid_step(part: DisplacementField) -> Step:
    import torch

    # rows along axis I; no copy is made if the field is stored in this order, as fields from files are
    rows = torch.from_numpy(np.ascontiguousarray(part.field.transpose(2, 1, 0, 3)).reshape(-1, part.grid.shape[0], 3))

    def step(points: Coordinates, slab: slice) -> Coordinates:
        x, y, z = (point + shift for point, shift in zip(points, rows[slab].unbind(-1), strict=True))
        return x, y, z

    return step


def _foreign_step(part: Transform) -> Step:
    """Return a step for a transform of another class."""
    import torch

    return _many_points_step(lambda points: torch.from_numpy(np.ascontiguousarray(part.map_points(points.numpy().T).T)))


def _many_points_step(move: Callable[[Tensor], Tensor]) -> Step:
    """Return a step from a function of points (3, N)."""
    import torch

    def step(points: Coordinates, _: slice) -> Coordinates:
        shape = np.broadcast_shapes(*(tuple(axis.shape) for axis in points))
        moved = move(torch.stack([axis.expand(shape).reshape(-1) for axis in points]))
        x, y, z = moved.reshape(3, *shape)
        return x, y, z

    return step


def _slabs(rows: int, length: int) -> Iterator[slice]:
    """Return slices of the rows along axis I, in blocks of about `SLAB` voxels; row r is at j = r % J, k = r // J."""
    step = max(1, SLAB // length)
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def _points_of(grid: Grid, slab: slice) -> Coordinates:
    import torch

    row = torch.arange(slab.start, slab.stop)[:, None]
    i = torch.arange(grid.shape[0], dtype=torch.float64)[None]
    return i, (row % grid.shape[1]).double(), (row // grid.shape[1]).double()


@dataclass(frozen=True, eq=False)
class _Volume:
    """A volume whose outermost voxels are repeated once on every side, so that each inside index has all neighbours."""

    flat: Tensor
    """Voxels in memory order, axis I fastest: (n,), or (n, 3) for a field."""
    shape: tuple[int, int, int]
    """(I, J, K) without the repeated voxels."""
    outside: float = 0.0
    """The value outside the volume."""

    @classmethod
    def padded(cls, voxels: np.ndarray, interpolation: Interpolation, outside: float = 0.0) -> _Volume:
        """Make one from (I, J, K) or (I, J, K, 3), in a type that holds the values and that torch can gather."""
        import torch

        i, j, k = voxels.shape[:3]
        vectors = voxels.shape[3:]
        padded = np.empty((k + 2, j + 2, i + 2, *vectors), _working_type(voxels, interpolation))
        padded[1:-1, 1:-1, 1:-1] = voxels.transpose(2, 1, 0, *range(3, voxels.ndim))
        for axis in range(3):
            faces = np.moveaxis(padded, axis, 0)
            faces[0], faces[-1] = faces[1], faces[-2]
        return cls(torch.from_numpy(padded.reshape(-1, *vectors)), (i, j, k), outside)

    def within(self, values: Tensor, inside: Tensor) -> Tensor:
        """Return `values`, changed in place, with the value outside where they are not inside."""
        values = values.mul_(inside)
        return values.masked_fill_(~inside, self.outside) if self.outside else values

    @property
    def strides(self) -> tuple[int, int, int]:
        """Steps in `flat` from a voxel to its neighbour along I, J and K."""
        return 1, self.shape[0] + 2, (self.shape[0] + 2) * (self.shape[1] + 2)

    def inside(self, index: Coordinates) -> Tensor:
        """Return where ITK's `IsInsideBuffer` is true."""
        x, y, z = ((axis >= -0.5) & (axis < n - 0.5) for axis, n in zip(index, self.shape, strict=True))
        return x & y & z

    def at(self, corner: Coordinates, inside: Tensor) -> Tensor:
        """Return the positions in `flat` of whole voxel indices, from -1 on; 0 where they are not inside."""
        x, y, z = corner
        position = (x + 1) + (y + 1) * self.strides[1] + (z + 1) * self.strides[2]
        return (position * inside).long()


def _working_type(voxels: np.ndarray, interpolation: Interpolation) -> np.dtype:
    """Return the type in which voxels are interpolated."""
    kind, size = voxels.dtype.kind, voxels.dtype.itemsize
    if kind == "f":
        return np.dtype(np.float64 if size == 8 else np.float32)
    if interpolation == "linear":
        return np.dtype(np.float32 if size <= 2 else np.float64)  # float32 is exact for whole numbers of 24 bits
    return np.dtype(np.int32 if size <= 2 or voxels.dtype == np.int32 else np.int64)


def _corners(volume: _Volume, index: Coordinates) -> tuple[Tensor, list[Tensor], Coordinates]:
    """Return where `index` is inside, the eight neighbours (I fastest), and the distances from the lowest, float64."""
    inside = volume.inside(index)
    x, y, z = (axis.floor() for axis in index)
    base = volume.at((x, y, z), inside)
    steps = [i + j + k for k in (0, volume.strides[2]) for j in (0, volume.strides[1]) for i in (0, 1)]
    values = [volume.flat[step:].index_select(0, base.reshape(-1)) for step in steps]
    parts = tuple(axis - low for axis, low in zip(index, (x, y, z), strict=True))
    return inside, [value.reshape(*inside.shape, *value.shape[1:]) for value in values], parts  # type: ignore[return-value]


def _linear(volume: _Volume, index: Coordinates) -> Tensor:
    inside, values, parts = _corners(volume, index)
    vectors = values[0].ndim > inside.ndim
    for part in parts:
        weight = part.to(values[0].dtype)
        weight = weight[..., None] if vectors else weight
        values = [low.lerp_(high, weight) for low, high in zip(values[::2], values[1::2], strict=True)]
    return volume.within(values[0], inside[..., None] if vectors else inside)


def _nearest(volume: _Volume, index: Coordinates) -> Tensor:
    inside = volume.inside(index)
    x, y, z = ((axis + 0.5).floor() for axis in index)
    position = volume.at((x, y, z), inside)
    return volume.within(volume.flat.index_select(0, position.reshape(-1)).reshape(inside.shape), inside)


def _label(volume: _Volume, index: Coordinates) -> Tensor:
    import torch

    inside, values, parts = _corners(volume, index)
    labels = torch.stack(values)
    result = volume.within(labels[0].clone(), inside)
    mixed = (labels[1:] != labels[0]).any(dim=0) & inside
    labels = labels[:, mixed]
    x, y, z = (torch.stack((1 - part[mixed], part[mixed])) for part in parts)
    weights = (z[:, None, None] * y[None, :, None] * x[None, None, :]).reshape(8, -1)
    votes = torch.stack([(weights * (labels == label)).sum(dim=0) for label in labels])
    winners = votes == votes.amax(dim=0)
    result[mixed] = labels.masked_fill(~winners, labels.max() if labels.numel() else 0).amin(dim=0)
    return result


_SAMPLERS = {"linear": _linear, "nearest": _nearest, "label": _label}


def _typed(values: Tensor, dtype: np.dtype) -> np.ndarray:
    """Return the values (rows, I) in the output type; for integer types they are rounded and clipped to the range."""
    if dtype.kind in "iu" and values.is_floating_point():
        limits = np.iinfo(dtype)
        values = values.round_().clamp_(limits.min, limits.max)
    typed: np.ndarray = values.numpy().astype(dtype, copy=False)
    return typed


def to_displacement_field(transform: Transform, grid: Grid) -> DisplacementField:
    """Return any transform as one displacement field on `grid`, which should cover the fixed image.

    Between voxel centres the field is linear, so it only approximates the transform there.
    """
    if isinstance(transform, DisplacementField) and transform.grid is grid:
        return transform
    return DisplacementField(displacements(transform, grid), grid, transform.from_grid, transform.to_grid)
