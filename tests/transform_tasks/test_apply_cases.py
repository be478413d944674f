"""`medkit transform apply` over many inputs, each with files of its own: by `{id}` in a path, and by records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medkit.transforms.files import write_transform
from medkit.transforms.transform import AffineTransform

Run = Callable[..., "Outcome"]  # noqa: F821
SHIFTS = {"anna": 4.0, "ben": -4.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Labels of two persons with a box in the same place, a shift for each, and two references."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for name in ("labels", "scans", "reg"):
        (tmp_path / name).mkdir()
    for name, mm in SHIFTS.items():
        voxels = np.zeros((12, 14, 16), np.int16)
        voxels[4:7, 5:8, 6:9] = 7
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"labels/{name}_dseg.nii.gz")
        noise = np.random.default_rng(1).integers(1, 99, voxels.shape).astype(np.int16)
        nib.save(nib.Nifti1Image(noise, affine), tmp_path / f"scans/{name}.nii.gz")
        matrix = np.eye(4)
        matrix[0, 3] = mm
        write_transform(AffineTransform(matrix), tmp_path / f"reg/{name}_transform.tfm")
    return tmp_path


def start(path: Path) -> int:
    return int(np.argwhere(np.asarray(nib.load(path).dataobj) == 7)[:, 0].min())


def inputs(folder: Path) -> list[Path]:
    return [folder / f"labels/{name}_dseg.nii.gz" for name in SHIFTS]


def lines_of(folder: Path) -> str:
    """Return records that bring transform and reference of each person's labels."""
    lines = [
        json.dumps(
            {
                "path": str(folder / f"labels/{name}_dseg.nii.gz"),
                "inputs": {
                    "transform": str(folder / f"reg/{name}_transform.tfm"),
                    "reference": str(folder / f"scans/{name}.nii.gz"),
                },
            }
        )
        for name in SHIFTS
    ]
    return "\n".join(lines)


@pytest.mark.parametrize(("option", "sign"), [("--transform", 1), ("--inverse-transform", -1)])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_each_case_has_its_transform(toy: Run, folder: Path, option: str, sign: int, workers: str) -> None:
    if workers == "2" and sign == -1:
        pytest.skip("child processes once are enough")
    done = toy(
        *("transform", "apply", *inputs(folder), "--reference", folder / "scans/{id}.nii.gz", "--json"),
        *(option, folder / "reg/{id}_transform.tfm", "-o", folder / "out", "--workers", workers),
    )
    assert done.code == 0, done.err
    found = {Path(r["path"]).name.split("_")[0]: r for r in done.records}
    for name, mm in SHIFTS.items():
        assert start(Path(found[name]["path"])) == 4 - sign * mm / 2
        entries = found[name]["medkit"]["inputs"]
        role = option[2:].replace("-", "_") + "_1"
        assert entries[role]["path"] == str(folder / f"reg/{name}_transform.tfm")
        assert found[name]["SpatialReference"] == str(folder / f"scans/{name}.nii.gz")


def test_another_transform_makes_a_result_outdated(toy: Run, folder: Path) -> None:
    words = ("transform", "apply", *inputs(folder), "--reference", folder / "scans/anna.nii.gz", "--skip-existing")
    words += ("--transform", folder / "reg/{id}_transform.tfm", "-o", folder / "out", "--json")
    assert toy(*words).code == 0
    (folder / "reg/ben_transform.tfm").write_bytes((folder / "reg/anna_transform.tfm").read_bytes())
    kept = {Path(r["path"]).name.split("_")[0]: r["medkit"]["skipped"] for r in toy(*words).records}
    assert kept == {"anna": True, "ben": False}


def test_a_case_without_a_transform_fails_alone(toy: Run, folder: Path) -> None:
    (folder / "reg/ben_transform.tfm").unlink()
    done = toy(
        *("transform", "apply", *inputs(folder), "--reference", folder / "scans/anna.nii.gz"),
        *("--transform", folder / "reg/{id}_transform.tfm", "-o", folder / "out"),
    )
    assert done.code == 1
    assert [path.name for path in done.paths] == ["anna_dseg_transformed.nii.gz"]
    expected = f"{folder}/reg/ben_transform.tfm"
    assert f"ben_dseg.nii.gz: no file named {{id}}_transform.tfm fits its name, as {expected} would; there" in done.err
    assert "{id} is anna" in done.err


def test_a_record_whose_transform_is_missing_fails_alone(toy: Run, folder: Path) -> None:
    (folder / "reg/ben_transform.tfm").unlink()
    done = toy("transform", "apply", "-o", folder / "out", input=lines_of(folder))
    assert done.code == 1
    assert [path.name for path in done.paths] == ["anna_dseg_transformed.nii.gz"]
    assert f"{folder}/reg/ben_transform.tfm" in done.err


def test_a_record_of_a_transform_brings_itself(toy: Run, folder: Path) -> None:
    """What `register --outputs transform --json` prints: the image that it was made from is moved by it."""
    lines = [
        json.dumps({"path": str(folder / f"reg/{name}_transform.tfm"), "Sources": [str(path)], "kind": "transform"})
        for name, path in zip(SHIFTS, inputs(folder), strict=True)
    ]
    done = toy(
        *("transform", "apply", "--reference", folder / "scans/anna.nii.gz", "--json", "-o", folder / "out"),
        input="\n".join(lines),
    )
    assert done.code == 0, done.err
    assert [start(Path(record["path"])) for record in done.records] == [2, 6]
    assert {record["kind"] for record in done.records} == {"labels"}


def test_records_bring_their_transforms(toy: Run, folder: Path) -> None:
    done = toy("transform", "apply", "-o", folder / "out", input=lines_of(folder))
    assert done.code == 0, done.err
    assert [start(path) for path in done.paths] == [2, 6]
    # those of the record come first, and the options' after them
    again = toy(
        *("transform", "apply", "--inverse-transform", folder / "reg/anna_transform.tfm", "-o", folder / "again"),
        input=lines_of(folder),
    )
    assert [start(path) for path in again.paths] == [4, 8]
