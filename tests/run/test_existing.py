"""Results that exist already: kept, made again, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import names

from medkit.pipe.records import Record
from medkit.run.existing import ResultFingerprint

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


def resumed(toy: Run, source: Path, *more: object) -> bool | None:
    """Whether a run with --skip-existing kept the result; None where it failed."""
    done = toy("run", "pair", source, "-o", source.parent / "o", "--skip-existing", "--json", *more)
    return bool(done.records[0]["medkit"]["skipped"]) if done.code == 0 else None


def test_an_existing_result_is_an_error(toy: Run, blob: Make, tmp_path: Path) -> None:
    source = blob("a.nii.gz")
    toy("run", "pair", source)
    again = toy("run", "pair", source, blob("b.nii.gz"))
    assert again.code == 1
    assert [p.name for p in again.paths] == ["b_copy.nii.gz"]
    assert "exists already; --skip-existing keeps it" in again.err
    assert toy("run", "pair", source, "--overwrite", "--value", "new").code == 0
    assert "new" in (tmp_path / "a_facts.tsv").read_text()


def test_a_valid_result_is_kept_and_printed_as_if_just_done(toy: Run, done_once: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "o").iterdir()}
    plain = toy("run", "pair", done_once, "-o", tmp_path / "o", "--skip-existing")
    assert plain.paths == [tmp_path / "o/a_copy.nii.gz"]
    assert resumed(toy, done_once) is True
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "o").iterdir()} == before


def test_leftovers_of_a_kept_result_are_removed(toy: Run, done_once: Path, tmp_path: Path) -> None:
    """As of a run that was killed just after it had put the sidecar in place."""
    part = tmp_path / "o/.a_copy.nii.gz.host.1.part"
    part.mkdir()
    (tmp_path / "o/.a_copy.nii.gz.claim").write_text(part.name)
    assert resumed(toy, done_once) is True
    assert names(tmp_path / "o") == ["a_copy.json", "a_copy.nii.gz", "a_facts.tsv"]
    assert not part.exists()


@pytest.mark.parametrize(
    "more", [["--threads", "1"], ["--device", "cpu"], ["--workers", "0"], ["--qc", "qc"], ["--json"]]
)
def test_how_it_is_computed_does_not_matter(toy: Run, done_once: Path, more: list[str]) -> None:
    assert resumed(toy, done_once, *more) is True


@pytest.mark.parametrize("more", [["--value", "2"], ["--seed", "1"], ["--frame", "0"]])
def test_a_result_of_other_arguments_is_redone(toy: Run, done_once: Path, more: list[str]) -> None:
    assert resumed(toy, done_once, *more) is False
    assert resumed(toy, done_once, *more) is True


@pytest.mark.parametrize("name", ["a_copy.nii.gz", "a_facts.tsv"])
@pytest.mark.parametrize("harm", ["torn", "deleted"])
def test_a_torn_result_is_redone(toy: Run, done_once: Path, name: str, harm: str) -> None:
    file = done_once.parent / "o" / name
    whole = file.read_text()
    file.unlink() if harm == "deleted" else file.write_text(whole[:3])
    assert resumed(toy, done_once) is False
    assert file.read_text() == whole


def test_a_changed_input_is_redone(toy: Run, done_once: Path) -> None:
    done_once.write_text("changed")
    assert resumed(toy, done_once) is False
    assert (done_once.parent / "o/a_copy.nii.gz").read_text() == "changed"


@pytest.mark.parametrize("program", [0, 1])
def test_a_result_of_another_version_is_redone(toy: Run, done_once: Path, program: int) -> None:
    file = done_once.parent / "o/a_copy.json"
    data = json.loads(file.read_text())
    data["GeneratedBy"][program]["Version"] = "0.0"
    file.write_text(json.dumps(data))
    assert resumed(toy, done_once) is False


def test_a_result_of_another_source_is_never_replaced(toy: Run, done_once: Path, blob: Make) -> None:
    other = blob("b/a.nii.gz")
    done = toy("run", "pair", other, "-o", done_once.parent / "o", "--skip-existing")
    assert done.code == 1
    assert f"was made from {done_once}" in done.err
    assert (done_once.parent / "o/a_copy.nii.gz").read_text() == "a.nii.gz"
    assert toy("run", "pair", other, "-o", done_once.parent / "o", "--overwrite").code == 0


@pytest.mark.parametrize("name", ["a_copy.nii.gz", "a_facts.tsv"])
def test_a_file_without_a_sidecar_is_never_replaced(toy: Run, blob: Make, tmp_path: Path, name: str) -> None:
    mine = blob(f"o/{name}", "mine")
    for more in ([], ["--skip-existing"]):
        done = toy("run", "pair", blob("a.nii.gz"), "-o", tmp_path / "o", *more)
        assert done.code == 1
        assert "no sidecar states that medkit made it" in done.err
        assert names(tmp_path / "o") == [name]
        assert mine.read_text() == "mine"


def test_a_torn_sidecar_protects_nothing_it_cannot_name(toy: Run, done_once: Path) -> None:
    file = done_once.parent / "o/a_copy.json"
    file.write_text(file.read_text()[:40])
    assert resumed(toy, done_once) is None


def test_further_files_that_the_sidecar_does_not_list_are_not_replaced(toy: Run, done_once: Path) -> None:
    file = done_once.parent / "o/a_copy.json"
    data = json.loads(file.read_text())
    del data["medkit"]["outputs"]["table"]
    file.write_text(json.dumps(data))
    assert resumed(toy, done_once) is None


@pytest.mark.parametrize(
    ("change", "same_source", "equal"),
    [
        ({}, True, True),
        ({"arguments": {"a": 2}}, True, False),
        ({"seed": 1}, True, False),
        ({"bundle": {"name": "b"}}, True, False),
        ({"inputs": {"image": {"path": "/i", "sha256": "0"}}}, True, False),
        ({"inputs": {"image": {"path": "/i", "sha256": "1"}, "fixed": {"path": "/f", "sha256": "2"}}}, True, False),
    ],
)
def test_what_makes_a_result_outdated(change: dict[str, object], same_source: bool, equal: bool) -> None:
    settings = {"arguments": {"a": 1}, "bundle": None, "seed": 0, "programs": [{"Name": "medkit", "Version": "1"}]}
    now = ResultFingerprint(Path("/i"), {"image": "1"}, settings)
    block = {"arguments": {"a": 1}, "bundle": None, "seed": 0, "inputs": {"image": {"path": "/i", "sha256": "1"}}}
    old = Record(
        Path("/o"), sources=(Path("/i"),), generated_by=({"Name": "medkit", "Version": "1"},), medkit=block | change
    )
    assert (now.has_same_source(old), now.equals(old)) == (same_source, equal)


def test_results_of_moved_and_of_other_inputs() -> None:
    block = {"inputs": {"image": {"path": "/moved/i", "sha256": "1"}}}
    record = Record(Path("/o"), sources=(Path("/moved/i"),), medkit=block)
    assert ResultFingerprint(Path("/i"), {"image": "1"}, {}).has_same_source(record)
    assert not ResultFingerprint(Path("/i"), {"image": "2"}, {}).has_same_source(record)
