"""`medkit run classify`: classes, how sure they are, when none is given, and where in an image the reasons lie."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from brightness import SIZE, STEEP, picture, smooth, write_bundle
from medkit_classify import calibrate, candidates, explanation
from medkit_classify.calibration import Calibration, FeatureDistance, Scaling
from medkit_classify.candidates import Cut
from medkit_classify.report import columns
from outcome import Outcome
from PIL import Image as Picture
from scipy.special import softmax

from medkit.bundles.bundle import Bundle
from medkit.images.image import Image
from medkit.pipe.records import read_sidecar, sha256_of
from medkit.run.claims import Claim
from medkit.run.outputs import Targets
from medkit.space import Grid, apply_affine

pytestmark = pytest.mark.usefixtures("clean_path")

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("b") / "toy")


@pytest.fixture
def classify(medkit: Run, bundle: Path) -> Run:
    def run(*arguments: object, root: Path = bundle, **settings: Any) -> Outcome:
        return medkit("run", "classify", "--bundle", root, "--trust", "--precision", "float32", *arguments, **settings)

    return run


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


# ---- a case and its files


@pytest.mark.parametrize(("level", "name"), [(0.7, "bright"), (0.3, "dark")])
def test_the_table_of_a_case(classify: Run, tmp_path: Path, level: float, name: str) -> None:
    source = picture(tmp_path / "a.png", level)
    done = classify(source)
    assert done.code == 0, done.err
    assert done.paths == [tmp_path / "a_class.tsv"]
    (row,) = table(done.paths[0])
    assert tuple(row) == columns(["dark", "bright"])
    assert row["class"] == name
    assert (row["abstained"], row["reason"]) == ("no", "n/a")
    logit = 2 * STEEP * (np.asarray(Picture.open(source)).mean() / 255 - 0.5) * (1 if name == "bright" else -1)
    assert float(row["probability"]) == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
    assert float(row["confidence"]) == pytest.approx(1 / (1 + np.exp(-logit / 2)), abs=1e-4), "divided by 2"
    record = read_sidecar(tmp_path / "a_class.json")
    assert record is not None
    metrics = record.medkit["metrics"]
    assert metrics["class"] == name
    assert metrics["probabilities"][name] == pytest.approx(float(row["probability"]))
    assert metrics["findings"][0]["abstained"] is False


def test_a_bundle_that_is_not_calibrated_says_so(classify: Run, tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "plain", calibrated=False)
    noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE)).astype(np.uint8)
    Picture.fromarray(noise).save(tmp_path / "noise.png")
    done = classify(tmp_path / "noise.png", "--report", root=root)
    (row,) = table(done.paths[0])
    assert (row["confidence"], row["distance"], row["abstained"]) == ("n/a", "n/a", "no")
    record = read_sidecar(tmp_path / "noise_class.json")
    assert record is not None
    assert "not calibrated" in record.medkit["note"]
    assert "never abstains" in (tmp_path / "noise_report.txt").read_text()


def test_a_calibration_of_other_weights_does_not_count(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "other")
    weights = torch.load(root / "models" / "model.pt", weights_only=True)
    torch.save({**weights, "head.bias": torch.zeros(2)}, root / "models" / "model.pt")
    calibration = Calibration.of(Bundle(root, "other", "classify"))
    assert not calibration.scalings
    assert "other weights" in calibration.note


def test_no_class_for_what_is_unlike_the_training(classify: Run, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    Picture.fromarray(noise[:SIZE, :SIZE]).save(tmp_path / "noise.png")
    colours = np.repeat(smooth(0.7, np.random.default_rng(0)).astype(np.uint8)[..., None], 3, -1)
    colours[0, 0] = (255, 0, 0)
    Picture.fromarray(colours).save(tmp_path / "colour.png")
    done = classify(tmp_path / "noise.png", tmp_path / "colour.png", picture(tmp_path / "a.png", 0.6), "--report")
    assert done.code == 0, done.err
    rows = [table(path)[0] for path in done.paths]
    assert [row["abstained"] for row in rows] == ["yes", "yes", "no"]
    assert [row["class"] for row in rows] == ["n/a", "n/a", "bright"]
    assert float(rows[0]["distance"]) > 1 > float(rows[2]["distance"])
    assert "unlike the training images" in rows[0]["reason"]
    assert "coloured" in rows[1]["reason"]
    record = read_sidecar(tmp_path / "noise_class.json")
    assert record is not None
    assert any(text.startswith("look at this one") for text in record.medkit["warnings"])
    assert "no class is given" in (tmp_path / "noise_report.txt").read_text()


def test_the_report_says_what_how_sure_why_and_what_next(classify: Run, tmp_path: Path) -> None:
    classify(picture(tmp_path / "a.png", 0.7), "--report")
    text = (tmp_path / "a_report.txt").read_text()
    for words in ("bright.", "How sure:", "calibrated on validation images", "What speaks for it:", "of the picture",
                  "Next step: Dim the light.", "Not a medical device"):  # fmt: skip
        assert words in text, text


def test_the_features(classify: Run, tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png", 0.7)
    classify(source, "--save-features")
    with np.load(tmp_path / "a_features.npz") as found:
        mean = np.asarray(Picture.open(source)).mean() / 255
        np.testing.assert_allclose(found["features"], [[mean, 1 - mean]], atol=1e-5)
        assert list(found["classes"]) == ["dark", "bright"]
        assert found["probabilities"].shape == (1, 2)


@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_what_speaks_for_a_class(classify: Run, tmp_path: Path, method: str) -> None:
    """A bright corner on grey: it is red in the picture, and in a NIfTI of the same the map lies on its grid."""
    root = write_bundle(tmp_path / "plain", calibrated=False)
    plane = np.full((48, 48), 130, np.uint8)
    plane[:16, :16] = 250  # rows, columns
    Picture.fromarray(plane).save(tmp_path / "a.png")
    done = classify(tmp_path / "a.png", "--explain", method, "--report", root=root)
    assert done.code == 0, done.err
    over = np.asarray(Picture.open(tmp_path / f"a_{method}.png")).astype(int)
    assert min(over.shape[:2]) > 200, "large enough to look at"
    coloured = np.ptp(over, axis=-1) > 30
    rows, columns = np.nonzero(coloured[: int(0.8 * len(over))])  # the scale is at the bottom
    assert len(rows) > 500
    assert columns.min() > over.shape[1] / 4, "to the left stands the picture as it is"
    assert "the top left of the picture" in (tmp_path / "a_report.txt").read_text()
    affine = np.array([[-0.5, 0, 0, 10], [0, -0.4, 0, 20], [0, 0, 3.0, 5], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(plane.T[..., None].astype(np.int16), affine), tmp_path / "b.nii.gz")
    done = classify(tmp_path / "b.nii.gz", "--explain", method, root=root)
    assert done.code == 0, done.err
    heat = nibabel.load(tmp_path / f"b_{method}.nii.gz")
    np.testing.assert_allclose(heat.affine, affine, atol=1e-5)
    values = np.asarray(heat.dataobj).reshape(48, 48)
    assert 0 <= values.min() <= values.max() <= 1
    assert values[:12, :12].mean() > values[24:, 24:].mean() + 0.2


def test_a_volume_is_explained_on_its_own_grid(classify: Run, tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "toy3", dims=3, calibrated=False)
    values = np.full((20, 24, 16), 130, np.int16)
    values[:8, :8, :8] = 250
    affine = np.array([[0.0, 1.5, 0, -7], [2.0, 0, 0, 3], [0, 0, 2.5, 1], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "v.nii.gz")
    done = classify(tmp_path / "v.nii.gz", "--explain", "gradcam", "--report", root=root)
    assert done.code == 0, done.err
    heat = nibabel.load(tmp_path / "v_gradcam.nii.gz")
    assert heat.shape == values.shape
    np.testing.assert_allclose(heat.affine, affine, atol=1e-5)
    assert np.asarray(heat.dataobj)[:6, :6, :6].mean() > 0.5
    assert "the region around" in (tmp_path / "v_report.txt").read_text()
    flat = classify(picture(tmp_path / "a.png", 0.5), root=root)
    assert flat.code == 3
    assert "expected a volume" in flat.err


def test_a_volume_is_no_plane(classify: Run, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (20, 24, 16)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "v.nii.gz")
    done = classify(tmp_path / "v.nii.gz")
    assert done.code == 3
    assert "expected a plane" in done.err


# ---- one table for all


def pictures(folder: Path, levels: list[float]) -> list[Path]:
    return [picture(folder / f"{number}.png", level, number) for number, level in enumerate(levels)]


def test_one_table_for_all_cases(classify: Run, tmp_path: Path) -> None:
    sources = pictures(tmp_path / "in", [0.7, 0.3, 0.6])
    (tmp_path / "in" / "torn.png").write_bytes(b"no picture")
    out = tmp_path / "results.tsv"
    done = classify(*sources[:2], tmp_path / "in" / "torn.png", sources[2], "--table", out)
    assert done.code == 1
    assert done.paths == [out], "once, when it is whole"
    rows = table(out)
    assert [(row["image"], row["class"]) for row in rows] == [
        ("in/0.png", "bright"), ("in/1.png", "dark"), ("in/2.png", "bright"),
    ]  # fmt: skip
    assert [row["sha256"] for row in rows] == [sha256_of(path) for path in sources]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "results.json", "results.tsv"]
    assert len(list((tmp_path / "in").iterdir())) == 4, "no file for a case"
    record = read_sidecar(tmp_path / "results.json")
    assert record is not None
    assert record.medkit["outputs"]["table"]["sha256"] == sha256_of(out)


def test_columns_of_classes_that_no_row_has_are_left_out_and_come_back(tmp_path: Path) -> None:
    from medkit.options import RunOptions
    from medkit.pipe.records import Record
    from medkit.run.table import open_table
    from medkit.run.task import Table, Task

    columns = ("class", "probability_a", "probability_b", "probability_c")

    def run(rows: dict[str, dict[str, str]], **more: bool) -> str:
        sheet = Table(tmp_path / "t.tsv", columns, lambda record: [rows[record.path.name]], columns[1:])
        settings = {"programs": (), "arguments": {}, "bundle": None, "seed": 0}
        with open_table(Task("classify", (), table=sheet), settings, RunOptions(**more)) as opened:
            assert opened is not None
            for name in rows:
                (tmp_path / name).write_text(name)
                inputs = {"image": {"path": str(tmp_path / name), "sha256": "0"}}
                opened.add(Record(tmp_path / name, medkit={"inputs": inputs, "warnings": []}))
        return (tmp_path / "t.tsv").read_text()

    first = run({"x": {"class": "a", "probability_a": "1", "probability_b": "0"}})
    assert first.split("\n")[0].split("\t")[3:] == ["class", "probability_a", "probability_b"]
    both = run({"y": {"class": "c", "probability_c": "1"}}, skip_existing=True)
    assert [line.split("\t")[3:] for line in both.strip().split("\n")] == [
        list(columns), ["a", "1", "0", "n/a"], ["c", "n/a", "n/a", "1"]
    ]  # fmt: skip


def test_the_rows_are_those_of_each_case_alone(classify: Run, tmp_path: Path) -> None:
    sources = pictures(tmp_path, list(np.linspace(0.2, 0.8, 40)))
    classify(*sources, "--table", tmp_path / "t.tsv")
    rows = table(tmp_path / "t.tsv")
    for source, row in list(zip(sources, rows, strict=True))[::13]:
        (alone,) = table(classify(source).paths[0])
        assert {k: v for k, v in row.items() if k in alone} == alone


def test_with_json_there_is_a_record_for_each_case(classify: Run, tmp_path: Path) -> None:
    done = classify(*pictures(tmp_path, [0.7, 0.3]), "--table", tmp_path / "t.tsv", "--json")
    assert [r["medkit"]["metrics"]["class"] for r in done.records] == ["bright", "dark"]
    assert [Path(r["Sources"][0]).name for r in done.records] == ["0.png", "1.png"]
    assert {r["path"] for r in done.records} == {str(tmp_path / "t.tsv")}


def test_a_table_goes_on(classify: Run, tmp_path: Path) -> None:
    sources = pictures(tmp_path, [0.7, 0.3, 0.6])
    out = tmp_path / "t.tsv"
    classify(*sources[:2], "--table", out)
    before = out.read_text()
    assert classify(*sources, "--table", out).code == 1, "exists already"
    assert out.read_text() == before
    picture(sources[1], 0.8)
    done = classify(*sources, "--table", out, "--skip-existing", "--json")
    assert done.code == 0, done.err
    assert [r["medkit"]["skipped"] for r in done.records] == [True, False, False]
    rows = {row["image"]: row["class"] for row in table(out)}
    assert rows == {"0.png": "bright", "1.png": "bright", "2.png": "bright"}, "the outdated row is replaced"
    assert len(table(out)) == 3
    assert classify(sources[0], "--table", out, "--overwrite").code == 0
    assert len(table(out)) == 1


def test_a_torn_row_is_made_again(classify: Run, tmp_path: Path) -> None:
    sources = pictures(tmp_path, [0.7, 0.3])
    out = tmp_path / "t.tsv"
    classify(*sources, "--table", out)
    whole = out.read_text()
    sidecar = json.loads((tmp_path / "t.json").read_text())
    del sidecar["medkit"]["outputs"]  # as a run that was killed leaves it
    (tmp_path / "t.json").write_text(json.dumps(sidecar))
    out.write_text(whole[:-20])
    done = classify(*sources, "--table", out, "--skip-existing")
    assert done.code == 0, done.err
    assert out.read_text() == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda out: out.write_text(out.read_text() + "x\n"), "was changed"),
        (lambda out: out.with_suffix(".json").unlink(), "no sidecar"),
        (lambda out: None, "other settings (arguments)"),
    ],
)
def test_a_table_that_cannot_go_on(classify: Run, tmp_path: Path, change: Callable[..., Any], words: str) -> None:
    source = picture(tmp_path / "a.png", 0.7)
    out = tmp_path / "t.tsv"
    classify(source, "--table", out)
    change(out)
    other = ["--coordinates", "LPS"] if "arguments" in words else []
    done = classify(source, "--table", out, "--skip-existing", *other)
    assert done.code == 1
    assert words in done.err


def test_a_table_makes_no_file_for_a_case(classify: Run, tmp_path: Path) -> None:
    done = classify(picture(tmp_path / "a.png", 0.7), "--table", tmp_path / "t.tsv", "--report")
    assert done.code == 2
    assert not (tmp_path / "t.tsv").exists()


def test_a_dry_run_makes_no_table(classify: Run, tmp_path: Path) -> None:
    done = classify(*pictures(tmp_path, [0.7, 0.3]), "--table", tmp_path / "t.tsv", "--dry-run")
    assert "a row of" in done.err
    assert not (tmp_path / "t.tsv").exists()


@pytest.mark.slow
def test_workers_fill_the_table_too(classify: Run, tmp_path: Path) -> None:
    sources = pictures(tmp_path, [0.7, 0.3, 0.6])
    done = classify(*sources, "--table", tmp_path / "t.tsv", "--workers", "1")
    assert done.code == 0, done.err
    assert [row["class"] for row in table(tmp_path / "t.tsv")] == ["bright", "dark", "bright"]


def test_another_process_holds_the_table(classify: Run, tmp_path: Path) -> None:
    with Claim(Targets({"table": tmp_path / "t.tsv"})):
        done = classify(picture(tmp_path / "a.png", 0.7), "--table", tmp_path / "t.tsv")
    assert done.code == 1
    assert "another process is writing it" in done.err


def test_an_image_that_comes_twice_has_one_row(classify: Run, tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png", 0.7)
    done = classify(source, source, "--table", tmp_path / "t.tsv")
    assert done.code == 1
    assert "a second time" in done.err
    assert len(table(tmp_path / "t.tsv")) == 1


# ---- candidates


CUT = {"size": [SIZE, SIZE], "spacing_mm": 2.0, "window": [-1000, 400]}


def chest(path: Path, affine: np.ndarray) -> tuple[Path, np.ndarray]:
    """Air with a bright ball; the file and the ball's centre in RAS+ mm."""
    shape = (40, 36, 30)
    centre = np.array([22, 15, 12])
    ball = ((np.indices(shape).reshape(3, -1).T - centre) * 2.0) ** 2
    values = np.where(ball.sum(1) < 18**2, 300, -900).reshape(shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path, apply_affine(affine, centre[None])[0]


OBLIQUE = np.array([[1.97, 0.35, 0, -30], [-0.35, 1.97, 0, 12], [0, 0, -2.0, 40], [0, 0, 0, 1]])


@pytest.mark.parametrize("frame", ["RAS", "LPS"])
def test_points_in_a_volume(classify: Run, tmp_path: Path, frame: str) -> None:
    root = write_bundle(tmp_path / "cut", calibrated=False, candidates=CUT)
    source, centre = chest(tmp_path / "ct.nii.gz", OBLIQUE)
    sign = np.array([1, 1, 1]) if frame == "RAS" else np.array([-1, -1, 1])
    places = {"ball": centre * sign, "air": (centre + np.array([26, 0, 20])) * sign, "far": np.array([500.0, 0, 0])}
    lines = [f"{name},{x},{y},{z}" for name, (x, y, z) in places.items()]
    (tmp_path / "points.csv").write_text("\n".join(["name,x,y,z", *lines, ""]))
    given = ["--points", tmp_path / "points.csv", "--coordinates", frame, "--explain", "gradcam", "--report"]
    done = classify(source, *given, root=root)
    assert done.code == 0, done.err
    rows = {row["candidate"]: row for row in table(done.paths[0])}
    assert {name: row["class"] for name, row in rows.items()} == {"ball": "bright", "air": "dark", "far": "n/a"}
    assert "outside" in rows["far"]["reason"]
    heat = np.asarray(nibabel.load(tmp_path / "ct_gradcam.nii.gz").dataobj)
    assert heat.shape == (40, 36, 30)
    assert heat[22, 15, 12] > 0.5
    assert "Candidate ball: bright." in (tmp_path / "ct_report.txt").read_text()


def test_pieces_of_labels_that_came_down_the_pipe(classify: Run, tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "cut", calibrated=False, candidates=CUT)
    chest(tmp_path / "ct.nii.gz", OBLIQUE)
    labels = np.zeros((40, 36, 30), np.uint8)
    labels[21:24, 14:17, 11:14] = 1
    labels[3:5, 3:5, 3:5] = 1
    nibabel.save(nibabel.Nifti1Image(labels, OBLIQUE), tmp_path / "ct_dseg.nii.gz")
    block = {"task": "segment", "status": "ok", "metrics": {"volumes_mm3": {"nodule": 216.0}},
             "warnings": ["look at this one: the network is unsure (0.60)"]}  # fmt: skip
    sidecar = {"path": "ct_dseg.nii.gz", "kind": "labels", "Sources": ["ct.nii.gz"], "medkit": block}
    (tmp_path / "ct_dseg.json").write_text(json.dumps(sidecar))
    done = classify("--report", "-o", tmp_path / "out", root=root, input=f"{tmp_path / 'ct_dseg.nii.gz'}\n")
    assert done.code == 0, done.err
    found = {row["candidate"]: row["class"] for row in table(done.paths[0])}
    assert sorted(found.values()) == ["bright", "dark"]
    assert sorted(found) == ["1.1", "1.2"]
    record = read_sidecar(done.paths[0].with_suffix(".json"))
    assert record is not None
    assert {Path(e["path"]).name for e in record.medkit["inputs"].values()} == {"ct.nii.gz", "ct_dseg.nii.gz"}
    assert record.medkit["context"]["volumes_mm3"] == {"nodule": 216.0}
    text = next((tmp_path / "out").glob("*_report.txt")).read_text()
    assert "nodule 0.2 ml" in text
    assert "the network is unsure" in text


def test_a_volume_without_candidates_is_refused(classify: Run, tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "cut", calibrated=False, candidates=CUT)
    done = classify(chest(tmp_path / "ct.nii.gz", OBLIQUE)[0], root=root)
    assert done.code == 3
    assert "--points, --labels" in done.err


@pytest.mark.parametrize("role", ["points", "labels"])
def test_no_candidates_are_a_result_too(classify: Run, tmp_path: Path, role: str) -> None:
    """Whatever is asked for; the next case has a candidate."""
    root = write_bundle(tmp_path / "cut", calibrated=False, candidates=CUT)
    _, centre = chest(tmp_path / "a.nii.gz", OBLIQUE)
    chest(tmp_path / "b.nii.gz", OBLIQUE)
    if role == "points":
        (tmp_path / "none.tsv").write_text("x\ty\tz\tsize_x\tsize_y\tsize_z\tscore\tlabel\n")
        (tmp_path / "one.tsv").write_text("x\ty\tz\n{}\t{}\t{}\n".format(*centre))
        names = ("none.tsv", "one.tsv")
    else:
        labels = np.zeros((40, 36, 30), np.uint8)
        nibabel.save(nibabel.Nifti1Image(labels, OBLIQUE), tmp_path / "none.nii.gz")
        labels[22, 15, 12] = 1
        nibabel.save(nibabel.Nifti1Image(labels, OBLIQUE), tmp_path / "one.nii.gz")
        names = ("none.nii.gz", "one.nii.gz")
    lines = [
        json.dumps({"path": str(tmp_path / scan), "inputs": {role: str(tmp_path / name)}})
        for scan, name in zip(("a.nii.gz", "b.nii.gz"), names, strict=True)
    ]
    asked = ("--explain", "gradcam", "--report", "--save-features", "--qc", tmp_path / "qc", "-o", tmp_path / "out")
    done = classify(*asked, "--json", root=root, input="\n".join([*lines, ""]))

    assert done.code == 0, done.err
    assert "0 candidates" in done.err
    first, second = (table(Path(record["path"])) for record in done.records)
    assert first == []
    assert [row["class"] for row in second] == ["bright"]
    heads = {Path(record["path"]).read_text().splitlines()[0] for record in done.records}
    assert len(heads) == 1, "both tables have the same columns"
    assert done.records[0]["medkit"]["metrics"]["findings"] == []
    assert "There are no candidates" in (tmp_path / "out/a_report.txt").read_text()
    assert not np.asarray(nibabel.load(tmp_path / "out/a_gradcam.nii.gz").dataobj).any()
    with np.load(tmp_path / "out/a_features.npz") as features:
        assert features["candidates"].shape == (0,)
    assert len(list((tmp_path / "qc").iterdir())) == 2
    rows = classify("--table", tmp_path / "all.tsv", root=root, input="\n".join([*lines, ""]))
    assert rows.code == 0, rows.err
    assert [row["class"] for row in table(tmp_path / "all.tsv")] == ["bright"]


def test_a_picture_that_is_no_patch(classify: Run, tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "cut", calibrated=False, candidates=CUT)
    Picture.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))).save(tmp_path / "big.png")
    (row,) = table(classify(tmp_path / "big.png", root=root).paths[0])
    assert row["abstained"] == "yes"
    assert f"patches of {SIZE} x {SIZE}" in row["reason"]


@pytest.mark.parametrize("affine", [np.diag([2.0, 2, 2, 1]), np.diag([-2.0, -2, 2, 1]), OBLIQUE])
def test_a_patch_is_the_axial_plane_around_its_point(affine: np.ndarray) -> None:
    """Values that are linear in mm are cut exactly; columns run to the left, rows to the back."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (40, 40, 12)], indexing="ij"), -1).reshape(-1, 3)
    x, y, _ = apply_affine(affine, index).T
    values = (x + 3 * y).reshape(40, 40, 12).astype(np.float32)
    centre = apply_affine(affine, np.array([[20.3, 18.9, 6.0]]))[0]
    cut = Cut((5, 7), 1.5, (-500.0, 500.0))
    patch = cut.patch(Image(values[None], Grid((40, 40, 12), affine)), centre)
    assert patch is not None
    i, j = np.meshgrid(np.arange(5) - 2, np.arange(7) - 3, indexing="ij")
    expected = (centre[0] - 1.5 * i) + 3 * (centre[1] - 1.5 * j)
    np.testing.assert_allclose(patch.data[0, ..., 0], (expected + 500) * 0.255, atol=0.02)
    np.testing.assert_allclose(apply_affine(patch.grid.affine, np.array([[2, 3, 0]]))[0], centre, atol=1e-9)


def test_pieces_of_a_label_map() -> None:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[1:4, 1:4, 1:4], labels[6:9, 6:9, 6:9], labels[10, 10, 2] = 2, 2, 7
    affine = np.diag([1.0, 2, 3, 1])
    found = candidates.of_labels(Image(labels[None], Grid((12, 12, 12), affine)))
    assert {c.name: c.position.tolist() for c in found} == {"2.1": [2, 4, 6], "2.2": [7, 14, 21], "7": [10, 20, 6]}


# ---- calibration


def test_a_temperature_is_found_again() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, (20000, 2))
    labels = (rng.uniform(size=20000) < softmax(true, axis=1)[:, 1]).astype(int)
    assert calibrate.best_temperature(true * 3, labels) == pytest.approx(3, rel=0.05)
    assert calibrate.calibration_error(softmax(true * 3, axis=1), labels) > 0.05
    assert calibrate.calibration_error(softmax(true, axis=1), labels) < 0.02


def test_classes_that_are_rare_are_told_so() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, (20000, 2))
    labels = (rng.uniform(size=20000) < softmax(true, axis=1)[:, 1]).astype(int)
    biased = (true + np.array([-1.0, 1.0])) * 2
    temperature, offsets = calibrate.best_scaling(biased, labels)
    assert temperature == pytest.approx(2, rel=0.05)
    assert offsets == pytest.approx((1, -1), abs=0.05)
    calibration = Calibration({"": Scaling(temperature, offsets)})
    np.testing.assert_allclose(calibration.calibrated(biased[0]), softmax(true[:1], axis=1)[0], atol=0.02)
    np.testing.assert_allclose(
        Calibration({"": Scaling(1.0)}).calibrated(np.array([1.0])), softmax(np.array([[0, 1.0]]), axis=1)[0]
    )
    assert Calibration().calibrated(biased[0]) is None


def test_the_error_of_a_calibration() -> None:
    probabilities = np.array([[0.1, 0.9]] * 10 + [[0.4, 0.6]] * 10)
    labels = np.array([1] * 7 + [0] * 3 + [1] * 6 + [0] * 4)
    assert calibrate.calibration_error(probabilities, labels) == pytest.approx(0.1)


def test_the_distance_of_features() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(3, 8))
    seen, same, other = (rng.normal(size=(500, 3)) @ mixing / 10 for _ in range(3))
    distance = FeatureDistance.fitted(seen)
    other = other + rng.normal(size=(500, 8)) / 5  # off the plane that the seen ones lie in
    assert np.quantile(distance.distances(same), 0.95) < np.quantile(distance.distances(other), 0.05)


def test_the_last_layer_with_places() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.MaxPool2d(2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    assert explanation.last_spatial_layer(network, torch.zeros(1, 1, 8, 8)) == "1"


def test_a_bundle_is_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    root = write_bundle(tmp_path / "toy", calibrated=False)
    items: dict[str, Any] = {"training": [], "validation": []}
    rng = np.random.default_rng(0)
    for number in range(60):
        level = rng.uniform(0.3, 0.7)
        path = picture(tmp_path / "data" / f"{number}.png", level, number)
        part = "training" if number < 40 else "validation"
        items[part].append({"image": path.name, "label": int(level + rng.normal() * 0.1 > 0.5)})
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(items))
    monkeypatch.setattr("sys.argv", ["calibrate", str(root), str(tmp_path / "data" / "dataset.json"), "--write"])
    calibrate.main()
    block = json.loads(capsys.readouterr().out)
    stated = json.loads((root / "configs" / "metadata.json").read_text())["medkit"]["calibration"]
    assert stated == block
    assert 0.1 < block["temperature"] < 10
    assert block["validation_images"] == 20
    calibration = Calibration.of(Bundle(root, "toy", "classify"))
    assert calibration.feature_distance is not None
    assert not calibration.note
