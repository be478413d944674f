"""`medkit evaluate` on classes: what is read, matched, printed and drawn."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from outcome import Outcome

Run = Callable[..., Outcome]
CLASSES = ("normal", "pneumonia")
SICK = {"a": 0.9, "b": 0.2, "c": 0.6, "d": 0.4, "e": 0.7, "f": 0.1}
"""Case -> probability of pneumonia; c and d are wrong."""
TRUTH = {"a": 1, "b": 0, "c": 0, "d": 1, "e": 1, "f": 0}


def write_case(folder: Path, name: str, probabilities: Mapping[str, float]) -> Path:
    """A `_class.tsv` as `medkit run bundle` writes it, with its sidecar."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_class.tsv"
    path.write_text("\n".join(["class\tprobability", *(f"{n}\t{p:.6f}" for n, p in probabilities.items()), ""]))
    record = {"path": path.name, "kind": "table", "Sources": [f"../scans/{name}.png"]}
    record["medkit"] = {"status": "ok"}
    (folder / f"{name}_class.json").write_text(json.dumps(record))
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name, p in SICK.items():
        write_case(tmp_path / "out", name, dict(zip(CLASSES, (1 - p, p), strict=True)))
    return tmp_path / "out"


def truth(path: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = ("case", "class")) -> Path:
    mark = "\t" if path.suffix == ".tsv" else ","
    path.write_text("\n".join(mark.join(map(str, row)) for row in (header, *rows)) + "\n")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return truth(tmp_path / "truth.csv", [(case, CLASSES[n]) for case, n in TRUTH.items()])


def measures(done: Outcome, group: str = "all") -> dict[str, float]:
    assert done.code == 0, done.err
    return {name: found["value"] for name, found in json.loads(done.out)["summary"][group].items()}


EXPECTED = {
    "auc": 8 / 9, "accuracy": 4 / 6, "balanced_accuracy": 2 / 3, "sensitivity": 2 / 3, "specificity": 2 / 3,
    "ppv": 2 / 3, "npv": 2 / 3, "f1": 2 / 3, "brier": (0.01 + 0.04 + 0.36 + 0.36 + 0.09 + 0.01) / 6,
}  # fmt: skip


def test_a_folder_and_a_table(toy: Run, results: Path, table: Path) -> None:
    done = toy("evaluate", results, table)
    assert (done.code, done.err) == (0, "")
    assert done.lines[0].startswith("6 cases, none abstained from")
    assert "of pneumonia against normal" in done.lines[0]
    rows = [line.split() for line in done.lines]
    assert next(row for row in rows if row[:1] == ["AUC"])[:2] == ["AUC", "0.8889"]
    assert ["normal", "2", "1"] in rows
    assert ["pneumonia", "1", "2"] in rows
    found = measures(toy("evaluate", results, table, "--json"))
    assert {name: found[name] for name in EXPECTED} == pytest.approx(EXPECTED)


@pytest.mark.parametrize("form", ["numbers", "floats", "paths", "tsv", "datalist", "folder", "pattern", "text"])
def test_forms_of_references(toy: Run, results: Path, tmp_path: Path, form: str) -> None:
    named = [(case, CLASSES[n]) for case, n in TRUTH.items()]
    where: object
    if form == "numbers":
        where = truth(tmp_path / "t.csv", list(TRUTH.items()), ("participant_id", "label"))
    elif form == "floats":
        where = truth(tmp_path / "t.csv", [(case, f"{n}.0") for case, n in TRUTH.items()], ("ID", "Diagnosis"))
    elif form == "paths":
        where = truth(tmp_path / "t.csv", [(f"scans/{case}.png", name) for case, name in named], ("image", "truth"))
    elif form == "tsv":
        where = truth(tmp_path / "t.tsv", [("class is elsewhere", *row) for row in named], ("class", "case", "target"))
    elif form == "datalist":
        lists = {
            "training": [{"image": f"train/{case}.png", "label": 1 - n} for case, n in TRUTH.items()],
            "test": [{"image": f"scans/{case}.png", "label": n} for case, n in TRUTH.items()],
        }
        (tmp_path / "dataset.json").write_text(json.dumps(lists))
        where = tmp_path / "dataset.json"
    elif form in ("folder", "pattern"):
        for case, name in named:
            write_case(tmp_path / "truth", case, {c: float(c == name) for c in CLASSES})
        where = tmp_path / "truth" if form == "folder" else tmp_path / "truth/{id}_class.tsv"
    else:
        (tmp_path / "truth").mkdir()
        for case, name in named:
            (tmp_path / f"truth/{case}.txt").write_text(f"{name}\n")
        where = tmp_path / "truth/{id}.txt"
    found = measures(toy("evaluate", results, "--reference", where, "--json"))
    assert {name: found[name] for name in EXPECTED} == pytest.approx(EXPECTED)


def test_one_table_of_all_results(toy: Run, results: Path, table: Path, tmp_path: Path) -> None:
    """The --csv file can be evaluated itself, and holds what was true."""
    rows = tmp_path / "rows.csv"
    assert toy("evaluate", results, table, "--csv", rows).code == 0
    (first, *_) = csv.DictReader(io.StringIO(rows.read_text()))
    assert (first["class"], first["reference"], float(first["probability_pneumonia"])) == (
        "pneumonia",
        "pneumonia",
        0.9,
    )
    for reference in (table, rows):
        found = measures(toy("evaluate", rows, reference, "--json"))
        assert {name: found[name] for name in EXPECTED} == pytest.approx(EXPECTED)


def test_several_classes(toy: Run, tmp_path: Path) -> None:
    names = ("a", "b", "c")
    rng = np.random.default_rng(0)
    rows = []
    for n in range(30):
        p = rng.dirichlet(np.ones(3) + 4 * np.eye(3)[n % 3])
        write_case(tmp_path / "out", f"x{n:02}", dict(zip(names, p, strict=True)))
        rows.append((f"x{n:02}", names[n % 3]))
    done = toy("evaluate", tmp_path / "out", truth(tmp_path / "t.csv", rows))
    assert done.code == 0, done.err
    assert "mean over 3 classes" in done.lines[0]
    matrix = [line.split() for line in done.lines[-3:]]
    assert [row[0] for row in matrix] == list(names)
    assert sum(int(n) for row in matrix for n in row[1:]) == 30


COLUMNS = ("candidate", "class", "probability", "confidence", "abstained", "reason", "distance",
           *(f"probability_{name}" for name in CLASSES), "bundle", "version")  # fmt: skip
"""Of the tables of `medkit run classify`; those of all cases begin with `image` and `sha256`."""


def finding(p: float, *, candidate: str = "n/a", confidence: str = "n/a", abstained: bool = False) -> list[str]:
    """A row of such a table."""
    said = ["n/a"] * 2 if abstained else [CLASSES[p > 0.5], f"{max(p, 1 - p):.6f}"]
    doubt = ["yes", "unlike the training images"] if abstained else ["no", "n/a"]
    return [candidate, *said, confidence, *doubt, "0.5", f"{1 - p:.6f}", f"{p:.6f}", "chest", "0.1.0"]


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in (header, *rows)))
    return path


@pytest.mark.parametrize("form", ["one table", "files"])
def test_cases_that_were_abstained_from(toy: Run, table: Path, tmp_path: Path, form: str) -> None:
    """Those abstained from are wrong, so that the answered ones are all right."""
    found = {
        name: finding(p, abstained=name in "cd", confidence="n/a" if name in "cd" else "0.8")
        for name, p in SICK.items()
    }
    if form == "files":
        for name, row in found.items():
            write_rows(tmp_path / f"said/{name}_class.tsv", COLUMNS, [row])
        where = tmp_path / "said"
    else:
        rows = [[f"../scans/{name}.png", "0" * 64, *row] for name, row in found.items()]
        where = write_rows(tmp_path / "said/results.tsv", ("image", "sha256", *COLUMNS), rows)
    done = toy("evaluate", where, table)
    assert (done.code, done.err) == (0, "")
    assert "2 (33.3%) abstained from" in done.lines[0]
    assert done.lines[-3].split()[-1] == "abstained"
    assert [line.split() for line in done.lines[-2:]] == [["normal", "2", "0", "1"], ["pneumonia", "0", "2", "1"]]
    done = toy("evaluate", where, table, "--json")
    assert json.loads(done.out)["abstained"] == {"n": 2, "share": pytest.approx(1 / 3)}
    assert measures(done)["accuracy"] == pytest.approx(4 / 6)
    assert measures(done)["auc"] == pytest.approx(8 / 9)
    assert measures(done, "answered")["accuracy"] == 1
    # four right at 0.8; the probabilities, 0.6 each, of the two that are wrong and have no confidence
    assert measures(done)["ece"] == pytest.approx((4 * 0.2 + 2 * 0.6) / 6)


def test_candidates_of_one_image(toy: Run, tmp_path: Path) -> None:
    rows = [["ct.nii.gz", "0" * 64, *finding(p, candidate=name)] for name, p in SICK.items()]
    rows[1][-4:-2] = ["n/a", "n/a"]  # b lies outside the image
    where = write_rows(tmp_path / "results.tsv", ("image", "sha256", *COLUMNS), rows)
    for image in ("ct", "ct.nii.gz", "elsewhere/ct.nii.gz"):
        known = truth(tmp_path / "t.csv", [(image, *row) for row in TRUTH.items()], ("image", "candidate", "class"))
        done = toy("evaluate", where, known, "--allow-missing", "--json")
        assert measures(done)["accuracy"] == pytest.approx(3 / 5)
        assert "ct/b: has no prediction" in done.err


def test_a_network_of_one_output(toy: Run, table: Path, tmp_path: Path) -> None:
    for name, p in SICK.items():
        write_case(tmp_path / "one", name, {"pneumonia": p})
    done = toy("evaluate", tmp_path / "one", table, "--json")
    assert {name: measures(done)[name] for name in EXPECTED} == pytest.approx(EXPECTED)
    assert json.loads(done.out)["classes"] == ["normal", "pneumonia"]


def test_the_pictures(toy: Run, results: Path, table: Path, tmp_path: Path) -> None:
    from PIL import Image

    for _ in range(2):
        done = toy("evaluate", results, table, "--plots", tmp_path / "plots", "--overwrite")
        assert done.code == 0, done.err
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == ["reliability.png", "roc.png"]
    with Image.open(tmp_path / "plots/roc.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    blue = np.argwhere(np.abs(pixels - (0, 114, 178)).sum(-1) < 60)
    inside = blue[(blue[:, 0] < 500) & (blue[:, 1] < 540)]
    # the curve goes up at once to 2/3 of the sensitivity, and is above the diagonal everywhere
    assert inside[:, 0].min() < 70
    assert (inside[:, 1] - 78 <= 464 * (1 - (inside[:, 0] - 56) / 508) + 4).all()
    done = toy("evaluate", results, table, "--plots", tmp_path / "plots")
    assert done.code == 1
    assert "--overwrite" in done.err


def test_from_a_pipe(toy: Run, results: Path, table: Path) -> None:
    lines = "".join(f"{path}\n" for path in sorted(results.glob("*_class.tsv")))
    found = measures(toy("evaluate", "--reference", table, "--json", input=lines))
    assert found["accuracy"] == pytest.approx(4 / 6)


def test_what_has_no_partner(toy: Run, results: Path, tmp_path: Path) -> None:
    some = truth(tmp_path / "t.csv", [(case, n) for case, n in TRUTH.items() if case != "b"] + [("z", 1)])
    done = toy("evaluate", results, some)
    assert done.code == 1
    assert "b.png: no reference" in done.err
    assert "z: no result for this reference" in done.err
    assert done.lines[0].startswith("5 cases")
    assert toy("evaluate", results, some, "--allow-missing").code == 0


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("truth.csv", "case,class\na,1\na,0\n", "a is listed twice"),
        ("truth.csv", "case,class\na,flu\n", "class 'flu': expected one of normal, pneumonia"),
        ("truth.csv", "case,class\na,2\n", "class '2': expected one of"),
        ("truth.csv", "a,1\nb,0\n", "no column that names the cases"),
        ("truth.csv", "case,sex\na,1\n", "no column that holds their classes"),
        ("truth.csv", "", "expected a table with a header and rows"),
        ("truth.json", "{}", "expected a datalist with items"),
        ("truth.json", "[", "expected a datalist"),
    ],
)
def test_references_that_cannot_be(toy: Run, results: Path, tmp_path: Path, file: str, text: str, message: str) -> None:
    (tmp_path / file).write_text(text)
    done = toy("evaluate", results, tmp_path / file)
    assert (done.code, done.out) == (3, "")
    assert message in done.err
    assert file in done.err or "a.png" in done.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class\tprobability\nnormal\t1.5\n", "line 2: expected a probability (0 to 1), got '1.5'"),
        ("class\tprobability\nnormal\t0.5\nnormal\t0.5\n", "expected every class once"),
        ("probability_normal\tprobability_pneumonia\n0.5\t-1\n", "line 2: expected a probability"),
        ("class\tprobability_normal\tprobability_flu\nx\t0.5\t0.5\n", "line 2: expected one of normal, flu, got x"),
        ("case\tp\nx\t0.5\n", "expected the columns class and probability, or one called probability_"),
    ],
)
def test_results_that_cannot_be(toy: Run, results: Path, table: Path, text: str, message: str) -> None:
    """One bad file does not stop the others."""
    (results / "c_class.tsv").write_text(text)
    done = toy("evaluate", results, table, "--allow-missing")
    assert done.code == 1
    assert f"c_class.tsv: {message}" in done.err
    assert done.lines[0].startswith("5 cases")


def test_results_of_other_classes(toy: Run, results: Path, table: Path) -> None:
    write_case(results, "c", {"normal": 0.5, "flu": 0.5})
    done = toy("evaluate", results, table)
    assert done.code == 3
    assert "c_class.tsv: expected the classes of" in done.err


@pytest.mark.parametrize("option", [["--labels", "1"], ["--mask", "x"], ["--shifts", "noise"], ["--robustness"]])
def test_options_for_something_else(toy: Run, results: Path, table: Path, option: list[str]) -> None:
    done = toy("evaluate", results, table, *option)
    assert (done.code, done.out) == (2, "")
    assert option[0] in done.err
