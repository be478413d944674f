"""The bundle brain_mri_segmentation under MONAI's own tools and under `medkit train`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import bundled
import nibabel
import numpy as np
import pytest
import torch
from bundled import as_arguments
from monai.bundle import ckpt_export
from outcome import Outcome
from places import BUNDLES

from medkit.images.phantom import make_image

ROOT = BUNDLES / "brain_mri_segmentation"
CONFIGS = ROOT / "configs"
META = json.loads((CONFIGS / "metadata.json").read_text())
SMALL = {
    "shape": [32, 32, 32],
    "field": [32, 32, 32],
    "spacing": 4.0,
    "channels": [4, 4, 8, 8],
    "epoch_length": 2,
    "steps": 2,
}


@pytest.fixture
def label_maps(tmp_path: Path) -> Path:
    """Three heads of a brain of two halves with a ventricle, in a skull, and the table of their labels."""
    folder = tmp_path / "maps"
    folder.mkdir()
    targets = {int(k): v for k, v in META["medkit"]["labels"].items()} | {0: "background"}
    rows = [f"{t}\t{t}\t{t}\t{name}" for t, name in sorted(targets.items())] + ["24\t24\t0\tbackground"]
    rows.append("502\t502\t0\tbackground")
    (folder / "labels.tsv").write_text("\n".join(["index\tintensity_class\ttarget\ttarget_name", *rows]) + "\n")
    priors = [f"{r.split()[0]}\t{n}\t{20 + 5 * n}\t5\t5\t2" for n, r in enumerate(rows)]
    (folder / "t1_priors.tsv").write_text("\n".join(["index\tt1_class\tmean\tmean_sd\tstd\tstd_sd", *priors]) + "\n")
    for n in range(3):
        head = np.zeros((32, 32, 32), np.uint16)
        head[3:29, 3:29, 3 + n : 29] = 502
        head[6:16, 6:26, 6 + n : 26], head[16:26, 6:26, 6 + n : 26] = 2, 41
        head[14:18, 12:20, 12:20] = 14
        nibabel.save(nibabel.Nifti1Image(head, np.diag([4.0, 4, 4, 1])), folder / f"map_{n}.nii.gz")
    return folder


built = functools.partial(bundled.built, ROOT)


monai_bundle = functools.partial(bundled.monai_bundle, ROOT)


@pytest.mark.slow
def test_the_network_takes_and_gives_what_the_metadata_says() -> None:
    bundled.verify_network(ROOT)


def test_the_configs_agree() -> None:
    one, other = (built(n) for n in ("train", "inference"))
    for name in ("network_def", "backbone", "head", "classes", "channels", "spacing"):
        assert one.get(name) == other.get(name), name
    assert one.get("field") == other.get("shape")
    values = other.get_parsed_content("label_values")
    assert values == [0, *map(int, META["medkit"]["labels"])] == sorted(values)
    channels = META["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert list(channels.values())[1:] == list(META["medkit"]["labels"].values())


def test_the_weights_are_of_this_network_and_small() -> None:
    path = ROOT / "models" / "model.pt"
    assert path.stat().st_size < 5_000_000
    weights = torch.load(path, weights_only=True)
    built("inference").get_parsed_content("network_def").load_state_dict(weights, strict=True)


@pytest.mark.parametrize("slices", [1, 4, 8])
@pytest.mark.parametrize("around", [0.0, 0.02, 0.3])
def test_a_brain_without_its_skull_is_known_by_the_zeros_around_it(slices: int, around: float) -> None:
    """Also in thick slices, between which fewer zeros are left; a whole head has air, or its scalp, there."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(CONFIGS / "inference.json")
    stripped = parser.get_parsed_content("stripped")
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in (64, 80, 64)], indexing="ij")
    brain = (sum(axis**2 for axis in axes) < 0.6).float()[None, None]
    head = brain + around * torch.rand(brain.shape, generator=torch.Generator().manual_seed(0)) * (1 - brain)
    thick = torch.nn.functional.avg_pool3d(head, (1, 1, slices))
    image = torch.nn.functional.interpolate(thick, head.shape[2:], mode="trilinear")
    logits = torch.cat([0.5 - (image > 0.5).float(), (image > 0.5).float() - 0.5], 1)
    assert bool(stripped(image, logits)) == (around == 0)


def test_scripted_export_equals_the_network(tmp_path: Path) -> None:
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(ROOT / "models" / "model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.json"),
        key_in_ckpt="",
    )
    scripted = torch.jit.load(tmp_path / "model.ts").eval()
    network = built("inference").get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(ROOT / "models" / "model.pt", weights_only=True))
    image = torch.rand(1, 4, 32, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(scripted(image), network(image), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_one_epoch_under_monai(label_maps: Path, tmp_path: Path) -> None:
    monai_bundle(
        "run",
        "--config_file", "configs/train.json",
        *as_arguments({"dataset_dir": label_maps, "device": "cpu", **SMALL}),
    )  # fmt: skip


def test_inference_under_monai(tmp_path: Path) -> None:
    """An oblique scan in LPI: the labels lie on its grid, and the file holds no others than the metadata lists."""
    affine = np.array([[-2.5, 0.2, 0, 70], [0.2, -2.5, 0.1, 80], [0, 0.1, -3.0, 60], [0, 0, 0, 1]])
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (60, 70, 50)], indexing="ij"))
    scan = np.clip(1 - (grid**2).sum(0) * 1.4, 0, 1) * 800
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(scan.astype(np.int16), affine), tmp_path / "in" / "scan.nii.gz")
    monai_bundle(
        "run",
        "--config_file", "configs/inference.json",
        *as_arguments({"dataset_dir": tmp_path / "in", "output_dir": tmp_path / "out", "device": "cpu"}),
    )  # fmt: skip
    (result,) = (tmp_path / "out").iterdir()
    labels = nibabel.load(result)
    assert labels.shape == (60, 70, 50)
    np.testing.assert_allclose(labels.affine, affine, atol=1e-4)
    allowed = {0, *map(int, META["medkit"]["labels"])}
    assert set(np.unique(np.asarray(labels.dataobj)).tolist()) <= allowed


@pytest.mark.slow
def test_labels_under_medkit_are_those_under_monai(medkit: Callable[..., Outcome], tmp_path: Path) -> None:
    """A phantom of about 1.5 mm in PIR, in float32: only rounding differs, which decides where labels are a tie."""
    source = make_image(tmp_path / "in" / "scan.nii.gz", (96, 80, 88), (1.43, 1.57, 1.38), "PIR")
    monai_bundle(
        "run",
        "--config_file", "configs/inference.json",
        *as_arguments({"dataset_dir": source.parent, "output_dir": tmp_path / "monai", "device": "cpu"}),
    )  # fmt: skip
    ways = {("bundle", "--bundle", "brain_mri_segmentation"): 1e-4, ("segment", "--no-clean", "--no-refine"): 3e-3}
    for words, share in ways.items():  # segment has a rounding of its own for what lies between two voxels
        done = medkit("run", *words, "--precision", "float32", source, "-o", tmp_path / words[0])
        assert done.code == 0, done.err
        made, monais = (np.asarray(nibabel.load(p).dataobj) for p in (done.paths[0], *(tmp_path / "monai").iterdir()))
        assert (made > 0).sum() > 1000
        assert (made != monais).mean() < share
