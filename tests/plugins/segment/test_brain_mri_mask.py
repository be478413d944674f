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
from medkit_segment.head_pose import turned
from outcome import Outcome
from places import BUNDLES, SHARED

from medkit.pipe.records import read_sidecar, sidecar_path

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
    assert _looks(result) is False


def brain_of(*turns: tuple[int, int]) -> np.ndarray:
    """A brain with a cerebellum (I, J, K) at 2 mm, RAS+, turned by 90 degrees in these planes."""
    x, y, z = np.ogrid[-45:45, -50:50, -45:45]
    brain = (x / 33) ** 2 + (y / 42) ** 2 + (z / 28) ** 2 < 1
    brain |= (x / 20) ** 2 + ((y + 22) / 14) ** 2 + ((z + 25) / 12) ** 2 < 1
    for plane in turns:
        brain = np.rot90(brain, axes=plane)
    return brain


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        ((), None),
        (((0, 1),), "front to back"),
        (((0, 2),), "top to bottom"),
        (((1, 2),), "height"),
        (((0, 1), (1, 2)), "top to bottom"),
    ],
)
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_a_brain_that_is_turned(turns: tuple[tuple[int, int], ...], text: str | None, axes: tuple[int, ...]) -> None:
    """The header counts, not the order of the voxels."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-2.0, 2, 2])[:, axes]
    found = turned(np.flip(brain_of(*turns), 0).transpose(axes), affine)
    if text is None:
        assert found is None
    else:
        assert text in (found or "")
    assert turned(np.zeros((4, 4, 4), bool), affine) is None


@pytest.mark.slow
@pytest.mark.real_data
def test_a_head_that_is_turned_needs_a_look(medkit: Run, tmp_path: Path, shared_data: Path) -> None:
    head = nibabel.as_closest_canonical(nibabel.load(shared_data / "brain_heads/brainchop_t1.nii.gz"))
    voxels = np.asarray(head.dataobj)[::2, ::2, ::2].astype(np.int16)
    for name, data in (("upright", voxels), ("turned", np.rot90(voxels, axes=(1, 2)))):
        nibabel.Nifti1Image(data, np.diag([2.0, 2, 2, 1])).to_filename(tmp_path / f"{name}.nii.gz")
    files = [tmp_path / "upright.nii.gz", tmp_path / "turned.nii.gz"]
    done = medkit("run", "segment", "--bundle", "brain_mri_mask", "--outputs", "mask", *files, "-o", tmp_path / "out")
    assert done.code == 0
    assert [_looks(path) for path in done.paths] == [False, True]
    assert "turned.nii.gz" in done.err
    assert "the brain's height is" in done.err


def _looks(result: Path) -> bool:
    """Whether the sidecar of a result asks a person to look at it."""
    record = read_sidecar(sidecar_path(result))
    assert record is not None
    return bool(record.medkit["look"])
