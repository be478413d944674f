"""`medkit merge`: records, tables and lists of shards become one file each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


@pytest.fixture
def shards(toy: Run, blob: Make, tmp_path: Path) -> Path:
    """A folder with the tables, failures and records of three shards."""
    names = [blob(f"{name}.nii.gz") for name in ("a", "b", "fail", "doubt", "e")]
    for k in (1, 2, 3):
        toy(
            *("run", "tabled", *names[k - 1 :: 3], "--table", tmp_path / "o/all.tsv", "--failed", tmp_path / "failed"),
            *("--records", tmp_path / "records"),
            env={"MEDKIT_PART": f"{k}/3"},
        )
    return tmp_path


def rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_tables_lists_and_records(toy: Run, shards: Path) -> None:
    done = toy("merge", shards)
    assert done.code == 0, done.err
    assert done.paths == [shards / "failed", shards / "o/all.tsv", shards / "records.jsonl"]
    table = rows(shards / "o/all.tsv")
    assert table[0] == ["image", "sha256", "look", "size"]
    assert sorted(row[0] for row in table[1:]) == ["../a.nii.gz", "../b.nii.gz", "../doubt.nii.gz", "../e.nii.gz"]
    assert (shards / "failed").read_text() == f"{shards}/fail.nii.gz\n"
    records = [json.loads(line) for line in (shards / "records.jsonl").read_text().splitlines()]
    assert sorted(record["medkit"]["status"] for record in records) == ["failed", *["ok"] * 4]
    sidecar = json.loads((shards / "o/all.json").read_text())
    assert sidecar["medkit"]["look"] is True
    assert sidecar["medkit"]["outputs"]["table"]["path"] == "all.tsv"


def test_a_merged_table_is_continued(toy: Run, blob: Make, shards: Path) -> None:
    toy("merge", shards)
    arguments = ("run", "tabled", "--table", shards / "o/all.tsv", "--skip-existing", "--json")
    done = toy(*arguments, shards / "a.nii.gz", blob("new.nii.gz"))
    assert done.code == 0, done.err
    assert [record["medkit"]["skipped"] for record in done.records] == [True, False]
    assert len(rows(shards / "o/all.tsv")) == 6


def test_the_latest_record_of_a_case_counts(toy: Run, blob: Make, tmp_path: Path) -> None:
    late = tmp_path / "late.nii.gz"
    arguments = ("run", "pair", late, "-o", tmp_path / "o", "--records", tmp_path / "records")
    assert toy(*arguments).code == 3
    blob("late.nii.gz")
    assert toy(*arguments).code == 0
    (path,) = toy("merge", tmp_path).paths
    (record,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert record["medkit"]["status"] == "ok"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda o: (o / "all.2-of-3.tsv").unlink(), "of 3 parts, 2 is missing"),
        (lambda o: (o / "all.2-of-3.tsv").write_text("image\tother\n"), "has other columns"),
        (lambda o: (o / "all.1-of-2.tsv").write_text("image\n"), "parts of 2 and 3"),
        (lambda o: (o / "all.2-of-3.json").unlink(), "other settings"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    toy: Run, shards: Path, change: Callable[[Path], object], reason: str
) -> None:
    change(shards / "o")
    done = toy("merge", shards)
    assert done.code == 1
    assert reason in done.err
    assert not (shards / "o/all.tsv").exists()


def test_only_files_of_shards_are_merged(toy: Run, blob: Make, tmp_path: Path) -> None:
    blob("scan.1-of-1.nii.gz")
    blob("part.1-of-2.png")
    done = toy("merge", tmp_path)
    assert done.code == 1
    assert "nothing to merge" in done.err
    assert toy("merge", tmp_path / "nowhere").code == 2
