"""Grids: geometry, digests, ITK's frame and back."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from medkit.space import Grid, lps_affine, lps_parts

OBLIQUE = np.array([[-1.5, 0, 0, 4], [0, 0.24, 1.6, -3], [0, -0.32, 1.2, 5], [0, 0, 0, 1.0]])


@pytest.fixture
def grid() -> Grid:
    return Grid((6, 7, 8), OBLIQUE)


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, medkit.space, medkit.images.image; "
    code += "print([m for m in ('torch', 'nibabel', 'itk') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_grid_geometry(grid: Grid) -> None:
    np.testing.assert_allclose(grid.spacing, [1.5, 0.4, 2.0])
    np.testing.assert_allclose(grid.centre, (OBLIQUE @ [2.5, 3, 3.5, 1])[:3])
    assert not grid.is_planar
    assert Grid((6, 1, 8), OBLIQUE).is_planar


def test_grids_match_exactly_or_not_at_all(grid: Grid) -> None:
    assert grid.matches(Grid((6, 7, 8), OBLIQUE))
    assert not grid.matches(Grid((6, 7, 9), OBLIQUE))
    assert not grid.matches(Grid((6, 7, 8), OBLIQUE + 1e-9))


def test_digest_names_a_grid(grid: Grid) -> None:
    moved = OBLIQUE.copy()
    moved[0, 3] += 0.001
    assert len(grid.digest()) == 16
    assert grid.digest() == Grid((6, 7, 8), OBLIQUE + 1e-9).digest()
    assert grid.digest() == Grid((6, 7, 8), OBLIQUE.astype(np.float32)).digest()
    assert len({grid.digest(), Grid((6, 7, 8), moved).digest(), Grid((6, 8, 7), OBLIQUE).digest()}) == 3


@pytest.mark.parametrize("dims", [2, 3])
def test_lps_parts_are_undone(dims: int) -> None:
    affine = OBLIQUE if dims == 3 else np.array([[0, 2.0, 0, 1], [-3, 0, 0, 2], [0, 0, 1, 0], [0, 0, 0, 1]])
    directions, spacing, origin = lps_parts(affine, dims)
    np.testing.assert_allclose(lps_affine(directions, spacing, origin), affine, atol=1e-12)


def test_the_volume_of_a_sheared_voxel_is_its_determinant() -> None:
    tilted = np.diag([2.0, 2, 3, 1])
    tilted[1, 2] = 1.4
    assert Grid((4, 4, 4), tilted).voxel_volume == pytest.approx(12)
    assert Grid((4, 4, 4), tilted).is_sheared
    turned = np.array([[0, -2.0, 0, 5], [1.2, 0, 1.6, 0], [1.6, 0, -1.2, 0], [0, 0, 0, 1]])
    assert not Grid((4, 4, 4), turned).is_sheared
    assert Grid((4, 4, 4), turned).voxel_volume == pytest.approx(8)
