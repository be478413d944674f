"""`medkit evaluate`: what is paired, printed, written and returned."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medkit.evaluation.planning import plan_pairs
from medkit.evaluation.results import EvaluationSettings
from medkit.evaluation.run import evaluate
from medkit.transforms.files import write_transform

Run = Callable[..., "Outcome"]  # noqa: F821
AFFINE = np.diag([1.0, 2.0, 1.5, 1.0])


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def blocks(shift: int = 0) -> np.ndarray:
    """Two structures, 1 and 2; `shift` moves the first one along the first axis."""
    voxels = np.zeros((12, 10, 8), np.uint8)
    voxels[1 + shift : 5 + shift, 2:6, 2:6] = 1
    voxels[7:11, 2:8, 2:6] = 2
    return voxels


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """`out` and `truth` with three cases; the second result is one voxel off, the third has its axes turned."""
    for number, shift in enumerate((0, 1, 0), start=1):
        save(tmp_path / f"truth/c{number}_labels.nii.gz", blocks())
        save(tmp_path / f"out/c{number}_t1_dseg.nii.gz", blocks(shift))
    turned = nib.load(tmp_path / "out/c3_t1_dseg.nii.gz").as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(turned, tmp_path / "out/c3_t1_dseg.nii.gz")
    return tmp_path


def test_folders(toy: Run, folders: Path) -> None:
    done = toy("evaluate", folders / "out", folders / "truth", "--per-label")
    assert (done.code, done.err) == (0, "")
    assert re.split("  +", done.lines[0]) == [
        *("case", "Dice", "HD95 mm", "ASSD mm", "|volume error| %", "|volume error| mm3"),
    ]
    assert [line.split()[:2] for line in done.lines[1:4]] == [
        *(["c1_t1_dseg", "1"], ["c2_t1_dseg", "0.875"], ["c3_t1_dseg", "1"]),
    ]
    assert [line.split()[0] for line in done.lines[5:10]] == ["mean", "SD", "95%", "95%", "n"]
    assert done.lines[11].startswith("label  name")
    assert [line.split()[:2] for line in done.lines[12:]] == [["1", "0.9167"], ["2", "1"]]


def test_the_library_call(folders: Path) -> None:
    planned = plan_pairs([folders / "out"], str(folders / "truth"))
    done = evaluate(planned.pairs, EvaluationSettings(planned.kind))
    assert (planned.kind, planned.unmatched) == ("labels", {})
    assert done.summary["dice"].mean == pytest.approx(np.mean([1, 0.875, 1]))
    assert done.labels["1"]["dice"].sd == pytest.approx(np.std([1, 0.75, 1], ddof=1))


def test_json_and_csv_agree(toy: Run, folders: Path) -> None:
    table = folders / "new" / "scores.csv"
    done = toy("evaluate", folders / "out", folders / "truth", "--json", "--csv", table)
    data = json.loads(done.out)
    assert data["kind"] == "labels"
    assert data["summary"]["dice"]["n"] == 3
    assert data["summary"]["dice"]["mean"] == pytest.approx(np.mean([1, 0.875, 1]))
    assert data["summary"]["dice"]["low"] == 0.875
    assert data["labels"][0]["hd95_mm"]["mean"] == pytest.approx(1 / 3)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["label"] for row in rows] == ["1", "2"] * 3
    assert [float(row["dice"]) for row in rows] == [1, 1, 0.75, 1, 1, 1]
    assert [row["dice"] for row in data["cases"][1]["rows"]] == [0.75, 1.0]
    assert rows[0]["reference"] == str(folders / "truth/c1_labels.nii.gz")


def test_a_csv_of_names_that_are_not_utf8(toy: Run, folders: Path) -> None:
    result = (folders / "out/c1_t1_dseg.nii.gz").rename(folders / os.fsdecode(b"caf\xe9_dseg.nii.gz"))
    table = folders / "scores.csv"
    done = toy("evaluate", result, folders / "truth/c1_labels.nii.gz", "--csv", table)
    assert done.code == 0, done.err
    assert os.fsencode(result) in table.read_bytes()


def test_the_csv_file_is_kept(toy: Run, folders: Path) -> None:
    table = folders / "scores.csv"
    table.write_text("mine")
    arguments = ["evaluate", folders / "out", folders / "truth", "--csv", table]
    done = toy(*arguments)
    assert (done.code, table.read_text()) == (1, "mine")
    assert "--overwrite" in done.err
    assert toy(*arguments, "--overwrite").code == 0
    assert table.read_text().startswith("case,label,name,dice")


def test_results_from_a_pipe(shell: Run, folders: Path) -> None:
    done = shell("ls out/*.nii.gz | medkit evaluate --reference 'truth/{id}_labels.nii.gz' --json | cat")
    assert done.code == 0, done.err
    assert [case["case"] for case in json.loads(done.out)["cases"]] == ["c1_t1_dseg", "c2_t1_dseg", "c3_t1_dseg"]


def test_records_from_a_pipe(toy: Run, folders: Path) -> None:
    failed = {"path": str(folders / "x.nii.gz"), "kind": "labels", "medkit": {"status": "failed", "error": "oh"}}
    good = {"path": str(folders / "out/c2_t1_dseg.nii.gz"), "kind": "labels"}
    lines = f"{json.dumps(good)}\n{{torn\n{json.dumps(failed)}\n"
    done = toy("evaluate", "--reference", folders / "truth", "--allow-missing", input=lines)
    assert done.code == 1
    assert "{torn: expected a JSON record" in done.err
    assert "x.nii.gz: an earlier command failed on it" in done.err
    assert done.lines[1].split()[:2] == ["c2_t1_dseg", "0.875"]
    assert "no result for" not in done.err


def test_one_bad_pair_does_not_stop_the_others(toy: Run, folders: Path) -> None:
    (folders / "out/c1_t1_dseg.nii.gz").write_bytes(b"torn")
    save(folders / "out/c2_t1_dseg.nii.gz", blocks(), np.diag([1, 2, 1.6, 1]))
    done = toy("evaluate", folders / "out", folders / "truth")
    assert done.code == 1
    assert [line.split()[0] for line in done.lines] == ["case", "c3_t1_dseg"]
    torn, moved = done.err.splitlines()
    assert "c1_t1_dseg.nii.gz" in torn
    for part in ("out/c2_t1_dseg.nii.gz", "truth/c2_labels.nii.gz", "x 1.5 mm", "x 1.6 mm", "--resample"):
        assert part in moved
    data = json.loads(toy("evaluate", folders / "out", folders / "truth", "--json").out)
    assert [failure["case"] for failure in data["failed"]] == ["c1_t1_dseg", "c2_t1_dseg"]


def test_resampling(toy: Run, folders: Path) -> None:
    fine = np.repeat(blocks(), 2, axis=0)
    affine = np.diag([0.5, 2, 1.5, 1])
    affine[0, 3] = -0.25
    result = save(folders / "fine_dseg.nii.gz", fine, affine)
    reference = folders / "truth/c1_labels.nii.gz"
    assert toy("evaluate", result, reference).code == 3
    done = toy("evaluate", result, reference, "--resample")
    assert done.code == 0, done.err
    assert done.lines[1].split()[:3] == ["fine_dseg", "1", "0"]


def test_resampled_labels_are_not_blended(toy: Run, folders: Path) -> None:
    shifted = AFFINE.copy()
    shifted[:3, 3] = 0.4, 0.9, -0.6
    result = save(folders / "shifted_dseg.nii.gz", blocks() * 10, shifted)
    reference = save(folders / "ten_labels.nii.gz", blocks() * 10)
    (case,) = json.loads(toy("evaluate", result, reference, "--resample", "--json").out)["cases"]
    assert [(row["label"], row["dice"]) for row in case["rows"]] == [("10", 1.0), ("20", 1.0)]


def test_files_without_a_partner(toy: Run, folders: Path) -> None:
    (folders / "truth/c1_labels.nii.gz").unlink()
    (folders / "out/c2_t1_dseg.nii.gz").unlink()
    arguments = ["evaluate", folders / "out", folders / "truth"]
    done = toy(*arguments)
    assert done.code == 1
    assert "out/c1_t1_dseg.nii.gz: no reference: no name in the folder fits its name" in done.err
    assert "truth/c2_labels.nii.gz: no result for this reference" in done.err
    assert done.lines[1].split()[0] == "c3_t1_dseg"
    assert toy(*arguments, "--allow-missing").code == 0
    (folders / "truth/c3_labels.nii.gz").unlink()
    assert toy(*arguments, "--allow-missing").code == 1


def test_labels_and_label_map(toy: Run, folders: Path) -> None:
    reference = folders / "truth/c1_labels.nii.gz"
    save(reference, blocks() * 10)
    (folders / "map.tsv").write_text("source\ttarget\tname\n10\t1\tone\n20\t2\ttwo\n30\t3\tthree\n")
    (folders / "out/c1_t1_dseg.tsv").write_text("index\tname\n1\tbeside\n")
    result = folders / "out/c1_t1_dseg.nii.gz"
    arguments = ["evaluate", result, reference, "--label-map", folders / "map.tsv", "--json"]
    (case,) = json.loads(toy(*arguments).out)["cases"]
    assert [(row["label"], row["name"], row["dice"]) for row in case["rows"]] == [("1", "one", 1), ("2", "two", 1)]
    done = toy(*arguments, "--labels", "2-3")
    (case,) = json.loads(done.out)["cases"]
    assert [(row["label"], row["dice"]) for row in case["rows"]] == [("2", 1.0), ("3", None)]
    assert case["metrics"]["dice"] == 1.0
    assert "label 3 on neither side: not scored" in done.err
    (folders / "map.tsv").write_text("source\ttarget\n10\t1\n20\t0\n")
    done = toy(*arguments)
    assert [row["label"] for row in json.loads(done.out)["cases"][0]["rows"]] == ["1"]
    assert "label 2 in the result, but not in the label map" in done.err


def test_missing_structures_count_as_nothing_found(toy: Run, folders: Path) -> None:
    save(folders / "out/c1_t1_dseg.nii.gz", np.where(blocks() == 2, 0, blocks()))
    done = toy("evaluate", folders / "out/c1_t1_dseg.nii.gz", folders / "truth/c1_labels.nii.gz", "--json")
    (case,) = json.loads(done.out)["cases"]
    assert case["metrics"]["dice"] == 0.5
    assert case["metrics"]["hd95_mm"] == 0
    assert case["rows"][1]["hd95_mm"] is None
    assert case["rows"][1]["volume_error_percent"] == -100
    assert "label 2 missing in the result: Dice 0, no distance" in done.err


def test_a_background_that_is_scored_is_told(toy: Run, folders: Path) -> None:
    for name in ("out/c2_t1_dseg.nii.gz", "truth/c2_labels.nii.gz"):
        voxels = np.asarray(nib.load(folders / name).dataobj)
        save(folders / name, np.where(voxels == 0, 5, voxels))
    pair = (folders / "out/c2_t1_dseg.nii.gz", folders / "truth/c2_labels.nii.gz")
    assert "label 5 fills all corners: if it is the background, leave it out by --labels" in toy("evaluate", *pair).err
    assert toy("evaluate", *pair, "--labels", "1,2").err == ""


def test_images_and_masks(toy: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(100, 20, (12, 10, 8)).astype(np.float32)
    changed = truth.copy()
    changed[:6] += 10
    save(tmp_path / "truth/a.nii.gz", truth)
    save(tmp_path / "out/a_registered.nii.gz", changed)
    save(tmp_path / "masks/a_mask.nii.gz", (np.indices(truth.shape)[0] < 6).astype(np.uint8))
    done = toy("evaluate", tmp_path / "out", tmp_path / "truth")
    assert done.code == 0, done.err
    name, mse, *_, data_range = done.lines[1].split()
    assert (name, mse) == ("a_registered", "50")
    assert float(data_range) == pytest.approx(np.ptp(truth), rel=1e-3)
    masked = toy("evaluate", tmp_path / "out", tmp_path / "truth", "--mask", tmp_path / "masks", "--data-range", "200")
    assert masked.code == 0, masked.err
    name, mse, _, psnr, _, data_range = masked.lines[1].split()
    assert (mse, data_range) == ("100", "200")
    assert float(psnr) == pytest.approx(20 * np.log10(200 / 10), abs=0.01)


def test_what_to_know_about_images(toy: Run, folders: Path) -> None:
    voxels = blocks().astype(np.float32)
    voxels[0, 0, 0] = np.nan
    holes = save(folders / "holes.nii.gz", voxels)
    plain = save(folders / "plain.nii.gz", blocks())
    assert "holes.nii.gz: 1 voxels are NaN" in toy("evaluate", holes, plain).err
    assert "--kind labels" in toy("evaluate", plain, plain).err
    assert toy("evaluate", plain, plain, "--kind", "labels").err == ""


def test_points_and_transforms(toy: Run, tmp_path: Path) -> None:
    from medkit.transforms.transform import AffineTransform

    shift = np.eye(4)
    shift[:3, 3] = 1, 2, 2
    (tmp_path / "moving.csv").write_text("name,x,y,z\nAC,1,2,2\nPC,11,2,5\n")
    (tmp_path / "fixed.csv").write_text("name,x,y,z\nAC,0,0,0\nPC,10,0,0\n")
    write_transform(AffineTransform(shift), tmp_path / "t.tfm")
    before = toy("evaluate", tmp_path / "moving.csv", tmp_path / "fixed.csv")
    assert before.lines[1].split()[0::3] == ["moving", "5.477"]
    done = toy(
        "evaluate", tmp_path / "moving.csv", tmp_path / "fixed.csv", "--transform", tmp_path / "t.tfm", "--per-label"
    )
    assert done.code == 0, done.err
    assert done.lines[1].split() == ["moving", "1.5", "1.5", "3"]
    assert [line.split() for line in done.lines[-2:]] == [["AC", "0"], ["PC", "3"]]


@pytest.mark.parametrize(
    "arguments",
    [
        ["out"],
        ["out", "truth", "--labels", "0"],
        ["out", "truth", "--labels", ""],
        ["out", "truth", "--kind", "images", "--labels", "1"],
        ["out", "truth", "--data-range", "2"],
        ["out", "truth", "--transform", "truth"],
    ],
)
def test_usage(toy: Run, folders: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.chdir(folders)
    done = toy("evaluate", *arguments)
    assert (done.code, done.out) == (2, "")


def test_nothing_to_do(toy: Run, folders: Path) -> None:
    assert toy("evaluate", "--reference", folders / "truth", input="").code == 1
    failed = json.dumps({"path": "/x_dseg.nii.gz", "medkit": {"status": "failed"}})
    done = toy("evaluate", "--reference", folders / "truth", "--labels", "1", input=failed)
    assert (done.code, done.out) == (1, "")
    assert "x_dseg.nii.gz: an earlier command failed on it" in done.err
    assert toy("evaluate", folders / "nothing.nii.gz", folders / "truth").code == 1
    assert toy("evaluate", folders / "out", folders / "nothing").code == 3
    done = toy("evaluate", folders / "nothing_labels.nii.gz", folders / "truth/c1_labels.nii.gz")
    assert (done.code, done.out) == (3, "")
    assert "nothing_labels.nii.gz: no such file" in done.err


@pytest.mark.parametrize("more", [["--plots", "curves"], ["--aspect", "x"]])
def test_results_that_are_not_there_are_named(toy: Run, tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "truth.csv").write_text("case,class\na,x\n")
    done = toy("evaluate", tmp_path / "findings", tmp_path / "truth.csv", *more)
    assert done.code == 3
    assert f"{tmp_path / 'findings'}: no such file or folder" in done.err
    assert "is for classes" not in done.err
