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


def command_shown(done: Outcome) -> list[str]:  # noqa: F821
    (line,) = [entry for entry in done.lines if "medkit run " in entry]
    return shlex.split(line.split("medkit ", 1)[1])


@pytest.mark.parametrize(
    "options",
    [
        ["--pair", "a b", "$c", "--level", "1.5", "--no-clean", "--word=x=y", "--word", "{}", "-v"],
        ["--clean", "--two", "--set", "a::b=[1, 2]", "--set", "c=it's", "--seed", "7", "-kk"],
        ["--one", "--two", "--one", "--level", "1", "--level", "2"],
        ["--roles", "labels,mask", "--file", "FILE", "--either", "FILE", "-o", "FOLDER"],
        ["--either", "auto", "--threads", "1", "--json", "--overwrite"],
    ],
)
def test_the_command_shown_parses_to_the_same_options(
    toy: Run, scan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """Every type of option: several words, repeated ones, flags with and without opposite, files, chosen words."""
    (tmp_path / "f $1.txt").touch()
    named = {"FILE": "f $1.txt", "FOLDER": "new out"}
    monkeypatch.chdir(tmp_path)
    first = toy("run", "spoken", scan("x y.nii.gz"), *[named.get(word, word) for word in options])
    assert first.code == 0, first.err
    result = next(tmp_path.rglob("*_spoken.tsv"))
    before = result.read_text()
    words = command_shown(toy("show", result))
    assert "--threads" not in words
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert toy(*words, "--overwrite").code == 0
    assert result.read_text() == before


def test_the_command_shown_holds_values_of_variables(toy: Run, scan: Make) -> None:
    env = {"MEDKIT_RUN_SPOKEN_LEVEL": "2.5", "MEDKIT_RUN_SPOKEN_CLEAN": "0", "MEDKIT_SEED": "3"}
    (result,) = toy("run", "spoken", scan("x.nii.gz"), env=env).paths
    before = result.read_text()
    assert toy(*command_shown(toy("show", result)), "--overwrite").code == 0
    assert result.read_text() == before


def test_the_command_shown_follows_moved_folders(toy: Run, scan: Make, tmp_path: Path) -> None:
    fixed = scan("study/f.nii.gz")
    assert toy("run", "align", "--reference", fixed, scan("study/in/a.nii.gz"), "-o", tmp_path / "study/out").code == 0
    (tmp_path / "study").rename(tmp_path / "moved")
    words = command_shown(toy("show", tmp_path / "moved/out/a_registered.nii.gz"))
    assert toy(*words, "--overwrite").paths == [tmp_path / "moved/out/a_registered.nii.gz"]


def test_the_command_shown_has_all_lines_of_a_case_and_the_inputs_of_records(toy: Run, scan: Make) -> None:
    scans = [scan(f"{name}.nii.gz", seed=n) for n, name in enumerate("abc")]
    (result,) = toy("run", "merge", *scans).paths
    assert command_shown(toy("show", result)) == ["run", "merge", *map(str, scans)]
    line = json.dumps({"path": str(scans[0]), "inputs": {"mask": str(scans[1])}})
    (result,) = toy("run", "double", "--factor", "3", input=line).paths
    words = command_shown(toy("show", result))
    assert json.loads(words[-1]) == json.loads(line)
    (record,) = toy(*words, "--json", "--overwrite").records
    assert {role: entry["path"] for role, entry in record["medkit"]["inputs"].items()} == {
        "image": str(scans[0]),
        "mask": str(scans[1]),
    }


def test_sidecars_without_a_command_name_the_task(toy: Run, tmp_path: Path, blob: Make) -> None:
    blob("a.nii.gz")
    block = {"task": "t", "arguments": {"set": {}, "outputs": ["labels"]}, "command": "rm -r /"}
    blob("a.json", json.dumps({"path": "a.nii.gz", "medkit": block}))
    assert 't with set: {}, outputs: ["labels"]' in toy("show", tmp_path / "a.nii.gz").out
