"""Similarity, overlap and distance measures against scikit-image and plain formulas."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, normalized_mutual_information, structural_similarity

from medkit.evaluation.measures import metrics


def pair(shape: tuple[int, ...] = (31, 40, 22), noise: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """Two related images with structure."""
    draw = np.random.default_rng(3)
    grid = np.meshgrid(*[np.linspace(0, 6, n) for n in shape], indexing="ij")
    a = np.prod([np.sin(g + i) for i, g in enumerate(grid)], axis=0) + 0.1 * draw.normal(size=shape)
    b = 0.7 * a + 0.2 + noise * 0.3 * draw.normal(size=shape)
    return torch.from_numpy(a.astype(np.float32)), torch.from_numpy(b.astype(np.float32))


@pytest.mark.parametrize("shape", [(31, 40, 22), (50, 7, 60), (120, 9, 8)])
def test_ssim_equals_scikit_image(shape: tuple[int, ...]) -> None:
    a, b = pair(shape)
    expected = structural_similarity(a.numpy(), b.numpy(), data_range=2.5)
    assert metrics.ssim(a, b, data_range=2.5) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_ssim_of_a_planar_image_equals_scikit_image_in_2d(axis: int) -> None:
    a, b = (image.select(axis, 5) for image in pair())
    expected = structural_similarity(a.numpy(), b.numpy(), data_range=2.5)
    assert metrics.ssim(a.unsqueeze(axis), b.unsqueeze(axis), data_range=2.5) == pytest.approx(expected, abs=1e-5)


def test_ssim_keeps_its_digits_far_from_zero() -> None:
    a, b = (1000 + image for image in pair())
    expected = structural_similarity(a.double().numpy(), b.double().numpy(), data_range=2.5)
    assert metrics.ssim(a, b, data_range=2.5) == pytest.approx(expected, abs=2e-4)


def test_ssim_mask_picks_the_window_centres() -> None:
    a, b = pair()
    mask = torch.zeros(a.shape)
    mask[10:20, 12:30, 8:15] = 1
    whole = structural_similarity(a.numpy(), b.numpy(), data_range=2.5, full=True)[1]
    assert metrics.ssim(a, b, mask, data_range=2.5) == pytest.approx(whole[mask.numpy() > 0].mean(), abs=1e-5)


def test_ncc_and_mse_equal_numpy() -> None:
    a, b = pair()
    mask = a > 0
    inside = mask.numpy()
    assert metrics.ncc(a, b) == pytest.approx(np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1], abs=1e-5)
    assert metrics.ncc(a, b, mask) == pytest.approx(np.corrcoef(a.numpy()[inside], b.numpy()[inside])[0, 1], abs=1e-5)
    assert metrics.mse(a, b) == pytest.approx(mean_squared_error(a.numpy(), b.numpy()), rel=1e-5)


def test_ncc_of_a_constant_is_zero() -> None:
    a, _ = pair()
    assert metrics.ncc(a, torch.ones_like(a)) == 0.0


def test_mutual_information_agrees_with_the_normalised_one_of_scikit_image() -> None:
    a, b = (image.double() for image in pair())
    table = np.histogram2d(a.numpy().ravel(), b.numpy().ravel(), bins=32)[0] / a.numel()
    entropies = [-float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (table.sum(0), table.sum(1), table)]
    assert metrics.mutual_information(a, b) == pytest.approx(entropies[0] + entropies[1] - entropies[2], abs=1e-9)
    ratio = normalized_mutual_information(a.numpy(), b.numpy(), bins=32)
    assert (entropies[0] + entropies[1]) / entropies[2] == pytest.approx(ratio, abs=1e-9)


def test_similarity_compares_scans_in_other_units() -> None:
    a, b = pair()
    values = metrics.similarity(a, b)
    assert metrics.similarity(a, 4000 * b + 7) == pytest.approx(values, abs=2e-5)
    assert set(values) == {"ncc", "mi", "mse", "ssim"}
    assert metrics.similarity(a, a)["ssim"] == 1.0
    assert metrics.similarity(a, a)["mse"] == 0.0
    assert all(value == round(value, 5) for value in values.values())


def test_similarity_looks_inside_the_mask_only() -> None:
    a, b = pair(noise=0.0)
    spoilt = b.clone()
    spoilt[:8] = 5.0
    mask = torch.ones_like(a)
    mask[:12] = 0
    assert metrics.similarity(a, spoilt, mask)["ncc"] == pytest.approx(1.0, abs=1e-5)
    assert metrics.similarity(a, spoilt)["ncc"] < 0.9


def test_similarity_refuses_what_it_cannot_compare() -> None:
    a, b = pair()
    with pytest.raises(ValueError, match="one grid"):
        metrics.similarity(a, b[:-1])
    with pytest.raises(ValueError, match="no voxel"):
        metrics.similarity(a, b, torch.zeros_like(a))


def test_similarity_of_a_whole_brain_is_quick() -> None:
    a, b = torch.rand(160, 210, 170), torch.rand(160, 210, 170)
    start = time.process_time()
    metrics.similarity(a, b)
    assert time.process_time() - start < 3.0  # 0.4 s of one core when it was written


def test_dice_per_label() -> None:
    a = torch.tensor([0, 1, 1, 2, 2, 2, 7, 0]).reshape(2, 2, 2)
    b = torch.tensor([0, 1, 2, 2, 2, 2, 0, 9]).reshape(2, 2, 2)
    assert metrics.dice(a, b) == {1: pytest.approx(2 / 3), 2: pytest.approx(6 / 7), 7: 0.0, 9: 0.0}
    assert metrics.dice(a, b, ignore_background=False)[0] == pytest.approx(0.5)


def test_target_registration_error() -> None:
    points = np.array([[0.0, 0, 0], [1, 2, 3]])
    error = metrics.target_registration_error(points, points + np.array([[3.0, 4, 0], [0, 0, 1]]))
    assert error == {"mean": 3.0, "max": 5.0}


def test_correlation_of_millions_of_voxels_keeps_its_digits() -> None:
    draw = np.random.default_rng(0)
    a = draw.gamma(0.3, 400.0, 6_000_000).astype(np.float32)
    b = (a + draw.normal(0, 60, a.shape)).astype(np.float32)
    exact = np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1]
    images = (torch.from_numpy(values.reshape(100, 200, 300)) for values in (a, b))
    assert metrics.ncc(*images) == pytest.approx(exact, abs=1e-5)
