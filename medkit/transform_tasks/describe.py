"""Describe what a transform does, in numbers and in words."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medkit.errors import size_text
from medkit.space import Grid
from medkit.transforms.jacobian import Determinants, jacobian_determinant
from medkit.transforms.transform import AffineTransform, DisplacementField, Transform, grid_of_field, parts_of

if TYPE_CHECKING:
    from scipy.spatial.transform import Rotation

_EXACT = 1e-4
"""Scales this close to 1 and shears this close to 0 are ignored: files store about as many digits."""


def describe(path: Path, transform: Transform) -> dict[str, Any]:
    """Return a description of a transform for JSON: lengths in mm, RAS+; angles in degrees; fractions from 0 to 1."""
    parts = parts_of(transform)
    described = [_part(part) for part in parts]
    facts = described[0] if len(parts) == 1 else {"kind": "composite", "parts": described}
    head = {"path": str(path), "from_grid": transform.from_grid, "to_grid": transform.to_grid}
    grid = grid_of_field(transform)
    if grid is None:
        return head | facts
    return head | facts | {"jacobian": vars(Determinants.of(jacobian_determinant(transform, grid)))}


def decompose(matrix: np.ndarray) -> dict[str, Any]:
    """Split an affine map (4, 4) into shear, scale, rotation and translation, applied in this order.

    The linear part is M = R Z S: rotation R, scales Z on a diagonal, shear S with ones on its diagonal and zeros below.
    `rotation_deg` are the angles about the fixed axes x, y and z, applied in this order; `angle_deg` is the angle of
    the whole rotation about `axis`. A map that mirrors has a negative first scale.
    """
    from scipy.spatial.transform import Rotation

    rotation, upper = np.linalg.qr(matrix[:3, :3])
    signs = np.where(np.diag(upper) < 0, -1.0, 1.0)
    rotation, upper = rotation * signs, upper * signs[:, None]
    if np.linalg.det(rotation) < 0:
        rotation, upper = rotation * [-1, 1, 1], upper * np.array([-1, 1, 1])[:, None]
    scale = np.diag(upper)
    shear = upper / scale[:, None]
    turn = Rotation.from_matrix(rotation)
    vector = turn.as_rotvec(degrees=True)
    angle = float(np.linalg.norm(vector))
    return {
        "rotation_deg": _fixed_axis_angles(turn),
        "angle_deg": angle,
        "axis": (vector / angle if angle > 1e-10 else np.array([0.0, 0, 1])).tolist(),
        "translation_mm": matrix[:3, 3].tolist(),
        "scale": scale.tolist(),
        "shear": {"xy": float(shear[0, 1]), "xz": float(shear[0, 2]), "yz": float(shear[1, 2])},
        "determinant": float(np.linalg.det(matrix[:3, :3])),
    }


def _fixed_axis_angles(turn: Rotation) -> list[float]:
    """Return the angles in degrees about the fixed axes x, y and z, applied in this order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # with y at 90 degrees only x - z is defined; scipy sets z to 0
        angles: list[float] = turn.as_euler("xyz", degrees=True).tolist()
    return angles


def _part(part: Transform) -> dict[str, Any]:
    if isinstance(part, AffineTransform):
        facts = decompose(part.matrix)
        return {"kind": _kind(facts), "dimension": part.dims, "matrix": part.matrix.tolist()} | facts
    assert isinstance(part, DisplacementField), "files hold affine transforms and displacement fields"
    return {
        "kind": "displacement field",
        "dimension": part.dims,
        "grid": _grid(part.grid),
        "displacement_mm": _lengths(part.field),
    }


def _kind(facts: dict[str, Any]) -> str:
    scale, shear = np.array(facts["scale"]), np.array(list(facts["shear"].values()))
    if np.abs(shear).max() > _EXACT or np.ptp(scale) > _EXACT:
        return "affine"
    if abs(scale[0] - 1) > _EXACT:
        return "similarity"
    return "rigid" if facts["angle_deg"] > 1e-3 else "translation"


def _grid(grid: Grid) -> dict[str, Any]:
    from nibabel.orientations import aff2axcodes

    return {
        "shape": list(grid.shape),
        "spacing_mm": grid.spacing.round(6).tolist(),
        "axes": "".join(aff2axcodes(grid.affine)),
        "digest": grid.digest(),
    }


def _lengths(field: np.ndarray) -> dict[str, float]:
    lengths = np.linalg.norm(field, axis=-1)
    return {
        "mean": float(lengths.mean(dtype=np.float64)),
        "95th percentile": float(np.percentile(lengths, 95)),
        "max": float(lengths.max()),
    }


def in_words(facts: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a description that `describe` made."""
    yield facts["path"]
    yield f"  leads from the grid {facts['from_grid'] or 'unknown'} (fixed) to {facts['to_grid'] or 'unknown'} (moving)"
    parts = facts.get("parts", [facts])
    for number, part in enumerate(parts, start=1):
        lead = f"{number}. " if len(parts) > 1 else ""
        yield f"  {lead}{part['kind']}, {part['dimension']}D"
        yield from (f"     {line}" if lead else f"  {line}" for line in _part_in_words(part))
    if "jacobian" in facts:
        yield f"  Jacobian     {Determinants(**facts['jacobian']).sentence()}"


def _part_in_words(part: dict[str, Any]) -> Iterator[str]:
    if "grid" in part:
        grid, lengths = part["grid"], part["displacement_mm"]
        shape, spacing = (size_text(grid[key], "g") for key in ("shape", "spacing_mm"))
        yield f"grid         {shape} voxels of {spacing} mm, axes {grid['axes']}, digest {grid['digest']}"
        yield "displacement " + ", ".join(f"{name} {value:.3g}" for name, value in lengths.items()) + " mm"
        return
    about = ", ".join(f"{name} {angle}" for name, angle in zip("xyz", _fixed(part["rotation_deg"], 3), strict=True))
    axis = ", ".join(_fixed(part["axis"], 3))
    yield f"rotation     {part['angle_deg']:.3f} deg about ({axis}): {about} deg"
    yield f"translation  {', '.join(_fixed(part['translation_mm'], 3))} mm (RAS)"
    yield f"scale        {', '.join(_fixed(part['scale'], 5))}, determinant {part['determinant']:.5f}"
    shear = zip(part["shear"], _fixed(part["shear"].values(), 5), strict=True)
    yield "shear        " + ", ".join(f"{name} {value}" for name, value in shear)
    for number, row in enumerate(part["matrix"][:3]):
        yield ("matrix       " if number == 0 else " " * 13) + " ".join(f"{word:>11}" for word in _fixed(row, 6))


def _fixed(values: Iterable[float], digits: int) -> list[str]:
    """Return numbers with `digits` after the point, and zero without a minus."""
    return [f"{round(value, digits) + 0.0:.{digits}f}" for value in values]
