"""DICOM series and files, made by pydicom and real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkit.errors import InputError
from medkit.images.image import Image, read_grid, read_image

pydicom = pytest.importorskip("pydicom")

SHAPE = (9, 7)  # columns, rows
TILT = np.radians(20)
AXIAL = np.eye(3)
OBLIQUE = np.array([[1, 0, 0], [0, np.cos(TILT), np.sin(TILT)], [0, -np.sin(TILT), np.cos(TILT)]])  # rows: I, J, normal
RNG = np.random.default_rng(0)


def pixels(count: int) -> np.ndarray:
    """(I, J, slices)"""
    return RNG.integers(0, 900, (*SHAPE, count)).astype(np.int16)


def dataset(stored: np.ndarray, origin: Sequence[float] | None, axes: np.ndarray, **tags: Any) -> Any:
    """A CT slice; `stored` is (I, J)."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = tags.pop("SOPClassUID", pydicom.uid.CTImageStorage)
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.PatientBirthDate = "Doe^Jane", "ID-4711", "19700101"
    data.SeriesInstanceUID, data.SeriesNumber, data.Modality = "1.2.3.4", 3, "CT"
    data.Rows, data.Columns = stored.shape[1], stored.shape[0]
    data.PixelSpacing = [2.0, 12.0]  # between rows, between columns
    if origin is not None:
        data.ImagePositionPatient = [round(float(value), 6) for value in origin]
        data.ImageOrientationPatient = [round(float(value), 9) for value in axes[:2].ravel()]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = np.ascontiguousarray(stored.T).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def series(folder: Path, volume: np.ndarray, heights: Sequence[float], axes: np.ndarray = AXIAL, **tags: Any) -> Path:
    """A folder with one file per slice, along the normal, under names in another order."""
    folder.mkdir(exist_ok=True)
    for number, height in enumerate(heights):
        data = dataset(volume[:, :, number], [-50, 20, 5] + height * axes[2], axes, **tags)
        data.save_as(folder / f"{tags.get('SeriesNumber', 3)}_{(number * 7) % 101:03}", enforce_file_format=True)
    return folder


def lps(axes: np.ndarray, step: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3] = np.column_stack([axes[0] * 12, axes[1] * 2, step, [-50, 20, 5]])
    return np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize("axes", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_series(tmp_path: Path, axes: np.ndarray) -> None:
    volume = pixels(6)
    image = read_image(series(tmp_path / "s", volume, np.arange(6) * 3.0, axes))
    np.testing.assert_array_equal(image.data[0], volume - 1024)
    assert image.data.dtype == image.dtype == np.int16
    np.testing.assert_allclose(image.grid.affine, lps(axes, axes[2] * 3), atol=1e-5)
    np.testing.assert_array_equal(read_grid(tmp_path / "s").affine, image.grid.affine)
    assert [warning.split(":")[0] for warning in image.warnings] == ["strongly anisotropic spacing"]


def test_fractional_slopes_of_each_slice(tmp_path: Path) -> None:
    volume = pixels(3)
    folder = series(tmp_path / "s", volume, [0, 3, 6])
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.RescaleSlope, data.RescaleIntercept = 0.25 + float(data.ImagePositionPatient[2] - 5) / 12, 0
        data.save_as(path)
    image = read_image(folder)
    assert image.data.dtype == image.dtype == np.float32
    np.testing.assert_allclose(image.data[0], volume * np.array([0.25, 0.5, 0.75]), rtol=1e-6)


def test_gantry_tilt_shears_the_grid(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    volume = pixels(5)
    for number in range(5):
        data = dataset(volume[:, :, number], [-50, 20, 5 + 4 * number], OBLIQUE)
        data.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    image = read_image(folder)
    np.testing.assert_allclose(image.grid.affine, lps(OBLIQUE, np.array([0, 0, 4.0])), atol=1e-5)
    assert "gantry tilt of 20.0 degrees: the grid is sheared" in image.warnings


def test_uneven_steps_are_evened(tmp_path: Path) -> None:
    """A scan whose values are the height they were taken at still says so everywhere."""
    heights = [0, 2, 4, 6, 9, 12, 15]
    values = np.broadcast_to(np.array(heights, np.int16) * 100, (*SHAPE, 7))
    image = read_image(series(tmp_path / "s", values + 1024, heights))
    assert any("(2 to 3 mm): interpolated to 9 slices 1.88 mm apart" in warning for warning in image.warnings)
    assert image.grid.spacing[2] == pytest.approx(15 / 8)
    assert image.grid.shape == read_grid(tmp_path / "s").shape == (*SHAPE, 9)
    expected = np.broadcast_to(np.rint(np.linspace(0, 1500, 9)), image.data[0].shape)
    np.testing.assert_allclose(image.data[0], expected, atol=0.5)


@pytest.mark.parametrize("gone", [1, 3, 5])
def test_missing_slice_is_refused(tmp_path: Path, gone: int) -> None:
    heights = [height for height in range(0, 24, 3) if height != gone * 3]
    with pytest.raises(InputError, match=rf"a slice is missing: .*got 6 mm between slices {gone - 1} and {gone}"):
        read_image(series(tmp_path / "s", pixels(7), heights))


def test_several_series(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", pixels(3), [0, 3, 6], SeriesDescription="axial")
    second = pixels(4)
    series(folder, second, [0, 3, 6, 9], SeriesNumber=12, SeriesInstanceUID="1.2.3.5")
    with pytest.raises(InputError) as refused:
        read_image(folder)
    assert f"--series UID|NUMBER, or name it {folder}#series=NUMBER" in str(refused.value)
    assert "1.2.3.4  number 3  3 slices" in str(refused.value)
    assert "1.2.3.5  number 12  4 slices" in str(refused.value)
    for name in ("12", "1.2.3.5"):
        np.testing.assert_array_equal(read_image(folder, series=name).data[0], second - 1024)
        assert read_grid(folder, series=name).shape == (*SHAPE, 4)
    with pytest.raises(InputError, match="no series 7"):
        read_image(folder, series="7")


def test_time_points_of_one_series(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", pixels(3), [0, 3, 6])
    for path in sorted(folder.iterdir()):
        data = pydicom.dcmread(path)
        data.PixelData = (data.pixel_array + 1).tobytes()
        data.save_as(folder / f"9{path.name}")
    with pytest.raises(InputError, match=r"got 2; pick one with --frame N \(0 to 1\)"):
        read_image(folder)
    first, second = read_image(folder, frame=0), read_image(folder, frame=1)
    np.testing.assert_array_equal(first.data + 1, second.data)
    (folder / f"9{path.name}").unlink()
    with pytest.raises(InputError, match="a slice is missing"):
        read_image(folder)


def test_mixed_orientations_are_refused(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", pixels(3), [0, 3, 6])
    dataset(pixels(1)[:, :, 0], [0, 0, 9], OBLIQUE).save_as(folder / "z", enforce_file_format=True)
    with pytest.raises(InputError, match="one size and orientation, but z differs"):
        read_image(folder)


def enhanced(path: Path, volume: np.ndarray, heights: Sequence[float]) -> Path:
    """An enhanced MR file, its frames in the order of `heights`, with a decoy position in a private sequence."""
    data = dataset(volume[:, :, 0], None, AXIAL, SOPClassUID=pydicom.uid.EnhancedMRImageStorage, Modality="MR")
    data.NumberOfFrames = len(heights)
    data.PixelData = np.ascontiguousarray(volume.T).tobytes()
    del data.RescaleSlope, data.RescaleIntercept, data.PixelSpacing
    shared = pydicom.Dataset()
    measures, orientation, values = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [2.0, 12.0], 4.0
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, 0, "US"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [values]
    data.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for height in heights:
        frame, position, decoy = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [-50, 20, 5 + height]
        decoy.ImagePositionPatient = [1, 2, 3 + height]
        frame.PlanePositionSequence = [position]
        block = frame.private_block(0x2005, "MADE BY TESTS", create=True)
        block.add_new(0x0F, "SQ", [decoy])
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = frames
    data.save_as(path, enforce_file_format=True)
    return path


def test_enhanced_file_is_a_volume(tmp_path: Path) -> None:
    volume = pixels(4)
    image = read_image(enhanced(tmp_path / "x.dcm", volume, [9, 3, 0, 6]))
    np.testing.assert_array_equal(image.data[0], volume[:, :, [2, 1, 3, 0]])
    np.testing.assert_allclose(image.grid.affine, lps(AXIAL, np.array([0, 0, 3.0])), atol=1e-6)


def test_enhanced_file_with_time_points(tmp_path: Path) -> None:
    volume = pixels(6)
    path = enhanced(tmp_path / "x", volume, [0, 0, 3, 3, 6, 6])
    with pytest.raises(InputError, match="expected one frame, got 2"):
        read_image(path)
    np.testing.assert_array_equal(read_image(path, frame=1).data[0], volume[:, :, 1::2])


def test_single_file_without_suffix(tmp_path: Path) -> None:
    volume = pixels(1)
    path = tmp_path / "IM0001"
    dataset(volume[:, :, 0], [-50, 20, 5], AXIAL, SliceThickness=30.0).save_as(path, enforce_file_format=True)
    image = read_image(path)
    assert image.data.shape == (1, *SHAPE, 1)
    np.testing.assert_array_equal(image.data[0], volume - 1024)


def test_unplaced_and_inverted_image_warns(tmp_path: Path) -> None:
    kind = pydicom.uid.ComputedRadiographyImageStorage
    data = dataset(pixels(1)[:, :, 0], None, AXIAL, SOPClassUID=kind, PhotometricInterpretation="MONOCHROME1")
    data.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    warnings = read_image(tmp_path / "x.dcm").warnings
    assert any(warning.startswith("the file does not state the position") for warning in warnings)
    assert any(warning.startswith("MONOCHROME1") for warning in warnings)


def test_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found none among its 0 files"):
        read_image(tmp_path / "empty")
    (tmp_path / "x.dcm").write_text("hello")
    with pytest.raises(InputError, match="expected a DICOM image, got something else"):
        read_image(tmp_path / "x.dcm")
    folder = series(tmp_path / "s", pixels(3), [0, 3, 6])
    (folder / "note.txt").write_text("hello")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert read_grid(folder).shape == (*SHAPE, 3)
    torn = next(path for path in sorted(folder.iterdir()) if path.name.startswith("3_"))
    torn.write_bytes(torn.read_bytes()[:-50])
    with pytest.raises(InputError, match=f"{torn}: a DICOM image that cannot be read"):
        read_image(folder)
    assert capfd.readouterr() == ("", "")


def test_nothing_of_the_patient_gets_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = read_image(series(tmp_path / "s", pixels(3), [0, 3, 6]))
    for name in ("x.nii", "x.mha", "x.nrrd", "x.mgh"):
        image.write(tmp_path / name)
    text = b"".join((tmp_path / name).read_bytes() for name in ("x.nii", "x.mha", "x.nrrd", "x.mgh"))
    shown = text + repr(image.warnings).encode() + "".join(capfd.readouterr()).encode()
    assert not any(secret in shown for secret in (b"Doe", b"4711", b"1970"))


@pytest.mark.real_data
def test_chest_ct_is_its_nrrd(shared_data: Path) -> None:
    image: Image = read_image(shared_data / "dicom/chest_ct_cip")
    theirs = read_image(shared_data / "lung_ct/cip_ct-64.nrrd")
    np.testing.assert_array_equal(image.data, theirs.data)
    np.testing.assert_allclose(image.grid.affine, theirs.grid.affine, atol=1e-3)


@pytest.mark.real_data
def test_tilted_head_ct(shared_data: Path) -> None:
    image = read_image(shared_data / "dicom/head_ct_gantry_tilt")
    assert image.data.shape == (1, 512, 512, 109)
    assert any(warning.startswith("gantry tilt of 18.5") for warning in image.warnings)
    assert any(warning.startswith("uneven slice spacing") for warning in image.warnings)


@pytest.mark.real_data
def test_nine_transfer_syntaxes_are_one_image(shared_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, *rest = (read_image(path) for path in sorted((shared_data / "dicom/transfer_syntaxes").iterdir()))
    assert len(rest) == 8
    for image in rest:
        np.testing.assert_array_equal(image.data, first.data)
        assert image.grid.digest() == first.grid.digest()
    assert capfd.readouterr() == ("", "")


@pytest.mark.real_data
def test_enhanced_files(shared_data: Path) -> None:
    folder = shared_data / "dicom/enhanced_multiframe"
    image = read_image(folder / "6_1.dcm")
    assert image.data.shape == (1, 64, 64, 6)
    np.testing.assert_allclose(image.grid.spacing, [3.375, 3.375, 2.4], atol=1e-4)
    with pytest.raises(InputError, match="2 series"):
        read_image(folder)
    with pytest.raises(InputError, match="expected one frame, got 4"):
        read_image(folder, series="6")
    with pytest.raises(InputError, match="expected one frame, got 2"):
        read_image(folder / "IM_0027_fMAP.dcm")
    assert read_image(folder / "IM_0027_fMAP.dcm", frame=0).data.shape == (1, 64, 64, 32)
