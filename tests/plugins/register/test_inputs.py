"""What `medkit run register` makes of fixed images of several frames and of masks that lie elsewhere."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medkit.images.phantom import make_image
from medkit.testing import run_medkit

SIZE = ((24, 28, 22), (7.0, 6.4, 8.0))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return make_image(tmp_path / "scan.nii.gz", *SIZE, seed=3)


def register(fixed: Path, moving: Path, *more: object) -> tuple[int, str]:
    words = ["run", "register", "--fixed", fixed, moving, "--type", "rigid", "-o", moving.parent / "out", *more]
    done = run_medkit([str(word) for word in words])
    return done.returncode, done.stderr


def test_frame_picks_one_of_the_fixed_image_too(scan: Path) -> None:
    image = nib.load(scan)
    voxels = np.asanyarray(image.dataobj)
    series = scan.with_name("series.nii.gz")
    nib.save(nib.Nifti1Image(np.stack([voxels[::-1], voxels], -1), image.affine), series)
    code, message = register(series, scan)
    assert (code, "series.nii.gz: expected one frame, got 2; pick one with --frame N (0 to 1)" in message) == (3, True)
    code, message = register(series, scan, "--frame", 2)
    assert "series.nii.gz: there is no frame 2: the file has the frames 0 to 1" in message
    code, message = register(scan, make_image(scan.with_name("other.nii.gz"), *SIZE, seed=4), "--frame", 1)
    assert "other.nii.gz: there is no frame 1: the file has one frame, 0" in message
    code, message = register(scan, series, "--frame", 1)
    assert code == 0, message
    code, message = register(series, scan, "--frame", 1)
    assert code == 0, message
    made = nib.load(scan.parent / "out" / "scan_registered.nii.gz")
    assert np.corrcoef(np.asanyarray(made.dataobj).ravel(), voxels.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("shift", [0, 900])
def test_a_mask_without_a_voxel_of_the_image_is_named(scan: Path, shift: float) -> None:
    image = nib.load(scan)
    elsewhere = image.affine.copy()
    elsewhere[0, 3] += shift
    mask = nib.Nifti1Image(np.full(image.shape, 1 if shift else 0, np.uint8), elsewhere)
    nib.save(mask, scan.with_name("region.nii.gz"))
    code, message = register(scan, scan, "--fixed-mask", scan.with_name("region.nii.gz"))
    assert code != 0
    assert "region.nii.gz: expected a mask that covers a part of the image, got none of its voxels" in message
