"""The bundle mri_enhancement: its configs under MONAI's own tools, `medkit train` and `medkit run enhance`."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import bundled
import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from outcome import Outcome
from places import BUNDLES

from medkit.images.phantom import make_image
from medkit.testing import run_medkit

ROOT = BUNDLES / "mri_enhancement"
CONFIGS = ROOT / "configs"
SMALL = {"channels": [4, 8], "field_channels": [4, 4, 8], "epoch_length": 2, "steps": 2}


built = functools.partial(bundled.built, ROOT)


@pytest.fixture(autouse=True)
def own_code(clean_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's own package is found, as under MONAI's commands and medkit's."""
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A datalist of label maps of a head and a scan, and the tables of the labels."""
    folder = bundled.write_sources(tmp_path / "sources")
    make_image(folder / "scan.nii.gz", (44, 40, 36), (1, 1, 1))
    return folder


def weighted(root: Path, *, keeps: bool = True, field: float = 0.0) -> Path:
    """The bundle with weights of small networks: the first takes nothing away, or is a threshold; a constant field."""
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("models"))
    for name in ("inference", "train"):
        path = root / "configs" / f"{name}.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {k: SMALL[k] for k in ("channels", "field_channels")})
        )
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def")
    network[0].threshold.data.fill_(-1e6 if keeps else 2.5)
    for parameter in (*network[0].moved.parameters(), *network[0].added.parameters()):
        parameter.data.zero_()
    for parameter in parser.get_parsed_content("found").parameters():
        parameter.data.fill_(field if parameter.dim() == 1 else 0)
    (root / "models").mkdir()
    torch.save(network.state_dict(), root / "models" / "model.pt")
    return root


def scan(path: Path) -> np.ndarray:
    """Writes an oblique scan of odd sizes in LPI, noisy; gives its voxels."""
    affine = np.array([[-2.5, 0.2, 0, 70], [0.2, -2.5, 0.1, 80], [0, 0.1, -3.0, 60], [0, 0, 0, 1]])
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (50, 61, 45)], indexing="ij"))
    values = np.where((x**2).sum(0) < 0.7, 500 + 300 * (np.sin(7 * x[0]) > 0), 0.0)
    rng = np.random.default_rng(0)
    noisy = np.hypot(values + rng.normal(0, 60, values.shape), rng.normal(0, 60, values.shape)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(noisy, affine), path)
    return noisy


def voxels(path: str | Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


# ---- configs


def test_the_network_takes_and_gives_what_the_metadata_says() -> None:
    bundled.verify_network(ROOT)


def test_the_configs_agree_and_the_weights_will_be_small() -> None:
    bundled.configs_agree(
        ROOT, "network_def", "block", "level", "denoise", "field_net", "field", "channels", "field_channels"
    )


def rician(clean: torch.Tensor, sigma: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    a, b = (sigma * torch.randn(clean.shape, generator=generator) for _ in range(2))
    return torch.hypot(clean + a, b)


def slope(size: int) -> torch.Tensor:
    """(1, 1, size, size, size) that rises from 0.2 to 1 along an axis."""
    return torch.linspace(0.2, 1, size).reshape(-1, 1, 1).expand(1, 1, size, size, size).clone()


def denoiser() -> torch.nn.Module:
    torch.manual_seed(0)
    network: torch.nn.Module = built("inference", channels=[4, 8]).get_parsed_content("denoise").eval()
    return network


@pytest.mark.parametrize("sigma", [0.03, 0.1])
def test_noise_is_measured_where_it_is(sigma: float) -> None:
    measure = denoiser().get_submodule("noise")
    clean = slope(64)
    with torch.no_grad():
        found = measure(rician(clean, sigma))
        torch.testing.assert_close(found, torch.full((1, 1, 32, 32, 32), sigma), rtol=0.1, atol=0)
        strength = sigma * torch.where(torch.arange(64) < 32, 0.5, 1.5)
        found = measure(clean + strength * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)))
    assert 0.4 * sigma < float(found[..., :8].mean()) < 0.8 * sigma < 1.2 * sigma < float(found[..., 24:].mean())


@pytest.mark.parametrize("mode", ["replicate", "constant", "reflect"])
def test_padding_has_no_noise_to_be_measured(mode: str) -> None:
    measure = denoiser().get_submodule("noise")
    padded = torch.nn.functional.pad(rician(slope(48), 0.05), [8] * 6, mode=mode)
    with torch.no_grad():
        assert float(measure(padded).mean()) == pytest.approx(0.05, rel=0.1)


def test_noise_is_measured_in_anything() -> None:
    measure = denoiser().get_submodule("noise")
    with torch.no_grad():
        for image in (torch.zeros(1, 1, 32, 32, 32), torch.full((1, 1, 8, 8, 8), 0.7), torch.rand(2, 1, 4, 64, 12)):
            found = measure(image)
            assert found.shape == (len(image), 1, *(n // 2 for n in image.shape[2:]))
            assert bool(found.isfinite().all() & (found > 0).all())


def test_before_any_training_it_is_a_threshold_and_leaves_clean_images_alone() -> None:
    denoise, clean = denoiser(), slope(48)
    with torch.no_grad():
        torch.testing.assert_close(denoise(clean), clean, rtol=0, atol=1e-3)
        for sigma in (0.03, 0.09):
            noisy = rician(clean, sigma)
            left = (denoise(noisy) - clean).square().mean() / (noisy - clean).square().mean()
            assert float(left) < 0.2


def test_images_of_a_batch_do_not_know_of_each_other() -> None:
    denoise = denoiser()
    images = torch.cat([rician(slope(32), sigma) for sigma in (0.02, 0.1)])
    with torch.no_grad():
        torch.testing.assert_close(denoise(images)[:1], denoise(images[:1]), rtol=1e-4, atol=1e-5)


def test_parameters_of_the_field_have_one_name_in_both_configs() -> None:
    """So that what `--config train,field` trains is found by `--init-from`, and `--freeze 1` keeps it."""
    alone = built("train", "field").get_parsed_content("network_def").state_dict()
    whole = built("train").get_parsed_content("network_def").state_dict()
    assert alone
    assert {k: v.shape for k, v in alone.items()} == {k: v.shape for k, v in whole.items() if k.startswith("1.")}


# ---- the bias field


def shaded(strength: float, size: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A ball of two tissues with fluid in it, noisy, under a field; the field's logarithm; where the ball is."""
    x = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, size)] * 3, indexing="ij"))
    distance = x.square().sum(0).sqrt()
    folds = 0.6 + 0.3 * (torch.sin(9 * x[0]) * torch.sin(9 * x[1] + 1) > 0.1)
    ball = torch.where(distance < 0.9, torch.where(distance < 0.25, 0.2, folds), 0.0)
    field = strength * (x[2] + 0.5 * torch.sin(2 * x[0]))
    image = rician(ball * field.exp(), 0.02)
    return (image / image.quantile(0.99))[None, None], field[None, None], ball[None, None] > 0


def unexplained(found: torch.Tensor, field: torch.Tensor, tissue: torch.Tensor) -> float:
    """Share of the field's standard deviation over tissue that is left."""
    return float((found - field)[tissue].std() / field[tissue].std())


@pytest.mark.parametrize("strength", [0.2, 0.5])
def test_a_field_is_fitted_from_a_guess_of_none(strength: float) -> None:
    image, field, tissue = shaded(strength)
    found = fitted()(torch.cat([image, torch.zeros_like(image)], 1))
    assert torch.equal(found[:, :1], image)
    assert unexplained(found[:, 1:], field, tissue) < 0.2
    again = fitted()(torch.cat([image / found[:, 1:].exp(), torch.zeros_like(image)], 1))
    assert float(again[:, 1:][tissue].std()) < 0.15 * float(field[tissue].std())


def fitted() -> Callable[[torch.Tensor], torch.Tensor]:
    import mri_enhancement

    found: Callable[[torch.Tensor], torch.Tensor] = mri_enhancement.fitted
    return found


def test_images_of_a_batch_and_thin_ones_have_a_field_of_their_own() -> None:
    some = [torch.cat([shaded(s)[0], torch.zeros(1, 1, 64, 64, 64)], 1) for s in (0.2, 0.5)]
    both = fitted()(torch.cat(some))
    torch.testing.assert_close(both[1:], fitted()(some[1]), rtol=1e-3, atol=1e-3)
    image, field, tissue = shaded(0.3)
    thin = torch.cat([image, torch.zeros_like(image)], 1)[..., ::8]
    assert unexplained(fitted()(thin)[:, 1:], field[..., ::8], tissue[..., ::8]) < 0.3


@pytest.mark.parametrize("size", [1, 32])
def test_where_there_is_no_tissue_the_guess_stays(size: int) -> None:
    parts = torch.stack([torch.zeros(size, 32, 32), torch.full((size, 32, 32), 0.3)])[None]
    torch.testing.assert_close(fitted()(parts), parts)
    assert bool(fitted()(torch.stack([torch.ones(size, 32, 32), torch.zeros(size, 32, 32)])[None]).isfinite().all())


@pytest.mark.parametrize(("spared", "part"), [("denoised", 0), ("unbiased", 1)])
def test_what_is_not_asked_for_is_not_computed(spared: str, part: int) -> None:
    small = {k: SMALL[k] for k in ("channels", "field_channels")}
    parser = built("inference", **small, device="cpu", **{spared: False})
    network = parser.get_parsed_content("network_def").eval()
    network[part].forward = lambda _: pytest.fail("it was computed")
    image = shaded(0.3)[0]
    with torch.no_grad():
        found = parser.get_parsed_content("inferer")(image, network)
    assert torch.equal(found[:, part], [image, torch.zeros_like(image)][part][:, 0])
    assert bool(found[:, 1 - part].std() > 0)


def test_the_scale_is_that_of_training_and_of_nothing_1() -> None:
    import mri_enhancement

    from medkit.scanner.intensity import intensity_scale

    image = torch.rand(1, 40, 40, 40).sub(0.3).clamp(min=0)
    assert mri_enhancement.scale(image) == pytest.approx(float(intensity_scale(image)))
    assert mri_enhancement.scale(torch.zeros(1, 4, 4, 4)) == 1


def test_air_around_a_head_is_smoothed_and_the_head_does_not_notice() -> None:
    import mri_enhancement

    parser = built("inference", **{k: SMALL[k] for k in ("channels", "field_channels")}, device="cpu")
    network = parser.get_parsed_content("network_def").eval()
    seen = []
    network[0].register_forward_hook(lambda _, given, __: seen.append(given[0].shape[2:]))
    image = torch.nn.functional.pad(shaded(0.0)[0], [32, 32, 0, 0, 64, 0])
    noisy = rician(image, 0.05)
    with torch.no_grad():
        found = mri_enhancement.enhanced(noisy, network, 144, unbiased=False)[:, :1]
        whole = network[0](noisy)
    assert seen[0][0] < 128
    assert seen[0][2] < 128
    head = image > 0.1
    torch.testing.assert_close(found[head], whole[head], rtol=0, atol=0.02)
    air = found[:, :, :40]
    assert float(air.mean()) == pytest.approx(0.05 * 1.25, rel=0.1)
    assert float(air.std()) < 0.1 * float(noisy[:, :, :40].std())
    nothing = rician(torch.zeros(1, 1, 32, 32, 32), 0.05)
    with torch.no_grad():
        torch.testing.assert_close(mri_enhancement.enhanced(nothing, network, 144)[:, :1], network[0](nothing))


# ---- training


def train(*arguments: object, **changes: object) -> Path:
    small = {"epoch_length": 2, "channels": [4, 8], "field_channels": [4, 4, 8]} | changes
    done = run_medkit(["train", "enhance", *map(str, arguments), *bundled.as_sets(small), "--precision", "float32"])
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.mark.slow
def test_both_parts_train_one_after_the_other(sources: Path, tmp_path: Path) -> None:
    field = train(
        "--config", "train,field", "--data", sources / "maps.json", "-o", tmp_path / "field", "--steps", 4,
        shape=[32, 32, 32],
    )  # fmt: skip
    begin = field / "models" / "model.pt"
    whole = train(
        "--data", sources / "sources.json", "--init-from", begin, "--freeze", "1", "--steps", 8,
        "-o", tmp_path / "whole", shape=[32, 32, 32], spacing=4.0, field_of_view=[48, 48, 48],
    )  # fmt: skip
    before, after = (torch.load(p / "models" / "model.pt", weights_only=True) for p in (field, whole))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    moved = [name for name in after if name.startswith("0.")]
    assert moved
    log = (whole / "training" / "log.csv").read_text()
    assert "PSNR" in log.splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("layers", [("train",), ("train", "field")])
def test_one_epoch_under_monai(sources: Path, layers: Sequence[str]) -> None:
    maps = f"$[{{'source': '{sources}/map_0.nii.gz', 'kind': 'labels'}}]"
    changes = SMALL | {"dataset_dir": sources, "device": "cpu", "shape": [32, 32, 32], "train_datalist": maps}
    monai_bundle("run", "--config_file", str([f"configs/{n}.json" for n in layers]), changes | {"val_datalist": maps})


def monai_bundle(verb: str, flag: str, files: str, values: dict[str, object], root: Path = ROOT) -> None:
    bundled.monai_bundle(root, verb, flag, files, *bundled.as_arguments(values))


# ---- inference


@pytest.mark.slow
def test_inference_under_monai(tmp_path: Path) -> None:
    """A network that takes nothing away, on the image's own grid; the field beside it has a mean of 0 over tissue."""
    root = weighted(tmp_path / "bundle", field=float(np.log(2)))
    (tmp_path / "in").mkdir()
    noisy = scan(tmp_path / "in" / "scan.nii.gz")
    given = {"dataset_dir": tmp_path / "in", "output_dir": tmp_path / "out", "device": "cpu", "what": "parts"}
    monai_bundle("run", "--config_file", "configs/inference.json", given, root)
    (result,) = (tmp_path / "out").iterdir()
    np.testing.assert_allclose(
        nibabel.load(result).affine, nibabel.load(tmp_path / "in" / "scan.nii.gz").affine, atol=1e-4
    )
    image, field = np.moveaxis(voxels(result), -1, 0)
    np.testing.assert_allclose(image, noisy, rtol=1e-3, atol=0.1)
    assert abs(float(field[noisy > 400].mean())) < 0.02


@pytest.fixture
def enhance(toy: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Outcome]]:
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> Outcome:
        return toy("run", "enhance", *arguments, "--trust", "--json", env={"TOY_PLUGINS": "medkit_enhance"})

    return run


def test_the_plugin_runs_the_network(enhance: Callable[..., Outcome], tmp_path: Path) -> None:
    """A field of one factor everywhere is none; the image comes back as it went in, or without its floor of noise."""
    root = weighted(tmp_path / "bundle", field=0.7)
    noisy = scan(tmp_path / "a.nii.gz")
    done = enhance(tmp_path / "a.nii.gz", "--bundle", root)
    assert done.code == 0, done.err
    (record,) = done.records
    steps = record["medkit"]["enhancement"]["steps"]
    assert [(s["what"], s["method"], s["done"]) for s in steps] == [
        ("denoise", "network", True), ("bias", "network", False),
    ]  # fmt: skip
    np.testing.assert_allclose(voxels(record["path"]), noisy, rtol=1e-3, atol=0.1)
    assert record["medkit"]["bundle"]["weights_sha256"]


def test_of_an_image_without_noise_the_field_alone_is_computed(enhance: Callable[..., Outcome], tmp_path: Path) -> None:
    """Noise taken away would leave nothing, but it is not."""
    root = weighted(tmp_path / "bundle")
    path = root / "models" / "model.pt"
    weights = torch.load(path, weights_only=True)
    torch.save({k: v.fill_(torch.nan) if k.startswith("0.") else v for k, v in weights.items()}, path)
    clean = (torch.exp(shaded(0.3)[1]) * shaded(0.3)[2])[0, 0].numpy()
    nibabel.save(nibabel.Nifti1Image(1000 * clean, np.eye(4)), tmp_path / "a.nii.gz")
    done = enhance(tmp_path / "a.nii.gz", "--bundle", root)
    assert done.code == 0, done.err
    steps = done.records[0]["medkit"]["enhancement"]["steps"]
    assert [(s["what"], s["done"]) for s in steps] == [("denoise", False), ("bias", True)]
    made = voxels(done.records[0]["path"])
    assert made[clean > 0].std() / made[clean > 0].mean() < 0.3 * clean[clean > 0].std() / clean[clean > 0].mean()


def test_a_plane_goes_another_way_unless_the_network_was_named(enhance: Callable[..., Outcome], tmp_path: Path) -> None:
    root = weighted(tmp_path / "bundle")
    scan(tmp_path / "a.nii.gz")
    values = voxels(tmp_path / "a.nii.gz")[:, :, 20]
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "plane.nii.gz")
    done = enhance(tmp_path / "plane.nii.gz", "--bundle", root, "--method", "network")
    assert (done.code, "takes volumes of MR, got a plane" in done.err) == (3, True)


def test_large_images_go_through_in_parts_without_a_seam(tmp_path: Path) -> None:
    """Parts that overlap by less than the network sees differ a little, but not where they meet more than elsewhere."""
    parser = built("inference", **{k: SMALL[k] for k in ("channels", "field_channels")}, device="cpu")
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    image = torch.rand(1, 1, 64, 32, 32)
    with torch.no_grad():
        whole = parser.get_parsed_content("inferer")(image, network)
        parser["window"] = 48
        parser.parse(reset=True)
        parts = parser.get_parsed_content("inferer")(image, network)
    assert whole.shape == parts.shape == (1, 2, 64, 32, 32)
    jumps = (parts[0, 0] - image[0, 0]).diff(dim=0).abs().mean((1, 2))
    assert float(jumps.max() / jumps.median()) < 2
