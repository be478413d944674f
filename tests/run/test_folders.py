"""Folders as inputs: their images, and their folders of DICOM files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


def test_a_folder_stands_for_the_images_in_it(toy: Run, scan: Make, blob: Make, tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.mha", "deep/er/c.nii", ".hidden.nii.gz", ".cache/d.nii.gz"):
        scan(f"in/{name}") if "nii" in name else blob(f"in/{name}")
    blob("in/a_dseg.nii.gz")
    blob("in/notes.tsv")
    blob("in/README")
    blob("in/picture.png")
    blob("in/b.json", '{"EchoTime": 1}')
    done = toy("run", "pair", tmp_path / "in", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.paths == [
        tmp_path / "out" / name for name in ("a_copy.nii.gz", "b_copy.nii.gz", "deep/er/c_copy.nii.gz")
    ]
    assert "3 taken, left out: 1 label image, 1 other file, 1 picture and 1 table" in done.err


def test_a_folder_of_series_is_a_case_for_each(toy: Run, blob: Make, tmp_path: Path) -> None:
    blob("study/1/1.dcm"), blob("study/2/IM1"), blob("study/deep/3/1.IMA"), blob("study/DICOMDIR")
    (tmp_path / "study/2/IM1").write_bytes(bytes(128) + b"DICM" + bytes(20))
    done = toy("run", "pair", tmp_path / "study")
    assert done.code == 0, done.err
    assert done.paths == [tmp_path / f"study/{name}_copy.nii.gz" for name in ("1", "2", "deep/3")]


def test_pictures_are_taken_where_there_is_nothing_else(toy: Run, blob: Make, tmp_path: Path) -> None:
    blob("x/a.png"), blob("x/b.jpg"), blob("x/truth.csv")
    done = toy("run", "pair", tmp_path / "x", "-o", tmp_path / "out")
    assert [path.name for path in done.paths] == ["a_copy.nii.gz", "b_copy.nii.gz"]
    assert "2 taken, left out: 1 table" in done.err


def test_a_second_run_over_a_folder(toy: Run, scan: Make, tmp_path: Path) -> None:
    scan("in/a.nii.gz")
    first = toy("run", "double", tmp_path / "in", "--qc", tmp_path / "in/qc")
    second = toy("run", "double", tmp_path / "in", "--qc", tmp_path / "in/qc", "--skip-existing")
    assert second.paths == first.paths == [tmp_path / "in/a_double.nii.gz"]
    assert "1 input is a result made from another input, and left out: a_double.nii.gz" in second.err


def test_a_folder_with_nothing_for_the_task_fails_with_the_reason(toy: Run, blob: Make, tmp_path: Path) -> None:
    blob("empty/README")
    done = toy("run", "double", tmp_path / "empty")
    assert done.code == 3
    assert "empty: expected a folder with images or DICOM files, found none among its 1 files" in done.err


def test_shards_divide_what_lies_in_a_folder(toy: Run, blob: Make, tmp_path: Path) -> None:
    for name in "abcd":
        blob(f"in/{name}.nii.gz")
    halves = [toy("run", "pair", tmp_path / "in", "--shard", f"{k}/2", "-o", tmp_path / "out").paths for k in (1, 2)]
    assert sorted(path.name for half in halves for path in half) == [f"{name}_copy.nii.gz" for name in "abcd"]


def test_dicom_without_images_and_segmentations_are_left_out(toy: Run, blob: Make, tmp_path: Path) -> None:
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

    blob("study/1/1.dcm"), blob("study/segmentations/1.dcm")
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = RTStructureSetStorage, "1.2.3", "RTSTRUCT"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    (tmp_path / "study/mask").mkdir()
    pydicom.dcmwrite(tmp_path / "study/mask/RS.dcm", dataset, enforce_file_format=True)
    done = toy("run", "pair", tmp_path / "study")
    assert done.code == 0, done.err
    assert done.paths == [tmp_path / "study/1_copy.nii.gz"]
    assert "1 taken, left out: 1 label image" in done.err
    assert "study: left out series ? (RTSTRUCT): no image" in done.err


def test_equal_names_in_a_folder_keep_their_places(toy: Run, blob: Make, tmp_path: Path) -> None:
    for name in ("p1/image/1.dcm", "p2/image/1.dcm", "p1/T1.nii.gz", "p2/T1.nii.gz", "sub-1/anat/sub-1_T1w.nii.gz"):
        blob(f"in/{name}")
    done = toy("run", "pair", tmp_path / "in", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in done.paths) == [
        *("p1/T1_copy.nii.gz", "p1/image_copy.nii.gz", "p2/T1_copy.nii.gz", "p2/image_copy.nii.gz"),
        "sub-1/anat/sub-1_desc-copy_T1w.nii.gz",
    ]
    alone = toy("run", "pair", tmp_path / "in/p1/image", "-o", tmp_path / "alone")
    assert alone.paths == [tmp_path / "alone/image_copy.nii.gz"]


def test_links_are_followed_but_not_in_circles(toy: Run, blob: Make, tmp_path: Path) -> None:
    blob("in/a.nii.gz"), blob("elsewhere/b.nii.gz")
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in")
    done = toy("run", "pair", tmp_path / "in", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.paths == [tmp_path / "out" / name for name in ("a_copy.nii.gz", "link/b_copy.nii.gz")]


def test_folders_that_cannot_be_read_are_counted(
    toy: Run, blob: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob("in/a.nii.gz"), blob("in/shut/b.nii.gz")
    scandir = os.scandir

    def refuse(place: str | Path) -> object:
        if Path(place).name == "shut":
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    done = toy("run", "pair", tmp_path / "in", "-o", tmp_path / "out")
    assert "1 taken, left out: 1 folder that cannot be read" in done.err
