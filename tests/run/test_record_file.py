"""`--records`: the records of every process in one folder; MEDKIT_PART: names for the files of each part."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


def kept(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_done_kept_and_failed_cases(toy: Run, blob: Make, tmp_path: Path) -> None:
    good, bad = blob("a.nii.gz"), blob("fail.nii.gz")
    arguments = ("run", "fragile", good, bad, "-o", tmp_path / "o", "--records", tmp_path / "r", "--skip-existing")
    assert toy(*arguments).code == 1
    done, failed = kept(tmp_path / "r")
    assert done["path"] == str(tmp_path / "o/a_copy.nii.gz")
    assert done["Sources"] == [str(good)]
    assert (failed["path"], failed["medkit"]["error"]) == (str(bad), "ValueError: told to fail")
    finished = datetime.fromisoformat(done["medkit"]["finished"])
    assert abs(datetime.now(UTC) - finished) < timedelta(hours=1)
    toy(*arguments)
    assert [record["medkit"].get("skipped") for record in kept(tmp_path / "r")] == [False, False, True, False]


def test_every_stage_has_a_file_of_its_own(shell: Run, blob: Make, tmp_path: Path) -> None:
    blob("a.nii.gz")
    blob("fail.nii.gz")
    line = "medkit run fragile *.nii.gz -o o --json | medkit run pair --json"
    done = shell(line, env={"MEDKIT_RECORDS": "r", "MEDKIT_PART": "2/3", "SLURM_JOB_ID": "17"})
    assert done.code == 1
    names = sorted(path.name for path in (tmp_path / "r").iterdir())
    assert [name.split(".")[:3] for name in names] == [["fragile", "2-of-3", "17"], ["pair", "2-of-3", "17"]]
    # the failure that the second stage passes on is in the file of the first one only
    assert [(r["medkit"]["task"], r["medkit"]["status"]) for r in kept(tmp_path / "r")] == [
        ("fragile", "ok"),
        ("fragile", "failed"),
        ("pair", "ok"),
    ]


def test_a_folder_that_cannot_be_written(toy: Run, blob: Make, tmp_path: Path) -> None:
    done = toy("run", "pair", blob("a.nii.gz"), "-o", tmp_path / "o", "--records", blob("file") / "r")
    assert done.code == 1
    assert "--records" in done.err
    assert not (tmp_path / "o").exists()


def test_a_dry_run_has_no_records(toy: Run, blob: Make, tmp_path: Path) -> None:
    toy("run", "pair", blob("a.nii.gz"), "--dry-run", "--records", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_parts_have_failures_and_tables_of_their_own(toy: Run, blob: Make, tmp_path: Path) -> None:
    names = [blob(f"{n}.nii.gz") for n in ("a", "b", "fail1", "fail2")]
    arguments = ("--table", tmp_path / "all.tsv", "--failed", tmp_path / "failed")
    for k, own in ((1, names[::2]), (2, names[1::2])):
        done = toy("run", "tabled", *own, *arguments, env={"MEDKIT_PART": f"{k}/2"})
        assert done.paths == [tmp_path / f"all.{k}-of-2.tsv"]
        assert len(done.paths[0].read_text().splitlines()) == 2
        assert (tmp_path / f"failed.{k}-of-2").read_text() == f"{own[1]}\n"


def test_tables_of_shards_side_by_side(shell: Run, blob: Make, tmp_path: Path) -> None:
    for number in range(8):
        blob(f"{number}.nii.gz")
    each = "ls *.nii.gz | medkit run tabled --table all.tsv --shard $k/2"
    done = shell(f"k=1; ({each}) & first=$!; k=2; ({each}) & wait $first && wait $!")
    assert done.code == 0, done.err
    rows = [len(path.read_text().splitlines()) - 1 for path in tmp_path.glob("all.*.tsv")]
    assert (len(rows), sum(rows)) == (2, 8)


@pytest.mark.parametrize("text", ["3", "0/2", "3/2", "a/b"])
def test_a_part_that_is_none(toy: Run, blob: Make, text: str) -> None:
    done = toy("run", "pair", blob("a.nii.gz"), env={"MEDKIT_PART": text})
    assert done.code == 2
    assert f"MEDKIT_PART={text}: expected K/N" in done.err
