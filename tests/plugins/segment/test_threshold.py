"""`medkit run segment --method threshold`: lungs, airway, bones and body of CT of the chest."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from chests import Chest, dice
from medkit_segment.chest import chest_labels
from medkit_segment.structures import CHEST_LABELS
from outcome import Outcome
from places import SHARED

from medkit.images.image import read_image
from medkit.images.phantom import make_image
from medkit.pipe.records import read_sidecar
from medkit.transforms.resampling import resample

pytestmark = pytest.mark.usefixtures("clean_path")

Run = Callable[..., Outcome]
NUMBERS = {name: number for number, name in CHEST_LABELS.items()}
CHESTS = {
    "whole": Chest(),
    "touching": Chest(touching=True),
    "touching and flipped": Chest(touching=True, orientation="LPS"),
    "axes permuted": Chest(orientation="SLA"),
    "thin slices": Chest(spacing=(1.1, 1.1, 0.7), low=(-185, -145, -40), high=(185, 145, 40)),
    "thick slices": Chest(spacing=(1.5, 1.5, 8.0)),
    "table of foam": Chest(foam=True),
    "contrast": Chest(blood=320.0),
    "bases": Chest(high=(185, 145, -60)),
    "upper half": Chest(low=(-185, -145, 0)),
    "cut at the sides": Chest(low=(-90, -80, -100), high=(110, 90, 100)),
    "badly calibrated": Chest(foam=True, shift=-45),
    "one lung": Chest(low=(20, -70, -80), high=(120, 80, 80)),
}


def rows_of(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines(), delimiter="\t"))


@pytest.mark.parametrize("name", CHESTS)
def test_lungs_are_found_in_any_field_of_view(name: str, tmp_path: Path) -> None:
    truth = CHESTS[name].write(tmp_path / "ct.nii.gz")

    found = chest_labels(read_image(tmp_path / "ct.nii.gz"))

    for number in (2, 3):
        if name == "one lung" and number == 2:
            assert not (found.labels == 2).any()
        else:
            assert dice(found.labels == number, truth == number) > 0.985, CHEST_LABELS[number]
    whole = min(-CHESTS[name].low[2], CHESTS[name].high[2]) >= 110 and CHESTS[name].low[0] < -130
    assert whole == (not found.doubts), found.doubts


def test_gas_in_the_bowel_is_neither_lung_nor_airway(tmp_path: Path) -> None:
    truth = Chest(high=(185, 145, -20)).write(tmp_path / "ct.nii.gz")
    scan = nibabel.load(tmp_path / "ct.nii.gz")
    x, y, z = (
        np.einsum("ab,bijk->aijk", scan.affine[:3, :3], np.indices(scan.shape)) + scan.affine[:3, 3, None, None, None]
    )
    colon = (x**2 + (y - 70) ** 2 < 12**2) & (z < -95) | ((x - 60) ** 2 + (y - 60) ** 2 + (z + 120) ** 2 < 28**2)
    gas = np.where(colon & (truth == 0), -930, np.asarray(scan.dataobj)).astype(np.int16)
    nibabel.Nifti1Image(gas, scan.affine).to_filename(tmp_path / "gas_ct.nii.gz")

    labels = chest_labels(read_image(tmp_path / "gas_ct.nii.gz")).labels

    assert not np.isin(labels[colon & (truth == 0)], (2, 3, 4)).mean() > 0.1
    assert dice(np.isin(labels, (2, 3)), truth > 0) > 0.98


def test_airway_and_bones_are_apart_from_lungs_and_blood(tmp_path: Path) -> None:
    Chest(blood=320.0).write(tmp_path / "ct.nii.gz")
    image = read_image(tmp_path / "ct.nii.gz")

    labels = chest_labels(image).labels

    ml = np.bincount(labels.ravel(), minlength=7) * image.grid.voxel_volume / 1000
    assert 15 < ml[NUMBERS["airway"]] < 45  # 8 mm tube of 120 mm and two bronchi
    heart = image.grid.to_index @ (8, 15, -30, 1)
    spine = image.grid.to_index @ (0, -62, -30, 1)
    assert labels[tuple(np.rint(heart[:3]).astype(int))] == NUMBERS["body"]
    assert labels[tuple(np.rint(spine[:3]).astype(int))] == NUMBERS["bones"]
    table = image.grid.to_index @ (0, -122, 0, 1)
    assert labels[tuple(np.rint(table[:3]).astype(int))] == 0


def test_files_table_and_densities(medkit: Run, tmp_path: Path) -> None:
    Chest(lung=-850.0).write(tmp_path / "sub-01_ct.nii.gz")
    (tmp_path / "sub-01_ct.json").write_text(json.dumps({"PatientSize": 1.75, "PatientSex": "M"}))
    words = ["--method", "threshold", "--outputs", "labels,regions,mask", "--labels", "lung_left,lung_right", "--split"]

    done = medkit("run", "segment", *words, tmp_path / "sub-01_ct.nii.gz", "-o", tmp_path / "out")

    assert done.code == 0, done.err
    made = {path.name for path in (tmp_path / "out").iterdir()} - {"dataset_description.json"}
    assert made == {
        *(
            "sub-01_desc-ct_dseg.nii.gz",
            "sub-01_desc-ct_dseg.tsv",
            "sub-01_desc-ct_dseg.json",
            "sub-01_desc-ct_mask.nii.gz",
        ),
        *("sub-01_desc-regionsct_dseg.nii.gz", "sub-01_desc-regionsct_dseg.tsv"),
        *("sub-01_label-lungleft_desc-ct_mask.nii.gz", "sub-01_label-lungright_desc-ct_mask.nii.gz"),
    }
    rows = rows_of(tmp_path / "out" / "sub-01_desc-ct_dseg.tsv")
    assert [row["name"] for row in rows] == ["lung_left", "lung_right"]
    assert 1.8 < float(rows[0]["volume_l"]) < 2.0
    assert float(rows[0]["share_below_-950"]) < 0.01
    record = read_sidecar(tmp_path / "out" / "sub-01_desc-ct_dseg.json")
    assert record is not None
    metrics = record.medkit["metrics"]
    assert metrics["lungs_share_of_predicted"] == pytest.approx(metrics["lungs_l"] / (7.99 * 1.75 - 7.08), abs=1e-3)
    labels = np.asarray(nibabel.load(tmp_path / "out" / "sub-01_desc-ct_dseg.nii.gz").dataobj)
    assert set(np.unique(labels)) == {0, 2, 3}
    left = np.asarray(nibabel.load(tmp_path / "out" / "sub-01_label-lungleft_desc-ct_mask.nii.gz").dataobj)
    assert np.array_equal(left > 0, labels == 2)


def test_regions_share_a_lung_by_height_and_depth(medkit: Run, tmp_path: Path) -> None:
    Chest(orientation="LIP").write(tmp_path / "ct.nii.gz")
    words = ["--method", "threshold", "--outputs", "labels,regions"]
    assert medkit("run", "segment", *words, tmp_path / "ct.nii.gz").code == 0

    labels, regions = (read_image(tmp_path / f"ct_{n}dseg.nii.gz", labels=True) for n in ("", "regions_"))

    lung, parts = labels.data[0] == 2, regions.data[0]
    assert np.array_equal(lung, (parts > 10) & (parts < 20))
    height = (np.argwhere(lung) @ labels.grid.affine[2, :3]) + labels.grid.affine[2, 3]
    third = (parts[lung] - 11) // 2
    bounds = [height[third == n] for n in range(3)]
    assert bounds[0].min() > bounds[1].max() - 1e-3
    assert bounds[1].min() > bounds[2].max() - 1e-3
    assert np.ptp(bounds[1]) == pytest.approx(np.ptp(height) / 3, abs=6)
    assert 0.4 < np.mean((parts[lung] - 11) % 2) < 0.6


def test_one_table_for_all_scans_is_continued(medkit: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Chest(spacing=(4, 4, 5)).write(tmp_path / f"{name}_ct.nii.gz")
    words = [
        "run",
        "segment",
        "--method",
        "threshold",
        "--labels",
        "lung_left,lung_right",
        "--table",
        tmp_path / "t.tsv",
    ]
    assert medkit(*words, tmp_path / "a_ct.nii.gz").code == 0

    done = medkit(*words, "--skip-existing", tmp_path / "a_ct.nii.gz", tmp_path / "b_ct.nii.gz")

    assert done.code == 0, done.err
    rows = rows_of(tmp_path / "t.tsv")
    assert [(row["image"], row["name"]) for row in rows] == [
        (f"{scan}_ct.nii.gz", name) for scan in ("a", "b") for name in ("lung_left", "lung_right")
    ]
    assert all(1.5 < float(row["volume_l"]) < 2.2 for row in rows)
    assert not list(tmp_path.glob("*dseg*"))


def test_no_ct_and_no_chest_are_refused(medkit: Run, tmp_path: Path) -> None:
    make_image(tmp_path / "brain_T1w.nii.gz", (40, 40, 40), (4, 4, 4))
    truth = Chest(spacing=(4, 4, 4))
    truth.write(tmp_path / "ct.nii.gz")
    scan = nibabel.load(tmp_path / "ct.nii.gz")
    values = np.asarray(scan.dataobj)
    nibabel.Nifti1Image(values + 1024, scan.affine).to_filename(tmp_path / "shifted_ct.nii.gz")
    solid = np.where((values < -700) & (np.abs(np.arange(len(values)) - 46) < 38)[:, None, None], 40, values)
    nibabel.Nifti1Image(solid.astype(np.int16), scan.affine).to_filename(tmp_path / "abdomen_ct.nii.gz")
    places = np.indices((80, 80, 60)) * 3.0 - np.array([120, 120, 90])[:, None, None, None]
    head = np.where((places**2).sum(0) < 85**2, 40, -1000)
    head[(np.abs(places[0]) < 16) & (np.abs(places[1] - 55) < 25) & (places[2] < -40)] = -850  # the nose
    nibabel.Nifti1Image(head.astype(np.int16), np.diag([3.0, 3, 3, 1])).to_filename(tmp_path / "head_ct.nii.gz")
    flat = nibabel.Nifti1Image(values[:, :, 30:31], scan.affine)
    flat.to_filename(tmp_path / "slice_ct.nii.gz")

    for name, reason in {
        "brain_T1w": "expected CT for --method threshold, got MR",
        "shifted_ct": "expected Hounsfield units",
        "abdomen_ct": "found no lung in it",
        "head_ct": "found no lung in it",
        "slice_ct": "expected a volume of the chest",
    }.items():
        done = medkit("run", "segment", "--method", "threshold", tmp_path / f"{name}.nii.gz", "-o", tmp_path / "out")
        assert done.code in (1, 3), (name, done.err)
        assert reason in done.err, (name, done.err)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--labels", "liver"], "expected some of body"),
        (["--outputs", "brain"], "--method threshold makes labels"),
        (["--tta"], "does not go with this --method"),
        (["--no-clean"], "--no-clean: does not go with this --method"),
        (["--seeds", "s.csv"], "does not go with this --method"),
        (["--table", "t.tsv", "--split"], "leave out"),
        (["--outputs", "regions", "--labels", "bones"], "needs lung_left"),
    ],
)
def test_options_that_do_not_fit(medkit: Run, tmp_path: Path, words: list[str], reason: str) -> None:
    (tmp_path / "s.csv").write_text("x,y,z\n0,0,0\n")
    words = [str(tmp_path / word) if word.endswith((".csv", ".tsv")) else word for word in words]

    done = medkit("run", "segment", "--method", "threshold", *words, tmp_path / "ct.nii.gz")

    assert done.code == 2
    assert reason in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scan", "truth", "least"),
    [
        ("cip_ct-64.nrrd", "cip_wholeLung-64.nrrd", 0.975),
        ("elastix_lung_baseline_small.mha", "elastix_lung_baseline_mask.mha", 0.95),
    ],
)
def test_lungs_of_real_scans(scan: str, truth: str, least: float) -> None:
    folder = SHARED / "data" / "lung_ct"
    if not (folder / scan).exists():
        pytest.skip("no real scans here")
    image, mask = read_image(folder / scan), read_image(folder / truth, labels=True)

    labels = chest_labels(image).labels

    lungs = image.with_data(np.isin(labels, (2, 3))[None].astype(np.uint8))
    on_mask = resample(lungs, mask.grid, interpolation="nearest").data[0] > 0
    assert dice(on_mask, mask.data[0] > 0) > least
