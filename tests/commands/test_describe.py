"""`medkit describe`: Boutiques descriptors of tasks."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from outcome import Outcome
from places import REPOSITORY

from medkit.cli import run
from medkit.commands.describe import EXIT_CODES, descriptor
from medkit.plugins import registry

Run = Callable[..., Outcome]
OWN = sorted({spec.name for plugin in registry().plugins if plugin.distribution == "medkit" for spec in plugin.tasks})


@pytest.fixture(scope="module")
def boutiques() -> Path:
    """The folder of the package boutiques, which has the schema and a program that reads descriptors."""
    found = importlib.util.find_spec("boutiques")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package boutiques is not installed")
    return Path(found.submodule_search_locations[0])


def by_id(described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in described["inputs"]}


@pytest.mark.parametrize("task", [*OWN, "bundle"])
def test_the_schema(boutiques: Path, task: str) -> None:
    import jsonschema

    schema = json.loads((boutiques / "schema" / "descriptor.schema.json").read_text())
    jsonschema.validate(descriptor(task, "medkit:1"), schema)


@pytest.mark.parametrize("task", [*OWN, "bundle"])
def test_each_value_has_one_place_in_the_command(task: str) -> None:
    described = descriptor(task)
    keys = [entry["value-key"] for entry in described["inputs"]]
    assert len(set(keys)) == len(keys)
    assert sorted(keys) == sorted(re.findall(r"\[\w+\]", described["command-line"]))
    assert all(re.fullmatch(r"\w+", name) for name in by_id(described))
    assert "[OUTPUT]" in described["output-files"][0]["path-template"]


@pytest.mark.parametrize("task", [*OWN, "bundle"])
def test_every_option_is_there(task: str) -> None:
    command = run.get_command(click.Context(run), task)
    assert command is not None
    known = {option.name for option in command.params if option.name not in ("list", "help")}
    assert set(by_id(descriptor(task))) == known


def test_kinds_of_values() -> None:
    found = by_id(descriptor("register"))
    assert (found["fixed"]["type"], found["fixed"]["optional"]) == ("File", False)
    assert found["kind"]["command-line-flag"] == "--type"
    assert found["kind"]["value-choices"] == ["rigid", "affine", "deformable", "joint"]
    assert found["overwrite"] | {"description": ""} == {
        **{"id": "overwrite", "name": "Overwrite", "type": "Flag", "description": "", "optional": True},
        **{"value-key": "[OVERWRITE]", "command-line-flag": "--overwrite"},
    }
    assert (found["threads"]["type"], found["threads"]["integer"], found["threads"]["minimum"]) == ("Number", True, 1)
    assert found["timeout_per_case"]["exclusive-minimum"]
    assert found["qc"]["type"] == "String"  # a folder that need not be there yet
    assert "default-value" not in found["kind"]
    refine = by_id(descriptor("segment"))["refine"]
    assert refine["value-choices"] == ["--refine", "--no-refine"]
    assert "command-line-flag" not in refine


def test_the_command_that_boutiques_makes(boutiques: Path, tmp_path: Path) -> None:
    """Boutiques' own program fills in the values, and the task reads them as they were meant."""
    (tmp_path / "a.nii.gz").touch()
    values = {
        **{"inputs": ["a.nii.gz"], "output": "out", "refine": "--no-refine", "threads": 2, "overwrite": True},
        **{"method": "grow", "seeds": "a.nii.gz"},
    }
    (tmp_path / "invocation.json").write_text(json.dumps(values))
    (tmp_path / "segment.json").write_text(json.dumps(descriptor("segment")))
    program = "import sys; from boutiques.bosh import bosh; print(bosh(sys.argv[1:]))"
    words = ["exec", "simulate", "segment.json", "-i", "invocation.json"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "medkit run segment" in line)
    words = shlex.split(line[line.index("medkit run segment") :])[3:]
    command = run.get_command(click.Context(run), "segment")
    assert command is not None
    ctx = command.make_context("segment", words, resilient_parsing=True)
    assert ctx.params["inputs"] == ("a.nii.gz",)
    given = {name: ctx.params[name] for name in ("refine", "threads", "overwrite", "method")}
    assert given == {"refine": False, "threads": 2, "overwrite": True, "method": "grow"}


def test_options_given_several_times() -> None:
    separators = {
        e["command-line-flag"]: e["list-separator"] for e in descriptor("bundle")["inputs"] if "list-separator" in e
    }
    assert separators == {"--set": " --set "}


def test_the_command(medkit: Run) -> None:
    done = medkit("describe", "--boutiques", "segment", "--image", "medkit:1")
    assert done.code == 0
    described = json.loads(done.out)
    assert described["container-image"] == {"type": "docker", "image": "medkit:1"}
    assert described["tool-version"]
    assert "container-image" not in descriptor("segment")


def test_plugins_of_others_have_their_own_version(toy: Run) -> None:
    assert json.loads(toy("describe", "--boutiques", "double").out)["tool-version"] == "1.5"


def test_what_is_refused(toy: Run) -> None:
    assert toy("describe", "double").code == 2
    done = toy("describe", "--boutiques", "duoble")
    assert (done.code, "Did you mean" in done.err) == (2, True)


def test_the_exit_codes_are_those_of_the_documentation() -> None:
    page = (REPOSITORY / "docs" / "options.md").read_text()
    documented = {int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert set(EXIT_CODES) == documented - {0, 130}
