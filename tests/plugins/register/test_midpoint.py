"""`medkit run register --midpoint`: a space in which neither scan is favoured."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from maps import turned
from medkit_register.inversion import invert
from medkit_register.midpoint import half_warp, mean_matrix, mean_warp, middle_grid, root
from medkit_register.warp import compose, indices, smooth_field

from medkit.errors import MedkitError
from medkit.images.phantom import make_image
from medkit.space import Grid, apply_affine
from medkit.testing import records, run_medkit
from medkit.transforms.files import read_transform

SHAPE = (20, 24, 18)
SPACINGS = (((44, 50, 40), (3.4, 3.1, 3.8)), ((50, 40, 44), (149.6 / 50, 3.8, 155 / 44)))


def wavy(seed: int = 0, size: float = 2.0) -> torch.Tensor:
    """A smooth field (3, I, J, K) of about `size` lattice steps that fades towards the borders."""
    noise = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(seed))
    field = smooth_field(noise, 3.0)
    for axis, n in enumerate(SHAPE, start=1):
        fade = torch.sin(torch.linspace(0, math.pi, n))
        field *= fade.reshape([-1 if a == axis else 1 for a in range(4)])
    return field * (size / field.abs().max())


def after(second: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """The field of `first`, then `second`."""
    points = indices(SHAPE).reshape(3, -1)
    return compose(second, first, points, torch.arange(points.shape[1]))


def test_the_root_of_a_map_taken_twice_is_the_map() -> None:
    matrix = turned(30, (40, -20, 10)) @ np.diag([1.1, 0.9, 1.2, 1])
    np.testing.assert_allclose(root(matrix) @ root(matrix), matrix, atol=1e-9)
    np.testing.assert_allclose(root(turned(30, (0, 0, 0))), turned(15, (0, 0, 0)), atol=1e-9)


@pytest.mark.parametrize("matrix", [turned(180, (5, 0, 0)), np.diag([-1.0, 1, 1, 1])], ids=["half a turn", "mirror"])
def test_there_is_not_always_a_middle(matrix: np.ndarray) -> None:
    with pytest.raises(MedkitError, match="no space lies half-way"):
        root(matrix)


def test_the_mean_of_two_maps_does_not_know_their_order() -> None:
    there, back = turned(20, (5, 3, 1)), np.linalg.inv(turned(24, (4, 6, 2)))
    mean = mean_matrix(there, back)
    np.testing.assert_allclose(mean, np.linalg.inv(mean_matrix(back, there)), atol=1e-3)
    np.testing.assert_allclose(mean[:3, :3], turned(22, (0, 0, 0))[:3, :3], atol=1e-9)


def test_half_of_a_warp_taken_twice_is_the_warp() -> None:
    field = wavy(size=4.0)
    half = half_warp(field)
    assert float((after(half, half) - field).abs().mean()) < 0.01
    assert float((field / 2 - half).abs().max()) > 0.1  # half of the displacement is not it


def test_the_mean_of_two_warps_does_not_know_their_order() -> None:
    there, back = wavy(1, 3.0), invert(wavy(1, 3.0) + wavy(2, 1.0))
    mean = mean_warp(there, back)
    left = after(mean, mean_warp(back, there))
    apart = after(there, back)
    assert float(left.abs().mean()) < 0.1 * float(apart.abs().mean())
    between = (there + invert(back)) / 2
    assert float((mean - between).abs().mean()) < 0.2 * float((there - between).abs().mean())


def test_the_grid_in_the_middle() -> None:
    fixed = Grid((10, 20, 30), np.diag([2.0, 1, 1, 1]))
    twisted = np.array([[0, 0, -1.5, 40], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])  # axes y, z, -x
    moving = Grid((20, 33, 12), turned(20, (8, 0, 0)) @ twisted)
    half = root(turned(20, (8, 0, 0)))
    grid = middle_grid(fixed, moving, half)
    other = middle_grid(moving, fixed, np.linalg.inv(half))
    assert grid.shape == other.shape == (14, 20, 33)
    np.testing.assert_allclose(grid.affine, other.affine, atol=1e-9)
    np.testing.assert_allclose(grid.spacing, [1.5, 1, 1])
    np.testing.assert_allclose(grid.affine[:3, :3], turned(10, (0, 0, 0))[:3, :3] * grid.spacing, atol=1e-9)


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans of one scene on unlike grids, the second turned."""
    folder = tmp_path_factory.mktemp("visits")
    for number, ((shape, spacing), axes) in enumerate(zip(SPACINGS, ("RAS", "LIP"), strict=True), start=1):
        make_image(folder / f"visit{number}.nii.gz", shape, spacing, axes, seed=3)
    second = nib.load(folder / "visit2.nii.gz")
    moved = nib.Nifti1Image(np.asarray(second.dataobj), turned(14, (6, -9, 4)) @ second.affine)
    nib.save(moved, folder / "visit2.nii.gz")
    return folder


def halfway(visits: Path, fixed: int, moving: int, output: Path, *more: str) -> dict:
    """The record of `moving` and `fixed` brought to the middle."""
    words = ["run", "register", "--midpoint", "--fixed", str(visits / f"visit{fixed}.nii.gz")]
    done = run_medkit([*words, str(visits / f"visit{moving}.nii.gz"), "--json", "-o", str(output), *more])
    assert done.returncode == 0, done.stderr
    (record,) = records(done.stdout)
    return record


def files(record: dict) -> dict[str, Path]:
    return {role: Path(output["path"]) for role, output in record["medkit"]["outputs"].items()}


def inner_points(path: Path) -> np.ndarray:
    """(N, 3) RAS+ mm, points of the inner part of an image."""
    image = nib.load(path)
    low, high = np.array(image.shape) * 0.3, np.array(image.shape) * 0.7
    return apply_affine(image.affine, np.random.default_rng(0).uniform(low, high, (200, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tolerance"), [("rigid", 1e-3), ("deformable", 0.4)])
def test_the_two_scans_may_change_places(visits: Path, tmp_path: Path, kind: str, tolerance: float) -> None:
    first = files(halfway(visits, 1, 2, tmp_path / "a", "--type", kind, "--quality", "fast"))
    second = files(halfway(visits, 2, 1, tmp_path / "b", "--type", kind, "--quality", "fast"))
    points = inner_points(visits / "visit1.nii.gz")
    to_middle = read_transform(first["fixed_inverse_transform"]).map_points(points)
    np.testing.assert_allclose(
        to_middle, read_transform(second["inverse_transform"]).map_points(points), atol=tolerance
    )
    middle = nib.load(first["image"])
    np.testing.assert_allclose(middle.affine, nib.load(second["image"]).affine, atol=1e-3)
    assert middle.shape == nib.load(first["fixed_image"]).shape == nib.load(second["image"]).shape
    there = read_transform(first["transform"]).map_points(to_middle)
    assert np.linalg.norm(there - apply_affine(turned(14, (6, -9, 4)), points), axis=1).mean() < 0.7
    inverse = read_transform(first["fixed_transform"]).map_points(to_middle)
    np.testing.assert_allclose(inverse, points, atol=0.1)


def test_both_images_are_alike_in_the_middle(visits: Path, tmp_path: Path) -> None:
    record = halfway(visits, 1, 2, tmp_path, "--type", "rigid")
    metrics = record["medkit"]["metrics"]
    assert metrics["after"]["ncc"] > 0.98 > 0.95 > metrics["before"]["ncc"]
    images = [nib.load(files(record)[role]).get_fdata() for role in ("image", "fixed_image")]
    assert np.corrcoef(*(image.ravel() for image in images))[0, 1] == pytest.approx(metrics["after"]["ncc"], abs=0.01)
    assert record["medkit"]["arguments"]["midpoint"] is True
    assert record["medkit"]["grids"]["to"] != record["medkit"]["grids"]["from"]


def test_bids_names_say_midpoint(visits: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        folder = tmp_path / f"in/sub-01/ses-{number}/anat"
        folder.mkdir(parents=True)
        (folder / f"sub-01_ses-{number}_T1w.nii.gz").symlink_to(visits / f"visit{number}.nii.gz")
    one, two = sorted((tmp_path / "in").rglob("*.nii.gz"))
    words = ["run", "register", "--midpoint", "--type", "rigid", "--fixed", str(one), str(two)]
    done = run_medkit([*words, "-o", str(tmp_path / "out")])
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert "sub-01_ses-2_space-midpoint_desc-registered_T1w.nii.gz" in names
    assert "sub-01_ses-2_space-midpoint_desc-fixed_T1w.nii.gz" in names
    assert "sub-01_ses-2_from-T1w_to-midpoint_mode-image_xfm.tfm" in names
    assert len({name for name in names if name.endswith("_xfm.tfm")}) == 4
