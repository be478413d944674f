"""Options that all tasks share: variables, contradictions, devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medkit.options import words

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


def test_overwrite_and_skip_existing_contradict(toy: Run, blob: Make) -> None:
    assert toy("run", "pair", blob("a.nii.gz"), "--overwrite", "--skip-existing").code == 2


def test_variables_come_between_option_and_default(toy: Run, blob: Make, tmp_path: Path) -> None:
    source, env = (
        blob("a.nii.gz"),
        {"MEDKIT_OUTPUT": str(tmp_path / "variable"), "MEDKIT_JSON": "1", "MEDKIT_SEED": "5"},
    )
    (record,) = toy("run", "pair", source, env=env).records
    assert record["path"] == str(tmp_path / "variable/a_copy.nii.gz")
    assert record["medkit"]["seed"] == 5
    (record,) = toy("run", "pair", source, "-o", tmp_path / "option", "--seed", "6", env=env).records
    assert record["path"] == str(tmp_path / "option/a_copy.nii.gz")
    assert record["medkit"]["seed"] == 6


@pytest.mark.parametrize(("option", "code"), [("--overwrite", 0), ("--skip-existing", 0)])
def test_an_option_outranks_the_variable_of_its_opposite(toy: Run, blob: Make, option: str, code: int) -> None:
    env = (
        {"MEDKIT_OVERWRITE": "1", "MEDKIT_SKIP_EXISTING": ""}
        if option == "--skip-existing"
        else {"MEDKIT_SKIP_EXISTING": "1"}
    )
    assert toy("run", "pair", blob("a.nii.gz"), option, env=env).code == code
    assert toy("run", "pair", blob("a.nii.gz"), env={"MEDKIT_OVERWRITE": "1", "MEDKIT_SKIP_EXISTING": "1"}).code == 2


@pytest.mark.parametrize("command", ["", "RUN_", "RUN_PAIR_"])
@pytest.mark.parametrize("name", ["SHARD", "LIST", "INPUTS"])
def test_options_without_a_variable(toy: Run, blob: Make, tmp_path: Path, command: str, name: str) -> None:
    (tmp_path / "list").write_text("x\n")
    value = {"SHARD": "2/2", "LIST": str(tmp_path / "list"), "INPUTS": "x"}[name]
    done = toy("run", "pair", blob("a.nii.gz"), env={f"MEDKIT_{command}{name}": value})
    assert [p.name for p in done.paths] == ["a_copy.nii.gz"]


@pytest.mark.parametrize("variable", ["MEDKIT_OUTPUT", "MEDKIT_RUN_PAIR_OUTPUT"])
def test_output_as_a_file_has_no_variable(toy: Run, blob: Make, tmp_path: Path, variable: str) -> None:
    done = toy("run", "pair", blob("a.nii.gz"), env={variable: str(tmp_path / "r.nii.gz")})
    assert done.code == (2 if variable == "MEDKIT_OUTPUT" else done.code)
    assert not (tmp_path / "r.nii.gz").exists()


def test_a_device_that_the_task_cannot_use_is_a_usage_error(toy: Run, blob: Make, tmp_path: Path) -> None:
    done = toy("run", "pair", blob("a.nii.gz"), "--device", "cuda:1", "-o", tmp_path / "o")
    assert done.code == 2
    assert "computes on cpu only" in done.err
    assert not (tmp_path / "o").exists()


def test_variables_that_nothing_reads_are_named(toy: Run, blob: Make) -> None:
    env = {"MEDKIT_PROGRES": "0", "MEDKIT_SHARD": "1/2", "MEDKIT_QC": "", "MEDKIT_RUN_PAIR_VALUE": "x"}
    done = toy("run", "pair", blob("a.nii.gz"), env=env)
    assert done.code == 0
    assert "MEDKIT_PROGRES has no effect: no option or setting has this name; did you mean MEDKIT_PROGRESS?" in done.err
    assert "MEDKIT_SHARD has no effect" in done.err
    assert "MEDKIT_QC" not in done.err
    assert "MEDKIT_RUN_PAIR_VALUE" not in done.err


def test_no_variable_of_any_option_is_called_unknown() -> None:
    """Also of options in modules that are imported only with their command."""
    import subprocess
    import sys

    script = (
        "import click\n"
        "from medkit.options import doubtful_variables\n"
        "known = set(doubtful_variables.__globals__['_variables'])\n"
        "from medkit.cli import cli\n"
        "def below(group):\n"
        "    for name in group.list_commands(click.Context(group)):\n"
        "        command = group.get_command(click.Context(group), name)\n"
        "        yield command\n"
        "        yield from below(command) if isinstance(command, click.Group) else ()\n"
        "named = {p.envvar for c in below(cli) for p in c.params if isinstance(p.envvar, str)}\n"
        "print(sorted(named - known))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("text", ["sub,ses", "sub, ses", " sub ,,ses,sub"])
def test_spaces_in_lists_with_commas_are_no_part_of_the_words(text: str) -> None:
    assert words(None, None, text) == ("sub", "ses")  # type: ignore[arg-type]
