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


def off_mm(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the largest distance in mm between two maps (4, 4) at four points of a made-up head of 16 x 18 x 14 cm."""
    corners = np.array([[40, 40, 40, 1], [120, 40, 40, 1], [40, 130, 100, 1], [110, 120, 40, 1]], float)
    return float(np.linalg.norm((corners @ (found - truth).T)[:, :3], axis=1).max())
