"""Files of landmarks, and errors between them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medkit.errors import InputError
from medkit.evaluation import Pair, Settings
from medkit.evaluation.points import score_points
from medkit.point_files import read_points
from medkit.space import AffineTransform

FCSV = """# Markups fiducial file version = 5.0
# CoordinateSystem = {frame}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
vtkMRMLMarkupsFiducialNode_0,1.5,-2,3,0,0,0,1,1,1,0,AC,,
vtkMRMLMarkupsFiducialNode_1,4,5,6,0,0,0,1,1,1,0,PC,,
"""


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("a.csv", "x,y,z\n-1.5,2,3\n-4,-5,6\n", ("1", "2")),
        ("a.csv", "-1.5,2,3\n-4,-5,6\n", ("1", "2")),
        ("a.tsv", "name\tz\ty\tx\nAC\t3\t2\t-1.5\nPC\t6\t-5\t-4\n", ("AC", "PC")),
        ("a.fcsv", FCSV.format(frame="LPS"), ("AC", "PC")),
        ("a.fcsv", FCSV.format(frame="1"), ("AC", "PC")),
    ],
)
def test_points_come_in_ras(tmp_path: Path, name: str, text: str, names: tuple[str, ...]) -> None:
    (tmp_path / name).write_text(text)
    points = read_points(tmp_path / name)
    assert points.positions.tolist() == [[-1.5, 2, 3], [-4, -5, 6]]
    assert points.names == names


@pytest.mark.parametrize(("frame", "sign"), [("LPS", -1), ("RAS", 1)])
def test_slicer_s_markups(tmp_path: Path, frame: str, sign: int) -> None:
    placed = {"label": "AC", "position": [1.5, -2, 3], "positionStatus": "defined"}
    coming = {"label": "PC", "position": [0, 0, 0], "positionStatus": "undefined"}
    content = {"markups": [{"coordinateSystem": frame, "controlPoints": [placed, coming]}]}
    (tmp_path / "a.mrk.json").write_text(json.dumps(content))
    points = read_points(tmp_path / "a.mrk.json")
    assert points.positions.tolist() == [[sign * 1.5, sign * -2, 3]]
    assert points.names == ("AC",)
    assert read_points_of_fcsv(tmp_path, "RAS") == [[1.5, -2, 3], [4, 5, 6]]


def read_points_of_fcsv(folder: Path, frame: str) -> list[list[float]]:
    (folder / "a.fcsv").write_text(FCSV.format(frame=frame))
    found: list[list[float]] = read_points(folder / "a.fcsv").positions.tolist()
    return found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("a.csv", ""), ("a.csv", "x,y,z\n"), ("a.csv", "a,b,c\n1,2,3\n"), ("a.csv", "x,y,z\n1,2\n")),
        *(("a.csv", "1,2,nan\n"), ("a.mrk.json", "{}"), ("a.mrk.json", "["), ("a.fcsv", FCSV.format(frame="XYZ"))),
    ],
)
def test_files_without_points(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=name):
        read_points(tmp_path / name)


def pair(folder: Path, result: str, reference: str, transform: Path | None = None) -> Pair:
    (folder / "moving.csv").write_text(result)
    (folder / "fixed.csv").write_text(reference)
    return Pair("case", folder / "moving.csv", folder / "fixed.csv", transform=transform)


def test_errors_by_name(tmp_path: Path) -> None:
    scores = score_points(
        pair(tmp_path, "name,x,y,z\nb,1,1,1\na,0,0,0\nc,9,9,9\n", "name,x,y,z\na,3,4,0\nb,1,1,2\n"), Settings("points")
    )
    assert [(row.label, row.values["tre_mm"]) for row in scores.rows] == [("a", 5.0), ("b", 1.0)]
    assert scores.values == {"mean_tre_mm": 3.0, "median_tre_mm": 3.0, "max_tre_mm": 5.0}
    assert scores.warnings == ("points on one side alone: c",)


def test_a_transform_takes_the_fixed_points_to_the_moving_ones(tmp_path: Path) -> None:
    matrix = np.array([[0, -1.1, 0, 4], [0.9, 0, 0, -3], [0.1, 0, 1, 2], [0, 0, 0, 1]])
    AffineTransform(matrix).write(tmp_path / "t.tfm")
    fixed = np.array([[10.0, -20, 30], [1, 2, 3]])
    moving = fixed @ matrix[:3, :3].T + matrix[:3, 3]

    def text(points: np.ndarray) -> str:
        return "\n".join(",".join(map(str, point)) for point in points)

    case = pair(tmp_path, text(moving), text(fixed), tmp_path / "t.tfm")
    assert score_points(case, Settings("points")).values["max_tre_mm"] == pytest.approx(0, abs=1e-9)


def test_other_numbers_of_points(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="as many points"):
        score_points(pair(tmp_path, "1,2,3\n", "1,2,3\n4,5,6\n"), Settings("points"))
