"""Putting a result onto the grid of its reference."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from medkit.errors import InputError, size_text
from medkit.images.image import Image, read_image
from medkit.images.stored import FramesError
from medkit.space import Grid, apply_affine

TOLERANCE = 0.01
"""Largest distance, in voxels, between corners of two grids that count as the same: headers hold float32 or less."""
SMALL_PART = 0.5
"""Part of an image inside another below which a warning is given."""
_SAMPLES = 64
"""Voxels along each axis that are looked at, at most about twice as many."""


def read_side(path: Path, *, labels: bool = False) -> Image:
    """Read an image that is compared with another. Raises InputError, also for several frames: none can be picked."""
    try:
        return read_image(path, labels=labels)
    except FramesError as error:
        raise InputError(f"{path}: expected an image of one frame, got {error.count} frames") from error


def on_grid(image: Image, reference: Image, *, resample: bool, labels: bool) -> np.ndarray:
    """Return the voxels (I, J, K) of `image` on the grid of `reference`.

    Axes of another order or direction are reordered. With `resample` an image on another grid is interpolated (labels:
    nearest neighbour, images: linear, 0 outside), without it InputError is raised, which names both grids.
    """
    voxels = reoriented(image, reference.grid)
    if voxels is not None:
        return voxels
    if not resample:
        raise InputError(
            f"{image.path}: expected the grid of {reference.path}, {described(reference.grid)}, "
            f"got {described(image.grid)} (--resample puts it onto that grid)"
        )
    from medkit.transforms import resampling

    return resampling.resample(image, reference.grid, None, "nearest" if labels else "linear").data[0]


def check_space(image: Image, reference: Image, *, labels: bool) -> list[str]:
    """Return a warning if less than half of either image lies inside the other's field of view.

    With `labels` only the voxels of labels count. Raises InputError if nothing of one of them lies inside the other:
    they are in different spaces, and every score would be about that.
    """
    if reoriented(image, reference.grid) is not None:
        return []
    warnings = []
    for one, other in ((image, reference), (reference, image)):
        part = part_inside(one, other.grid, labels=labels)
        what = "labelled voxels" if labels else "voxels"
        if part == 0:
            raise InputError(
                f"{image.path}: expected the space of {reference.path}, but none of the {what} of {_name(one)} lies "
                f"inside {_name(other)} ({described(image.grid)} and {described(reference.grid)}): bring the result "
                "there with medkit transform apply"
            )
        if part < SMALL_PART:
            warnings.append(f"only {100 * part:.0f} % of the {what} of {_name(one)} lie inside {_name(other)}")
    return warnings


def part_inside(image: Image, grid: Grid, *, labels: bool) -> float:
    """Return the part of an image's voxels (with `labels`: of those that are not 0) inside a grid; 1 if it has none."""
    step = tuple(slice(None, None, max(1, size // _SAMPLES)) for size in image.grid.shape)
    kept = image.data[0][step] != 0 if labels else np.ones(image.data[0][step].shape, bool)
    if labels and not kept.any():  # small structures may lie between the samples
        step, kept = (slice(None),) * 3, image.data[0] != 0
    voxels = np.argwhere(kept) * [each.step or 1 for each in step]
    if not len(voxels):
        return 1.0
    there = apply_affine(np.linalg.inv(grid.affine) @ image.grid.affine, voxels)
    return float(((there > -0.5) & (there < np.array(grid.shape) - 0.5)).all(axis=1).mean())


def _name(image: Image) -> str:
    return image.path.name if image.path else "the image"


def reoriented(image: Image, grid: Grid) -> np.ndarray | None:
    """Return the voxels (I, J, K) in the axis order and direction of `grid`; None if these are other voxels."""
    steps = np.linalg.inv(grid.affine) @ image.grid.affine  # voxel of the image -> voxel of the grid
    turn = np.rint(steps[:3, :3])
    if (np.abs(turn).sum(axis=0) != 1).any() or (np.abs(turn).sum(axis=1) != 1).any():
        return None
    axes = np.abs(turn).argmax(axis=1)
    if tuple(image.grid.shape[axis] for axis in axes) != grid.shape:
        return None
    backwards = turn[range(3), axes] < 0
    last = np.array(image.grid.shape) - 1
    corners = np.array(list(product((0, 1), repeat=3))) * last
    expected = np.where(backwards, (last - corners)[:, axes], corners[:, axes])
    if np.abs(apply_affine(steps, corners) - expected).max() > TOLERANCE:
        return None
    return image.data[0].transpose(axes)[tuple(slice(None, None, -1 if back else 1) for back in backwards)]


def described(grid: Grid) -> str:
    """Return a text such as `160 x 197 x 164 voxels of 1 x 1 x 1 mm around (-79.5, -217, -173.5)`, RAS+ mm."""
    centre = ", ".join(f"{value:.4g}" for value in grid.centre)
    return f"{size_text(grid.shape)} voxels of {size_text(grid.spacing, '.4g')} mm around ({centre})"
