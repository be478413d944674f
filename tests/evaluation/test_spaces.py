"""Results in another space than their reference are refused, instead of scored with 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

Run = Callable[..., "Outcome"]  # noqa: F821


def write(path: Path, data: np.ndarray, offset: tuple[float, float, float], step: float = 1.0) -> Path:
    path.parent.mkdir(exist_ok=True)
    affine = np.diag([step, step, step, 1.0])
    affine[:3, 3] = offset
    nib.Nifti1Image(data, affine).to_filename(path)
    return path


def boxes(low: int, high: int, labels: int = 1, size: int = 24) -> np.ndarray:
    """Labels side by side between two corners."""
    data = np.zeros((size,) * 3, np.uint8)
    cuts = np.linspace(low, high, labels + 1).astype(int)
    for number, (start, stop) in enumerate(pairwise(cuts), start=1):
        data[start:stop, low:high, low:high] = number
    return data


@pytest.mark.parametrize("far", [200.0, 20.0])
def test_labels_outside_the_other_field_of_view_are_refused(toy: Run, tmp_path: Path, far: float) -> None:
    reference = write(tmp_path / "truth/a_dseg.nii.gz", boxes(2, 8), (0, 0, 0))
    result = write(tmp_path / "out/a_dseg.nii.gz", boxes(10, 20), (far, 0, 0))
    done = toy("evaluate", result, reference, "--resample")
    assert done.code == 3
    assert done.out == ""
    assert "expected the space of" in done.err
    assert "none of the labelled voxels of a_dseg.nii.gz lies inside" in done.err


def test_several_labels_that_miss_all_others_are_in_another_space(toy: Run, tmp_path: Path) -> None:
    reference = write(tmp_path / "truth/a_dseg.nii.gz", boxes(2, 11, 3), (0, 0, 0))
    result = write(tmp_path / "out/a_dseg.nii.gz", boxes(13, 22, 3), (0.5, 0, 0))
    done = toy("evaluate", result, reference, "--resample")
    assert done.code == 3
    assert "no labelled voxel in common" in done.err
    same_grid = write(tmp_path / "same/a_dseg.nii.gz", boxes(13, 22, 3), (0, 0, 0))
    done = toy("evaluate", same_grid, reference)
    assert done.code == 0
    assert "no labelled voxel in common" in done.err


def test_a_missed_lesion_is_a_finding(toy: Run, tmp_path: Path) -> None:
    reference = write(tmp_path / "truth/a_dseg.nii.gz", boxes(2, 8), (0, 0, 0))
    result = write(tmp_path / "out/a_dseg.nii.gz", boxes(14, 20), (0.5, 0, 0))
    done = toy("evaluate", result, reference, "--resample", "--json")
    assert done.code == 0, done.err
    (case,) = json.loads(done.out)["cases"]
    assert case["rows"][0]["dice"] == 0


def test_a_small_part_in_common_is_named(toy: Run, tmp_path: Path) -> None:
    reference = write(tmp_path / "truth/a_dseg.nii.gz", boxes(2, 22), (0, 0, 0))
    result = write(tmp_path / "out/a_dseg.nii.gz", boxes(2, 22), (14, 0, 0))
    done = toy("evaluate", result, reference, "--resample")
    assert done.code == 0
    assert "of the labelled voxels of a_dseg.nii.gz lie inside" in done.err


def test_the_same_labels_on_a_finer_grid_are_compared(toy: Run, tmp_path: Path) -> None:
    coarse, fine = boxes(4, 20, 4), np.repeat(np.repeat(np.repeat(boxes(4, 20, 4), 2, 0), 2, 1), 2, 2)
    reference = write(tmp_path / "truth/a_dseg.nii.gz", coarse, (0, 0, 0))
    result = write(tmp_path / "out/a_dseg.nii.gz", fine, (-0.25, -0.25, -0.25), 0.5)
    done = toy("evaluate", result, reference, "--resample", "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    (case,) = json.loads(done.out)["cases"]
    assert case["rows"][0]["dice"] == pytest.approx(1)


def test_images_elsewhere_are_refused(toy: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    reference = write(tmp_path / "truth/a.nii.gz", rng.random((16, 16, 16), np.float32), (0, 0, 0))
    result = write(tmp_path / "out/a.nii.gz", rng.random((16, 16, 16), np.float32), (16, 0, 0))
    done = toy("evaluate", result, reference, "--resample")
    assert done.code == 3
    assert "none of the voxels of a.nii.gz lies inside" in done.err
