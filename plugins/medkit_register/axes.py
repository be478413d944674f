"""Local coordinates: mm about the object's centre, with axes in the image plane for planar scans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medkit.errors import MedkitError
from medkit_register.pyramid import Pyramid

PARALLEL = np.cos(np.deg2rad(0.5))
"""Cosine of the largest angle between planes that an in-plane map can relate."""


@dataclass(frozen=True, eq=False)
class LocalAxes:
    """The local coordinate frames of two scans."""

    fixed: np.ndarray
    """(4, 4) fixed local mm -> RAS+ mm."""
    moving: np.ndarray
    """(4, 4) moving local mm -> RAS+ mm."""
    middles: tuple[np.ndarray, np.ndarray]
    """(3,) RAS+ mm of the middle of each field of view."""
    radii: tuple[float, float]
    """Root-mean-square radius of each object in mm."""

    def swapped(self) -> LocalAxes:
        """Return the frames for the opposite direction."""
        return LocalAxes(self.moving, self.fixed, self.middles[::-1], self.radii[::-1])

    def to_world(self, mapping: np.ndarray) -> np.ndarray:
        """Return a (3, 4) local map as a (4, 4) matrix in RAS+ mm."""
        return self.moving @ np.vstack([mapping, [0, 0, 0, 1]]) @ np.linalg.inv(self.fixed)

    def to_local(self, matrix: np.ndarray) -> np.ndarray:
        """Return a (4, 4) matrix in RAS+ mm as a (3, 4) local map."""
        return (np.linalg.inv(self.moving) @ matrix @ self.fixed)[:3]


def make_axes(fixed: Pyramid, moving: Pyramid) -> LocalAxes:
    """Return the frames of two scans: both volumes, or both planar in parallel planes.

    Raises MedkitError for a volume with a planar scan, and for planes that cross.
    """
    if (fixed.planar_axis is None) != (moving.planar_axis is None):
        raise MedkitError("one scan is a volume and the other a single slice; both must be of one kind")
    turn = np.eye(3)
    if fixed.planar_axis is not None:
        turn = plane_axes(fixed)
        across = plane_axes(moving)[:, 2]
        if turn[:, 2] @ across < PARALLEL:
            angle = np.rad2deg(np.arccos(np.clip(turn[:, 2] @ across, -1, 1)))
            raise MedkitError(
                f"the two slices lie in planes that cross at {angle:.1f} degrees; parallel ones are needed"
            )
    local = []
    for pyramid in (fixed, moving):
        world_from_local = np.eye(4)
        world_from_local[:3, :3], world_from_local[:3, 3] = turn, pyramid.centre
        local.append(world_from_local)
    return LocalAxes(local[0], local[1], (fixed.middle, moving.middle), (fixed.radius, moving.radius))


def plane_axes(pyramid: Pyramid) -> np.ndarray:
    """Return orthonormal columns (3, 3): two in the plane, and last its normal, towards its closest RAS+ axis."""
    axis = pyramid.planar_axis
    assert axis is not None
    first, second = (pyramid.affine[:3, a] for a in range(3) if a != axis)
    first = first / np.linalg.norm(first)
    normal = np.cross(first, second)
    normal = normal / np.linalg.norm(normal)
    if normal[np.argmax(np.abs(normal))] < 0:
        normal = -normal
    return np.stack([first, np.cross(normal, first), normal], axis=1)
