"""Transform files of MINC, FreeSurfer, greedy and c3d in the variants that other programs write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medkit.errors import InputError
from medkit.transforms.files import read_transform, write_transform
from medkit.transforms.transform import AffineTransform

TURN = np.array([[0.98, -0.199, 0, 4], [0.199, 0.98, 0, -7], [0, 0, 1.1, 3], [0, 0, 0, 1]])
SHIFT = np.array([[1.0, 0, 0, 10], [0, 1, 0.2, 0], [0, 0, 1, -2], [0, 0, 0, 1]])
POINTS = np.array([[20.0, -30, 10], [1, 2, 3]])
SPLINE = "Transform_Type = Thin_Plate_Spline_Transform;\nNumber_Dimensions = 3;\nPoints =\n 0 0 0\n 1 1 1;\n"
GRID = "Transform_Type = Grid_Transform;\nDisplacement_Volume = x_grid_0.mnc;\n"


def linear(matrix: np.ndarray, extra: str = "") -> str:
    rows = "\n".join(" ".join(f"{value:.12f}" for value in row) for row in matrix[:3])
    return f"Transform_Type = Linear;\n{extra}Linear_Transform =\n{rows};\n"


def xfm(folder: Path, *parts: str) -> Path:
    path = folder / "x.xfm"
    path.write_text("MNI Transform File\n% made; by hand\n\n" + "\n".join(parts))
    return path


def moved(matrix: np.ndarray) -> np.ndarray:
    return POINTS @ matrix[:3, :3].T + matrix[:3, 3]


@pytest.mark.parametrize(
    ("parts", "forward"),
    [
        ((linear(TURN), linear(SHIFT)), SHIFT @ TURN),
        ((linear(TURN, "Invert_Flag = True;\n"),), np.linalg.inv(TURN)),
        ((linear(TURN, "Invert_Flag = False;\n"), linear(SHIFT, "Invert_Flag = True;\n")), np.linalg.inv(SHIFT) @ TURN),
        ((linear(TURN), linear(SHIFT), linear(TURN)), TURN @ SHIFT @ TURN),
    ],
    ids=["two", "inverted", "one of two inverted", "three"],
)
def test_all_parts_of_a_minc_file_count(tmp_path: Path, parts: tuple[str, ...], forward: np.ndarray) -> None:
    # the file takes moving to fixed points, medkit's transform fixed to moving ones
    np.testing.assert_allclose(read_transform(xfm(tmp_path, *parts)).map_points(moved(forward)), POINTS, atol=1e-6)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((linear(TURN), SPLINE), "linear MNI transforms only, got a part of type Thin_Plate_Spline_Transform"),
        ((GRID,), "a part of type Grid_Transform"),
        ((linear(TURN, "Weight = 2;\n"),), "got Weight"),
        ((linear(TURN, "Invert_Flag = maybe;\n"),), "got Invert_Flag = maybe"),
        ((linear(TURN)[:-20],), "truncated"),
        ((linear(TURN) + "Linear_Transform = 1 0 0 0 0 1 0 0 0 0 1 0;",), "got 'Linear_Transform'"),
        (("Transform_Type = Linear;\n",), "got 0 numbers"),
        ((), "truncated"),
    ],
)
def test_other_parts_of_a_minc_file_are_refused(tmp_path: Path, parts: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=f"x.xfm.*{message}"):
        read_transform(xfm(tmp_path, *parts))


def test_an_lta_with_commas_is_one_without(tmp_path: Path) -> None:
    text = "type = 0\nnxforms = 1\nmean = 0 0 0\nsigma = 1\n1 4 4\n1 0 0 5\n0 1 0 0\n0 0 1 -3\n0 0 0 1\n"
    for end in ("src", "dst"):
        text += f"{end} volume info\nvalid = 1\nfilename = a.mgz\nvolume = 256, 240, 200\nvoxelsize = 1.0, 0.5, 2.0\n"
        text += "xras = -1, 0, 0\nyras = 0, 0, -1\nzras = 0, 1, 0\ncras = 3, 0, 0\n"
    (tmp_path / "a.lta").write_text(text)
    (tmp_path / "b.LTA").write_text(text.replace(",", ""))
    first, second = (read_transform(tmp_path / name).map_points(POINTS) for name in ("a.lta", "b.LTA"))
    np.testing.assert_allclose(first, second)
    np.testing.assert_allclose(
        first, POINTS + np.array([5, 6, 0])
    )  # 5 voxels of 1 mm to the left, -3 of 2 mm to the front


@pytest.mark.parametrize("name", ["x.mat", "x.txt", "x.tfm"])
def test_a_text_of_16_numbers_has_two_meanings(tmp_path: Path, name: str) -> None:
    np.savetxt(tmp_path / name, TURN)
    with pytest.raises(InputError, match=rf"{name}: .*FSL.*convert {name} --from flirt .*greedy or c3d is in RAS"):
        read_transform(tmp_path / name)


@pytest.mark.parametrize("name", ["x.TFM", "x.Mat"])
def test_names_may_end_in_capitals(tmp_path: Path, name: str) -> None:
    write_transform(AffineTransform(TURN), tmp_path / name)
    np.testing.assert_allclose(read_transform(tmp_path / name).map_points(POINTS), moved(TURN), atol=1e-6)
