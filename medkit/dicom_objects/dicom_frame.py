"""Points in the frame of DICOM files, LPS mm: the headers of images and the objects made for them state them so."""

from __future__ import annotations

import numpy as np

from medkit.space import RAS_TO_LPS, apply_affine


def to_dicom(points: np.ndarray) -> np.ndarray:
    """Return points (N, 3) RAS+ mm as LPS mm."""
    return apply_affine(RAS_TO_LPS, points)


def from_dicom(points: np.ndarray) -> np.ndarray:
    """Return points (N, 3) LPS mm as RAS+ mm."""
    return apply_affine(np.linalg.inv(RAS_TO_LPS), points)
