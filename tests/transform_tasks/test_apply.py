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


def moved(folder: Path, path: Path, *words: object) -> tuple[np.ndarray, dict[str, object]]:
    """The result on a grid of 2 mm that is shifted by 0.74 mm along each axis, and the record."""
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    grid[:3, 3] = 0.74
    reference = folder / "shifted.nii.gz"
    nib.save(nib.Nifti1Image(np.arange(12 * 14 * 16, dtype=np.int16).reshape(12, 14, 16), grid), reference)
    out = folder / f"{path.parent.name}_{path.name.split('.')[0]}_out.nii.gz"
    done = medkit("transform", "apply", path, "--reference", reference, "--json", "-o", out, *words)
    assert done.returncode == 0, done.stderr
    return np.asarray(nib.load(out).dataobj), json.loads(done.stdout)


@pytest.mark.parametrize("name", ["aseg.nii.gz", "x.seg.nii.gz", "labelsTr/a.nii.gz", "intent.nii.gz"])
def test_no_number_is_made_up(folder: Path, name: str) -> None:
    image = nib.load(folder / "box_dseg.nii.gz")
    if name.startswith("intent"):
        image.header.set_intent("label")
    (folder / name).parent.mkdir(exist_ok=True)
    nib.save(image, folder / name)
    values, record = moved(folder, folder / name)
    assert np.unique(values).tolist() == [0, 7]
    assert record["kind"] == "labels"


def test_other_images_that_look_like_labels_are_warned_about(folder: Path) -> None:
    nib.save(nib.load(folder / "box_dseg.nii.gz"), folder / "atlas.nii.gz")
    _, record = moved(folder, folder / "atlas.nii.gz")
    assert "whose numbers are blended" in str(record["medkit"])
    assert "numbers" not in str(moved(folder, folder / "ref.nii.gz")[1]["medkit"])


def test_fractions_are_no_labels(folder: Path) -> None:
    """A map of probabilities is often called `x_seg`, too."""
    voxels = np.random.default_rng(0).uniform(0, 1, (12, 14, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0])), folder / "x_seg.nii.gz")
    _, record = moved(folder, folder / "x_seg.nii.gz")
    assert record["kind"] == "image"
    assert "holds fractions" in str(record["medkit"])


def test_outside(folder: Path) -> None:
    ct = np.full((12, 14, 16), -1000, np.int16)
    ct[3:9, 3:9, 3:9] = 30
    nib.save(nib.Nifti1Image(ct, np.diag([2.0, 2.0, 2.0, 1.0])), folder / "ct.nii.gz")
    nib.save(nib.Nifti1Image(ct, np.diag([2.0, 2.0, 2.0, 1.0])), folder / "again.nii.gz")
    far = ("--transform", folder / "x.tfm")
    assert moved(folder, folder / "ct.nii.gz", *far)[0].min() == -1000
    assert (moved(folder, folder / "ct.nii.gz", *far, "--overwrite")[0][-1] == -1000).all()
    values, record = moved(folder, folder / "again.nii.gz", *far, "--outside", -3000)
    assert (values[-1] == -3000).all()
    assert "'outside': -3000" in str(record["medkit"])
