"""Transforms as values, their files, resampling through them, and points.

A transform takes points of the fixed space to the moving space, RAS+ mm. The face of this package for plugins.
"""

from __future__ import annotations

from medkit.transforms.files import TransformFile, read_transform, write_transform
from medkit.transforms.jacobian import determinant_of, jacobian_determinant
from medkit.transforms.points import Points, read_points, write_points
from medkit.transforms.resampling import displacements, resample, to_displacement_field
from medkit.transforms.transform import (
    AffineTransform,
    Composite,
    DisplacementField,
    InverseField,
    Transform,
    chain,
    compose,
)

__all__ = [
    "AffineTransform",
    "Composite",
    "DisplacementField",
    "InverseField",
    "Points",
    "Transform",
    "TransformFile",
    "chain",
    "compose",
    "determinant_of",
    "displacements",
    "jacobian_determinant",
    "read_points",
    "read_transform",
    "resample",
    "to_displacement_field",
    "write_points",
    "write_transform",
]
