"""`medkit bids`: tasks over BIDS datasets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from outcome import Outcome

Run = Callable[..., Outcome]
Make = Callable[..., Path]
SCANS = (
    "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
    "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz",
    "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
    "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz",
    "sub-03/anat/sub-03_T1w.nii.gz",
)
OTHERS = (
    "sub-01/ses-1/anat/sub-01_ses-1_dseg.nii.gz",
    "sub-01/ses-1/anat/sub-01_ses-1_mod-T1w_defacemask.nii.gz",
    "sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz",
    "derivatives/other/sub-01/anat/sub-01_desc-x_T1w.nii.gz",
    "sourcedata/sub-01/anat/sub-01_T1w.nii.gz",
)


@pytest.fixture
def study(blob: Make, tmp_path: Path) -> Path:
    """A BIDS dataset whose images are made-up bytes, which `fragile` copies."""
    for name in (*SCANS, *OTHERS):
        blob(f"study/{name}")
    describe(tmp_path / "study", Name="Made up", BIDSVersion="1.10.0")
    return tmp_path / "study"


def describe(folder: Path, **content: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "dataset_description.json").write_text(json.dumps(content))


def made(done: Outcome, output: Path) -> list[str]:
    return [str(path.relative_to(output)) for path in done.paths]


def results(scans: Sequence[str]) -> list[str]:
    """The names of the results of `fragile`, by BIDS derivatives."""
    return [name.replace("_T1w", "_desc-copy_T1w").replace("_T2w", "_desc-copy_T2w") for name in scans]


def test_all_scans_by_default(toy: Run, study: Path, tmp_path: Path) -> None:
    done = toy("bids", study, tmp_path / "out", "participant", "--task", "fragile")
    assert done.code == 0, done.err
    assert made(done, tmp_path / "out") == results(SCANS)
    assert "5 taken, left out: 1 anat/defacemask, 1 anat/dseg, 1 func/bold" in done.err


def test_the_output_is_a_derivative_dataset(toy: Run, study: Path) -> None:
    output = study / "derivatives" / "medkit"
    for task in (["fragile"], ["tabled", "--", "--table", output / "all.tsv"]):
        assert toy("bids", study, output, "participant", "--task", *task).code == 0
    content = json.loads((output / "dataset_description.json").read_text())
    assert content["DatasetType"] == "derivative"
    assert content["GeneratedBy"][0]["Name"] == "medkit"
    assert {"Name", "BIDSVersion"} <= set(content)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--participant-label", "01", "03"], [0, 1, 2, 4]),
        (["--participant_label", "sub-02"], [3]),
        (["--participant-label", "01,02", "--session-label", "1", "--suffix", "T1w"], [0, 3]),
        (["--session_label", "ses-2"], [2]),
        (["--participant-label", "01", "--participant-label", "02", "--suffix", "T2w"], [1]),
    ],
)
def test_what_is_selected(toy: Run, study: Path, tmp_path: Path, options: list[str], expected: list[int]) -> None:
    done = toy("bids", study, tmp_path / "out", "participant", *options, "--task", "fragile")
    assert done.code == 0, done.err
    assert made(done, tmp_path / "out") == results([SCANS[i] for i in expected])


def test_other_datatypes_and_label_images_by_name(toy: Run, study: Path, tmp_path: Path) -> None:
    at = [study, tmp_path / "out", "participant", "--task", "fragile"]
    (bold,) = toy("bids", *at, "--datatype", "func").paths
    assert bold.name == "sub-01_ses-1_task-rest_desc-copy_bold.nii.gz"
    (mask,) = toy("bids", *at, "--suffix", "defacemask").paths
    assert mask.name == "sub-01_ses-1_mod-T1w_desc-copy_defacemask.nii.gz"


def test_participants_without_the_session_are_named(toy: Run, study: Path, tmp_path: Path) -> None:
    done = toy("bids", study, tmp_path / "out", "participant", "--task", "fragile", "--session-label", "2")
    assert "none of these sessions: sub-02, sub-03" in done.err


def test_options_of_the_task(toy: Run, scan: Make, tmp_path: Path) -> None:
    scan("study/sub-01/anat/sub-01_T1w.nii.gz")
    describe(tmp_path / "study", Name="One", BIDSVersion="1.10.0")
    at = [tmp_path / "study", tmp_path / "out", "participant", "--task", "double"]
    done = toy("bids", *at, "--", "--factor", 3, "--json")
    (record,) = done.records
    assert record["medkit"]["metrics"] == {"factor": 3}
    shown = toy("show", record["path"]).out
    assert f"medkit run double --factor 3 {tmp_path}/study/sub-01/anat/sub-01_T1w.nii.gz" in shown
    assert "exists already" in toy("bids", *at).err
    assert toy("bids", *at, "--", "--factor", 3, "--skip-existing").code == 0


def test_all_scans_of_a_session_have_results_of_their_own(toy: Run, scan: Make, tmp_path: Path) -> None:
    names = ("T1w", "T2w", "FLAIR", "run-1_T1w", "run-2_T1w", "acq-fast_T2w", "echo-1_MEGRE", "echo-2_MEGRE")
    more = ("inv-1_MP2RAGE", "ce-gad_T1w", "rec-norm_T1w", "part-mag_T2w", "part-phase_T2w", "PDw", "T2star", "T1map")
    for name in names + more:
        scan(f"study/sub-01/ses-1/anat/sub-01_ses-1_{name}.nii.gz")
    describe(tmp_path / "study", Name="One", BIDSVersion="1.10.0")
    done = toy("bids", tmp_path / "study", tmp_path / "out", "participant", "--task", "halves")
    assert done.code == 0, done.err
    found = {Path(name).name for name in made(done, tmp_path / "out")}
    assert len(found) == len(names + more)
    expected = {"dseg", "desc-T2w_dseg", "acq-fast_desc-T2w_dseg", "echo-1_desc-MEGRE_dseg", "ce-gad_dseg"}
    assert {f"sub-01_ses-1_{name}.nii.gz" for name in expected} <= found


def test_a_bad_scan_fails_alone(toy: Run, scan: Make, study: Path, tmp_path: Path) -> None:
    scan(f"study/{SCANS[0]}")
    done = toy("bids", study, tmp_path / "out", "participant", "--task", "double", "--participant-label", "01", "02")
    assert done.code == 1
    assert made(done, tmp_path / "out") == ["sub-01/ses-1/anat/sub-01_ses-1_desc-double_T1w.nii.gz"]


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["group", "--task", "fragile"], 2, "no group level"),
        (["participant"], 2, "--task"),
        (["participant", "--task", "fragil"], 2, "No such task 'fragil'"),
        (
            ["participant", "--task", "fragile", "--participant-label", "07"],
            2,
            "no participant 07; there are 01, 02",
        ),
        (["participant", "--task", "fragile", "--session-label", "9"], 2, "no session 9; there are 1, 2"),
        (["participant", "--task", "fragile", "--suffix", "FLAIR"], 3, "no images"),
        (["participant", "--task", "fragile", "--", "x.nii.gz"], 2, "x.nii.gz: inputs come from the dataset"),
        (["participant", "--task", "fragile", "--", "-o", "there"], 2, "--output: "),
        (["participant", "--task", "fragile", "--", "--list", "lines.txt"], 2, "--list: "),
        (["participant", "--task", "double", "--", "--fator", "3"], 2, "--fator"),
    ],
)
def test_what_is_refused(toy: Run, study: Path, tmp_path: Path, words: list[str], code: int, reason: str) -> None:
    done = toy("bids", study, tmp_path / "out", *words)
    assert (done.code, done.out) == (code, ""), done.err
    assert reason in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is no BIDS dataset"),
        ("{", "cannot be read as JSON"),
        ("[]", "expected an object"),
        ('{"Name": "x"}', "expected a text as BIDSVersion"),
    ],
)
def test_datasets_need_a_description(toy: Run, study: Path, tmp_path: Path, content: str | None, reason: str) -> None:
    (study / "dataset_description.json").unlink()
    if content is not None:
        (study / "dataset_description.json").write_text(content)
    words = ["bids", study, tmp_path / "out", "participant", "--task", "fragile"]
    done = toy(*words)
    assert done.code == 3
    assert reason in done.err
    assert toy(*words, "--skip-bids-validation").code == 0


def test_names_must_fit_their_folders(toy: Run, study: Path, blob: Make, tmp_path: Path) -> None:
    for name in ("sub-02_T1w.nii.gz", "sub-03_ses-1_T1w.nii.gz", "brain.nii", "sub-03_T2w.NII.GZ", "sub-03_T2w.mgz"):
        blob(f"study/sub-03/anat/{name}")
    blob("study/sub-03/sub-03_T2w.nii.gz")  # outside a folder of a datatype
    blob("study/sub-01/ses-1/anat/sub-01_T1w.nii.gz")
    words = ["bids", study, tmp_path / "out", "participant", "--task", "fragile"]
    done = toy(*words)
    assert done.code == 3
    assert "7 whose names do not fit their folders" in done.err
    done = toy(*words, "--skip-bids-validation")
    assert done.code == 0
    assert made(done, tmp_path / "out") == results(SCANS)


def test_a_folder_without_participants(toy: Run, tmp_path: Path) -> None:
    describe(tmp_path / "study", Name="Empty", BIDSVersion="1.10.0")
    done = toy("bids", tmp_path / "study", tmp_path / "out", "participant", "--task", "fragile")
    assert (done.code, "has no folders sub-<label>" in done.err) == (3, True)


def test_results_go_to_a_folder_of_their_own(toy: Run, study: Path, tmp_path: Path) -> None:
    done = toy("bids", study, study, "participant", "--task", "fragile")
    assert (done.code, "is the dataset itself" in done.err) == (2, True)
    describe(tmp_path / "theirs", Name="x", BIDSVersion="1.10.0", GeneratedBy=[{"Name": "other"}])
    done = toy("bids", study, tmp_path / "theirs", "participant", "--task", "fragile")
    assert (done.code, "that medkit has not made" in done.err) == (2, True)
