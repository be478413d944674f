"""nnU-Net's steps before and after the network: what goes through both lies where it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medkit.nnunet import NnunetLabelsd, NnunetPreprocessd

PLAIN = [{"scheme": "NoNormalization"}]
OBLIQUE = np.array([[0.0, -1.2, 0.1, 3.0], [1.0, 0.1, 0.0, -5.0], [0.0, 0.1, -2.0, 7.0], [0, 0, 0, 1]])


def blobs(*shape: int) -> torch.Tensor:
    """An image (1, ...) of positive and negative numbers in a box of zeros."""
    image = torch.zeros(1, *shape)
    inner = tuple(slice(2, n - 1) for n in shape)
    values = torch.randn(*(n - 3 for n in shape), generator=torch.Generator().manual_seed(0))
    image[(0, *inner)] = values.sign() * (values.abs() + 0.5)
    return image


def through(image: MetaTensor, spacing: Any, **settings: Any) -> dict[Any, Any]:
    """Prepare an image, take it and its negative for logits, and make labels of them."""
    item = NnunetPreprocessd("image", spacing, PLAIN, **settings)({"image": image})
    item["pred"] = torch.cat((-item["image"].as_tensor(), item["image"].as_tensor())).half()
    return NnunetLabelsd("pred", spacing)(item)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("orientation", [None, "RAS", "LSP"])
def test_labels_lie_where_the_image_does(axes: tuple[int, ...], orientation: str | None) -> None:
    image = MetaTensor(blobs(9, 12, 7), affine=torch.from_numpy(OBLIQUE))
    own = np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    if orientation:  # the axes of the image that run right, forward and up, or left, up and back
        own = own[[1, 0, 2]] if orientation == "RAS" else own[[1, 2, 0]]
    item = through(image, tuple(own[::-1][list(axes)]), axes=axes, orientation=orientation)
    np.testing.assert_array_equal(item["pred"].numpy(), (image > 0).numpy())
    np.testing.assert_allclose(item["pred"].affine, OBLIQUE)


def test_an_orientation_turns_the_image() -> None:
    image = MetaTensor(blobs(9, 12, 7), affine=torch.from_numpy(OBLIQUE))
    item = NnunetPreprocessd("image", (2.0, 1.0, 1.2), PLAIN, orientation="RAS", separate=False)({"image": image})
    # I runs forward, J left, K down; the result is that of SimpleITK: from below up, from the back, from the left
    expected = image[0].flip(2).flip(1).permute(2, 0, 1)[1:-2, 2:-1, 1:-2]
    assert item["image"].shape[1:] == expected.shape
    assert float((item["image"][0] - expected).abs().mean()) < 0.1


def test_a_plane() -> None:
    affine = torch.diag(torch.tensor([0.5, 0.7, 1.0, 1.0], dtype=torch.float64))
    image = MetaTensor(blobs(20, 24), affine=affine)
    item = through(image, (0.7, 0.5))
    assert item["image"].shape == (1, 1, 21, 17)
    np.testing.assert_array_equal(item["pred"].numpy(), (image > 0).numpy())


def test_intensities() -> None:
    ct = {"scheme": "CTNormalization", "mean": 10.0, "std": 5.0, "low": 0.0, "high": 100.0}
    masked, whole = ({"scheme": "ZScoreNormalization", "mask": mask} for mask in (True, False))
    scaled = {"scheme": "RescaleTo01Normalization"}
    voxels = torch.rand(4, 8, 9, 10, generator=torch.Generator().manual_seed(0)) * 300 - 100
    voxels[:, :2] = voxels[:, -1:] = voxels[:, 4:6, 4:6, 4:6] = 0  # outside, and a hole
    image = MetaTensor(voxels, affine=torch.eye(4, dtype=torch.float64))
    found = NnunetPreprocessd("image", (1.0, 1.0, 1.0), [ct, masked, whole, scaled])({"image": image})["image"]
    crop = voxels[:, 2:-1].permute(0, 3, 2, 1)
    torch.testing.assert_close(found[0].as_tensor(), (crop[0].clamp(0, 100) - 10) / 5)
    for n in (1, 2):  # holes belong to the inside
        torch.testing.assert_close(found[n].as_tensor(), (crop[n] - crop[n].mean()) / crop[n].std(correction=0))
    torch.testing.assert_close(found[3].as_tensor(), (crop[3] - crop[3].min()) / (crop[3].max() - crop[3].min()))


def test_regions_are_written_over_each_other() -> None:
    image = MetaTensor(blobs(6, 7, 8), affine=torch.eye(4, dtype=torch.float64))
    item = NnunetPreprocessd("image", (1.0, 1.0, 1.0), PLAIN)({"image": image})
    inside = torch.ones_like(item["image"].as_tensor())
    item["pred"] = torch.cat((inside, item["image"].as_tensor())).half()
    steps = NnunetLabelsd("pred", (1.0, 1.0, 1.0), regions=[2, 5])
    labels = steps(item)["pred"][0].numpy()
    box = (slice(2, 5), slice(2, 6), slice(2, 7))
    np.testing.assert_array_equal(labels[box], np.where(image[(0, *box)] > 0, 5, 2))
    assert labels.sum() == labels[box].sum()
    shares = steps.probabilities(item)
    assert shares.shape == (2, 6, 7, 8)
    assert float(shares[0, 0, 0, 0]) == 0
    np.testing.assert_array_equal((shares[1] > 0.5).numpy(), (image[0] > 0).numpy())


def test_another_number_of_channels_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected 1 channels, got 2"):
        NnunetPreprocessd("image", (1.0, 1.0, 1.0), PLAIN)({"image": torch.ones(2, 4, 4, 4)})
