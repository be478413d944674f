"""The picture of `--qc` for boxes and landmarks: the image with a mark for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medkit.space import apply_affine

if TYPE_CHECKING:
    from medkit.images.image import Image
    from medkit.run.task import Case

MOST = 20
"""Marks in a picture: of boxes, those with the highest scores."""
RADIUS = 3.0
"""mm; of the mark of a landmark, at least one voxel."""


@dataclass(frozen=True, eq=False)
class Mark:
    """A place in the body."""

    name: str
    centre: np.ndarray
    """(3,) RAS+ mm."""
    size: np.ndarray | None = None
    """(3,) mm, the extents of a box; None for a ball around a point."""


def draw_marks(case: Case, marks: Sequence[Mark], title: str) -> np.ndarray:
    """Return the picture of a case, (H, W, 3) uint8. Raises InputError for an image that medkit does not read itself.

    A box is a light fill with a contour, as labels are.
    """
    from medkit.figures.mosaic import overlay_mosaic

    image, shown = _shown(case), marks[:MOST]
    if not shown:
        return overlay_mosaic(image, title=f"{title}  nothing found")
    names = {number: mark.name for number, mark in enumerate(shown, start=1)}
    left_out = f"  {len(shown)} of {len(marks)}" if len(shown) < len(marks) else ""
    return overlay_mosaic(
        image, marked(image, shown), kind="labels", names=names, volumes=False, title=title + left_out
    )


def _shown(case: Case) -> Image:
    """Return a case's image; the first frame of one whose frames are the channels of the network's input."""
    from medkit.images.image import read_image
    from medkit.images.stored import FramesError

    try:
        return case.image()
    except FramesError:
        return read_image(case.path, frame=0)


def marked(image: Image, marks: Sequence[Mark]) -> Image:
    """Return labels on the grid of an image, numbered from 1: boxes, and balls around points."""
    grid = image.grid
    labels = np.zeros((1, *grid.shape), np.uint16)
    for number, mark in reversed(list(enumerate(marks, start=1))):  # the first ones lie on top
        half = np.full(3, max(RADIUS, *grid.spacing)) if mark.size is None else mark.size / 2
        reach = np.abs(grid.to_index[:3, :3]) @ half
        middle = apply_affine(grid.to_index, mark.centre[None])[0]
        low = np.maximum(np.ceil(middle - np.maximum(reach, 0.5)), 0).astype(int)
        high = np.minimum(np.floor(middle + np.maximum(reach, 0.5)) + 1, grid.shape).astype(int)
        if (high <= low).any():
            continue
        places = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), axis=-1)
        away = apply_affine(grid.affine, places.reshape(-1, 3)).reshape(places.shape) - mark.centre
        if grid.dims == 2:
            away = away - away.mean(axis=(0, 1, 2)) * [0, 0, 1]
        near = (np.linalg.norm(away, axis=-1) <= half[0]) if mark.size is None else np.ones(places.shape[:3], bool)
        labels[0][tuple(slice(a, b) for a, b in zip(low, high, strict=True))][near] = number
    return image.with_data(labels)
