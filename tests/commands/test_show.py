"""`medkit show`: the tree of a file's sources."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


@pytest.fixture
def table(toy: Run, scan: Make) -> Path:
    """x -> x_double -> x_double_dseg -> x_double_dseg_class."""
    path = scan("x.nii.gz")
    for task in (["double", "--factor", 3], ["halves"], ["measure"]):
        (path,) = toy("run", *task, path).paths
    return path


def test_the_tree_names_commands_versions_and_warnings(toy: Run, table: Path) -> None:
    done = toy("show", table)
    assert done.code == 0
    heads = [line.lstrip("│├└─ ") for line in done.lines if line.endswith(")")]
    assert [h.rsplit("/", 1)[-1].split()[0] for h in heads[:4]] == [
        *("x_double_dseg_class.tsv", "x_double_dseg.nii.gz", "x_double.nii.gz", "x.nii.gz")
    ]
    assert "medkit run double --factor 3 " in done.out
    assert "medkit-toy 1.5" in done.out
    assert "warning: toy" in done.out
    assert done.err == ""


def test_the_command_shown_makes_the_result_again(toy: Run, table: Path) -> None:
    double = table.with_name("x_double.nii.gz")
    before = double.read_bytes()
    (line,) = [entry.split("medkit ", 1)[1] for entry in toy("show", double).lines if "medkit run" in entry]
    double.unlink()
    assert toy(*shlex.split(line), "--overwrite").code == 0
    assert double.read_bytes() == before


def test_a_command_with_shared_files_and_odd_names(toy: Run, blob: Make) -> None:
    done = toy("run", "align", "--reference", blob("f $1.nii.gz"), blob("a b.nii.gz"))
    assert shlex.quote(str(done.paths[0].with_name("f $1.nii.gz"))) in toy("show", done.paths[0]).out


def test_json(toy: Run, table: Path) -> None:
    node = json.loads(toy("show", table, "--json").out)
    names = []
    while node:
        names.append(Path(node["path"]).name)
        node = next(iter(node["Sources"]), None)
    assert names == ["x_double_dseg_class.tsv", "x_double_dseg.nii.gz", "x_double.nii.gz", "x.nii.gz"]


def test_missing_files_and_sources(toy: Run, table: Path, tmp_path: Path) -> None:
    (tmp_path / "x.nii.gz").unlink()
    assert "x.nii.gz  (image, missing)" in toy("show", table).out
    done = toy("show", tmp_path / "nothing.nii.gz")
    assert done.code == 3
    assert "nothing.nii.gz: no such file" in done.err


def test_a_file_of_unknown_origin(toy: Run, blob: Make) -> None:
    done = toy("show", blob("a_dseg.nii.gz"))
    assert done.lines == [f"{blob('a_dseg.nii.gz')}  (labels)"]


def test_circles_end(toy: Run, tmp_path: Path, blob: Make) -> None:
    for name, source in (("a", "b"), ("b", "a")):
        blob(f"{name}.nii.gz")
        blob(
            f"{name}.json",
            json.dumps({"path": f"{name}.nii.gz", "Sources": [f"{source}.nii.gz"], "medkit": {"task": "t"}}),
        )
    assert toy("show", tmp_path / "a.nii.gz").code == 0
    assert toy("show", tmp_path / "a.nii.gz", "--json").code == 0


@pytest.mark.parametrize("block", [{"task": None}, {"task": "t", "warnings": None}, {"task": "t", "arguments": None}])
def test_sidecars_of_others_do_no_harm(toy: Run, tmp_path: Path, blob: Make, block: dict[str, object]) -> None:
    blob("a.nii.gz")
    blob("a.json", json.dumps({"path": "a.nii.gz", "medkit": block, "GeneratedBy": [{}]}))
    assert toy("show", tmp_path / "a.nii.gz").code == 0


def test_names_that_are_not_utf8(shell: Run) -> None:
    done = shell(
        r"touch $'\xff.nii.gz' && medkit show $'\xff.nii.gz' && medkit show $'\xff.nii.gz' --json",
        env={"PYTHONIOENCODING": "utf-8:strict"},
    )
    assert done.code == 0, done.err
