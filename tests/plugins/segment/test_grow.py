"""`medkit run segment --method grow`: regions from seeds, their range, and their leaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from chests import dice
from outcome import Outcome
from PIL import Image as Picture

from medkit.images.image import read_image
from medkit.pipe.records import read_sidecar
from medkit.space import apply_affine

pytestmark = pytest.mark.usefixtures("clean_path")

Run = Callable[..., Outcome]
AFFINE = np.array([[-2.0, 0, 0, 60], [0, 1.5, 0, -50], [0, 0, 3, -45], [0, 0, 0, 1]])
SHAPE = (60, 70, 30)
PLACES = {"liver": (-20.0, 0.0, 0.0), "spleen": (30.0, 10.0, 0.0)}
"""Centres of two balls of 18 mm, RAS+ mm."""


def place() -> np.ndarray:
    """Return the place of each voxel, (3, I, J, K) RAS+ mm."""
    return np.einsum("ab,bijk->aijk", AFFINE[:3, :3], np.indices(SHAPE)) + AFFINE[:3, 3, None, None, None]


def ball(name: str) -> np.ndarray:
    centre = np.array(PLACES[name])[:, None, None, None]
    return np.asarray(((place() - centre) ** 2).sum(0) < 18**2)


def bridge(radius: float) -> np.ndarray:
    x, y, z = place()
    return (abs(x - 5) < 22) & ((y - 5) ** 2 + z**2 < radius**2)


def write(path: Path, inside: np.ndarray, value: float = 120, noise: float = 4) -> Path:
    values = np.where(inside, value, 40) + np.random.default_rng(0).normal(0, noise, SHAPE)
    nibabel.Nifti1Image(values.astype(np.float32), AFFINE).to_filename(path)
    return path


def seeds(path: Path, rows: dict[str, tuple[float, float, float]]) -> Path:
    path.write_text("\n".join(["name,x,y,z", *(f"{n},{x},{y},{z}" for n, (x, y, z) in rows.items())]) + "\n")
    return path


def labels_of(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


@pytest.mark.parametrize("limits", ["auto", "100,140"])
def test_several_structures_grow_from_named_seeds(medkit: Run, tmp_path: Path, limits: str) -> None:
    scan = write(tmp_path / "t.nii.gz", ball("liver") | ball("spleen"))
    x, y, z = PLACES["liver"]
    points = seeds(tmp_path / "s.csv", {"spleen": PLACES["spleen"], "liver-1": (x, y, z), "liver-2": (x + 8, y, z)})

    done = medkit("run", "segment", "--method", "grow", "--seeds", points, "--range", limits, scan, "--split")

    assert done.code == 0, done.err
    assert "need a look" not in done.err
    made = labels_of(tmp_path / "t_dseg.nii.gz")
    assert dice(made == 1, ball("spleen")) > 0.97
    assert dice(made == 2, ball("liver")) > 0.97
    assert np.array_equal(labels_of(tmp_path / "t_liver.nii.gz") > 0, made == 2)
    record = read_sidecar(tmp_path / "t_dseg.json")
    assert record is not None
    assert record.medkit["labels"] == {"1": "spleen", "2": "liver"}
    low, high = record.medkit["ranges"]["liver"]
    assert 90 < low < high < 150


def test_seeds_of_slicer_and_of_records(medkit: Run, tmp_path: Path) -> None:
    scan = write(tmp_path / "t.nii.gz", ball("liver"))
    x, y, z = PLACES["liver"]
    point = {"label": "liver-1", "position": [-x, -y, z]}
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": [point]}
    (tmp_path / "s.mrk.json").write_text(json.dumps({"markups": [markup]}))
    record = {"path": str(scan), "kind": "image", "inputs": {"seeds": str(tmp_path / "s.mrk.json")}}

    done = medkit("run", "segment", "--method", "grow", input=json.dumps(record) + "\n")

    assert done.code == 0, done.err
    assert dice(labels_of(tmp_path / "t_dseg.nii.gz") == 1, ball("liver")) > 0.97


def test_a_leak_through_a_neck_is_cut_off_and_said(medkit: Run, tmp_path: Path) -> None:
    scan = write(tmp_path / "t.nii.gz", ball("liver") | ball("spleen") | bridge(4))
    points = seeds(tmp_path / "s.csv", {"liver": PLACES["liver"]})

    done = medkit("run", "segment", "--method", "grow", "--seeds", points, "--range", "100,140", scan)

    assert done.code == 0, done.err
    assert "liver leaked at" in done.err
    assert "need a look" in done.err
    made = labels_of(tmp_path / "t_dseg.nii.gz") == 1
    assert dice(made, ball("liver")) > 0.9
    assert not (made & ball("spleen")).sum() > 0.05 * ball("spleen").sum()


@pytest.mark.parametrize(
    ("rows", "limits", "reason"),
    [
        ({"liver": PLACES["liver"]}, "0,200", "leaked over 100% of the image"),
        ({"liver": PLACES["liver"]}, "300,400", "nothing grew"),
        ({"liver": (500.0, 0.0, 0.0)}, "auto", "lies outside of the image"),
        (PLACES, "100,140", "have grown into each other"),
    ],
)
def test_what_cannot_be_right_is_refused(
    medkit: Run, tmp_path: Path, rows: dict[str, tuple[float, float, float]], limits: str, reason: str
) -> None:
    scan = write(tmp_path / "t.nii.gz", ball("liver") | ball("spleen") | bridge(14))

    done = medkit(
        "run", "segment", "--method", "grow", "--seeds", seeds(tmp_path / "s.csv", rows), "--range", limits, scan
    )

    assert done.code == 3
    assert reason in done.err
    assert not (tmp_path / "t_dseg.nii.gz").exists()


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        ([], 3, "no seeds"),
        (["--range", "5"], 2, "expected LOW,HIGH"),
        (["--range", "9,5"], 2, "LOW not above HIGH"),
        (["--split"], 2, "--split: needs --seeds"),
        (["--outputs", "regions"], 2, "--method grow makes labels, mask"),
        (["--bundle", "brain_mri_segmentation"], 2, "does not go with this --method"),
    ],
)
def test_options_that_do_not_fit(medkit: Run, tmp_path: Path, words: list[str], code: int, reason: str) -> None:
    scan = write(tmp_path / "t.nii.gz", ball("liver"))

    done = medkit("run", "segment", "--method", "grow", *words, scan)

    assert done.code == code
    assert reason in done.err


def test_structures_of_an_x_ray_have_no_volume(medkit: Run, tmp_path: Path) -> None:
    values = np.where(np.hypot(*(np.indices((80, 60)) - 30)) < 12, 200, 40).astype(np.uint8)
    Picture.fromarray(values.T).save(tmp_path / "x.png")
    x, y, z = apply_affine(read_image(tmp_path / "x.png").grid.affine, np.array([[30.0, 30, 0]]))[0]
    points = seeds(tmp_path / "seeds.csv", {"coin": (x, y, z)})
    table = tmp_path / "all.tsv"
    done = medkit("run", "segment", "--method", "grow", "--seeds", points, tmp_path / "x.png", "-o", tmp_path / "o")
    assert done.code == 0, done.err
    record = read_sidecar(tmp_path / "o/x_dseg.json")
    assert record is not None
    assert not [key for key in record.medkit["metrics"] if "mm3" in key]
    assert (tmp_path / "o/x_dseg.tsv").read_text().splitlines()[1].split("\t")[:4][::3] == ["1", "n/a"]
    assert " ml" not in done.err
    done = medkit(
        "run", "segment", "--method", "grow", "--seeds", points, tmp_path / "x.png", "--table", table, "--skip-existing"
    )
    assert done.code == 0, done.err
    header, row = (line.split("\t") for line in table.read_text().splitlines())
    assert dict(zip(header, row, strict=True))["volume_mm3"] == "n/a"
