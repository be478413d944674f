"""Resampling in parts returns what nnU-Net's calls of scikit-image return on whole volumes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from skimage.transform import resize

from medkit.nnunet import resampling
from medkit.nnunet.resampling import Resampling, new_shape, resampled, thick_axis


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("shape", [(18, 31, 12), (24, 9, 7), (12, 20, 17)])
def test_splines_are_those_of_scikit_image(order: int, shape: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "_PART", 800)  # several parts
    image = np.random.default_rng(0).normal(size=(12, 20, 15)).astype(np.float32)
    found = resampled(torch.from_numpy(image)[None], Resampling(image.shape, tuple(shape), None, order))[0]
    expected = resize(image.astype(np.float64), shape, order, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_are_resampled_one_by_one(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "_PART", 800)
    image = np.random.default_rng(0).normal(size=(10, 12, 14)).astype(np.float32)
    shape = [21, 9, 18]
    found = resampled(torch.from_numpy(image)[None], Resampling(image.shape, tuple(shape), axis, 3))[0].numpy()
    flat = [n for m, n in enumerate(shape) if m != axis]
    slices = np.moveaxis(image, axis, 0).astype(np.float64)
    turned = np.moveaxis(found, axis, 0)
    for n, part in enumerate(turned):
        source = slices[int((n + 0.5) * len(slices) / len(turned))]
        np.testing.assert_allclose(part, resize(source, flat, 3, mode="edge", anti_aliasing=False), atol=1e-6)


def test_splines_do_not_exceed_the_image() -> None:
    image = torch.zeros(1, 6, 6, 6)
    image[0, 3:] = 1
    found = resampled(image, Resampling((6, 6, 6), (17, 6, 6), None, 3))
    assert float(found.min()) == 0
    assert float(found.max()) == 1


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image = torch.randn(1, 3, 4, 5)
    assert resampled(image, Resampling((3, 4, 5), (3, 4, 5), 0, 3)) is image


def test_sizes_and_thick_axes() -> None:
    assert new_shape((10, 20, 30), (5.0, 1.0, 0.8), (2.5, 1.0, 1.2)) == (20, 20, 20)
    assert thick_axis((5, 1, 1), (1, 1, 1), None) == 0
    assert thick_axis((1, 1, 1), (1, 4, 1), None) == 1
    assert thick_axis((3, 1, 1), (1, 1, 1), None) is None
    assert thick_axis((1, 4, 4), (1, 1, 1), None) is None  # two axes are as thick
    assert thick_axis((5, 1, 1), (1, 1, 1), separate=False) is None
    assert thick_axis((2, 1, 1), (1, 1, 1), separate=True) == 0
