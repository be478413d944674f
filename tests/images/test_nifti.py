"""Geometry of NIfTI files that other programs wrote with rounded, missing or impossible numbers, against SimpleITK."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medkit.errors import InputError
from medkit.images.image import Image, read_grid, read_image
from medkit.space import Grid, lps_affine

sitk = pytest.importorskip("SimpleITK")

VOXELS = np.random.default_rng(0).integers(0, 200, (6, 7, 8)).astype(np.int16)


def written(path: Path, voxels: np.ndarray, **fields: Any) -> Path:
    """A NIfTI-1 file with exactly these header fields, also ones that nibabel does not write."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    header["xyzt_units"], header["vox_offset"], header["scl_slope"], header["magic"] = 2, 352, 1, b"n+1"
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(4) + voxels.tobytes(order="F"))
    return path


def sitk_grid(path: Path) -> np.ndarray:
    image = sitk.ReadImage(str(path))
    dims = image.GetDimension()
    return lps_affine(np.reshape(image.GetDirection(), (dims, dims)), np.array(image.GetSpacing()), image.GetOrigin())


def rotation(length: float) -> dict[str, Any]:
    b, c, d = np.array([0.3, -0.9, 0.2]) / np.linalg.norm([0.3, -0.9, 0.2]) * length
    offsets = {"qoffset_x": 12, "qoffset_y": -20, "qoffset_z": 30}
    return {"quatern_b": b, "quatern_c": c, "quatern_d": d, "qform_code": 1, **offsets}


@pytest.mark.parametrize("qfac", [1, -1])
@pytest.mark.parametrize("length", [1 - 1e-7, 1, 1 + 4e-7, 1 + 5e-5])
def test_a_quaternion_longer_than_one_by_rounding_is_a_rotation(tmp_path: Path, length: float, qfac: int) -> None:
    path = written(tmp_path / "x.nii", VOXELS, pixdim=[qfac, 11, 12, 13, 0, 0, 0, 0], **rotation(length))
    image = read_image(path)
    np.testing.assert_allclose(image.grid.affine, sitk_grid(path), atol=2e-2)
    assert abs(image.grid.affine[0, 0]) < 10.9  # not the spacing only
    assert image.warnings == read_image(path).warnings
    assert not any("form" in warning for warning in image.warnings)


@pytest.mark.parametrize("length", [1.5, np.nan])
def test_a_qform_that_is_no_rotation_is_refused(tmp_path: Path, length: float) -> None:
    fields = {"pixdim": [1, 11, 12, 13, 0, 0, 0, 0], **rotation(length)}
    with pytest.raises(InputError, match=r"x.nii: expected a rotation in the qform, got the quaternion"):
        read_image(written(tmp_path / "x.nii", VOXELS, **fields))
    rows = {"srow_x": [11, 0, 0, 1], "srow_y": [0, 12, 0, 2], "srow_z": [0, 0, 13, 3], "sform_code": 1}
    np.testing.assert_array_equal(
        read_image(written(tmp_path / "y.nii", VOXELS, **fields, **rows)).grid.affine[:3, 3], [1, 2, 3]
    )


def test_a_plane_need_not_have_a_third_spacing(tmp_path: Path) -> None:
    plane, size = VOXELS[:, :, 4], [1, 11, 12, 0, 0, 0, 0, 0]
    forms = {
        "qform": {"qform_code": 1, "quatern_d": 1, "qoffset_x": 5},
        "sform": {"sform_code": 1, "srow_x": [-11, 0, 0, 5], "srow_y": [0, -12, 0, 0]},
        "neither": {},
    }
    for name, fields in forms.items():
        image = read_image(written(tmp_path / f"{name}.nii", plane, pixdim=size, **fields))
        assert image.grid.dims == 2
        np.testing.assert_allclose(image.grid.spacing, [11, 12, 1], atol=1e-5)
        if name == "qform":  # SimpleITK refuses an sform without a third axis
            theirs = sitk_grid(tmp_path / f"{name}.nii")[:2, [0, 1, 3]]
            np.testing.assert_allclose(image.grid.affine[:2, [0, 1, 3]], theirs, atol=1e-5)
        image.write(tmp_path / "again.nii")
        assert read_grid(tmp_path / "again.nii").matches(image.grid)


def test_a_single_slice_without_thickness_has_one_millimetre_and_a_warning(tmp_path: Path) -> None:
    size = [1, 0.011, 0.012, 0, 0, 0, 0, 0]  # metres
    path = written(tmp_path / "x.nii", VOXELS[:, :, 4:5], pixdim=size, qform_code=1, xyzt_units=1)
    image = read_image(path)
    np.testing.assert_allclose(image.grid.spacing, [11, 12, 1], atol=1e-5)
    assert any("1 mm is used" in warning for warning in image.warnings)
    with pytest.raises(InputError, match="got 11 x 12 x 0 mm"):
        read_image(written(tmp_path / "y.nii", VOXELS, pixdim=size, qform_code=1, xyzt_units=1))


def test_an_affine_of_nan_is_named_as_such(tmp_path: Path) -> None:
    rows = {"srow_x": [3, 0, 0, np.nan], "srow_y": [0, 3, 0, 0], "srow_z": [0, 0, 3, 0], "sform_code": 1}
    with pytest.raises(InputError, match=r"finite numbers, got NaN or infinity: 3 0 0 nan; 0 3 0 0"):
        read_grid(written(tmp_path / "x.nii", VOXELS, pixdim=[1, 3, 3, 3, 0, 0, 0, 0], **rows))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
def test_an_axis_too_long_for_nifti_1_makes_nifti_2(tmp_path: Path, suffix: str) -> None:
    source = written(tmp_path / "a.nii", VOXELS, pixdim=[-1, 11, 12, 13, 0, 0, 0, 0], **rotation(1))
    stored = read_image(source).grid.header
    assert stored is not None
    data = np.arange(32768 * 2, dtype=np.int32).reshape(1, 32768, 2, 1)
    for header in (None, stored):
        affine = np.diag([2.0, 2, 2, 1]) if header is None else read_grid(source).affine
        path = tmp_path / f"x{suffix}"
        Image(data, Grid((32768, 2, 1), affine, header=header)).write(path)
        again = read_image(path)
        np.testing.assert_array_equal(again.data, data)
        np.testing.assert_allclose(again.grid.affine, affine, atol=1e-5)
        raw = path.read_bytes()
        theirs = nibabel.Nifti2Image.from_bytes(raw if suffix == ".nii" else gzip.decompress(raw))
        np.testing.assert_array_equal(np.asarray(theirs.dataobj), data[0])
        np.testing.assert_allclose(theirs.affine, affine, atol=1e-5)
    Image(data[:, :32767], Grid((32767, 2, 1), np.eye(4))).write(tmp_path / "y.nii")
    assert int.from_bytes((tmp_path / "y.nii").read_bytes()[:4], "little") == 348
