"""What arrives as input: results that lie among their own sources are left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


def globbed(folder: Path, pattern: str = "*.nii.gz") -> list[Path]:
    return sorted(folder.glob(pattern))


@pytest.fixture
def scans(scan: Make) -> list[Path]:
    """Two scans in one folder."""
    return [scan(f"in/{name}.nii.gz", seed=n) for n, name in enumerate(("anna", "ben"))]


@pytest.mark.parametrize("task", ["double", "halves", "pair"])
def test_a_second_run_over_a_folder_takes_the_scans_alone(toy: Run, scans: list[Path], task: str) -> None:
    first = toy("run", task, *globbed(scans[0].parent))
    assert first.code == 0, first.err
    second = toy("run", task, *globbed(scans[0].parent), "--skip-existing")
    assert second.code == 0, second.err
    assert second.paths == first.paths
    assert f"{task}: 2 inputs are results made from another input, and left out: anna_" in second.err


@pytest.mark.parametrize("extra", [["--list", "LIST"], ["--shard", "1/1"]])
def test_lists_and_shards(toy: Run, scans: list[Path], tmp_path: Path, extra: list[str]) -> None:
    first = toy("run", "double", *scans)
    lines = "".join(f"{path}\n" for path in globbed(scans[0].parent))
    (tmp_path / "list").write_text(lines)
    if extra[0] == "--list":
        second = toy("run", "double", "--list", tmp_path / "list", "--skip-existing")
    else:
        second = toy("run", "double", *extra, "--skip-existing", input=lines)
    assert second.paths == first.paths
    assert "2 inputs are results" in second.err


@pytest.mark.parametrize("backwards", [False, True])
def test_piped_names_come_in_any_order(toy: Run, scans: list[Path], backwards: bool) -> None:
    first = toy("run", "double", *scans)
    lines = [f"{path}\n" for path in globbed(scans[0].parent)]
    second = toy("run", "double", "--skip-existing", input="".join(lines[::-1] if backwards else lines))
    assert sorted(second.paths) == sorted(first.paths)
    assert "2 inputs are results" in second.err


def test_further_files_of_a_result_are_left_out(toy: Run, blob: Make, tmp_path: Path) -> None:
    fixed = blob("f.nii.gz")
    moving = blob("in/m.nii.gz")
    assert toy("run", "align", "--reference", fixed, moving).code == 0
    found = globbed(tmp_path / "in", "*")
    assert len(found) == 5
    second = toy("run", "align", "--reference", fixed, *found, "--skip-existing")
    assert second.code == 0, second.err
    assert second.paths == [tmp_path / "in/m_registered.nii.gz"]
    assert "4 inputs are results" in second.err
    third = toy("run", "pair", *found)
    assert third.code == 0, third.err
    # another task takes the image that a result is, but neither its transforms nor its sidecar
    assert [path.name for path in third.paths] == ["m_copy.nii.gz", "m_registered_copy.nii.gz"]


def test_a_result_alone_is_worked_on(toy: Run, scans: list[Path], tmp_path: Path) -> None:
    results = toy("run", "double", *scans).paths
    again = toy("run", "double", *results)
    assert again.code == 0, again.err
    assert [path.name for path in again.paths] == ["anna_double_double.nii.gz", "ben_double_double.nii.gz"]
    piped = toy("run", "double", "--overwrite", input=f"{results[0]}\n")
    assert [path.name for path in piped.paths] == ["anna_double_double.nii.gz"]


def test_labels_beside_their_image_are_not_another_case(toy: Run, scans: list[Path]) -> None:
    labels = toy("run", "halves", *scans).paths
    both = toy("run", "measure", *scans, *labels)
    assert both.code == 0, both.err
    assert [path.name for path in both.paths] == ["anna_class.tsv", "ben_class.tsv"]
    assert [path.name for path in toy("run", "measure", *labels).paths] == ["anna_dseg_class.tsv", "ben_dseg_class.tsv"]


def test_a_group_does_not_hold_its_own_result(toy: Run, scans: list[Path]) -> None:
    first = toy("run", "merge", *scans, "--json").records[0]
    again = toy("run", "merge", *globbed(scans[0].parent), "--overwrite", "--json").records[0]
    assert again["Sources"] == first["Sources"] == [str(path) for path in scans]


def test_records_that_name_their_inputs_are_meant(toy: Run, scans: list[Path]) -> None:
    (result,) = toy("run", "double", scans[0]).paths
    line = json.dumps({"path": str(result), "inputs": {"mask": str(scans[1])}})
    done = toy("run", "double", input=f"{scans[0]}\n{line}\n", env={"MEDKIT_OVERWRITE": "1"})
    assert [path.name for path in done.paths] == ["anna_double.nii.gz", "anna_double_double.nii.gz"]


def test_a_dry_run_leaves_out_the_same(toy: Run, scans: list[Path]) -> None:
    assert toy("run", "double", *scans).code == 0
    done = toy("run", "double", *globbed(scans[0].parent), "--skip-existing", "--dry-run")
    assert done.err.count("would keep") == 2
    assert "would run" not in done.err


def test_names_of_bids(toy: Run, scan: Make, tmp_path: Path) -> None:
    fixed = scan("tpl-MNI_T1w.nii.gz")
    moving = scan("in/sub-1/anat/sub-1_T1w.nii.gz")
    words = ("run", "align", "--reference", fixed)
    first = toy(*words, moving)
    found = globbed(moving.parent, "*")
    assert len(found) == 5
    second = toy(*words, *found, "--skip-existing")
    assert second.paths == first.paths
    assert "4 inputs are results" in second.err


def test_folders_of_raw_scans_are_not_looked_through(toy: Run, blob: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from medkit.run import arrivals

    looked = []
    listed = arrivals.os.listdir
    monkeypatch.setattr(arrivals.os, "listdir", lambda place: looked.append(str(place)) or listed(place))
    scans = [blob(f"in/sub-{n}/anat/sub-{n}_T1w.nii.gz") for n in (1, 2)]
    assert toy("run", "pair", *scans).code == 0
    assert not [place for place in looked if "anat" in place]
