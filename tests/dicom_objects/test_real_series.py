"""`--dicom` on real series: what other libraries and the validator make of the objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_series import check_valid
from outcome import Outcome

from medkit.dicom_objects.codes import Algorithm
from medkit.dicom_objects.segmentation import segmentation
from medkit.dicom_objects.source import in_order, read_series
from medkit.images.image import read_image

pytestmark = pytest.mark.real_data

Run = Callable[..., Outcome]


def same_voxels(seg: Path, labels: Path, folder: Path) -> bool:
    """Whether a SEG, as highdicom and medkit read it, has the voxels of a label map where they are."""
    image, back, series = read_image(labels, labels=True), read_image(seg, labels=True), read_series(folder)
    corner = np.rint(np.linalg.inv(image.grid.affine) @ back.grid.affine[:, 3]).astype(int)[:3]
    i, j, k = (slice(at, at + size) for at, size in zip(corner, back.grid.shape, strict=True))
    found = np.zeros_like(image.data[0])
    found[i, j, k] = back.data[0]
    uids = [one.sop_instance for one in series.images]
    pixels = highdicom.seg.segread(seg).get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True, skip_overlap_checks=True
    )
    by_highdicom = np.array([0, *np.unique(image.data)[1:]])[pixels].transpose(2, 1, 0)
    return np.array_equal(found, image.data[0]) and np.array_equal(by_highdicom, image.data[0])


def test_chest_ct(shared_data: Path, medkit: Run, tmp_path: Path) -> None:
    folder = shared_data / "dicom" / "chest_ct_cip"

    done = medkit("run", "segment", folder, "--method", "threshold", "--dicom", "seg,sr", "-o", tmp_path)
    outlined = medkit("run", "contours", tmp_path / "chest_ct_cip_dseg.nii.gz", "--dicom", "rtstruct")
    clean = medkit("run", "enhance", folder, "--what", "denoise", "--method", "nlm", "--dicom", "image", "-o", tmp_path)

    assert [one.code for one in (done, outlined, clean)] == [0, 0, 0], done.err + outlined.err + clean.err
    assert same_voxels(tmp_path / "chest_ct_cip_seg.dcm", tmp_path / "chest_ct_cip_dseg.nii.gz", folder)
    names = ("chest_ct_cip_seg.dcm", "chest_ct_cip_measurements.dcm", "chest_ct_cip_dseg_rtstruct.dcm",
             "chest_ct_cip_enhanced_dicom/0040.dcm")  # fmt: skip
    for name in names:
        check_valid(tmp_path / name, folder)
    image, made = read_image(tmp_path / "chest_ct_cip_enhanced.nii.gz"), tmp_path / "chest_ct_cip_enhanced_dicom"
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(made)))
    other = SimpleITK.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
    found = in_order(image.data[0], image.grid, read_image(made).grid)
    assert found is not None
    assert np.array_equal(other, found)


@pytest.mark.slow
def test_oblique_brain(shared_data: Path, medkit: Run, tmp_path: Path) -> None:
    folder = shared_data / "dicom" / "brain_mr_oblique"

    done = medkit("run", "segment", folder, "--dicom", "seg,sr", "-o", tmp_path)

    assert done.code == 0, done.err
    assert same_voxels(tmp_path / "brain_mr_oblique_seg.dcm", tmp_path / "brain_mr_oblique_dseg.nii.gz", folder)
    for kind in ("seg", "measurements"):
        check_valid(tmp_path / f"brain_mr_oblique_{kind}.dcm", folder)
    segments = pydicom.dcmread(tmp_path / "brain_mr_oblique_seg.dcm").SegmentSequence
    schemes = {one.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator for one in segments}
    assert schemes <= {"SCT", "DCM"}


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["CT", "PET"])
def test_a_tumour_goes_to_the_mr(shared_data: Path, medkit: Run, tmp_path: Path, modality: str) -> None:
    """Registered to the MR as a series in its space; contours to labels on the MR's grid, and back as RTSTRUCT."""
    person = shared_data / "sarcoma_ct_pet_mr" / "STS_002"
    scan, fixed = person / modality / "image", person / "MR_T1" / "image"
    reference = ("--to-labels", "--reference", fixed)

    moved = medkit("run", "register", scan, "--fixed", fixed, "--type", "rigid", "--dicom", "image", "-o", tmp_path)
    labels = medkit(
        "run", "contours", *reference, person / modality / "mask" / "RS.dcm", "-o", tmp_path / "x_dseg.nii.gz"
    )
    outlined = medkit("run", "contours", tmp_path / "x_dseg.nii.gz", "--dicom", "rtstruct")
    again = medkit("run", "contours", *reference, tmp_path / "x_dseg_rtstruct.dcm", "-o", tmp_path / "y.nii.gz")

    assert [one.code for one in (moved, labels, outlined, again)] == [0, 0, 0, 0], outlined.err
    made, image = read_image(tmp_path / "image_registered_dicom"), read_image(tmp_path / "image_registered.nii.gz")
    found = in_order(image.data[0], image.grid, made.grid)
    assert found is not None
    step = float(pydicom.dcmread(tmp_path / "image_registered_dicom" / "0001.dcm").RescaleSlope)
    rounding = np.spacing(np.abs(found).max())  # of values in float32, which PET has fine steps for
    assert np.abs(found - made.data[0]).max() <= step / 2 + rounding
    space = read_series(fixed).frame_of_reference
    assert read_series(tmp_path / "image_registered_dicom").frame_of_reference == space
    assert pydicom.dcmread(tmp_path / "x_dseg_rtstruct.dcm").FrameOfReferenceUID == space
    drawn, back = (nibabel.load(tmp_path / name).get_fdata() for name in ("x_dseg.nii.gz", "y.nii.gz"))
    assert np.array_equal(drawn, back)
    assert drawn.any()
    check_valid(tmp_path / "image_registered_dicom" / "0001.dcm", scan)
    check_valid(tmp_path / "x_dseg_rtstruct.dcm", fixed)


def test_a_tilted_gantry_with_uneven_slices(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "dicom" / "head_ct_gantry_tilt"
    image, series = read_image(folder), read_series(folder)
    labels = image.with_data((image.data > 400).astype(np.uint8) * 3)

    segmentation(labels, [], series, Algorithm("segment", "bone", "1")).write(tmp_path / "seg.dcm")

    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    places = {tuple(map(float, one.header.ImagePositionPatient)) for one in series.images}
    frames = {
        tuple(map(float, f.PlanePositionSequence[0].ImagePositionPatient)) for f in seg.PerFrameFunctionalGroupsSequence
    }
    assert frames == places
    check_valid(tmp_path / "seg.dcm", folder)
