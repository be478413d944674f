"""The geometry of NIfTI headers that are written: qform, sform, spacing and unit state one grid to every reader.

nibabel and medkit prefer the sform. ITK, which ANTs, 3D Slicer and ITK-SNAP read through, prefers the qform, except
that newer versions prefer an sform of code 1; the spacing ITK takes from `pixdim`, it knows no unit but mm, and without
both forms it places the image elsewhere than nibabel does (`itk::NiftiImageIO`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medkit.space import Grid

GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
"""Fields of the header that define the grid, besides the spacing."""
MILLIMETRES = {1: 1000.0, 3: 0.001}
"""Millimetres in the units of length metre and micrometre, by their NIfTI codes; other codes count as millimetres."""
_MM = 2
"""NIFTI_UNITS_MM."""
_SCANNER, _ALIGNED = 1, 2
"""NIFTI_XFORM_SCANNER_ANAT, and NIFTI_XFORM_ALIGNED_ANAT for an image whose place is not known from a scanner."""
_APART = 0.01
"""Voxels by which a stored form may place a corner of the image elsewhere than its affine."""


def geometry_fields(header: Any) -> dict[str, Any]:
    """Return the stored fields that define the grid, as plain values, so that an output can repeat them bit for bit."""
    fields: dict[str, Any] = {name: np.array(header[name]) for name in GEOMETRY_FIELDS}
    units = int(header["xyzt_units"]) & 7
    version = 1 if int(header["sizeof_hdr"]) == 348 else 2
    return fields | {"pixdim": np.array(header["pixdim"][:4]), "xyzt_units": units, "version": version}


def header_for(grid: Grid) -> Any:
    """Return a new header with the geometry of `grid`.

    The stored fields of the grid's file are repeated bit for bit if every reader takes the grid's affine from them.
    Otherwise spacing and forms are stated anew, in mm, with the codes of the file; an image that has neither form gets
    both. A sheared affine has no qform: its qform code is 0, so that no reader uses a wrong grid.
    """
    from nibabel import Nifti1Header, Nifti2Header

    fields = grid.header
    header = Nifti1Header() if fields is None or fields["version"] == 1 else Nifti2Header()
    if fields is None:
        _state(header, grid, _SCANNER, _SCANNER)
        return header
    _repeat(header, fields)
    if not _states(header, grid):
        codes = int(fields["qform_code"]), int(fields["sform_code"])
        _state(header, grid, *(codes if max(codes) > 0 else (_ALIGNED, _ALIGNED)))
    return header


def _repeat(header: Any, fields: Mapping[str, Any]) -> None:
    for name in (*GEOMETRY_FIELDS, "xyzt_units"):
        header[name] = fields[name]
    header["pixdim"][:4] = fields["pixdim"]


def _states(header: Any, grid: Grid) -> bool:
    """Return whether unit, spacing and each form that has a code agree with the grid, and one form has a code."""
    if int(header["xyzt_units"]) & 7 in MILLIMETRES or abs(float(header["pixdim"][0])) != 1:
        return False
    if not np.allclose(header["pixdim"][1:4], grid.spacing, rtol=1e-5, atol=0):
        return False
    forms = [form for form in ("qform", "sform") if header[f"{form}_code"] > 0]
    return bool(forms) and all(_agrees(header, form, grid) for form in forms)


def _agrees(header: Any, form: str, grid: Grid) -> bool:
    """Return whether a form, as nibabel reads it, puts the corners of the image where the grid has them."""
    from nibabel.spatialimages import HeaderDataError

    try:
        affine = header.get_sform() if form == "sform" else header.get_qform()
    except (HeaderDataError, ValueError):  # a quaternion that is longer than 1 by rounding
        return False
    ends = np.maximum(np.array(grid.shape) - 1, 1)
    corners = np.array([[*(np.array(corner) * ends), 1.0] for corner in np.ndindex(2, 2, 2)])
    apart = np.abs(corners @ (affine - grid.affine).T).max()
    return bool(apart <= _APART * grid.spacing.min())


def _state(header: Any, grid: Grid, qform_code: int, sform_code: int) -> None:
    """Write the geometry of a grid into a header, in the forms that have a code above 0."""
    if grid.is_sheared:
        qform_code, sform_code = 0, max(sform_code, 0) or qform_code
    header["pixdim"][0], header["pixdim"][1:4] = 1, grid.spacing
    header["qform_code"] = header["sform_code"] = 0
    if sform_code > 0:
        header.set_sform(grid.affine, sform_code)
    if qform_code > 0:
        header.set_qform(grid.affine, qform_code, strip_shears=True)
    header["xyzt_units"] = _MM
