"""Names: stems and suffixes, BIDS derivatives, labels of spaces."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from medkit import errors
from medkit.errors import OutputError, UsageError
from medkit.pipe import names
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
from medkit.run.outputs import Output, targets_of


@pytest.mark.parametrize("module", [names, errors], ids=lambda m: m.__name__)
def test_examples_in_docstrings(module: object) -> None:
    done = doctest.testmod(module, extraglobs={"Path": Path})
    assert done.attempted
    assert not done.failed


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
        ("x.tfm", "transform"),
        ("sub-1_from-a_to-b_mode-image_xfm.nii.gz", "transform"),
        ("x_class.tsv", "table"),
        ("x.csv", "table"),
    ],
)
def test_kinds_that_names_speak_for(name: str, kind: str) -> None:
    assert kind_of_name(Path(name)) == kind


# ---- output names

IMAGE = Output("image", "image", "registered")
LABELS = Output("labels", "labels", "dseg")
VOLUMES = Output("volumes", "table", "dseg", ".tsv")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x.nii.gz", "x_registered.nii.gz"),
        ("x.mha", "x_registered.nii.gz"),
        ("dicom/series.3", "series.3_registered.nii.gz"),
        ("sub-1_T1w.nii.gz", "sub-1_desc-registered_T1w.nii.gz"),
    ],
)
def test_image_names(source: str, expected: str) -> None:
    assert IMAGE.name(Path(source)) == expected


def test_labels_and_their_table() -> None:
    assert LABELS.name(Path("x.nii.gz")) == "x_dseg.nii.gz"
    assert LABELS.name(Path("sub-1_T1w.nii.gz")) == "sub-1_dseg.nii.gz"
    assert VOLUMES.name(Path("sub-1_T1w.nii.gz")) == "sub-1_dseg.tsv"


def _registration(reference: Path) -> list[Output]:
    directions = (("transform", "{suffix}", "{space}"), ("inverse_transform", "{space}", "{suffix}"))
    entities = {"space": "{space}", "desc": "registered"}
    return [Output("image", "image", "registered", entities=entities, reference=reference)] + [
        Output(role, "transform", role, entities={"from": a, "to": b, "mode": "image"}, reference=reference)
        for role, a, b in directions
    ]


def test_bids_names_of_a_registration() -> None:
    outputs = _registration(Path("/t/tpl-MNI152_T1w.nii.gz"))
    source = Path("/d/sub-01/ses-2/sub-01_ses-2_run-1_T1w.nii.gz")
    assert [o.name(source) for o in outputs] == [
        "sub-01_ses-2_run-1_space-MNI152_desc-registered_T1w.nii.gz",
        "sub-01_ses-2_run-1_from-T1w_to-MNI152_mode-image_xfm.nii.gz",
        "sub-01_ses-2_run-1_from-MNI152_to-T1w_mode-image_xfm.nii.gz",
    ]


def test_plain_names_of_a_registration() -> None:
    outputs = _registration(Path("/t/mni.nii.gz"))
    assert [o.name(Path("x.nii.gz")) for o in outputs] == [
        "x_registered.nii.gz",
        "x_transform.nii.gz",
        "x_inverse_transform.nii.gz",
    ]


def test_two_runs_of_one_subject_keep_transform_and_inverse_apart() -> None:
    outputs = _registration(Path("/d/sub-01/sub-01_run-1_T1w.nii.gz"))
    assert len({o.name(Path("/d/sub-01/sub-01_run-2_T1w.nii.gz")) for o in outputs}) == 3


# ---- targets


def test_output_is_a_file_a_folder_or_the_inputs_folder(tmp_path: Path) -> None:
    source = tmp_path / "in" / "x.nii.gz"
    outputs = (IMAGE, Output("transform", "transform", "transform", ".tfm"))
    beside = targets_of(source, outputs, None, None)
    assert beside.names == tuple(
        source.with_name(n) for n in ("x_registered.nii.gz", "x_transform.tfm", "x_registered.json")
    )
    into = targets_of(source, outputs, tmp_path / "out", None)
    assert {p.parent for p in into.names} == {tmp_path / "out"}
    named = targets_of(source, outputs, tmp_path / "r.mgz", None)
    assert [p.name for p in named.names] == ["r.mgz", "r_transform.tfm", "r.json"]


def test_a_folder_may_be_called_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "out.nii.gz").mkdir()
    assert (
        targets_of(Path("/a/x.nii"), [IMAGE], tmp_path / "out.nii.gz", None).main
        == tmp_path / "out.nii.gz/x_registered.nii.gz"
    )


def test_output_must_have_a_suffix_that_the_task_can_write(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"r\.tfm: expected a name that ends in \.nii\.gz"):
        targets_of(Path("/a/x.nii"), [IMAGE], tmp_path / "r.tfm", None)


def test_keep_tree_mirrors_and_refuses_what_lies_elsewhere(tmp_path: Path) -> None:
    found = targets_of(Path("/data/a/b/x.nii"), [IMAGE], tmp_path, Path("/data"))
    assert found.main == tmp_path / "a/b/x_registered.nii.gz"
    with pytest.raises(OutputError, match="does not lie below --keep-tree /data"):
        targets_of(Path("/other/x.nii"), [IMAGE], tmp_path, Path("/data"))


def test_bids_inputs_always_keep_their_tree(tmp_path: Path) -> None:
    found = targets_of(Path("/data/sub-1/anat/sub-1_T1w.nii"), [IMAGE], tmp_path, None)
    assert found.main == tmp_path / "sub-1/anat/sub-1_desc-registered_T1w.nii.gz"
    flat = targets_of(Path("/flat/sub-1_T1w.nii"), [IMAGE], tmp_path, None)
    assert flat.main == tmp_path / "sub-1_desc-registered_T1w.nii.gz"
