"""Real label maps to contours and back, and an RTSTRUCT of others against another library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from medkit_contours.filling import filled
from medkit_contours.structures import places_of
from medkit_contours.tracing import contour_set, outlines, slices_of
from outcome import Outcome
from skimage.draw import polygon2mask

from medkit.images.image import read_image
from medkit.space import RAS_TO_LPS, apply_affine

pytestmark = pytest.mark.real_data

Run = Callable[..., Outcome]
LABELS = (
    *("infants/Template01/Segmentation.nii.gz", "brain_t1_manual/oasis_1000_labels.nii.gz"),
    *("lung_ct/cip_wholeLung-64.nrrd", "lung_ct/cip_lm-64.nrrd", "lung_ct/totalseg_example_ct_sm_labels.nii.gz"),
)


@pytest.mark.slow
@pytest.mark.parametrize("plane", ["auto", "sagittal"])
@pytest.mark.parametrize("name", LABELS)
def test_real_labels_come_back(name: str, plane: str, shared_data: Path) -> None:
    labels = read_image(shared_data / name, labels=True)
    places = places_of(labels, shared_data / name, "labels")
    slices = slices_of(labels.grid, plane)
    contours = contour_set(list(outlines(labels.data[0], places, slices)), slices, {n: str(n) for n in places})

    made = filled(contours, labels.grid)

    np.testing.assert_array_equal(made.labels, labels.data[0])


@pytest.mark.parametrize("modality", ["CT", "PET", "MR_T1"])
def test_a_tumour_is_what_other_libraries_make_of_it(
    modality: str, shared_data: Path, medkit: Run, tmp_path: Path
) -> None:
    folder = shared_data / "sarcoma_ct_pet_mr" / "STS_002" / modality
    structures = folder / "mask" / "RS.dcm"
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "image")))
    image = reader.Execute()
    expected = np.zeros(image.GetSize(), bool)
    for contour in pydicom.dcmread(structures).ROIContourSequence[0].ContourSequence:
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        index = np.array([image.TransformPhysicalPointToContinuousIndex(point) for point in points])
        expected[:, :, round(float(index[:, 2].mean()))] ^= polygon2mask(expected.shape[:2], index[:, :2])

    done = medkit("run", "contours", "--to-labels", structures, "--reference", folder / "image", "-o", tmp_path)

    assert done.code == 0, done.err
    made = read_image(done.paths[0], labels=True)
    places = apply_affine(RAS_TO_LPS @ made.grid.affine, np.argwhere(made.data[0]))
    found = np.zeros_like(expected)
    found[tuple(np.array([image.TransformPhysicalPointToIndex(place) for place in places]).T)] = True
    overlap = 2 * (found & expected).sum() / (found.sum() + expected.sum())
    assert overlap > 0.999


def test_a_chest_ct_to_an_rtstruct_in_one_pipe(shared_data: Path, medkit: Run, tmp_path: Path) -> None:
    scan = shared_data / "dicom" / "chest_ct_cip"

    labels = medkit("run", "segment", scan, "--method", "threshold", "-o", tmp_path)
    done = medkit("run", "contours", "--rtstruct", "--qc", tmp_path / "qc", input=labels.out)
    structures = tmp_path / "chest_ct_cip_dseg_rtstruct.dcm"
    back = medkit("run", "contours", "--to-labels", structures, "--reference", scan)

    assert (labels.code, done.code, back.code) == (0, 0, 0), labels.err + done.err + back.err
    np.testing.assert_array_equal(
        read_image(back.paths[0], labels=True).data, read_image(labels.paths[0], labels=True).data
    )
    names = [roi.ROIName for roi in pydicom.dcmread(structures).StructureSetROISequence]
    assert {"lung_left", "lung_right", "airway"} <= set(names)
    assert (tmp_path / "qc" / "chest_ct_cip_dseg_contours.png").exists()
