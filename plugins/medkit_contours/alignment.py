"""`--align`: brings contours onto a label map or other contours by a rigid map, and says how well they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError
from medkit.images import Image, read_image
from medkit.space import Grid
from medkit.task import LOOK_AT_THIS, record_of
from medkit.transforms import AffineTransform
from medkit_contours import rigid
from medkit_contours.filling import filled
from medkit_contours.inputs import is_contours, read_contours
from medkit_contours.mesh import Surface, surfaces
from medkit_contours.polygons import ContourSet, directions_across
from medkit_contours.structures import Box, names_of, places_of, unnamed

_MOST_POINTS, _LEAST_POINTS, _ALL_POINTS = 20000, 3000, 200000
"""Points on the surface of a structure, at most and at least; and of all together, roughly."""
_POOR = 2.0
"""Voxels; surfaces farther apart on average after the fit are of different shapes, or the fit went wrong."""
_POOR_SHARE = 0.05
"""The same as a share of the extent of the structures, for structures of few voxels."""
_FINEST = 256
"""Largest number of pixels across contours that are drawn on a grid of their own."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """A label map as one side of an alignment."""

    labels: np.ndarray
    """(I, J, K)."""
    places: Mapping[int, Box]
    """Label -> box of its structures."""
    grid: Grid
    names: Mapping[int, str]
    """Label -> name."""
    path: Path


@dataclass(frozen=True, eq=False)
class Alignment:
    """Contours brought onto others."""

    transform: AffineTransform
    """Takes points of the other side to points of the contours, as `medkit transform apply` needs it."""
    metrics: Mapping[str, Any]
    """The matrix and the distances, for the sidecar."""
    warnings: tuple[str, ...]
    """What a person should look at."""


def read_other(path: Path) -> Labelled:
    """Read a label map, or contours as a label map. Raises InputError."""
    if is_contours(path):
        contours = read_contours(path).contours
        grid = contours.grid or own_grid(contours)
        image = Image(filled(contours, grid).labels[None], grid)
        places = places_of(image, path, "labels")
        names = {one.number: one.name for one in contours.structures if one.number in places}
    else:
        record = record_of(path)
        image = read_image(path, labels=True)
        places = places_of(image, path, record.kind)
        names = names_of(record, places)
    return Labelled(image.data[0], places, image.grid, names, path)


def own_grid(contours: ContourSet) -> Grid:
    """Return a grid for contours without one: their planes are its slices, its pixels are 1 mm or finer."""
    normal = contours.normal
    flat = directions_across(normal)
    points = np.concatenate([c.points for one in contours.structures for c in one.contours])
    axes = np.column_stack([flat, normal])
    low, high = (points @ axes).min(axis=0), (points @ axes).max(axis=0)
    pixel = max(min(1.0, float((high - low)[:2].min()) / 32), float((high - low)[:2].max()) / _FINEST)
    spacing = np.array([pixel, pixel, contours.step or pixel])
    corner = np.array([*(low[:2] - 2 * pixel), low[2] - 2 * spacing[2]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * spacing, axes @ corner
    shape = np.ceil((high - corner) / spacing).astype(int) + 3
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def aligned(moving: Labelled, fixed: Labelled, seed: int) -> Alignment:
    """Return the rigid alignment of one label map's structures with those of another. Raises InputError.

    Structures with the same number are matched; if no number is in both, all are matched as one body.
    """
    for side in (moving, fixed):
        if not side.names or side.grid.is_planar:
            what = "an empty label map" if not side.names else "a plane"
            raise InputError(f"{side.path}: --align needs structures in a volume, got {what}")
    shared = sorted(set(moving.names) & set(fixed.names))
    count = min(_MOST_POINTS, max(_LEAST_POINTS, _ALL_POINTS // max(1, len(shared))))
    ours, theirs = (_clouds(side, shared, count, seed) for side in (moving, fixed))
    voxel = float(max(moving.grid.spacing.max(), fixed.grid.spacing.max()))
    found = rigid.fitted(ours, theirs, 1e-3 * float(min(moving.grid.spacing.min(), fixed.grid.spacing.min())))
    before, after = (_summary(rigid.distances(ours, theirs, matrix)) for matrix in (np.eye(4), found.matrix))
    extent = float(np.linalg.norm(np.ptp(np.concatenate([cloud.points for cloud in theirs.values()]), axis=0)))
    metrics = {
        "matrix": np.round(found.matrix, 9).tolist(),
        "structures": [fixed.names[number] for number in shared] or "all as one",
        "before": before,
        **after,
        "converged": found.converged,
        "steps": found.steps,
    }
    transform = AffineTransform(np.linalg.inv(found.matrix), fixed.grid.digest(), moving.grid.digest())
    conflicts = [n for n in shared if moving.names[n] != fixed.names[n] and unnamed(n) not in _names(n, moving, fixed)]
    limit = min(_POOR * voxel, max(_POOR_SHARE * extent, float(moving.grid.spacing.min())))
    doubts = [
        f"{n} is {moving.names[n]} here and {fixed.names[n]} in {fixed.path.name}: matched by number" for n in conflicts
    ]
    doubts += _doubts(found, before, after, limit, fixed.path)
    return Alignment(transform, metrics, tuple(f"{LOOK_AT_THIS}--align: {text}" for text in doubts))


def _names(number: int, *sides: Labelled) -> list[str]:
    return [side.names[number] for side in sides]


def _clouds(side: Labelled, shared: Sequence[int], count: int, seed: int) -> dict[int, rigid.Cloud]:
    """Return points on the surfaces of the shared structures, or without any on that of all together (number 0)."""
    if shared:
        found = surfaces(side.labels, {number: side.places[number] for number in shared}, side.grid, side.names)
        return {one.number: _cloud(one, count, seed) for one in found}
    chosen = np.isin(side.labels, list(side.places))
    (whole,) = surfaces(chosen, {1: (slice(0, None),) * 3}, side.grid, {1: "all"})
    return {0: _cloud(whole, count, seed)}


def _cloud(surface: Surface, count: int, seed: int) -> rigid.Cloud:
    import trimesh

    points, faces = trimesh.sample.sample_surface(surface.mesh, count, seed=seed)
    return rigid.Cloud(np.asarray(points), np.asarray(surface.mesh.face_normals[faces]), float(surface.mesh.area))


def _summary(both: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Return the mean of all distances, and the larger 95th percentile of the two directions, in mm."""
    hd95 = max(float(np.percentile(side, 95)) for side in both)
    return {"mean_mm": round(float(np.concatenate(both).mean()), 4), "hd95_mm": round(hd95, 4)}


def _doubts(
    found: rigid.RigidFit, before: Mapping[str, float], after: Mapping[str, float], limit: float, path: Path
) -> list[str]:
    out = []
    if not found.converged:
        out.append(f"not settled after {found.steps} steps")
    if after["mean_mm"] > limit:
        out.append(
            f"after the fit the surfaces are {after['mean_mm']:.3g} mm from those of {path.name} on average "
            f"(95 % within {after['hd95_mm']:.3g} mm): they overlap badly"
        )
    if after["mean_mm"] > before["mean_mm"] + 0.1 * limit:
        out.append(f"the surfaces were closer before ({before['mean_mm']:.3g} mm)")
    if found.loose:
        out.append("the shape leaves a turn or shift open, as a sphere does: the matrix is one of many")
    return out
