"""`medkit run deface`: face and ears go, the brain and what is near it stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from chests import dice
from medkit_segment import cleaning, cranium, face, head_pose
from nearest import write_bundle
from outcome import Outcome
from places import SHARED

from medkit.images.image import read_image
from medkit.pipe.records import read_sidecar
from medkit.space import Grid

pytestmark = pytest.mark.usefixtures("clean_path")

Run = Callable[..., Outcome]
LABELS = sorted(head_pose.CENTRES)
VALUES = {label: 220.0 + 12 * n for n, label in enumerate(LABELS)}
TISSUE = 105.0
FACE = [(30, 78, -38), (-30, 78, -38), (0, 95, -50), (0, 70, -90), (86, -30, -40), (-86, -30, -40)]
"""Eyes, nose, chin and ears, mm in the template."""
STAYS = [(0, -100, 10), (0, 60, 20), (0, 0, -45), (0, -40, -110), (40, 0, 70), (60, -10, -20)]
"""The back, the frontal and temporal lobes, the skull base, the neck and the top."""


def pose(degrees: float, size: float = 1.1) -> np.ndarray:
    """A head that is turned, moved and smaller than the template: from mm of the scan to the template."""
    angle = np.deg2rad(degrees)
    c, s = np.cos(angle), np.sin(angle)
    pitch = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    turn = np.array([[np.cos(0.1), -np.sin(0.1), 0], [np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]])
    out = np.eye(4)
    out[:3, :3] = size * pitch @ turn
    out[:3, 3] = (3, 5, -8)
    return out


def head(path: Path, to_template: np.ndarray, spacing: float = 3.0) -> Path:
    """An ellipsoid of tissue with a brain of balls around the centres of structures; unsigned 16 bits."""
    size = tuple(int(n / spacing) for n in (200, 250, 240))
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (-100, -125, -135)
    x, y, z = np.einsum("ab,b...->a...", (to_template @ affine), np.stack([*np.indices(size), np.ones(size)]))[:3]
    values = np.zeros(size)
    values[(x / 85) ** 2 + (y / 108) ** 2 + ((z + 25) / 110) ** 2 < 1] = TISSUE
    brain = (x / 66) ** 2 + ((y + 17) / 82) ** 2 + ((z - 12) / 60) ** 2 < 1
    values[brain] = np.where(x < 0, VALUES[2], VALUES[41])[brain]
    for label, centre in head_pose.CENTRES.items():
        if label not in (2, 41):
            near = sum((a - c) ** 2 for a, c in zip((x, y, z), centre, strict=True)) < 9**2
            values[near] = VALUES[label]
    nibabel.save(nibabel.Nifti1Image(values.astype(np.uint16), affine), path)
    return path


def at(image: nibabel.Nifti1Image, to_template: np.ndarray, place: tuple[float, float, float]) -> tuple[int, ...]:
    """The voxel of a place in the template."""
    index = np.linalg.inv(to_template @ image.affine) @ [*place, 1.0]
    return tuple(np.round(index[:3]).astype(int))


@pytest.fixture
def deface(medkit: Run, tmp_path: Path) -> Run:
    names = {str(label): f"structure {label}" for label in LABELS}
    root = write_bundle(tmp_path / "bundle", [0.0, *VALUES.values()], names)

    def run(*arguments: object) -> Outcome:
        return medkit("run", "deface", "--bundle", root, "--trust", "--precision", "float32", *arguments)

    return run


@pytest.mark.parametrize("degrees", [0.0, 18.0, -18.0])
def test_the_face_goes_and_the_brain_stays(deface: Run, tmp_path: Path, degrees: float) -> None:
    where = pose(degrees)
    source = head(tmp_path / "a.nii.gz", where)
    done = deface(source, "--mask", "-o", tmp_path / "out", "--qc", tmp_path / "qc")
    assert done.code == 0, done.err
    before, after = nibabel.load(source), nibabel.load(done.paths[0])
    assert Path(done.paths[0]).name == "a_defaced.nii.gz"
    old, new = (np.asanyarray(image.dataobj) for image in (before, after))
    gone = np.asanyarray(nibabel.load(tmp_path / "out" / "a_face.nii.gz").dataobj) > 0
    np.testing.assert_array_equal(new[~gone], old[~gone])
    assert new.dtype == old.dtype
    assert not new[gone].any()
    assert (old[gone] < VALUES[LABELS[0]]).all(), "no voxel of the brain"
    for place in FACE:
        assert gone[at(before, where, place)], place
    for place in STAYS:
        assert not gone[at(before, where, place)], place
    record = read_sidecar(tmp_path / "out" / "a_defaced.json")
    assert record is not None
    assert record.medkit["metrics"]["removed_ml"] > 100
    assert record.medkit["metrics"]["pose_error_mm"] < 6
    assert record.medkit["look"] is False
    assert (tmp_path / "qc" / "a_defaced.png").is_file()


def test_a_head_without_its_face_is_to_be_looked_at(deface: Run, tmp_path: Path) -> None:
    source = head(tmp_path / "a.nii.gz", pose(0))
    once = deface(source, "-o", tmp_path / "once")
    assert once.code == 0, once.err
    done = deface(once.paths[0], "-o", tmp_path / "twice")
    assert done.code == 0
    assert "ml of tissue were removed; the face may lie outside" in done.err


def test_what_is_no_head_is_refused(deface: Run, tmp_path: Path) -> None:
    values = np.zeros((40, 40, 40), np.uint16)
    values[10:30, 10:30, 10:30] = 100
    nibabel.save(nibabel.Nifti1Image(values, np.diag([4.0, 4, 4, 1])), tmp_path / "box.nii.gz")
    done = deface(tmp_path / "box.nii.gz", "-o", tmp_path / "out")
    assert done.code == 3
    assert "expected a head with its brain, found 0 ml of brain" in done.err
    assert not list((tmp_path / "out").glob("*"))


# ---- parts


@pytest.mark.parametrize("size", [0.95, 1.25])
def test_the_pose_of_a_head(tmp_path: Path, size: float) -> None:
    where = pose(12, size)
    labels = np.zeros((80, 90, 80), np.uint8)
    affine = np.diag([2.5, 2.5, 2.5, 1.0])
    affine[:3, 3] = (-100, -110, -95)
    for label, centre in head_pose.CENTRES.items():
        place = np.linalg.inv(where @ affine) @ [*centre, 1.0]
        i, j, k = np.round(place[:3]).astype(int)
        labels[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2] = label
    labels[5:9, 5:9, 5:9] = 18  # one structure far from its place does not turn the head
    found = head_pose.pose_of(labels, affine)
    assert found is not None
    assert found.structures < len(head_pose.CENTRES)
    places = np.array([[*place, 1.0] for place in (*FACE, *STAYS)]) @ np.linalg.inv(where).T
    np.testing.assert_allclose(places @ found.matrix.T, [[*p, 1] for p in (*FACE, *STAYS)], atol=4)


def test_a_brain_of_no_head_has_no_pose() -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[10:20, 10:20, 10:20] = 2
    assert head_pose.pose_of(labels, np.eye(4)) is None
    for n, label in enumerate(LABELS):
        labels[n : n + 2, 2:4, 2:4] = label
    assert head_pose.pose_of(labels, np.eye(4)) is None, "a head of 3 cm"


def test_near_the_brain_nothing_goes() -> None:
    grid = Grid((90, 110, 100), np.array([[2.0, 0, 0, -90], [0, 2, 0, -100], [0, 0, 2, -130], [0, 0, 0, 1]]), 3)
    index = np.indices(grid.shape)
    x, y, z = np.einsum("ab,b...->a...", grid.affine[:3, :3], index) + grid.affine[:3, 3][:, None, None, None]
    brain = (x / 66) ** 2 + ((y - 20) / 82) ** 2 + ((z + 30) / 60) ** 2 < 1  # a brain that reaches into the face
    gone = face.region(grid, np.eye(4), brain)
    grown = (x / 73) ** 2 + ((y - 20) / 89) ** 2 + ((z + 30) / 67) ** 2 < 1
    assert gone.any()
    assert not (gone & grown).any()


def test_an_eye_on_a_bridge_is_no_brain() -> None:
    mask = np.zeros((60, 40, 40), bool)
    mask[5:35, 5:35, 5:35] = True
    brain = mask.copy()
    mask[35:45, 19:22, 19:22] = True
    mask[45:57, 14:26, 14:26] = True
    found = cleaning.without_outgrowths(mask, np.ones(3), 10.0)
    assert not found[45:].any()
    assert found[5:35, 5:35, 5:35].sum() > 0.95 * brain.sum()


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.0, 1.0, 5.0)])
def test_the_inside_of_a_skull(spacing: tuple[float, float, float]) -> None:
    """With a spinal canal below, an orbit in front and muscles of the neck around."""
    axes = [np.arange(-n, n, s) for n, s in zip((100, 110, 110), spacing, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    brain = (x / 65) ** 2 + (y / 80) ** 2 + ((z - 20) / 62) ** 2 < 1
    values = np.full(x.shape, -1000.0)
    values[((x / 80) ** 2 + (y / 95) ** 2 + ((z - 20) / 78) ** 2 < 1) | ((x**2 + y**2 < 60**2) & (z < -20))] = 50
    values[(x / 72) ** 2 + (y / 87) ** 2 + ((z - 20) / 69) ** 2 < 1] = 900
    values[brain] = 35
    values[(x**2 + (y + 10) ** 2 < 20**2) & (z < -30)] = 700
    canal = (x**2 + (y + 10) ** 2 < 8**2) & (z < -20)
    values[canal] = 30
    found = cranium.inside(values + np.random.default_rng(0).normal(0, 5, x.shape), np.array(spacing))
    assert found is not None
    assert dice(found, brain) > 0.92
    assert cranium.inside(np.full((30, 30, 30), 40.0), np.array([5.0, 5.0, 5.0])) is None


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the scans are in {SHARED}")
@pytest.mark.parametrize("name", ["brainchop_t1", "chris_t1"])
def test_a_defaced_head_has_the_same_brain(medkit: Run, tmp_path: Path, name: str) -> None:
    source = SHARED / "data" / "brain_heads" / f"{name}.nii.gz"
    done = medkit("run", "deface", source, "--mask", "-o", tmp_path / "defaced")
    assert done.code == 0, done.err
    assert "need a look" not in done.err
    gone = read_image(tmp_path / "defaced" / f"{name}_face.nii.gz", labels=True).data[0] > 0
    labels = []
    for n, path in enumerate((source, Path(done.paths[0]))):
        made = medkit("run", "segment", path, "-o", tmp_path / str(n))
        assert made.code == 0, made.err
        labels.append(read_image(Path(made.paths[0]), labels=True).data[0])
    stray = np.count_nonzero(labels[0][gone])  # parts of an eye that the network takes for cortex
    assert stray < 0.005 * np.count_nonzero(labels[0])
    scores = [dice(labels[0] == n, labels[1] == n) for n in np.unique(labels[0]) if n]
    assert np.mean(scores) > 0.965
