"""`medkit run sr` without weights: grids, types, back-projection, pictures, DICOM, errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from outcome import Outcome
from PIL import Image as Pillow
from places import BUNDLES

from medkit.evaluation.measures.metrics import psnr
from medkit.images.image import Image, read_image
from medkit.scanner.acquisition import Acquisition, Sampling
from medkit.scanner.noise import Noise, estimate, with_floor, without_floor
from medkit.space import Grid

Run = Callable[..., Outcome]
ROOT = BUNDLES / "mri_super_resolution"
RNG = np.random.default_rng(0)


def head(shape: tuple[int, ...] = (48, 52, 48)) -> np.ndarray:
    """A head with folds as fine as a few voxels, 0 to 1000."""
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    folds = 600 + 250 * (np.prod(np.sin(19 * x + 0.5), axis=0) > 0)
    return np.where((x**2).sum(0) < 0.75, folds, 0.0)


def scanned(fine: np.ndarray, steps: tuple[int, ...], sigma: float = 0.0) -> np.ndarray:
    """What a magnitude scanner shows of it."""
    full = (*steps, 1)[: fine.ndim] if fine.ndim == 3 else (*steps, 1)
    volume = torch.from_numpy(fine.reshape([*fine.shape, 1][:3]).astype(np.float32))
    i, j, k = (
        Sampling(n, n // s, float(s)) if s > 1 else Sampling(n, n) for n, s in zip(volume.shape, full, strict=True)
    )
    seen = (
        Acquisition((i, j, k)).scanned(volume).numpy().reshape([n // s for n, s in zip(fine.shape, steps, strict=True)])
    )
    return np.hypot(seen + RNG.normal(0, sigma, seen.shape), RNG.normal(0, sigma, seen.shape)) if sigma else seen


def saved(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, 1)
    nibabel.save(image, path)
    return path


def fine_affine(affine: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """What the affine of the finer grid has to be: columns divided, the first voxel's outer corner where it was."""
    out = affine.copy()
    out[:3, :3] /= steps
    out[:3, 3] = affine[:3, 3]
    out[:3, 3] += -0.5 * affine[:3, :3].sum(1) + 0.5 * out[:3, :3].sum(1)
    return out


@pytest.fixture
def sr(toy: Run) -> Run:
    def run(*arguments: object) -> Outcome:
        return toy("run", "sr", *arguments, "--json", env={"TOY_PLUGINS": "medkit_sr"})

    return run


def block(done: Outcome) -> dict[str, Any]:
    assert done.code == 0, done.err
    (record,) = done.records
    return record["medkit"] | {"path": record["path"], "Description": record["Description"]}


ORIENTATIONS = {
    "ras": np.diag([1.0, 1.0, 1.0]),
    "lps": np.diag([-1.0, -1.0, 1.0]),
    "asr": np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]]),
    "oblique": np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]]),
}


@pytest.mark.parametrize("turn", ORIENTATIONS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_along_any_axis_in_any_orientation(sr: Run, tmp_path: Path, axis: int, turn: str) -> None:
    steps = tuple(4 if a == axis else 1 for a in range(3))
    affine = np.eye(4)
    affine[:3, :3] = ORIENTATIONS[turn] * steps
    affine[:3, 3] = (16.5, -32.25, 8.0)
    clean = head()
    source = saved(tmp_path / "a.nii.gz", scanned(clean, steps, 15).astype(np.float32), affine)
    truth = saved(tmp_path / "truth.nii.gz", clean.astype(np.float32), fine_affine(affine, steps))
    found = block(sr(source, "--spacing", 1, "--reference", truth, "--method", "backprojection"))
    made = nibabel.load(found["path"])
    assert Path(found["path"]).name == "a_sr.nii.gz"
    assert made.shape == clean.shape
    np.testing.assert_allclose(made.affine, fine_affine(affine, steps), atol=1e-6)
    assert found["superresolution"]["steps"] == [float(s) for s in steps]
    metrics = found["metrics"]
    assert metrics["after"]["psnr_db"] > metrics["bspline"]["psnr_db"] + 0.5
    assert metrics["after"]["ssim"] > metrics["bspline"]["ssim"]
    assert metrics["consistency"]["rms"] < metrics["consistency"]["noise"]


@pytest.mark.parametrize(
    ("arguments", "shape", "spacing"),
    [
        (["--scale", 2], (24, 26, 24), (0.5, 0.5, 1.0)),
        (["--scale", 4, "--axes", "slices"], (12, 13, 48), (1.0, 1.0, 0.5)),
        (["--spacing", 1], (12, 13, 24), (1.0, 1.0, 1.0)),
        (["--spacing", 0.5, "--axes", "slices"], (12, 13, 48), (1.0, 1.0, 0.5)),
        (["--spacing", 0.8], (15, 17, 30), (0.8, 0.8, 0.8)),
    ],
)
def test_grids(sr: Run, tmp_path: Path, arguments: list, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    source = saved(tmp_path / "a.nii.gz", head((12, 13, 12)).astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))
    made = nibabel.load(block(sr(source, *arguments))["path"])
    assert made.shape == shape
    np.testing.assert_allclose(made.header.get_zooms(), spacing, atol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.float32])
def test_the_type_and_its_range_stay(sr: Run, tmp_path: Path, kind: type) -> None:
    values = (head((24, 26, 12)) * (0.255 if kind is np.uint8 else 1)).astype(kind)
    source = saved(tmp_path / "a.nii.gz", values, np.diag([1.0, 1.0, 4.0, 1.0]))
    found = block(sr(source, "--spacing", 1, "--method", "backprojection"))  # networks know heads, which this is not
    made = np.asarray(nibabel.load(found["path"]).dataobj)
    assert made.dtype == kind
    assert made.min() >= 0
    assert made.max() < 1.6 * values.max()


def test_labels_given_as_an_image_need_a_look(sr: Run, tmp_path: Path) -> None:
    values = (head() > head().max() / 2).astype(np.int16) * 40
    path = saved(tmp_path / "a.nii.gz", values, np.diag([2.0, 2, 2, 1]))
    found = block(sr(path, "--scale", 2, "--method", "backprojection"))
    assert found["look"]
    assert "its values look like labels" in found["warnings"][0]


def test_scanned_again_it_is_the_scan(sr: Run, tmp_path: Path) -> None:
    coarse = scanned(head(), (1, 1, 4)).astype(np.float32)
    source = saved(tmp_path / "a.nii.gz", coarse, np.diag([1.0, 1.0, 4.0, 1.0]))
    rms = {}
    for method in ("bspline", "backprojection"):
        found = block(sr(source, "--spacing", 1, "--method", method, "-o", tmp_path / method))
        made = read_image(Path(found["path"])).data[0]
        again = scanned(made, (1, 1, 4))
        rms[method] = float(np.sqrt(np.mean((again - coarse) ** 2)) / np.percentile(coarse, 99.9))
        assert found["metrics"]["consistency"]["rms"] == pytest.approx(rms[method], rel=0.05)
    assert rms["backprojection"] < 0.5 * rms["bspline"]


def test_a_ct_keeps_its_units(sr: Run, tmp_path: Path) -> None:
    ct = np.where(head() > 0, head() / 10, -1000)
    source = saved(tmp_path / "ct.nii.gz", scanned(ct, (1, 1, 4)).astype(np.int16), np.diag([1.0, 1.0, 4.0, 1.0]))
    found = block(sr(source, "--spacing", 1))
    assert found["superresolution"]["method"] == "backprojection"
    assert "no network takes volumes of CT" in found["superresolution"]["reason"]
    made = read_image(Path(found["path"])).data[0]
    assert made[ct == -1000].mean() == pytest.approx(-1000, abs=20)


@pytest.mark.parametrize(("kind", "name"), [(np.uint8, "x.png"), (np.uint16, "x.png"), (np.uint8, "x.jpg")])
def test_pictures_become_larger_pictures(sr: Run, tmp_path: Path, kind: type, name: str) -> None:
    pixels = np.rint(scanned(head((96, 72)), (2, 2)) / 5 + 20).astype(kind) * kind(200 if kind is np.uint16 else 1)
    Pillow.fromarray(pixels).save(tmp_path / name, dpi=(254, 254))
    found = block(sr(tmp_path / name, "--scale", 2, "--method", "backprojection"))
    made = Pillow.open(found["path"])
    assert (Path(found["path"]).name, made.size, np.asarray(made).dtype) == ("x_sr.png", (72, 96), kind)
    assert made.info["dpi"][0] == pytest.approx(508, abs=0.1)
    assert np.corrcoef(np.asarray(made).ravel(), head((96, 72)).ravel())[0, 1] > 0.93


def test_a_dicom_image(sr: Run, tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    shutil.copy(get_testdata_file("CT_small.dcm"), tmp_path / "ct.dcm")
    found = block(sr(tmp_path / "ct.dcm", "--scale", 2, "--method", "backprojection"))
    made, given = read_image(Path(found["path"])), read_image(tmp_path / "ct.dcm")
    assert made.grid.shape == (256, 256, 1)
    np.testing.assert_allclose(made.grid.spacing[:2], given.grid.spacing[:2] / 2, rtol=1e-6)
    assert made.data.mean() == pytest.approx(given.data.mean(), abs=5)


def test_a_picture_of_what_was_done(sr: Run, tmp_path: Path) -> None:
    source = saved(tmp_path / "a.nii.gz", scanned(head(), (1, 1, 4)).astype(np.float32), np.diag([1.0, 1, 4, 1]))
    block(sr(source, "--spacing", 1, "--qc", tmp_path / "qc"))
    assert np.asarray(Pillow.open(tmp_path / "qc" / "a_sr.png")).std() > 10


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "--spacing MM or --scale"),
        (["--spacing", 1, "--scale", 2], 2, "--spacing MM or --scale"),
        (["--scale", 3], 2, "3"),
        (["--spacing", -1], 2, "--spacing"),
        (["--spacing", 5], 3, "a.nii.gz: has voxels of 1 x 1 x 4 mm already"),
        (["--spacing", 0.001], 3, "a.nii.gz: would become"),
        (["--scale", 2, "--bundle", "nowhere"], 2, "nowhere"),
    ],
)
def test_usage(sr: Run, tmp_path: Path, arguments: list, code: int, words: str) -> None:
    source = saved(tmp_path / "a.nii.gz", head((24, 26, 12)).astype(np.int16), np.diag([1.0, 1.0, 4.0, 1.0]))
    done = sr(source, *arguments)
    assert (done.code, words in done.err) == (code, True), done.err
    assert not (tmp_path / "a_sr.nii.gz").exists()


def test_a_plane_has_no_slices(sr: Run, tmp_path: Path) -> None:
    Pillow.fromarray(np.rint(head((40, 30)) / 5).astype(np.uint8)).save(tmp_path / "x.png")
    done = sr(tmp_path / "x.png", "--scale", 2, "--axes", "slices")
    assert (done.code, "is a plane" in done.err) == (3, True)


def test_a_reference_elsewhere_is_refused(sr: Run, tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    source = saved(tmp_path / "a.nii.gz", head((24, 26, 12)).astype(np.int16), affine)
    other = saved(tmp_path / "r.nii.gz", head((24, 26, 48)).astype(np.int16), np.eye(4))
    done = sr(source, "--spacing", 1, "--reference", other)
    assert (done.code, "r.nii.gz: expected the grid" in done.err) == (3, True)


@pytest.fixture
def bare_bundle(tmp_path: Path) -> Path:
    """The configs of the bundle without its weights."""
    root = tmp_path / "bare"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("models"))
    return root


@pytest.mark.parametrize(("style", "weights"), [("faithful", "model.pt"), ("sharp", "sharp.pt")])
def test_without_weights_the_network_is_missing(
    sr: Run, tmp_path: Path, bare_bundle: Path, style: str, weights: str
) -> None:
    source = saved(tmp_path / "a.nii.gz", head((24, 26, 12)).astype(np.int16), np.diag([1.0, 1.0, 4.0, 1.0]))
    done = sr(source, "--spacing", 1, "--style", style, "--bundle", bare_bundle, "--trust")
    assert (done.code, f"no weights at {bare_bundle}/models/{weights}" in done.err) == (4, True), done.err


def test_a_style_that_no_bundle_has(sr: Run, tmp_path: Path, bare_bundle: Path) -> None:
    path = bare_bundle / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"medkit": {"task": "sr"}}))
    source = saved(tmp_path / "a.nii.gz", head((24, 26, 12)).astype(np.int16), np.diag([1.0, 1.0, 4.0, 1.0]))
    done = sr(source, "--spacing", 1, "--style", "sharp", "--bundle", bare_bundle, "--trust")
    assert (done.code, "--style sharp: no bundle has it" in done.err) == (2, True)


# ---- parts


def test_the_floor_of_a_magnitude_comes_and_goes() -> None:
    noise = Noise(30.0, 0.03, "rician")
    signal = np.array([0.0, 20, 60, 300, 900], np.float32)
    shown = with_floor(signal, noise)
    draws = np.hypot(signal + RNG.normal(0, 30, (40_000, 5)), RNG.normal(0, 30, (40_000, 5))).mean(0)
    np.testing.assert_allclose(shown, draws, rtol=0.02)
    np.testing.assert_allclose(without_floor(shown, noise), signal, atol=0.5)
    np.testing.assert_array_equal(with_floor(signal, Noise(30.0, 0.03, "gaussian")), signal)


def test_values_in_the_type_of_an_image() -> None:
    image = Image(np.array([[[[0, 200]]]], np.uint8), Grid((1, 1, 2), np.eye(4)))
    made = image.like(np.array([[[[-4.0, 300.0], [7.6, 1.2]]]]), Grid((1, 2, 2), np.eye(4)))
    assert made.data.tolist() == [[[[0, 255], [8, 1]]]]
    assert made.data.dtype == np.uint8


@pytest.mark.parametrize("sigma", [5, 20])
def test_backprojection_gains_on_noise_of_any_strength(sigma: float) -> None:
    clean = torch.from_numpy(head((96, 96, 96))).float()
    scan = torch.from_numpy(scanned(clean.numpy(), (1, 1, 3), sigma)).float()
    way = Acquisition((Sampling(96, 96), Sampling(96, 96), Sampling(96, 32, 3.0)))
    plain = way.interpolated(scan)
    noise = estimate(scan.numpy())
    better = way.corrected(plain, scan - way.scanned(plain), noise.sigma * way.leftover)
    assert psnr(better, clean, data_range=850) > psnr(plain, clean, data_range=850) + 0.3


# ---- several scans


def three_views(folder: Path, fine: np.ndarray) -> list[Path]:
    """Axial, coronal and sagittal scans of 4 mm; the second and third turned by 4 degrees and shifted, one brighter."""
    from scipy import ndimage

    paths = []
    for number, axis in enumerate((2, 1, 0)):
        angle = np.radians(4 * number)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        turn[:3, 3] = 1.5 * number
        middle = np.eye(4)
        middle[:3, 3] = (np.array(fine.shape) - 1) / 2
        turn = middle @ turn @ np.linalg.inv(middle)  # the head's new place
        back = np.linalg.inv(turn)
        moved = ndimage.affine_transform(fine, back[:3, :3], back[:3, 3], order=3).clip(0)
        steps = tuple(4 if a == axis else 1 for a in range(3))
        affine = np.diag([*steps, 1.0])
        affine[axis, 3] = 1.5
        seen = scanned(moved, steps, 15) * (1, 1, 1.3)[number]
        paths.append(saved(folder / f"{'acs'[number]}.nii.gz", seen.astype(np.float32), affine))
    return paths


def body(shape: tuple[int, ...] = (64, 72, 64)) -> np.ndarray:
    """A head that looks different from every side, so that it can be aligned."""
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = (x**2 * np.array([1.5, 1.1, 1.3]).reshape(3, 1, 1, 1)).sum(0)
    inside = ((x - np.array([0.2, 0.3, -0.1]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 0.12
    folds = 600 + 250 * (np.prod(np.sin(15 * x + 0.5), axis=0) > 0)
    return np.where(radius < 0.8, np.where(inside, 200.0, folds), 0.0)


@pytest.mark.slow  # registers in a process of its own
def test_fusion_is_better_than_the_first_scan_alone(sr: Run, tmp_path: Path) -> None:
    fine = body()
    truth = saved(tmp_path / "truth.nii.gz", fine.astype(np.float32), np.eye(4))
    # networks know heads, which this is not
    views, alone = three_views(tmp_path, fine), ("--method", "backprojection")
    done = sr(*views, "--fuse", *alone, "--reference", truth, "-o", tmp_path / "out")
    found = block(done)
    assert Path(found["path"]).name == "a_sr.nii.gz"
    made = nibabel.load(found["path"])
    np.testing.assert_allclose(made.affine, np.eye(4), atol=1e-6)
    metrics = found["metrics"]
    assert metrics["after"]["psnr_db"] > metrics["single"]["psnr_db"] + 1.5
    assert metrics["after"]["ssim"] > metrics["single"]["ssim"]
    assert all(scan["rms"] < 2 * scan["noise"] for scan in metrics["consistency"])
    assert sorted(found["inputs"]) == ["image", "image_2", "image_3", "reference"]


def test_one_scan_cannot_be_fused(sr: Run, tmp_path: Path) -> None:
    source = saved(tmp_path / "a.nii.gz", head((24, 26, 12)).astype(np.int16), np.diag([1.0, 1.0, 4.0, 1.0]))
    done = sr(source, "--fuse")
    assert (done.code, "two scans or more" in done.err) == (3, True), done.err
    assert sr(source, source, "--fuse", "--scale", 2).code == 2


@pytest.mark.slow  # registers in a process of its own
def test_a_guide_shows_the_edges(sr: Run, tmp_path: Path) -> None:
    """Another contrast of the same head: the tissues' order is another one, and its noise its own."""
    fine = body()
    other = np.select([fine > 800, fine > 500, fine > 100], [300.0, 700.0, 950.0], 0.0) + RNG.normal(0, 15, fine.shape)
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    source = saved(tmp_path / "a.nii.gz", scanned(fine, (1, 1, 4), 15).astype(np.float32), affine)
    truth = saved(tmp_path / "truth.nii.gz", fine.astype(np.float32), fine_affine(affine, (1, 1, 4)))
    guide = saved(tmp_path / "t1.nii.gz", other.clip(0).astype(np.float32), fine_affine(affine, (1, 1, 4)))
    alone = block(sr(source, "--spacing", 1, "--reference", truth, "-o", tmp_path / "alone"))
    found = block(sr(source, "--spacing", 1, "--reference", truth, "--guide", guide, "-o", tmp_path / "guided"))
    assert found["superresolution"]["method"].endswith("and guide")
    assert found["metrics"]["after"]["psnr_db"] > alone["metrics"]["after"]["psnr_db"] + 1
    assert found["metrics"]["after"]["ssim"] > alone["metrics"]["after"]["ssim"]
