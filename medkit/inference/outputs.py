"""Turning a bundle's answer into files: labels and images on the input's grid, tables of classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medkit.errors import BundleError
from medkit.images.image import Image
from medkit.run.task import Text
from medkit.space import Grid, three_axes

if TYPE_CHECKING:
    import torch

SAME_PLACE = 1e-3
"""Largest distance (mm) between corners of two grids that count as the same grid."""


def to_labels(value: Any, grid: Grid, values: str) -> Image:
    """Return a network's answer, (C, I, J, K) or (C, I, J), as labels on `grid`: uint8, uint16 or uint32 as needed.

    One channel is rounded. Several channels become the number of the largest one, or stay channels if they are regions
    that overlap. `values` names the bundle in errors. Raises BundleError if the values are not labels.
    """
    data = _array(value)
    if data.ndim > 1 and len(data) > 1 and not _overlapping(data):
        data = data.argmax(0, keepdims=True)
    elif data.dtype.kind == "f":
        data = np.rint(data)
    low, high = (float(data.min()), float(data.max())) if data.size else (0.0, 0.0)
    if not (low >= 0 and high <= np.iinfo(np.uint32).max):
        raise BundleError(f"{values}: expected labels, got values from {low:g} to {high:g}")
    kind = next(t for t in (np.uint8, np.uint16, np.uint32) if high <= np.iinfo(t).max)
    return _on_grid(data.astype(kind), _affine(value), grid, "nearest")


def to_image(value: Any, grid: Grid) -> Image:
    """Return a network's answer, (C, I, J, K) or (C, I, J), as float32 on `grid`. Raises BundleError."""
    return _on_grid(_array(value).astype(np.float32, copy=False), _affine(value), grid, "linear")


def to_table(value: Any, classes: Mapping[int, str], *, activated: bool) -> tuple[Text, dict[str, float]]:
    """Return a classifier's answer, (C,), as lines of class and probability, and as class -> probability.

    `activated`: the values already are probabilities. Raises BundleError if there is more than a value for each class.
    """
    values = np.atleast_1d(np.squeeze(_array(value).astype(np.float64)))
    if values.ndim > 1:
        raise BundleError(f"expected a value for each class, got an answer of the shape {values.shape}")
    if not activated:
        values = _softmax(values) if len(values) > 1 else 1 / (1 + np.exp(-values))
    table = {classes.get(n, str(n)): round(float(p), 6) for n, p in enumerate(values)}
    lines = [f"{name}\t{p:.6f}" for name, p in table.items()]
    return Text("\n".join(["class\tprobability", *lines, ""])), table


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def _overlapping(data: np.ndarray) -> bool:
    """Return whether channels are masks of regions (0 or 1), and some voxel is in several or in none."""
    if data.dtype.kind == "f" and not np.isin(data[:, ::2], (0, 1)).all():
        return False
    return bool((data.sum(0) != 1).any())


def _array(value: Any) -> np.ndarray:
    array: np.ndarray
    if hasattr(value, "detach"):
        tensor: torch.Tensor = value.as_tensor() if hasattr(value, "as_tensor") else value
        array = tensor.detach().cpu().numpy()
    else:
        array = np.asarray(value)
    return array


def _affine(value: Any) -> np.ndarray | None:
    """Return an answer's affine, (4, 4) RAS+ mm, if it has one."""
    affine = getattr(value, "affine", None)
    return None if affine is None else _array(affine).astype(np.float64)


def _on_grid(
    data: np.ndarray, affine: np.ndarray | None, grid: Grid, interpolation: Literal["linear", "nearest"]
) -> Image:
    """Return voxels, (C, I, J, K) or (C, I, J), on `grid`: unchanged if they are on it, else resampled by `affine`.

    Raises BundleError if they are on another grid and `affine` is None.
    """
    if data.ndim == 3 and grid.dims == 3 and grid.shape[2] > 1:
        data = data[None]
    shape = three_axes(data.shape[1:])
    data = data.reshape(len(data), *shape)
    if affine is not None and affine.shape != (4, 4):
        affine = None
    if shape == grid.shape and (affine is None or not _apart(affine, grid)):
        return Image(np.ascontiguousarray(data), grid)
    if affine is None:
        raise BundleError(f"the bundle returned {shape} voxels for an image of {grid.shape}, without an affine")
    from medkit.transforms.resampling import resample

    own = Image(data, Grid(shape, affine, grid.dims))
    return Image(resample(own, grid, interpolation=interpolation, outside=0).data.astype(data.dtype), grid)


def _apart(affine: np.ndarray, grid: Grid) -> bool:
    corners = np.array([(0, 0, 0), *np.diag(np.maximum(np.array(grid.shape) - 1, 1))])
    corners = np.c_[corners, np.ones(4)]
    return bool(np.abs(corners @ (affine - grid.affine).T).max() > SAME_PLACE)
