"""Files of landmarks, and errors between them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medkit.errors import InputError, OutputError
from medkit.evaluation.measures.points import score_points
from medkit.evaluation.results import EvaluationSettings, Pair
from medkit.transforms.files import write_transform
from medkit.transforms.points import Points, read_points, write_points
from medkit.transforms.transform import AffineTransform

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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "x\ty\tz\tsize_x\tsize_y\tsize_z\tscore\tlabel\n"),
        ("a.csv", "name,x,y,z\n"),
        ("a.fcsv", "".join(FCSV.format(frame="LPS").splitlines(keepends=True)[:3])),
        ("a.mrk.json", '{"markups": [{"coordinateSystem": "LPS", "controlPoints": []}]}'),
    ],
)
def test_none_were_found(tmp_path: Path, name: str, text: str) -> None:
    """Tables without rows are read and written where none is a result; elsewhere they are refused."""
    (tmp_path / name).write_text(text)
    points = read_points(tmp_path / name, none=True)
    assert points.positions.shape == (0, 3)
    assert points.sizes is None or points.sizes.shape == (0, 3)
    write_points(tmp_path / f"b{name[1:]}", points)
    assert read_points(tmp_path / f"b{name[1:]}", none=True).names == ()
    with pytest.raises(InputError, match="expected one point or more with finite coordinates, got none"):
        read_points(tmp_path / name)


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.fcsv", "a.mrk.json"])
def test_an_empty_file_is_no_table(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(InputError, match="expected points in a file"):
        read_points(tmp_path / name, none=True)


def test_rows_that_do_not_fit_the_columns_are_shown(tmp_path: Path) -> None:
    """A decimal comma displaces all that follows; empty cells at the end are what spreadsheets write."""
    (tmp_path / "a.csv").write_text("name,x,y,z\nAC,1,5,-2,3\n")
    with pytest.raises(InputError, match="expected the columns name, x, y, z, got AC, 1, 5, -2, 3"):
        read_points(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("x,y,z,name\n1,5,-2,AC,,\n")
    assert read_points(tmp_path / "a.csv").positions.tolist() == [[1, 5, -2]]


def read_points_of_fcsv(folder: Path, frame: str) -> list[list[float]]:
    (folder / "a.fcsv").write_text(FCSV.format(frame=frame))
    found: list[list[float]] = read_points(folder / "a.fcsv").positions.tolist()
    return found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("a.csv", ""), ("a.csv", "x,y,z\n"), ("a.csv", "a,b,c\n1,2,3\n"), ("a.csv", "x,y,z\n1,2\n")),
        *(("a.csv", "name,x,y,z\nAC,1,5,-2,3\n"), ("a.csv", "x,y,z,name\n1,2,3\n")),
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
        pair(tmp_path, "name,x,y,z\nb,1,1,1\na,0,0,0\nc,9,9,9\n", "name,x,y,z\na,3,4,0\nb,1,1,2\n"),
        EvaluationSettings("points"),
    )
    assert [(row.label, row.values["tre_mm"]) for row in scores.rows] == [("a", 5.0), ("b", 1.0)]
    assert scores.values == {"mean_tre_mm": 3.0, "median_tre_mm": 3.0, "max_tre_mm": 5.0}
    assert scores.warnings == ("points on one side only: c",)


def test_a_transform_takes_the_fixed_points_to_the_moving_ones(tmp_path: Path) -> None:
    matrix = np.array([[0, -1.1, 0, 4], [0.9, 0, 0, -3], [0.1, 0, 1, 2], [0, 0, 0, 1]])
    write_transform(AffineTransform(matrix), tmp_path / "t.tfm")
    fixed = np.array([[10.0, -20, 30], [1, 2, 3]])
    moving = fixed @ matrix[:3, :3].T + matrix[:3, 3]

    def text(points: np.ndarray) -> str:
        return "\n".join(",".join(map(str, point)) for point in points)

    case = pair(tmp_path, text(moving), text(fixed), tmp_path / "t.tfm")
    assert score_points(case, EvaluationSettings("points")).values["max_tre_mm"] == pytest.approx(0, abs=1e-9)


def test_other_numbers_of_points(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="as many points"):
        score_points(pair(tmp_path, "1,2,3\n", "1,2,3\n4,5,6\n"), EvaluationSettings("points"))


def moved(points: Points) -> Points:
    return Points(points.positions + np.array([1, 2, 3]), points.names, points.named, points.path)


@pytest.mark.parametrize("frame", ["RAS", "LPS"])
def test_tables_in_either_frame(tmp_path: Path, frame: str) -> None:
    (tmp_path / "a.csv").write_text("id,x,y,z,t,weight\nAC,1.5,-2,3,0,0.5\n")
    points = read_points(tmp_path / "a.csv", frame)
    sign = 1 if frame == "RAS" else -1
    assert points.positions.tolist() == [[sign * 1.5, sign * -2, 3]]
    write_points(tmp_path / "b.tsv", moved(points), frame)
    x, y = (value + sign * step for value, step in ((1.5, 1), (-2, 2)))
    assert (tmp_path / "b.tsv").read_text() == f"id\tx\ty\tz\tt\tweight\nAC\t{x:.6f}\t{y:.6f}\t6.000000\t0\t0.5\n"


@pytest.mark.parametrize("target", ["b.csv", "b.tsv", "b.fcsv", "b.mrk.json"])
@pytest.mark.parametrize("source", ["a.csv", "bare.csv", "a.fcsv", "a.mrk.json"])
def test_every_format_as_every_other(tmp_path: Path, source: str, target: str) -> None:
    markups = {
        "markups": [
            {
                "coordinateSystem": "RAS",
                "display": {"color": [1, 0, 0]},
                "controlPoints": [
                    {"label": "AC", "position": [-1.5, 2, 3], "description": "kept"},
                    {"label": "?", "position": [0, 0, 0], "positionStatus": "undefined"},
                    {"label": "PC", "position": [-4, -5, 6], "positionStatus": "defined"},
                ],
            }
        ]
    }
    contents = {
        "a.csv": "x,y,z,name\n-1.5,2,3,AC\n-4,-5,6,PC\n",
        "bare.csv": "-1.5,2,3\n-4,-5,6\n",
        "a.fcsv": FCSV.format(frame="LPS"),
        "a.mrk.json": json.dumps(markups),
    }
    (tmp_path / source).write_text(contents[source])
    points = read_points(tmp_path / source)
    write_points(tmp_path / target, moved(points))
    again = read_points(tmp_path / target)
    np.testing.assert_allclose(again.positions, moved(points).positions)
    if points.named or source == "a.csv":
        assert again.names == points.names
    if source == "a.mrk.json" == target.replace("b", "a"):
        written = json.loads((tmp_path / target).read_text())["markups"][0]
        assert written["display"] == {"color": [1, 0, 0]}
        assert [point["label"] for point in written["controlPoints"]] == ["AC", "?", "PC"]
        assert written["controlPoints"][1]["position"] == [0, 0, 0]


def test_points_are_written_under_their_names_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2,3\n")
    with pytest.raises(OutputError, match=r"\.fcsv"):
        write_points(tmp_path / "a.nii.gz", read_points(tmp_path / "a.csv"))
    assert not (tmp_path / "a.nii.gz").exists()


def test_a_row_without_numbers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y,z\n1,2,3\nx,5,6\n")
    with pytest.raises(InputError, match=r"a\.csv"):
        read_points(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["tip\x0cof", "a\u2028b", "a\x85b", "a\tb", "a\nb", "a,b", 'a"b'])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".fcsv", ".mrk.json"])
def test_odd_names_of_points(tmp_path: Path, name: str, ending: str) -> None:
    """They tear no row, and come back as they were."""
    points = Points(np.array([[1.0, 2, 3], [4, 5, 6]]), (name, "other"), True, tmp_path / "none")
    write_points(tmp_path / f"a{ending}", points)
    write_points(tmp_path / f"b{ending}", read_points(tmp_path / f"a{ending}"))
    for file in ("a", "b"):
        read = read_points(tmp_path / f"{file}{ending}")
        assert read.names == points.names
        np.testing.assert_allclose(read.positions, points.positions)
