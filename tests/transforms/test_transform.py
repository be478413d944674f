"""Transforms and their files, against SimpleITK and itk as the users' readers."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from medkit import space
from medkit.errors import InputError, OutputError
from medkit.space import Grid
from medkit.transforms.files import read_transform, write_transform
from medkit.transforms.resampling import to_displacement_field
from medkit.transforms.transform import AffineTransform, Composite, DisplacementField, compose

sitk = pytest.importorskip("SimpleITK")

OBLIQUE = np.array([[-1.5, 0, 0, 4], [0, 0.24, 1.6, -3], [0, -0.32, 1.2, 5], [0, 0, 0, 1.0]])
A, B, C = ("a" * 16, "b" * 16, "c" * 16)


def affine_matrix(seed: int = 0, dims: int = 3) -> np.ndarray:
    matrix = np.eye(4)
    random = np.random.default_rng(seed)
    matrix[:dims, :dims] += random.normal(0, 0.1, (dims, dims))
    matrix[:dims, 3] = random.normal(0, 4, dims)
    return matrix


def field_on(grid: Grid, seed: int = 0) -> DisplacementField:
    values = np.random.default_rng(seed).normal(size=(*grid.shape, 3)).astype(np.float32)
    values[..., grid.dims :] = 0
    return DisplacementField(values, grid, A, B)


def as_sitk(path: Path) -> object:
    if path.name.endswith(".nii.gz"):
        return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    return sitk.ReadTransform(str(path))


def mapped_by_sitk(transform: object, points: np.ndarray, dims: int = 3) -> np.ndarray:
    flips = np.array([-1.0, -1.0, 1.0])[:dims]
    result = points.copy()
    result[:, :dims] = [transform.TransformPoint(point) for point in (points[:, :dims] * flips).tolist()]
    result[:, :dims] *= flips
    return result


def points_in(grid: Grid, count: int = 60) -> np.ndarray:
    index = np.random.default_rng(5).uniform(-1, np.array(grid.shape), (count, 3))
    index[:, grid.dims :] = 0
    return space.apply_affine(grid.affine, index)


@pytest.fixture
def grid() -> Grid:
    return Grid((6, 7, 8), OBLIQUE)


@pytest.fixture
def plane() -> Grid:
    return Grid((6, 9, 1), np.diag([1.5, -0.7, 1, 1]), dims=2)


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".mat", ".h5"])
@pytest.mark.parametrize("dims", [2, 3])
def test_affine_file(tmp_path: Path, suffix: str, dims: int, grid: Grid, plane: Grid) -> None:
    transform = AffineTransform(affine_matrix(dims=dims), A, None, dims)
    path = tmp_path / f"x{suffix}"
    write_transform(transform, path)
    points = points_in(plane if dims == 2 else grid)
    expected = transform.map_points(points)
    assert as_sitk(path).GetDimension() == dims
    np.testing.assert_allclose(mapped_by_sitk(as_sitk(path), points, dims), expected, atol=1e-9)
    again = read_transform(path)
    np.testing.assert_allclose(again.map_points(points), expected, atol=1e-9)
    assert isinstance(again, AffineTransform)
    assert again.dims == dims
    if suffix in (".tfm", ".txt"):
        assert (again.from_grid, again.to_grid) == (A, None)


MATLAB_BYTES = {
    2: "000000000600000001000000000000001b000000416666696e655472616e73666f726d5f646f75626c655f325f3200"
    "000000000000f83f000000000000d03f000000000000e0bf0000000000000040"
    "00000000000008c000000000000016400000000002000000010000000000000006000000666978656400" + 2 * "0000000000000000",
    3: "000000000c00000001000000000000001b000000416666696e655472616e73666f726d5f646f75626c655f335f3300"
    "000000000000f83f000000000000d03f000000000000c0bf000000000000e0bf0000000000000040000000000000c0bf"
    "000000000000c0bf000000000000c0bf000000000000f03f"
    "00000000000008c0000000000000164000000000000018400000000003000000010000000000000006000000666978656400"
    + 3
    * "0000000000000000",
}
"""A `.mat` file byte by byte: ITK reads the names, the order and the values of its two vectors."""


@pytest.mark.parametrize("dims", [2, 3])
def test_mat_file_byte_by_byte(tmp_path: Path, dims: int) -> None:
    matrix = np.array([[1.5, 0.25, 0.125, 3], [-0.5, 2, 0.125, -5.5], [0.125, 0.125, 1, 6], [0, 0, 0, 1]])
    write_transform(AffineTransform(matrix, A, None, dims), tmp_path / "x.mat")
    assert (tmp_path / "x.mat").read_bytes().hex() == MATLAB_BYTES[dims]


def test_mat_file_cut_off_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    write_transform(AffineTransform(affine_matrix()), path)
    whole = path.read_bytes()
    for length in (0, 3, 19, 20, 30, 60, 100, 143, 150, 170, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"x\.mat: expected a transform of ITK .* truncated"):
            read_transform(path)


def test_mat_file_in_single_precision(tmp_path: Path) -> None:
    """Programs that write C++ floats mark their vectors with type 10."""
    matrix = affine_matrix().astype(np.float32).astype(np.float64)
    write_transform(AffineTransform(matrix), tmp_path / "x.mat")
    content, expected = b"", read_transform(tmp_path / "x.mat")
    for name, values in loadmat(tmp_path / "x.mat").items():
        head = struct.pack("<5i", 10, len(values), 1, 0, len(name) + 1)
        content += head + name.encode() + b"\0" + values.astype("<f4").tobytes()
    (tmp_path / "x.mat").write_bytes(content)
    again = read_transform(tmp_path / "x.mat")
    assert isinstance(expected, AffineTransform)
    assert isinstance(again, AffineTransform)
    np.testing.assert_array_equal(again.matrix, expected.matrix)


def test_affine_inverse(grid: Grid) -> None:
    transform = AffineTransform(affine_matrix(), A, B)
    back = transform.inverse()
    assert (back.from_grid, back.to_grid) == (B, A)
    points = points_in(grid)
    np.testing.assert_allclose(back.map_points(transform.map_points(points)), points, atol=1e-12)


@pytest.mark.parametrize("planar", [False, True])
def test_displacement_file(tmp_path: Path, planar: bool, grid: Grid, plane: Grid) -> None:
    own = plane if planar else grid
    transform, path = field_on(own), tmp_path / "x.nii.gz"
    write_transform(transform, path)
    points = points_in(own, 300)
    expected = transform.map_points(points)
    assert (expected == points).all(axis=1).any(), "some points lie outside, where the displacement is zero"
    np.testing.assert_allclose(mapped_by_sitk(as_sitk(path), points, own.dims), expected, atol=5e-6)
    again = read_transform(path)
    np.testing.assert_allclose(again.map_points(points), expected, atol=5e-6)
    assert (again.from_grid, again.to_grid) == (A, B)


def test_displacement_files_of_itk(tmp_path: Path, grid: Grid) -> None:
    transform = field_on(grid)
    write_transform(transform, tmp_path / "x.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "x.nii.gz"))
    for name in ("x.mha", "x.nrrd"):
        sitk.WriteImage(image, str(tmp_path / name))
        np.testing.assert_allclose(read_transform(tmp_path / name).field, transform.field, atol=1e-6)


def test_displacements_marked_as_ras(tmp_path: Path, grid: Grid) -> None:
    import nibabel

    transform = field_on(grid)
    image = nibabel.Nifti1Image(transform.field[:, :, :, None], grid.affine)
    image.header.set_intent(1006)
    image.to_filename(tmp_path / "x.nii")
    np.testing.assert_array_equal(read_transform(tmp_path / "x.nii").field, transform.field)


@pytest.mark.parametrize("name", ["x.h5", "x.tfm"])
def test_composite_file_of_itk(tmp_path: Path, name: str, grid: Grid) -> None:
    parts = [AffineTransform(affine_matrix()), field_on(grid), AffineTransform(affine_matrix(1))]
    for number, part in enumerate(parts):
        write_transform(part, tmp_path / (f"{number}.nii.gz" if number == 1 else f"{number}.tfm"))
    written = [as_sitk(tmp_path / part) for part in ("0.tfm", "1.nii.gz", "2.tfm")]
    sitk.WriteTransform(sitk.CompositeTransform(written), str(tmp_path / name))
    points = points_in(grid)
    expected = Composite(tuple(parts)).map_points(points)
    np.testing.assert_allclose(mapped_by_sitk(as_sitk(tmp_path / name), points), expected, atol=1e-5)
    np.testing.assert_allclose(read_transform(tmp_path / name).map_points(points), expected, atol=1e-5)


@pytest.mark.parametrize("suffix", [".tfm", ".h5", ".mat"])
def test_other_linear_types(tmp_path: Path, suffix: str, grid: Grid) -> None:
    path = tmp_path / f"x{suffix}"
    euler = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, 0.2, 0.3, (4.0, 5.0, 6.0))
    sitk.WriteTransform(euler, str(path))
    points = points_in(grid)
    np.testing.assert_allclose(read_transform(path).map_points(points), mapped_by_sitk(euler, points), atol=1e-9)


def test_affine_with_a_centre_and_translation(tmp_path: Path, grid: Grid) -> None:
    points = points_in(grid)
    affine = sitk.AffineTransform(3)
    affine.SetCenter((10.0, -20.0, 5.0))
    affine.Rotate(0, 1, 0.3)
    for transform in (affine, sitk.TranslationTransform(3, (1.0, 2.0, 3.0)), sitk.Transform(3, sitk.sitkIdentity)):
        sitk.WriteTransform(transform, str(tmp_path / "x.tfm"))
        result = read_transform(tmp_path / "x.tfm").map_points(points)
        np.testing.assert_allclose(result, mapped_by_sitk(transform, points), atol=1e-9)


def test_minc_transform_takes_moving_to_fixed(tmp_path: Path) -> None:
    path = tmp_path / "x.xfm"
    path.write_text(
        "MNI Transform File\n% a comment\n\nTransform_Type = Linear;\n"
        "Linear_Transform =\n 2 0 0 5\n 0 1 0 6\n 0 0 1 7;\n"
    )
    np.testing.assert_allclose(read_transform(path).map_points(np.array([[25.0, 6, 7]])), [[10, 0, 0]])


def test_compose_in_image_order(grid: Grid) -> None:
    first, second = AffineTransform(affine_matrix(0), B, C), AffineTransform(affine_matrix(1), A, B)
    warp = field_on(grid)
    points = points_in(grid)
    both = compose([first, second])
    assert isinstance(both, AffineTransform)
    assert (both.from_grid, both.to_grid) == (A, C)
    np.testing.assert_allclose(both.map_points(points), first.map_points(second.map_points(points)), atol=1e-12)
    mixed = compose([first, warp])
    assert isinstance(mixed, Composite)
    assert (mixed.from_grid, mixed.to_grid) == (A, C)
    np.testing.assert_allclose(mixed.map_points(points), first.map_points(warp.map_points(points)))


def test_compose_refuses_another_space() -> None:
    with pytest.raises(InputError, match=f"{C}.*{A}"):
        compose([AffineTransform(np.eye(4), C, None), AffineTransform(np.eye(4), None, A)])


def test_compose_warns_of_an_unknown_space(caplog: pytest.LogCaptureFixture) -> None:
    compose([AffineTransform(np.eye(4)), AffineTransform(np.eye(4), None, A)])
    assert [record.name for record in caplog.records] == ["medkit"]


def test_composite_becomes_one_field(tmp_path: Path, grid: Grid) -> None:
    mixed = compose([AffineTransform(affine_matrix(), B, C), field_on(grid)])
    field = to_displacement_field(mixed, grid)
    at_voxels = space.apply_affine(grid.affine, np.argwhere(np.ones(grid.shape)))
    np.testing.assert_allclose(field.map_points(at_voxels), mixed.map_points(at_voxels), atol=1e-5)
    write_transform(mixed, tmp_path / "x.nii.gz")
    assert read_transform(tmp_path / "x.nii.gz").to_grid == C
    with pytest.raises(OutputError, match="fixed grid"):
        write_transform(Composite(mixed.transforms[::-1]), tmp_path / "y.nii.gz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tfm", "hello", "expected an ITK transform in text form"),
        ("x.tfm", "#Insight Transform File V1.0\n", "no transform"),
        ("x.tfm", "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters: 1 2\n", "12 param"),
        (
            "x.tfm",
            "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\nParameters:" + " 0" * 12 + "\n",
            "cannot be inverted",
        ),
        ("x.h5", "hello", "itk cannot read"),
        ("x.xfm", "hello", "linear MNI"),
        ("x.nii.gz", "hello", "expected a NIfTI file"),
        ("x.doc", "hello", "expected a transform that ends in"),
    ],
)
def test_refused_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        read_transform(tmp_path / name)
    assert str(tmp_path / name) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "MATLAB's form"),
        (b"\x00" * 40, "MATLAB's form"),
        (b"1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "FSL matrix.*greedy or c3d is in RAS"),
    ],
)
def test_refused_mat_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.mat"
    write_transform(AffineTransform(affine_matrix()), path)
    whole = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_transform(path)
    path.write_bytes(whole[:100])
    with pytest.raises(InputError, match="truncated"):
        read_transform(path)


def test_mat_files_do_without_itk(tmp_path: Path) -> None:
    """Loading its readers takes from nine seconds up."""
    write_transform(AffineTransform(affine_matrix()), tmp_path / "x.mat")
    code = "import sys; from medkit.transforms.files import read_transform as read; from pathlib import Path; "
    code += "read(Path(sys.argv[1])); print('itk' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code, tmp_path / "x.mat"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def stretching(grid: Grid, factor: float) -> DisplacementField:
    """A map of a ball onto itself that stretches its middle (factor + 1) times and folds nowhere."""
    points = space.apply_affine(grid.affine, np.argwhere(np.ones(grid.shape)).astype(float)) - grid.centre
    radius = np.linalg.norm(points, axis=1, keepdims=True) / (0.4 * (grid.spacing * grid.shape)[: grid.dims].min())
    scale = np.where(radius < 1, (factor + 1) / (1 + factor * np.minimum(radius, 1)), 1)
    return DisplacementField((points * (scale - 1)).reshape(*grid.shape, 3).astype(np.float32), grid, A, B)


@pytest.mark.parametrize("factor", [0.5, 2, 6])
@pytest.mark.parametrize("planar", [False, True])
def test_inverse_of_a_field_that_stretches(factor: float, planar: bool) -> None:
    grid = Grid((30, 26, 1), np.diag([2.0, -2, 1, 1]), dims=2) if planar else Grid((24, 26, 22), 4 * OBLIQUE / 2)
    field = stretching(grid, factor)
    inverse = field.inverse()
    assert (inverse.from_grid, inverse.to_grid, inverse.dims) == (B, A, grid.dims)
    points = points_in(Grid(grid.shape, grid.affine, grid.dims), 400)
    back = inverse.map_points(points)
    inside = np.all(np.abs(space.apply_affine(np.linalg.inv(grid.affine), points) - 0.5 * (np.array(grid.shape) - 1))
                    < np.array(grid.shape) / 2 - 0.5 * (np.array(grid.shape) > 1), axis=1)  # fmt: skip
    assert inside.sum() > 100
    left = np.linalg.norm(field.map_points(back) - points, axis=1)[inside]
    assert left.max() < 2e-3 * grid.spacing[: grid.dims].min()
    on_grid = to_displacement_field(inverse, grid)
    assert (on_grid.from_grid, on_grid.to_grid) == (B, A)
    np.testing.assert_allclose(inverse.inverse().map_points(points), field.map_points(points))
    with pytest.raises(OutputError, match="grid of its own"):
        write_transform(inverse, Path("x.nii.gz"))


def test_inverse_of_a_composite(grid: Grid) -> None:
    mixed = Composite((AffineTransform(affine_matrix(), B, C), stretching(grid, 0.5)))
    back = mixed.inverse()
    assert (back.from_grid, back.to_grid) == (C, A)
    points = np.vstack([grid.centre, grid.centre + 0.3])
    np.testing.assert_allclose(back.map_points(mixed.map_points(points)), points, atol=2e-3)


def test_inverse_far_from_the_field() -> None:
    """A field that leads to another end of the room: its inverse starts there."""
    grid = Grid((12, 14, 10), np.eye(4))
    field = stretching(grid, 0.3)
    far = DisplacementField(field.field + np.float32([300, -200, 50]), grid)
    points = points_in(grid)[:20] * 0.3 + 4
    np.testing.assert_allclose(far.inverse().map_points(far.map_points(points)), points, atol=2e-3)


def test_refused_transforms(tmp_path: Path, grid: Grid) -> None:
    with pytest.raises(InputError, match="no such"):
        read_transform(tmp_path / "missing.tfm")
    sitk.WriteTransform(sitk.BSplineTransform(3), str(tmp_path / "spline.h5"))
    with pytest.raises(InputError, match="BSplineTransform"):
        read_transform(tmp_path / "spline.h5")
    broken = field_on(grid)
    broken.field[0, 0, 0, 0] = np.nan
    write_transform(broken, tmp_path / "x.nii")
    with pytest.raises(InputError, match="finite"):
        read_transform(tmp_path / "x.nii")
    with pytest.raises(OutputError, match=r"\.nii"):
        write_transform(broken, tmp_path / "x.mha")
    with pytest.raises(OutputError, match=r"\.tfm"):
        write_transform(AffineTransform(np.eye(4)), tmp_path / "x.nii.gz")
