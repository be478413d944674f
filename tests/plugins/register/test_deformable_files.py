"""`medkit run register` of type deformable on files: what is written and what others make of it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - as all its users call it
import torch

from medkit.images.phantom import make_image
from medkit.space import apply_affine
from medkit.testing import records, run_medkit
from medkit.transforms.files import read_transform

SHAPE, SPACING = (44, 50, 40), (3.4, 3.1, 3.8)


def shift(points: np.ndarray) -> np.ndarray:
    """(N, 3) a smooth displacement, mm, of RAS+ points."""
    x, y, z = points.T / 25
    return 4 * np.stack([np.sin(y), np.cos(z) - 1, np.sin(x + 0.5)], 1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fixed and moving image, labels and landmarks of both; the moving ones are bent."""
    folder = tmp_path_factory.mktemp("pair")
    fixed = nib.load(make_image(folder / "fixed.nii.gz", SHAPE, SPACING, seed=3))
    image = np.asarray(fixed.dataobj)
    labels = np.digitize(image, np.quantile(image[image > np.median(image)], (0.2, 0.6))).astype(np.int16)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1).reshape(-1, 3)
    world = apply_affine(fixed.affine, index)
    source = apply_affine(np.linalg.inv(fixed.affine), world + shift(world)).T.reshape(3, *SHAPE)
    for name, values, order in (("", image, 1), ("_labels", labels, 0)):
        nib.save(nib.Nifti1Image(values, fixed.affine), folder / f"fixed{name}.nii.gz")
        nib.save(nib.Nifti1Image(sampled(values, source, order), fixed.affine), folder / f"moving{name}.nii.gz")
    # a point of the moving scan shows what the fixed one shows at point + shift(point)
    moving_points = apply_affine(fixed.affine, np.array([[20, 20, 18], [25, 30, 22], [18, 28, 25], [24, 22, 20]]))
    for name, points in (("fixed", moving_points + shift(moving_points)), ("moving", moving_points)):
        lines = ["name,x,y,z", *(f"p{n},{x},{y},{z}" for n, (x, y, z) in enumerate(points))]
        (folder / f"{name}.csv").write_text("\n".join(lines))
    return folder


def sampled(values: np.ndarray, at: np.ndarray, order: int) -> np.ndarray:
    """`values` at indices (3, I, J, K), linear (1) or nearest (0)."""
    size = np.array(values.shape)[:, None, None, None]
    grid = torch.from_numpy((at * 2 / (size - 1) - 1)[::-1].copy()).permute(1, 2, 3, 0)[None].float()
    volume = torch.from_numpy(values.astype(np.float32))[None, None]
    mode = "bilinear" if order else "nearest"
    out = torch.nn.functional.grid_sample(volume, grid, mode=mode, padding_mode="border", align_corners=True)
    return out[0, 0].round().numpy().astype(values.dtype)


def register(pair: Path, output: Path, *more: str) -> dict:
    done = run_medkit(
        ["run", "register", "--fixed", str(pair / "fixed.nii.gz"), str(pair / "moving.nii.gz"), "--json",
         "-o", str(output), *more]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = records(done.stdout)
    return record


@pytest.fixture(scope="module")
def record(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    given = [
        *("--fixed-labels", "fixed_labels.nii.gz", "--moving-labels", "moving_labels.nii.gz"),
        *("--fixed-landmarks", "fixed.csv", "--moving-landmarks", "moving.csv"),
    ]
    options = [word if word.startswith("--") else str(pair / word) for word in given]
    folder = tmp_path_factory.mktemp("out")
    return register(pair, folder, *options, "--qc", str(folder))


def test_the_default_is_deformable_and_what_it_says(record: dict) -> None:
    block = record["medkit"]
    assert block["arguments"] == {"type": "deformable", "metric": "auto", "init": "auto", "quality": "default"}
    assert [Path(o["path"]).name for o in block["outputs"].values()] == [
        "moving_registered.nii.gz", "moving_transform.nii.gz", "moving_inverse_transform.nii.gz",
    ]  # fmt: skip
    metrics = block["metrics"]
    assert metrics["after"]["ncc"] > 0.992 > metrics["before"]["ncc"], metrics
    assert metrics["folded"] < 0.001
    assert 0 < metrics["jacobian_min"] < 1 < metrics["jacobian_max"]
    assert metrics["inverse_error_mm"]["mean"] < 0.1
    assert metrics["dice"] > 0.93 > metrics["dice_before"] + 0.02
    assert metrics["labels"] == 2
    assert metrics["tre_mm"] < 0.5 * metrics["tre_before_mm"]
    assert Path(record["path"]).with_name("moving_registered.png").stat().st_size > 1000
    assert block["inputs"]["moving_landmarks"]["path"].endswith("moving.csv")
    assert [level["spacing_mm"] for level in block["registration"]["warp_levels"]][-1] == pytest.approx(3.4)


def test_simpleitk_gives_our_moved_image(pair: Path, record: dict) -> None:
    fixed, moving, ours = (
        sitk.ReadImage(str(p), sitk.sitkFloat32)
        for p in (pair / "fixed.nii.gz", pair / "moving.nii.gz", record["path"])
    )
    path = record["medkit"]["outputs"]["transform"]["path"]
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(path, sitk.sitkVectorFloat64))
    outside = min(0.0, float(sitk.GetArrayViewFromImage(moving).min()))  # noise makes some values negative
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, field, sitk.sitkLinear, outside))
    assert np.mean(np.abs(theirs - sitk.GetArrayFromImage(ours)) <= 0.51) > 0.999  # ours is rounded to integers
    assert theirs.max() > 100


def test_ants_gives_our_moved_labels(pair: Path, record: dict, tmp_path: Path) -> None:
    ants = pytest.importorskip("ants")
    path = record["medkit"]["outputs"]["transform"]["path"]
    fixed, labels = (ants.image_read(str(pair / name)) for name in ("fixed.nii.gz", "moving_labels.nii.gz"))
    theirs = ants.apply_transforms(fixed, labels, [path], interpolator="nearestNeighbor").numpy()
    done = run_medkit(
        ["transform", "apply", str(pair / "moving_labels.nii.gz"), "--reference", str(pair / "fixed.nii.gz"),
         "--transform", path, "--interpolation", "nearest", "-o", str(tmp_path / "l.nii.gz")]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.mean(np.asarray(nib.load(tmp_path / "l.nii.gz").dataobj) == theirs) > 0.999


def test_forward_then_inverse_of_the_files_comes_back(pair: Path, record: dict) -> None:
    outputs = record["medkit"]["outputs"]
    forward, back = (read_transform(Path(outputs[r]["path"])) for r in ("transform", "inverse_transform"))
    image = nib.load(pair / "fixed.nii.gz")
    data = np.asarray(image.dataobj)
    points = apply_affine(image.affine, np.argwhere(data > np.median(data)))
    there = forward.map_points(points)
    assert np.linalg.norm(back.map_points(there) - points, axis=1).mean() < 0.1
    assert np.linalg.norm(there - points, axis=1).mean() > 1


@pytest.mark.slow
def test_quality_is_part_of_what_a_result_rests_on(pair: Path, tmp_path: Path) -> None:
    fast = register(pair, tmp_path, "--quality", "fast")
    again = register(pair, tmp_path, "--quality", "fast", "--skip-existing")
    assert (fast["medkit"]["skipped"], again["medkit"]["skipped"]) == (False, True)
    other = register(pair, tmp_path, "--skip-existing")
    assert not other["medkit"]["skipped"]
    levels = [len(r["medkit"]["registration"]["warp_levels"]) for r in (fast, other)]
    assert levels[0] < levels[1]


def test_labels_may_come_by_record_and_missing_ones_are_named(pair: Path, tmp_path: Path) -> None:
    line = {"path": str(pair / "moving.nii.gz"), "inputs": {"moving_labels": str(pair / "moving_labels.nii.gz")}}
    done = run_medkit(
        ["run", "register", "--type", "rigid", "--fixed", str(pair / "fixed.nii.gz"), "--json", "-o", str(tmp_path),
         "--fixed-labels", str(pair / "fixed_labels.nii.gz"), "--fixed-landmarks", str(pair / "fixed.csv")],
        json.dumps(line) + "\n",
    )  # fmt: skip
    (found,) = records(done.stdout)
    assert 0 < found["medkit"]["metrics"]["dice"] < 1
    assert "tre_mm" not in found["medkit"]["metrics"]
    assert "no landmarks of the moving image to compare with fixed.csv" in found["medkit"]["warnings"]


def test_moving_labels_alone_are_a_usage_error(pair: Path) -> None:
    done = run_medkit(
        ["run", "register", "--fixed", str(pair / "fixed.nii.gz"), str(pair / "moving.nii.gz"),
         "--moving-labels", str(pair / "moving_labels.nii.gz")]
    )  # fmt: skip
    assert done.returncode == 2
    assert "--moving-labels needs --fixed-labels" in done.stderr


def test_joint_writes_its_parts_beside_one_transform(pair: Path, tmp_path: Path) -> None:
    record = register(pair, tmp_path, "--type", "joint", "--quality", "fast")
    assert record["medkit"]["arguments"]["type"] == "joint"
    found = {role: Path(output["path"]).name for role, output in record["medkit"]["outputs"].items()}
    assert found == {
        "image": "moving_registered.nii.gz",
        "transform": "moving_transform.nii.gz",
        "inverse_transform": "moving_inverse_transform.nii.gz",
        "rigid_transform": "moving_rigid_transform.tfm",
        "affine_transform": "moving_affine_transform.tfm",
    }
    rigid, affine = (read_transform(tmp_path / found[f"{part}_transform"]).matrix for part in ("rigid", "affine"))
    np.testing.assert_allclose(rigid[:3, :3] @ rigid[:3, :3].T, np.eye(3), atol=1e-6)
    assert np.abs(affine[:3, :3].T @ affine[:3, :3] - np.eye(3)).max() > 1e-3
    np.testing.assert_allclose(affine, record["medkit"]["registration"]["matrix_ras_mm"], atol=1e-5)
    index = np.random.default_rng(0).uniform(0.3, 0.7, (100, 3)) * SHAPE
    points = apply_affine(nib.load(pair / "fixed.nii.gz").affine, index)
    moved = read_transform(tmp_path / found["transform"]).map_points(points)
    truth = points - shift(points)
    ends = [np.linalg.norm(m - truth, axis=1).mean() for m in (apply_affine(rigid, points), moved)]
    assert ends[1] < 0.6 * ends[0]


def test_joint_has_no_midpoint(pair: Path) -> None:
    scans = [str(pair / f"{name}.nii.gz") for name in ("fixed", "moving")]
    done = run_medkit(["run", "register", "--type", "joint", "--midpoint", "--fixed", *scans])
    assert done.returncode == 2
    assert "not joint" in done.stderr
