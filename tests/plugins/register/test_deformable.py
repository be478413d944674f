"""The deformable engine: known warps found, fields inverted, slopes that are slopes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bends import (
    AFFINE,
    CENTRE,
    RADII,
    SHAPE,
    bend,
    bent,
    errors,
    inner_points,
    scan,
    voxel_points,
)
from medkit_register import fields
from medkit_register.affine import AffineSettings, register_affine
from medkit_register.comparison import Comparison, in_turns
from medkit_register.deformable import Warp, finest_lattice, register_deformable, stalled
from medkit_register.fields import backward_field, folding, forward_field, inverse_error
from medkit_register.inversion import invert
from medkit_register.pyramid import Pyramid, ScanVolume
from medkit_register.stages import Stage, make_stages
from medkit_register.warp import Lattice, compose, indices, jacobian, resized, smooth_field, unfolded

from medkit.space import Grid


@pytest.fixture(scope="module")
def fixed() -> Pyramid:
    return Pyramid(scan(voxel_points(SHAPE, AFFINE), SHAPE, AFFINE))


@pytest.fixture(scope="module")
def moving() -> Pyramid:
    return Pyramid(bent())


@pytest.fixture(scope="module")
def found(fixed: Pyramid, moving: Pyramid) -> Warp:
    affine = register_affine(fixed, moving, AffineSettings())
    return register_deformable(fixed, moving, affine.matrix, metric="lncc", quality="default")


def test_a_known_warp_is_found(found: Warp) -> None:
    points = inner_points()
    before = np.linalg.norm(bend(points) - points, axis=1).mean()
    assert before > 3
    assert errors(found).mean() < 0.45
    assert errors(found).max() < 1.9
    assert [round(stage.spacing) for stage in found.stages] == [4, 2]


def test_forward_then_inverse_comes_back(found: Warp) -> None:
    grids = Grid(SHAPE, AFFINE), Grid((60, 50, 66), AFFINE @ np.diag([1.1, 1.2, 0.9, 1]))
    forward = forward_field(found, *grids)
    backward = backward_field(found, forward, grids[1])
    assert (forward.from_grid, forward.to_grid) == (grids[0].digest(), grids[1].digest())
    assert (backward.from_grid, backward.to_grid) == (forward.to_grid, forward.from_grid)
    voxels = (inner_points() - AFFINE[:3, 3]) @ np.linalg.inv(AFFINE[:3, :3]).T
    error = inverse_error(forward, backward, np.rint(voxels))
    assert error["mean"] < 0.05
    assert error["max"] < 0.3


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_axis_by_axis_is_the_same(found: Warp, axes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a grid that runs along the lattice, in other orders, flipped and with other steps."""
    turn = np.eye(4)[[*axes, 3]] @ np.diag([-1.1, 0.7, -2.3, 1.0])
    turn[:3, 3] = [30, 3, 41]
    grid = Grid((31, 44, 18), AFFINE @ turn)
    assert fields.parallel(np.linalg.inv(found.lattice.affine) @ grid.affine, grid.shape)
    quick = forward_field(found, grid, grid).field
    monkeypatch.setattr(fields, "parallel", lambda *_: False)
    np.testing.assert_allclose(quick, forward_field(found, grid, grid).field, atol=0.005)
    assert np.abs(quick).max() > 1


def test_nothing_is_folded_and_volumes_are_as_they_are(found: Warp) -> None:
    points, step = inner_points(), 0.5
    shifts = [bend(points + step * axis) - bend(points - step * axis) for axis in np.eye(3)]
    truth = np.linalg.det(np.stack(shifts, -1) / (2 * step))
    said = folding(found)
    assert said["folded"] == 0
    assert 0.4 < said["jacobian_min"] < truth.min() < 1
    assert 1 < truth.max() < said["jacobian_max"] < 1.9


def test_the_number_of_threads_changes_nothing(fixed: Pyramid, moving: Pyramid) -> None:
    before, warps = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            warps.append(register_deformable(fixed, moving, np.eye(4), metric="lncc", quality="fast").forward)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(*warps, atol=1e-5)


@pytest.mark.parametrize(
    ("metric", "looks", "limit"), [("mse", {}, 0.4), ("mi", {}, 0.7), ("mi", {"inverted": True}, 1.4)]
)
def test_other_metrics(fixed: Pyramid, metric: str, looks: dict[str, bool], limit: float) -> None:
    warp = register_deformable(fixed, Pyramid(bent(**looks)), np.eye(4), metric=metric, quality="default")
    assert errors(warp).mean() < limit


def test_what_a_mask_leaves_out_pulls_nothing(fixed: Pyramid) -> None:
    """A bright lesion that only the moving scan has draws its surroundings in, unless the mask leaves it out."""
    points = voxel_points(SHAPE, AFFINE)
    where = CENTRE + np.array([10, -8, 6])
    lesion = np.linalg.norm(points - where, axis=1) < 9
    data = bent().data.clone()
    data.view(-1)[torch.from_numpy(lesion)] = 180
    mask = torch.from_numpy((np.linalg.norm(points - where, axis=1) > 12).reshape(SHAPE).astype(np.float32))
    around = np.linalg.norm(bend(inner_points()) - where, axis=1) < 14
    plain, masked = (
        errors(register_deformable(fixed, Pyramid(ScanVolume(data, AFFINE, m)), np.eye(4), metric="lncc",
                                   quality="default"))[around].mean()
        for m in (None, mask)
    )  # fmt: skip
    assert masked < 0.8 * plain


def test_planar_scans_stay_in_their_plane() -> None:
    shape, affine = (120, 130, 1), np.diag([1.0, 1.0, 3.0, 1.0])
    affine[:3, 3] = CENTRE - [59.5, 64.5, 0]

    def flat_bend(points: np.ndarray) -> np.ndarray:
        out = points.copy()
        out[:, :2] = bend(points)[:, :2]
        return out

    points = voxel_points(shape, affine)
    back = points.copy()
    for _ in range(30):
        back = back - (flat_bend(back) - points)
    scans = [Pyramid(scan(p, shape, affine)) for p in (points, back)]
    warp = register_deformable(*scans, np.eye(4), metric="lncc", quality="default")
    field = forward_field(warp, Grid(shape, affine), Grid(shape, affine))
    inside = np.linalg.norm((points - CENTRE) / RADII, axis=1) < 0.8
    moved = field.field.reshape(-1, 3) + points
    error = np.linalg.norm(moved - flat_bend(points), axis=1)[inside]
    assert np.linalg.norm(flat_bend(points) - points, axis=1)[inside].mean() > 2.5
    assert error.mean() < 0.5
    assert np.abs(field.field[..., 2]).max() == 0


@pytest.mark.parametrize("stage", [Stage(2, 2, 1.5, 0.5, 2.0, 30), Stage(1, 2, 0.75, 0.4, 3.0, 32)])
def test_forces_are_the_slope_of_the_cost(fixed: Pyramid, moving: Pyramid, stage: Stage) -> None:
    """Half the change of the summed squared residual when the warp changes a little."""
    comparison = Comparison.make(fixed, moving, np.eye(4), finest_lattice(fixed), stage, "lncc", "cpu")
    draw = torch.Generator().manual_seed(1)
    warp, change = (
        smooth_field(torch.randn(3, *comparison.cells, generator=draw), 3.0).mul_(size) for size in (8.0, 0.2)
    )
    forces, _ = comparison.forces(warp, 1)
    costs = [comparison.forces(warp + sign * change, 1)[1] for sign in (1, -1)]
    flat = change.reshape(3, -1)[:, comparison.near] * stage.warp
    expected = float((forces[:3] * flat).sum()) / forces.shape[1]
    assert (costs[0] - costs[1]) / 4 == pytest.approx(expected, rel=0.15)
    assert abs(expected) > 1e-5


def wave(shape: tuple[int, int, int], size: float) -> torch.Tensor:
    field = torch.randn(3, *shape, generator=torch.Generator().manual_seed(3))
    return smooth_field(field, 2.5) * size


def test_the_inverse_of_a_field() -> None:
    field = wave((30, 26, 28), 12.0)
    assert 0.1 < float(jacobian(field).min()) < 0.7
    back = invert(field)
    points = indices((30, 26, 28)).reshape(3, -1)
    there = compose(field, back, points, torch.arange(points.shape[1]))
    core = there[:, 4:-4, 4:-4, 4:-4]
    assert float(core.abs().max()) < 0.02
    assert float(field[:, 4:-4, 4:-4, 4:-4].abs().max()) > 0.5


def test_a_fold_is_smoothed_away() -> None:
    field = torch.zeros(3, 20, 20, 20)
    field[0, 10, 8:12, 8:12] = -3
    field[1, 3, 3, 3] = 0.3
    assert float(jacobian(field).min()) < 0
    out = unfolded(field, 0.15)
    assert float(jacobian(out).min()) > 0
    assert float(out[1, 3, 3, 3]) == pytest.approx(0.3)


def test_fields_on_a_finer_lattice() -> None:
    coarse = Lattice((16, 12, 20), AFFINE).coarser(4)
    assert coarse.shape == (4, 3, 5)
    np.testing.assert_allclose(coarse.affine[:3] @ [0, 0, 0, 1], AFFINE[:3] @ [1.5, 1.5, 1.5, 1])
    finer = resized(torch.ones(3, 4, 3, 5), (8, 6, 10))
    assert tuple(finer.shape[1:]) == (8, 6, 10)
    assert float(finer.min()) == float(finer.max()) == 2


def test_a_large_box_gets_a_wider_lattice(monkeypatch: pytest.MonkeyPatch, fixed: Pyramid) -> None:
    before = finest_lattice(fixed)
    monkeypatch.setattr("medkit_register.deformable.LARGEST_LATTICE", 20_000)
    after = finest_lattice(fixed)
    assert np.prod(after.shape) < 60_000 < np.prod(before.shape)
    middles = [lattice.affine[:3] @ [*((np.array(lattice.shape) - 1) / 2), 1] for lattice in (before, after)]
    np.testing.assert_allclose(*middles, atol=1e-6)
    assert len(make_stages(fixed, after, "fast", "lncc")) <= len(make_stages(fixed, before, "fast", "lncc"))


@pytest.mark.parametrize("every", [(2, 2, 2), (2, 2, 1), (1, 1, 1)])
def test_every_point_of_a_cell_has_its_turn(every: tuple[int, int, int]) -> None:
    turns = in_turns(every)
    assert len(set(turns)) == len(turns) == np.prod(every)


def test_steps_end_when_they_gain_nothing() -> None:
    assert not stalled([1.0] * 4, 5)
    assert not stalled([2.0] * 5 + [1.0] * 5, 5)
    assert stalled([1.0] * 10, 5)
    assert not stalled([1.0] * 11, 5)
