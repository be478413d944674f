"""How a scanner samples a fine grid, and the way back."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from medkit.scanner import acquisition as module
from medkit.scanner.acquisition import FWHM, Acquisition, Sampling, acquisition_of, bspline, refined
from medkit.space import Grid, apply_affine

OBLIQUE = np.array([[-0.9, 0.2, 0.5, 30.0], [0.3, 1.9, 1.0, -60.0], [-0.1, 0.4, 3.8, 20.0], [0, 0, 0, 1]])
DIAGONAL = np.diag([1.5, 1.0, 4.0, 1.0])


def edges(grid: Grid) -> np.ndarray:
    """The two outermost corners of a grid's field of view, mm."""
    return apply_affine(grid.affine, np.array([[-0.5, -0.5, -0.5], np.array(grid.shape) - 0.5]))


def acquisition(shape: tuple[int, int, int], steps: tuple[float, float, float], **more: float) -> Acquisition:
    i, j, k = (
        Sampling(n, n) if step == 1 else Sampling(n, math.ceil(n / step - 1e-6), step, **more)
        for n, step in zip(shape, steps, strict=True)
    )
    return Acquisition((i, j, k))


# ---- grids


@pytest.mark.parametrize("affine", [OBLIQUE, DIAGONAL, np.diag([-2.0, -2.0, 2.0, 1.0])])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_finer_grid_has_the_same_edges(affine: np.ndarray, scale: int) -> None:
    grid = Grid((10, 13, 7), affine)
    fine = refined(grid, grid.spacing / scale)
    assert fine.shape == tuple(scale * n for n in grid.shape)
    np.testing.assert_allclose(fine.spacing, grid.spacing / scale, rtol=1e-12)
    np.testing.assert_allclose(edges(fine), edges(grid), atol=1e-9)


def test_the_affine_is_what_arithmetic_says() -> None:
    fine = refined(Grid((20, 20, 6), np.diag([1.0, 1.0, 4.0, 1.0])), (1.0, 1.0, 1.0))
    assert fine.shape == (20, 20, 24)
    np.testing.assert_allclose(fine.affine, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -1.5], [0, 0, 0, 1]], atol=1e-12)


@pytest.mark.parametrize("spacing", [0.7, 1.0, 1.3])
def test_where_no_whole_number_fits_the_middle_stays_and_nothing_is_lost(spacing: float) -> None:
    grid = Grid((10, 13, 7), OBLIQUE)
    fine = refined(grid, [spacing] * 3)
    np.testing.assert_allclose(fine.centre, grid.centre, atol=1e-9)
    for own, new, count, size in zip(grid.spacing, fine.spacing, grid.shape, fine.shape, strict=True):
        assert new == pytest.approx(min(own, spacing), rel=1e-12)
        assert -1e-9 <= size * new - count * own < new


def test_axes_that_are_fine_enough_stay_and_so_do_planes() -> None:
    fine = refined(Grid((10, 12, 1), np.diag([0.5, 2.0, 5.0, 1.0])), (1.0, 1.0, 1.0))
    assert fine.shape == (10, 24, 1)
    np.testing.assert_allclose(fine.spacing, [0.5, 1.0, 5.0])


def test_spacings_that_a_file_has_rounded() -> None:
    grid = Grid((10, 10, 30), np.diag([*np.float32([1.2, 1.2, 3.3]).astype(float), 1.0]))
    assert refined(grid, (0.6, 0.6, 1.1)).shape == (20, 20, 90)


# ---- operators


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_the_bspline_goes_through_its_samples(count: int) -> None:
    np.testing.assert_allclose(bspline(count, np.arange(count)), np.eye(count), atol=1e-12)
    np.testing.assert_allclose(bspline(count, np.linspace(-0.5, count - 0.5, 30)).sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("count", [10, 40])  # of a few samples scipy gives an approximation
def test_the_bspline_is_scipys(count: int) -> None:
    places = np.linspace(-0.5, count - 0.5, 60)
    wanted = [ndimage.map_coordinates(row, [places], order=3, mode="reflect") for row in np.eye(count)]
    np.testing.assert_allclose(bspline(count, places), np.stack(wanted, 1), atol=1e-12)


@pytest.mark.parametrize("step", [2.0, 3.3, 4.0])
def test_the_profile_is_a_gaussian_as_wide_as_a_slice(step: float) -> None:
    impulse = torch.zeros(60, 1, 1)
    impulse[30] = 1
    sampling = Sampling(60, 15, 1.0, 22.0, step)
    seen = Acquisition((sampling, Sampling(1, 1), Sampling(1, 1))).scanned(impulse).flatten()
    assert float(seen.argmax()) == 8
    at_half = np.interp(8 + step / 2, np.arange(15), seen.numpy())
    assert at_half == pytest.approx(float(seen.max()) / 2, rel=0.05)
    spread = np.sqrt(np.average((np.arange(15) - 8.0) ** 2, weights=seen.numpy()))
    assert spread == pytest.approx(step / FWHM, rel=0.02)


@pytest.mark.parametrize("steps", [(1, 1, 4), (2, 2, 2), (3, 1, 1), (1.4, 1.4, 3.7)])
def test_scans_are_where_they_say(steps: tuple[float, float, float]) -> None:
    """A ramp in mm stays that ramp, scanned and interpolated back, away from the ends."""
    grid = Grid((48, 44, 40), np.diag([1.0, 1.0, 1.0, 1.0]))
    count = [n if step == 1 else int(n / step) for n, step in zip(grid.shape, steps, strict=True)]
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = [(n - 1) / 2 - (c - 1) / 2 * s for n, c, s in zip(grid.shape, count, steps, strict=True)]
    scan = Grid((count[0], count[1], count[2]), affine)
    way = acquisition_of(scan, grid)
    for axis in range(3):
        ramp = torch.arange(grid.shape[axis], dtype=torch.float64)
        ramp = ramp.reshape([-1 if a == axis else 1 for a in range(3)]).expand(grid.shape).clone()
        seen = way.scanned(ramp)
        where = affine[axis, axis] * np.arange(count[axis]) + affine[axis, 3]
        line = np.moveaxis(seen.numpy(), axis, 0)[:, 0, 0]
        middle = slice(3, -3)
        np.testing.assert_allclose(line[middle], where[middle], atol=0.02)
        back = np.moveaxis(way.interpolated(seen).numpy(), axis, 0)[:, 0, 0]
        np.testing.assert_allclose(back[12:-12], np.arange(grid.shape[axis])[12:-12], atol=0.05)


def test_an_axis_that_is_as_fine_is_left_alone() -> None:
    image = torch.rand(6, 5, 4)
    way = acquisition((6, 5, 4), (1, 1, 1))
    assert torch.equal(way.scanned(image), image)
    assert torch.equal(way.interpolated(image), image)


# ---- correction


def tissue(shape: tuple[int, int, int]) -> torch.Tensor:
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    folds = np.sin(19 * x[0]) * np.sin(17 * x[1] + 1) * np.sin(18 * x[2]) > 0
    return torch.from_numpy(np.where((x**2).sum(0) < 0.7, 0.6 + 0.3 * folds, 0.0)).float()


@pytest.mark.parametrize("steps", [(1, 1, 4), (4, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("sigma", [0.0, 0.02])
def test_correction_brings_an_image_nearer(steps: tuple[float, float, float], sigma: float) -> None:
    fine = tissue((48, 48, 48))
    way = acquisition((48, 48, 48), steps)
    scan = way.scanned(fine)
    scan = scan + sigma * torch.randn(scan.shape, generator=torch.Generator().manual_seed(0))
    plain = way.interpolated(scan)
    better = way.corrected(plain, scan - way.scanned(plain), sigma * way.leftover)
    assert float((better - fine).norm()) < (0.9 if not sigma else 0.96) * float((plain - fine).norm())
    left = [float((scan - way.scanned(image)).square().mean().sqrt()) for image in (plain, better)]
    assert left[1] < 0.6 * left[0]
    assert left[1] < max(sigma, 0.003)


def test_what_noise_explains_is_not_corrected() -> None:
    fine = tissue((40, 40, 40))
    way = acquisition((40, 40, 40), (1, 1, 4))
    noise = 0.05 * torch.randn((40, 40, 10), generator=torch.Generator().manual_seed(1))
    found = way.corrected(fine, noise, 0.05)
    assert float((found - fine).square().mean().sqrt()) < 0.005


@pytest.mark.parametrize("steps", [(1, 1, 4), (2, 2, 2), (1, 1, 1.7)])
def test_leftover_is_the_noise_that_interpolation_does_not_keep(steps: tuple[float, float, float]) -> None:
    way = acquisition((48, 48, 48), steps)
    noise = torch.randn([axis.count for axis in way.axes], generator=torch.Generator().manual_seed(0))
    left = noise - way.scanned(way.interpolated(noise))
    assert float(left.std()) == pytest.approx(way.leftover, rel=0.05)


@pytest.mark.parametrize(
    "axis",
    [
        Sampling(1500, 750, 2.0),
        Sampling(1500, 442, 3.4, -1.4),
        Sampling(1500, 500, 2.5, 100.0, 1.4),
        Sampling(1300, 1213, 1.0717),
    ],
    ids=["2", "3.4", "a part", "1.07"],
)
def test_a_long_axis_in_parts_is_the_whole(axis: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 128 and fewer voxels, against matrices of the whole axis."""
    random = torch.Generator().manual_seed(0)
    monkeypatch.setattr(module, "LONG", 10**9)
    whole = Acquisition((Sampling(3, 3), axis, Sampling(4, 2, 2.0)))
    fine = torch.rand(3, axis.size, 4, generator=random, dtype=torch.float64)
    scan = torch.rand(3, axis.count, 2, generator=random, dtype=torch.float64)
    wanted = [whole.scanned(fine), whole.interpolated(scan), whole.corrected(fine, scan, 0.05)]
    leftover = whole.leftover
    monkeypatch.setattr(module, "LONG", 256)
    monkeypatch.setattr(module, "PART", 120)
    parts = Acquisition((whole.axes[0], dataclasses.replace(axis), dataclasses.replace(whole.axes[2])))
    found = [parts.scanned(fine), parts.interpolated(scan), parts.corrected(fine, scan, 0.05)]
    torch.testing.assert_close(found[0], wanted[0], atol=1e-8, rtol=0)
    torch.testing.assert_close(found[1], wanted[1], atol=1e-8, rtol=0)
    torch.testing.assert_close(found[2], wanted[2], atol=2e-3, rtol=0)
    assert parts.leftover == pytest.approx(leftover, rel=5e-3)


def test_an_axis_that_is_very_long_takes_little_memory() -> None:
    """No matrix of the whole axis is made: it would have 2 * 10^9 numbers."""
    way = acquisition((60_000, 1, 1), (2, 1, 1))
    fine = torch.sin(torch.arange(60_000) / 9).reshape(-1, 1, 1)
    scan = way.scanned(fine)
    plain = way.interpolated(scan)
    better = way.corrected(plain, scan - way.scanned(plain), 1e-3 * way.leftover)
    inner = slice(20, -20)
    assert float((better - fine)[inner].abs().max()) < 0.5 * float((plain - fine)[inner].abs().max())
