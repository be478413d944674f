"""The bundle infant_mri_segmentation under MONAI's own tools, under `medkit train` and on scans."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import bundled
import nibabel
import numpy as np
import pytest
import torch
from bundled import as_arguments
from outcome import Outcome
from places import BUNDLES, SHARED

from medkit.pipe.records import read_sidecar

ROOT = BUNDLES / "infant_mri_segmentation"
CONFIGS = ROOT / "configs"
META = json.loads((CONFIGS / "metadata.json").read_text())
LABELS = [int(label) for label in META["medkit"]["labels"]]
SMALL = {
    "shape": [32, 32, 32],
    "field": [32, 32, 32],
    "spacing": 4.0,
    "channels": [4, 4, 8, 8],
    "epoch_length": 2,
    "steps": 2,
}

Run = Callable[..., Outcome]
pytestmark = pytest.mark.usefixtures("clean_path")
built = functools.partial(bundled.built, ROOT)
monai_bundle = functools.partial(bundled.monai_bundle, ROOT)


@pytest.fixture
def infants(tmp_path: Path) -> Path:
    """Two made-up brains of two halves, their labels, and the list of both."""
    folder = tmp_path / "infants"
    folder.mkdir()
    items = []
    for n in range(2):
        labels = np.zeros((28, 34, 28), np.int16)
        labels[4:14, 4:30, 4 + n : 24], labels[14:24, 4:30, 4 + n : 24] = 2, 41
        labels[4:9, 4:30, 4 + n : 24], labels[19:24, 4:30, 4 + n : 24] = 6, 47
        values = np.where(labels == 0, 0, 300 + 5 * labels).astype(np.int16)
        for name, data in (("", values), ("_labels", labels)):
            nibabel.save(nibabel.Nifti1Image(data, np.diag([4.0, 4, 4, 1])), folder / f"{n}{name}.nii.gz")
        items.append({"image": f"{n}.nii.gz", "label": f"{n}_labels.nii.gz"})
    (folder / "dataset.json").write_text(json.dumps({"training": items[:1], "validation": items[1:]}))
    return folder


@pytest.mark.slow
def test_the_network_takes_and_gives_what_the_metadata_says() -> None:
    bundled.verify_network(ROOT)


def test_the_configs_agree() -> None:
    one, other = (built(n) for n in ("train", "inference"))
    for name in ("network_def", "backbone", "head", "classes", "channels", "spacing", "mirrored_channels"):
        assert one.get(name) == other.get(name), name
    assert one.get("field") == other.get("shape")
    for config in (one, other):
        assert config.get_parsed_content("label_values") == [0, *LABELS]
    channels = META["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert list(channels.values())[1:] == list(META["medkit"]["labels"].values())


def test_a_mirror_swaps_left_and_right() -> None:
    """Structures in the middle stay; a training item that is mirrored keeps its sides."""
    config = built("train")
    swapped = [[0, *LABELS][channel] for channel in config.get_parsed_content("mirrored_channels")]
    names = {0: "", **{label: META["medkit"]["labels"][str(label)] for label in LABELS}}
    for label, other in zip([0, *LABELS], swapped, strict=True):
        sides = names[label].replace("left", "?").replace("right", "left").replace("?", "right")
        assert names[other] == sides
    mirrored = config.get_parsed_content("mirrored")
    item = {"image": torch.arange(4.0).reshape(1, 4, 1, 1), "label": torch.tensor([0, 1, 16, 16]).reshape(1, 4, 1, 1)}
    turned = mirrored({**item, "mirror": 1})
    assert turned["image"].flatten().tolist() == [3, 2, 1, 0]
    assert turned["label"].flatten().tolist() == [1, 1, 16, 0]
    assert mirrored({**item, "mirror": 0})["label"] is item["label"]


def test_the_weights_are_of_this_network_and_small() -> None:
    path = ROOT / "models" / "model.pt"
    assert path.stat().st_size < 5_000_000
    weights = torch.load(path, weights_only=True)
    built("inference").get_parsed_content("network_def").load_state_dict(weights, strict=True)


@pytest.mark.slow
def test_one_epoch_under_monai(infants: Path) -> None:
    monai_bundle(
        "run",
        "--config_file", "configs/train.json",
        *as_arguments({"dataset_dir": infants, "device": "cpu", **SMALL}),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", ["05", "13"])
def test_infants_that_did_not_train(medkit: Run, tmp_path: Path, number: str) -> None:
    folder = SHARED / "data" / "infants" / f"Template{number}"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    scan = Path(shutil.copy(folder / "T1w_brain.nii.gz", tmp_path / "scan.nii.gz"))
    done = medkit("run", "segment", "--bundle", "infant_mri_segmentation", scan, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    (result,) = done.paths
    found = np.asarray(nibabel.load(result).dataobj)
    truth = np.asarray(nibabel.load(folder / "Segmentation.nii.gz").dataobj).astype(int)
    truth[truth == 6] = 8
    both = [(found == label, truth == label) for label in LABELS]
    assert np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in both]) > 0.78
    assert 2 * ((found > 0) & (truth > 0)).sum() / ((found > 0).sum() + (truth > 0).sum()) > 0.96
    assert not (read_sidecar(result) or {}).get("look")
