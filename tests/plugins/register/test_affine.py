"""The registration engine: synthetic scenes with a known answer, and real pairs."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from medkit_register import affine as engine
from medkit_register import level_plans
from medkit_register.affine import AffineSettings, register_affine
from medkit_register.axes import make_axes
from medkit_register.axis_sampling import axis_sampling
from medkit_register.level_plans import make_level_plans
from medkit_register.optimise import Freedom, Optimum, rigid_part, rotation
from medkit_register.pyramid import Pyramid, ScanVolume
from medkit_register.similarity import MEASURES, to_bins
from medkit_register.start import search
from medkit_register.start_scoring import BINS, StartScores
from scipy.spatial.transform import Rotation

from medkit.errors import MedkitError

CENTRE = np.array([12.0, -20.0, 31.0])
RAS = np.diag([1.0, 1.0, 1.0, 1.0])


def scene(points: np.ndarray, *, seed: int = 5, inverted: bool = False) -> np.ndarray:
    """Intensity (N,) of a made-up organ at RAS+ points (N, 3): an ellipsoid with blobs, 0 around it."""
    draw = np.random.default_rng(seed)
    radii = np.array([42.0, 56.0, 36.0])
    points = points.astype(np.float32)
    value = np.full(len(points), 60, np.float32)
    for _ in range(40):
        where = draw.uniform(-0.9, 0.9, 3) * radii
        size, height = draw.uniform(4, 14), draw.uniform(-45, 60)
        value += np.float32(height) * np.exp(
            ((points - np.float32(CENTRE + where)) ** 2).sum(1) * np.float32(-0.5 / size**2)
        )
    if inverted:
        value = 220 - value
    rim = 1 / (1 + np.exp(36 * (np.linalg.norm((points - CENTRE) / radii, axis=1) - 1)))
    return np.clip(value, 5, None) * rim


def make(shape: tuple[int, int, int], affine: np.ndarray, truth: np.ndarray | None = None, **looks: bool) -> ScanVolume:
    """A scan of the scene; `truth` (4, 4) takes scene points to where this scan shows them."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    back = np.linalg.inv(np.eye(4) if truth is None else truth) @ affine
    values = scene(grid @ back[:3, :3].T + back[:3, 3], **looks)
    return ScanVolume(torch.from_numpy(values.reshape(shape).astype(np.float32)), affine)


def grid_affine(spacing: tuple[float, float, float], shape: tuple[int, int, int], turn: np.ndarray) -> np.ndarray:
    """(4, 4) of a grid about the scene's centre, its axes along the columns of `turn` (3, 3)."""
    out = np.eye(4)
    out[:3, :3] = turn @ np.diag(spacing)
    out[:3, 3] = CENTRE - out[:3, :3] @ (np.asarray(shape) - 1) / 2
    return out


def about_centre(linear: np.ndarray, shift: tuple[float, float, float]) -> np.ndarray:
    """(4, 4) that applies `linear` (3, 3) about the scene's centre and then moves by `shift` mm."""
    out = np.eye(4)
    out[:3, :3] = linear
    out[:3, 3] = CENTRE + shift - linear @ CENTRE
    return out


def error_mm(found: np.ndarray, truth: np.ndarray) -> float:
    """The largest distance between the two maps of points just inside the organ's surface."""
    corners = np.array(list(itertools.product((-24, 24), (-32, 32), (-20, 20)))) + CENTRE
    points = np.hstack([corners, np.ones((8, 1))])
    return float(np.linalg.norm((points @ (found - truth).T)[:, :3], axis=1).max())


SHAPE = (58, 60, 56)
UPRIGHT = grid_affine((2.1, 2.3, 2.0), SHAPE, np.eye(3))
TILT = rotation(np.deg2rad([12.0, -9.0, 7.0]))
SHEARED = np.array([[1.08, 0.06, -0.02], [-0.03, 0.94, 0.05], [0.04, 0.0, 1.05]])
TURNED = about_centre(rotation(np.deg2rad([50.0, -40.0, 35.0])), (30.0, -50.0, 60.0))


@pytest.fixture(scope="module")
def fixed() -> Pyramid:
    return Pyramid(make(SHAPE, UPRIGHT))


def far(truth: np.ndarray, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """The grid moved to where `truth` puts the organ."""
    out = affine.copy()
    out[:3, 3] += (truth @ [*CENTRE, 1])[:3] - CENTRE
    return out


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (0.3, -1.2, 0.8), (0.0, 0.0, np.pi), (1e-9, 0.0, 2e-9)])
def test_rotations_are_those_of_scipy(angles: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(rotation(np.array(angles)), Rotation.from_rotvec(angles).as_matrix(), atol=1e-12)


@pytest.mark.parametrize("spacing", [(1.7, 1.7, 4.5), (3.0, 1.5, 2.0)])
def test_affine_on_an_anisotropic_oblique_scan(fixed: Pyramid, spacing: tuple[float, float, float]) -> None:
    truth = about_centre(rotation(np.deg2rad([10.0, 5.0, -15.0])) @ SHEARED, (15.0, -8.0, 20.0))
    shape = tuple(int(140 / s) for s in spacing)
    moving = make(shape, far(truth, shape, grid_affine(spacing, shape, TILT)), truth)
    result = register_affine(fixed, moving, AffineSettings())
    assert error_mm(result.matrix, truth) < 0.5
    assert result.metric == "lncc"
    assert not result.warnings


def test_rigid_is_an_exact_rotation_and_survives_a_large_one(fixed: Pyramid) -> None:
    result = register_affine(fixed, make(SHAPE, far(TURNED, SHAPE, UPRIGHT), TURNED), AffineSettings(type="rigid"))
    turn = result.matrix[:3, :3]
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1.0, abs=1e-12)
    assert error_mm(result.matrix, TURNED) < 0.1


def test_the_search_ranks_rotations(fixed: Pyramid) -> None:
    """The best start after the header's lies near the true rotation, before any step of the optimiser."""
    axes = make_axes(fixed, moving := Pyramid(make(SHAPE, far(TURNED, SHAPE, UPRIGHT), TURNED)))
    run = engine.AffineRun(fixed, moving, axes, AffineSettings(type="rigid"))
    starts = search(run.problem(run.level_plans[0], "mi"), axes, "auto", scaled=False, planar=False)
    away = [np.arccos((np.trace(s[:, :3].T @ TURNED[:3, :3]) - 1) / 2) for s in starts]
    assert np.rad2deg(away[1]) < 25
    assert np.rad2deg(away[0]) > 50


@pytest.mark.parametrize(("inverted", "searches"), [(False, 2), (True, 3)])
def test_a_search_in_vain_is_repeated(
    fixed: Pyramid, monkeypatch: pytest.MonkeyPatch, inverted: bool, searches: int
) -> None:
    """Like contrasts until they correlate at what was found; unlike ones until it was found twice."""
    truth = about_centre(rotation(np.array([0.1, 0.2, -0.1])), (4.0, -3.0, 2.0))
    moving = make((96, 128, 88), grid_affine((1.0, 1.0, 1.0), (96, 128, 88), np.eye(3)), truth, inverted=inverted)
    away = about_centre(rotation(np.array([0.0, 2.0, 0.0])), (25.0, 0.0, 0.0))
    searched = engine.AffineRun.search_once
    asked: list[bool] = []

    def sometimes(run: engine.AffineRun, seed: int, metric: engine.Metric, *, thorough: bool = False) -> Optimum:
        found = searched(run, seed, metric)
        asked.append(thorough)
        return replace(found, mapping=run.axes.to_local(away @ truth)) if len(asked) == 1 else found

    monkeypatch.setattr(engine.AffineRun, "search_once", sometimes)
    found = register_affine(fixed, moving).matrix
    assert error_mm(found, truth) < (1.0 if inverted else 0.5)
    assert asked == [False] + [True] * (searches - 1)


def test_trials_count_nearest_points(fixed: Pyramid) -> None:
    """Mutual information as a table of counts made by hand gives it; without overlap there is none."""
    moving = Pyramid(make(SHAPE, UPRIGHT, inverted=True))
    run = engine.AffineRun(fixed, moving, make_axes(fixed, moving), AffineSettings())
    problem = run.problem(run.level_plans[0], "mi")
    maps = np.stack([np.eye(3, 4), np.hstack([np.eye(3), [[7.0], [-5], [3]]])])
    index = (
        problem.target.index_from_local @ np.vstack([maps[1], [0, 0, 0, 1]]) @ problem.samples.points.double().numpy()
    )
    image = problem.target.channels[0, 0]
    at = tuple(np.clip(np.rint(index[a]), 0, image.shape[a] - 1).astype(int) for a in range(3))
    f, m = (np.rint(to_bins(v, BINS).numpy()).astype(int) for v in (problem.samples.values, image[at]))
    joint = np.histogram2d(f, m, bins=BINS, range=[[-0.5, BINS - 0.5]] * 2)[0] / len(f)
    both = joint[joint > 0] @ np.log(joint[joint > 0])
    alone = [p[p > 0] @ np.log(p[p > 0]) for p in (joint.sum(0), joint.sum(1))]
    found = StartScores(problem).scores(maps, len(f))
    assert found[1] == pytest.approx(both - sum(alone), abs=0.01)
    assert found[0] > found[1]


@pytest.mark.parametrize("side", [0, 1], ids=["moving", "fixed"])
def test_a_third_may_be_missing_on_one_side(fixed: Pyramid, side: int) -> None:
    truth = about_centre(rotation(np.deg2rad([20.0, -25.0, 15.0])), (60.0, -40.0, 50.0))
    cut = (SHAPE[0], SHAPE[1], SHAPE[2] * 2 // 3)
    scans = [Pyramid(make(SHAPE, UPRIGHT)), make(cut, truth @ UPRIGHT, truth)]
    if side:
        scans = [Pyramid(make(cut, UPRIGHT)), make(SHAPE, truth @ UPRIGHT, truth)]
    result = register_affine(*scans, AffineSettings(type="rigid"))
    assert error_mm(result.matrix, truth) < 1.0


@pytest.mark.parametrize("metric", ["lncc", "mi", "mse"])
def test_every_metric_finds_the_same_map(fixed: Pyramid, metric: str) -> None:
    truth = about_centre(SHEARED, (4.0, 9.0, -6.0))
    result = register_affine(fixed, make(SHAPE, UPRIGHT, truth), AffineSettings(metric=metric))  # type: ignore[arg-type]
    assert result.metric == metric
    assert error_mm(result.matrix, truth) < 0.8


def test_another_contrast_is_noticed_and_registered(fixed: Pyramid) -> None:
    truth = about_centre(rotation(np.deg2rad([8.0, -14.0, 10.0])), (12.0, 5.0, -9.0))
    moving = make(SHAPE, far(truth, SHAPE, UPRIGHT), truth, inverted=True)
    result = register_affine(fixed, moving, AffineSettings(type="rigid"))
    assert result.metric == "mi"
    assert "unlike" in result.reason
    assert error_mm(result.matrix, truth) < 1.5  # partial volume moves the rim by half a voxel between the contrasts


def stored(volume: ScanVolume, order: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> ScanVolume:
    """The same scan with its voxel axes permuted and flipped."""
    data = volume.data.permute(*order)
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, old in enumerate(order):
        turn[old, new] = -1 if flips[new] else 1
        turn[old, 3] = volume.data.shape[old] - 1 if flips[new] else 0
    return ScanVolume(data.flip([a for a in range(3) if flips[a]]), volume.affine @ turn)


@pytest.mark.parametrize(
    ("order", "flips"),
    [
        ((0, 1, 2), (True, False, False)),  # LAS
        ((0, 1, 2), (True, True, True)),  # LPI
        ((1, 2, 0), (True, True, False)),  # PIR
        ((2, 0, 1), (False, True, True)),
    ],
)
def test_storage_order_changes_nothing(
    fixed: Pyramid, order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    truth = about_centre(SHEARED @ TILT, (4.0, 9.0, -6.0))
    moving = make((60, 70, 50), grid_affine((2.1, 1.9, 2.6), (60, 70, 50), TILT), truth)
    reference = register_affine(fixed, moving).matrix
    again = Pyramid(stored(make(SHAPE, UPRIGHT), order, flips))
    assert error_mm(register_affine(fixed, stored(moving, order, flips)).matrix, reference) < 0.01
    assert error_mm(register_affine(again, moving).matrix, reference) < 0.01


def test_an_oblique_acquisition_gives_the_same_map(fixed: Pyramid) -> None:
    truth = about_centre(SHEARED, (4.0, 9.0, -6.0))
    upright = register_affine(fixed, make(SHAPE, UPRIGHT, truth)).matrix
    oblique = register_affine(fixed, make(SHAPE, grid_affine((2.0, 2.0, 2.0), SHAPE, TILT), truth)).matrix
    assert error_mm(oblique, upright) < 0.3  # voxels of 2 mm that lie elsewhere


def test_threads_and_repeats_change_nothing(fixed: Pyramid) -> None:
    moving = make(SHAPE, UPRIGHT, about_centre(SHEARED, (4.0, 9.0, -6.0)))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(register_affine(fixed, moving).matrix)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[1], results[2])


def test_the_fixed_image_is_prepared_once() -> None:
    prepared = Pyramid(make(SHAPE, UPRIGHT))
    moving = make(SHAPE, UPRIGHT, about_centre(SHEARED, (4.0, 9.0, -6.0)))
    register_affine(prepared, moving)
    levels = dict(prepared._levels)
    first = register_affine(prepared, moving).matrix
    assert dict(prepared._levels) == levels
    np.testing.assert_array_equal(first, register_affine(Pyramid(make(SHAPE, UPRIGHT)), moving).matrix)


def test_roles_can_be_exchanged(fixed: Pyramid) -> None:
    """A smaller moving object takes the fixed one's place inside; the answer is still fixed to moving."""
    truth = about_centre(0.8 * TILT, (10.0, 0.0, 5.0))
    result = register_affine(fixed, make(SHAPE, UPRIGHT, truth))
    assert result.matrix.shape == (4, 4)
    assert error_mm(result.matrix, truth) < 0.5
    given = register_affine(fixed, make(SHAPE, UPRIGHT, truth), AffineSettings(init=truth))
    assert error_mm(given.matrix, truth) < 0.5


def test_a_cropped_scan_registers(fixed: Pyramid) -> None:
    truth = about_centre(rotation(np.deg2rad([10.0, -8.0, 12.0])), (20.0, 12.0, -10.0))
    whole = make(SHAPE, far(truth, SHAPE, UPRIGHT), truth)
    affine = whole.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [0, 0, 26]
    result = register_affine(fixed, ScanVolume(whole.data[:, :, 26:], affine), AffineSettings(type="rigid"))
    assert error_mm(result.matrix, truth) < 1.0


def test_a_tiny_scan_does_not_ask_for_all_points_of_a_large_one(fixed: Pyramid) -> None:
    sizes = [10.0, 0.1]  # cm taken for mm, and the other way round
    scans = [ScanVolume(fixed._data, np.diag([*3 * [size], 1.0]) @ fixed.affine) for size in sizes]
    huge, tiny = (Pyramid(scan) for scan in scans)
    usual = make_level_plans(tiny, tiny, 0)[-1].spacing
    capped = make_level_plans(tiny, huge, 0)[-1].spacing
    assert capped > 10 * usual
    assert capped == pytest.approx(huge.spacing_of(level_plans.MOST_POINTS))
    assert make_level_plans(fixed, fixed, 0)[-1].spacing > 2 * fixed.spacing_of(level_plans.MOST_POINTS)
    with pytest.raises(MedkitError, match=r"too unlike in size: .* is the spacing of one of them in other units"):
        huge.level(usual)


def test_little_overlap_is_told() -> None:
    whole = make(SHAPE, UPRIGHT)
    above = UPRIGHT.copy()
    above[:3, 3] += above[:3, :3] @ [0, 0, 24]
    lower, upper = ScanVolume(whole.data[:, :, :32], UPRIGHT), ScanVolume(whole.data[:, :, 24:], above)
    result = register_affine(Pyramid(lower), upper, AffineSettings(type="rigid", init="header"))
    assert any("lies inside the other scan" in warning for warning in result.warnings)


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_a_mask_keeps_a_lesion_out(side: str) -> None:
    """What lies under the mask has no say: the same result with the lesion and without it."""
    truth = about_centre(SHEARED, (3.0, 5.0, -4.0))
    scans = {"fixed": make(SHAPE, UPRIGHT), "moving": make(SHAPE, UPRIGHT, truth)}
    lesion = torch.zeros(SHAPE)
    lesion[32:50, 14:46, 18:40] = 1
    spoilt = scans[side].data.masked_fill(lesion > 0, 250.0)

    def found(data: torch.Tensor, mask: torch.Tensor | None) -> np.ndarray:
        case = {**scans, side: ScanVolume(data, UPRIGHT, mask)}
        return register_affine(Pyramid(case["fixed"]), case["moving"], AffineSettings(metric="mi")).matrix

    masked = found(spoilt, 1 - lesion)
    np.testing.assert_allclose(masked, found(scans[side].data, 1 - lesion), atol=1e-6)
    assert error_mm(masked, truth) < 0.5
    assert error_mm(found(spoilt, None), truth) > 1


def test_a_mask_without_voxels_is_refused(fixed: Pyramid) -> None:
    empty = ScanVolume(make(SHAPE, UPRIGHT).data, UPRIGHT, torch.zeros(SHAPE))
    with pytest.raises(MedkitError, match="mask"):
        register_affine(Pyramid(empty), make(SHAPE, UPRIGHT))


PLANE = grid_affine((0.9, 1.1, 5.0), (120, 110, 1), TILT)


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_planar_images_stay_in_their_plane(kind: str) -> None:
    linear = rotation(np.deg2rad([0, 0, 30.0]))
    if kind == "affine":
        linear = linear @ np.array([[1.07, 0.05, 0], [-0.04, 0.95, 0], [0, 0, 1]])
    local = about_centre(TILT @ linear @ TILT.T, tuple(TILT @ [12.0, -7.0, 0.0]))
    moving = make((120, 110, 1), far(local, (120, 110, 1), PLANE), local)
    lifted = moving.affine.copy()
    lifted[:3, 3] += 40 * TILT[:, 2]
    result = register_affine(
        Pyramid(make((120, 110, 1), PLANE)), ScanVolume(moving.data, lifted), AffineSettings(type=kind)
    )  # type: ignore[arg-type]
    points = np.array([[x, y, 0] for x in (-30, 30) for y in (-30, 30)]) @ TILT.T + CENTRE
    expected = points @ local[:3, :3].T + local[:3, 3] + 40 * TILT[:, 2]
    found = points @ result.matrix[:3, :3].T + result.matrix[:3, 3]
    assert np.abs(found - expected).max() < 0.3
    np.testing.assert_allclose((found - expected) @ TILT[:, 2], 0, atol=1e-9)
    np.testing.assert_allclose(result.matrix[:3, :3] @ TILT[:, 2], TILT[:, 2], atol=1e-9)


@pytest.mark.parametrize(("order", "flips"), [((2, 0, 1), (False, True, False)), ((1, 0, 2), (True, False, True))])
def test_planar_storage_order_changes_nothing(order: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> None:
    local = about_centre(TILT @ rotation(np.deg2rad([0, 0, 20.0])) @ TILT.T, tuple(TILT @ [6.0, -7.0, 0.0]))
    fixed, moving = make((120, 110, 1), PLANE), make((120, 110, 1), PLANE, local)
    reference = register_affine(Pyramid(fixed), moving).matrix
    again = register_affine(Pyramid(stored(fixed, order, flips)), stored(moving, order[::-1], flips)).matrix
    np.testing.assert_allclose(again, reference, atol=1e-4)


def test_planes_that_cross_and_mixed_dimensions_are_refused(fixed: Pyramid) -> None:
    first = make((120, 110, 1), PLANE)
    crossing = ScanVolume(first.data, grid_affine((0.9, 1.1, 5.0), (120, 110, 1), np.eye(3)))
    with pytest.raises(MedkitError, match=r"cross at 1[45]\.\d degrees"):
        register_affine(Pyramid(first), crossing)
    with pytest.raises(MedkitError, match="volume"):
        register_affine(fixed, first)


@pytest.mark.parametrize("init", ["header", "moments", "centre", "matrix"])
def test_named_starts(fixed: Pyramid, init: str) -> None:
    truth = about_centre(rotation(np.deg2rad([6.0, 0.0, -5.0])), (3.0, -4.0, 2.0))
    chosen = truth if init == "matrix" else init
    result = register_affine(fixed, make(SHAPE, UPRIGHT, truth), AffineSettings(type="rigid", init=chosen))  # type: ignore[arg-type]
    assert error_mm(result.matrix, truth) < 0.1


def test_header_start_does_not_search(fixed: Pyramid) -> None:
    """From world coordinates as they are, an organ 250 mm away is out of reach; the search finds it."""
    truth = about_centre(np.eye(3), (250.0, 0.0, 0.0))
    moving = make(SHAPE, far(truth, SHAPE, UPRIGHT), truth)
    assert error_mm(register_affine(fixed, moving, AffineSettings(type="rigid", init="header")).matrix, truth) > 50
    assert error_mm(register_affine(fixed, moving, AffineSettings(type="rigid")).matrix, truth) < 0.1


def test_a_collapse_falls_back_to_rigid(fixed: Pyramid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "sane", lambda mapping: np.allclose(mapping[:, :3] @ mapping[:, :3].T, np.eye(3)))
    result = register_affine(fixed, make(SHAPE, UPRIGHT, about_centre(SHEARED, (4.0, 9.0, -6.0))))
    np.testing.assert_allclose(result.matrix[:3, :3] @ result.matrix[:3, :3].T, np.eye(3), atol=1e-10)
    assert any("collapsed" in warning for warning in result.warnings)


def test_what_counts_as_a_collapse() -> None:
    def sane(*diagonal: float) -> bool:
        return engine.sane(np.hstack([np.diag(diagonal), np.zeros((3, 1))]))

    assert sane(1.2, 0.8, 1.0)
    assert not sane(0.3, 0.3, 0.3)
    assert not sane(-1, 1, 1)
    assert not sane(1.6, 1.2, 0.35)
    assert not sane(np.nan, 1, 1)


def test_too_few_steps_are_told(fixed: Pyramid, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = engine.make_level_plans
    monkeypatch.setattr(engine, "make_level_plans", lambda *a: [engine.replace(p, max_steps=1) for p in plans(*a)])
    result = register_affine(fixed, make(SHAPE, UPRIGHT, about_centre(SHEARED, (14.0, 9.0, -6.0))))
    assert any("not converged" in warning for warning in result.warnings)


@pytest.mark.parametrize("metric", sorted(MEASURES))
def test_slopes_are_the_derivatives_of_the_cost(metric: str) -> None:
    draw = torch.Generator().manual_seed(1)
    f = torch.rand(400, generator=draw).double()
    m = 0.6 * f + 0.3 * torch.rand(400, generator=draw).double()
    w = torch.rand(400, generator=draw).double()
    measure, change = MEASURES[metric], torch.randn(400, generator=draw).double()
    step = 1e-4
    numeric = (measure(f, m + step * change, w).cost - measure(f, m - step * change, w).cost) / (2 * step)
    assert float(measure(f, m, w).slope.double() @ change) == pytest.approx(numeric, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
@pytest.mark.parametrize("planar", [False, True])
def test_directions_are_the_derivatives_of_moves(kind: str, planar: bool) -> None:
    freedom = Freedom(kind, planar)
    mapping = np.eye(3, 4) if planar else np.hstack([rotation(np.array([0.3, -0.2, 0.5])), [[1.0], [2.0], [3.0]]])
    columns = freedom.directions(mapping)
    assert columns.shape[1] == {"rigid": 3, "similarity": 4, "affine": 6}[kind] * (1 if planar else 2) - (
        not planar and kind == "similarity"
    )
    for k in range(columns.shape[1]):
        step = np.zeros(columns.shape[1])
        step[k] = 1e-6
        numeric = (freedom.move(mapping, step) - freedom.move(mapping, -step)).ravel() / 2e-6
        np.testing.assert_allclose(columns[:, k], numeric, atol=1e-6)


def test_rigid_part_is_the_nearest_rotation() -> None:
    turn = rotation(np.array([0.3, -0.2, 0.5]))
    np.testing.assert_allclose(rigid_part(np.hstack([1.7 * turn, np.ones((3, 1))]))[:, :3], turn, atol=1e-12)
    assert np.linalg.det(rigid_part(np.hstack([np.diag([1.0, 1, -1]), np.zeros((3, 1))]))[:, :3]) > 0


def test_lattices_lie_about_the_middle_and_keep_straight_lines() -> None:
    axis = axis_sampling(50, 1.2, 4.0)
    positions = axis.first + axis.step * np.arange(len(axis.operator))
    assert positions.mean() == pytest.approx(24.5)
    ramp = axis.operator @ np.arange(50, dtype=np.float32)
    np.testing.assert_allclose(ramp[2:-2], positions[2:-2], atol=0.02)


def test_frames_lead_there_and_back(fixed: Pyramid) -> None:
    frames = make_axes(fixed, Pyramid(make(SHAPE, UPRIGHT, TURNED)))
    np.testing.assert_allclose(frames.to_world(frames.to_local(TURNED)), TURNED, atol=1e-9)


def read(path: Path) -> ScanVolume:
    import nibabel

    image = nibabel.load(path)
    return ScanVolume(torch.from_numpy(image.get_fdata(dtype=np.float32)), image.affine)


def label_dice(folder: Path, pair: tuple[str, str], matrix: np.ndarray) -> float:
    """Mean Dice over the shared labels, the moving ones by nearest neighbour on the fixed grid."""
    import nibabel

    from medkit.evaluation.measures.metrics import dice

    fixed, moving = (nibabel.load(folder / f"oasis_{name}_labels.nii.gz") for name in pair)
    a, b = (np.asanyarray(image.dataobj).astype(np.int32) for image in (fixed, moving))
    index = np.linalg.inv(moving.affine) @ matrix @ fixed.affine
    at = np.rint(np.indices(a.shape).reshape(3, -1).T @ index[:3, :3].T + index[:3, 3]).astype(int)
    inside = ((at >= 0) & (at < b.shape)).all(1)
    moved = np.zeros(a.size, np.int32)
    moved[inside] = b[tuple(at[inside].T)]
    shared = (set(np.unique(a)) & set(np.unique(b))) - {0}
    overlap = dice(torch.from_numpy(a.ravel()), torch.from_numpy(moved))
    return float(np.mean([overlap[int(label)] for label in shared]))


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize(
    ("fixed_name", "moving_name", "least"), [("1000", "1001", 0.425), ("1002", "1014", 0.43), ("1015", "1017", 0.452)]
)
def test_labels_of_real_brains_overlap(shared_data: Path, fixed_name: str, moving_name: str, least: float) -> None:
    folder = shared_data / "brain_t1_manual"
    fixed, moving = (read(folder / f"oasis_{name}_t1.nii.gz") for name in (fixed_name, moving_name))
    result = register_affine(Pyramid(fixed), moving)
    assert result.metric == "lncc"
    assert label_dice(folder, (fixed_name, moving_name), result.matrix) >= least


@pytest.mark.real_data
def test_real_scans_of_one_person_in_two_contrasts(shared_data: Path) -> None:
    """PD on T1 of one head: the same answer wherever the PD scan is put and however it is turned."""
    fixed, moving = (read(shared_data / "brain_heads" / f"chris_{name}.nii.gz") for name in ("t1", "pd"))
    prepared, settings = Pyramid(fixed), AffineSettings(type="rigid")
    result = register_affine(prepared, moving, settings)
    assert result.metric == "mi"
    assert np.linalg.norm(result.matrix[:3, 3]) < 12
    elsewhere = about_centre(rotation(np.deg2rad([30.0, 10.0, -20.0])), (80.0, -40.0, 30.0))
    again = register_affine(prepared, ScanVolume(moving.data, elsewhere @ moving.affine), settings).matrix
    assert error_mm(np.linalg.inv(elsewhere) @ again, result.matrix) < 0.2


@pytest.mark.real_data
def test_a_whole_head_on_a_brain_template(shared_data: Path) -> None:
    template = Pyramid(read(shared_data / "templates" / "mni152_sym09a_t1_1mm.nii.gz"))
    head = read(shared_data / "brain_heads" / "brainchop_t1.nii.gz")
    matrix = register_affine(template, head).matrix
    stretch = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    assert 0.8 < stretch.min() < stretch.max() < 1.1
    elsewhere = about_centre(rotation(np.deg2rad([-20.0, 30.0, 25.0])), (-60.0, 70.0, 20.0))
    again = register_affine(template, ScanVolume(head.data, elsewhere @ head.affine)).matrix
    assert error_mm(np.linalg.inv(elsewhere) @ again, matrix) < 0.5
