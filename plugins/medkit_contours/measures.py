"""Numbers about an outline: area, perimeter, centroid, and the ellipse or line that fits it best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medkit_contours.tracing import Outline, Slices

FITS = ("auto", "ellipse", "line")
_WINDOW = 4
"""Voxel edges on both sides of one over which its direction is averaged for the perimeter."""
_NARROW = 2.5
"""Voxels; what is narrower than this may be a line."""
_STRAIGHT = 0.75
"""Largest root mean square distance to the line, as a share of the width: that of a straight strip is a half."""
_LONG = 4.0
"""Smallest ratio of length to width of a line."""
_FAR = 10.0
"""Largest half axis of an ellipse, as a multiple of the outline's extent: longer ones stand for two parallel lines."""
COLUMNS = (
    *("index", "name", "slice", "hole", "area_mm2", "perimeter_mm", "centroid_x", "centroid_y", "centroid_z"),
    *("fit", "fit_x", "fit_y", "fit_z", "semi_major_mm", "semi_minor_mm", "direction_x", "direction_y"),
    *("direction_z", "residual_mm"),
)
"""Columns of the table of contours."""


@dataclass(frozen=True)
class Fit:
    """An ellipse or line, fitted to the points of an outline by least squares."""

    kind: str
    """`ellipse` or `line`."""
    centre: np.ndarray
    """(2,) mm in the slice: of the ellipse, or of the points on the line."""
    semi_major: float
    """mm; half the long axis of the ellipse, or half the length of the line."""
    semi_minor: float | None
    """mm; half the short axis of the ellipse; None for a line."""
    direction: np.ndarray
    """(2,) unit vector in the slice: of the long axis, or of the line."""
    residual: float
    """mm; root mean square of the distances of the outline's points to the curve."""


@dataclass(frozen=True)
class Measured:
    """The measures of an outline."""

    outline: Outline
    area: float
    """mm2 that the outline encloses, holes in it included."""
    perimeter: float
    """mm, of the smooth curve that the steps of the voxels follow."""
    centroid: np.ndarray
    """(3,) RAS+ mm, of the enclosed area."""
    fit: Fit | None
    """The curve fitted to it; None if it has too few points."""


def measured(outline: Outline, slices: Slices, fit: str = "auto") -> Measured:
    """Return the measures of an outline.

    fit: `ellipse`, `line`, or `auto`: a line where the structure is straight, long, and hardly wider than two voxels,
    else an ellipse.
    """
    flat = slices.flat
    area, centre = _area_and_centroid(outline.corners)
    area *= abs(float(np.linalg.det(flat)))
    length = perimeter(outline.edges, flat)
    centroid = slices.points(centre[None], outline.slice)[0]
    width = 2 * area / length  # of a strip
    voxel = float(np.linalg.norm(flat, axis=0).mean())
    kind = "ellipse" if fit == "auto" and width > _NARROW * voxel else fit
    return Measured(outline, area, length, centroid, _fitted(outline.edges @ flat.T, max(width, voxel), kind))


def _area_and_centroid(points: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the area of a polygon (N, 2) and its centroid (2,), in the units of its points."""
    origin = points.mean(axis=0)
    here, there = points - origin, np.roll(points - origin, -1, axis=0)
    cross = here[:, 0] * there[:, 1] - there[:, 0] * here[:, 1]
    centroid = ((here + there) * cross[:, None]).sum(axis=0) / (3 * cross.sum())
    return abs(float(cross.sum())) / 2, origin + centroid


def perimeter(edges: np.ndarray, flat: np.ndarray) -> float:
    """Return the length, mm, of the curve that an outline of voxel edges follows.

    edges: (N, 2) voxel indices, the middles of the edges; flat: (2, 2) mm, see `Slices.flat`.

    The steps of the edges themselves are up to 1.4 times as long as the curve. Each edge counts by its projection on
    the direction of the outline around it (Coeurjolly and Klette 2004, "A comparative evaluation of length estimators
    of digital curves").
    """
    reach = max(1, min(_WINDOW, len(edges) // 8))
    around = (np.roll(edges, -reach, axis=0) - np.roll(edges, reach, axis=0)) @ flat.T
    length = np.linalg.norm(around, axis=1)
    # an edge across the first axis runs along the second one
    steps = np.where((edges[:, 0] % 1 != 0)[:, None], flat[:, 1], flat[:, 0])
    along = np.abs((steps * around).sum(axis=1)) / np.where(length > 0, length, 1)
    return float(np.where(length > 0, along, np.linalg.norm(steps, axis=1)).sum())


def _fitted(points: np.ndarray, width: float, kind: str) -> Fit | None:
    """Return the curve fitted to points (N, 2) mm around a structure of some width, mm.

    None if the points are too few, or no ellipse fits them.
    """
    if kind == "ellipse":
        return _ellipse(points)
    line = _line(points)
    if kind == "line" or (line.residual < _STRAIGHT * width and 2 * line.semi_major > _LONG * width):
        return line if len(points) > 4 else None
    return _ellipse(points)


def _line(points: np.ndarray) -> Fit:
    from skimage.measure import LineModelND

    model = LineModelND.from_estimate(points)
    along = (points - model.origin) @ model.direction
    middle = model.origin + (along.max() + along.min()) / 2 * model.direction
    residual = float(np.sqrt((model.residuals(points) ** 2).mean()))
    return Fit("line", middle, float(np.ptp(along)) / 2, None, np.asarray(model.direction), residual)


def _ellipse(points: np.ndarray) -> Fit | None:
    from skimage.measure import EllipseModel

    if len(points) < 6:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):  # a circle has no direction: 0 / 0
        try:
            model = EllipseModel.from_estimate(points)
        except TypeError:  # scikit-image meets complex numbers where all points lie on two parallel lines
            return None
    if not model or not min(model.axis_lengths) > 0 or max(model.axis_lengths) > _FAR * np.ptp(points, axis=0).max():
        return None
    a, b = model.axis_lengths
    direction = np.array([np.cos(model.theta), np.sin(model.theta)])
    across = np.array([-direction[1], direction[0]])
    local = (points - model.center) @ np.stack([direction, across], axis=1)
    residual = float(np.sqrt((_distances(local, a, b) ** 2).mean()))
    return Fit("ellipse", np.asarray(model.center), float(a), float(b), direction, residual)


def _distances(points: np.ndarray, a: float, b: float) -> np.ndarray:
    """Return the distances (N,) of points (N, 2) to the ellipse with the half axes a and b along x and y.

    Newton's method for the angle of the nearest point, for all points at once; scikit-image takes them one by one.
    """
    x, y = np.abs(points).T
    angle = np.clip(np.arctan2(a * y, b * x), 0.05, np.pi / 2)  # at 0, points on the long axis may have a maximum
    for _ in range(8):
        cos, sin = np.cos(angle), np.sin(angle)
        downhill = (a * a - b * b) * cos * sin - x * a * sin + y * b * cos
        bend = (a * a - b * b) * (cos * cos - sin * sin) - x * a * cos - y * b * sin
        angle = np.clip(angle + downhill / np.maximum(np.abs(bend), 1e-12), 0, np.pi / 2)
    distance: np.ndarray = np.hypot(x - a * np.cos(angle), y - b * np.sin(angle))
    return distance


def as_tsv(rows: Sequence[Measured], slices: Slices, names: Mapping[int, str]) -> str:
    """Return the table of contours, a row each; lengths in mm, places in RAS+ mm."""
    lines = ["\t".join(COLUMNS), *("\t".join(_cells(row, slices, names)) for row in rows)]
    return "\n".join([*lines, ""])


def _cells(row: Measured, slices: Slices, names: Mapping[int, str]) -> list[str]:
    outline = row.outline
    cells = [str(outline.number), names[outline.number], str(outline.slice), "yes" if outline.hole else "no"]
    cells += [f"{row.area:.3f}", f"{row.perimeter:.3f}", *_numbers(row.centroid)]
    if row.fit is None:
        return [*cells, *["n/a"] * 10]
    fit, frame = row.fit, slices.directions
    origin = slices.points(np.zeros((1, 2)), outline.slice)[0]
    minor = "n/a" if fit.semi_minor is None else f"{fit.semi_minor:.3f}"
    return [
        *(*cells, fit.kind, *_numbers(origin + frame @ fit.centre), f"{fit.semi_major:.3f}", minor),
        *(*_numbers(frame @ fit.direction, 4), f"{fit.residual:.3f}"),
    ]


def _numbers(values: np.ndarray, decimals: int = 3) -> list[str]:
    return [f"{value:.{decimals}f}" for value in values]
