"""MINC's linear transforms, MNI `.xfm`; itk's wheels have no reader for them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from medkit.errors import InputError
from medkit.transforms.transform import AffineTransform, is_invertible


def read_minc(path: Path) -> AffineTransform:
    """Read a linear MNI `.xfm`, RAS+ mm. Raises InputError.

    The file's matrix takes points of the source (moving) to the target (fixed), as `mincresample` and FreeSurfer use
    it. That is the opposite of ITK's direction, so it is inverted.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"Linear_Transform\s*=\s*([^;]*);", text)
    try:
        numbers = np.array(found.group(1).split() if found else [], np.float64)
    except ValueError as error:
        raise InputError(f"{path}: expected a linear MNI transform of three rows of numbers: {error}") from error
    if not text.startswith("MNI Transform File") or len(numbers) != 12 or "Grid_Transform" in text:
        raise InputError(f"{path}: expected a linear MNI transform of three rows, got something else")
    matrix = np.vstack([numbers.reshape(3, 4), [0, 0, 0, 1]])
    if not is_invertible(matrix):
        raise InputError(f"{path}: expected a matrix that can be inverted")
    return AffineTransform(matrix).inverse()
