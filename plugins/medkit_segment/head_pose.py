"""Where a head lies in a scan: from the centres of the brain's structures, or the shape of the whole brain.

Points are RAS+ mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

CENTRES = {
    2: (-28, -17, 21),
    3: (-32, -17, 15),
    4: (-14, -15, 14),
    7: (-20, -55, -36),
    8: (-24, -63, -37),
    10: (-12, -19, 6),
    11: (-13, 9, 10),
    12: (-26, 2, -1),
    13: (-20, -3, -2),
    16: (0, -31, -34),
    17: (-26, -22, -15),
    18: (-24, -4, -20),
    28: (-11, -15, -11),
    41: (28, -17, 21),
    42: (33, -17, 15),
    43: (14, -15, 14),
    46: (20, -55, -36),
    47: (23, -63, -37),
    49: (12, -19, 6),
    50: (14, 9, 10),
    51: (26, 2, -1),
    52: (20, -3, -3),
    53: (26, -22, -15),
    54: (23, -4, -21),
    60: (11, -15, -11),
    14: (0, -10, -5),
    15: (0, -44, -33),
}
"""FreeSurfer's label of a structure -> its centre in the MNI152 template, mm, as the bundle of the brain labels it."""
FEWEST = 12
"""Fewest structures that a head is placed by."""
STRAY = 3.0
"""A structure that is farther from its place than the median, times this, is not used."""
HEIGHT = 0.83
"""Largest usual height of a brain as a share of its length, each as a standard deviation of its voxels. Manual
labels of 22 adults and infants: 0.64 to 0.78."""
SIZES = (0.75, 1.45)
"""Smallest and largest factor from a head to the template."""


@dataclass(frozen=True)
class HeadPose:
    """How a head lies, as a rotation, a translation and one factor."""

    matrix: np.ndarray
    """(4, 4); takes points of the scan to the template."""
    error: float
    """mm in the template; root mean square distance of the structures used from their places."""
    structures: int
    """Number of structures used."""

    @property
    def size(self) -> float:
        """Factor from the head to the template."""
        return float(np.linalg.det(self.matrix[:3, :3]) ** (1 / 3))


def pose_of(labels: np.ndarray, affine: np.ndarray) -> HeadPose | None:
    """Return how the head in a label map (I, J, K) of the brain lies; `affine` takes its voxels to RAS+ mm.

    None if there are too few structures, or a head of that size does not exist.
    """
    found = ndimage.find_objects(labels)
    numbers = [n for n in CENTRES if n <= len(found) and found[n - 1] is not None]
    if len(numbers) < FEWEST:
        return None
    centres = np.array([_centre(labels[found[n - 1]] == n, found[n - 1]) for n in numbers])
    points = centres @ affine[:3, :3].T + affine[:3, 3]
    places = np.array([CENTRES[n] for n in numbers], float)
    used = np.ones(len(numbers), bool)
    for _ in range(3):
        matrix = _fitted(points[used], places[used])
        away = np.linalg.norm(points @ matrix[:3, :3].T + matrix[:3, 3] - places, axis=1)
        used = away <= STRAY * np.median(away)
    error = float(np.sqrt(np.mean(away[used] ** 2)))
    pose = HeadPose(matrix, error, int(used.sum()))
    return pose if SIZES[0] < pose.size < SIZES[1] else None


def turned(brain: np.ndarray, affine: np.ndarray) -> str | None:
    """Return in a phrase why a mask (I, J, K) of the whole brain does not lie as in a head; None if it may.

    `affine` takes its voxels to RAS+ mm. A brain is most alike from left to right, and longer than high. A head turned
    by half a turn about its long axis is not seen.
    """
    from nibabel import orientations

    turn = orientations.io_orientation(affine)
    upright = orientations.apply_orientation(brain, turn)
    found = ndimage.find_objects(upright.astype(np.uint8))
    if not found:
        return None
    upright = upright[found[0]]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(turn[:, 0])]
    profiles = [upright.sum(tuple(b for b in range(3) if b != a)) for a in range(3)]
    middles = [float(np.average(np.arange(len(p)), weights=p)) for p in profiles]
    spreads = [
        float(np.sqrt(np.average((np.arange(len(p)) - m) ** 2, weights=p))) * mm
        for p, m, mm in zip(profiles, middles, spacing, strict=True)
    ]
    alike = [_likeness(upright, axis, middle) for axis, middle in enumerate(middles)]
    if alike[0] < max(alike[1:]):
        other = "front to back" if alike[1] > alike[2] else "top to bottom"
        return f"the brain is more alike from {other} than from left to right"
    if spreads[2] > HEIGHT * spreads[1]:
        return f"the brain's height is {spreads[2] / spreads[1]:.2f} of its length, expected up to {HEIGHT:g}"
    return None


def _likeness(mask: np.ndarray, axis: int, middle: float) -> float:
    """Return the Dice, 0 to 1, of a mask (I, J, K) and its mirror image about the index `middle` of an axis."""
    places = np.rint(2 * middle).astype(int) - np.arange(mask.shape[axis])
    inside = np.flatnonzero((places >= 0) & (places < len(places)))
    shared = np.take(mask, inside, axis) & np.take(mask, places[inside], axis)
    return float(2 * np.count_nonzero(shared) / (np.count_nonzero(np.take(mask, places[inside], axis)) + mask.sum()))


def _centre(mask: np.ndarray, box: tuple[slice, ...]) -> list[float]:
    """Return the centre of a mask that lies in a box of a volume, in voxels of the volume."""
    return [
        float(mask.sum(tuple(a for a in range(3) if a != axis)) @ np.arange(s.start, s.stop) / mask.sum())
        for axis, s in enumerate(box)
    ]


def _fitted(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the similarity that takes points to places, both (N, 3), by least squares (Umeyama 1991)."""
    middle, goal = points.mean(0), places.mean(0)
    left, strengths, right = np.linalg.svd((points - middle).T @ (places - goal))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    rotation = (left * signs @ right).T
    factor = float(strengths @ signs / ((points - middle) ** 2).sum())
    matrix = np.eye(4)
    matrix[:3, :3] = factor * rotation
    matrix[:3, 3] = goal - matrix[:3, :3] @ middle
    return matrix
