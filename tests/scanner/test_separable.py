"""Products with a matrix along each axis, and matrices of Gaussian weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from medkit.scanner.separable import apply_along_axes, border_gaussian_weights, gaussian_weights


@pytest.mark.parametrize("smallest_first", [False, True])
@pytest.mark.parametrize("shapes", list(itertools.permutations([(3, 7), (9, 5), (6, 6)])))
def test_apply_along_axes_is_the_product_along_each_axis(shapes: list[tuple[int, int]], smallest_first: bool) -> None:
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=shape) for shape in shapes]
    image = torch.from_numpy(rng.normal(size=[shape[1] for shape in shapes]))
    wanted = np.einsum("ai,bj,ck,ijk->abc", *matrices, image.numpy())
    np.testing.assert_allclose(apply_along_axes(image, matrices, smallest_first=smallest_first), wanted, atol=1e-12)


def test_axes_in_front_are_images_of_their_own() -> None:
    rng = np.random.default_rng(0)
    matrices = [torch.from_numpy(rng.normal(size=shape)) for shape in ((3, 7), (9, 5), (6, 4))]
    images = torch.from_numpy(rng.normal(size=(2, 3, 7, 5, 4)))
    out = apply_along_axes(images, matrices)
    assert out.shape == (2, 3, 3, 9, 6)
    torch.testing.assert_close(out[1, 2], apply_along_axes(images[1, 2], matrices), atol=1e-12, rtol=0)


@pytest.mark.parametrize("smallest_first", [False, True])
def test_an_axis_without_a_matrix_stays(smallest_first: bool) -> None:
    image = torch.rand(4, 5, 6, dtype=torch.float64)
    matrix = np.random.default_rng(0).normal(size=(3, 5))
    wanted = np.einsum("bj,ijk->ibk", matrix, image.numpy())
    out = apply_along_axes(image, [None, matrix, None], smallest_first=smallest_first)
    np.testing.assert_allclose(out, wanted, atol=1e-12)
    assert apply_along_axes(image, [None] * 3) is image


def test_gaussian_weights_smooth() -> None:
    values = np.random.default_rng(0).normal(size=40)
    weights = gaussian_weights(np.arange(40), 40, 1.5)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    wanted = ndimage.gaussian_filter1d(values, 1.5, mode="constant", truncate=8)
    np.testing.assert_allclose((weights @ values)[10:-10], wanted[10:-10], atol=1e-4)


def test_positions_outside_count_as_the_outermost_voxel() -> None:
    np.testing.assert_array_equal(
        gaussian_weights(np.array([-3.0, 12.0]), 9, 2.0), gaussian_weights(np.array([0, 8]), 9, 2.0)
    )


@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_border_gaussian_weights_repeat_the_outermost_voxel(sigma: float) -> None:
    values = np.random.default_rng(0).normal(size=20)
    weights = border_gaussian_weights(np.arange(20), 20, sigma)
    wanted = ndimage.gaussian_filter1d(values, sigma, mode="nearest", radius=int(np.ceil(3 * sigma)) + 1)
    np.testing.assert_allclose(weights @ values, wanted, atol=2e-3)
