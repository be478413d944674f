"""The bundle chest_ct_segmentation under MONAI's own tools, under `medkit train` and on scans."""

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
from chests import Chest, dice
from outcome import Outcome
from places import BUNDLES, SHARED

from medkit.images.image import read_image
from medkit.pipe.records import read_sidecar
from medkit.transforms.resampling import resample

ROOT = BUNDLES / "chest_ct_segmentation"
CONFIGS = ROOT / "configs"
META = json.loads((CONFIGS / "metadata.json").read_text())
SMALL = {
    "shape": [32, 32, 32],
    "spacing": 8.0,
    "channels": [4, 4, 8, 8],
    "epoch_length": 2,
    "steps": 2,
}
SCANS = {
    "cip_ct-64.nrrd": ("cip_wholeLung-64.nrrd", 0.975),
    "elastix_lung_baseline_small.mha": ("elastix_lung_baseline_mask.mha", 0.95),
}

Run = Callable[..., Outcome]
pytestmark = pytest.mark.usefixtures("clean_path")
built = functools.partial(bundled.built, ROOT)
monai_bundle = functools.partial(bundled.monai_bundle, ROOT)


@pytest.fixture
def chests(tmp_path: Path) -> Path:
    """Two made-up chests, their labels, and the list of both."""
    folder = tmp_path / "chests"
    folder.mkdir()
    items = []
    for n, blood in enumerate((45.0, 200.0)):
        lungs = Chest(spacing=(8.0, 8.0, 8.0), blood=blood).write(folder / f"{n}.nii.gz")
        image = nibabel.load(folder / f"{n}.nii.gz")
        values = np.asarray(image.dataobj)
        labels = np.where(lungs > 0, lungs, np.where(values > 250, 5, values > -300)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), folder / f"{n}_labels.nii.gz")
        items.append({"image": f"{n}.nii.gz", "label": f"{n}_labels.nii.gz"})
    (folder / "dataset.json").write_text(json.dumps({"training": items[:1], "validation": items[1:]}))
    return folder


@pytest.mark.slow
def test_the_network_takes_and_gives_what_the_metadata_says() -> None:
    bundled.verify_network(ROOT)


def test_the_configs_agree() -> None:
    one, other = (built(n) for n in ("train", "inference"))
    for name in ("network_def", "backbone", "head", "classes", "channels", "spacing"):
        assert one.get(name) == other.get(name), name
    channels = META["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert list(channels.values())[1:] == list(META["medkit"]["labels"].values())
    assert len(channels) == one.get("classes")


def test_the_weights_are_of_this_network_and_small() -> None:
    path = ROOT / "models" / "model.pt"
    assert path.stat().st_size < 5_000_000
    weights = torch.load(path, weights_only=True)
    built("inference").get_parsed_content("network_def").load_state_dict(weights, strict=True)


@pytest.mark.slow
def test_one_epoch_under_monai(chests: Path) -> None:
    monai_bundle(
        "run",
        "--config_file", "configs/train.json",
        *as_arguments({"dataset_dir": chests, "device": "cpu", **SMALL}),
    )  # fmt: skip


def test_a_training_under_medkit(medkit: Run, chests: Path, tmp_path: Path) -> None:
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    done = medkit("train", "segment", "--bundle", ROOT, "--trust", "--data", chests, *settings, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "step 2/2" in done.err


@pytest.mark.slow
def test_labels_under_medkit_are_those_under_monai(medkit: Run, tmp_path: Path) -> None:
    """In float32, without what only medkit does: cleaning, and borders drawn again."""
    (tmp_path / "in").mkdir()
    Chest(spacing=(3.7, 4.3, 5.1), orientation="LPI").write(tmp_path / "in" / "chest.nii.gz")
    monai_bundle(
        "run",
        "--config_file", "configs/inference.json",
        *as_arguments({"dataset_dir": tmp_path / "in", "output_dir": tmp_path / "monai", "device": "cpu"}),
    )  # fmt: skip
    done = medkit(
        "run", "segment", "--no-clean", "--no-refine", "--precision", "float32",
        tmp_path / "in" / "chest.nii.gz", "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    made, monais = (np.asarray(nibabel.load(p).dataobj) for p in (done.paths[0], *(tmp_path / "monai").iterdir()))
    assert (made > 0).sum() > 1000
    assert (made != monais).mean() < 3e-3


@pytest.mark.parametrize("orientation", ["RAS", "LPI"])
def test_a_ct_goes_to_this_bundle(medkit: Run, tmp_path: Path, orientation: str) -> None:
    truth = Chest(spacing=(3.0, 3.0, 4.0), orientation=orientation).write(tmp_path / "ct.nii.gz")
    done = medkit("run", "segment", tmp_path / "ct.nii.gz", "--outputs", "labels,regions", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    labels = np.asarray(nibabel.load(done.paths[0]).dataobj)
    for number in (2, 3):
        assert dice(labels == number, truth == number) > 0.8
    record = read_sidecar(tmp_path / "out" / "ct_dseg.json")
    assert record is not None
    assert record.medkit["choice"]["name"] == "chest_ct_segmentation"
    assert record.medkit["metrics"]["density"]["lung_left"]["mean_hu"] < -500


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the scans are in {SHARED}")
@pytest.mark.parametrize("name", SCANS)
def test_lungs_of_scans(medkit: Run, tmp_path: Path, name: str) -> None:
    mask, least = SCANS[name]
    done = medkit("run", "segment", SHARED / "data" / "lung_ct" / name, "-o", tmp_path)
    assert done.code == 0, done.err
    truth = read_image(SHARED / "data" / "lung_ct" / mask, labels=True)
    found = resample(read_image(Path(done.paths[0]), labels=True), truth.grid, interpolation="nearest")
    assert dice(np.isin(found.data, (2, 3)), truth.data > 0) > least
