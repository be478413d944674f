"""Resampling against SimpleITK, which is handed the transform files that we write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medkit.images.image import Image
from medkit.space import Grid, apply_affine, lps_parts
from medkit.transforms import resampling as module
from medkit.transforms.files import write_transform
from medkit.transforms.resampling import resample
from medkit.transforms.transform import AffineTransform, Composite, DisplacementField, Transform

sitk = pytest.importorskip("SimpleITK")

ROTATION = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]]) @ np.array(
    [[1, 0, 0], [0, 0.96, -0.28], [0, 0.28, 0.96]]
)
ORIENTATIONS = {
    "RAS": np.diag([1.0, 1, 1]),
    "LAS": np.diag([-1.0, 1, 1]),
    "LPI": np.diag([-1.0, -1, -1]),
    "PIR": np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]]),
    "oblique": ROTATION,
}


def grid_in(name: str, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    """A grid whose middle is near the origin, so that grids in every orientation overlap."""
    affine = np.eye(4)
    affine[:3, :3] = ORIENTATIONS[name] * spacing
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2 + [0.3, -0.2, 0.1]
    return Grid(shape, affine)


def smooth_image(grid: Grid, dtype: str = "float32") -> Image:
    values = np.random.default_rng(3).normal(0, 300, (1, *grid.shape))
    return Image(np.clip(values, 0, 250).astype(dtype) if dtype == "uint8" else values.astype(dtype), grid)


def sitk_image(image: Image) -> object:
    dims = image.grid.dims
    voxels = image.data[0].T if dims == 3 else image.data[0, :, :, 0].T
    result = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
    directions, spacing, origin = lps_parts(image.grid.affine, dims)
    result.SetDirection(directions.ravel().tolist())
    result.SetSpacing(spacing.tolist())
    result.SetOrigin(origin.tolist())
    return result


def by_sitk(image: Image, grid: Grid, transform: object, interpolation: int) -> np.ndarray:
    reference = sitk_image(Image(np.zeros((1, *grid.shape), np.uint8), grid))
    result = sitk.Resample(sitk_image(image), reference, transform, interpolation, 0.0)
    return sitk.GetArrayFromImage(result).T.reshape(grid.shape)


def written(transform: Transform, folder: Path) -> object:
    """The transform as SimpleITK reads it from our file."""
    if isinstance(transform, Composite):
        return sitk.CompositeTransform([written(part, folder) for part in transform.transforms])
    path = folder / ("x.tfm" if isinstance(transform, AffineTransform) else "x.nii.gz")
    write_transform(transform, path)
    if path.suffix == ".tfm":
        return sitk.ReadTransform(str(path))
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


def affine_transform() -> AffineTransform:
    matrix = np.eye(4)
    matrix[:3, :3] = ROTATION @ np.diag([1.1, 0.9, 1.0]) + 0.03
    matrix[:3, 3] = 2.2, -1.1, 0.7
    return AffineTransform(matrix)


def warp_on(grid: Grid, seed: int = 1) -> DisplacementField:
    return DisplacementField(np.random.default_rng(seed).normal(0, 2, (*grid.shape, 3)).astype(np.float32), grid)


FIXED_SHAPE, FIXED_SPACING = (17, 14, 20), (1.5, 2.0, 1.1)
MOVING_SHAPE, MOVING_SPACING = (19, 23, 9), (1.2, 1.0, 3.0)
MODES = [("linear", sitk.sitkLinear), ("nearest", sitk.sitkNearestNeighbor)]


@pytest.mark.parametrize("moving", ORIENTATIONS)
@pytest.mark.parametrize("fixed", ORIENTATIONS)
@pytest.mark.parametrize(("mode", "theirs"), MODES)
def test_affine_as_simpleitk(tmp_path: Path, fixed: str, moving: str, mode: str, theirs: int) -> None:
    grid = grid_in(fixed, FIXED_SHAPE, FIXED_SPACING)
    image = smooth_image(grid_in(moving, MOVING_SHAPE, MOVING_SPACING))
    transform = affine_transform()
    result = resample(image, grid, transform, mode, outside=0)
    assert result.grid is grid
    assert 0.2 < (result.data != 0).mean() < 1
    np.testing.assert_allclose(result.data[0], by_sitk(image, grid, written(transform, tmp_path), theirs), atol=2e-3)


@pytest.mark.parametrize("fixed", ["PIR", "oblique"])
@pytest.mark.parametrize("kind", ["warp", "warp elsewhere", "affine after warp", "warp after affine", "three"])
@pytest.mark.parametrize(("mode", "theirs"), MODES)
def test_warps_as_simpleitk(tmp_path: Path, fixed: str, kind: str, mode: str, theirs: int) -> None:
    grid = grid_in(fixed, FIXED_SHAPE, FIXED_SPACING)
    other = grid_in("LAS", (8, 9, 7), (4.0, 3.5, 3.0))
    image = smooth_image(grid_in("LPI", MOVING_SHAPE, MOVING_SPACING))
    affine = affine_transform()
    transform: Transform = {
        "warp": warp_on(grid),
        "warp elsewhere": warp_on(other),
        "affine after warp": Composite((affine, warp_on(grid))),
        "warp after affine": Composite((warp_on(other), affine)),
        "three": Composite((warp_on(other), affine, warp_on(grid))),
    }[kind]
    result = resample(image, grid, transform, mode, outside=0).data[0]
    expected = by_sitk(image, grid, written(transform, tmp_path), theirs)
    if mode == "linear":
        np.testing.assert_allclose(result, expected, atol=0.05)
    else:
        assert (result == expected).mean() > 0.999  # a field in float32 may fall on the other side of a half


def test_other_kinds_of_transform() -> None:
    class Foreign:
        from_grid = to_grid = None

        def map_points(self, points: np.ndarray) -> np.ndarray:
            return apply_affine(affine_transform().matrix, points)

        def write(self, path: Path) -> None:
            raise NotImplementedError

    grid = grid_in("oblique", FIXED_SHAPE, FIXED_SPACING)
    image = smooth_image(grid_in("LAS", MOVING_SHAPE, MOVING_SPACING))
    expected = resample(image, grid, affine_transform(), outside=0).data
    np.testing.assert_allclose(resample(image, grid, Foreign(), outside=0).data, expected, atol=1e-3)


@pytest.mark.parametrize("fixed", ["LPI", "oblique"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64"])
def test_labels_as_simpleitk(tmp_path: Path, fixed: str, dtype: str) -> None:
    grid = grid_in(fixed, FIXED_SHAPE, FIXED_SPACING)
    labels = np.random.default_rng(0).choice([0, 3, 7, 100], (1, *MOVING_SHAPE)).astype(dtype)
    image = Image(labels, grid_in("PIR", MOVING_SHAPE, MOVING_SPACING))
    result = resample(image, grid, affine_transform(), "label")
    assert result.data.dtype == dtype
    there = written(affine_transform(), tmp_path)
    np.testing.assert_array_equal(result.data[0], by_sitk(image, grid, there, sitk.sitkLabelLinear))
    nearest = resample(image, grid, affine_transform(), "nearest", outside=0).data[0]
    np.testing.assert_array_equal(nearest, by_sitk(image, grid, there, sitk.sitkNearestNeighbor))


def test_equal_votes_go_to_the_smaller_label() -> None:
    image = Image(np.array([7, 3, 3, 9], np.uint8).reshape(1, 4, 1, 1), Grid((4, 1, 1), np.eye(4)))
    half = np.eye(4)
    half[0, 3] = 0.5
    assert resample(image, Grid((3, 1, 1), half), None, "label").data.ravel().tolist() == [3, 3, 3]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32"])
def test_integers_are_rounded(tmp_path: Path, dtype: str) -> None:
    grid = grid_in("oblique", FIXED_SHAPE, FIXED_SPACING)
    image = smooth_image(grid_in("LAS", MOVING_SHAPE, MOVING_SPACING), "uint8")
    image = image.with_data(image.data.astype(dtype))
    result = resample(image, grid, affine_transform(), outside=0)
    assert result.data.dtype == result.dtype == dtype
    exact = by_sitk(image.with_data(image.data.astype(np.float64)), grid, written(affine_transform(), tmp_path), 2)
    assert np.abs(result.data[0] - exact).max() <= 0.5 + 1e-4
    # ITK's own cast cuts the fraction off
    theirs = by_sitk(image, grid, written(affine_transform(), tmp_path), sitk.sitkLinear)
    np.testing.assert_array_equal(np.trunc(exact), theirs)


def test_edges_of_the_moving_image(tmp_path: Path) -> None:
    image = Image(np.arange(1, 5, dtype=np.float32).reshape(1, 4, 1, 1), Grid((4, 1, 1), np.eye(4)))
    fine = np.eye(4)
    fine[0] = 0.25, 0, 0, -1
    result = resample(image, Grid((25, 1, 1), fine)).data.ravel()
    at = np.arange(25) * 0.25 - 1
    expected = np.where((at >= -0.5) & (at < 3.5), np.interp(at, range(4), [1, 2, 3, 4]), 0)
    np.testing.assert_allclose(result, expected)
    identity = sitk.Transform(3, sitk.sitkIdentity)
    np.testing.assert_allclose(result, by_sitk(image, Grid((25, 1, 1), fine), identity, sitk.sitkLinear).ravel())


@pytest.mark.parametrize(("mode", "theirs"), MODES)
def test_images_of_the_plane(tmp_path: Path, mode: str, theirs: int) -> None:
    turned = np.array([[0.8, -0.9, 0, 1], [0.6, 1.2, 0, -2], [0, 0, 1, 0], [0, 0, 0, 1]])
    fixed, moving = Grid((15, 12, 1), turned, dims=2), Grid((18, 20, 1), np.diag([-1.0, 1, 1, 1]), dims=2)
    matrix = np.eye(4)
    matrix[:2] = [0.9, 0.2, 0, -9], [-0.1, 1.1, 0, 4]
    warp = warp_on(fixed)
    warp.field[..., 2] = 0
    image = smooth_image(moving)
    for transform in (AffineTransform(matrix, dims=2), Composite((AffineTransform(matrix, dims=2), warp))):
        result = resample(image, fixed, transform, mode, outside=0)
        expected = by_sitk(image, fixed, written(transform, tmp_path), theirs)
        assert 0.2 < (result.data != 0).mean() < 1
        near = np.isclose(result.data[0], expected, atol=0.02)
        assert near.mean() > (0.99 if mode == "nearest" else 0.9999)  # halves, see above


def test_plane_within_half_a_slice() -> None:
    thick = Grid((5, 5, 1), np.diag([1.0, 1, 4, 1]))
    image = smooth_image(thick)
    for offset, same in ((1.9, True), (2.1, False), (-2.0, True)):
        affine = np.diag([1.0, 1, 4, 1])
        affine[2, 3] = offset
        result = resample(image, Grid((5, 5, 1), affine)).data
        assert np.array_equal(result, image.data) is same


def test_identity_changes_nothing() -> None:
    image = smooth_image(grid_in("oblique", MOVING_SHAPE, MOVING_SPACING), "int16")
    for mode in ("linear", "nearest", "label"):
        np.testing.assert_array_equal(resample(image, image.grid, None, mode, outside=0).data, image.data)


def test_slabs_and_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_in("oblique", FIXED_SHAPE, FIXED_SPACING)
    image = smooth_image(grid_in("LAS", MOVING_SHAPE, MOVING_SPACING))
    transform = Composite((affine_transform(), warp_on(grid)))
    whole = resample(image, grid, transform, outside=0).data
    monkeypatch.setattr(module, "SLAB", 50)
    pair = Image(np.concatenate([image.data, -image.data]), image.grid)
    result = resample(pair, grid, transform, outside=0).data
    np.testing.assert_array_equal(result[:1], whole)
    np.testing.assert_array_equal(result[1:], -whole)


def test_whole_numbers_beyond_float32() -> None:
    image = Image(np.full((1, 3, 3, 3), 2**24 + 1, np.int32), Grid((3, 3, 3), np.eye(4)))
    assert (resample(image, image.grid, outside=0).data == 2**24 + 1).all()


def test_what_surrounds_an_image_is_outside() -> None:
    """Air around a CT, the minimum of an image with negative values, 0 around others and around labels."""
    grid = Grid((8, 8, 8), np.eye(4))
    wide = Grid((12, 8, 8), np.eye(4))
    ct = np.full((1, 8, 8, 8), -1003, np.int16)
    ct[:, 2:6, 2:6] = 40
    scores = np.linspace(-2, 3, 512, dtype=np.float32).reshape(1, 8, 8, 8)

    def outside(data: np.ndarray, **settings: object) -> float:
        values = resample(Image(data, grid), wide, **settings).data[0, 9:]  # type: ignore[arg-type]
        assert values.min() == values.max()
        return float(values.min())

    assert outside(ct) == outside(ct, interpolation="nearest") == -1000
    assert outside(ct.clip(-900)) == -900
    assert outside(scores) == -2
    assert outside(scores + 2) == outside(scores.round(), interpolation="label") == 0
    assert outside(ct, outside=-2000.0) == -2000
    assert outside(scores + 2, outside=7.0) == outside(scores + 2, outside=7.0, interpolation="nearest") == 7
    assert outside((scores + 2).round(), outside=7.0, interpolation="label") == 7
    both = np.concatenate([scores, scores + 2])
    assert resample(Image(both, grid), wide).data[:, -1, 0, 0].tolist() == [-2, 0]
