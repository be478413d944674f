"""Images whose intensities start below 0, as those of standardised MR, in the configs of the bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bundled import built
from places import BUNDLES

pytestmark = pytest.mark.filterwarnings("ignore")

GAIN, OFFSET = 0.01, -2.0
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def head(shape: tuple[int, int, int] = (40, 44, 28)) -> np.ndarray:
    """A textured ball in empty air, 0 to 800, with a dim rim."""
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = (x**2).sum(0)
    inside = 500 + 300 * np.sin(5 * x[0] + 3 * x[2])
    return np.where(radius < 0.6, inside, np.where(radius < 0.8, 60.0, 0.0)).astype(np.float32)


def prepared(name: str, path: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """What a bundle makes of an image before its network, and its config."""
    monkeypatch.syspath_prepend(str(BUNDLES / name))
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), AFFINE), path)
    parser = built(BUNDLES / name, "inference", device="$torch.device('cpu')", spacing=4.0, shape=[32, 40, 32])
    keys = ("fixed", "moving") if name == "brain_mri_registration" else ("image",)
    return parser.get_parsed_content("preprocessing")({key: str(path) for key in keys}), parser


NAMES = [
    "brain_mri_quality_classification",
    "brain_mri_registration",
    "brain_mri_segmentation",
    "ct_xray_super_resolution",
    "lowfield_to_highfield",
    "mri_enhancement",
    "mri_super_resolution",
]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, clean_path: None) -> str:
    """A bundle whose network takes images of any offset."""
    return str(request.param)


def of(name: str) -> np.ndarray:
    return head()[:, :, 14] if name == "ct_xray_super_resolution" else head()


def test_networks_are_given_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = of(name)
    plain, _ = prepared(name, tmp_path / "plain.nii.gz", image, monkeypatch)
    moved, _ = prepared(name, tmp_path / "moved.nii.gz", GAIN * image + OFFSET, monkeypatch)
    assert plain["image"][0].max() > 0.9
    torch.testing.assert_close(moved["image"].as_tensor(), plain["image"].as_tensor(), atol=2e-3, rtol=0)
    np.testing.assert_allclose(moved["image"].affine, plain["image"].affine)


def test_a_stray_voxel_is_not_the_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A missing value, such as -32768, stands in some magnitude images."""
    if name in ("brain_mri_quality_classification", "ct_xray_super_resolution"):
        pytest.skip("counts from the lowest voxel, as its network was trained to")
    image = of(name)
    plain, _ = prepared(name, tmp_path / "plain.nii.gz", image, monkeypatch)
    image[0, 0, 0] = -32768
    stray, _ = prepared(name, tmp_path / "stray.nii.gz", image, monkeypatch)
    middle = tuple(slice(size // 3, -size // 3) for size in plain["image"].shape[1:])
    torch.testing.assert_close(
        stray["image"].as_tensor()[:1, *middle], plain["image"].as_tensor()[:1, *middle], atol=5e-3, rtol=0
    )


@pytest.mark.parametrize("name", ["brain_mri_segmentation"], indirect=True)
def test_the_zeros_around_a_standardised_brain_are_its_floor(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standardised within the brain only, as for nnU-Net: 0 around it is in the middle of its intensities."""
    image = head()
    brain = image > 0
    image[brain] = (image[brain] - image[brain].mean()) / image[brain].std()
    given = prepared(name, tmp_path / "x.nii.gz", image, monkeypatch)[0]["image"].as_tensor()
    assert (given[0] == 0).float().mean() > 0.2
    assert given[0].min() > -0.1
    assert given[0].max() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ["lowfield_to_highfield", "mri_enhancement", "mri_super_resolution"], indirect=True)
def test_results_are_moved_back(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network that changes nothing."""
    values = head()
    for gain, offset in ((1.0, 0.0), (GAIN, OFFSET)):
        item, parser = prepared(name, tmp_path / "x.nii.gz", gain * values + offset, monkeypatch)
        item["pred"] = item["image"][:1].clone() * (0 if name == "mri_super_resolution" else 1)
        if name == "mri_enhancement":
            item["pred"] = torch.cat([item["pred"], torch.zeros_like(item["pred"])])
        for transform in parser.get_parsed_content("postprocessing").transforms[:-1]:
            item = transform(item)
        made = np.asarray(item["pred"][0])
        wanted = values if name != "mri_super_resolution" else None
        if wanted is None:
            assert made.min() == pytest.approx(offset, abs=0.02 * gain)
            assert np.percentile(made, 99) == pytest.approx(gain * np.percentile(values, 99) + offset, rel=0.05)
        else:
            inner = (slice(4, -4),) * 3
            np.testing.assert_allclose(made[inner], (gain * wanted + offset)[inner], atol=2.0 * gain)
