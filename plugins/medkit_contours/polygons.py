"""Contours as values: closed polygons in RAS+ mm, and their JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import InputError, listed
from medkit.space import Grid

FORMAT = "medkit contours"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Contour:
    """A closed polygon in one plane; the last point is joined to the first."""

    points: np.ndarray
    """(N, 3) RAS+ mm, N of 3 or more."""
    hole: bool
    """Whether it is the border of a hole; a voxel is inside a structure if an odd number of polygons surround it."""
    slice: int | None
    """Index of its slice on the grid's slice axis, from 0; None if it lies on no grid."""


@dataclass(frozen=True, eq=False)
class Structure:
    """A structure and its contours on all slices."""

    number: int
    """Its label, 1 or more."""
    name: str
    contours: tuple[Contour, ...]
    step: float | None = None
    """mm that each of its contours counts for; None: as those of the whole set."""


@dataclass(frozen=True, eq=False)
class ContourSet:
    """Structures whose contours lie in parallel planes."""

    structures: tuple[Structure, ...]
    normal: np.ndarray
    """(3,) RAS+, unit vector across the planes."""
    step: float | None
    """mm between neighbouring planes, which is also how thick a contour counts; None if it is not known."""
    grid: Grid | None = None
    """The grid of the label map that the contours were made from; None if there is none."""
    axis: int | None = None
    """The axis of `grid` across the slices."""

    def chosen(self, words: tuple[str, ...], path: Path) -> ContourSet:
        """Return some structures only, by name or number. Raises InputError for one that is not there."""
        names = {one.number: one.name for one in self.structures}
        wanted = chosen_numbers(words, names, path)
        return replace(self, structures=tuple(one for one in self.structures if one.number in wanted))


def chosen_numbers(words: tuple[str, ...], names: Mapping[int, str], path: Path) -> set[int]:
    """Return the numbers of structures that are named, or numbered, by `words`; all if there are no words.

    Raises InputError for one that is not among `names`.
    """
    found = {word: {n for n, name in names.items() if word in (name, str(n))} for word in words}
    if missing := [word for word, numbers in found.items() if not numbers]:
        known = [f"{number} {name}" for number, name in sorted(names.items())]
        shown = known[:20] + ([f"{len(known) - 20} more"] if len(known) > 20 else [])
        raise InputError(f"{path}: has no structure {missing[0]}; it has {listed(shown) if shown else 'none'}")
    return set().union(*found.values()) if words else set(names)


def area_vector(points: np.ndarray) -> np.ndarray:
    """Return (3,) across a polygon (N, 3), as long as its area."""
    here = points - points.mean(axis=0)
    area: np.ndarray = np.cross(here, np.roll(here, -1, axis=0)).sum(axis=0) / 2
    return area


def directions_across(normal: np.ndarray) -> np.ndarray:
    """Return (3, 2), two orthonormal directions across a unit vector (3,), in the columns."""
    across: np.ndarray = np.linalg.svd(normal[None])[2][1:].T
    return across


def as_json(contours: ContourSet) -> str:
    """Return the text of a contour file, which docs/contours.md describes."""
    grid = contours.grid
    assert grid is not None, "only contours of label maps are written"
    decimals = decimals_of(grid)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "frame": "RAS+",
        "unit": "mm",
        "grid": {"shape": list(grid.shape), "affine": grid.affine.tolist(), "dims": grid.dims},
        "slice_axis": contours.axis,
        "slice_normal": contours.normal.tolist(),
        "slice_spacing": contours.step,
        "structures": [
            {
                "number": one.number,
                "name": one.name,
                "contours": [
                    {"slice": c.slice, "hole": c.hole, "points": np.round(c.points, decimals).tolist()}
                    for c in one.contours
                ],
            }
            for one in contours.structures
        ],
    }
    return json.dumps(content, separators=(",", ":")) + "\n"


def decimals_of(grid: Grid) -> int:
    """Return the number of decimals that keep a point to a thousandth of a voxel, 4 or more."""
    return max(4, int(np.ceil(3 - np.log10(grid.spacing.min()))))


def contours_from(content: Any, path: Path) -> ContourSet:
    """Return the contours of a parsed contour file. Raises InputError."""
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise InputError(f'{path}: expected a contour file ("format": "{FORMAT}"), got another JSON file')
    stated = tuple(content.get(key) for key in ("version", "frame", "unit"))
    if stated != (VERSION, "RAS+", "mm"):
        raise InputError(f"{path}: expected contours of version {VERSION} in RAS+ mm, got {stated}")
    try:
        grid = Grid(content["grid"]["shape"], np.array(content["grid"]["affine"], float), content["grid"]["dims"])
        normal = np.array(content["slice_normal"], float)
        found = ContourSet(
            tuple(_structure(one) for one in content["structures"]),
            normal / np.linalg.norm(normal),
            float(content["slice_spacing"]),
            grid,
            int(content["slice_axis"]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: a damaged contour file: {type(error).__name__}: {error}") from error
    return _checked(found, path)


def _structure(entry: Mapping[str, Any]) -> Structure:
    contours = (
        Contour(np.array(one["points"], float).reshape(-1, 3), bool(one["hole"]), int(one["slice"]))
        for one in entry["contours"]
    )
    return Structure(int(entry["number"]), str(entry["name"]), tuple(contours))


def _checked(found: ContourSet, path: Path) -> ContourSet:
    numbers = [one.number for one in found.structures]
    if len(set(numbers)) < len(numbers) or min(numbers, default=1) < 1:
        raise InputError(f"{path}: expected structures with different numbers of 1 or more, got {numbers}")
    points = [contour.points for one in found.structures for contour in one.contours]
    if any(len(p) < 3 or not np.isfinite(p).all() for p in points):
        raise InputError(f"{path}: expected polygons of three finite points or more")
    if found.grid is None or found.grid.affine.shape != (4, 4) or not np.isfinite(found.grid.affine).all():
        raise InputError(f"{path}: expected an affine of 4 x 4 finite numbers")
    return found
