"""`--dicom image`: results as derived series, in the right space, of the right person, with the same values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_series import AXIAL, IDENTITY, PERSON, TURNED, ball, check_valid, write_enhanced, write_series
from outcome import Outcome

from medkit.dicom_objects.codes import Algorithm
from medkit.dicom_objects.derived_image import Space, as_planes, derived_series, stored_values
from medkit.dicom_objects.source import in_order, read_series
from medkit.errors import InputError
from medkit.images.image import Image, read_image
from medkit.space import Grid

Run = Callable[..., Outcome]
ALGORITHM = Algorithm("enhance", "nlm", "1.0")


def headers(folder: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def sources(header: pydicom.Dataset) -> set[str]:
    """UIDs of the images that an image states as its sources."""
    return {one.ReferencedSOPInstanceUID for one in header.SourceImageSequence}


def spaces(folder: Path) -> set[str]:
    return {header.FrameOfReferenceUID for header in headers(folder)}


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
@pytest.mark.parametrize("axes", [AXIAL, TURNED], ids=["axial", "oblique"])
def test_slices_keep_their_places(tmp_path: Path, modality: str, axes: np.ndarray) -> None:
    folder = write_series(tmp_path / "scan", ball(), modality, axes=axes)
    image, source = read_image(folder), read_series(folder)
    changed = image.with_data((image.data * 0.75 + 0.4).astype(np.float32))

    derived_series(changed, source, Space(source.frame_of_reference), ALGORITHM).write(tmp_path / "out")
    back = read_image(tmp_path / "out")

    found = headers(tmp_path / "out")
    step = float(found[0].get("RescaleSlope", 1))
    assert np.abs(back.data - changed.data).max() <= step / 2 + 1e-3
    assert step < 0.2 if modality == "PT" else step < 0.1
    np.testing.assert_allclose(back.grid.affine, image.grid.affine, atol=1e-13)
    for one, own in zip(found, source.images, strict=True):
        assert one.ImagePositionPatient == own.header.ImagePositionPatient
        np.testing.assert_allclose(one.ImageOrientationPatient, own.header.ImageOrientationPatient, atol=1e-14)
        assert [ref.ReferencedSOPInstanceUID for ref in one.SourceImageSequence] == [own.sop_instance]
        assert one.FrameOfReferenceUID == own.header.FrameOfReferenceUID
        assert one.StudyInstanceUID == own.header.StudyInstanceUID
        assert one.SOPInstanceUID != own.sop_instance
        assert one.ImageType[:2] == ["DERIVED", "PRIMARY" if modality == "PT" else "SECONDARY"]
        assert (str(one.PatientName), one.PatientID) == (PERSON, IDENTITY)
        assert one.Manufacturer == "medkit"
        assert one.ContributingEquipmentSequence[0].Manufacturer == "Maker"
        assert one.WindowWidth == 400 if modality == "CT" else one.WindowWidth > 1
    assert len({one.SeriesInstanceUID for one in found}) == 1
    assert found[0].SeriesInstanceUID != source.header.SeriesInstanceUID
    check_valid(tmp_path / "out" / "0001.dcm")


def test_whole_numbers_stay_exact(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", ball())
    image, source = read_image(folder), read_series(folder)

    derived_series(image, source, Space("1.2.3"), ALGORITHM).write(tmp_path / "out")

    assert np.array_equal(read_image(tmp_path / "out").data, image.data)
    assert spaces(tmp_path / "out") == {"1.2.3"}


@pytest.mark.parametrize(
    ("low", "high", "signed"), [(0.0, 1.0, False), (-3.0, 12.5, True), (-700.25, 1e-3, True), (1e5, 9e6, False)]
)
def test_scaling_is_exact_to_half_a_step(low: float, high: float, signed: bool) -> None:
    values = np.random.default_rng(0).uniform(low, high, (3, 40, 50)).astype(np.float32)
    values[0, 0, :3] = low, high, 0 if low <= 0 else low

    stored, slope = stored_values(values)

    assert (stored.dtype == np.int16) == signed
    assert np.abs(stored * slope - values.astype(float)).max() <= slope / 2 * (1 + 1e-6)
    assert slope <= max(high, -low) / 32000
    assert len(str(pydicom.valuerep.DSfloat(slope, auto_format=True))) <= 16
    assert slope == float(str(pydicom.valuerep.DSfloat(slope, auto_format=True)))


def test_slices_are_shown_upright() -> None:
    """Rows run to the left or back, columns to the back or down, whatever the order in the NIfTI file."""
    data = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    axial = Grid((2, 3, 4), np.diag([1.0, 2.0, 3.0, 1.0]))  # RAS
    sagittal = Grid((2, 3, 4), np.array([[0, 0, 1.0, 0], [2.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 0, 1]]))

    for grid, rows, columns in ((axial, (-1, 0, 0), (0, -1, 0)), (sagittal, (0, -1, 0), (0, 0, -1))):
        planes, upright = as_planes(data, grid, has_position=True)
        directions = upright.affine[:3, :3] / upright.spacing
        assert tuple(directions[:, 0]) == rows  # RAS+: to the left is -x
        assert tuple(directions[:, 1]) == columns
        assert np.array_equal(in_order(data, grid, upright), planes.transpose(2, 1, 0))


def test_enhanced_images_become_single_slices(tmp_path: Path) -> None:
    voxels = np.stack([ball((12, 10, 4)), ball((12, 10, 4), seed=1)], axis=-1)
    path = write_enhanced(tmp_path / "scan.dcm", voxels)
    image, source = read_image(path, frame=1), read_series(path, frame=1)

    derived_series(image, source, Space(source.frame_of_reference), ALGORITHM).write(tmp_path / "out")

    assert np.array_equal(read_image(tmp_path / "out").data[0], voxels[..., 1])
    found = headers(tmp_path / "out")
    assert [one.SourceImageSequence[0].ReferencedFrameNumber for one in found] == [2, 4, 6, 8]
    assert {one.SOPClassUID.name for one in found} == {"MR Image Storage"}
    check_valid(tmp_path / "out" / "0001.dcm")


def test_x_rays_have_no_place(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", ball((20, 18, 1)).astype(np.uint16), "CR")
    image, source = read_image(folder), read_series(folder)
    finer = Image(np.repeat(np.repeat(image.data, 2, 1), 2, 2), _half(image.grid))

    derived_series(finer, source, None, ALGORITHM).write(tmp_path / "out")

    (one,) = headers(tmp_path / "out")
    assert list(one.PixelSpacing) == [0.1, 0.1]
    assert "FrameOfReferenceUID" not in one
    assert np.array_equal(read_image(tmp_path / "out").data, finer.data)
    check_valid(tmp_path / "out" / "0001.dcm")


def _half(grid: Grid) -> Grid:
    affine = grid.affine.copy()
    affine[:3, :2] /= 2
    return Grid((2 * grid.shape[0], 2 * grid.shape[1], grid.shape[2]), affine, grid.dims)


def test_several_channels_are_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", ball())
    image, source = read_image(folder), read_series(folder)

    with pytest.raises(InputError, match="one value per voxel"):
        derived_series(image.with_data(np.repeat(image.data, 2, 0)), source, None, ALGORITHM)


# ---- the commands


def test_enhance_keeps_the_space_and_is_made_once(medkit: Run, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "anna", ball(), "MR")
    command = ("run", "enhance", folder, "--what", "contrast", "--method", "gamma", "--dicom", "image", "-o")

    done = medkit(*command, tmp_path / "out")
    made = tmp_path / "out" / "anna_enhanced_dicom"
    first = {path.name: path.read_bytes() for path in made.iterdir()}
    kept = medkit(*command, tmp_path / "out", "--skip-existing")
    again = medkit(*command, tmp_path / "out", "--overwrite")
    record = json.loads((tmp_path / "out" / "anna_enhanced.json").read_text())

    assert [one.code for one in (done, kept, again)] == [0, 0, 0], done.err + again.err
    assert spaces(made) == spaces(folder)
    values = nibabel.load(tmp_path / "out" / "anna_enhanced.nii.gz").get_fdata()
    assert np.abs(read_image(made).data[0] - values).max() == 0
    assert [h.SOPInstanceUID for h in headers(made)] == [
        pydicom.dcmread(made / name).SOPInstanceUID for name in sorted(first)
    ]
    assert record["medkit"]["outputs"]["dicom_image"]["path"] == "anna_enhanced_dicom"
    assert "Grün" not in json.dumps(record, ensure_ascii=False) + done.err
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    check_valid(made / "0003.dcm")


def test_finer_grids_keep_the_space(medkit: Run, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "anna", ball(), "MR", axes=TURNED)
    command = ("run", "sr", folder, "--scale", "2", "--axes", "slices", "--method", "bspline", "--dicom", "image")

    done = medkit(*command, "-o", tmp_path)
    image, made = read_image(tmp_path / "anna_sr.nii.gz"), tmp_path / "anna_sr_dicom"
    back = read_image(made)

    assert done.code == 0, done.err
    assert spaces(made) == spaces(folder)
    found = in_order(image.data[0], image.grid, back.grid)
    assert found is not None
    assert np.array_equal(found, back.data[0])
    assert headers(made)[0].DerivationCodeSequence[0].CodeMeaning == "Spatial resampling"
    check_valid(made / "0001.dcm")


def thick(folder: Path, axes: np.ndarray, corner: tuple[float, float, float], **tags: str) -> Path:
    """A series of thick slices of a patterned ball, which are averages over 6 mm across their planes."""
    points = np.stack(np.meshgrid(*(np.arange(n) for n in (36, 36, 9)), indexing="ij"), -1) * (2.0, 2.0, 6.0)
    voxels = np.zeros(points.shape[:3])
    for offset in np.linspace(-2.5, 2.5, 6):
        x, y, z = np.moveaxis(np.array(corner) + (points + np.array((0, 0, offset))) @ axes, -1, 0)
        voxels += np.where(x**2 + 1.2 * y**2 + z**2 < 24**2, 700 + 250 * np.sin(x / 6) * np.cos(y / 7 + z / 9), 40) / 6
    noise = np.random.default_rng(0).normal(0, 8, voxels.shape)
    return write_series(folder, np.rint(voxels + noise).astype(np.int16), "MR", axes=axes, spacing=(2.0, 2.0, 6.0),
                        corner=corner, **tags)  # fmt: skip


def test_fused_scans_become_a_series_of_their_person(medkit: Run, tmp_path: Path) -> None:
    """In the space of the first scan, with the values of the file; scans of two persons become none."""
    coronal = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    first = thick(tmp_path / "axial", AXIAL, (-35.0, -35.0, -24.0))
    second = thick(tmp_path / "coronal", coronal, (-35.0, -24.0, 35.0))
    stranger = thick(tmp_path / "stranger", coronal, (-35.0, -24.0, 35.0), PatientID="other")
    fuse = ("run", "sr", first, "--fuse", "--method", "backprojection", "--dicom", "image")

    done = medkit(*fuse, second, "-o", tmp_path / "o")
    refused = medkit(*fuse, stranger, "-o", tmp_path / "p")

    assert done.code == 0, done.err
    assert "need a look" not in done.err
    image, made = read_image(tmp_path / "o/axial_sr.nii.gz"), tmp_path / "o/axial_sr_dicom"
    back = read_image(made)
    assert image.grid.spacing.tolist() == pytest.approx([2, 2, 2])
    found = in_order(image.data[0], image.grid, back.grid)
    assert found is not None
    assert np.abs(found - back.data[0]).max() <= 0.51 * float(headers(made)[0].get("RescaleSlope", 1))
    assert spaces(made) == spaces(first)
    assert {header.PatientID for header in headers(made)} == {IDENTITY}
    scans = {header.SOPInstanceUID for folder in (first, second) for header in headers(folder)}
    assert [sources(header) for header in headers(made)] == [scans] * len(headers(made))
    # the pattern at a place of the body is that of the object there, in LPS
    i, j, k = np.rint(np.linalg.inv(back.grid.affine) @ (-9.4, 0, 0, 1)).astype(int)[:3]
    x, y, z = (back.grid.affine @ (i, j, k, 1))[:3] * (-1, -1, 1)
    assert back.data[0, i, j, k] == pytest.approx(700 + 250 * np.sin(x / 6) * np.cos(y / 7 + z / 9), abs=60)

    assert refused.code == 3
    assert f"{stranger}: states another Patient ID than {first}" in refused.err
    assert not list((tmp_path / "p").glob("*"))
    check_valid(made / "0001.dcm")


def test_a_guide_is_a_source_too(medkit: Run, tmp_path: Path) -> None:
    """Also as a file that was converted from its series; one of another person is refused."""
    scan = thick(tmp_path / "scan", AXIAL, (-35.0, -35.0, -24.0))
    guide = thick(tmp_path / "guide", AXIAL, (-35.0, -35.0, -24.0), SeriesDescription="T1")
    stranger = thick(tmp_path / "stranger", AXIAL, (-35.0, -35.0, -24.0), PatientID="other")
    finer = ("run", "sr", scan, "--spacing", "3", "--method", "backprojection", "--dicom", "image")
    denoised = medkit("run", "enhance", guide, "--what", "denoise", "-o", tmp_path / "g")

    done = medkit(*finer, "--guide", tmp_path / "g/guide_enhanced.nii.gz", "-o", tmp_path / "o")
    refused = medkit(*finer, "--guide", stranger, "-o", tmp_path / "p")

    assert (denoised.code, done.code, refused.code) == (0, 0, 3), denoised.err + done.err + refused.err
    scans = {header.SOPInstanceUID for folder in (scan, guide) for header in headers(folder)}
    assert sources(headers(tmp_path / "o/scan_sr_dicom")[0]) == scans
    assert f"{stranger}: states another Patient ID than {scan}" in refused.err


def test_registered_images_take_the_space_of_the_fixed_one(medkit: Run, tmp_path: Path) -> None:
    """Then segments lie on the derived series, or on the fixed one, if it is of the same person."""
    fixed = write_series(tmp_path / "first", ball(seed=1), "MR", axes=TURNED)
    moving = write_series(tmp_path / "second", ball(shift=0.1), "MR", axes=TURNED)
    other = write_series(tmp_path / "stranger", ball(seed=2), "MR", axes=TURNED, PatientID="other")
    seeds = tmp_path / "seeds.csv"
    centre = read_image(fixed).grid.centre
    seeds.write_text("label,x,y,z\nblob," + ",".join(f"{v:.2f}" for v in centre) + "\n")
    register = ("run", "register", moving, "--type", "rigid", "--init", "header")
    segment = ("run", "segment", "--method", "grow", "--seeds", seeds, "--dicom", "seg")

    with_series = medkit(*register, "--fixed", fixed, "--dicom", "image", "-o", tmp_path / "a")
    without = medkit(*register, "--fixed", fixed, "-o", tmp_path / "b")
    strange = medkit(*register, "--fixed", other, "--dicom", "image", "-o", tmp_path / "c")
    stranger = medkit(*register, "--fixed", other, "-o", tmp_path / "d")
    done = [medkit(*segment, tmp_path / name / "second_registered.nii.gz") for name in "abcd"]

    assert [one.code for one in (with_series, without, strange, stranger)] == [0, 0, 0, 0], with_series.err
    assert [one.code for one in done] == [0, 0, 0, 3], [one.err for one in done]
    made = [tmp_path / name / "second_registered_dicom" for name in "ac"]
    assert spaces(made[0]) == spaces(fixed)
    assert not spaces(made[1]) & (spaces(fixed) | spaces(other) | spaces(moving))
    assert {h.PatientID for h in headers(made[1])} == {IDENTITY}
    segs = [pydicom.dcmread(tmp_path / name / "second_registered_seg.dcm") for name in "abc"]
    named = [seg.ReferencedSeriesSequence[0].SeriesInstanceUID for seg in segs]
    expected = [made[0], fixed, made[1]]
    assert named == [headers(folder)[0].SeriesInstanceUID for folder in expected]
    assert "states another Patient ID" in done[3].err
    check_valid(made[0] / "0001.dcm")
    check_valid(tmp_path / "a" / "second_registered_seg.dcm")


def test_registered_to_no_dicom_is_a_new_space(medkit: Run, tmp_path: Path) -> None:
    """Images of a person that are registered to one NIfTI file share it; the series of the scan is not taken for it."""
    moving = [write_series(tmp_path / name, ball(seed=n), "MR") for n, name in enumerate("xy")]
    image = read_image(moving[0])  # a template on the very grid of the scans
    nibabel.save(nibabel.Nifti1Image(ball(seed=7), image.grid.affine), tmp_path / "template.nii.gz")
    register = ("run", "register", *moving, "--fixed", tmp_path / "template.nii.gz", "--type", "rigid", "-o", tmp_path)
    seeds = tmp_path / "seeds.csv"
    seeds.write_text("label,x,y,z\nblob," + ",".join(f"{v:.2f}" for v in image.grid.centre) + "\n")

    plain = medkit(*register)
    refused = medkit("run", "segment", tmp_path / "x_registered.nii.gz", "--method", "grow", "--seeds", seeds,
                     "--dicom", "seg", "-o", tmp_path / "seg")  # fmt: skip
    done = medkit(*register, "--dicom", "image", "--overwrite")

    assert (plain.code, refused.code, done.code) == (0, 3, 0), plain.err + refused.err + done.err
    assert "another grid" in refused.err
    found = [spaces(tmp_path / f"{name}_registered_dicom") for name in "xy"]
    assert found[0] == found[1]
    assert not found[0] & (spaces(moving[0]) | spaces(moving[1]))


def test_outputs_without_the_image(medkit: Run, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "anna", ball(), "MR")

    done = medkit("run", "register", folder, "--fixed", folder, "--outputs", "transform", "--dicom", "image")

    assert done.code == 2
    assert "--dicom image: needs image among --outputs" in done.err
