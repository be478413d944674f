"""`medkit transform apply` on files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medkit.space import Grid
from medkit.transforms.files import write_transform
from medkit.transforms.transform import AffineTransform


def medkit(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medkit", *map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def shift(x: float, y: float, z: float, start: str | None = None, end: str | None = None) -> AffineTransform:
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return AffineTransform(matrix, start, end)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Labels with one bright box, a reference on the same grid of 2 mm, and shifts as transforms."""
    voxels = np.zeros((12, 14, 16), np.int16)
    voxels[4:7, 5:8, 6:9] = 7
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "box_dseg.nii.gz")
    rng = np.random.default_rng(1)
    nib.save(nib.Nifti1Image(rng.integers(1, 99, voxels.shape).astype(np.int16), affine), tmp_path / "ref.nii.gz")
    write_transform(shift(4, 0, 0), tmp_path / "x.tfm")
    write_transform(shift(0, -2, 0), tmp_path / "y.tfm")
    return tmp_path


def corner(path: Path) -> list[int]:
    return np.argwhere(np.asarray(nib.load(path).dataobj) == 7).min(axis=0).tolist()


def test_the_transform_maps_reference_points_to_input_points(folder: Path) -> None:
    done = medkit(
        "transform", "apply", folder / "box_dseg.nii.gz", "--reference", folder / "ref.nii.gz",
        "--transform", folder / "x.tfm", "--json", "-o", folder / "out.nii.gz",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    # a reference point p shows what lies at p + 4 mm in the input: the box moves two voxels down the x axis
    assert corner(folder / "out.nii.gz") == [2, 5, 6]
    assert record["kind"] == "labels"
    assert record["SpatialReference"] == str(folder / "ref.nii.gz")
    assert record["medkit"]["inputs"]["transform_1"]["path"] == str(folder / "x.tfm")
    assert nib.load(folder / "out.nii.gz").get_data_dtype() == np.int16


def test_several_transforms_apply_in_the_order_given(folder: Path) -> None:
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])  # half a turn about z through (11, 13): shifts do not commute with it
    turn[:2, 3] = 22, 26
    write_transform(AffineTransform(turn), folder / "turn.tfm")
    for name, order in (("a", ("x", "turn")), ("b", ("turn", "x"))):
        given = [word for t in order for word in ("--transform", folder / f"{t}.tfm")]
        done = medkit(
            "transform", "apply", folder / "box_dseg.nii.gz", "--reference", folder / "ref.nii.gz", *given,
            "-o", folder / f"{name}.nii.gz",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    # shift first: the box goes from x voxels 4..6 to 2..4, the turn takes those to 7..9; turn first: 5..7, then 3..5
    assert corner(folder / "a.nii.gz")[0] == 7
    assert corner(folder / "b.nii.gz")[0] == 3


def test_transforms_whose_spaces_do_not_meet_are_refused(folder: Path) -> None:
    a, b, c = (Grid((4, 4, n), np.eye(4)).digest() for n in (4, 5, 6))
    write_transform(shift(1, 0, 0, start=b, end=a), folder / "first.tfm")
    write_transform(shift(1, 0, 0, start=c, end=c), folder / "second.tfm")
    done = medkit(
        "transform", "apply", folder / "box_dseg.nii.gz", "--reference", folder / "ref.nii.gz",
        "--transform", folder / "first.tfm", "--transform", folder / "second.tfm", "-o", folder / "out.nii.gz",
    )  # fmt: skip
    assert done.returncode != 0
    assert b in done.stderr
    assert c in done.stderr
    assert not (folder / "out.nii.gz").exists()


def test_linear_interpolation_of_labels_is_warned_about(folder: Path) -> None:
    done = medkit(
        "transform", "apply", folder / "box_dseg.nii.gz", "--reference", folder / "ref.nii.gz", "--interpolation",
        "linear", "--json", "-o", folder / "out.nii.gz",
    )  # fmt: skip
    assert any("blends the numbers" in w for w in json.loads(done.stdout)["medkit"]["warnings"])


def test_a_file_that_is_no_transform_is_named(folder: Path) -> None:
    (folder / "bad.tfm").write_text("hello\n")
    done = medkit(
        "transform", "apply", folder / "box_dseg.nii.gz", "--reference", folder / "ref.nii.gz",
        "--transform", folder / "bad.tfm", "-o", folder / "out.nii.gz",
    )  # fmt: skip
    assert done.returncode == 3
    assert "bad.tfm" in done.stderr
    assert "Traceback" not in done.stderr
