"""`medkit run enhance` by the methods that need no weights."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from medkit_enhance import bias, contrast, denoise, fourier, methods
from medkit_enhance.enhancer import modality_of
from outcome import Outcome
from PIL import Image as Pillow
from places import BUNDLES

from medkit.errors import UsageError
from medkit.images.image import Image, read_image
from medkit.scanner.noise import Noise, estimate, without_floor
from medkit.space import Grid

Run = Callable[..., Outcome]
RNG = np.random.default_rng(0)
SHAPE = (44, 52, 40)
SPACING = np.array([4.0, 4.0, 4.5])


def coordinates(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij"))


def head(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A head of two tissues with fluid in it, in black; 0 to 1000."""
    x = coordinates(shape)
    distance = np.sqrt((x**2).sum(0))
    folds = 600 + 250 * (np.sin(7 * x[0]) * np.sin(7 * x[1] + 1) > 0.15)
    return np.where(distance < 0.8, np.where(distance < 0.25, 150.0, folds), 0.0)


def field(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    x = coordinates(shape)
    return 0.3 * x[-1] + 0.15 * np.sin(2 * x[0])


def rician(image: np.ndarray, sigma: float) -> np.ndarray:
    return np.hypot(image + RNG.normal(0, sigma, image.shape), RNG.normal(0, sigma, image.shape))


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    return image + RNG.normal(0, sigma, image.shape)


def rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((np.asarray(a, float) - b) ** 2)))


# ---- noise


@pytest.mark.parametrize("shape", [SHAPE, (120, 140)])
@pytest.mark.parametrize("sigma", [20.0, 60.0, 90.0])
@pytest.mark.parametrize("spoil", [rician, gaussian])
def test_noise_is_measured(spoil: Callable, sigma: float, shape: tuple[int, ...]) -> None:
    found = estimate(spoil(head(shape), sigma))
    assert found.sigma == pytest.approx(sigma, rel=0.2)
    assert found.kind == spoil.__name__


def test_a_background_that_was_cut_away_says_nothing_of_the_noise() -> None:
    noisy = np.where(head() > 0, rician(head(), 50), 0).astype(np.int16)
    found = estimate(noisy)
    assert (found.kind, found.sigma) == ("gaussian", pytest.approx(50, rel=0.15))


@pytest.mark.parametrize("image", [head(), np.where(head() > 0, 255, 0).astype(np.uint8), head() - 2000])
def test_a_clean_image_has_no_noise(image: np.ndarray) -> None:
    assert estimate(image).negligible


@pytest.mark.parametrize("shape", [(120, 140, 4), (30, 30)])
def test_images_with_few_parts_have_no_quiet_ones(shape: tuple[int, ...]) -> None:
    assert estimate(RNG.normal(size=shape)).quiet is None


@pytest.mark.parametrize("shape", [(96, 96, 96), (280, 300)])
def test_fine_anatomy_in_a_part_of_an_image_is_not_noise(shape: tuple[int, ...]) -> None:
    """Grain in half of the image; the same grain all over it is noise, and so is noise that grows across it."""
    grain = gaussian(np.full(shape, 600.0), 40) * (head(shape) > 0)
    half = np.where(np.arange(shape[-1]) < shape[-1] / 2, grain, 0.7 * head(shape))
    found = estimate(half)
    assert found.quiet is not None
    assert found.quiet < 0.5 * found.relative
    assert found.negligible
    assert not estimate(grain).negligible
    growing = head(shape) * (1 + np.linspace(0.02, 0.06, shape[-1]) * RNG.normal(size=shape))
    assert not estimate(growing).negligible


def test_the_floor_of_a_magnitude_image_is_taken_away() -> None:
    """Means of many Rice variables lead back to the signal they were drawn for."""
    signal = np.array([0.0, 10, 25, 60, 400, 900])
    means = rician(np.repeat(signal[:, None], 40_000, 1), 30).mean(1)
    found = without_floor(means.astype(np.float32), Noise(30, 0.03, "rician"))
    np.testing.assert_allclose(found, signal, atol=3)
    assert rms(means, signal) > 3 * rms(found, signal)


# ---- methods


@pytest.mark.parametrize("shape", [SHAPE, (80, 90)])
@pytest.mark.parametrize("spoil", [rician, gaussian])
def test_nlm_takes_noise_away(spoil: Callable, shape: tuple[int, ...]) -> None:
    clean = head(shape)
    noisy = spoil(clean, 60)
    smooth = denoise.by_nlm(noisy, estimate(noisy))
    assert rms(smooth, clean) < 0.6 * rms(noisy, clean)


def test_nlm_leaves_no_seam_between_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = rician(head((40, 24, 20)), 60)
    whole = denoise.by_nlm(noisy, estimate(noisy))
    monkeypatch.setattr(denoise, "SLAB", 12)
    np.testing.assert_allclose(denoise.by_nlm(noisy, estimate(noisy)), whole, atol=0.5)


@pytest.mark.slow  # loading itk's N4 takes seconds
@pytest.mark.parametrize("shape", [SHAPE, (88, 104)])
def test_n4_finds_a_field(shape: tuple[int, ...]) -> None:
    image = head(shape) * np.exp(field(shape)) + 1
    found = bias.by_n4(image, SPACING[: len(shape)], 1)
    assert found.shape == shape
    inside = head(shape) > 500
    left = (found - field(shape))[inside]
    assert left.std() < 0.35 * field(shape)[inside].std()
    after = bias.corrected(image, found)
    assert after[bias.foreground(image)].mean() == pytest.approx(image[bias.foreground(image)].mean(), rel=1e-3)


def test_homomorphic_filtering_finds_a_field() -> None:
    image = head() * np.exp(field())
    found = bias.by_homomorphic(image, SPACING)
    inside = head() > 500
    assert (found - field())[inside].std() < 0.6 * field()[inside].std()


CONTRASTS = {
    "clahe": contrast.by_clahe,
    "gamma": contrast.by_gamma,
    "homomorphic": contrast.by_homomorphic,
    "butterworth": contrast.by_butterworth,
}


@pytest.mark.parametrize("shape", [SHAPE, (70, 90)])
@pytest.mark.parametrize("name", CONTRASTS)
def test_contrast_stays_in_range_and_the_dark_is_seen_better(name: str, shape: tuple[int, ...]) -> None:
    image = 100 + head(shape) * np.where(coordinates(shape)[0] < 0, 0.25, 1)
    found = CONTRASTS[name](image, SPACING[: len(shape)])
    assert found.dtype == np.float32
    assert image.min() - 1 <= found.min() < found.max() <= image.max() + 1
    dark = (head(shape) > 500) & (coordinates(shape)[0] < -0.1)
    grown = (found[dark].mean() / image[dark].mean(), found[dark].std() / image[dark].std())
    assert max(grown) > 1.1


def test_opposite_ends_do_not_meet_in_fourier_space() -> None:
    ramp = np.tile(np.linspace(0, 100, 50, dtype=np.float32), (40, 1))
    kept = fourier.filtered(ramp, np.ones(2), lambda f: np.exp(-((f * 10) ** 2)))
    assert rms(kept[:, :5], ramp[:, :5]) < 4
    np.testing.assert_allclose(fourier.filtered(ramp, np.ones(2), np.ones_like), ramp, atol=1e-2)


# ---- what is asked for


@pytest.mark.parametrize(("what", "method"), list(itertools.product(methods.WHATS, methods.PURPOSES)))
def test_methods_and_what_they_do(what: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    if what != "auto" and what not in methods.PURPOSES[method]:
        with pytest.raises(UsageError, match=f"not {what}") as error:
            methods.steps_of(what, method, network=True)
        assert error.value.exit_code == 2
        return
    steps = methods.steps_of(what, method, network=False)
    done = [w for w in ("denoise", "bias", "contrast") if getattr(steps, w) == method]
    assert done == [what] if what != "auto" else done


def test_defaults_fall_back_until_there_are_weights() -> None:
    asked = {what: methods.steps_of(what, None, network=True) for what in methods.WHATS}
    assert [(s.denoise, s.bias, s.contrast) for s in asked.values()] == [
        ("network", "network", None), ("network", None, None), (None, "network", None), (None, None, "clahe"),
    ]  # fmt: skip
    for what, steps in asked.items():
        assert steps.without_network() == methods.steps_of(what, None, network=False)


def test_bm4d_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install bm4d"):
        methods.steps_of("denoise", "bm4d", network=False)


def test_modalities_by_their_values() -> None:
    ct = np.where(head() > 0, head() / 10, -1000).astype(np.int16)
    found = [modality_of(Image(v[None], Grid(v.shape, np.eye(4)))) for v in (ct, head(), head((20, 30, 1)))]
    assert found == ["ct", "mr", "other"]


# ---- the command


@pytest.fixture
def enhance(toy: Run, tmp_path: Path) -> Run:
    def run(*arguments: object) -> Outcome:
        return toy("run", "enhance", *arguments, "--json", env={"TOY_PLUGINS": "medkit_enhance"})

    return run


def saved(path: Path, values: np.ndarray, spacing: np.ndarray = SPACING) -> Path:
    image = nibabel.Nifti1Image(values, np.diag([*spacing, 1.0]))
    image.set_sform(image.affine, 1)
    nibabel.save(image, path)
    return path


def block(done: Outcome) -> dict[str, Any]:
    assert done.code == 0, done.err
    (record,) = done.records
    return record["medkit"] | {"path": record["path"]}


@pytest.mark.parametrize(
    ("asked", "done"),
    [
        (["--what", "denoise", "--method", "nlm"], [("denoise", "nlm", True)]),
        (["--what", "denoise"], [("denoise", "network", True)]),
        pytest.param([], [("denoise", "network", True), ("bias", "network", True)], marks=pytest.mark.slow),
    ],
)
def test_noise_and_field_go_and_a_second_run_changes_nothing(
    enhance: Run, tmp_path: Path, asked: Sequence[str], done: Sequence[tuple[str, str, bool]]
) -> None:
    shape = (66, 78, 60)
    noisy = rician(head(shape) * np.exp(field(shape)), 60)
    source = saved(tmp_path / "a.nii.gz", np.rint(noisy).astype(np.int16))
    truth = saved(tmp_path / "truth.nii.gz", head(shape).astype(np.float32))
    found = block(enhance(source, *asked, "--reference", truth, "--difference", "--qc", tmp_path / "qc"))
    steps = found["enhancement"]["steps"]
    assert [(s["what"], s["method"], s["done"]) for s in steps] == done
    before, after = (found["metrics"][when] for when in ("before", "after"))
    assert after["psnr_db"] > before["psnr_db"] + 3
    assert after["ssim"] > before["ssim"]
    assert after["mse"] < before["mse"]
    made, given = read_image(Path(found["path"])), read_image(source)
    assert (made.data.dtype, made.grid.digest()) == (np.int16, given.grid.digest())
    change = read_image(Path(found["outputs"]["difference"]["path"]))
    assert change.data.dtype == np.float32
    np.testing.assert_array_equal(change.data, made.data.astype(float) - given.data)
    assert np.asarray(Pillow.open(tmp_path / "qc" / "a_enhanced.png")).std() > 10
    again = block(enhance(found["path"], *asked))
    assert again["metrics"]["change"] < 0.01
    assert not any(s["done"] for s in again["enhancement"]["steps"])
    assert all("left alone" in s["reason"] for s in again["enhancement"]["steps"])


def test_labels_given_as_an_image_need_a_look(enhance: Run, tmp_path: Path) -> None:
    labels = 40 * (head() > 0.5) + 2 * (coordinates().sum(0) > 0).astype(np.int16)
    found = block(enhance(saved(tmp_path / "a.nii.gz", labels.astype(np.int16)), "--method", "nlm"))
    assert found["look"]
    assert "its values look like labels, and are blended as if they were intensities" in found["warnings"][0]


def test_a_ct_keeps_its_units(enhance: Run, tmp_path: Path) -> None:
    clean = np.where(head() > 0, head() / 10 - 20, -1000)
    source = saved(tmp_path / "ct.nii.gz", np.rint(gaussian(clean, 40)).astype(np.int16))
    found = block(enhance(source))
    assert found["enhancement"]["modality"] == "ct"
    assert [s["what"] for s in found["enhancement"]["steps"]] == ["denoise"]
    made = read_image(Path(found["path"])).data[0]
    for tissue in (head() == 0, head() == 600, head() == 850):
        assert made[tissue].mean() == pytest.approx(clean[tissue].mean(), abs=8)
    assert rms(made, clean) < 30
    for what, words in (("bias", "no bias field"), ("contrast", "Hounsfield")):
        done = enhance(source, "--what", what, "-o", tmp_path / "o")
        assert (done.code, words in done.err, "ct.nii.gz" in done.err) == (3, True, True)


@pytest.mark.parametrize(("kind", "name"), [(np.uint8, "x.png"), (np.uint16, "x.png"), (np.uint8, "x.jpg")])
def test_pictures_become_pictures(enhance: Run, tmp_path: Path, kind: type, name: str) -> None:
    pixels = np.clip(gaussian(head((90, 70)) / 5 + 20, 12), 0, 255).astype(kind)
    Pillow.fromarray(pixels * (200 if kind is np.uint16 else 1)).save(tmp_path / name, dpi=(254, 254))
    found = block(enhance(tmp_path / name))
    assert [(s["what"], s["done"]) for s in found["enhancement"]["steps"]] == [("denoise", True)]
    made = Pillow.open(found["path"])
    assert (Path(found["path"]).name, made.size, np.asarray(made).dtype) == ("x_enhanced.png", (70, 90), kind)
    assert made.info["dpi"][0] == pytest.approx(254, abs=0.1)
    stronger = block(enhance(tmp_path / name, "--method", "gamma", "-o", tmp_path / "y.png"))
    assert stronger["enhancement"]["steps"] == [{"what": "contrast", "method": "gamma", "done": True}]


def test_without_weights_the_network_is_missing(enhance: Run, tmp_path: Path, bare_bundle: Path) -> None:
    source = saved(tmp_path / "a.nii.gz", rician(head(), 60).astype(np.float32))
    done = enhance(source, "--method", "network", "--bundle", bare_bundle, "--trust")
    assert (done.code, "no weights at" in done.err) == (4, True)
    assert not (tmp_path / "a_enhanced.nii.gz").exists()


@pytest.fixture
def bare_bundle(tmp_path: Path) -> Path:
    """The configs of the bundle without its weights."""
    root = tmp_path / "bare"
    (root / "configs").mkdir(parents=True)
    source = BUNDLES / "mri_enhancement" / "configs"
    for name in ("inference.json", "metadata.json"):
        (root / "configs" / name).write_bytes((source / name).read_bytes())
    return root


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--what", "denoise", "--method", "n4"], "nlm"),
        (["--what", "contrast", "--method", "network"], "clahe"),
        (["--method", "sharpen"], "sharpen"),
        (["--bundle", "nowhere"], "nowhere"),
    ],
)
def test_usage(enhance: Run, tmp_path: Path, arguments: list[str], words: str) -> None:
    done = enhance(saved(tmp_path / "a.nii.gz", head().astype(np.int16)), *arguments)
    assert (done.code, words in done.err) == (2, True)


def test_a_reference_elsewhere_is_refused(enhance: Run, tmp_path: Path) -> None:
    source = saved(tmp_path / "a.nii.gz", rician(head(), 60).astype(np.int16))
    other = saved(tmp_path / "r.nii.gz", head().astype(np.int16), SPACING + 1)
    done = enhance(source, "--reference", other)
    assert (done.code, "r.nii.gz: expected the grid of a.nii.gz" in done.err) == (3, True)


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "noisy"),
    [("templates/mni152_sym09a_t1_1mm.nii.gz", False), ("brain_heads/brainchop_t1.nii.gz", True)],
)
def test_noise_of_real_scans(shared_data: Path, name: str, noisy: bool) -> None:
    assert estimate(read_image(shared_data / name).data[0]).negligible is not noisy


@pytest.mark.parametrize("asked", [("--method", "n4"), ("--method", "homomorphic", "--what", "bias")])
def test_a_field_of_an_image_with_negative_intensities(enhance: Run, tmp_path: Path, asked: Sequence[str]) -> None:
    """Standardised MR: the field is found as without the standardisation, and nothing is cut to 0."""
    shape = (66, 78, 60)
    truth = head(shape)
    mean, spread = truth[truth > 0].mean(), truth[truth > 0].std()
    given = (truth * np.exp(field(shape)) - mean) / spread
    source = saved(tmp_path / "a.nii.gz", given.astype(np.float32))
    made = read_image(Path(block(enhance(source, *asked))["path"])).data[0]
    wanted = (truth - mean) / spread
    before, after = (np.sqrt(((image - wanted) ** 2).mean()) for image in (given, made))
    assert made.min() < -1
    assert after < 0.9 * before
