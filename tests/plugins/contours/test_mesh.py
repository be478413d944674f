"""Surfaces of structures: their measures, their frame, and the files."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import trimesh
from outcome import Outcome

Run = Callable[..., Outcome]
CENTRE = np.array([31.0, -22.0, 47.0])
RADIUS = 14.0
GRIDS = {
    "isotropic": np.diag([1.0, 1.0, 1.0]),
    "anisotropic and flipped": np.diag([-0.9, 1.2, 2.0]),
    "left-handed and permuted": np.array([[0, 1.1, 0], [0.8, 0, 0], [0, 0, 1.5]]),
}


def write_sphere(path: Path, steps: np.ndarray, cavity: float = 0.0) -> Path:
    """A ball of label 7 around CENTRE, RAS+ mm, on a grid with these steps."""
    sizes = np.ceil(36 / np.linalg.norm(steps, axis=0)).astype(int)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps, CENTRE - steps @ ((sizes - 1) / 2)
    places = nibabel.affines.apply_affine(affine, np.indices(sizes).reshape(3, -1).T)
    apart = np.linalg.norm(places - CENTRE, axis=1).reshape(sizes)
    nibabel.save(nibabel.Nifti1Image(((apart < RADIUS) & (apart >= cavity)).astype(np.uint8) * 7, affine), path)
    return path


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("form", ["ply", "stl"])
def test_a_ball(name: str, form: str, medkit: Run, tmp_path: Path) -> None:
    path = write_sphere(tmp_path / "ball_dseg.nii.gz", GRIDS[name])

    done = medkit("run", "contours", path, "--mesh-format", form, "--json")

    assert done.code == 0, done.err
    mesh = trimesh.load(tmp_path / f"ball_dseg_mesh.{form}")
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.01)  # positive: the faces look outwards
    assert mesh.area == pytest.approx(4 * np.pi * RADIUS**2, rel=0.02)
    np.testing.assert_allclose(mesh.center_mass, CENTRE, atol=0.05)
    assert np.abs(np.linalg.norm(mesh.vertices - CENTRE, axis=1) - RADIUS).max() < np.abs(GRIDS[name]).max() / 2
    (row,) = csv.DictReader((tmp_path / "ball_dseg_mesh.tsv").read_text().splitlines(), delimiter="\t")
    assert (row["index"], row["pieces"]) == ("7", "1")
    assert float(row["volume_mm3"]) == pytest.approx(mesh.volume, rel=1e-4)
    (own,) = done.records[0]["medkit"]["metrics"]["structures"].values()
    assert own["mesh_volume_mm3"] == pytest.approx(own["volume_mm3"], rel=1e-3)


def test_files_state_their_frame(medkit: Run, tmp_path: Path) -> None:
    """As 3D Slicer writes and reads it; without it Slicer would mirror the surface."""
    path = write_sphere(tmp_path / "ball_dseg.nii.gz", GRIDS["isotropic"])
    for form in ("ply", "stl"):
        assert medkit("run", "contours", path, "--mesh-format", form, "--overwrite").code == 0

    header = (tmp_path / "ball_dseg_mesh.ply").read_bytes().split(b"end_header")[0].decode()
    assert "comment SPACE=RAS" in header.splitlines()
    assert "property int label" in header.splitlines()
    assert b"SPACE=RAS" in (tmp_path / "ball_dseg_mesh.stl").read_bytes()[:80]


def test_a_cavity_is_not_part_of_the_volume(medkit: Run, tmp_path: Path) -> None:
    path = write_sphere(tmp_path / "ball_dseg.nii.gz", GRIDS["isotropic"], cavity=8.0)

    medkit("run", "contours", path, "--mesh")

    (row,) = csv.DictReader((tmp_path / "ball_dseg_mesh.tsv").read_text().splitlines(), delimiter="\t")
    assert row["pieces"] == "2"
    assert float(row["volume_mm3"]) == pytest.approx(4 / 3 * np.pi * (RADIUS**3 - 8.0**3), rel=0.01)
    assert float(row["area_mm2"]) == pytest.approx(4 * np.pi * (RADIUS**2 + 8.0**2), rel=0.02)


def test_a_single_voxel_keeps_its_volume(medkit: Run, tmp_path: Path) -> None:
    labels = np.zeros((5, 5, 5), np.uint16)
    labels[2, 2, 2], labels[4, 4, 4] = 1, 2000
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "a_dseg.nii.gz")

    done = medkit("run", "contours", tmp_path / "a_dseg.nii.gz", "--mesh", "--json")

    found = done.records[0]["medkit"]["metrics"]["structures"]
    assert [one["mesh_volume_mm3"] for one in found.values()] == pytest.approx([6, 6])
