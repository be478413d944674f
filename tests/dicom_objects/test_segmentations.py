"""`--dicom seg`: label maps as DICOM segmentations on the images of their series."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from dicom_series import AXIAL, IDENTITY, PERSON, TURNED, check_valid, write_enhanced, write_series
from outcome import Outcome

from medkit.dicom_objects.codes import Algorithm, Code, Meaning, meaning_of, meanings_of, private_code
from medkit.dicom_objects.segmentation import segmentation, segments_of
from medkit.dicom_objects.source import in_order, read_series
from medkit.errors import BundleError, InputError
from medkit.images.image import Image, read_image
from medkit.space import Grid, apply_affine

Run = Callable[..., Outcome]
ALGORITHM = Algorithm("segment", "threshold", "1.0")
NAMES = {2: "left thing", 17: "a structure with a long name", 40: "Ω\\x"}


def stored(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(900, 1200, shape).astype(np.int16)


def labels_like(image: Image) -> Image:
    """Labels 0, 2, 17 and 40; the first slice has none."""
    chosen = np.random.default_rng(1).choice([0, 2, 17, 40], image.grid.shape, p=[0.7, 0.1, 0.1, 0.1])
    chosen[:, :, 0] = 0
    return image.with_data(chosen[None].astype(np.uint8))


def made(path: Path, series: Path, frame: int | None = None) -> tuple[Image, Path]:
    """Labels on the grid of a series, and their SEG."""
    labels = labels_like(read_image(series, frame=frame))
    source = read_series(series, frame=frame)
    segmentation(labels, segments_of(NAMES, {}), source, ALGORITHM).write(path)
    return labels, path


def voxels_by_place(path: Path, label_of: dict[int, int], shape: tuple[int, int, int], source: Any) -> np.ndarray:
    """(I, J, K) labels of a SEG, read with highdicom, on the images to which its frames refer."""
    seg = highdicom.seg.segread(path)
    out = np.zeros(shape, np.uint8)
    at = {(one.sop_instance, one.frame): k for k, one in enumerate(source.images)}
    for number, label in label_of.items():
        pixels = seg.get_pixels_by_source_instance(
            [one.sop_instance for one in source.images],
            segment_numbers=[number],
            assert_missing_frames_are_empty=True,
        )
        for one, plane in zip(source.images, pixels[..., 0], strict=True):
            out[:, :, at[one.sop_instance, one.frame]][plane.T > 0] = label
    return out


@pytest.mark.parametrize("axes", [AXIAL, TURNED], ids=["axial", "oblique"])
@pytest.mark.parametrize("tilt", [0.0, 0.9])
def test_voxels_and_places_are_those_of_the_series(tmp_path: Path, axes: np.ndarray, tilt: float) -> None:
    folder = write_series(tmp_path / "scan", stored((12, 10, 6)), axes=axes, tilt=tilt)
    labels, path = made(tmp_path / "seg.dcm", folder)
    source = read_series(folder)

    found = voxels_by_place(path, {1: 2, 2: 17, 3: 40}, labels.grid.shape, source)
    back = read_image(path, labels=True)

    assert np.array_equal(found, labels.data[0])
    assert np.array_equal(back.data[0], labels.data[0][:, :, 1:])  # slices without a structure have no frames
    corners = np.array([(0, 0, 0), (11, 9, 4)], float)
    np.testing.assert_allclose(
        apply_affine(back.grid.affine, corners),
        apply_affine(labels.grid.affine, corners + np.array([0, 0, 1])),
        atol=1e-3,
    )
    assert "SpacingBetweenSlices" in pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    check_valid(path)


def test_uneven_images_get_the_nearest_slice(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", stored((6, 5, 5)), heights=np.array([0, 1, 2, 3.4, 5.4]))
    labels, path = made(tmp_path / "seg.dcm", folder)
    source = read_series(folder)

    found = voxels_by_place(path, {1: 2, 2: 17, 3: 40}, (6, 5, 5), source)

    heights = np.array([0, 1, 2, 3.4, 5.4])
    step = 5.4 / (labels.grid.shape[2] - 1)
    assert np.array_equal(found, labels.data[0][:, :, np.rint(heights / step).astype(int)])
    assert (
        "SpacingBetweenSlices" not in (pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0])
    )
    check_valid(path)


def test_frames_of_one_time_point(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "scan.dcm", stored((12, 10, 4, 2)))
    labels, seg = made(tmp_path / "seg.dcm", path, frame=1)

    frames = pydicom.dcmread(seg).PerFrameFunctionalGroupsSequence
    named = [f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber for f in frames]

    assert set(named) == {4, 6, 8}  # the second of two time points, without the first slice
    assert np.array_equal(read_image(seg, labels=True).data[0], labels.data[0][:, :, 1:])
    check_valid(seg)


def test_what_a_segment_says(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", stored((12, 10, 6)), "MR")
    labels = labels_like(read_image(folder))
    known = {"left thing": Meaning(Code("5366008", "SCT", "Hippocampus"), "left")}
    learned = Algorithm("segment", "brain_bundle", "0.5", learned=True)

    segmentation(labels, segments_of(NAMES, known), read_series(folder), learned).write(tmp_path / "seg.dcm")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")

    first, second, third = seg.SegmentSequence
    kind = first.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("5366008", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99MEDKIT"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "a structure with a long name"
    assert [one.SegmentLabel for one in (first, second, third)] == ["left thing", NAMES[17], "Ω/x"]
    algorithm = first.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("brain_bundle", "0.5")
    assert first.SegmentAlgorithmType == "AUTOMATIC"
    assert first.RecommendedDisplayCIELabValue != second.RecommendedDisplayCIELabValue
    assert (str(seg.PatientName), seg.PatientID) == (PERSON, IDENTITY)
    assert seg.StudyInstanceUID == read_series(folder).header.StudyInstanceUID
    assert seg.FrameOfReferenceUID == read_series(folder).header.FrameOfReferenceUID
    assert seg.SeriesNumber == 301
    check_valid(tmp_path / "seg.dcm")


def test_the_same_result_has_the_same_uids(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", stored((6, 5, 4)))
    labels, path = made(tmp_path / "one.dcm", folder)
    again, changed = tmp_path / "again.dcm", tmp_path / "changed.dcm"
    source = read_series(folder)
    segmentation(labels, segments_of(NAMES, {}), source, ALGORITHM).write(again)
    other = labels.with_data(np.roll(labels.data, 1, axis=1))
    segmentation(other, segments_of(NAMES, {}), source, ALGORITHM).write(changed)

    uids = [(d.SOPInstanceUID, d.SeriesInstanceUID) for d in map(pydicom.dcmread, (path, again, changed))]

    assert uids[0] == uids[1]
    assert not set(uids[0]) & set(uids[2])


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("flipped", [(), (0,), (1, 2)])
def test_voxels_in_another_order_are_the_same_voxels(order: tuple[int, int, int], flipped: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    wanted = Grid((4, 5, 6), np.array([[0, 2, 0, 5], [1.5, 0, 0, 7], [0, 0.4, 3, 9], [0, 0, 0, 1.0]]))
    data = rng.normal(size=wanted.shape)
    affine, turned = wanted.affine[:, [*order, 3]], data.transpose(order)
    for axis in flipped:
        affine[:3, 3] += affine[:3, axis] * (turned.shape[axis] - 1)
        affine[:3, axis] *= -1
        turned = np.flip(turned, axis)
    grid = Grid(turned.shape, affine)  # type: ignore[arg-type]

    found = in_order(turned, grid, wanted)

    assert found is not None
    assert np.array_equal(found, data)
    moved = affine.copy()
    moved[:3, 3] += 0.1
    assert in_order(turned, Grid(grid.shape, moved), wanted) is None


def test_labels_that_cannot_be_segments(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", stored((6, 5, 4)))
    labels, source = labels_like(read_image(folder)), read_series(folder)
    shifted = labels.grid.affine.copy()
    shifted[0, 3] += 0.4

    with pytest.raises(InputError, match="another grid"):
        segmentation(Image(labels.data, Grid(labels.grid.shape, shifted)), segments_of(NAMES, {}), source, ALGORITHM)
    with pytest.raises(InputError, match="the label map is empty"):
        segmentation(labels.with_data(labels.data * 0), segments_of(NAMES, {}), source, ALGORITHM)


def test_labels_without_a_name_and_masks_that_overlap(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", stored((6, 5, 4)))
    image, source = read_image(folder), read_series(folder)
    masks = np.random.default_rng(4).integers(0, 2, (3, *image.grid.shape)).astype(np.uint8)
    masks[1] = 0

    segmentation(image.with_data(masks), segments_of({1: "a"}, {}), source, ALGORITHM).write(tmp_path / "seg.dcm")
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    uids = [one.sop_instance for one in source.images]
    pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)

    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["a", "label 3"]
    assert np.array_equal(pixels.transpose(3, 2, 1, 0), masks[[0, 2]])
    assert seg.SegmentsOverlap == "YES"
    check_valid(tmp_path / "seg.dcm")


def test_codes_from_metadata() -> None:
    stated = {"2": {"type": ["5366008", "SCT", "Hippocampus"], "side": "left"}, "99": {"type": ["1", "SCT", "x"]}}

    found = meanings_of({2: "left hippocampus"}, stated, "bundle b")

    assert found == {"left hippocampus": Meaning(Code("5366008", "SCT", "Hippocampus"), "left")}
    assert meaning_of("other", found).type == Code("other", "99MEDKIT", "other")
    for wrong in ({"2": {"type": ["1", "SCT"]}}, {"2": []}, {"2": {"type": ["1", "SCT", "x"], "side": "up"}}):
        with pytest.raises(BundleError, match=r"docs/bundles\.md"):
            meanings_of({2: "x"}, wrong, "bundle b")


def test_private_codes_are_short_and_differ() -> None:
    names = ["left cerebral white matter", "left cerebral white matter 2", "Ω", "Ψ", "short"]
    codes = [private_code(name) for name in names]

    assert len({code.value for code in codes}) == len(names)
    assert all(len(code.value) <= 16 and code.value.isascii() for code in codes)
    assert [code.meaning for code in codes] == names


# ---- the command


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Seeds for `--method grow`, which takes images of any kind."""
    seeds = tmp_path / "seeds.csv"
    seeds.write_text("label,x,y,z\nblob,0,0,45\n")
    return seeds


def scan(folder: Path, **settings: Any) -> Path:
    """A series with a bright ball around (0, 0, 45) mm."""
    i, j, k = np.meshgrid(*(np.arange(n) for n in (40, 36, 11)), indexing="ij")
    distance = np.sqrt((0.5 * (i - 20)) ** 2 + (1.1 * (j - 18.2)) ** 2 + (3.0 * (k - 5)) ** 2)
    voxels = np.where(distance < 8, 1500, 1000) + np.random.default_rng(3).integers(-9, 9, i.shape)
    return write_series(folder, voxels.astype(np.int16), spacing=(0.5, 1.1, 3.0), **settings)


def test_the_command_writes_a_seg_and_keeps_it(medkit: Run, tmp_path: Path, tools: Path) -> None:
    folder = scan(tmp_path / "anna")
    command = ("run", "segment", folder, "--method", "grow", "--seeds", tools, "--dicom", "seg", "-o", tmp_path / "out")

    done = medkit(*command)
    seg = tmp_path / "out" / "anna_seg.dcm"
    record = json.loads((tmp_path / "out" / "anna_dseg.json").read_text())
    labels = nibabel.load(tmp_path / "out" / "anna_dseg.nii.gz").get_fdata()
    first = seg.read_bytes()
    kept = medkit(*command, "--skip-existing")

    assert (done.code, kept.code) == (0, 0), done.err + kept.err
    assert seg.read_bytes() == first
    assert record["medkit"]["outputs"]["dicom_seg"]["path"] == "anna_seg.dcm"
    assert record["medkit"]["arguments"]["dicom"] == ["seg"]
    assert read_image(seg, labels=True).data.sum() == labels.sum() > 100
    assert "Grün" not in json.dumps(record, ensure_ascii=False) + done.err + kept.err
    assert IDENTITY not in json.dumps(record)
    check_valid(seg)


def test_uneven_images_are_told(medkit: Run, tmp_path: Path, tools: Path) -> None:
    folder = scan(tmp_path / "anna", heights=np.array([0, 3, 6, 9, 12, 15, 18, 21, 24.0, 28, 33]))

    done = medkit("run", "segment", folder, "--method", "grow", "--seeds", tools, "--dicom", "seg", "-o", tmp_path)

    assert done.code == 0, done.err
    warnings = json.loads((tmp_path / "anna_dseg.json").read_text())["medkit"]["warnings"]
    assert any("3 to 5 mm apart: in the DICOM segmentation" in text for text in warnings)


def test_nifti_of_a_series(medkit: Run, tmp_path: Path, tools: Path) -> None:
    """A NIfTI without a sidecar needs the series named, and has its voxels, even in another order."""
    folder = scan(tmp_path / "anna")
    image = read_image(folder)
    affine = image.grid.affine.copy()  # the rows upside down, as dcm2niix writes them
    affine[:3, 3] += affine[:3, 1] * (image.grid.shape[1] - 1)
    affine[:3, 1] *= -1
    nibabel.save(nibabel.Nifti1Image(np.flip(image.data[0], 1), affine), tmp_path / "scan.nii.gz")
    command = ("run", "segment", tmp_path / "scan.nii.gz", "--method", "grow", "--seeds", tools, "--dicom", "seg")

    refused = medkit(*command)
    left = list(tmp_path.glob("scan_*"))
    done = medkit(*command, "--dicom-source", folder)

    assert refused.code == 3
    assert "name its folder with --dicom-source FOLDER" in refused.err
    assert not left
    assert done.code == 0, done.err
    marked = np.flip(nibabel.load(tmp_path / "scan_dseg.nii.gz").get_fdata(), 1)
    seg = read_image(tmp_path / "scan_seg.dcm", labels=True)
    there = marked.any(axis=(0, 1))
    assert np.array_equal(seg.data[0], marked[:, :, there])


def test_other_grids_are_refused(medkit: Run, tmp_path: Path, tools: Path) -> None:
    folder = scan(tmp_path / "anna")
    finer = medkit("run", "sr", folder, "--scale", "2", "--method", "bspline", "-o", tmp_path / "finer.nii.gz")

    done = medkit("run", "segment", tmp_path / "finer.nii.gz", "--method", "grow", "--seeds", tools, "--dicom", "seg")

    assert (finer.code, done.code) == (0, 3), finer.err + done.err
    assert f"lies on another grid than {folder}" in done.err
    assert "--dicom image, where the grid was changed" in done.err


def test_a_series_that_has_changed_is_refused(medkit: Run, tmp_path: Path, tools: Path) -> None:
    folder = scan(tmp_path / "anna")
    medkit("run", "enhance", folder, "--what", "denoise", "--method", "nlm", "-o", tmp_path / "clean.nii.gz")
    (folder / "000.dcm").unlink()

    done = medkit("run", "segment", tmp_path / "clean.nii.gz", "--method", "grow", "--seeds", tools, "--dicom", "seg")

    assert done.code == 3
    assert "has changed since a result was made from it" in done.err


def test_options_that_do_not_go_together(medkit: Run, tmp_path: Path, tools: Path) -> None:
    folder = scan(tmp_path / "anna")
    command = ("run", "segment", folder, "--method", "grow", "--seeds", tools)

    assert "--dicom-source needs --dicom" in medkit(*command, "--dicom-source", folder).err
    assert "leave out --dicom" in medkit(*command, "--dicom", "seg", "--table", tmp_path / "all.tsv").err
    assert "expected seg or sr" in medkit(*command, "--dicom", "png").err
    assert "needs labels among --outputs" in medkit(*command, "--dicom", "seg", "--outputs", "mask").err


def test_without_highdicom(medkit: Run, tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    folder = scan(tmp_path / "anna")

    done = medkit("run", "segment", folder, "--method", "grow", "--seeds", tools, "--dicom", "seg")

    assert done.code == 2
    assert "pip install 'medkit[dicom]'" in done.err
