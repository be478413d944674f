"""What ITK's transform files have in common: LPS mm instead of RAS+ mm, and medkit's note of the two grids."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.space import RAS_TO_LPS
from medkit.transforms.transform import AffineTransform, DisplacementField, Transform, with_grids

_GRID_NOTE = re.compile(r"medkit from=(\w+) to=(\w+)")


def grid_note(transform: AffineTransform | DisplacementField) -> str:
    """Return the note of the fixed and the moving grid that medkit writes into a transform file."""
    return f"medkit from={transform.from_grid} to={transform.to_grid}"


def with_noted_grids(transform: Transform, text: str) -> Transform:
    """Return the transform with the digests of grids that a note in `text` names; without a note as it is."""
    found = _GRID_NOTE.search(text)
    if not found:
        return transform
    return with_grids(transform, *(None if digest == "None" else digest for digest in found.groups()))


def affine_to_lps(matrix: np.ndarray, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ITK's matrix (n, n) and offset (n,) LPS mm of an affine map (4, 4) of RAS+ mm, n = `dims`."""
    lps = RAS_TO_LPS @ matrix @ RAS_TO_LPS
    return lps[:dims, :dims], lps[:dims, 3]


def affine_from_lps(matrix: np.ndarray, offset: np.ndarray) -> AffineTransform:
    """Return the transform of ITK's matrix (n, n) and offset (n,) LPS mm, n = 2 or 3."""
    dims = len(offset)
    lps = np.eye(4)
    lps[:dims, :dims], lps[:dims, 3] = matrix, offset
    return AffineTransform(RAS_TO_LPS @ lps @ RAS_TO_LPS, dims=dims)


def field_to_lps(field: np.ndarray, dims: int) -> np.ndarray:
    """Return displacements (I, J, K, 3) RAS+ mm as (I, J, K, n) LPS mm, n = `dims`."""
    vectors: np.ndarray = field[..., :dims] * np.diag(RAS_TO_LPS)[:dims].astype(np.float32)
    return vectors


def field_from_lps(path: Path, vectors: np.ndarray) -> np.ndarray:
    """Return displacements (I, J, K, 2 or 3) LPS mm as `checked_field` does."""
    return checked_field(path, vectors, np.diag(RAS_TO_LPS)[: vectors.shape[3]])


def checked_field(path: Path, vectors: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return displacements (I, J, K, 2 or 3), times the `signs` of their axes, as (I, J, K, 3) float32 RAS+ mm.

    In memory each vector is contiguous and axis I is the fastest. Raises InputError for NaN and infinity.
    """
    field = np.zeros((*vectors.shape[2::-1], 3), np.float32).transpose(2, 1, 0, 3)
    np.multiply(vectors, signs, out=field[..., : vectors.shape[3]], casting="same_kind")
    if not np.isfinite(field).all():
        raise InputError(f"{path}: expected finite displacements, got NaN or infinity")
    return field
