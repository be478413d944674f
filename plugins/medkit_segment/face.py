"""The face and the ears of a head that is placed in the MNI152 template, in mm of the template (RAS+)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from medkit.space import Grid

PROFILE = np.array(
    [
        (12.0, -300.0),
        (12.0, -100.0),
        (20.0, -66.0),
        (30.0, -50.0),
        (46.0, -26.0),
        (62.0, -16.0),
        (76.0, -8.0),
        (92.0, 0.0),
        (200.0, 4.0),
    ]
)
"""(N, 2): y and z of the border of the face, from the throat up to the brows. Eyes are near (60, -38)."""
SIDE = 71.0
"""mm from the middle, beyond which the sides of the head lie."""
BEHIND_EARS = -75.0
ABOVE_EARS = 6.0
MARGIN = 9.0
"""mm around the brain that stay: its membranes, skull and skull base."""
DEEP = 15.0
"""mm in front of the border of the face, where an eye may look like brain to a network, but is none."""
STEP = 2.0
"""mm; the distance to the brain is computed on about this grid."""


def region(grid: Grid, pose: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return the voxels (I, J, K) of face and ears, the air in front of them included.

    pose: (4, 4), takes RAS+ mm of the scan to the template.
    brain: mask (I, J, K) of the brain on the scan's grid, which stays with all that is near.
    """
    out = np.empty(grid.shape, bool)
    for plane, (x, y, z) in zip(out, _template_planes(grid, pose), strict=True):
        ears = (np.abs(x) > SIDE) & (y > BEHIND_EARS) & (z < ABOVE_EARS)
        plane[:] = (y > _border(z)) | ears
    return out & ~_near(brain, grid.spacing, MARGIN / _factor(pose))


def within(grid: Grid, pose: np.ndarray) -> np.ndarray:
    """Return the voxels (I, J, K) that lie so deep in the face that no brain is there."""
    planes = [y > _border(z) + DEEP for _, y, z in _template_planes(grid, pose)]
    return np.stack(planes)


def _border(z: np.ndarray) -> np.ndarray:
    """Return y of the border of the face at heights z; infinite above the brows."""
    return np.interp(z, PROFILE[:, 1], PROFILE[:, 0], right=np.inf)


def _factor(pose: np.ndarray) -> float:
    return float(np.linalg.det(pose[:3, :3]) ** (1 / 3))


def _template_planes(grid: Grid, pose: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield x, y and z in the template of the voxels (J, K) of each plane along the first axis."""
    whole = pose @ grid.affine
    j, k = np.ogrid[: grid.shape[1], : grid.shape[2]]
    rows = [row[1] * j + row[2] * k + row[3] for row in whole[:3]]
    for i in range(grid.shape[0]):
        x, y, z = (plane + row[0] * i for plane, row in zip(rows, whole[:3], strict=True))
        yield x, y, z


def _near(mask: np.ndarray, spacing: np.ndarray, distance: float) -> np.ndarray:
    """Return the voxels at most about `distance` mm from a mask; never less than the mask and its own voxels."""
    factors = np.maximum(1, np.floor(STEP / spacing)).astype(int)
    padded = np.pad(mask, [(0, -n % f) for n, f in zip(mask.shape, factors, strict=True)])
    blocks = padded.reshape([n for size, f in zip(padded.shape, factors, strict=True) for n in (size // f, f)])
    coarse = blocks.any((1, 3, 5))
    near = ndimage.distance_transform_edt(~coarse, spacing * factors) <= distance
    for axis, factor in enumerate(factors):
        near = near.repeat(factor, axis)
    return near[tuple(slice(0, n) for n in mask.shape)]
