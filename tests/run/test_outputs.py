"""Names and folders of results, BIDS derivatives included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import names

from medkit.errors import OutputError, UsageError
from medkit.run.outputs import Output, Targets, describe_dataset, refuse_inputs, targets_of

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


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


@pytest.mark.parametrize(
    ("source", "labels", "mask", "table"),
    [
        ("sub-1_T1w", "sub-1_dseg", "sub-1_desc-brain_mask", "sub-1_class"),
        ("sub-1_T2w", "sub-1_desc-T2w_dseg", "sub-1_desc-brainT2w_mask", "sub-1_desc-T2w_class"),
        ("sub-1_run-2_FLAIR", "sub-1_run-2_desc-FLAIR_dseg", None, None),
        ("sub-1_space-a_desc-b_T2w", "sub-1_space-a_desc-bT2w_dseg", None, "sub-1_space-a_desc-bT2w_class"),
        ("sub-1_dseg", "sub-1_dseg", None, "sub-1_class"),
    ],
)
def test_results_of_all_scans_of_a_session_differ(
    source: str, labels: str, mask: str | None, table: str | None
) -> None:
    """Those of a T1w image have the shortest names; labels are made from label images, too."""
    outputs = (LABELS, Output("mask", "mask", "brain"), Output("class", "table", "class", ".tsv"))
    for output, expected in zip(outputs, (labels, mask, table), strict=True):
        assert expected is None or output.name(Path(f"{source}.nii.gz")) == f"{expected}{output.extension}"


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
    targets = targets_of(source, outputs, None, None)
    assert targets.names == tuple(
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


def test_bids_derivatives(toy: Run, blob: Make, tmp_path: Path) -> None:
    source = blob("raw/sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz")
    blob("raw/sub-1/ses-2/anat/sub-1_ses-2_T1w.json", '{"EchoTime": 0.1}')
    done = toy("run", "align", source, "--reference", blob("tpl-MNI152_T1w.nii.gz"), "-o", tmp_path / "der")
    folder = tmp_path / "der/sub-1/ses-2/anat"
    assert done.paths == [folder / "sub-1_ses-2_space-MNI152_desc-registered_T1w.nii.gz"]
    assert names(folder) == [
        "sub-1_ses-2_from-MNI152_to-T1w_mode-image_xfm.nii.gz",
        "sub-1_ses-2_from-T1w_to-MNI152_mode-image_xfm.nii.gz",
        "sub-1_ses-2_space-MNI152_desc-registered_T1w.json",
        "sub-1_ses-2_space-MNI152_desc-registered_T1w.nii.gz",
    ]
    description = json.loads((tmp_path / "der/dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "medkit"
    assert json.loads((source.parent / "sub-1_ses-2_T1w.json").read_text()) == {"EchoTime": 0.1}


def test_a_dataset_description_is_never_replaced(toy: Run, blob: Make, tmp_path: Path) -> None:
    blob("der/dataset_description.json", "mine")
    toy("run", "pair", blob("sub-1_T1w.nii.gz"), "-o", tmp_path / "der")
    assert (tmp_path / "der/dataset_description.json").read_text() == "mine"


def test_inputs_and_their_sidecars_are_refused_as_targets(tmp_path: Path, blob: Make) -> None:
    source, targets = blob("x.nii.gz"), Targets({"image": tmp_path / "x.mha"})
    refuse_inputs(targets, [source])
    blob("x.json", "{}")
    with pytest.raises(OutputError, match="is the sidecar of"):
        refuse_inputs(targets, [source])
    with pytest.raises(OutputError, match="is an input"):
        refuse_inputs(Targets({"image": source}), [source])


def test_a_result_with_its_inputs_stem_can_be_made_again(toy: Run, scan: Make, tmp_path: Path) -> None:
    """Its sidecar lies where the input's own would; an input that has one keeps it."""
    source = scan("a.nii.gz")
    words = ("run", "double", source, "-o", tmp_path / "a.nii")
    assert toy(*words).code == 0
    assert json.loads((tmp_path / "a.json").read_text())["path"] == "a.nii"
    kept = toy(*words, "--skip-existing", "--json")
    assert (kept.code, kept.records[0]["medkit"]["skipped"]) == (0, True), kept.err
    redone = toy(*words, "--overwrite", "--json")
    assert (redone.code, redone.records[0]["medkit"]["skipped"]) == (0, False), redone.err
    (tmp_path / "a.json").write_text('{"EchoTime": 0.03}')
    refused = toy(*words, "--overwrite")
    assert refused.code == 1
    assert "is the sidecar of a.nii.gz" in refused.err
    assert (tmp_path / "a.json").read_text() == '{"EchoTime": 0.03}'


def test_dataset_description(tmp_path: Path) -> None:
    describe_dataset(tmp_path / "new")
    text = (tmp_path / "new/dataset_description.json").read_text()
    assert json.loads(text)["DatasetType"] == "derivative"
    assert {"Name", "BIDSVersion", "GeneratedBy"} <= set(json.loads(text))


def test_a_table_keeps_to_the_name_of_its_main_output(tmp_path: Path) -> None:
    labels, table = Output("labels", "labels", "dseg"), Output("volumes", "table", "dseg", ".tsv")
    other = Output("confidence", "image", "confidence")
    source = tmp_path / "x.nii.gz"
    assert [p.name for p in targets_of(source, [labels, table, other], None, None).outputs.values()] == [
        *("x_dseg.nii.gz", "x_dseg.tsv", "x_confidence.nii.gz")
    ]
    named = targets_of(source, [labels, table, other], tmp_path / "result.nii.gz", None)
    assert [p.name for p in named.outputs.values()] == ["result.nii.gz", "result.tsv", "result_confidence.nii.gz"]
