"""`--exclude`: what a reviewer failed is left out, in whichever way an input is known; nothing is missed in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]
HEAD = "path,scan,stem,task,mark,comment\n"


@pytest.fixture
def scans(scan: Make) -> list[Path]:
    return [scan(f"in/{name}.nii.gz", seed=n) for n, name in enumerate(("anna", "ben", "cleo"))]


@pytest.fixture
def results(toy: Run, scans: list[Path], tmp_path: Path) -> list[Path]:
    """A result of each scan."""
    return toy("run", "double", *scans, "-o", tmp_path / "first").paths


@pytest.fixture
def marks(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: str, head: str = HEAD, name: str = "marks.csv") -> Path:
        (tmp_path / name).write_text(head + "".join(f"{row}\n" for row in rows))
        return tmp_path / name

    return write


def names(paths: list[Path]) -> list[str]:
    return [path.name.partition("_")[0] for path in paths]


@pytest.mark.parametrize("piped", [False, True])
def test_the_scan_of_a_failed_result_is_left_out(
    toy: Run, scans: list[Path], results: list[Path], marks: Callable[..., Path], tmp_path: Path, piped: bool
) -> None:
    file = marks(f"{results[1]},{scans[1]},ben,double,fail,cut off", f"{results[0]},{scans[0]},anna,double,pass,")
    given = {"input": "".join(f"{path}\n" for path in scans)} if piped else {}
    done = toy("run", "double", *([] if piped else scans), "-o", tmp_path / "o", "--exclude", file, **given)
    assert done.code == 0, done.err
    assert names(done.paths) == ["anna", "cleo"]
    assert "double: 1 of 3 inputs left out, failed in marks.csv: ben.nii.gz" in done.err
    assert "fit no input" not in done.err


def test_the_failed_result_itself_and_what_was_made_from_it(
    toy: Run, results: list[Path], marks: Callable[..., Path], tmp_path: Path
) -> None:
    file = marks(f"{results[1]},,,double,fail,")
    later = toy("run", "double", *results, "-o", tmp_path / "later").paths
    for number, inputs in enumerate((results, later)):
        done = toy("run", "double", *inputs, "-o", tmp_path / f"o{number}", "--exclude", file)
        assert names(done.paths) == ["anna", "cleo"], done.err


def test_another_result_of_the_same_scan_stays(
    toy: Run, scans: list[Path], results: list[Path], marks: Callable[..., Path], tmp_path: Path
) -> None:
    others = toy("run", "halves", *scans, "-o", tmp_path / "others").paths
    done = toy("run", "pair", *results, "-o", tmp_path / "o", "--exclude", marks(f"{others[1]},{scans[1]},ben,,fail,"))
    assert names(done.paths) == ["anna", "ben", "cleo"]
    assert f"1 failed mark fits no input: {others[1]}" in done.err


def test_moved_files_are_known_by_their_stem(
    toy: Run, scans: list[Path], marks: Callable[..., Path], tmp_path: Path
) -> None:
    file = marks("/gone/o/ben_double.nii.gz,/gone/in/ben.nii.gz,ben,double,fail,", "/gone/x.nii.gz,,,double,fail,")
    done = toy("run", "double", *scans, "-o", tmp_path / "o", "--exclude", file)
    assert names(done.paths) == ["anna", "cleo"]
    assert "1 failed mark fits no input: /gone/x.nii.gz" in done.err


def test_equal_stems_elsewhere_stay_while_the_marked_file_is_there(
    toy: Run, scan: Make, marks: Callable[..., Path], tmp_path: Path
) -> None:
    first, second = scan("a/T1.nii.gz", seed=1), scan("b/T1.nii.gz", seed=2)
    file = marks(f"{first},{first},T1,double,fail,")
    done = toy("run", "double", first, second, "-o", tmp_path / "o", "--exclude", file)
    assert done.code == 0, done.err
    assert "1 of 2 inputs left out" in done.err


def test_a_table_that_somebody_wrote(toy: Run, scans: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_bytes("﻿stem;mark\r\nben;FAIL\r\n".encode())
    done = toy("run", "double", *scans, "-o", tmp_path / "o", "--exclude", file)
    assert names(done.paths) == ["anna", "cleo"]


@pytest.mark.parametrize("task", ["double", "merge"])
def test_all_left_out(toy: Run, scans: list[Path], marks: Callable[..., Path], tmp_path: Path, task: str) -> None:
    file = marks(*(f"{path},,,double,fail," for path in scans))
    done = toy("run", task, *scans, "-o", tmp_path / "o", "--exclude", file)
    assert done.code == 0
    assert not done.paths
    assert f"{task}: all 3 inputs left out" in done.err


def test_groups_are_made_of_the_others(toy: Run, scans: list[Path], marks: Callable[..., Path], tmp_path: Path) -> None:
    done = toy("run", "merge", *scans, "-o", tmp_path / "o", "--exclude", marks(f"{scans[0]},,,double,fail,"), "--json")
    assert done.code == 0, done.err
    assert done.records[0]["medkit"]["metrics"] == {"members": 2}


@pytest.mark.parametrize("shard", ["1/2", "2/2"])
def test_each_shard_knows_which_marks_fit(
    toy: Run, scans: list[Path], marks: Callable[..., Path], tmp_path: Path, shard: str
) -> None:
    file = marks(*(f"{path},,,double,fail," for path in scans[:2]))
    done = toy("run", "double", *scans, "-o", tmp_path / "o", "--exclude", file, "--shard", shard)
    assert done.code == 0, done.err
    assert "2 of 3 inputs left out" in done.err
    assert "no input" not in done.err


def test_failures_of_earlier_stages_are_passed_on(
    toy: Run, scans: list[Path], marks: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.nii.gz").write_text("no image")
    first = toy("run", "double", tmp_path / "bad.nii.gz", "--json", "-o", tmp_path / "o")
    file = marks(f"{tmp_path / 'bad.nii.gz'},,,double,fail,")
    assert toy("run", "pair", "--json", "--exclude", file, input=first.out).code == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no columns"),
        ("path,comment\na,b\n", "expected the column mark"),
        ("path,mark\na.nii.gz,bad\n", "row 2: expected a mark of pass, fail, artefact, got bad"),
        ("path,mark\n,fail\n", "row 2: expected a path or a stem"),
    ],
)
def test_what_is_no_table_of_marks(toy: Run, scans: list[Path], tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "marks.csv").write_text(text)
    done = toy("run", "double", *scans, "-o", tmp_path / "o", "--exclude", tmp_path / "marks.csv")
    assert done.code == 2
    assert message in done.err


def test_a_table_without_failed_marks_is_said(
    toy: Run, scans: list[Path], marks: Callable[..., Path], tmp_path: Path
) -> None:
    done = toy("run", "double", *scans, "-o", tmp_path / "o", "--exclude", marks(f"{scans[0]},,,double,pass,"))
    assert done.code == 0
    assert "marks.csv: no case is marked as failed" in done.err
