"""Unlike contrasts: descriptors that ignore them, and warps found all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bends import AFFINE, CENTRE, SHAPE, bend, bent, errors, inner_points, scan, voxel_points
from medkit_register.comparison import Comparison
from medkit_register.deformable import finest_lattice, register_deformable
from medkit_register.descriptors import GAIN, descriptors, evened
from medkit_register.lattice_features import averaged
from medkit_register.pyramid import Pyramid, ScanVolume
from medkit_register.registration import warp_metric
from medkit_register.stages import Stage, make_stages
from medkit_register.warp import Lattice, Sampler, smooth_field


def texture(shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """(I, J, K) smooth, 0..1."""
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
    field = smooth_field(noise, 1.5)[0]
    return (field - field.min()) / (field.max() - field.min())


def likeness(a: torch.Tensor, b: torch.Tensor) -> float:
    """Correlation of two sets of descriptors (C, I, J, K)."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_descriptors_stay_where_contrasts_turn() -> None:
    image = texture((24, 26, 22))
    described = descriptors(image, 0.1)
    assert described.shape == (6, 24, 26, 22)
    assert 0 < float(described.min()) < float(described.max()) == pytest.approx(GAIN)
    for other in (1.2 - image, 0.3 + 0.5 * image, (0.2 + image) ** 2):
        assert likeness(described, descriptors(other, 0.1)) > 0.9
    assert abs(likeness(described, descriptors(texture((24, 26, 22), seed=1), 0.1))) < 0.1


def test_a_step_shows_in_the_two_directions_that_cross_it() -> None:
    image = torch.zeros(20, 20, 20)
    image[10:] = 1.0
    described = descriptors(image, 0.5)
    before, after = described[:, 9, 10, 10], described[:, 10, 10, 10]
    assert int(before.argmin()) == 0  # the next point lies across
    assert int(after.argmin()) == 1  # the one before does
    np.testing.assert_allclose(before[2:], GAIN)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planar_images_have_four(axis: int) -> None:
    image = texture((20, 22, 24)).narrow(axis, 10, 1)
    assert descriptors(image, 0.1).shape == (4, *image.shape)


def test_a_flat_image_has_descriptors_too() -> None:
    assert torch.isfinite(descriptors(torch.zeros(6, 7, 8), 0.0)).all()


def test_rare_and_extreme_intensities_leave_room_for_the_others() -> None:
    """Bone at 1, soft tissue within 0.02 of 0.5."""
    image = 0.5 + 0.02 * texture((20, 20, 20))
    image[:2] = 1.0
    spread = evened(image, image > 0.1)
    assert float(spread[4:].max() - spread[4:].min()) > 0.4
    order = image.flatten().argsort()
    assert (spread.flatten()[order].diff() >= -1e-6).all()


def test_slopes_summed_over_channels() -> None:
    volume = torch.stack([texture((12, 1, 14), seed) for seed in range(3)])
    weights = torch.randn(2, 501, generator=torch.Generator().manual_seed(1))
    at = torch.rand(3, 501, generator=torch.Generator().manual_seed(2)) * torch.tensor([[8.0], [0.0], [10.0]]) + 1
    at[1] = 0
    sampler = Sampler(volume)
    got = sampler.weighted_slopes(sampler.prepared(at), weights)
    assert float(got[1].abs().max()) == 0
    for axis in (0, 2):
        step = torch.zeros(3, 1)
        step[axis] = 1e-2
        ends = [(sampler.at(at + s * step)[:2] * weights).sum(0) for s in (1, -1)]
        smooth = (at[axis] - at[axis].round()).abs() > 0.02  # slopes jump at lattice points
        torch.testing.assert_close(got[axis][smooth], (ends[0] - ends[1])[smooth] / 2e-2, atol=2e-3, rtol=2e-3)


def test_averages_on_a_coarser_lattice() -> None:
    fine = Lattice((8, 1, 6), np.eye(4))
    image = texture(fine.shape)
    halved = averaged(torch.stack([image, 2 * image]), fine.coarser(2))
    assert halved.shape == (2, 4, 1, 3)
    assert float(halved[1, 1, 0, 2]) == pytest.approx(2 * float(image[2:4, :, 4:6].mean()))
    assert averaged(image, fine) is image


@pytest.fixture(scope="module")
def fixed() -> Pyramid:
    return Pyramid(scan(voxel_points(SHAPE, AFFINE), SHAPE, AFFINE))


def test_a_warp_between_unlike_contrasts_is_found(fixed: Pyramid) -> None:
    """To less than half of what mutual information is allowed in test_deformable."""
    moving = Pyramid(bent(inverted=True))
    warp = register_deformable(fixed, moving, np.eye(4), metric="mind", quality="default")
    before = np.linalg.norm(bend(inner_points()) - inner_points(), axis=1).mean()
    assert before > 3
    assert errors(warp).mean() < 0.6
    assert warp.metric == "mind"


@pytest.mark.parametrize("stage", [Stage(2, 2, 3.0, 1.0, 1.0, 30, 1), Stage(1, 2, 2.5, 1.0, 1.0, 24)])
@pytest.mark.parametrize("masked", [False, True])
def test_forces_are_the_slope_of_the_cost(fixed: Pyramid, stage: Stage, masked: bool) -> None:
    """Half the change of the summed squared residual when the warp changes a little; a mask leaves its part out."""
    mask = torch.ones(SHAPE)
    mask[: SHAPE[0] // 2] = 0  # RAS: x above the middle
    moving = Pyramid(ScanVolume(bent(inverted=True).data, AFFINE, mask if masked else None))
    lattice = finest_lattice(fixed)
    comparison = Comparison.make(fixed, moving, np.eye(4), lattice, stage, "mind", "cpu")
    draw = torch.Generator().manual_seed(1)
    warp, change = (
        smooth_field(torch.randn(3, *comparison.cells, generator=draw), 3.0).mul_(size) for size in (4.0, 0.2)
    )
    pull, _ = comparison.forces(warp, 1)
    costs = [comparison.forces(warp + sign * change, 1)[1] for sign in (1, -1)]
    flat = change.reshape(3, -1)[:, comparison.near] * stage.warp
    if masked:
        cells = lattice.coarser(stage.warp)
        index = np.stack(np.unravel_index(comparison.near.numpy(), cells.shape))
        right = (cells.affine[:3] @ np.vstack([index, np.ones(index.shape[1])]))[0] > CENTRE[0] + 10
        assert float(pull[:, torch.from_numpy(right)].abs().max()) == 0
        assert float(pull[:, torch.from_numpy(~right)].abs().max()) > 0.01
    else:
        expected = float((pull[:3] * flat).sum()) / pull.shape[1]
        assert (costs[0] - costs[1]) / 4 == pytest.approx(expected, rel=0.15)
        assert abs(expected) > 1e-5


def test_the_coarsest_descriptors_are_averages_of_finer_ones(fixed: Pyramid) -> None:
    stages = {q: make_stages(fixed, finest_lattice(fixed), q, "mind") for q in ("fast", "default", "best")}
    assert [(s.image, s.detail) for s in stages["default"]] == [(2, 1), (1, 0)]
    assert [len(s) for s in stages.values()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("asked", "affine", "expected"),
    [
        ("auto", "mi", "mind"),
        ("auto", "lncc", "lncc"),
        ("mind", "mi", "mind"),
        ("mi", "mi", "mi"),
        ("mse", "mse", "mse"),
    ],
)
def test_what_a_warp_follows(asked: str, affine: str, expected: str) -> None:
    assert warp_metric(asked, affine) == expected
