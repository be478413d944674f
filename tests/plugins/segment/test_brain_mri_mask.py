"""The bundle brain_mri_mask under MONAI's own tools, under `medkit train` and on scans."""

from __future__ import annotations

import functools
import json
import shutil
import sys
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

ROOT = BUNDLES / "brain_mri_mask"
META = json.loads((ROOT / "configs" / "metadata.json").read_text())
SMALL = {"shape": [32, 32, 32], "spacing": 4.0, "channels": [4, 4, 8, 8], "epoch_length": 2, "steps": 2}

Run = Callable[..., Outcome]
pytestmark = pytest.mark.usefixtures("clean_path")
built = functools.partial(bundled.built, ROOT)
monai_bundle = functools.partial(bundled.monai_bundle, ROOT)


@pytest.fixture
def label_maps(tmp_path: Path) -> Path:
    """Three heads of a brain in a skull, and the tables of their labels."""
    folder = bundled.write_sources(tmp_path / "maps")
    shutil.copy(folder / "map_1.nii.gz", folder / "map_2.nii.gz")
    return folder


@pytest.mark.slow
def test_the_network_takes_and_gives_what_the_metadata_says() -> None:
    bundled.verify_network(ROOT)


def test_the_configs_agree() -> None:
    one, other = (built(n) for n in ("train", "inference"))
    for name in ("network_def", "backbone", "head", "classes", "channels"):
        assert one.get(name) == other.get(name), name
    assert one.get("spacing") == 2 * other.get("spacing")
    assert [2 * n for n in one.get("shape")] == other.get("shape")


def test_the_weights_are_of_this_network_and_small() -> None:
    path = ROOT / "models" / "model.pt"
    assert path.stat().st_size < 5_000_000
    weights = torch.load(path, weights_only=True)
    built("inference").get_parsed_content("network_def").load_state_dict(weights, strict=True)


@pytest.mark.parametrize("shape", [(32, 48, 64), (16, 80, 32)])
def test_logits_lie_where_the_image_has_its_values(shape: tuple[int, int, int]) -> None:
    """The image at half the resolution and back: a ramp stays a ramp, also where the network's size is padded."""
    config = built("inference")
    halved, doubled = (config.get_parsed_content(name) for name in ("halved", "doubled"))
    ramp = torch.arange(float(shape[1]))[None, None, None, :, None].expand(1, 4, *shape)
    half = halved(ramp)
    assert all(n % 16 == 0 for n in half.shape[2:])
    back = doubled(half, torch.Size(shape))
    assert tuple(back.shape[2:]) == shape
    inner = slice(2, shape[1] - 2)
    torch.testing.assert_close(back[0, 0, 4, inner, 4], ramp[0, 0, 4, inner, 4])


@pytest.mark.slow
def test_one_epoch_under_monai(label_maps: Path) -> None:
    monai_bundle(
        "run",
        "--config_file", "configs/train.json",
        *as_arguments({"dataset_dir": label_maps, "device": "cpu", **SMALL}),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("contrast", ["T2", "PD"])
def test_masks_of_heads_that_did_not_train(medkit: Run, tmp_path: Path, contrast: str) -> None:
    maps = SHARED / "data" / "brain_labelmaps"
    if not maps.is_dir():
        pytest.skip(f"{maps} is not here")
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        import brain_mask
    finally:
        sys.path.pop(0)
    table = brain_mask.LabelTable.read(maps / "labels.tsv", maps / "t1_priors.tsv")
    inside = torch.tensor([index not in brain_mask.OUTSIDE for index in table.indices])
    own = brain_mask.contrast(table, contrast)
    synthesis = brain_mask.Synthesis(own, (192, 224, 192), 1.0, brain_mask.EASY, brain_mask.OUTSIDE, (24,))
    label_map = brain_mask.read_map(maps, "20", table)
    drawn = brain_mask.write_drawn(tmp_path / "head.nii.gz", synthesis, label_map, 7)
    truth = brain_mask.filled(inside[drawn].numpy(), np.ones(3), brain_mask.MASK_GAP)
    done = medkit(
        "run", "segment", "--bundle", "brain_mri_mask", "--outputs", "mask", tmp_path / "head.nii.gz",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    (result,) = done.paths
    found = np.asarray(nibabel.load(result).dataobj) > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.91
    assert not (read_sidecar(result) or {}).get("look")
