"""`medkit transform`: its commands on files, in this process, against SimpleITK and by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from outcome import Outcome

from medkit.images.image import Image, read_grid, read_image
from medkit.space import Grid, apply_affine
from medkit.transforms.files import read_transform, write_transform
from medkit.transforms.points import read_points
from medkit.transforms.transform import AffineTransform, Composite, DisplacementField

sitk = pytest.importorskip("SimpleITK")

Run = Callable[..., Outcome]
TURN = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]]) @ np.array([[1, 0, 0], [0, 0.96, -0.28], [0, 0.28, 0.96]])
AXES = {
    "RAS": np.eye(3),
    "LAS": np.diag([-1.0, 1, 1]),
    "PIR": np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]]),
    "oblique": TURN,
}


def grid_in(axes: str, shape: tuple[int, int, int] = (24, 20, 22), spacing: float = 2.0, middle: float = 0.0) -> Grid:
    """A grid about the point (middle, middle, middle)."""
    affine = np.eye(4)
    affine[:3, :3] = AXES[axes] * [spacing, spacing * 1.2, spacing * 0.9]
    affine[:3, 3] = middle - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Grid(shape, affine)


def blob(grid: Grid, place: np.ndarray, size: float = 5.0) -> np.ndarray:
    """(I, J, K) float32: a smooth bright spot at `place`, RAS+ mm."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    away = ((apply_affine(grid.affine, index) - place) ** 2).sum(axis=1)
    return (1000 * np.exp(-away / (2 * size**2))).reshape(grid.shape).astype(np.float32)


def centre_of(image: Image) -> np.ndarray:
    """(3,), RAS+ mm: the centre of mass."""
    index = np.argwhere(image.data[0] > 0).astype(float)
    weights = image.data[0][image.data[0] > 0].astype(float)
    return apply_affine(image.grid.affine, (index * weights[:, None]).sum(axis=0)[None] / weights.sum())[0]


def affine_matrix() -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = TURN @ np.diag([1.1, 0.95, 1.0])
    matrix[:3, 3] = 3.0, -2.0, 1.5
    return matrix


def waves(grid: Grid, height: float = 1.5, length: float = 40.0) -> DisplacementField:
    """A smooth field of the plane or the volume that does not fold."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    points = apply_affine(grid.affine, index) * 2 * np.pi / length
    field = height * np.sin(points[:, [1, 0, 0]] + [0, 1, 2])
    field[:, grid.dims :] = 0
    return DisplacementField(field.reshape(*grid.shape, 3).astype(np.float32), grid, grid.digest())


def in_sitk(path: Path) -> object:
    if path.name.endswith(".nii.gz"):
        return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    return sitk.ReadTransform(str(path))


def by_sitk(transform: object, points: np.ndarray) -> np.ndarray:
    """(N, 3) RAS+ mm through a transform of SimpleITK."""
    flips = np.array([-1.0, -1.0, 1.0])
    return np.array([transform.TransformPoint(point) for point in (points * flips).tolist()]) * flips


def table(path: Path, points: np.ndarray, frame: str = "RAS") -> Path:
    flips = np.array([-1.0, -1.0, 1.0]) if frame == "LPS" else np.ones(3)
    rows = [f"p{n},{x!r},{y!r},{z!r},kept" for n, (x, y, z) in enumerate((points * flips).tolist())]
    path.write_text("\n".join(["label,x,y,z,comment", *rows]) + "\n")
    return path


@pytest.fixture(params=list(AXES))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two images in other axes, labels and a point on a spot of the moving one, an affine map and a warp."""
    fixed, moving = grid_in(request.param), grid_in("LAS", (26, 24, 22), 1.9, middle=2.0)
    spot = np.array([4.0, 1.0, -3.0])
    Image(blob(moving, spot)[None], moving).write(tmp_path / "scan.nii.gz")
    Image((blob(moving, spot) > 300).astype(np.int16)[None] * 7, moving).write(tmp_path / "scan_dseg.nii.gz")
    Image(blob(fixed, np.zeros(3))[None], fixed).write(tmp_path / "fixed.nii.gz")
    table(tmp_path / "spot.csv", spot[None])
    write_transform(AffineTransform(affine_matrix(), None, moving.digest()), tmp_path / "affine.tfm")
    write_transform(waves(fixed), tmp_path / "warp.nii.gz")
    return tmp_path


def corners(grid: Grid) -> np.ndarray:
    """(8, 3) points well inside a grid, RAS+ mm."""
    return apply_affine(grid.affine, np.array(list(np.ndindex(2, 2, 2))) * np.array(grid.shape) / 3 + 4)


# ---- apply


def test_image_labels_and_points_land_together(toy: Run, folder: Path) -> None:
    given = ["--transform", folder / "affine.tfm", "--transform", folder / "warp.nii.gz"]
    names = [folder / name for name in ("scan.nii.gz", "scan_dseg.nii.gz", "spot.csv")]
    done = toy(
        "transform", "apply", *names, "--reference", folder / "fixed.nii.gz", *given, "--json", "-o", folder / "out"
    )
    assert done.code == 0, done.err
    assert [r["kind"] for r in done.records] == ["image", "labels", "points"]
    image, labels, points = (Path(r["path"]) for r in done.records)
    assert points.name == "spot_transformed.csv"
    place = read_points(points).positions[0]
    np.testing.assert_allclose(centre_of(read_image(image)), place, atol=0.5)
    np.testing.assert_allclose(centre_of(read_image(labels, labels=True)), place, atol=0.8)
    assert nib.load(labels).get_data_dtype() == np.int16
    assert set(np.unique(nib.load(labels).dataobj)) == {0, 7}
    assert read_grid(image).digest() == read_grid(folder / "fixed.nii.gz").digest()
    # ITK's way: the reference's point goes to the input's
    chain = sitk.CompositeTransform([in_sitk(folder / name) for name in ("affine.tfm", "warp.nii.gz")])
    np.testing.assert_allclose(by_sitk(chain, place[None]), [[4, 1, -3]], atol=0.01)
    assert (folder / "out" / "scan_transformed.json").exists()


def test_no_boxes_are_moved(toy: Run, folder: Path) -> None:
    """A detector that has found nothing; with a warp too, which is inverted point by point."""
    head = "x\ty\tz\tsize_x\tsize_y\tsize_z\tscore\tlabel\n"
    (folder / "a_boxes.tsv").write_text(head)
    given = ["--transform", folder / "affine.tfm", "--transform", folder / "warp.nii.gz"]
    done = toy("transform", "apply", folder / "a_boxes.tsv", *given, "-o", folder / "moved.tsv")
    assert done.code == 0, done.err
    assert (folder / "moved.tsv").read_text() == head


def test_points_of_the_reference_go_as_itk_s_do(toy: Run, folder: Path) -> None:
    points = corners(read_grid(folder / "fixed.nii.gz"))
    given = ["--transform", folder / "affine.tfm", "--transform", folder / "warp.nii.gz"]
    table(folder / "drawn.csv", points, "LPS")
    done = toy(
        "transform", "apply", folder / "drawn.csv", *given, "--points-from", "reference", "--coordinates", "LPS",
        "-o", folder / "moved.csv",
    )  # fmt: skip
    assert done.code == 0, done.err
    chain = sitk.CompositeTransform([in_sitk(folder / name) for name in ("affine.tfm", "warp.nii.gz")])
    moved = read_points(folder / "moved.csv", "LPS").positions
    np.testing.assert_allclose(moved, by_sitk(chain, points), atol=1e-4)
    lines = (folder / "moved.csv").read_text().splitlines()
    assert lines[0] == "label,x,y,z,comment"
    assert lines[1].startswith("p0,")
    assert lines[1].endswith(",kept")
    back = toy("transform", "apply", folder / "moved.csv", *given, "--coordinates", "LPS", "-o", folder / "back.csv")
    assert back.code == 0, back.err
    np.testing.assert_allclose(read_points(folder / "back.csv", "LPS").positions, points, atol=0.01)


def test_inverse_transforms_keep_their_place_in_the_chain(toy: Run, folder: Path) -> None:
    turned = np.diag([-1.0, -1, 1, 1])
    write_transform(AffineTransform(turned), folder / "turn.tfm")
    given = ["--inverse-transform", folder / "affine.tfm", "--transform", folder / "turn.tfm"]
    for number, words in enumerate((given, given[2:] + given[:2])):
        done = toy("transform", "apply", folder / "spot.csv", *words, "-o", folder / f"{number}.csv")
        assert done.code == 0, done.err
    start = read_points(folder / "spot.csv").positions
    inverse = np.linalg.inv(affine_matrix())
    # image order: the point of the input goes back through the first transform first
    for number, chain in enumerate((inverse @ turned, turned @ inverse)):
        expected = apply_affine(np.linalg.inv(chain), start)
        np.testing.assert_allclose(read_points(folder / f"{number}.csv").positions, expected, atol=1e-5)
    sidecar = json.loads((folder / "0.json").read_text())
    assert list(sidecar["medkit"]["inputs"])[1:] == ["inverse_transform_1", "transform_2"]
    shown = toy("show", folder / "0.csv")
    assert "--inverse-transform" in shown.out
    assert shown.out.index("--inverse-transform") < shown.out.index("--transform ")


def test_a_transform_the_wrong_way_round_is_refused(toy: Run, folder: Path) -> None:
    fixed, moving = (read_grid(folder / name) for name in ("fixed.nii.gz", "scan.nii.gz"))
    write_transform(AffineTransform(affine_matrix(), moving.digest(), fixed.digest()), folder / "back.tfm")
    command = ["transform", "apply", folder / "scan.nii.gz", "--reference", folder / "fixed.nii.gz"]
    done = toy(*command, "--transform", folder / "back.tfm", "-o", folder / "out.nii.gz")
    assert done.code == 3
    assert "--inverse-transform" in done.err
    assert fixed.digest() in done.err
    assert not (folder / "out.nii.gz").exists()
    done = toy(*command, "--inverse-transform", folder / "back.tfm", "--json", "-o", folder / "out.nii.gz")
    assert done.code == 0
    assert not any("grid" in warning for warning in done.records[0]["medkit"]["warnings"])


def test_another_grid_is_warned_of(toy: Run, folder: Path) -> None:
    other = grid_in("RAS", (30, 30, 30)).digest()
    write_transform(AffineTransform(np.eye(4), other, other), folder / "x.tfm")
    done = toy(
        "transform", "apply", folder / "scan.nii.gz", "--reference", folder / "fixed.nii.gz",
        "--transform", folder / "x.tfm", "--json", "-o", folder / "out.nii.gz",
    )  # fmt: skip
    assert done.code == 0
    warnings = " ".join(done.records[0]["medkit"]["warnings"])
    assert warnings.count(other) == 2
    assert "the fixed image" in warnings


def test_a_result_without_the_image_is_warned_of(toy: Run, folder: Path) -> None:
    far = np.eye(4)
    far[0, 3] = 500
    write_transform(AffineTransform(far), folder / "far.tfm")
    done = toy(
        "transform", "apply", folder / "scan.nii.gz", "--reference", folder / "fixed.nii.gz",
        "--transform", folder / "far.tfm", "--json", "-o", folder / "out.nii.gz",
    )  # fmt: skip
    assert any("empty" in warning for warning in done.records[0]["medkit"]["warnings"])


def test_what_apply_refuses(toy: Run, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(6, 6, 6, 2)), np.eye(4)), tmp_path / "four.nii.gz")
    nib.save(nib.Nifti1Image(np.arange(216.0).reshape(6, 6, 6), np.eye(4)), tmp_path / "ref.nii.gz")
    (tmp_path / "p.csv").write_text("x,y,z\n1,2,3\n")
    reference = ["--reference", tmp_path / "ref.nii.gz"]
    done = toy("transform", "apply", tmp_path / "four.nii.gz")
    assert (done.code, "--reference" in done.err) == (2, True)
    done = toy("transform", "apply", input=f"{tmp_path / 'four.nii.gz'}\n")
    assert (done.code, "needs --reference" in done.err) == (3, True)
    done = toy("transform", "apply", tmp_path / "four.nii.gz", *reference, "-o", tmp_path / "out.nii.gz")
    assert (done.code, "--frame" in done.err) == (3, True)
    done = toy("transform", "apply", tmp_path / "four.nii.gz", *reference, "--frame", 1, "-o", tmp_path / "out.nii.gz")
    assert done.code == 0, done.err
    done = toy("transform", "apply", tmp_path / "p.csv", "-o", tmp_path / "p.nii.gz")
    assert (done.code, ".mrk.json" in done.err) == (1, True)
    assert not (tmp_path / "p.nii.gz").exists()
    (tmp_path / "flirt.mat").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    done = toy("transform", "apply", tmp_path / "p.csv", "--transform", tmp_path / "flirt.mat")
    assert (done.code, "medkit transform convert" in done.err) == (3, True)


def test_planes(toy: Run, tmp_path: Path) -> None:
    grid = Grid((30, 26, 1), np.diag([1.5, -1.2, 1, 1]), dims=2)
    rng = np.random.default_rng(0)
    Image(rng.normal(100, 20, (1, *grid.shape)).astype(np.float32), grid).write(tmp_path / "a.nii.gz")
    warp = waves(grid)
    write_transform(warp, tmp_path / "warp.nii.gz")
    point = apply_affine(grid.affine, np.array([[12.0, 11, 0]]))
    table(tmp_path / "p.csv", point)
    given = ["--reference", tmp_path / "a.nii.gz", "--transform", tmp_path / "warp.nii.gz", "-o", tmp_path / "out"]
    done = toy("transform", "apply", tmp_path / "a.nii.gz", tmp_path / "p.csv", *given)
    assert done.code == 0, done.err
    assert nib.load(done.paths[0]).shape == (30, 26)
    np.testing.assert_allclose(warp.map_points(read_points(done.paths[1]).positions), point, atol=2e-3)
    done = toy("transform", "invert", tmp_path / "warp.nii.gz", "--reference", tmp_path / "a.nii.gz", "--json")
    assert done.records[0]["medkit"]["metrics"]["residual_mm"]["max"] < 0.02
    assert read_transform(Path(done.records[0]["path"])).dims == 2


# ---- compose


def test_affine_transforms_stay_affine(toy: Run, folder: Path) -> None:
    write_transform(AffineTransform(np.diag([2.0, 1, 1, 1])), folder / "wide.tfm")
    done = toy("transform", "compose", folder / "affine.tfm", folder / "wide.tfm", "-o", folder / "both.tfm")
    assert done.paths == [folder / "both.tfm"]
    both = read_transform(folder / "both.tfm")
    assert isinstance(both, AffineTransform)
    np.testing.assert_allclose(both.matrix, affine_matrix() @ np.diag([2.0, 1, 1, 1]))
    assert both.to_grid == read_grid(folder / "scan.nii.gz").digest()
    assert f"compose {folder / 'affine.tfm'} {folder / 'wide.tfm'}" in toy("show", folder / "both.tfm").out


@pytest.mark.parametrize("order", [("affine.tfm", "warp.nii.gz"), ("warp.nii.gz", "affine.tfm")])
def test_a_field_makes_one_field(toy: Run, folder: Path, order: tuple[str, str]) -> None:
    parts = [folder / name for name in order]
    write_transform(AffineTransform(affine_matrix()), folder / "affine.tfm")
    done = toy("transform", "compose", *parts, "--reference", folder / "fixed.nii.gz", "-o", folder / "both.nii.gz")
    assert done.code == 0, done.err
    fixed = read_grid(folder / "fixed.nii.gz")
    field = read_transform(folder / "both.nii.gz")
    assert field.grid.digest() == field.from_grid == fixed.digest()
    points = apply_affine(fixed.affine, np.argwhere(np.ones(fixed.shape))[5::97].astype(float))
    expected = by_sitk(sitk.CompositeTransform([in_sitk(part) for part in parts]), points)
    np.testing.assert_allclose(by_sitk(in_sitk(folder / "both.nii.gz"), points), expected, atol=1e-4)


def test_compose_refuses_spaces_that_do_not_meet(toy: Run, folder: Path) -> None:
    a, b, c = (grid_in("RAS", (9, 9, n)).digest() for n in (4, 5, 6))
    write_transform(AffineTransform(np.eye(4), b, a), folder / "first.tfm")
    write_transform(AffineTransform(np.eye(4), c, c), folder / "second.tfm")
    done = toy("transform", "compose", folder / "first.tfm", folder / "second.tfm", "-o", folder / "both.tfm")
    assert done.code == 3
    for word in ("first.tfm", "second.tfm", b, c):
        assert word in done.err
    assert not (folder / "both.tfm").exists()


def test_nothing_is_composed_without_all_parts(toy: Run, folder: Path) -> None:
    failed = json.dumps({"path": str(folder / "x.tfm"), "kind": "transform", "medkit": {"status": "failed"}})
    lines = f"{folder / 'affine.tfm'}\n{failed}\n"
    done = toy("transform", "compose", "-o", folder / "both.tfm", input=lines)
    assert (done.code, done.out) == (1, "")
    assert "1 of its 2 inputs failed" in done.err
    done = toy("transform", "compose", folder / "affine.tfm", folder / "none.tfm", "-o", folder / "both.tfm")
    assert (done.code, "none.tfm" in done.err) == (3, True)
    assert toy("transform", "compose", folder / "affine.tfm").code == 2
    done = toy("transform", "compose", folder / "affine.tfm", folder / "warp.nii.gz", "-o", folder / "both.tfm")
    assert (done.code, ".nii.gz or .h5" in done.err) == (1, True)
    assert not (folder / "both.tfm").exists()


# ---- invert


def test_invert_affine_exactly(toy: Run, folder: Path) -> None:
    done = toy("transform", "invert", folder / "affine.tfm")
    assert done.paths == [folder / "affine_inverse.tfm"]
    inverse = read_transform(done.paths[0])
    np.testing.assert_allclose(inverse.matrix, np.linalg.inv(affine_matrix()), atol=1e-12)
    assert inverse.from_grid == read_grid(folder / "scan.nii.gz").digest()


@pytest.mark.parametrize("shifted", [False, True])
def test_invert_a_field(toy: Run, folder: Path, shifted: bool) -> None:
    """Also one whose two images have no world point in common."""
    fixed = read_grid(folder / "fixed.nii.gz")
    matrix = np.eye(4)
    matrix[:3, 3] = 200 if shifted else 0
    moving = Grid(fixed.shape, matrix @ fixed.affine)
    Image(np.arange(np.prod(moving.shape), dtype=np.float32).reshape(1, *moving.shape), moving).write(
        folder / "m.nii.gz"
    )
    warp = waves(fixed)
    moved = DisplacementField(warp.field + matrix[:3, 3].astype(np.float32), fixed, fixed.digest(), moving.digest())
    write_transform(moved, folder / "total.nii.gz")
    done = toy("transform", "invert", folder / "total.nii.gz", "--reference", folder / "m.nii.gz", "--json")
    assert done.code == 0, done.err
    metrics = done.records[0]["medkit"]["metrics"]
    assert metrics["residual_mm"]["max"] < 0.01
    assert metrics["covered"] > 0.7
    assert metrics["folding"] == 0
    assert "residual" in done.err
    inverse = read_transform(Path(done.records[0]["path"]))
    assert (inverse.from_grid, inverse.to_grid) == (moving.digest(), fixed.digest())
    points = corners(fixed)
    np.testing.assert_allclose(inverse.map_points(moved.map_points(points)), points, atol=0.05)


def test_a_folding_field_is_warned_of(toy: Run, folder: Path) -> None:
    fixed = read_grid(folder / "fixed.nii.gz")
    write_transform(waves(fixed, height=12.0), folder / "folds.nii.gz")
    done = toy("transform", "invert", folder / "folds.nii.gz", "--reference", folder / "fixed.nii.gz", "--json")
    assert done.code == 0
    assert any("folds in" in warning for warning in done.records[0]["medkit"]["warnings"])
    done = toy("transform", "invert", folder / "warp.nii.gz")
    assert (done.code, "--reference" in done.err) == (3, True)


# ---- jacobian


def test_jacobian_of_a_known_map(toy: Run, folder: Path) -> None:
    """Linear stretching has one determinant, in every orientation of the grid; affine parts count."""
    fixed = read_grid(folder / "fixed.nii.gz")
    stretch = np.diag([1.2, 0.9, 1.05, 1])
    index = np.argwhere(np.ones(fixed.shape)).astype(float)
    points = apply_affine(fixed.affine, index)
    shift = (apply_affine(stretch, points) - points).reshape(*fixed.shape, 3).astype(np.float32)
    write_transform(DisplacementField(shift, fixed), folder / "stretch.nii.gz")
    done = toy("transform", "compose", folder / "affine.tfm", folder / "stretch.nii.gz", "-o", folder / "all.nii.gz")
    assert done.code == 0, done.err
    done = toy("transform", "jacobian", folder / "stretch.nii.gz", folder / "all.nii.gz", "--json")
    alone, both = (r["medkit"]["metrics"]["jacobian"] for r in done.records)
    size = 1.2 * 0.9 * 1.05
    np.testing.assert_allclose([alone["minimum"], alone["maximum"]], size, rtol=1e-4)
    np.testing.assert_allclose([both["minimum"], both["maximum"]], size * 1.1 * 0.95, rtol=1e-4)
    assert both["folding"] == 0
    assert "folding 0 %" in done.err
    np.testing.assert_allclose(read_values(Path(done.records[0]["path"])), size, rtol=1e-4)
    given = ["--reference", folder / "fixed.nii.gz", "--log", "-o", folder / "log.nii.gz"]
    done = toy("transform", "jacobian", folder / "affine.tfm", *given)
    assert done.code == 0, done.err
    np.testing.assert_allclose(read_values(folder / "log.nii.gz"), np.log(1.1 * 0.95), atol=1e-5)
    assert toy("transform", "jacobian", folder / "affine.tfm").code == 3


def test_volumes_of_structures(toy: Run, tmp_path: Path) -> None:
    """x -> 2x for x > 0 in the moving image: half of a structure there becomes twice as large."""
    grid = Grid((21, 10, 12), np.diag([1.0, 2.0, 2.0, 1.0]) + np.array([[0, 0, 0, -10.0], *[[0] * 4] * 3]))
    shift = np.zeros((*grid.shape, 3), np.float32)
    shift[..., 0] = np.maximum(np.arange(21) - 10, 0)[:, None, None]
    write_transform(DisplacementField(shift, grid), tmp_path / "x.nii.gz")
    labels = np.zeros(grid.shape, np.int16)
    labels[1:9, 2:6, 3:8], labels[12:18, 2:6, 3:8], labels[5:16, 7, 9] = 3, 41, 8
    nib.save(nib.Nifti1Image(labels, grid.affine), tmp_path / "a_dseg.nii.gz")
    (tmp_path / "a_dseg.tsv").write_text("index\tname\n3\tleft\n41\tright\n")
    done = toy(
        *("transform", "jacobian", tmp_path / "x.nii.gz", "--labels", tmp_path / "a_dseg.nii.gz", "--json"),
        *("-o", tmp_path / "growth.nii.gz"),
    )
    assert done.code == 0, done.err
    table = Path(done.records[0]["medkit"]["outputs"]["volumes"]["path"])
    assert table == tmp_path / "growth.tsv"
    header, *rows = (line.split("\t") for line in table.read_text().splitlines())
    found = {row[1]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(found) == ["left", "n/a", "right"]
    assert [found["left"][key] for key in ("fixed_mm3", "moving_mm3", "change_percent")] == ["640.0", "640.0", "0.00"]
    right = ["480.0", "960.0", "480.0", "100.00", "2.000", "2.000"]
    assert [found["right"][key] for key in header[2:]] == right
    # five voxels left of the kink, five right of it, and one on it with a central difference of 1.5
    assert float(found["n/a"]["moving_mm3"]) == 4 * (5 * 1 + 1.5 + 5 * 2)
    (tmp_path / "a_dseg.tsv").unlink()
    nib.save(nib.Nifti1Image(labels * 0, grid.affine), tmp_path / "a_dseg.nii.gz")
    done = toy("transform", "jacobian", tmp_path / "x.nii.gz", "--labels", tmp_path / "a_dseg.nii.gz")
    assert done.code == 3
    assert "a_dseg.nii.gz: expected a voxel above 0 on the grid of the transform, got none" in done.err


def read_values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_jacobian_as_simpleitk(toy: Run, tmp_path: Path) -> None:
    """ITK's filter leaves the direction of the axes out, so the field lies along them; its border is another one."""
    grid = Grid((14, 12, 10), np.diag([-1.5, -0.8, 2, 1]))
    noise = np.random.default_rng(0).normal(0, 0.5, (*grid.shape, 3)).astype(np.float32)
    write_transform(DisplacementField(noise, grid), tmp_path / "x.nii.gz")
    mask = np.zeros((1, *grid.shape), np.uint8)
    mask[:, 1:-1, 1:-1, 1:-1] = 1
    Image(mask, grid).write(tmp_path / "mask.nii.gz")
    done = toy("transform", "jacobian", tmp_path / "x.nii.gz", "--mask", tmp_path / "mask.nii.gz", "--json")
    field = sitk.ReadImage(str(tmp_path / "x.nii.gz"), sitk.sitkVectorFloat64)
    expected = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field)).T[1:-1, 1:-1, 1:-1]
    ours = read_values(Path(done.records[0]["path"]))[1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    found = done.records[0]["medkit"]["metrics"]["jacobian"]
    assert found["voxels"] == ours.size
    assert found["folding"] == pytest.approx((expected <= 0).mean())
    assert found["folding"] > 0
    assert any("folds in" in warning for warning in done.records[0]["medkit"]["warnings"])


def test_jacobian_of_the_plane(toy: Run, tmp_path: Path) -> None:
    grid = Grid((12, 10, 1), np.array([[0, 2.0, 0, 1], [-3, 0, 0, 2], [0, 0, 1, 0], [0, 0, 0, 1]]), dims=2)
    points = apply_affine(grid.affine, np.argwhere(np.ones(grid.shape)).astype(float))
    field = (points * [0.3, -0.1, 0]).reshape(*grid.shape, 3).astype(np.float32)
    write_transform(DisplacementField(field, grid), tmp_path / "x.nii.gz")
    done = toy("transform", "jacobian", tmp_path / "x.nii.gz", "-o", tmp_path / "j.nii.gz")
    assert done.code == 0, done.err
    np.testing.assert_allclose(read_values(tmp_path / "j.nii.gz"), 1.3 * 0.9, rtol=1e-5)
    assert read_values(tmp_path / "j.nii.gz").shape == (12, 10)


# ---- convert


FORMS = [("itk-mat", ".mat"), ("flirt", ".mat"), ("lta", ".lta"), ("lta-voxels", ".lta"), ("register-dat", ".dat")]


@pytest.mark.parametrize(("form", "extension"), FORMS)
def test_affine_forms_and_back(toy: Run, folder: Path, form: str, extension: str) -> None:
    images = ["--fixed", folder / "fixed.nii.gz", "--moving", folder / "scan.nii.gz"]
    there = folder / f"there{extension}"
    done = toy("transform", "convert", folder / "affine.tfm", *images, "--to", form, "-o", there)
    assert done.code == 0, done.err
    assert "# medkit" not in there.read_bytes().decode("latin-1")
    back = toy("transform", "convert", there, *images, "-o", folder / "back.tfm")
    assert back.code == 0, back.err
    again = read_transform(folder / "back.tfm")
    np.testing.assert_allclose(again.matrix, affine_matrix(), atol=1e-6)
    ends = [read_grid(folder / name).digest() for name in ("fixed.nii.gz", "scan.nii.gz")]
    assert [again.from_grid, again.to_grid] == ends
    if form == "itk-mat":
        points = corners(read_grid(folder / "fixed.nii.gz"))
        np.testing.assert_allclose(by_sitk(in_sitk(there), points), apply_affine(affine_matrix(), points), atol=1e-9)


def in_fsl(grid: Grid, index: np.ndarray) -> np.ndarray:
    """Voxels in FSL's mm by its rule: sizes times indices, the first axis from its end where stored neurologically."""
    index = index.copy()
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        index[:, 0] = grid.shape[0] - 1 - index[:, 0]
    return index * grid.spacing


def test_flirt_takes_moving_to_fixed(toy: Run, folder: Path) -> None:
    fixed, moving = (read_grid(folder / name) for name in ("fixed.nii.gz", "scan.nii.gz"))
    images = ["--fixed", folder / "fixed.nii.gz", "--moving", folder / "scan.nii.gz"]
    assert (
        toy("transform", "convert", folder / "affine.tfm", *images, "--to", "flirt", "-o", folder / "f.mat").code == 0
    )
    matrix = np.loadtxt(folder / "f.mat")
    index = np.random.default_rng(0).uniform(0, 20, (9, 3))
    there = apply_affine(np.linalg.inv(moving.affine) @ affine_matrix() @ fixed.affine, index)
    np.testing.assert_allclose(apply_affine(matrix, in_fsl(moving, there)), in_fsl(fixed, index), atol=1e-5)


@pytest.mark.parametrize("positions", [False, True])
def test_fsl_warps(toy: Run, folder: Path, positions: bool) -> None:
    fixed, moving = (read_grid(folder / name) for name in ("fixed.nii.gz", "scan.nii.gz"))
    images = ["--fixed", folder / "fixed.nii.gz", "--moving", folder / "scan.nii.gz"]
    if positions:  # their recognition needs axes in the same order
        images[-1], moving = images[1], fixed
    total = Composite((AffineTransform(affine_matrix()), waves(fixed)))
    write_transform(total, folder / "total.nii.gz")
    done = toy(
        "transform", "convert", folder / "total.nii.gz", *images, "--to", "fsl-warp", "-o", folder / "fsl.nii.gz"
    )
    assert done.code == 0, done.err
    stored = nib.load(folder / "fsl.nii.gz")
    index = np.argwhere(np.ones(fixed.shape)).astype(float)
    shift = np.asarray(stored.dataobj).reshape(-1, 3)
    there = apply_affine(np.linalg.inv(moving.affine), total.map_points(apply_affine(fixed.affine, index)))
    np.testing.assert_allclose(in_fsl(fixed, index) + shift, in_fsl(moving, there), atol=1e-3)
    if positions:
        values = (in_fsl(fixed, index) + shift).reshape(stored.shape).astype(np.float32)
        nib.save(nib.Nifti1Image(values, stored.affine), folder / "fsl.nii.gz")
    stated = ["--from", "fsl-warp"] if positions else []  # the header of displacements states it
    back = toy(
        "transform", "convert", folder / "fsl.nii.gz", *images, *stated, "--to", "field", "-o", folder / "back.nii.gz"
    )
    assert back.code == 0, back.err
    np.testing.assert_allclose(
        read_transform(folder / "back.nii.gz").field, read_transform(folder / "total.nii.gz").field, atol=1e-3
    )


def test_a_warp_of_three_frames_is_asked_for_its_kind(toy: Run, folder: Path) -> None:
    """As SynthMorph, MRtrix and VoxelMorph write them; the same map in each."""
    fixed, moving = (read_grid(folder / name) for name in ("fixed.nii.gz", "scan.nii.gz"))
    images = ["--fixed", folder / "fixed.nii.gz", "--moving", folder / "scan.nii.gz"]
    total = Composite((AffineTransform(affine_matrix()), waves(fixed)))
    index = np.argwhere(np.ones(fixed.shape)).astype(float)
    here = apply_affine(fixed.affine, index)
    there = total.map_points(here)
    voxels = apply_affine(np.linalg.inv(moving.affine), there) - index
    for kind, values in {
        "ras-displacements": there - here, "ras-positions": there, "voxel-displacements": voxels,
    }.items():  # fmt: skip
        path = folder / f"{kind}.nii.gz"
        nib.save(nib.Nifti1Image(values.reshape(*fixed.shape, 3).astype(np.float32), fixed.affine), path)
        done = toy("transform", "convert", path, *images, "--to", "field", "-o", folder / "no.nii.gz")
        assert (done.code, f"--from {kind}: " in done.err) == (3, True)
        done = toy("transform", "apply", folder / "scan.nii.gz", "--reference", images[1], "--transform", path)
        assert (done.code, "--from KIND" in done.err and kind in done.err) == (3, True), done.err
        words = [path, "--from", kind, *images, "--overwrite", "-o", folder / "x.nii.gz"]
        done = toy("transform", "convert", *words)
        assert done.code == 0, done.err
        assert "look" not in done.err
        field = read_transform(folder / "x.nii.gz").field
        np.testing.assert_allclose(field.reshape(-1, 3), there - here, atol=1e-3)
    done = toy("transform", "convert", path, "--from", kind, "--to", "field")
    assert (done.code, "needs both images" in done.err) == (2, True)


def test_a_matrix_as_text_is_what_it_is_said_to_be(toy: Run, folder: Path) -> None:
    images = ["--fixed", folder / "fixed.nii.gz", "--moving", folder / "scan.nii.gz"]
    np.savetxt(folder / "greedy.mat", affine_matrix())
    done = toy("transform", "convert", folder / "greedy.mat", "--from", "ras-matrix", "-o", folder / "x.tfm")
    assert done.code == 0, done.err
    np.testing.assert_allclose(read_transform(folder / "x.tfm").matrix, affine_matrix(), atol=1e-9)
    done = toy("transform", "convert", folder / "greedy.mat", *images, "-o", folder / "y.tfm")
    assert (done.code, "--from ras-matrix" in done.err and "need a look" in done.err) == (0, True), done.err
    done = toy("transform", "convert", folder / "greedy.mat", "--from", "flirt", *images, "-o", folder / "z.tfm")
    assert (done.code, "look" in done.err) == (0, False)
    assert "--from ras-matrix" in toy("transform", "show", folder / "greedy.mat").err
    assert toy("transform", "show", folder / "greedy.mat", "--from", "ras-matrix").code == 0


def test_lta_s_geometry_is_that_of_the_images(toy: Run, folder: Path) -> None:
    from nibabel.freesurfer.mghformat import MGHHeader

    images = ["--fixed", folder / "fixed.nii.gz", "--moving", folder / "scan.nii.gz"]
    for form in ("lta", "lta-voxels"):
        path = folder / f"{form}.lta"
        assert toy("transform", "convert", folder / "affine.tfm", *images, "--to", form, "-o", path).code == 0
        # alone, from the volumes that it describes
        np.testing.assert_allclose(read_transform(path).matrix, affine_matrix(), atol=1e-5)
    moving = read_grid(folder / "scan.nii.gz")
    header = MGHHeader()
    header.set_data_shape(moving.shape)
    header.set_zooms(moving.spacing)
    from medkit.transforms.freesurfer import tkregister_affine

    np.testing.assert_allclose(tkregister_affine(moving), header.get_vox2ras_tkr(), atol=1e-5)
    text = (folder / "lta.lta").read_text().replace("type      = 1", "type      = 2")
    (folder / "odd.lta").write_text(text)
    done = toy("transform", "show", folder / "odd.lta")
    assert (done.code, "type 2" in done.err) == (3, True)
    text = (folder / "lta-voxels.lta").read_text().replace("valid = 1", "valid = 0")
    (folder / "lost.lta").write_text(text)
    assert toy("transform", "show", folder / "lost.lta").code == 3
    assert toy("transform", "show", folder / "lost.lta", *images).code == 0


def test_what_convert_refuses(toy: Run, folder: Path) -> None:
    fixed = ["--fixed", folder / "fixed.nii.gz"]
    both = [*fixed, "--moving", folder / "scan.nii.gz"]
    assert toy("transform", "convert", folder / "affine.tfm").code == 2
    assert toy("transform", "convert", folder / "affine.tfm", *fixed, "--to", "flirt").code == 2
    done = toy("transform", "convert", folder / "warp.nii.gz", *both, "--to", "lta", "-o", folder / "x.lta")
    assert (done.code, "displacement field" in done.err) == (1, True)
    done = toy("transform", "convert", folder / "affine.tfm", "-o", folder / "x.nii.gz")
    assert (done.code, "fixed image" in done.err) == (1, True)
    write_transform(AffineTransform(np.eye(4), dims=2), folder / "plane.tfm")
    done = toy("transform", "convert", folder / "plane.tfm", *both, "--to", "flirt", "-o", folder / "x.mat")
    assert (done.code, "plane" in done.err) == (1, True)
    (folder / "f.mat").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    done = toy("transform", "convert", folder / "f.mat", "-o", folder / "x.tfm")
    assert (done.code, "--moving" in done.err) == (3, True)
    assert not list(folder.glob("x.*"))


def test_the_forms_of_the_help_are_those_there_are() -> None:
    from medkit.commands.transform import _FORMS
    from medkit.transform_tasks.convert import FORMS

    assert list(_FORMS) == list(FORMS)


def test_convert_names_the_spaces(toy: Run, folder: Path) -> None:
    """A transform of unknown ends gets them, one of known ends keeps what is not said."""
    done = toy(
        "transform", "convert", folder / "affine.tfm", "--fixed", folder / "fixed.nii.gz", "-o", folder / "x.tfm"
    )
    assert done.code == 0, done.err
    named = read_transform(folder / "x.tfm")
    assert named.from_grid == read_grid(folder / "fixed.nii.gz").digest()
    assert named.to_grid == read_grid(folder / "scan.nii.gz").digest()
    done = toy("transform", "convert", folder / "x.tfm", "--fixed", folder / "fixed.nii.gz", "-o", folder / "y.nii.gz")
    assert done.code == 0, done.err
    points = corners(read_grid(folder / "fixed.nii.gz"))
    np.testing.assert_allclose(by_sitk(in_sitk(folder / "y.nii.gz"), points), named.map_points(points), atol=1e-4)


@pytest.mark.slow
def test_composite_h5(toy: Run, tmp_path: Path) -> None:
    """itk takes many seconds to load its writers."""
    fixed = grid_in("oblique")
    write_transform(AffineTransform(affine_matrix()), tmp_path / "a.tfm")
    write_transform(waves(fixed), tmp_path / "w.nii.gz")
    done = toy("transform", "compose", tmp_path / "a.tfm", tmp_path / "w.nii.gz", "-o", tmp_path / "both.h5")
    assert done.code == 0, done.err
    points = corners(fixed)
    expected = Composite((AffineTransform(affine_matrix()), waves(fixed))).map_points(points)
    np.testing.assert_allclose(by_sitk(sitk.ReadTransform(str(tmp_path / "both.h5")), points), expected, atol=1e-4)
    again = read_transform(tmp_path / "both.h5")
    assert len(again.transforms) == 2
    np.testing.assert_allclose(again.map_points(points), expected, atol=1e-4)


# ---- show


def test_show_takes_an_affine_map_apart(toy: Run, tmp_path: Path) -> None:
    shear = np.array([[1, 0.1, 0], [0, 1, -0.05], [0, 0, 1.0]])
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag([1.2, 0.9, 1.0]) @ shear
    matrix[:3, 3] = 1, 2, 3
    write_transform(AffineTransform(matrix), tmp_path / "x.tfm")
    facts = json.loads(toy("transform", "show", tmp_path / "x.tfm", "--json").out)
    assert facts["kind"] == "affine"
    assert facts["dimension"] == 3
    np.testing.assert_allclose(facts["rotation_deg"], [0, 0, 30], atol=1e-9)
    np.testing.assert_allclose(facts["scale"], [1.2, 0.9, 1.0])
    np.testing.assert_allclose(list(facts["shear"].values()), [0.1, 0, -0.05], atol=1e-12)
    np.testing.assert_allclose(facts["translation_mm"], [1, 2, 3])
    np.testing.assert_allclose(facts["matrix"], matrix)
    shown = toy("transform", "show", tmp_path / "x.tfm").out
    assert "30.000 deg about (0.000, 0.000, 1.000)" in shown
    assert "1.20000, 0.90000, 1.00000" in shown


@pytest.mark.parametrize(
    ("linear", "kind"),
    [
        (np.eye(3), "translation"),
        (TURN, "rigid"),
        (TURN * 1.3, "similarity"),
        (np.diag([-1.0, 1, 1]), "affine"),
        (TURN @ np.diag([1, 1, -1.0]), "affine"),
    ],
)
def test_show_decomposes_what_it_names(linear: np.ndarray, kind: str) -> None:
    from medkit.transform_tasks.describe import _kind, decompose

    matrix = np.eye(4)
    matrix[:3, :3] = linear
    facts = decompose(matrix)
    assert _kind(facts) == kind
    x, y, z = np.deg2rad(facts["rotation_deg"])
    turns = [np.eye(3) for _ in range(3)]
    for turn, angle, (i, j) in zip(turns, (x, y, z), ((1, 2), (2, 0), (0, 1)), strict=True):
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    shear = np.eye(3)
    shear[[0, 0, 1], [1, 2, 2]] = list(facts["shear"].values())
    again = turns[2] @ turns[1] @ turns[0] @ np.diag(facts["scale"]) @ shear
    np.testing.assert_allclose(again, linear, atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_show_half_a_turn(axis: int) -> None:
    from medkit.transform_tasks.describe import decompose

    facts = decompose(np.diag([*(1.0 if i == axis else -1.0 for i in range(3)), 1.0]))
    assert facts["angle_deg"] == pytest.approx(180)
    np.testing.assert_allclose(np.abs(facts["axis"]), np.eye(3)[axis], atol=1e-9)


def test_show_a_quarter_turn_about_y() -> None:
    """There the angles about x and z have only a difference: z is 0."""
    from medkit.transform_tasks.describe import decompose

    matrix = np.array([[0.0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(decompose(matrix)["rotation_deg"], [0, 90, 0], atol=1e-6)


def test_show_a_field(toy: Run, folder: Path) -> None:
    grid = read_grid(folder / "fixed.nii.gz")
    done = toy("transform", "show", folder / "warp.nii.gz", folder / "affine.tfm", "--json")
    facts, other = (json.loads(line) for line in done.lines)
    assert facts["kind"] == "displacement field"
    assert facts["grid"]["shape"] == list(grid.shape)
    assert facts["grid"]["digest"] == facts["from_grid"] == grid.digest()
    lengths = np.linalg.norm(waves(grid).field, axis=-1)
    assert facts["displacement_mm"]["max"] == pytest.approx(lengths.max(), rel=1e-5)
    assert 0.5 < facts["jacobian"]["minimum"] < 1 < facts["jacobian"]["maximum"] < 2
    assert other["to_grid"] == read_grid(folder / "scan.nii.gz").digest()
    text = toy("transform", "show", folder / "warp.nii.gz").out
    assert grid.digest() in text
    assert "folding 0 %" in text
    done = toy("transform", "show", folder / "warp.nii.gz", folder / "none.tfm")
    assert (done.code, "none.tfm" in done.err, len(done.lines)) == (1, True, len(text.splitlines()))
