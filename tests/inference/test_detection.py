"""Bundles that find boxes: a bundle like the zoo's lung_nodule_ct_detection, on grids of any direction."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import detection
import numpy as np
import pytest
from monai_run import monai_run
from outcome import Outcome

from medkit.errors import BundleError
from medkit.inference.boxes import COLUMNS, BoxForm, box_steps, boxes_of, in_body
from medkit.transforms.points import read_points

pytestmark = [pytest.mark.usefixtures("clean_path"), pytest.mark.filterwarnings("ignore")]

Run = Callable[..., Outcome]
BALLS = ((-12.0, 60.0, 118.0, 5.5), (12.0, 45.0, 96.0, 5.0))
"""x, y, z, radius; RAS+ mm."""
CENTRE = np.array([0.0, 52.0, 107.0])
ANCHOR = np.array([6, 6, 4]) * detection.SPACING
"""mm; the box of each ball, along the axes of the image that the network is given."""
NEAR = 2.5
"""mm; largest distance of a box from its ball: features are 3 to 4 mm apart."""


def grid(directions: np.ndarray, spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    """Return the affine of a grid with axes along the columns of `directions`, around the balls."""
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def turned(degrees: float) -> np.ndarray:
    """Return a rotation about the axis from foot to head."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


FLIPPED = np.diag([-1.0, -1.0, 1.0])
"""The axes of LPS, as in files of ITK and DICOM."""
SWAPPED = np.array([[0, 0, 1.0], [-1.0, 0, 0], [0, 1.0, 0]])
GRIDS = {
    "plain": (np.eye(3), (1.5, 1.5, 2.0), (40, 38, 30)),
    "flipped": (FLIPPED, (1.5, 1.5, 4.0), (40, 38, 15)),
    "swapped": (SWAPPED, (1.5, 2.0, 1.5), (38, 30, 40)),
    "oblique": (turned(20.0), (1.5, 1.5, 2.0), (40, 40, 30)),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("balls")
    return detection.write(folder / "ball_detection", detection.write_weights(folder / "model.pt"))


@pytest.fixture
def scan(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, balls: tuple[tuple[float, ...], ...] = BALLS) -> Path:
        directions, spacing, shape = GRIDS[name]
        path = tmp_path / f"{name}.nii.gz" if balls else tmp_path / f"{name}_empty.nii.gz"
        return detection.write_scan(path, grid(directions, spacing, shape), shape, balls)

    return write


@pytest.fixture
def run(toy: Run) -> Run:
    def run(bundle: Path, *arguments: object, **settings: object) -> Outcome:
        return toy("run", "bundle", "--bundle", bundle, "--trust", *arguments, **settings)

    return run


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_boxes_lie_where_the_balls_are(run: Run, root: Path, scan: Callable[..., Path], tmp_path: Path) -> None:
    scans = {name: scan(name) for name in GRIDS}
    options = ("--min-score", "0.5", "-o", tmp_path / "out", "--qc", tmp_path / "qc", "--json")
    done = run(root, *scans.values(), *options)
    assert done.code == 0, done.err
    for record, (name, source) in zip(done.records, scans.items(), strict=True):
        path = Path(record["path"])
        assert (path.name, record["kind"]) == (f"{name}_boxes.tsv", "points")
        assert record["Sources"] == [str(source)]
        assert record["medkit"]["metrics"]["boxes"] == len(BALLS)
        assert record["medkit"]["arguments"]["min_score"] == 0.5
        assert path.read_text().splitlines()[0] == "\t".join(COLUMNS)
        found = read_points(path)
        for ball in BALLS:
            assert np.linalg.norm(found.positions - ball[:3], axis=1).min() < NEAR, name
        # the smallest box along the axes of the body that holds the box of the network
        sizes = np.abs(turned(20.0)) @ ANCHOR if name == "oblique" else ANCHOR
        assert found.sizes is not None
        np.testing.assert_allclose(found.sizes, [sizes, sizes], atol=2e-3, err_msg=name)
        scores = [float(row["score"]) for row in rows(path)]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] == pytest.approx(record["medkit"]["metrics"]["highest_score"])
        assert (tmp_path / "qc" / f"{name}_boxes.png").stat().st_size > 1000
    assert "2 boxes, highest score" in done.err


def test_the_same_boxes_as_monais_own_run(run: Run, root: Path, scan: Callable[..., Path], tmp_path: Path) -> None:
    """Which writes them in LPS, as LUNA16 has them."""
    source = scan("flipped")
    ours = rows(run(root, source, "-o", tmp_path / "out", "--precision", "float32").paths[0])
    (tmp_path / "theirs").mkdir()
    monai_run(root, {"image": str(source)}, tmp_path / "theirs", amp=False)
    (theirs,) = json.loads((tmp_path / "theirs" / "result.json").read_text())
    assert len(ours) == len(theirs["box"]) >= len(BALLS)
    for row, box, score in zip(ours, theirs["box"], theirs["label_scores"], strict=True):
        made = [float(row[name]) for name in COLUMNS[:6]]
        np.testing.assert_allclose(made, np.array(box) * [-1, -1, 1, 1, 1, 1], atol=2e-3)
        assert float(row["score"]) == pytest.approx(score, abs=1e-5)
    assert not (root / "eval").exists(), "the bundle's own saver has run"


def test_nothing_found_is_an_empty_table(run: Run, root: Path, scan: Callable[..., Path]) -> None:
    done = run(root, scan("plain", ()), "--min-score", "0.9", "--json")
    assert done.code == 0, done.err
    assert Path(done.records[0]["path"]).read_text() == "\t".join(COLUMNS) + "\n"
    assert done.records[0]["medkit"]["metrics"] == {"boxes": 0}
    assert "0 boxes" in done.err


def test_boxes_move_with_their_image(run: Run, toy: Run, root: Path, scan: Callable[..., Path], tmp_path: Path) -> None:
    """The pipe goes on with the table; its boxes are turned, scaled and moved."""
    made = run(root, scan("plain"), "--min-score", "0.5").paths[0]
    # ITK's convention: from points of the fixed image, of half the size, to those of the moving one
    (tmp_path / "half.tfm").write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 0 -2 0 2 0 0 0 0 2 0 0 0\nFixedParameters: 0 0 0\n"
    )
    done = toy("transform", "apply", made, "--transform", tmp_path / "half.tfm", "-o", tmp_path / "moved.tsv")
    assert done.code == 0, done.err
    before, after = read_points(made), read_points(tmp_path / "moved.tsv")
    turn = np.array([[0, 0.5, 0], [-0.5, 0, 0], [0, 0, 0.5]])
    np.testing.assert_allclose(after.positions, before.positions @ turn.T, atol=1e-3)
    np.testing.assert_allclose(after.sizes, before.sizes @ np.abs(turn).T, atol=1e-3)
    assert [row["score"] for row in rows(tmp_path / "moved.tsv")] == [row["score"] for row in rows(made)]


def test_a_detector_without_an_evaluator_of_its_own(
    run: Run, root: Path, scan: Callable[..., Path], tmp_path: Path
) -> None:
    """The network is the detector itself; boxes stay in voxels, and metadata name the class."""
    config = detection.INFERENCE
    steps = config["postprocessing"]["transforms"][:1]
    changes = {
        "network": {"_target_": "scripts.pyramid.Ready", "detector": "@detector", "_requires_": "@detector_ops"},
        "inferer": {"_target_": "SimpleInferer"},
        "dataloader": {k: v for k, v in config["dataloader"].items() if k != "collate_fn"},
        "detector": config["detector"] | {"network": "@network_def"},
        "postprocessing": {"_target_": "Compose", "transforms": steps},
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
            "network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing",
        },
        "initialize": [],
        "checkpointloader": config["checkpointloader"] | {"load_dict": {"model": "@network_def"}},
        "run": ["$@checkpointloader(@evaluator)", "$@evaluator.run()"],
    }  # fmt: skip
    ready = """

class Ready(nn.Module):
    def __init__(self, detector):
        super().__init__()
        self.network, self.detector = detector.network, [detector]

    def forward(self, image):
        (detector,) = self.detector
        detector.training = False
        return detector(list(image), use_inferer=False)
"""
    named = {"medkit": {"labels": {"0": "ball"}}}
    other = detection.write(tmp_path / "plain_detector", root / "models" / "model.pt", metadata=named, **changes)
    with open(other / "scripts" / "pyramid.py", "a") as file:
        file.write(ready)
    source = scan("plain")
    done = run(other, source, "-o", tmp_path / "one", "--precision", "float32")
    assert done.code == 0, done.err
    theirs = run(root, source, "-o", tmp_path / "two", "--precision", "float32").paths[0]
    ours = rows(done.paths[0])
    assert {row.pop("label") for row in ours} == {"ball"}
    assert ours == [{k: v for k, v in row.items() if k != "label"} for row in rows(theirs)]


def test_scores_are_only_of_boxes(run: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    import zoo

    refused = run(zoo.write(tmp_path / "b", "spleen_ct_segmentation"), scan("plain"), "--min-score", "0.5")
    assert (refused.code, "--min-score: bundle b finds no boxes" in refused.err) == (2, True)


# ---- forms and frames of boxes

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("form", "values"),
    [
        (BoxForm(), [1, 2, 3, 5, 4, 6]),
        (BoxForm("cccwhd"), [3, 3, 4.5, 4, 2, 3]),
        (BoxForm("xxyyzz"), [1, 5, 2, 4, 3, 6]),
        (BoxForm("cccwhd", "RAS"), [4, 29, 48, 8, 6, 12]),
        (BoxForm("cccwhd", "LPS"), [-4, -29, 48, 8, 6, 12]),
        (BoxForm(None, "LPS"), [-8, -32, 42, 0, -26, 54]),
    ],
)
def test_all_forms_are_one_box(form: BoxForm, values: list[float]) -> None:
    centres, sizes = in_body(np.array([values], float), form, AFFINE)
    np.testing.assert_allclose(centres, [[4, 29, 48]])
    np.testing.assert_allclose(sizes, [[8, 6, 12]])


def test_boxes_of_a_plane_are_as_thick_as_its_voxels() -> None:
    centres, sizes = in_body(np.array([[1.0, 2, 5, 4]]), BoxForm(), AFFINE)
    np.testing.assert_allclose([*centres[0], *sizes[0]], [4, 29, 30, 8, 6, 4])


def step(name: str, **settings: object) -> object:
    return type(name, (), settings)()


WORLD = step("AffineBoxToWorldCoordinated", affine_lps_to_ras=True)
MODE = step("ConvertBoxModed", converter=SimpleNamespace(dst_mode="cccwhd"))


def test_steps_to_the_world_are_medkits_own() -> None:
    clip, delete, own = step("ClipBoxToImaged"), step("DeleteItemsd"), step("Merge")
    assert box_steps([clip, WORLD, MODE, delete], {}) == ((clip, delete), BoxForm())
    assert box_steps([clip, MODE], {}) == ((clip, MODE), BoxForm("cccwhd"))
    # a step of the bundle's own may need boxes in the world
    assert box_steps([clip, WORLD, MODE, own], {}) == ((clip, WORLD, MODE, own), BoxForm("cccwhd", "LPS"))
    stated = {"boxes": {"frame": "RAS", "mode": "xxyyzz"}}
    assert box_steps([own], stated) == ((own,), BoxForm("xxyyzz", "RAS"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"label_scores": np.ones(1)}, "expected a label and a score for each box, got 2 box, 1 label_scores"),
        ({"label_scores": None}, "expected boxes and scores, got box and label"),
        ({"box": np.ones((2, 5))}, "expected boxes of 4 or 6 numbers, got the shape"),
        ({"box": np.full((2, 6), np.nan)}, "not finite"),
    ],
)
def test_answers_that_are_no_boxes(changes: dict[str, np.ndarray | None], reason: str) -> None:
    answer = {"box": np.ones((2, 6)), "label": np.zeros(2), "label_scores": np.ones(2)} | changes
    answer = {key: value for key, value in answer.items() if value is not None}
    with pytest.raises(BundleError, match=reason):
        boxes_of({"pred": answer, **answer}, BoxForm(), np.eye(4), {})


def test_a_frame_that_is_none() -> None:
    with pytest.raises(BundleError, match="the frame MNI: expected voxel, RAS or LPS"):
        in_body(np.ones((1, 6)), BoxForm(None, "MNI"), np.eye(4))
