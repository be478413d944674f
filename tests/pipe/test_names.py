"""Names: stems and suffixes, BIDS names, labels of spaces, kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkit.pipe.names import (
    bids_root,
    is_bids,
    join_bids,
    kind_of_name,
    sidecar_path,
    space_label,
    split_bids,
    stem,
    suffix_of,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x.nii.gz", "x"),
        ("x.NII.GZ", "x"),
        ("sub.01.nii", "sub.01"),
        ("x.tar.gz", "x.tar.gz"),
        ("x.v2", "x.v2"),
        ("x.mha", "x"),
        ("x_transform.tfm", "x_transform"),
        (".nii.gz", ".nii.gz"),
        ("series 3", "series 3"),
    ],
)
def test_stem(name: str, expected: str) -> None:
    assert stem(Path("d") / name) == expected
    assert name == expected + suffix_of(Path(name))


def test_sidecar_beside_the_file() -> None:
    assert sidecar_path(Path("/a/x.nii.gz")) == Path("/a/x.json")
    assert sidecar_path(Path("/a/series_3")) == Path("/a/series_3.json")


@pytest.mark.parametrize("name", ["sub-01_T1w.nii.gz", "sub-A1_ses-2_acq-x_run-1_bold.nii", "sub-1_dseg.tsv"])
def test_bids_names(name: str) -> None:
    assert is_bids(Path(name))
    assert join_bids(*split_bids(Path(name))) == stem(Path(name))


@pytest.mark.parametrize(
    "name", ["T1.nii.gz", "sub-01.nii.gz", "sub01_T1w.nii.gz", "sub-01_left_T1w.nii.gz", "sub-_T1w.nii"]
)
def test_other_names(name: str) -> None:
    assert not is_bids(Path(name))


def test_entities_in_the_order_of_the_specification() -> None:
    assert join_bids({"desc": "x", "space": "MNI", "sub": "1", "foo": "y", "run": "2"}, "T1w") == (
        "sub-1_run-2_space-MNI_desc-x_foo-y_T1w"
    )


def test_space_labels() -> None:
    moving = Path("/d/sub-01/sub-01_T2w.nii.gz")
    assert space_label(Path("/t/tpl-MNI152_T1w.nii.gz"), moving) == "MNI152"
    assert space_label(Path("/t/mni_icbm-152.nii.gz"), moving) == "mniicbm152"
    assert space_label(Path("/d/sub-01/sub-01_T1w.nii.gz"), moving) == "T1w"
    assert space_label(Path("/d/sub-02/sub-02_T1w.nii.gz"), moving) == "sub02T1w"
    assert space_label(Path("/t/___.nii.gz")) == "reference"


def test_bids_root_is_the_folder_of_the_subject_folder() -> None:
    assert bids_root(Path("/data/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")) == Path("/data")
    assert bids_root(Path("/data/sub-02/sub-01_T1w.nii.gz")) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.nii.gz", "image"),
        ("x_dseg.nii.gz", "labels"),
        ("x_labels.mha", "labels"),
        ("brain_mask.nii", "mask"),
        ("aseg.nii.gz", "labels"),
        ("aparc.DKTatlas+aseg.mgz", "labels"),
        ("wmparc.mgz", "labels"),
        ("sub-01_seg.nii.gz", "labels"),
        ("x_Segmentation.nii.gz", "labels"),
        ("x_label.nii.gz", "labels"),
        ("x.seg.nrrd", "labels"),
        ("labelsTr/case_001.nii.gz", "labels"),
        ("imagesTr/case_001.nii.gz", "image"),
        ("labels/notes.tsv", "table"),
        ("x_probseg.nii.gz", "image"),
        ("brainmask.mgz", "image"),
        ("x.tfm", "transform"),
        ("sub-1_from-a_to-b_mode-image_xfm.nii.gz", "transform"),
        ("x_class.tsv", "table"),
        ("x.csv", "table"),
    ],
)
def test_kinds_that_names_speak_for(name: str, kind: str) -> None:
    assert kind_of_name(Path(name)) == kind
