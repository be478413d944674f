"""Bundles that find landmarks, as peaks of heatmaps or as coordinates: points that `medkit transform apply` takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import landmarks
import numpy as np
import pytest
import torch
from landmarks import COORDINATES, NAMES
from monai.data import MetaTensor
from outcome import Outcome

from medkit.errors import BundleError
from medkit.inference.landmarks import coordinates_of, peaks_of
from medkit.transforms.points import read_points

pytestmark = [pytest.mark.usefixtures("clean_path"), pytest.mark.filterwarnings("ignore")]

Run = Callable[..., Outcome]
SHAPE = (24, 22, 18)
PLACES = ((-10.3, 52.4, 104.9), (8.2, 47.1, 112.6), (1.7, 60.8, 95.2))
"""RAS+ mm, between voxels."""


def affine_of(signs: tuple[float, float, float], degrees: float) -> np.ndarray:
    """Return an affine with flipped axes, turned about the axis from foot to head, around the places."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * np.multiply(signs, (2.5, 2.5, 4.0))
    affine[:3, 3] = np.mean(PLACES, axis=0) - affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return affine


AFFINES = {
    "plain": affine_of((1, 1, 1), 0),
    "flipped": affine_of((-1, -1, 1), 0),
    "oblique": affine_of((-1, 1, -1), 15),
}


@pytest.fixture
def run(toy: Run) -> Run:
    def run(bundle: Path, *arguments: object, **settings: object) -> Outcome:
        return toy("run", "bundle", "--bundle", bundle, "--trust", "--precision", "float32", *arguments, **settings)

    return run


@pytest.mark.parametrize("invert", [False, True])
def test_points_lie_where_the_spots_are(run: Run, tmp_path: Path, invert: bool) -> None:
    root = landmarks.write(tmp_path / "b", invert=invert)
    scans = [landmarks.write_spots(tmp_path / f"{n}.nii.gz", a, SHAPE, PLACES) for n, a in AFFINES.items()]
    done = run(root, *scans, "--qc", tmp_path / "qc", "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert "3 points" in done.err
    for record, source in zip(done.records, scans, strict=True):
        assert (record["kind"], Path(record["path"]).name) == ("points", source.name.replace(".nii.gz", "_points.tsv"))
        found = read_points(Path(record["path"]))
        assert found.names == NAMES
        # voxels of 3 mm, and on the scan, after interpolation, 2.5 x 2.5 x 4 mm
        np.testing.assert_allclose(found.positions, PLACES, atol=1.5 if invert else 0.8)
        peaks = record["medkit"]["metrics"]["peaks"]
        assert list(peaks) == list(NAMES)
        assert peaks["AC"] == pytest.approx(landmarks.LEVELS[0], rel=0.15)
        assert not record["medkit"]["look"]
        assert Path(record["path"]).read_text().splitlines()[0] == "name\tx\ty\tz\tpeak"
        assert (tmp_path / "qc" / f"{Path(record['path']).stem}.png").stat().st_size > 1000


def test_from_a_bundle_through_a_transform_to_slicer(run: Run, toy: Run, tmp_path: Path) -> None:
    root = landmarks.write(tmp_path / "b")
    source = landmarks.write_spots(tmp_path / "head.nii.gz", AFFINES["flipped"], SHAPE, PLACES)
    found = run(root, source)
    assert found.code == 0, found.err
    (tmp_path / "shift.tfm").write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: TranslationTransform_double_3_3\n"
        "Parameters: 5 0 -2\nFixedParameters:\n"
    )
    target = tmp_path / "moved.fcsv"
    moved = toy("transform", "apply", "--transform", tmp_path / "shift.tfm", "-o", target, input=found.out)
    assert moved.code == 0, moved.err
    # 5 mm to the left in LPS from fixed to moving: points go 5 mm to the right, along the axis of RAS+
    before, after = read_points(found.paths[0]), read_points(target)
    np.testing.assert_allclose(after.positions - before.positions, [[5, 0, 2]] * 3, atol=1e-3)
    assert after.names == NAMES
    direct = run(root, source, "-o", tmp_path / "direct.fcsv")
    assert direct.code == 0, direct.err
    np.testing.assert_allclose(read_points(tmp_path / "direct.fcsv").positions, before.positions, atol=1e-3)


def test_a_landmark_that_is_not_there_needs_a_look(run: Run, tmp_path: Path) -> None:
    root = landmarks.write(tmp_path / "b", block={"points": {"min_peak": 50}}, scale=(1, 0, 1))
    scan = landmarks.write_spots(tmp_path / "a.nii.gz", AFFINES["plain"], SHAPE, PLACES)
    done = run(root, scan, "--json")
    assert done.code == 0, done.err
    (record,) = done.records
    assert read_points(Path(record["path"])).names == ("AC", "tip")
    block = record["medkit"]
    assert (block["metrics"]["points"], block["metrics"]["missing"], block["look"]) == (2, ["PC"], True)
    assert "AC: its peak of" in block["warnings"][-2]
    assert block["warnings"][-1].endswith("no point for PC: its heatmap is flat")
    none = run(landmarks.write(tmp_path / "n", scale=(0, 0, 0)), scan, "-o", tmp_path / "none")
    assert (none.code, "finds no landmark: all heatmaps are flat" in none.err) == (1, True)
    assert not list((tmp_path / "none").iterdir())


def test_coordinates_of_a_network(run: Run, tmp_path: Path) -> None:
    root = landmarks.write(tmp_path / "b", COORDINATES, block={"points": {"names": list(NAMES)}})
    scans = [landmarks.write_spots(tmp_path / f"{n}.nii.gz", a, SHAPE, PLACES) for n, a in AFFINES.items()]
    done = run(root, *scans, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    for record in done.records:
        found = read_points(Path(record["path"]))
        assert found.names == NAMES
        np.testing.assert_allclose(found.positions, PLACES, atol=2.2)  # a voxel of 3 mm has been counted
        assert "peaks" not in record["medkit"]["metrics"]


# ---- peaks


def image(shape: tuple[int, ...] = (9, 9, 9)) -> MetaTensor:
    affine = torch.tensor([[-2.0, 0, 0, 5], [0, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]], dtype=torch.float64)
    return MetaTensor(torch.zeros(1, *shape), affine=affine)


def gaussian(centre: tuple[float, float, float], width: float = 1.0) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(9)] * 3, indexing="ij"), axis=-1)
    return np.exp(-((index - centre) ** 2).sum(-1) / (2 * width**2))


def test_a_peak_between_voxels_is_exact_for_a_gaussian() -> None:
    found = peaks_of(gaussian((3.3, 4.6, 5.2))[None], image(), {0: "a"})
    np.testing.assert_allclose(found.positions, [[5 - 2 * 3.3, 6 + 3 * 4.6, 7 + 4 * 5.2]], atol=1e-4)
    assert (found.names, found.missing, found.doubts) == (("a",), (), ())


@pytest.mark.parametrize(
    ("heat", "doubt"),
    [
        (gaussian((1, 1, 1)) + 0.9 * gaussian((6, 6, 6)), "its heatmap has 2 peaks: 1 and 0.9"),
        (gaussian((4, 4, 4), 6.0), "its heatmap has no clear peak"),
        (0.1 * gaussian((4, 4, 4)), "its peak of 0.1 is below 0.3"),
    ],
)
def test_unsure_peaks_are_doubtful(heat: np.ndarray, doubt: str) -> None:
    found = peaks_of(heat[None], image(), {}, 0.3)
    assert doubt in found.doubts[0]


@pytest.mark.parametrize(
    ("heat", "reason"),
    [
        (np.ones((1, 9, 9, 9)), "finds no landmark: its heatmap is flat"),
        (np.full((2, 9, 9, 9), np.nan), "the heatmap of 0 is not finite"),
        (gaussian((4, 4, 4))[None, ::2, ::2, ::2], "heatmaps of 5 x 5 x 5 voxels for an image of 9 x 9 x 9"),
    ],
)
def test_heatmaps_that_give_no_point(heat: np.ndarray, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        peaks_of(heat, image(), {})


def test_frames_of_coordinates() -> None:
    voxel = coordinates_of(np.array([[1.0, 2, 3], [4, 5, 6]]), image(), {}, {})
    np.testing.assert_allclose(voxel.positions, [[3, 12, 19], [-3, 21, 31]])
    world = coordinates_of(np.array([[-3.0, -12, 19], [3, -21, 31]]), image(), {}, {"frame": "LPS"})
    np.testing.assert_allclose(world.positions, voxel.positions)
    outside = coordinates_of(np.array([[1.0, 2, 300]]), image(), {0: "a"}, {})
    assert outside.doubts == ("a: outside the image",)
    with pytest.raises(BundleError, match="expected 3 coordinates for each landmark"):
        coordinates_of(np.ones((5, 2)), image(), {}, {})
    plane = coordinates_of(np.array([[1.0, 2], [3, 4], [5, 6]]), MetaTensor(torch.zeros(1, 9, 9)), {}, {})
    np.testing.assert_allclose(plane.positions[:, :2], [[1, 2], [3, 4], [5, 6]])
    across = coordinates_of(np.array([[1.0, 3, 5], [2, 4, 6]]), MetaTensor(torch.zeros(1, 9, 9)), {}, {})
    np.testing.assert_allclose(across.positions, plane.positions)


def test_metadata_of_a_bundle_that_finds_points(tmp_path: Path) -> None:
    from medkit.bundles.bundle import Bundle
    from medkit.bundles.contract import contract_of

    kinds = {"heatmap": True, "heatmaps": True, "points": False, "landmarks": False}
    for word, heatmaps in kinds.items():
        root = landmarks.write(tmp_path / word)
        path = root / "configs" / "metadata.json"
        metadata = json.loads(path.read_text())
        metadata["network_data_format"]["outputs"]["pred"]["format"] = word
        path.write_text(json.dumps(metadata))
        contract = contract_of(Bundle(root, "b"))
        assert (contract.kind, contract.heatmaps) == ("points", heatmaps)
