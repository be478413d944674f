"""Known transforms for the tests of registration."""

from __future__ import annotations

import math

import numpy as np


def turned(degrees: float, shift: tuple[float, float, float]) -> np.ndarray:
    """Return a matrix (4, 4), RAS+ mm: a rotation about z, then a shift."""
    matrix = np.eye(4)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix[:2, :2] = [[cosine, -sine], [sine, cosine]]
    matrix[:3, 3] = shift
    return matrix
