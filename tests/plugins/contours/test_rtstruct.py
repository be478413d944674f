"""RTSTRUCT: written for the series that the labels come from, read back, and refused where it would be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from outcome import Outcome
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from skimage.draw import polygon2mask

from medkit.images.image import read_grid

Run = Callable[..., Outcome]
AXIAL = np.eye(3)
TURNED = np.array([[0.96, -0.28, 0], [0.28 * 0.8, 0.96 * 0.8, -0.6], [0.168, 0.576, 0.8]])
"""Rows: the directions along a row, along a column, and across the images, LPS."""
SPACING = (0.8, 1.1, 3.0)


def write_series(folder: Path, shape: tuple[int, int, int], axes: np.ndarray = AXIAL, **tags: Any) -> Path:
    """A DICOM series of random pixels, (columns, rows, slices)."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    series, study, frame = (generate_uid(entropy_srcs=[str(folder), word]) for word in ("series", "study", "frame"))
    for number in range(shape[2]):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.PatientName, data.PatientID, data.Modality = "Doe^Jane", "ID-4711", "CT"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.Columns, data.Rows = shape[:2]
        data.PixelSpacing = [SPACING[1], SPACING[0]]  # between rows, between columns
        data.ImagePositionPatient = [round(float(v), 6) for v in np.array([-20, 35, 7]) + number * SPACING[2] * axes[2]]
        data.ImageOrientationPatient = [round(float(v), 9) for v in axes[:2].ravel()]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation, data.RescaleSlope, data.RescaleIntercept = 15, 0, 1, 0
        data.PixelData = rng.integers(0, 900, (shape[1], shape[0])).astype("<u2").tobytes()
        for name, value in tags.items():
            setattr(data, name, value)
        data.save_as(folder / f"{(number * 7) % 101:03}.dcm", enforce_file_format=True)
    return folder


def write_labels(path: Path, labels: np.ndarray, folder: Path) -> Path:
    """Labels (I, J, K) on the grid of a series."""
    nibabel.save(nibabel.Nifti1Image(labels, read_grid(folder).affine), path)
    return path


def random_labels(folder: Path) -> np.ndarray:
    return np.random.default_rng(1).choice(np.array([0, 0, 3, 8], np.uint8), read_grid(folder).shape)


@pytest.mark.parametrize("axes", [AXIAL, TURNED], ids=["axial", "oblique"])
def test_an_rtstruct_becomes_the_same_voxels(axes: np.ndarray, medkit: Run, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", (14, 11, 6), axes)
    labels = random_labels(folder)
    path = write_labels(tmp_path / "scan_dseg.nii.gz", labels, folder)

    done = medkit("run", "contours", path, "--rtstruct", "--reference", folder)
    back = medkit("run", "contours", "--to-labels", tmp_path / "scan_dseg_rtstruct.dcm", "--reference", folder)

    assert (done.code, back.code) == (0, 0), done.err + back.err
    assert back.paths[0].name == "scan_dseg_rtstruct_dseg.nii.gz"
    np.testing.assert_array_equal(np.asarray(nibabel.load(back.lines[0]).dataobj), labels)


def test_it_refers_to_the_images_it_was_drawn_on(medkit: Run, tmp_path: Path) -> None:
    """By hand: polygons in LPS mm over pixel indices, each with the file of its slice; holes through a channel."""
    folder = write_series(tmp_path / "scan", (30, 26, 5), PatientName="Müller^Zoë", SpecificCharacterSet="ISO_IR 100")
    images = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, folder.iterdir())}
    labels = np.zeros(read_grid(folder).shape, np.uint8)
    labels[4:20, 5:22, 1:4] = 1
    labels[8:12, 9:14, 2:4] = 0
    labels[9:11, 10:12, 2] = 2
    labels[14:16, 8:19, 2] = 0
    path = write_labels(tmp_path / "scan_dseg.nii.gz", labels, folder)
    (tmp_path / "scan_dseg.tsv").write_text("index\tname\n1\tLunge\\rechts\n2\t腫瘍\n", encoding="utf-8")

    done = medkit("run", "contours", path, "--rtstruct", "--reference", folder)

    assert done.code == 0, done.err
    made = pydicom.dcmread(tmp_path / "scan_dseg_rtstruct.dcm")
    first = next(iter(images.values()))
    assert made.SOPClassUID.name == "RT Structure Set Storage"
    assert str(made.PatientName) == "Müller^Zoë"
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert made[keyword].value == first[keyword].value
    assert made.SeriesInstanceUID != first.SeriesInstanceUID
    assert [one.ROIName for one in made.StructureSetROISequence] == ["Lunge/rechts", "腫瘍"]
    referenced = made.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == first.SeriesInstanceUID
    assert {one.ReferencedSOPInstanceUID for one in referenced.ContourImageSequence} == set(images)
    heights = sorted(float(image.ImagePositionPatient[2]) for image in images.values())
    voxels = np.zeros((2, 30, 26, 5), bool)
    for item in made.ROIContourSequence:
        for contour in item.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert contour.NumberOfContourPoints == len(points)
            image = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            assert float(image.ImagePositionPatient[2]) == pytest.approx(points[0, 2], abs=1e-3)
            index = (points - np.array(image.ImagePositionPatient, float))[:, :2] / SPACING[:2]
            plane = heights.index(float(image.ImagePositionPatient[2]))
            voxels[item.ReferencedROINumber - 1, :, :, plane] ^= polygon2mask((30, 26), index)
    stored = np.asarray(nibabel.load(path).dataobj)
    affine = nibabel.load(path).affine
    for number in (1, 2):
        at = nibabel.affines.apply_affine(np.linalg.inv(affine), _places(np.argwhere(voxels[number - 1])))
        found = np.zeros(stored.shape, bool)
        found[tuple(np.rint(at).astype(int).T)] = True
        np.testing.assert_array_equal(found, stored == number)


def _places(indices: np.ndarray) -> np.ndarray:
    """RAS+ mm of column, row and slice of an axial series."""
    return (indices * SPACING + [-20, 35, 7]) * [-1, -1, 1]


def test_nothing_of_the_patient_is_in_the_sidecar(medkit: Run, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", (10, 9, 4))
    path = write_labels(tmp_path / "scan_dseg.nii.gz", random_labels(folder), folder)

    done = medkit("run", "contours", path, "--rtstruct", "--reference", folder, "--json")

    files = [*tmp_path.glob("*.json"), *tmp_path.glob("*.tsv")]
    texts = done.out + done.err + "".join(path.read_text() for path in files)
    assert len(files) == 3
    assert "4711" not in texts
    assert "Doe" not in texts


def test_an_outline_of_many_points_is_a_list_of_numbers(medkit: Run, tmp_path: Path) -> None:
    """DICOM's explicit lengths end at 64 kB: readers would meet bytes of an unknown kind."""
    folder = write_series(tmp_path / "scan", (130, 120, 3))
    labels = np.zeros(read_grid(folder).shape, np.uint8)
    labels[1, 1:-1, 1] = labels[1:-1, 1:-1:4, 1] = labels[1:-1:2, 2:-1:4, 1] = 1  # a comb whose teeth have teeth
    path = write_labels(tmp_path / "scan_mask.nii.gz", labels, folder)

    done = medkit("run", "contours", path, "--rtstruct", "--reference", folder)
    back = medkit("run", "contours", "--to-labels", tmp_path / "scan_mask_rtstruct.dcm", "--reference", folder)

    assert (done.code, back.code) == (0, 0), done.err + back.err
    made = pydicom.dcmread(tmp_path / "scan_mask_rtstruct.dcm")
    longest = max((one["ContourData"] for one in made.ROIContourSequence[0].ContourSequence), key=lambda e: e.VM)
    assert longest.VR == "DS"
    assert len("\\".join(map(str, longest.value))) > 1 << 16
    np.testing.assert_array_equal(np.asarray(nibabel.load(back.lines[0]).dataobj), labels)


def test_the_series_is_found_among_the_sources(medkit: Run, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", (12, 10, 6))
    moved = medkit("transform", "apply", folder, "--reference", folder, "-o", tmp_path / "copy.nii.gz")
    assert moved.code == 0, moved.err
    labels = write_labels(tmp_path / "copy_dseg.nii.gz", random_labels(folder), folder)
    (tmp_path / "copy_dseg.json").write_text(
        '{"path": "copy_dseg.nii.gz", "kind": "labels", "Sources": ["copy.nii.gz"], "medkit": {"status": "ok"}}'
    )

    done = medkit("run", "contours", labels, "--rtstruct", "--qc", tmp_path / "qc")

    assert done.code == 0, done.err
    assert pydicom.dcmread(tmp_path / "copy_dseg_rtstruct.dcm").PatientID == "ID-4711"
    assert (tmp_path / "qc" / "copy_dseg_contours.png").exists()


def test_what_lies_on_no_image_is_refused(medkit: Run, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", (12, 10, 6))
    labels = random_labels(folder)
    affine = read_grid(folder).affine
    shifted, tilted = affine.copy(), affine.copy()
    shifted[2, 3] += 1.0
    tilted[:3, :3] = np.array([[1, 0, 0], [0, 0.9, -0.436], [0, 0.436, 0.9]]) @ affine[:3, :3]
    for name, changed in (("shifted", shifted), ("tilted", tilted)):
        nibabel.save(nibabel.Nifti1Image(labels, changed), tmp_path / f"{name}_dseg.nii.gz")

    alone = medkit("run", "contours", tmp_path / "shifted_dseg.nii.gz", "--rtstruct")
    paths = [tmp_path / f"{name}_dseg.nii.gz" for name in ("shifted", "tilted")]
    done = [medkit("run", "contours", path, "--rtstruct", "--reference", folder) for path in paths]

    assert [one.code for one in (alone, *done)] == [3, 3, 3]
    assert "name its folder with --dicom-source FOLDER" in alone.err
    assert "lies on no image of" in done[0].err
    assert "got tilted ones" in done[1].err
    assert not list(tmp_path.glob("*.dcm"))


def test_uneven_images_get_the_nearest_slice(medkit: Run, tmp_path: Path) -> None:
    """Images at 0, 3, 6, 13, 20 and 23 mm: the label map has even slices, so most lie between images."""
    folder = write_series(tmp_path / "scan", (12, 10, 6))
    heights = np.array([0, 3, 6, 13, 20, 23.0])
    for number in range(6):
        data = pydicom.dcmread(folder / f"{number * 7:03}.dcm")
        data.ImagePositionPatient = [-20, 35, 7 + float(heights[number])]
        data.save_as(folder / f"{number * 7:03}.dcm")
    grid = read_grid(folder)
    labels = np.zeros(grid.shape, np.uint8)
    labels[3:8, 2:7] = 1
    middle = round((7 + 16.5 - grid.affine[2, 3]) / grid.affine[2, 2])
    labels[5, 4, middle] = 2
    path = write_labels(tmp_path / "scan_dseg.nii.gz", labels, folder)

    block = medkit("run", "contours", path, "--rtstruct", "--reference", folder, "--json").records[0]["medkit"]

    made = pydicom.dcmread(tmp_path / "scan_dseg_rtstruct.dcm")
    assert [float(one.ContourData[2]) for one in made.ROIContourSequence[0].ContourSequence] == pytest.approx(
        heights + 7
    )
    assert "ContourSequence" not in made.ROIContourSequence[1]
    assert "the images of the series are 3 to 7 mm apart" in str(block["warnings"])
    assert block["look"]
    assert "no contour of label_2 in the RTSTRUCT" in str(block["warnings"])


# ---- RTSTRUCT of others


def structure_set(path: Path, contours: list[tuple[str, list[list[float]]]], numbers: tuple[int, ...] = (1,)) -> Path:
    """An RTSTRUCT with the same contours, (type, points LPS mm), for each number."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Modality = "RTSTRUCT"
    data.StructureSetROISequence, data.ROIContourSequence = [], []
    for number in numbers:
        roi, item = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, f"organ {number}"
        item.ReferencedROINumber, item.ContourSequence = number, []
        for kind, points in contours:
            one = Dataset()
            one.ContourGeometricType, one.NumberOfContourPoints = kind, len(points)
            one.ContourData = [f"{value:.6g}" for point in points for value in point]
            item.ContourSequence.append(one)
        data.StructureSetROISequence.append(roi)
        data.ROIContourSequence.append(item)
    data.save_as(path, enforce_file_format=True)
    return path


def square(size: float, z: float) -> list[list[float]]:
    return [[-size, -size, z], [size, -size, z], [size, size, z], [-size, size, z]]


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """Voxels of 1 mm around the origin."""
    affine = np.eye(4)
    affine[:3, 3] = -15
    values = np.random.default_rng(0).integers(0, 99, (31, 31, 31)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


def test_contours_of_thick_slices_fill_thin_ones(reference: Path, medkit: Run, tmp_path: Path) -> None:
    """Planes at -3, 0 and 3 mm stand for the voxels from -4 to 4 mm; a square in another is a hole."""
    contours = [("CLOSED_PLANAR", square(size, z)) for z in (-3, 0, 3) for size in (6.5, 2.5)]
    path = structure_set(tmp_path / "rs.dcm", [*contours, ("POINT", [[0, 0, 0]])])

    done = medkit("run", "contours", "--to-labels", path, "--reference", reference, "--json")

    assert done.code == 0, done.err
    made = np.asarray(nibabel.load(done.records[0]["path"]).dataobj)
    expected = np.zeros((31, 31, 31), bool)
    expected[9:22, 9:22, 11:20] = True
    expected[13:18, 13:18] = False
    np.testing.assert_array_equal(made > 0, expected)
    assert "organ 1: 1 contours of type POINT enclose nothing: left out" in done.records[0]["medkit"]["warnings"]
    assert done.records[0]["medkit"]["metrics"]["volumes_mm3"] == {"organ 1": float(expected.sum())}


def test_numbers_that_are_no_labels_are_counted(reference: Path, medkit: Run, tmp_path: Path) -> None:
    path = structure_set(tmp_path / "rs.dcm", [("CLOSED_PLANAR", square(4.2, 0))], (0, 70000))

    done = medkit("run", "contours", "--to-labels", path, "--reference", reference, "--json")

    assert done.code == 0, done.err
    assert done.records[0]["medkit"]["labels"] == {"1": "organ 0", "2": "organ 70000"}
    assert "lie inside several structures" in done.records[0]["medkit"]["warnings"][-1]


def test_a_gap_between_contours_is_said(reference: Path, medkit: Run, tmp_path: Path) -> None:
    contours = [("CLOSED_PLANAR", square(4.2, z)) for z in (-6, -5, -4, 3, 4, 5)]
    path = structure_set(tmp_path / "rs.dcm", contours)

    done = medkit("run", "contours", "--to-labels", path, "--reference", reference, "--json")

    assert np.flatnonzero(np.asarray(nibabel.load(done.records[0]["path"]).dataobj).any(axis=(0, 1))).tolist() == [
        *(9, 10, 11, 18, 19, 20)
    ]
    assert done.records[0]["medkit"]["look"]
    assert "organ 1: gaps between contours stay empty: 1 of up to 7 mm" in str(done.records[0]["medkit"]["warnings"])


def test_planes_nearer_than_usual_do_not_overlap(reference: Path, medkit: Run, tmp_path: Path) -> None:
    """Planes 4 mm apart but for two at 0 and 2 mm: between these, voxels belong to the nearer one."""
    contours = [("CLOSED_PLANAR", square(size, z)) for z, size in ((-8, 6.5), (-4, 6.5), (0, 6.5), (2, 2.5), (6, 2.5))]
    path = structure_set(tmp_path / "rs.dcm", contours)

    done = medkit("run", "contours", "--to-labels", path, "--reference", reference, "--json")

    made = np.asarray(nibabel.load(done.records[0]["path"]).dataobj)
    counts = np.count_nonzero(made, axis=(0, 1))
    assert dict(zip(range(-12, 10), counts[3:25].tolist(), strict=True)) == {
        **dict.fromkeys((-12, -11), 0),
        **dict.fromkeys(range(-10, 1), 13 * 13),
        **dict.fromkeys(range(1, 8), 5 * 5),
        **dict.fromkeys((8, 9), 0),
    }


def test_structure_sets_that_cannot_be_filled(reference: Path, medkit: Run, tmp_path: Path) -> None:
    bent = square(6, 0)
    bent[2][2] = 4.0
    cases = {
        "points": ([("POINT", [[0, 0, 0]])], "expected an RTSTRUCT with closed contours, got none"),
        "bent": ([("CLOSED_PLANAR", bent)], "expected contours in parallel planes"),
        "crossed": (
            [("CLOSED_PLANAR", square(6, 0)), ("CLOSED_PLANAR", [[x, 1.0, y] for x, y, _ in square(5, 0)])],
            "expected contours in parallel planes",
        ),
    }
    for name, (contours, message) in cases.items():
        path = structure_set(tmp_path / f"{name}.dcm", contours)
        done = medkit("run", "contours", "--to-labels", path, "--reference", reference)
        assert done.code == 3
        assert message in done.err
    sound = structure_set(tmp_path / "sound.dcm", [("CLOSED_PLANAR", square(4, 0))])
    assert "expected --reference IMAGE" in medkit("run", "contours", "--to-labels", sound).err
    torn = tmp_path / "torn.dcm"
    torn.write_bytes(sound.read_bytes()[:400])
    assert medkit("run", "contours", "--to-labels", torn, "--reference", reference).code == 3
    scan = medkit("run", "contours", "--to-labels", reference, "--reference", reference)
    assert "expected contours (JSON of `medkit run contours`, or RTSTRUCT)" in scan.err
