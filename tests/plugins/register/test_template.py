"""`medkit run template`: the average of a group in which no scan is favoured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from maps import turned
from medkit_register.averaging import sharpened
from medkit_register.choices import TemplateChoices
from medkit_register.deformable import Warp
from medkit_register.mean_maps import after_affine, centred, mean_field, mean_map, with_inverse
from medkit_register.warp import Lattice, compose, indices, smooth_field
from scipy.linalg import expm, logm

from medkit.errors import MedkitError
from medkit.images.image import Image
from medkit.images.phantom import make_image
from medkit.space import Grid, apply_affine
from medkit.testing import records, run_medkit
from medkit.transforms.files import read_transform

SHAPE = (20, 24, 18)
SCANS = (
    ("anna", (30, 34, 28), (5.0, 4.6, 5.4), "RAS", 0.0),
    ("ben", (34, 28, 30), (4.4, 5.6, 5.0), "LPI", 12.0),
    ("carl", (30, 34, 28), (5.0, 4.6, 5.4), "PIR", -9.0),
)


def warp(seed: int, size: float = 1.5) -> Warp:
    """A smooth warp of about `size` lattice steps that fades towards the borders."""
    field = smooth_field(torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(seed)), 3.0)
    for axis, n in enumerate(SHAPE, start=1):
        fade = torch.sin(torch.linspace(0, math.pi, n))
        field *= fade.reshape([-1 if a == axis else 1 for a in range(4)])
    field *= size / field.abs().max()
    lattice = Lattice(SHAPE, np.diag([2.0, 2, 2, 1]))
    return Warp(turned(5 * seed, (seed, 0, 0)), lattice, field, 0 * field, torch.arange(field[0].numel()), (), "lncc")


@pytest.mark.parametrize("stretch", [1.0, 1.2], ids=["rigid", "affine"])
def test_what_is_left_of_maps_after_their_mean_is_nothing(stretch: float) -> None:
    maps = [turned(a, (a, -a / 2, 3)) @ np.diag([stretch, 1, 1 / stretch, 1]) for a in (-30, 5, 40)]
    mean = mean_map(maps)
    left = np.mean([np.real(logm(m @ np.linalg.inv(mean))) for m in maps], axis=0)
    np.testing.assert_allclose(left, 0, atol=1e-8)
    np.testing.assert_allclose(mean, mean_map(maps[::-1]), atol=1e-7)
    if stretch == 1.0:
        np.testing.assert_allclose(mean[:3, :3] @ mean[:3, :3].T, np.eye(3), atol=1e-9)


def test_the_mean_of_maps_is_the_same_from_anywhere() -> None:
    maps = [turned(a, (a, 0, 3)) for a in (-30, 5, 40)]
    frame = expm(np.pad(np.random.default_rng(0).normal(size=(3, 4)) * 0.2, ((0, 1), (0, 0))))
    moved = [frame @ m @ np.linalg.inv(frame) for m in maps]
    np.testing.assert_allclose(mean_map(moved), frame @ mean_map(maps) @ np.linalg.inv(frame), atol=1e-7)


def test_half_a_turn_has_no_mean() -> None:
    with pytest.raises(MedkitError, match="turned by 180 degrees"):
        mean_map([np.eye(4), turned(180, (0, 0, 0))])


def test_warps_after_affine_their_mean_have_none() -> None:
    warps = [warp(seed) for seed in range(3)]
    before = float(mean_field(warps).abs().mean())
    after = float(mean_field(centred(warps)).abs().mean())
    assert after < 0.05 * before


def test_a_warp_after_affine_elsewhere_leads_to_the_same_points() -> None:
    first = warp(2)
    moved = after_affine(first, turned(20, (5, 0, 0)))
    np.testing.assert_allclose(moved.matrix @ moved.lattice.affine, first.matrix @ first.lattice.affine, atol=1e-9)
    assert moved.forward is first.forward
    both = with_inverse(first)
    points = indices(SHAPE).reshape(3, -1)
    back = compose(both.forward, both.backward, points, torch.arange(points.shape[1]))
    assert float(back[:, 4:-4, 4:-4, 4:-4].abs().mean()) < 0.02


def test_a_deformable_template_begins_with_an_affine_round() -> None:
    assert TemplateChoices("deformable", 2, "best", False).rounds() == ["affine", "deformable", "deformable"]
    assert TemplateChoices("rigid", 2, "best", False).rounds() == ["rigid", "rigid"]


def test_sharpening_makes_edges_steeper() -> None:
    ramp = (1 / (1 + np.exp(-(np.arange(16) - 7.5) / 0.8))).astype(np.float32)
    image = Image(np.broadcast_to(ramp[:, None, None], (16, 8, 6))[None].copy(), Grid((16, 8, 6), np.eye(4)))
    before, after = image.data[0, :, 4, 3], sharpened(image).data[0, :, 4, 3]
    assert np.abs(np.diff(after)).max() > 1.1 * np.abs(np.diff(before)).max()
    assert sharpened(image).data.shape == image.data.shape


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans of one scene, turned, on unlike grids."""
    folder = tmp_path_factory.mktemp("group")
    for name, shape, spacing, axes, degrees in SCANS:
        path = make_image(folder / f"{name}.nii.gz", shape, spacing, axes, seed=3)
        image = nib.load(path)
        moved = nib.Nifti1Image(np.asarray(image.dataobj), turned(degrees, (degrees, 5, -degrees)) @ image.affine)
        nib.save(moved, path)
    return folder


def template(group: Path, output: Path, *more: str, names: tuple[str, ...] = ("anna", "ben", "carl")) -> dict[str, Any]:
    """The record of the template of the scans."""
    scans = [str(group / f"{name}.nii.gz") for name in names]
    done = run_medkit(["run", "template", *scans, "--json", "-o", str(output), *more])
    assert done.returncode == 0, done.stderr
    (record,) = records(done.stdout)
    return record


@pytest.mark.parametrize("kind", ["rigid", "deformable"])
def test_the_scans_meet_in_the_template(group: Path, tmp_path: Path, kind: str) -> None:
    record = template(group, tmp_path, "--type", kind, "--iterations", "1", "--quality", "fast")
    assert Path(record["path"]).name == "anna_template.nii.gz"
    found = {role: Path(output["path"]) for role, output in record["medkit"]["outputs"].items()}
    assert {path.name.partition("_")[0] for path in found.values()} == {"anna", "ben", "carl"}
    image = nib.load(record["path"])
    points = apply_affine(image.affine, np.random.default_rng(0).uniform(0.35, 0.65, (50, 3)) * image.shape)
    scene = []  # the points of the scene that the template's points are, by each scan
    for number, (_, _, _, _, degrees) in enumerate(SCANS, start=1):
        numbered = "" if number == 1 else f"_{number}"
        there = read_transform(found[f"transform{numbered}"]).map_points(points)
        back = read_transform(found[f"inverse_transform{numbered}"]).map_points(there)
        assert np.linalg.norm(back - points, axis=1).mean() < 0.1
        scene.append(apply_affine(np.linalg.inv(turned(degrees, (degrees, 5, -degrees))), there))
    assert max(np.linalg.norm(s - np.mean(scene, axis=0), axis=1).mean() for s in scene) < 1.0
    story = record["medkit"]["template"]["rounds"]
    assert [r["type"] for r in story] == (["rigid", "rigid"] if kind == "rigid" else ["rigid", "affine", "deformable"])
    assert record["medkit"]["metrics"]["spread"] < 0.05


@pytest.mark.slow
def test_no_scan_is_favoured(group: Path, tmp_path: Path) -> None:
    """Neither does the order matter: the first scan is where the search begins, not where the template lies."""
    first = template(group, tmp_path / "a", "--type", "rigid", "--iterations", "1")
    second = template(group, tmp_path / "b", "--type", "rigid", "--iterations", "1", names=("carl", "anna", "ben"))
    one, two = nib.load(first["path"]), nib.load(second["path"])
    assert one.shape == two.shape
    np.testing.assert_allclose(one.affine, two.affine, atol=0.2)
    assert np.corrcoef(one.get_fdata().ravel(), two.get_fdata().ravel())[0, 1] > 0.999
    matrices = [np.array(scan["matrix_ras_mm"]) for scan in first["medkit"]["template"]["scans"]]
    np.testing.assert_allclose(np.mean([np.real(logm(m)) for m in matrices], axis=0), 0, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "code", "said"), [(("anna",), 3, "two scans or more"), (("anna", "dora"), 3, "dora")]
)
def test_what_is_no_group(group: Path, tmp_path: Path, names: tuple[str, ...], code: int, said: str) -> None:
    scans = [str(group / f"{name}.nii.gz") for name in names]
    done = run_medkit(["run", "template", *scans, "-o", str(tmp_path)])
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_scan_that_cannot_be_averaged_is_named(group: Path, tmp_path: Path) -> None:
    plane = make_image(tmp_path / "plane.nii.gz", (40, 36), (4.0, 4.0))
    done = run_medkit(["run", "template", str(group / "anna.nii.gz"), str(plane), "-o", str(tmp_path / "o")])
    assert (done.returncode, done.stdout) == (1, "")
    assert "plane.nii.gz: one scan is a volume and the other a single slice" in done.stderr


@pytest.mark.slow
def test_a_template_that_is_there_is_kept(group: Path, tmp_path: Path) -> None:
    words = ("--type", "rigid", "--iterations", "1")
    template(group, tmp_path, *words)
    assert template(group, tmp_path, *words, "--skip-existing")["medkit"]["skipped"]
    (tmp_path / "ben_transform.tfm").unlink()  # a file of one scan is a part of the result
    assert not template(group, tmp_path, *words, "--skip-existing")["medkit"]["skipped"]
    assert (tmp_path / "ben_transform.tfm").is_file()
