"""`medkit run register --field-spacing warp`: fields of fewer points, which are the same map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - as all its users call it
import torch
from medkit_register.deformable import Warp
from medkit_register.field_grids import warp_grid
from medkit_register.fields import backward_field, forward_field
from medkit_register.inversion import invert
from medkit_register.warp import Lattice

from medkit.space import Grid, apply_affine

Run = Callable[..., "Outcome"]  # noqa: F821
TURN = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1.0]])


def grid(shape: tuple[int, int, int], columns: np.ndarray, start: tuple[float, float, float]) -> Grid:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, start
    return Grid(shape, affine)


FIXED = {
    "as the warp": grid((40, 44, 36), np.diag([1.0, 1, 1]), (-20, -22, -18)),
    "flipped, other axes, thick slices": grid(
        (44, 9, 40), np.array([[0, 0, -1.0], [1.0, 0, 0], [0, 4.0, 0]]), (19, -22, -16)
    ),
    "turned": grid((40, 44, 36), TURN, (-14, -26, -18)),
}


@pytest.fixture(scope="module")
def warp() -> Warp:
    """A smooth warp of up to about 3 mm on points 2 mm apart, after an affine map."""
    lattice = Lattice((20, 22, 18), np.diag([2.0, 2, 2, 1]) + np.array([[0, 0, 0, v] for v in (-19.3, -21, -17, 0)]))
    x, y, z = np.meshgrid(*[np.linspace(-2, 2, n) for n in lattice.shape], indexing="ij")
    field = torch.from_numpy(np.stack([np.sin(y), np.cos(z + x), np.sin(x) * np.cos(y)]).astype(np.float32))
    matrix = np.eye(4)
    matrix[:3, :3] = TURN @ np.diag([1.05, 0.97, 1.0])
    matrix[:3, 3] = (3, -2, 1)
    return Warp(matrix, lattice, field, invert(field), torch.arange(field[0].numel()), (), "lncc")


@pytest.mark.parametrize("name", [n for n in FIXED if n != "turned"])
def test_a_parallel_field_is_the_same_map(warp: Warp, name: str) -> None:
    fixed = FIXED[name]
    full, coarse = (forward_field(warp, fixed, fixed, coarse=coarse) for coarse in (False, True))
    assert coarse.field.size < full.field.size / 3
    assert (coarse.from_grid, coarse.to_grid) == (full.from_grid, full.to_grid)
    voxels = np.argwhere(np.ones(fixed.shape))[::7]
    points = apply_affine(fixed.affine, voxels)
    assert np.abs(full.map_points(points) - points).max() > 3
    np.testing.assert_allclose(coarse.map_points(points), full.map_points(points), atol=0.01)


def test_fields_that_are_not_parallel_are_close(warp: Warp) -> None:
    fixed = FIXED["turned"]
    full, coarse = (forward_field(warp, fixed, fixed, coarse=coarse) for coarse in (False, True))
    points = apply_affine(fixed.affine, np.argwhere(np.ones(fixed.shape))[::7])
    apart = np.linalg.norm(coarse.map_points(points) - full.map_points(points), axis=1)
    assert apart.mean() < 0.05
    assert apart.max() < 0.4
    back = backward_field(warp, coarse, fixed, coarse=True)
    inner = points[np.abs(points).max(axis=1) < 12]
    missed = np.linalg.norm(back.map_points(full.map_points(inner)) - inner, axis=1)
    assert missed.max() < 0.3
    assert missed.mean() < 0.05


@pytest.mark.parametrize("name", FIXED)
def test_the_grid_covers_every_voxel(warp: Warp, name: str) -> None:
    fixed = FIXED[name]
    found = warp_grid(warp.lattice, fixed)
    corners = np.array(list(np.ndindex(2, 2, 2))) * np.array(fixed.shape) - 0.5
    index = apply_affine(np.linalg.inv(found.affine) @ fixed.affine, corners)
    assert index.min() > -0.5 - 1e-9
    assert (index < np.array(found.shape) - 0.5 + 1e-9).all()
    np.testing.assert_allclose(found.spacing, np.maximum(fixed.spacing, 2), atol=1e-9)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of 5 mm, and the same one bent and moved."""
    folder = tmp_path_factory.mktemp("scans")
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (32, 36, 30)], indexing="ij"))
    for name, bend, shift in (("f", 0.0, 0.0), ("m", 0.08, 4.0)):
        a, b, c = x + bend * np.sin(2.5 * x[[1, 2, 0]] + 0.4)
        head = np.where(1.6 * a**2 + 1.1 * b**2 + 1.3 * c**2 < 0.7, 500, 0) * (
            1 + 0.5 * np.sin(5 * a + 1) * np.sin(6 * b) * np.sin(4 * c)
        )
        affine = np.diag([5.0, 5, 5, 1])
        affine[0, 3] = shift
        nibabel.Nifti1Image(head.astype(np.int16), affine).to_filename(folder / f"{name}.nii.gz")
    return folder


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj).astype(float)


def test_what_is_made_with_such_a_field_is_the_same(toy: Run, scans: Path, tmp_path: Path) -> None:
    fixed, moving = scans / "f.nii.gz", scans / "m.nii.gz"
    words = ("run", "register", "--fixed", fixed, moving, "--quality", "fast", "--json")
    made = {}
    for spacing in ("image", "warp"):
        done = toy(
            *(*words, "--field-spacing", spacing, "-o", tmp_path / spacing), env={"TOY_PLUGINS": "medkit_register"}
        )
        assert done.code == 0, done.err
        (made[spacing],) = done.records
    assert made["warp"]["medkit"]["arguments"]["field_spacing"] == "warp"
    assert "field_spacing" not in made["image"]["medkit"]["arguments"]
    field = {spacing: tmp_path / spacing / "m_transform.nii.gz" for spacing in made}
    assert nibabel.load(field["warp"]).header.get_zooms()[:3] == (10.0, 10.0, 10.0)
    images = [voxels(tmp_path / spacing / "m_registered.nii.gz") for spacing in made]
    assert np.abs(images[0] - images[1]).max() <= 2

    # the same image by medkit, by ITK, after a composition and an inversion
    (tmp_path / "identity.tfm").write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 1 0 0 0\nFixedParameters: 0 0 0\n"
    )
    composed, inverse = tmp_path / "composed.nii.gz", tmp_path / "inverse.nii.gz"
    for command in (
        ("compose", field["warp"], tmp_path / "identity.tfm", "-o", composed, "--reference", fixed),
        ("invert", field["warp"], "-o", inverse, "--reference", moving),
    ):
        done = toy("transform", *command)
        assert done.code == 0, done.err
    for number, chosen in enumerate(
        (("--transform", field["warp"]), ("--transform", composed), ("--inverse-transform", inverse))
    ):
        out = tmp_path / f"applied_{number}.nii.gz"
        done = toy("transform", "apply", moving, "--reference", fixed, *chosen, "-o", out)
        assert done.code == 0, done.err
        assert np.abs(voxels(out) - images[0]).mean() < (0.2 if number < 2 else 1.5)
    read = sitk.DisplacementFieldTransform(sitk.ReadImage(str(field["warp"]), sitk.sitkVectorFloat64))
    a, b = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (fixed, moving))
    theirs = sitk.GetArrayFromImage(sitk.Resample(b, a, read, sitk.sitkLinear, 0.0)).T
    assert np.abs(theirs - images[0]).max() <= 2


def test_there_are_no_fields_without_a_warp(toy: Run, scans: Path) -> None:
    done = toy(
        *("run", "register", "--fixed", scans / "f.nii.gz", scans / "m.nii.gz", "--type", "rigid"),
        *("--field-spacing", "warp"),
        env={"TOY_PLUGINS": "medkit_register"},
    )
    assert done.code == 2
    assert "--field-spacing: takes --type deformable or joint, not rigid" in done.err
