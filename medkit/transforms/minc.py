"""MINC's linear transforms, MNI `.xfm`; itk's wheels have no reader for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.transforms.transform import AffineTransform, is_invertible


def read_minc(path: Path) -> AffineTransform:
    """Read an MNI `.xfm` of one or several linear transforms, RAS+ mm. Raises InputError, also for other types.

    The file takes points of the source (moving) to the target (fixed), as `mincresample` and FreeSurfer use it, by its
    transforms in the order of the file. That is the opposite of ITK's direction, so it is inverted.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("MNI Transform File"):
        raise InputError(f"{path}: expected a linear MNI transform (`MNI Transform File`), got something else")
    matrix = np.eye(4)
    for fields in _transforms(path, text):
        matrix = _linear(path, fields) @ matrix
    return AffineTransform(matrix).inverse()


def _transforms(path: Path, text: str) -> list[dict[str, str]]:
    """Return the fields of each transform in the file; each starts with its type. Raises InputError."""
    text = re.sub(r"%.*", "", text.partition("\n")[2])
    found: list[dict[str, str]] = []
    *statements, rest = text.split(";")
    for statement in statements:
        name, _, value = (part.strip() for part in statement.partition("="))
        if name == "Transform_Type":
            found.append({})
        if not found or name in found[-1]:
            raise InputError(f"{path}: expected the fields of a linear MNI transform, got {name or 'nothing'!r}")
        found[-1][name] = value
    if rest.strip() or not found:
        raise InputError(f"{path}: truncated: expected MNI transforms that end with a semicolon")
    return found


def _linear(path: Path, fields: Mapping[str, str]) -> np.ndarray:
    """Return the matrix (4, 4) of one transform, from source to target. Raises InputError."""
    if fields["Transform_Type"] != "Linear":
        raise InputError(f"{path}: expected linear MNI transforms only, got a part of type {fields['Transform_Type']}")
    unknown = set(fields) - {"Transform_Type", "Linear_Transform", "Invert_Flag"}
    inverted = fields.get("Invert_Flag", "False").lower()
    if unknown or inverted not in ("true", "false"):
        what = ", ".join(sorted(unknown)) or f"Invert_Flag = {fields['Invert_Flag']}"
        raise InputError(f"{path}: expected a linear MNI transform of three rows, got {what}")
    try:
        numbers = np.array(fields.get("Linear_Transform", "").split(), np.float64)
    except ValueError as error:
        raise InputError(f"{path}: expected a linear MNI transform of three rows of numbers: {error}") from error
    if len(numbers) != 12:
        raise InputError(f"{path}: expected a linear MNI transform of three rows, got {len(numbers)} numbers")
    matrix = np.vstack([numbers.reshape(3, 4), [0, 0, 0, 1]])
    if not is_invertible(matrix):
        raise InputError(f"{path}: expected a matrix that can be inverted")
    return np.linalg.inv(matrix) if inverted == "true" else matrix
