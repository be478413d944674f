"""Candidates: places in a volume for a classifier of patches, and the patches cut out around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.space import Grid, apply_affine

if TYPE_CHECKING:
    from medkit.images import Image

TOLERANCE = 0.1
"""Largest difference in size, as a share, for a picture to count as a patch."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A place in a volume to classify."""

    name: str
    """From a table of points, or the number of a label."""
    position: np.ndarray
    """(3,) RAS+ mm."""


@dataclass(frozen=True)
class Cut:
    """How a bundle's patches, axial planes, are cut out, as its metadata state under `medkit.candidates`."""

    size: tuple[int, int]
    """Number of pixels from right to left and from front to back."""
    spacing: float
    """mm, distance between pixels."""
    window: tuple[float, float]
    """Intensities that become 0 and 255; values outside are clipped."""

    @classmethod
    def of(cls, block: Mapping[str, Any]) -> Cut | None:
        """Read it from a bundle's metadata; None if the bundle takes whole images."""
        stated = block.get("candidates")
        if not isinstance(stated, Mapping):
            return None
        width, height = stated["size"]
        low, high = stated["window"]
        return cls((int(width), int(height)), float(stated["spacing_mm"]), (float(low), float(high)))

    def fits(self, grid: Grid) -> bool:
        """Return whether a picture has about the size of a patch."""
        return all(abs(n - own) <= TOLERANCE * own for n, own in zip(grid.shape, self.size, strict=False))

    def patch(self, volume: Image, position: np.ndarray) -> Image | None:
        """Return the plane around a position, (1, width, height, 1) float32 from 0 to 255; None outside the volume.

        The plane lies in the middle of the nearest slice and is interpolated linearly. Pixels outside the volume get
        the lowest value.

        position: (3,) RAS+ mm.
        """
        from scipy.ndimage import map_coordinates

        from medkit.images import Image as Made

        grid = self._grid(_in_nearest_slice(volume.grid, position))
        if not _inside(volume.grid, position):
            return None
        index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1).reshape(-1, 3)
        places = apply_affine(np.linalg.inv(volume.grid.affine) @ grid.affine, index).T
        low, high = self.window
        values = map_coordinates(volume.data[0], places, output=np.float32, order=1, mode="constant", cval=low)
        scaled = np.clip((values - low) * (255 / (high - low)), 0, 255).astype(np.float32)
        return Made(scaled.reshape(1, *grid.shape), grid)

    def _grid(self, centre: np.ndarray) -> Grid:
        """Return the grid of a patch around a centre (3,) RAS+ mm."""
        affine = np.eye(4)
        # a picture's columns run to the patient's left and its rows to the back: against both axes of RAS+
        affine[0, 0] = affine[1, 1] = -self.spacing
        affine[:2, 3] = (np.array(self.size) - 1) / 2 * self.spacing
        affine[:3, 3] += centre
        return Grid((*self.size, 1), affine, dims=2)


def _in_nearest_slice(grid: Grid, position: np.ndarray) -> np.ndarray:
    """Return a position moved to the middle of its slice: patches of the training do not lie between slices."""
    axis = int(np.abs(grid.affine[2, :3] / grid.spacing).argmax())
    index = apply_affine(np.linalg.inv(grid.affine), position[None])[0]
    index[axis] = np.rint(index[axis])
    moved: np.ndarray = apply_affine(grid.affine, index[None])[0]
    return moved


def _inside(grid: Grid, position: np.ndarray) -> bool:
    """Return whether a position (3,) RAS+ mm lies in a voxel of the grid."""
    index = apply_affine(np.linalg.inv(grid.affine), position[None])[0]
    return bool((index >= -0.5).all() and (index <= np.array(grid.shape) - 0.5).all())


def of_points(positions: np.ndarray, names: Sequence[str]) -> list[Candidate]:
    """Return candidates at positions (N, 3) RAS+ mm."""
    return [Candidate(name, position) for name, position in zip(names, positions, strict=True)]


def of_labels(labels: Image) -> list[Candidate]:
    """Return a candidate for each connected piece of a label map, at its voxel nearest to the centroid."""
    from scipy import ndimage

    found = []
    values = labels.data[0]
    for label in np.unique(values[values > 0]):
        pieces, count = ndimage.label(values == label, structure=np.ones((3, 3, 3)))
        for number, box in enumerate(ndimage.find_objects(pieces), start=1):
            voxels = np.argwhere(pieces[box] == number) + [part.start for part in box]
            places = apply_affine(labels.grid.affine, voxels)
            middle = places[((places - places.mean(0)) ** 2).sum(1).argmin()]
            found.append(Candidate(f"{label}" if count == 1 else f"{label}.{number}", middle))
    return found
