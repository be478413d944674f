"""DICOM objects that are odd, damaged or dangerous: each is read right or refused, never made up."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset

from medkit.errors import InputError, MedkitError
from medkit.images.dicom.header import read_header
from medkit.images.dicom.pixels import stored_values
from medkit.images.image import read_grid, read_image

CT, MR, ENHANCED_MR, PET = (f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2", "4", "4.1", "128"))
THEIRS = Path(pydicom.__file__).parent / "data" / "test_files"
FLAT = (1, 0, 0, 0, 1, 0)
TURNED = (0, 1, 0, -1, 0, 0)


def item(**values: Any) -> Dataset:
    out = Dataset()
    for name, value in values.items():
        setattr(out, name, value)
    return out


def base(values: np.ndarray, kind: str = MR, **tags: Any) -> Dataset:
    """An object with pixels (rows, columns) or (frames, rows, columns); a tag of None is left out."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = kind
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.Modality, data.SeriesInstanceUID, data.SeriesNumber = "MR", "1.2.3.4", 1
    data.Rows, data.Columns = values.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * values.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    data["PixelData"].VR = "OW"
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def save(path: Path, data: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def plane(value: float, shape: tuple[int, int] = (12, 10)) -> np.ndarray:
    return (value + np.arange(shape[0] * shape[1]).reshape(shape) % 7).astype(np.uint16)


def slice_(path: Path, value: float, height: float, **tags: Any) -> Path:
    placed: dict[str, Any] = {
        "ImagePositionPatient": [0, 0, height], "ImageOrientationPatient": list(FLAT), "PixelSpacing": [8, 8],
        "SliceThickness": 3,
    }  # fmt: skip
    values = {name: value for name, value in (placed | tags).items() if value is not None}
    return save(path, base(plane(value), **values))


def enhanced(path: Path, frames: Sequence[Mapping[str, Any]], stored: np.ndarray | None = None) -> Path:
    """Frames with `value`, `height`, and optionally `time`, `stack`, `slope`, `intercept`, `orientation`."""
    data = base(np.stack([plane(f["value"]) for f in frames]) if stored is None else stored, ENHANCED_MR)
    data.NumberOfFrames = len(frames)
    measures = item(SliceThickness=3.0, PixelSpacing=[8.0, 8.0])
    data.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[measures])]
    data.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=[
                item(TemporalPositionIndex=f.get("time", 1), InStackPositionNumber=f.get("stack", 1))
            ],
            PlanePositionSequence=[item(ImagePositionPatient=[0.0, 0.0, float(f["height"])])],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[float(v) for v in f.get("orientation", FLAT)])],
            PixelValueTransformationSequence=[
                item(RescaleSlope=f.get("slope", 1), RescaleIntercept=f.get("intercept", 0), RescaleType="US")
            ],
        )
        for f in frames
    ]
    return save(path, data)


# ---- pixels that are not there


def test_pixels_shorter_than_promised_are_refused(tmp_path: Path) -> None:
    """What is missing would be memory of the image read before: another person's pixels."""
    values = np.random.default_rng(0).integers(0, 4000, (64, 60)).astype(np.uint16)
    data = base(values, ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=list(FLAT), PixelSpacing=[3, 3])
    data.PixelData = data.PixelData[:1000]
    with pytest.raises(InputError, match="promises 7680 bytes of pixels, the file holds 1000"):
        read_image(save(tmp_path / "short.dcm", data))


def test_fewer_frames_than_promised_are_refused(tmp_path: Path) -> None:
    frames = [{"value": 100 * n, "height": 3 * n} for n in range(5)]
    path = enhanced(tmp_path / "e.dcm", frames, np.stack([plane(100 * n) for n in range(3)]))
    with pytest.raises(InputError, match="promises 1200 bytes of pixels, the file holds 720"):
        read_image(path)


def test_a_small_file_cannot_promise_gigabytes(tmp_path: Path) -> None:
    data = base(plane(0))
    data.Rows = data.Columns = 65535
    with pytest.raises(InputError, match="promises"):
        read_image(save(tmp_path / "native.dcm", data))
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    data.PixelData = pydicom.encaps.encapsulate([bytes(2000)])
    data["PixelData"].VR = "OB"
    with pytest.raises(InputError, match="promises 8191 MiB of pixels"):
        read_image(save(tmp_path / "packed.dcm", data))


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("syntax", ["ExplicitVRLittleEndian", "ImplicitVRLittleEndian", "ExplicitVRBigEndian"])
def test_a_torn_slice_is_never_left_out(tmp_path: Path, syntax: str, part: float) -> None:
    """First, middle or last: the series is refused, and the message names the file."""
    for number in range(4):
        path = slice_(tmp_path / f"I{number}.dcm", 100, 3 * number)
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        kind = {"little_endian": syntax != "ExplicitVRBigEndian", "implicit_vr": syntax == "ImplicitVRLittleEndian"}
        if syntax == "ExplicitVRBigEndian":
            data["PixelData"].value = plane(100).astype(">u2").tobytes()
        pydicom.dcmwrite(path, data, enforce_file_format=True, **kind)
    assert read_image(tmp_path).data.shape[-1] == 4
    for name in ("I0.dcm", "I2.dcm", "I3.dcm"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(InputError, match=name):
            read_image(tmp_path)
        (tmp_path / name).write_bytes(whole)


def test_an_empty_file_among_slices_is_refused(tmp_path: Path) -> None:
    for number in range(4):
        slice_(tmp_path / f"I{number}.dcm", 100, 3 * number)
    (tmp_path / "I4.dcm").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(InputError, match=r"I4\.dcm: expected a DICOM image, got a file of 0 bytes"):
        read_image(tmp_path)


def test_damaged_compressed_pixels_are_said_to_be_damaged(tmp_path: Path) -> None:
    content = (THEIRS / "JPEG2000.dcm").read_bytes()
    pixels = content.index(b"\xff\x4f\xff\x51")
    (tmp_path / "x.dcm").write_bytes(content[: pixels + 4] + bytes(80) + content[pixels + 84 :])
    with pytest.raises(InputError, match=r"x\.dcm: its compressed pixels \(JPEG 2000 .*\) are damaged") as caught:
        read_image(tmp_path / "x.dcm")
    assert "Transfer Syntax" not in str(caught.value)


# ---- which slice belongs to which frame


@pytest.mark.parametrize("tag", ["TemporalPositionIdentifier", "EchoTime", "AcquisitionNumber", "InstanceNumber"])
def test_frames_follow_the_headers_not_the_names(tmp_path: Path, tag: str) -> None:
    order = np.random.default_rng(1).permutation(20)
    for number in range(20):
        time, place = divmod(number, 5)
        value = number + 1 if tag == "InstanceNumber" else time + 1
        slice_(tmp_path / f"IM{order[number]}.dcm", 1000 * time, 3.0 * place, **{tag: value})
    for frame in range(4):
        image = read_image(tmp_path, frame=frame)
        np.testing.assert_array_equal(image.data[0, 0, 0] // 1000, frame)
        assert not any("order of their" in warning for warning in image.warnings)


def test_two_things_together_tell_frames_apart(tmp_path: Path) -> None:
    """Magnitude and phase at two echoes: four frames."""
    for number in range(12):
        frame, place = divmod(number, 3)
        tags = {"EchoTime": 5 + frame // 2, "ImageType": ["ORIGINAL", "PRIMARY", "MP"[frame % 2]]}
        slice_(tmp_path / f"{11 - number:02}.dcm", 1000 * frame, 3.0 * place, **tags)
    found = {tuple(np.unique(read_image(tmp_path, frame=n).data[0, 0, 0] // 1000)) for n in range(4)}
    assert found == {(0,), (1,), (2,), (3,)}


def test_frames_that_nothing_tells_apart_are_doubtful(tmp_path: Path) -> None:
    for number in range(6):
        slice_(tmp_path / f"{number}.dcm", 100, 3.0 * (number % 3))
    assert any("order of their files' names" in warning for warning in read_image(tmp_path, frame=0).warnings)


def test_enhanced_frames_in_any_order(tmp_path: Path) -> None:
    frames = [{"value": 1000 * t, "height": 3 * k, "time": t + 1, "stack": k + 1} for t in range(3) for k in range(5)]
    order = np.random.default_rng(1).permutation(15)
    path = enhanced(tmp_path / "e.dcm", [frames[n] for n in order])
    for frame in range(3):
        np.testing.assert_array_equal(read_image(path, frame=frame).data[0, 0, 0] // 1000, frame)


def test_each_enhanced_frame_has_its_own_slope(tmp_path: Path) -> None:
    frames = [{"value": 100, "height": 3 * k, "slope": 1.5 + k, "intercept": 10 * k} for k in range(5)]
    image = read_image(enhanced(tmp_path / "e.dcm", frames))
    np.testing.assert_allclose(image.data[0, 0, 0], [100 * (1.5 + k) + 10 * k for k in range(5)])


def test_enhanced_frames_turned_against_each_other_are_refused(tmp_path: Path) -> None:
    frames = [{"value": 1, "height": 3 * k, "orientation": FLAT if k < 3 else TURNED} for k in range(5)]
    with pytest.raises(InputError, match="one size and orientation, but frame 4 differs"):
        read_image(enhanced(tmp_path / "e.dcm", frames))


# ---- geometry


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"PixelSpacing": None}, "expected a Pixel Spacing"),
        ({"PixelSpacing": ""}, "expected a Pixel Spacing"),
        ({"PixelSpacing": [0, 0]}, "Pixel Spacing above 0 mm, got 0 and 0"),
        ({"PixelSpacing": [-2, -2]}, "Pixel Spacing above 0 mm, got -2 and -2"),
        ({"ImageOrientationPatient": [0] * 6}, "two directions at right angles"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "two directions at right angles"),
        ({"ImagePositionPatient": [0, 0]}, "expected 3 numbers as Image Position Patient"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "Rescale Slope other than 0"),
    ],
)
def test_geometry_that_cannot_be_is_refused(tmp_path: Path, tags: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_image(slice_(tmp_path / "x.dcm", 1, 0, **tags))
    with pytest.raises(InputError, match=words):
        read_grid(tmp_path / "x.dcm")


def test_an_image_without_spacing_or_place_says_so(tmp_path: Path) -> None:
    unplaced = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    bare = read_image(slice_(tmp_path / "bare.dcm", 1, 0, **unplaced, PixelSpacing=None))
    assert any("no spacing between pixels is stated" in warning for warning in bare.warnings)
    film = read_image(slice_(tmp_path / "film.dcm", 1, 0, **unplaced, PixelSpacing=None, ImagerPixelSpacing=[0.2, 0.1]))
    np.testing.assert_allclose(film.grid.spacing[:2], [0.1, 0.2])
    assert any("of the detector" in warning for warning in film.warnings)


@pytest.mark.parametrize(("count", "gone"), [(12, (5,)), (12, (3, 7, 9)), (4, (2,)), (8, (2, 5))])
def test_missing_slices_are_never_made_up(tmp_path: Path, count: int, gone: tuple[int, ...]) -> None:
    for number in range(count):
        if number not in gone:
            slice_(tmp_path / f"{number:02}.dcm", 100, 3 * number, InstanceNumber=number + 1)
    with pytest.raises(InputError, match="a slice is missing"):
        read_image(tmp_path)


def test_thicker_slices_in_one_part_are_no_hole(tmp_path: Path) -> None:
    for number, (height, thickness) in enumerate([(0, 3), (3, 3), (6, 3), (10.5, 6), (16.5, 6), (22.5, 6)]):
        slice_(tmp_path / f"{number}.dcm", 100, height, SliceThickness=thickness)
    assert any(warning.startswith("uneven slice spacing") for warning in read_image(tmp_path).warnings)
    for number, (height, thickness) in enumerate([(0, 3), (3, 3), (6, 3), (12, 6), (18, 6), (24, 6)]):
        slice_(tmp_path / f"{number}.dcm", 100, height, SliceThickness=thickness)
    assert any(warning.startswith("uneven slice spacing") for warning in read_image(tmp_path).warnings)


def test_a_slice_without_the_others_slope_is_refused(tmp_path: Path) -> None:
    for number in range(4):
        more = {} if number == 2 else {"RescaleSlope": 0.5, "RescaleIntercept": 0}
        slice_(tmp_path / f"{number}.dcm", 100, 3 * number, **more)
    with pytest.raises(InputError, match=r"a Rescale Slope in every slice or in none, but 2\.dcm has none"):
        read_image(tmp_path)


# ---- values


def test_bits_above_the_stored_ones_are_no_value(tmp_path: Path) -> None:
    values = plane(2000) % 4096
    dirty = (values | 0xF000).astype(np.uint16)
    data = base(dirty, BitsStored=12, HighBit=11, PixelSpacing=[1, 1])
    np.testing.assert_array_equal(read_image(save(tmp_path / "x.dcm", data)).data[0, :, :, 0].T, values)
    signed = base((-5 * plane(3).astype(np.int16)) & 0x0FFF, BitsStored=12, HighBit=11, PixelRepresentation=1)
    read = read_image(save(tmp_path / "y.dcm", signed)).data[0, :, :, 0].T
    np.testing.assert_array_equal(read, -5 * plane(3).astype(np.int16))


def test_a_modality_look_up_table_is_applied(tmp_path: Path) -> None:
    data = base(plane(3), PixelSpacing=[1, 1])
    table = item(LUTDescriptor=[16, 2, 16], LUTData=[100 * n for n in range(16)], ModalityLUTType="HU")
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    data.ModalityLUTSequence = [table]
    read = read_image(save(tmp_path / "x.dcm", data)).data[0, :, :, 0].T
    np.testing.assert_array_equal(read, 100 * (plane(3) - 2))


def test_a_segmentation_gives_its_numbers_on_its_grid(tmp_path: Path) -> None:
    """Two segments; slices in which nothing is marked are left out of the file."""
    masks = {(1, 0): (slice(2, 5), slice(1, 4)), (1, 6): (slice(0, 2), slice(0, 9)), (2, 6): (slice(6, 9), slice(2, 3))}
    frames = np.zeros((len(masks), 12, 10), np.uint8)
    for number, (rows, columns) in enumerate(masks.values()):
        frames[number, rows, columns] = 1
    data = base(frames, "1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG", SegmentationType="BINARY")
    data.BitsAllocated = data.BitsStored = 1
    data.HighBit, data.NumberOfFrames = 0, len(masks)
    data.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()
    data.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=[2.0, 3.0], SliceThickness=3.0, SpacingBetweenSlices=3.0)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[float(v) for v in FLAT])],
        )
    ]
    data.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[0.0, 0.0, float(height)])],
            SegmentIdentificationSequence=[item(ReferencedSegmentNumber=segment)],
        )
        for segment, height in masks
    ]
    image = read_image(save(tmp_path / "seg.dcm", data), labels=True)
    expected = np.zeros((10, 12, 3), np.uint8)
    for (segment, height), (rows, columns) in masks.items():
        expected[columns, rows, height // 3] = segment
    np.testing.assert_array_equal(image.data[0], expected)
    np.testing.assert_allclose(image.grid.spacing, [3, 2, 3])


@pytest.mark.parametrize("name", ["rtdose.dcm", "rtdose_expb.dcm"])
def test_a_dose_is_in_gray(name: str) -> None:
    path = THEIRS / name
    data = pydicom.dcmread(path)
    image = read_image(path)
    expected = data.pixel_array * float(data.DoseGridScaling)
    np.testing.assert_allclose(image.data[0], expected.transpose(2, 1, 0), rtol=1e-6)
    offsets = np.diff(np.array(data.GridFrameOffsetVector, float))
    assert image.grid.spacing[2] == pytest.approx(abs(offsets[0]))
    with pytest.raises(InputError, match="there is no frame 3: the file has one frame, 0"):
        read_image(path, frame=3)


def test_stored_values_are_pydicoms() -> None:
    """On pydicom's own test files, every one that both can read."""
    equal = 0
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    for name in sorted(THEIRS.glob("*.dcm")):
        try:
            file = read_header(name)
            found = None if file is None else stored_values(file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = pydicom.dcmread(name, force=True).pixel_array
        except (MedkitError, AttributeError, NotImplementedError, RuntimeError, ValueError):
            continue
        if file is None or found is None:
            continue
        ours = found.transpose(2, 1, 0).reshape(theirs.shape)
        if file.pixels.inverted:
            ours = -1 - ours if file.pixels.signed else (1 << file.pixels.used) - 1 - ours
        np.testing.assert_array_equal(ours, theirs, err_msg=name.name)
        equal += 1
    assert equal >= 15


@pytest.mark.real_data
def test_a_mosaic_is_a_volume(shared_data: Path) -> None:
    """As nibabel unfolds it and places it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom.dicomwrappers import wrapper_from_file
    path = next((shared_data / "dicom/dicom_mosaic").rglob("IM-0001-0001.dcm"))
    theirs, image = wrapper_from_file(path), read_image(path)
    values = theirs.get_data()
    np.testing.assert_array_equal(image.data[0], values.transpose(1, 0, 2))
    corners = np.array([[0, 0, 0, 1], [values.shape[1] - 1, 0, 0, 1], [0, 5, values.shape[2] - 1, 1]])
    lps = theirs.affine @ corners[:, [1, 0, 2, 3]].T
    np.testing.assert_allclose(image.grid.affine @ corners.T, np.diag([-1, -1, 1, 1]) @ lps, atol=1e-3)
    assert any("mosaic" in warning for warning in image.warnings)


@pytest.mark.real_data
def test_a_real_segmentation_lies_on_its_source(shared_data: Path) -> None:
    folder = shared_data / "dicom/dicom_seg_sr_dcmqi"
    path = next(folder.rglob("seg.dcm"))
    image = read_image(path, labels=True)
    data = pydicom.dcmread(path)
    assert set(np.unique(image.data)) <= {0, *(int(s.SegmentNumber) for s in data.SegmentSequence)}
    assert int((image.data > 0).sum()) == int(data.pixel_array.sum())
