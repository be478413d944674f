"""`medkit report`: which results a page shows, what it says of them, and the table of their metrics."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Pillow
from results import failed_record, group, write_picture, write_result

from medkit.images.image import Image
from medkit.review.cases import cases_of, natural
from medkit.review.metrics import numbers_in, outliers
from medkit.review.pictures import encoded
from medkit.terminal.progress import Bar

Run = Callable[..., "Outcome"]  # noqa: F821


def block(page: Path, name: str) -> Any:
    """The data in a block of JSON of a page."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def pictures_of(page: Path) -> list[str]:
    """The addresses of the pictures of a page, in the order of its cases; empty for a case without one."""
    return [block(page, f"picture-{n}") if case["picture"] else "" for n, case in enumerate(shown(page))]


def data_of(page: Path) -> dict[str, Any]:
    return dict(block(page, "data"))


def shown(page: Path) -> list[dict[str, Any]]:
    return list(data_of(page)["cases"])


@pytest.fixture
def results(tmp_path: Path) -> list[Path]:
    return group(tmp_path)


def test_failures_first_then_what_needs_a_look_then_by_subject(
    medkit: Run, results: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.jsonl").write_text(failed_record(tmp_path / "scans/bad.nii.gz", "no image") + "\n{cut")
    done = medkit(
        "report", tmp_path / "labels", tmp_path / "records", "--qc", tmp_path / "qc", "-o", tmp_path / "r.html"
    )
    assert done.code == 0, done.err
    assert done.paths == [tmp_path / "r.html"]
    assert "13 cases: 1 failed, 1 to look at, 1 with outliers" in done.err
    cases = shown(tmp_path / "r.html")
    assert [case["subject"] for case in cases[:4]] == ["bad", "s01", "s00", "s02"]
    assert cases[0]["error"] == "no image"
    assert cases[1]["warnings"] == ["cut off"]
    metrics = block(tmp_path / "r.html", "data")["metrics"]
    assert [metrics[number] for number in cases[3]["outliers"]] == ["total_mm3", "volumes_mm3.caudate"]


def test_a_bar_counts_the_pictures(
    medkit: Run, results: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[str, int, int | None]] = []
    count = Bar.count

    def seen(bar: Bar, *, failed: bool = False) -> None:
        count(bar, failed=failed)
        counted.append((bar.state().name, bar.state().done, bar.state().total))

    monkeypatch.setattr(Bar, "count", seen)
    assert medkit("report", *results, "--qc", tmp_path / "qc", "-o", tmp_path / "r.html").code == 0
    assert counted == [("report", number, 12) for number in range(1, 13)]


def test_a_pipe_of_records(toy: Run, medkit: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    scans = [scan(f"{name}.nii.gz", seed=n) for n, name in enumerate(("anna", "doubt"))]
    (tmp_path / "bad.nii.gz").write_text("no image")
    first = toy("run", "double", *scans, tmp_path / "bad.nii.gz", "--json", "-o", tmp_path / "o")
    done = medkit("report", "-o", tmp_path / "r.html", input=first.out)
    assert done.code == 0, done.err
    states = {case["subject"]: case["state"] for case in shown(tmp_path / "r.html")}
    assert states == {"bad": "failed", "doubt": "look", "anna": "ok"}
    pictures = pictures_of(tmp_path / "r.html")
    assert [bool(picture) for picture in pictures] == [False, True, True]
    with Pillow.open(io.BytesIO(base64.b64decode(pictures[1].partition(",")[2]))) as drawn:
        assert drawn.format == "WEBP"
        assert drawn.width > 300
    files = block(tmp_path / "r.html", "data")["files"]
    assert files[str(tmp_path / "o/anna_double.nii.gz")]["sources"] == [str(scans[0])]


def test_further_files_and_sidecars_stand_for_their_result(medkit: Run, results: list[Path], tmp_path: Path) -> None:
    done = medkit("report", *(tmp_path / "labels").iterdir(), "-o", tmp_path / "r.html", "--no-pictures")
    assert done.code == 0, done.err
    assert len(shown(tmp_path / "r.html")) == len(results)


def test_what_is_no_result_is_said_and_the_others_are_shown(medkit: Run, results: list[Path], tmp_path: Path) -> None:
    inputs = [results[0], tmp_path / "scans/s00.nii.gz", tmp_path / "missing.nii.gz"]
    done = medkit("report", *inputs, "-o", tmp_path / "r.html", "--no-pictures")
    assert done.code == 1
    assert f"{inputs[1]}: expected a result of medkit, got a file that no sidecar describes" in done.err
    assert f"{inputs[2]}: no such file" in done.err
    assert len(shown(tmp_path / "r.html")) == 1


def test_a_case_that_is_named_twice_is_shown_once(medkit: Run, results: list[Path], tmp_path: Path) -> None:
    inputs = [results[0], tmp_path / "labels", tmp_path / "labels"]
    done = medkit("report", *inputs, "-o", tmp_path / "r.html", "--no-pictures")
    assert done.code == 0, done.err
    assert len(shown(tmp_path / "r.html")) == len(results)


@pytest.mark.parametrize("given", [[], ["scans"], ["qc", "scans"]])
def test_nothing_to_show(medkit: Run, results: list[Path], tmp_path: Path, given: list[str]) -> None:
    done = medkit("report", *[tmp_path / name for name in given], "-o", tmp_path / "r.html")
    assert done.code == 1
    assert "no input arrived" in done.err or "found no sidecar and no records" in done.err
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the page"),
        (["-o", "page"], "ends in .html"),
        (["--folder", "--csv", "a.csv"], "--folder needs -o"),
        (["--csv", "a.csv", "--tsv", "a.tsv"], "contradict"),
        (["--csv", "a.xls"], ".csv or .tsv"),
    ],
)
def test_wrong_usage(medkit: Run, results: list[Path], arguments: list[str], message: str) -> None:
    done = medkit("report", results[0], *arguments)
    assert done.code == 2, done.err
    assert message in done.err


def test_an_existing_page_is_replaced_only_when_asked(medkit: Run, results: list[Path], tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text("mine")
    assert medkit("report", *results, "-o", tmp_path / "r.html", "--no-pictures").code == 1
    assert (tmp_path / "r.html").read_text() == "mine"
    assert medkit("report", *results, "-o", tmp_path / "r.html", "--no-pictures", "--overwrite").code == 0


# ---- failures that were mended


@pytest.mark.parametrize(("failed_at", "count"), [("2026-01-01T00:00:00", 1), ("2099-01-01T00:00:00", 2), ("", 1)])
def test_a_failure_before_a_success_is_not_shown(
    medkit: Run, results: list[Path], tmp_path: Path, failed_at: str, count: int
) -> None:
    line = failed_record(tmp_path / "scans/s00.nii.gz", "lost", finished=failed_at)
    (tmp_path / "r.jsonl").write_text(f"{line}\n")
    assert medkit("report", results[0], tmp_path / "r.jsonl", "-o", tmp_path / "r.html", "--no-pictures").code == 0
    assert len(shown(tmp_path / "r.html")) == count


# ---- what reaches the page


EVIL = "</script><img src=x onerror=hacked=1>\u2028&amp;"


def test_nothing_in_a_sidecar_ends_a_block_or_becomes_html(medkit: Run, tmp_path: Path) -> None:
    name = "<img src=x onerror=hacked=1>"
    scan = tmp_path / f"{name}.nii.gz"
    scan.write_bytes(b"")
    write_result(
        *(tmp_path / "o" / f"{name}_dseg.nii.gz", scan),
        warnings=[EVIL],
        metrics={EVIL: 1.5, "class": EVIL},
        more={"arguments": {EVIL: EVIL}, "labels": {"1": EVIL}},
    )
    assert medkit("report", tmp_path / "o", "-o", tmp_path / "r.html", "--title", EVIL).code == 0
    text = (tmp_path / "r.html").read_text()
    assert "<img" not in text
    assert text.count("</script>") == 2
    assert shown(tmp_path / "r.html")[0]["warnings"] == [EVIL]


def test_only_what_medkit_wrote_reaches_the_page(medkit: Run, tmp_path: Path) -> None:
    result = write_result(tmp_path / "o/a_dseg.nii.gz", tmp_path / "a.nii.gz")
    sidecar = tmp_path / "o/a_dseg.json"
    data = json.loads(sidecar.read_text()) | {"PatientName": "Jane Doe", "Manufacturer": "Acme"}
    sidecar.write_text(json.dumps(data))
    (tmp_path / "a.json").write_text(json.dumps({"PatientName": "Jane Doe"}))
    picture = write_picture(tmp_path / "qc", result)
    with Pillow.open(picture) as opened:
        opened.info["Comment"] = "Jane Doe"
    assert medkit("report", result, "--qc", tmp_path / "qc", "-o", tmp_path / "r.html").code == 0
    text = (tmp_path / "r.html").read_text()
    assert "Jane" not in text
    assert "Acme" not in text


def test_the_policy_allows_this_script_and_nothing_from_elsewhere(
    medkit: Run, results: list[Path], tmp_path: Path
) -> None:
    assert medkit("report", results[0], "-o", tmp_path / "r.html", "--no-pictures").code == 0
    text = (tmp_path / "r.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert not re.search(r"https?:", policy[1])
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text)


def test_the_digest_follows_the_results(medkit: Run, results: list[Path], tmp_path: Path) -> None:
    def digest() -> str:
        assert medkit("report", *results, "-o", tmp_path / "r.html", "--no-pictures", "--overwrite").code == 0
        return str(block(tmp_path / "r.html", "data")["digest"])

    first = digest()
    assert digest() == first
    write_result(
        results[0], tmp_path / "scans/s00.nii.gz", more={"outputs": {"labels": {"path": "x", "sha256": "new"}}}
    )
    assert digest() != first


# ---- cases


def test_subjects_of_bids_and_of_pipes(tmp_path: Path) -> None:
    scan = tmp_path / "sub-2/sub-2_ses-1_T1w.nii.gz"
    first = write_result(tmp_path / "sub-2_ses-1_desc-x_T1w.nii.gz", scan, task="align", kind="image")
    second = write_result(tmp_path / "o/sub-2_ses-1_dseg.nii.gz", first)
    from medkit.pipe.records import record_of

    (case,) = cases_of([record_of(second)])
    assert case.subject == "sub-2 ses-1"
    assert case.scan == scan


@pytest.mark.parametrize(
    ("block", "bundle"),
    [
        ({}, "toys 1.2.3"),
        ({"bundle": {"name": "auto"}, "choice": {"name": "heads", "version": "2"}}, "heads 2"),
        ({"bundle": None, "choice": {"method": "rigid"}}, None),
    ],
)
def test_which_bundle_made_it(medkit: Run, tmp_path: Path, block: dict[str, Any], bundle: str | None) -> None:
    result = write_result(tmp_path / "o/a_dseg.nii.gz", tmp_path / "a.nii.gz", more=block)
    assert medkit("report", result, "-o", tmp_path / "r.html", "--no-pictures").code == 0
    data = data_of(tmp_path / "r.html")
    assert data["files"][str(result)].get("bundle") == bundle
    assert data["cases"][0]["group"] == (f"label, {bundle.split()[0]}" if bundle else "label")


def test_a_group_is_a_case_of_its_own(toy: Run, medkit: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    scans = [scan(f"{name}.nii.gz", seed=n) for n, name in enumerate("ab")]
    made = toy("run", "merge", *scans, "-o", tmp_path / "o")
    assert medkit("report", *made.paths, "-o", tmp_path / "r.html").code == 0
    (case,) = shown(tmp_path / "r.html")
    assert case["subject"] == "a_merged"
    assert case["scan"] == str(made.paths[0])


def test_rows_of_one_table_are_cases(toy: Run, medkit: Run, scan: Callable[..., Path], tmp_path: Path) -> None:
    scans = [scan(f"in/{name}.nii.gz", seed=n) for n, name in enumerate(("anna", "doubt"))]
    made = toy("run", "tabled", *scans, "--table", tmp_path / "t.tsv")
    assert made.code == 0, made.err
    assert medkit("report", tmp_path / "t.tsv", "-o", tmp_path / "r.html", "--no-pictures").code == 0
    cases = shown(tmp_path / "r.html")
    assert [(case["subject"], case["state"]) for case in cases] == [("doubt", "look"), ("anna", "ok")]
    assert cases[1]["path"] == str(scans[0])
    assert cases[1]["values"]


def test_numbers_and_outliers() -> None:
    assert numbers_in({"a": {"b": 1}, "t": "x", "n": float("nan"), "l": [1, {"name": "q", "v": 2}]}) == {
        "a.b": 1.0,
        "l.q.v": 2.0,
    }
    assert outliers([1, 2, 3, 4, 100]) == [4]
    assert outliers([1, 1, 1, 1, 1, 2]) == [5]
    assert outliers([1, 2, 3, 100]) == []
    assert outliers([5.0] * 9) == []
    assert sorted(["a10", "a2", "B1"], key=natural) == ["a2", "a10", "B1"]


# ---- pictures


def test_labels_are_drawn_over_their_image(
    toy: Run, medkit: Run, scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medkit.figures import mosaic

    drawn: list[tuple[Any, ...]] = []
    real = mosaic.overlay_mosaic

    def spy(background: Image, overlay: Image | None = None, **given: Any) -> np.ndarray:
        drawn.append((background.path.name, overlay.path.name if overlay else None, given["kind"]))
        return real(background, overlay, **given)

    monkeypatch.setattr(mosaic, "overlay_mosaic", spy)
    made = toy("run", "halves", scan("anna.nii.gz"), "-o", tmp_path / "o")
    assert medkit("report", *made.paths, "-o", tmp_path / "r.html").code == 0
    assert drawn == [("anna.nii.gz", "anna_dseg.nii.gz", "labels")]


def test_pictures_of_qc_belong_to_their_results(medkit: Run, results: list[Path], tmp_path: Path) -> None:
    other = write_result(tmp_path / "other/s00_dseg.nii.gz", tmp_path / "scans/s00.nii.gz", task="other")
    done = medkit("report", results[0], other, "--qc", tmp_path / "qc", "-o", tmp_path / "r.html", "--no-pictures")
    assert done.code == 0
    found = dict(zip([c["task"] for c in shown(tmp_path / "r.html")], pictures_of(tmp_path / "r.html"), strict=True))
    assert found["other"] == ""
    assert found["label"].startswith("data:image/webp;base64,")


def test_a_folder_of_pictures_may_be_made_by_the_pipe_but_must_be_there_then(
    medkit: Run, results: list[Path], tmp_path: Path
) -> None:
    done = medkit("report", results[0], "--qc", tmp_path / "nowhere", "-o", tmp_path / "r.html", "--no-pictures")
    assert done.code == 1
    assert f"--qc {tmp_path / 'nowhere'}: no such folder" in done.err
    assert len(shown(tmp_path / "r.html")) == 1


def test_a_picture_keeps_to_its_room() -> None:
    noise = Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (900, 1000, 3), np.uint8))
    assert len(encoded(noise, 40_000)) <= 40_000
    assert len(encoded(noise, None)) > 100_000


def test_a_folder_has_its_pictures_next_to_the_page(medkit: Run, results: list[Path], tmp_path: Path) -> None:
    done = medkit("report", *results[:3], "--qc", tmp_path / "qc", "-o", tmp_path / "page", "--folder")
    assert done.code == 0, done.err
    assert done.paths == [tmp_path / "page/index.html"]
    addresses = pictures_of(tmp_path / "page/index.html")
    assert all((tmp_path / "page" / address).stat().st_size > 50 for address in addresses)
    (tmp_path / "page/pictures/mine.webp").write_bytes(b"")
    done = medkit("report", results[0], "--qc", tmp_path / "qc", "-o", tmp_path / "page", "--folder", "--overwrite")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "page/pictures").iterdir())) == 2


# ---- tables and marks


def test_the_wide_table(medkit: Run, results: list[Path], tmp_path: Path) -> None:
    done = medkit("report", tmp_path / "labels", "--csv", tmp_path / "all.csv")
    assert done.code == 0, done.err
    rows = list(csv.DictReader(io.StringIO((tmp_path / "all.csv").read_text())))
    assert len(rows) == len(results)
    (row,) = [row for row in rows if row["subject"] == "s02"]
    assert float(row["volumes_mm3.caudate"]) == 4000
    assert row["path"] == str(results[2])
    done = medkit("report", tmp_path / "labels", "--tsv", tmp_path / "all.tsv")
    assert done.code == 0
    assert (tmp_path / "all.tsv").read_text().count("\t") == (len(rows) + 1) * (len(rows[0]) - 1)


def test_marks_of_an_earlier_review(medkit: Run, results: list[Path], tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        f'path,scan,stem,task,mark,comment\n{results[3]},,,label,fail,"moved, badly"\n,,s04,,artefact,\n/x,,,,pass,\n'
    )
    arguments = ["-o", tmp_path / "r.html", "--marks", tmp_path / "m.csv", "--csv", tmp_path / "t.csv"]
    done = medkit("report", tmp_path / "labels", *arguments, "--no-pictures")
    assert done.code == 0
    assert "1 mark fits no case: /x" in done.err
    marks = {case["subject"]: (case["mark"], case["comment"]) for case in shown(tmp_path / "r.html") if case["mark"]}
    assert marks == {"s03": ("fail", "moved, badly"), "s04": ("artefact", "")}
    rows = csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text()))
    assert {row["subject"]: row["mark"] for row in rows if row["mark"]} == {"s03": "fail", "s04": "artefact"}


def test_nibabel_files_of_several_frames_are_drawn(medkit: Run, tmp_path: Path) -> None:
    scan = tmp_path / "a.nii.gz"
    data = np.random.default_rng(0).integers(0, 900, (12, 12, 12, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(data, np.eye(4)), scan)
    result = write_result(tmp_path / "o/a_dseg.nii.gz", scan, more={"arguments": {"frame": 1}})
    nib.save(nib.Nifti1Image((data[..., 1] > 400).astype(np.uint8), np.eye(4)), result)
    assert medkit("report", result, "-o", tmp_path / "r.html").code == 0
    assert pictures_of(tmp_path / "r.html")[0]
