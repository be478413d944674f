"""`medkit run register` on files: what is written, in which space, and what others read in it."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - as all its users call it

from medkit.images.phantom import make_image
from medkit.space import apply_affine
from medkit.testing import records, run_medkit
from medkit.transforms.files import read_transform

FIXED = ((48, 56, 44), (3.5, 3.2, 4.0))
THREADS_TOLERANCE_MM = 1e-3
"""How far a transform may move a point of the head when another number of threads is used."""
STORAGE_TOLERANCE_MM = 0.05
"""The same when a scan is stored in another order of axes."""


def turned(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    """(4, 4) RAS+ mm: rotations about x, y and z, then a shift."""
    matrix = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(4)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    matrix[:3, 3] = shift
    return matrix


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixed image, and the same scene moved by a known rotation: only the header tells where it lies now."""
    folder = tmp_path_factory.mktemp("pair")
    fixed = make_image(folder / "fixed.nii.gz", *FIXED, seed=3)
    loaded = nib.load(fixed)
    moved = nib.Nifti1Image(np.asarray(loaded.dataobj), turned((6, -8, 11), (9, -7, 5)) @ loaded.affine)
    moved.set_qform(moved.affine, 1)
    moved.set_sform(moved.affine, 1)
    nib.save(moved, folder / "moving.nii.gz")
    return folder


def register(fixed: Path, moving: Path, output: Path, *more: str) -> dict:
    """The record of one case, affine where no type is named."""
    more = more if "--type" in more else ("--type", "affine", *more)
    done = run_medkit(["run", "register", "--fixed", str(fixed), str(moving), "--json", "-o", str(output), *more])
    assert done.returncode == 0, done.stderr
    (record,) = records(done.stdout)
    return record


def head_points(path: Path) -> np.ndarray:
    """(N, 3) RAS+ mm, points all over the inner part of an image."""
    image = nib.load(path)
    low, high = (np.array(image.shape[:3]) * f for f in (0.2, 0.8))
    corners = itertools.product(*zip(low, high, strict=True))
    return apply_affine(image.affine, np.array(list(corners)))


def apart(first: dict, second: dict, points: np.ndarray) -> float:
    """The largest distance, mm, between where two results take points."""
    maps = [read_transform(Path(r["medkit"]["outputs"]["transform"]["path"])) for r in (first, second)]
    return float(np.linalg.norm(maps[0].map_points(points) - maps[1].map_points(points), axis=1).max())


def test_a_known_rotation_is_found_and_its_inverse_is_one(pair: Path, tmp_path: Path) -> None:
    record = register(pair / "fixed.nii.gz", pair / "moving.nii.gz", tmp_path, "--type", "rigid")
    outputs = record["medkit"]["outputs"]
    forward, back = (read_transform(Path(outputs[r]["path"])) for r in ("transform", "inverse_transform"))
    points = head_points(pair / "fixed.nii.gz")
    truth = apply_affine(turned((6, -8, 11), (9, -7, 5)), points)
    assert np.linalg.norm(forward.map_points(points) - truth, axis=1).max() < 0.2
    np.testing.assert_allclose(back.map_points(forward.map_points(points)), points, atol=1e-6)
    before, after = record["medkit"]["metrics"]["before"], record["medkit"]["metrics"]["after"]
    assert set(before) == {"ncc", "mi", "mse", "ssim"}
    assert after["ncc"] > 0.98 > before["ncc"]
    assert after["mse"] < before["mse"]
    assert record["SpatialReference"] == str(pair / "fixed.nii.gz")
    assert record["Sources"] == [str(pair / "moving.nii.gz"), str(pair / "fixed.nii.gz")]


def test_simpleitk_gives_our_moved_image(pair: Path, tmp_path: Path) -> None:
    record = register(pair / "fixed.nii.gz", pair / "moving.nii.gz", tmp_path)
    fixed, moving, ours = (
        sitk.ReadImage(str(p), sitk.sitkFloat32)
        for p in (pair / "fixed.nii.gz", pair / "moving.nii.gz", record["path"])
    )
    transform = sitk.ReadTransform(record["medkit"]["outputs"]["transform"]["path"])
    theirs = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, 0.0)
    difference = np.abs(sitk.GetArrayFromImage(theirs) - sitk.GetArrayFromImage(ours))
    # ours is rounded to the moving image's integers
    assert np.mean(difference <= 0.51) > 0.999
    assert sitk.GetArrayFromImage(ours).max() > 100


def stored(source: Path, target: Path, orientation: str, *, sform: bool = True) -> Path:
    """The same scan with its voxels in another order, with or without an sform."""
    image = nib.load(source)
    order = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(orientation)
    )
    turned_image = image.as_reoriented(order)
    turned_image.set_qform(turned_image.affine, 1)
    turned_image.set_sform(turned_image.affine if sform else None, 1 if sform else 0)
    nib.save(turned_image, target)
    return target


def test_the_way_a_scan_is_stored_changes_nothing(pair: Path, tmp_path: Path) -> None:
    scans = [stored(pair / "moving.nii.gz", tmp_path / f"{o}.nii.gz", o) for o in ("RAS", "LAS", "LPI", "PIR")]
    scans.append(stored(pair / "moving.nii.gz", tmp_path / "qform.nii.gz", "LPI", sform=False))
    done = run_medkit(
        [
            "run",
            "register",
            "--fixed",
            str(pair / "fixed.nii.gz"),
            *map(str, scans),
            *("--type", "affine"),
            "--json",
            "-o",
            str(tmp_path / "o"),
        ]
    )
    assert done.returncode == 0, done.stderr
    first, *others = records(done.stdout)
    assert len(others) == 4
    points = head_points(pair / "fixed.nii.gz")
    image = np.asarray(nib.load(first["path"]).dataobj, float)
    for other in others:
        assert apart(first, other, points) < STORAGE_TOLERANCE_MM, other["path"]
        again = np.asarray(nib.load(other["path"]).dataobj, float)
        assert np.mean(np.abs(again - image) <= 0.02 * image.max()) > 0.99


def test_the_fixed_images_grid_is_kept_to_the_bit(pair: Path, tmp_path: Path) -> None:
    fixed = stored(pair / "fixed.nii.gz", tmp_path / "fixed.nii.gz", "PIR", sform=False)
    record = register(fixed, pair / "moving.nii.gz", tmp_path / "o", "--type", "rigid")
    ours, theirs = nib.load(record["path"]).header, nib.load(fixed).header
    for key in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "pixdim"):
        np.testing.assert_array_equal(ours[key], theirs[key])


@pytest.mark.slow
def test_one_thread_or_two_give_the_same(pair: Path, tmp_path: Path) -> None:
    one, two = (
        register(pair / "fixed.nii.gz", pair / "moving.nii.gz", tmp_path / n, "--threads", n) for n in ("1", "2")
    )
    assert apart(one, two, head_points(pair / "fixed.nii.gz")) < THREADS_TOLERANCE_MM
    assert (one["medkit"]["threads"], two["medkit"]["threads"]) == (1, 2)


@pytest.mark.slow
def test_a_moving_mask_comes_by_option_or_by_record(pair: Path, tmp_path: Path) -> None:
    image = nib.load(pair / "moving.nii.gz")
    mask = np.zeros(image.shape, np.uint8)
    mask[6:-6, 6:-6, 6:-6] = 1
    nib.save(nib.Nifti1Image(mask, image.affine), tmp_path / "mask.nii.gz")
    by_option = register(
        pair / "fixed.nii.gz", pair / "moving.nii.gz", tmp_path / "a", "--moving-mask", str(tmp_path / "mask.nii.gz")
    )
    line = json.dumps({"path": str(pair / "moving.nii.gz"), "inputs": {"moving_mask": str(tmp_path / "mask.nii.gz")}})
    done = run_medkit(
        ["run", "register", "--fixed", str(pair / "fixed.nii.gz"), "--type", "affine", "--json",
         "-o", str(tmp_path / "b")], line + "\n"
    )  # fmt: skip
    (by_record,) = records(done.stdout)
    assert apart(by_option, by_record, head_points(pair / "fixed.nii.gz")) == 0
    assert by_record["medkit"]["inputs"]["moving_mask"]["path"] == str(tmp_path / "mask.nii.gz")


def test_a_result_can_be_the_start_of_the_next(pair: Path, tmp_path: Path) -> None:
    rigid = register(pair / "fixed.nii.gz", pair / "moving.nii.gz", tmp_path / "a", "--type", "rigid")
    start = rigid["medkit"]["outputs"]["transform"]["path"]
    record = register(pair / "fixed.nii.gz", pair / "moving.nii.gz", tmp_path / "b", "--init", start)
    assert record["medkit"]["inputs"]["init"]["path"] == start
    assert apart(rigid, record, head_points(pair / "fixed.nii.gz")) < 0.5


def test_bids_names_give_bids_derivative_names(pair: Path, tmp_path: Path) -> None:
    anat = tmp_path / "raw" / "sub-01" / "ses-2" / "anat"
    anat.mkdir(parents=True)
    shutil.copy(pair / "moving.nii.gz", anat / "sub-01_ses-2_T1w.nii.gz")
    register(pair / "fixed.nii.gz", anat / "sub-01_ses-2_T1w.nii.gz", tmp_path / "out", "--type", "rigid")
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert found == [
        "dataset_description.json",
        "sub-01/ses-2/anat/sub-01_ses-2_from-T1w_to-fixed_mode-image_xfm.tfm",
        "sub-01/ses-2/anat/sub-01_ses-2_from-fixed_to-T1w_mode-image_xfm.tfm",
        "sub-01/ses-2/anat/sub-01_ses-2_space-fixed_desc-registered_T1w.json",
        "sub-01/ses-2/anat/sub-01_ses-2_space-fixed_desc-registered_T1w.nii.gz",
    ]


def test_a_fixed_image_that_cannot_be_read_ends_the_run(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_bytes((pair / "fixed.nii.gz").read_bytes()[:900])
    done = run_medkit(["run", "register", "--fixed", str(tmp_path / "bad.nii.gz"), str(pair / "moving.nii.gz")])
    assert done.returncode == 3
    assert "bad.nii.gz" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unknown_start_is_a_usage_error(pair: Path) -> None:
    done = run_medkit(
        ["run", "register", "--fixed", str(pair / "fixed.nii.gz"), "--init", "nowhere", str(pair / "moving.nii.gz")]
    )
    assert done.returncode == 2
    assert "nowhere" in done.stderr


def test_a_dry_run_says_what_it_needs_and_writes_nothing(pair: Path, tmp_path: Path) -> None:
    done = run_medkit(
        ["run", "register", "--fixed", str(pair / "fixed.nii.gz"), str(pair / "moving.nii.gz"), "--dry-run",
         "-o", str(tmp_path / "out")]
    )  # fmt: skip
    assert done.returncode == 0
    assert "MiB" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.real_data
def test_good_and_bad_scans_in_one_pipe(shared_data: Path, tmp_path: Path) -> None:
    scans = shared_data / "brain_t1_manual"
    (tmp_path / "cut_t1.nii.gz").write_bytes((scans / "oasis_1001_t1.nii.gz").read_bytes()[:500_000])
    (tmp_path / "text_t1.nii.gz").write_text("hello\n")
    lines = [scans / "oasis_1001_t1.nii.gz", tmp_path / "cut_t1.nii.gz", tmp_path / "text_t1.nii.gz"]
    done = run_medkit(
        ["run", "register", "--fixed", str(scans / "oasis_1000_t1.nii.gz"), "--type", "rigid", "--json",
         "-o", str(tmp_path / "out")],
        "".join(f"{line}\n" for line in lines),
    )  # fmt: skip
    assert done.returncode == 1
    assert [r["medkit"]["status"] for r in records(done.stdout)] == ["ok", "failed", "failed"]
    assert "cut_t1" in done.stderr
    assert "text_t1" in done.stderr
    assert "Traceback" not in done.stderr
