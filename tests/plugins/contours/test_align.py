"""`--align`: the rigid map between two label maps, and what is said when it cannot be right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medkit_contours.rigid import Cloud, distances
from outcome import Outcome

Run = Callable[..., Outcome]
Shape = Callable[[np.ndarray], np.ndarray]
AFFINE = np.diag([1.6, 1.6, 2.5, 1.0])
AFFINE[:3, 3] = (-45, -50, -40)
SHAPE = (60, 64, 34)


def body(places: np.ndarray) -> np.ndarray:
    """Labels of two organs without symmetry at places (N, 3) RAS+ mm around the origin."""
    x, y, z = places.T
    first = ((x - 6) / 18) ** 2 + ((y + 5) / 11) ** 2 + (z / 22) ** 2 < 1
    first |= ((x + 8) / 6) ** 2 + ((y - 8) / 9) ** 2 + ((z - 9) / 7) ** 2 < 1
    second = ((x + 14) / 5) ** 2 + ((y + 14) / 8) ** 2 + ((z + 12) / 6) ** 2 < 1
    return np.where(second, 2, first).astype(np.uint8)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The Dice coefficient of two masks."""
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def rigid(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix(), shift
    return matrix


def write(path: Path, moved: np.ndarray, shape: Shape = body, affine: np.ndarray = AFFINE) -> Path:
    """The body, moved by a map of RAS+ mm."""
    places = nibabel.affines.apply_affine(np.linalg.inv(moved) @ affine, np.indices(SHAPE).reshape(3, -1).T)
    nibabel.save(nibabel.Nifti1Image(shape(places).reshape(SHAPE), affine), path)
    return path


@pytest.mark.parametrize(
    ("degrees", "shift"), [((0, 0, 0), (2, -3, 4)), ((8, -11, 14), (6, -4, 5)), ((20, 15, -160), (-3, 7, 2))]
)
def test_a_known_map_is_found(degrees: tuple, shift: tuple, medkit: Run, tmp_path: Path) -> None:
    true = rigid(degrees, shift)
    other = AFFINE.copy()
    other[0] *= -1  # another grid
    fixed = write(tmp_path / "first_dseg.nii.gz", np.eye(4))
    moving = write(tmp_path / "later_dseg.nii.gz", true, affine=other)

    done = medkit("run", "contours", moving, "--align", fixed, "--json")
    applied = medkit(
        "transform", "apply", moving, "--reference", fixed, "--transform", tmp_path / "later_dseg_transform.tfm",
        "-o", tmp_path / "back_dseg.nii.gz", "--json",
    )  # fmt: skip

    assert (done.code, applied.code) == (0, 0), done.err + applied.err
    found = done.records[0]["medkit"]["metrics"]["align"]
    probe = np.array([(-20, -15, -20), (20, 10, 15), (0, 0, 0)])
    error = nibabel.affines.apply_affine(np.array(found["matrix"]) @ true, probe) - probe
    assert np.linalg.norm(error, axis=1).max() < 1.0
    assert found["mean_mm"] < 0.6 < found["before"]["mean_mm"]
    assert found["hd95_mm"] < 1.5
    assert not done.records[0]["medkit"].get("look")
    first, back = (np.asarray(nibabel.load(path).dataobj) for path in (fixed, tmp_path / "back_dseg.nii.gz"))
    assert min(overlap(first == n, back == n) for n in (1, 2)) > 0.85
    assert not [text for text in applied.records[0]["medkit"]["warnings"] if "grid" in text]


def test_equal_surfaces_are_no_distance_apart(medkit: Run, tmp_path: Path) -> None:
    """Although no point on one surface is a point on the other."""
    fixed = write(tmp_path / "first_dseg.nii.gz", np.eye(4))
    moving = write(tmp_path / "later_dseg.nii.gz", np.eye(4))

    found = medkit("run", "contours", moving, "--align", fixed, "--json").records[0]["medkit"]["metrics"]["align"]

    np.testing.assert_allclose(found["matrix"], np.eye(4), atol=0.02)
    assert found["mean_mm"] < 0.02


def test_distances_of_discs() -> None:
    """Of 30 mm radius: one 4 mm above another, one beside it with 50 mm between the rims."""
    rng = np.random.default_rng(0)

    def disc(shift: tuple[float, float, float]) -> dict[int, Cloud]:
        flat = rng.uniform(-30, 30, (5000, 2))
        flat = flat[np.linalg.norm(flat, axis=1) < 30]
        points = np.column_stack([flat, np.zeros(len(flat))]) + shift
        return {1: Cloud(points, np.tile([0.0, 0, 1], (len(points), 1)), np.pi * 30**2)}

    still = disc((0, 0, 0))
    for found in distances(disc((0, 0, 4)), still, np.eye(4)):
        assert np.abs(found - 4).max() < 0.3
        assert found.mean() == pytest.approx(4, abs=0.01)
    for found in distances(disc((110, 0, 0)), still, np.eye(4)):
        assert (found.min(), found.max()) == pytest.approx((50, 110), abs=2)


def test_contours_can_be_what_is_aligned_with(medkit: Run, tmp_path: Path) -> None:
    fixed = write(tmp_path / "first_dseg.nii.gz", np.eye(4))
    moving = write(tmp_path / "later_dseg.nii.gz", rigid((5, 0, 5), (4, 2, -3)))
    contours = medkit("run", "contours", fixed)

    done = medkit("run", "contours", moving, "--align", contours.lines[0], "--json")

    assert done.code == 0, done.err
    assert done.records[0]["medkit"]["metrics"]["align"]["mean_mm"] < 0.6


def test_a_ball_has_no_direction(medkit: Run, tmp_path: Path) -> None:
    def ball(places: np.ndarray) -> np.ndarray:
        return (np.linalg.norm(places, axis=1) < 20).astype(np.uint8)

    fixed = write(tmp_path / "first_dseg.nii.gz", np.eye(4), ball)
    moving = write(tmp_path / "later_dseg.nii.gz", rigid((0, 0, 0), (5, 0, 3)), ball)

    block = medkit("run", "contours", moving, "--align", fixed, "--json").records[0]["medkit"]

    assert block["metrics"]["align"]["mean_mm"] < 0.6
    assert block["look"]
    assert "leaves a turn or shift open" in str(block["warnings"])


def test_other_shapes_need_a_look(medkit: Run, tmp_path: Path) -> None:
    def plate(places: np.ndarray) -> np.ndarray:
        return (np.abs(places) < (34, 30, 4)).all(axis=1).astype(np.uint8)

    fixed = write(tmp_path / "first_dseg.nii.gz", np.eye(4), plate)
    moving = write(tmp_path / "later_dseg.nii.gz", np.eye(4))

    block = medkit("run", "contours", moving, "--labels", "1", "--align", fixed, "--json").records[0]["medkit"]

    assert block["look"]
    assert "they overlap badly" in str(block["warnings"])


def test_names_that_disagree_need_a_look(medkit: Run, tmp_path: Path) -> None:
    fixed = write(tmp_path / "first_dseg.nii.gz", np.eye(4))
    moving = write(tmp_path / "later_dseg.nii.gz", np.eye(4))
    (tmp_path / "first_dseg.tsv").write_text("index\tname\n1\tliver\n2\tspleen\n")
    (tmp_path / "later_dseg.tsv").write_text("index\tname\n1\tliver\n2\tkidney\n")

    block = medkit("run", "contours", moving, "--align", fixed, "--json").records[0]["medkit"]

    assert block["look"]
    assert "2 is kidney here and spleen in first_dseg.nii.gz" in str(block["warnings"])
    assert "liver" not in str(block["warnings"])


def test_without_a_common_number_all_is_one_body(medkit: Run, tmp_path: Path) -> None:
    fixed = write(tmp_path / "first_mask.nii.gz", np.eye(4), lambda places: (body(places) > 0) * np.uint8(9))
    moving = write(tmp_path / "later_dseg.nii.gz", rigid((3, 0, 0), (3, 3, 3)))

    found = medkit("run", "contours", moving, "--align", fixed, "--json").records[0]["medkit"]["metrics"]["align"]

    assert found["structures"] == "all as one"
    assert found["mean_mm"] < 0.6


def test_an_empty_or_planar_side_is_refused(medkit: Run, tmp_path: Path) -> None:
    moving = write(tmp_path / "later_dseg.nii.gz", np.eye(4))
    empty = write(tmp_path / "empty_mask.nii.gz", np.eye(4), lambda places: np.zeros(len(places), np.uint8))

    done = medkit("run", "contours", moving, "--align", empty)

    assert done.code == 3
    assert "--align needs structures in a volume, got an empty label map" in done.err
