"""What other programs take from a file: nibabel, ITK as it is installed, and the older ITK of ANTs' builds.

Inputs of every form are made here too: which of qform and sform a NIfTI file has, and whether they agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy.spatial.transform import Rotation

from medkit.images import nifti
from medkit.images.image import read_image
from medkit.space import Grid, lps_affine

ELSEWHERE = np.array([9.0, -4.0, 5.0])
"""mm by which the unlike form of an input is off."""


def affine_for(orientation: str, spacing: tuple[float, ...] = (4.0, 5.0, 6.0)) -> np.ndarray:
    """Affine (4, 4) of `axial`, `flipped`, `oblique` or `sheared` axes."""
    affine = np.eye(4)
    axes = np.diag([-1.0, 1, 1]) if orientation == "flipped" else np.eye(3)
    if orientation in ("oblique", "sheared"):
        axes = Rotation.from_euler("xyz", [20, 10, -15], degrees=True).as_matrix() @ axes
    affine[:3, :3] = axes * spacing
    if orientation == "sheared":
        affine[:3, 2] += 0.3 * affine[:3, 1]
    affine[:3, 3] = [-20.0, -30.0, 10.0] if orientation != "flipped" else [30.0, -30.0, 10.0]
    return affine


def write_forms(path: Path, voxels: np.ndarray, affine: np.ndarray, qform: int, sform: int, unlike: bool) -> Path:
    """Write NIfTI-1 with these codes; with `unlike` the qform is `ELSEWHERE`."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    moved = affine.copy()
    moved[:3, 3] += ELSEWHERE * unlike
    if qform:
        header.set_qform(moved, qform, strip_shears=True)
    if sform:
        header.set_sform(affine, sform)
    header["xyzt_units"], header["vox_offset"], header["scl_slope"], header["magic"] = 2, 352, 1, b"n+1"
    path.write_bytes(header.binaryblock + bytes(4) + voxels.tobytes(order="F"))
    return path


def views(path: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the name of a reader, the affine (n, n + 1) RAS+ mm, and the voxels (I, J[, K][, C]) that it takes."""
    if not path.name.endswith((".nii", ".nii.gz")):
        image = read_image(path)
        yield "medkit", image.grid.affine[:3], image.data[0]
    else:
        header, voxels = nifti.read(path)
        yield "medkit", nifti.affine_of(path, header)[0][:3], voxels
    if path.name.endswith((".nii", ".nii.gz")):
        theirs: Any = nibabel.load(path)
        yield "nibabel", theirs.affine[:3], np.asarray(theirs.dataobj)
        yield "the older rule of ITK", older_rule(theirs)[:3], np.asarray(theirs.dataobj)
    try:
        yield "ITK", *by_itk(path)
    except RuntimeError as error:
        if not Grid((1, 1, 1), nibabel.load(path).affine).is_sheared:
            raise AssertionError(f"ITK refuses {path}: {error}") from error


def by_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The affine (n, n + 1) RAS+ mm, and the voxels as ITK reads them; n is 2 for what ITK takes for a plane.

    A fourth axis is frames.
    """
    image = sitk.ReadImage(str(path))
    dims = image.GetDimension()
    space = min(dims, 3)
    directions = np.reshape(image.GetDirection(), (dims, dims))[:space, :space]
    affine = lps_affine(directions, np.array(image.GetSpacing()[:space]), np.array(image.GetOrigin()[:space]))
    voxels = sitk.GetArrayFromImage(image)
    order = [*range(dims)[::-1], *range(dims, voxels.ndim)]
    return affine[:space, [*range(space), 3]], voxels.transpose(order)


def older_rule(image: Any) -> np.ndarray:
    """The affine (4, 4) by ITK's rule before 5.3: the qform if it has a code, else the sform, else spacing alone, LPS.

    The spacing is that of `pixdim` in any case.
    """
    header = image.header
    if header["qform_code"] > 0:
        affine = header.get_qform()
    elif header["sform_code"] > 0:
        affine = header.get_sform()
    else:
        affine = np.diag([-1.0, -1, 1, 1])
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    affine[:3, :3] *= np.array(header["pixdim"][1:4]) / lengths
    return np.asarray(affine)


def assert_one_image(path: Path) -> None:
    """Check that all readers take the same geometry and voxels from a file."""
    (_, affine, voxels), *others = views(path)
    for name, theirs, data in others:
        dims = theirs.shape[0]
        ours = affine[:dims][:, [*range(dims), 3]]
        np.testing.assert_allclose(theirs, ours, atol=2e-3, err_msg=f"{path.name} by {name}")
        np.testing.assert_array_equal(np.squeeze(data), np.squeeze(voxels), err_msg=f"{path.name} by {name}")


def as_sitk(path: Path) -> Any:
    """The image that medkit reads, handed over to SimpleITK."""
    image = read_image(path)
    dims = image.grid.dims
    result = sitk.GetImageFromArray(np.ascontiguousarray(image.data[0].T.astype(np.float32)[0 if dims == 2 else ...]))
    lps = np.diag([-1.0, -1, 1, 1]) @ image.grid.affine
    result.SetDirection((lps[:dims, :dims] / image.grid.spacing[:dims]).ravel().tolist())
    result.SetSpacing(image.grid.spacing[:dims].tolist())
    result.SetOrigin(lps[:dims, 3].tolist())
    return result


def transform_by_sitk(path: Path) -> Any:
    """A transform file as ITK's programs read it."""
    if path.name.endswith((".nii", ".nii.gz")):
        return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    return sitk.ReadTransform(str(path))
