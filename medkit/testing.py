"""Contract tests and helpers for the authors of plugins.

A plugin needs three lines to run all tests of the contract with pytest:

    from medkit.testing import PluginContract

    class TestContract(PluginContract):
        distribution = "medkit-threshold"

Importing this module needs neither pytest nor anything heavy.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medkit.bundles.verify import bundle_problems
from medkit.images.phantom import make_image
from medkit.pipe.lines import text_lines
from medkit.pipe.names import sidecar_path
from medkit.pipe.records import read_sidecar, record_from_json, sha256_of
from medkit.plugins import Offer, Plugin, registry

if TYPE_CHECKING:
    import click

__all__ = [
    "GEOMETRIES",
    "HEAVY",
    "Arguments",
    "Geometry",
    "PluginContract",
    "assert_same_grid",
    "options_without_help",
    "pipe_medkit",
    "record_problems",
    "records",
    "run_medkit",
]

HEAVY = ("torch", "monai", "numpy", "nibabel", "itk", "SimpleITK")
"""Packages that importing a plugin must not import, since `medkit --help` imports every plugin."""

Arguments = Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class Geometry:
    """The voxels of a generated image and their place in the body."""

    name: str
    """The file's stem."""
    shape: tuple[int, ...]
    """Voxels along each axis of the file: three, or two for a 2D image."""
    spacing: tuple[float, ...]
    """mm, along the same axes."""
    orientation: str = "RAS"
    """Where each axis of the file points: `LIA` is left, inferior, anterior."""
    oblique_degrees: float = 0.0
    """Rotation of the whole grid, about the world's z and then x axis."""


GEOMETRIES = (
    Geometry("anisotropic", (48, 52, 20), (3.0, 3.0, 7.0)),
    Geometry("oblique", (40, 44, 36), (3.5, 3.5, 4.0), "LPS", 15.0),
    Geometry("flipped", (38, 32, 46), (4.0, 4.5, 3.2), "LIA"),
    Geometry("planar", (64, 72), (2.2, 2.0)),
)
"""The images on which the contract runs every task; all show the same anatomy."""


# ---- helpers


def assert_same_grid(a: Path, b: Path) -> None:
    """Raise AssertionError unless two images have the same shape, axes, affine (to 1e-4 mm) and NIfTI form codes."""
    import numpy as np

    from medkit.images.image import read_grid

    first, second = read_grid(Path(a)), read_grid(Path(b))
    for what in ("shape", "dims"):
        values = getattr(first, what), getattr(second, what)
        assert values[0] == values[1], f"{a} has the {what} {values[0]}, {b} has {values[1]}"
    off = float(np.abs(first.affine - second.affine).max())
    assert off <= 1e-4, f"the affines of {a} and {b} differ by up to {off:g} mm:\n{first.affine}\n{second.affine}"
    if first.header and second.header:
        codes = [[int(h[c]) for c in ("qform_code", "sform_code")] for h in (first.header, second.header)]
        # an image without a form, or with a qform that sheared axes cannot have, gets other codes
        stated = max(codes[0]) > 0 and not (first.is_sheared and codes[0][0] > 0)
        assert not stated or codes[0] == codes[1], f"{a} has the qform and sform codes {codes[0]}, {b} has {codes[1]}"


def run_medkit(
    arguments: Arguments, stdin: str | None = None, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `medkit` in a new process, with `stdin` piped in; `env` adds variables.

    MEDKIT_* variables of this process do not reach it.
    """
    command = [sys.executable, "-m", "medkit", *map(str, arguments)]
    return _process(command, input=stdin or "", cwd=cwd, env=_environment(env or {}))


def pipe_medkit(paths: Iterable[Path], arguments: Arguments) -> subprocess.CompletedProcess[str]:
    """Run `printf ... | medkit ... | cat` in `bash -o pipefail`; exit code and stdout are those of medkit."""
    medkit = shlex.join([sys.executable, "-m", "medkit", *map(str, arguments)])
    script = f"""printf '%s\\n' "$@" | {medkit} | cat"""
    command = ["bash", "-o", "pipefail", "-c", script, "bash", *map(str, paths)]
    return _process(command, env=_environment({}))


def _process(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


def _environment(added: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("MEDKIT_")} | dict(added)


def records(stdout: str) -> list[dict[str, Any]]:
    """Return the records that `--json` printed. Raises ValueError for a line that is not valid JSON."""
    return [json.loads(line) for line in text_lines(stdout)]


# ---- what the contract asks of records and options


def record_problems(record: Mapping[str, Any], task: str) -> Iterator[str]:
    """Yield, in sentences, what is wrong or missing in the record of a case that should have gone well."""
    parsed = record_from_json(record)
    block = parsed.medkit
    if (block.get("status"), block.get("task")) != ("ok", task):
        came = f"{block.get('status')} of {block.get('task')}"
        yield f"expected status ok of task {task}, got {came}: {block.get('error')}"
        return
    if not any(g.get("Name") == "medkit" for g in parsed.generated_by):
        yield f"GeneratedBy does not name medkit: {list(parsed.generated_by)}"
    outputs = {role: Path(entry["path"]) for role, entry in block["outputs"].items()}
    if parsed.path not in outputs.values():
        yield f"{parsed.path} is not among its outputs {list(outputs.values())}"
    for role, path in outputs.items():
        if not path.is_file():
            yield f"output {role}: {path} does not exist"
        elif sha256_of(path) != block["outputs"][role]["sha256"]:
            yield f"output {role}: {path} does not have the sha256 that the record states"
    sidecar = read_sidecar(sidecar_path(parsed.path))
    if sidecar is None or sidecar.to_json() != parsed.to_json():
        yield f"the sidecar of {parsed.path} is not the record"


def options_without_help(command: click.Command) -> list[str]:
    """Return the options of a click command, and of the commands of a group, that have no text in `--help`."""
    options = [p for p in command.params if p.param_type_name == "option" and not getattr(p, "hidden", False)]
    bare = [p.opts[0] for p in options if not getattr(p, "help", None)]
    for name, sub in getattr(command, "commands", {}).items():
        bare += [f"{name} {option}" for option in options_without_help(sub)]
    return bare


# ---- the contract


@dataclass(frozen=True)
class _Runs:
    """The results of two runs of a task, which all tests of the task look at."""

    inputs: list[Path]
    """One image per geometry."""
    first: subprocess.CompletedProcess[str]
    """The run over `inputs`, printing paths."""
    added: list[Path]
    """A truncated image, and a good one after it."""
    again: subprocess.CompletedProcess[str]
    """The run over `inputs` and `added` with `--json --skip-existing`."""

    def record_of(self, source: Path) -> dict[str, Any]:
        """Return the record that the second run printed for an input."""
        for record in records(self.again.stdout):
            if str(source) in (record["path"], *record.get("Sources", [])[:1]):
                return record
        raise AssertionError(f"no record for {source}\n{self.again.stdout}\n{self.again.stderr}")


_RUNS: dict[tuple[type, str], _Runs] = {}


class PluginContract:
    """The tests that every plugin should pass; subclass it as `TestContract` and name the distribution."""

    distribution: str = ""
    """The installed distribution, such as `medkit-threshold`."""
    plugin: str = ""
    """One of its entry points, if it has several; empty: all of them."""
    tasks: Sequence[str] = ()
    """The tasks to run; empty: all that it offers."""
    dims: Sequence[int] = (3,)
    """The images its tasks take: 3 for volumes, 2 for planar images."""
    grid: Literal["input", "reference", "free"] = "input"
    """The grid of a task's output: that of its input, that of the sidecar's SpatialReference (for tasks such as
    registration), or any, for tasks whose purpose is to change the grid."""
    arity: Literal["each", "all"] = "each"
    """As the task declares: whether every line is a case, or all lines are one."""

    def arguments(self, task: str, folder: Path) -> Arguments:
        """Return arguments that a task needs, such as `--fixed FILE`; files for them go into `folder`."""
        return ()

    def make_input(self, task: str, folder: Path, geometry: Geometry) -> Path:
        """Write an input for a task and return its path; override it for tasks that need labels or other images."""
        path = folder / f"{geometry.name}.nii.gz"
        return make_image(path, geometry.shape, geometry.spacing, geometry.orientation, geometry.oblique_degrees)

    # ---- machinery

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make pytest run each test of a task once per task."""
        if "task" in metafunc.fixturenames:
            metafunc.parametrize("task", self.tasks or [o.spec.name for o in self._offers("tasks")])

    def _plugins(self) -> list[Plugin]:
        own = _normal(self.distribution)
        return [p for p in registry().plugins if _normal(p.distribution) == own and self.plugin in ("", p.name)]

    def _offers(self, *kinds: str) -> list[Offer]:
        return [Offer(spec, plugin) for plugin in self._plugins() for kind in kinds for spec in getattr(plugin, kind)]

    def _runs(self, task: str, folders: Any) -> _Runs:
        key = (type(self), task)
        if key not in _RUNS:
            _RUNS[key] = self._run(task, folders.mktemp(task))
        return _RUNS[key]

    def _run(self, task: str, folder: Path) -> _Runs:
        chosen = [g for g in GEOMETRIES if len(g.shape) in self.dims]
        inputs = [self.make_input(task, folder, g) for g in chosen]
        command = ["run", task, *self.arguments(task, folder), "-o", folder / "out"]
        first = pipe_medkit(inputs, command)
        added = []
        if self.arity == "each":
            added = [self.make_input(task, folder, replace(chosen[0], name=name)) for name in ("broken", "fresh")]
            added[0].write_bytes(added[0].read_bytes()[: added[0].stat().st_size // 2])
        again = pipe_medkit([*inputs, *added], [*command, "--json", "--skip-existing"])
        return _Runs(inputs, first, added, again)

    # ---- tests of the plugin

    def test_is_installed_whole(self) -> None:
        """Its distribution is found, nothing about it is broken, and no other plugin takes its names."""
        found = self._plugins()
        names = [p.distribution for p in registry().plugins]
        assert found, f"no plugin {self.plugin} of {self.distribution!r} is installed; installed: {names}"
        for plugin in found:
            assert plugin.error is None, f"{plugin.name}: {plugin.error}\n{plugin.traceback}"
            assert plugin.tasks or plugin.commands or plugin.bundles, f"{plugin.name} offers nothing"
        clashes = [c for c in registry().conflicts() if any(p.distribution in c for p in found)]
        assert not clashes, clashes

    def test_import_is_light(self, record_property: Any) -> None:
        """Importing it and asking its hooks imports nothing heavy; the milliseconds go into the test report."""
        script = (
            "import json, sys; from medkit.plugins import registry; "
            "ms = {p.name: p.import_ms for p in registry().plugins}; "
            f"print(json.dumps([ms, [m for m in {HEAVY!r} if m in sys.modules]]))"
        )
        chosen = _environment({"MEDKIT_PLUGINS": ",".join(p.name for p in self._plugins())})
        done = _process([sys.executable, "-c", script], env=chosen)
        assert done.returncode == 0, done.stderr
        milliseconds, heavy = json.loads(done.stdout)
        record_property("import_ms", milliseconds)
        assert not heavy, f"importing the plugin imports {heavy}: move that into the functions that need it"

    def test_targets_load(self) -> None:
        """The targets of its specs can be imported and are click commands."""
        import click

        for offer in self._offers("tasks", "commands"):
            assert isinstance(offer.load(), click.Command), f"{offer.spec.target} is not a click command"

    def test_help_is_whole(self) -> None:
        """`--help` works for every task and command, and has a text for every option."""
        for kind, words in (("tasks", ["run"]), ("commands", [])):
            for offer in self._offers(kind):
                done = run_medkit([*words, offer.spec.name, "--help"])
                assert done.returncode == 0, done.stderr
                assert offer.spec.help, f"{offer.spec.name}: its spec has no help"
                bare = options_without_help(offer.load())
                assert not bare, f"{offer.spec.name}: options without help: {bare}"

    def test_bundles_are_whole(self) -> None:
        """Its bundles have a licence, complete metadata, configs that parse, and no path of one machine."""
        bundles = [b for plugin in self._plugins() for b in plugin.bundles]
        problems = [problem for b in bundles for problem in bundle_problems(b.root)]
        assert not problems, "\n".join(problems)

    # ---- tests of each task

    def test_prints_only_paths(self, task: str, tmp_path_factory: Any) -> None:
        """In a shell pipe it exits with 0 and prints only one absolute path of an existing file per case."""
        runs = self._runs(task, tmp_path_factory)
        assert runs.first.returncode == 0, runs.first.stderr
        lines = text_lines(runs.first.stdout)
        wrong = [line for line in lines if not (os.path.isabs(line) and Path(line).is_file())]  # noqa: PTH117
        assert not wrong, f"lines on stdout that are not paths of results: {wrong}"
        expected = len(runs.inputs) if self.arity == "each" else 1
        assert len(lines) == expected, f"{expected} lines expected, got {lines}"

    def test_records_are_whole(self, task: str, tmp_path_factory: Any) -> None:
        """`--json` prints a record per case: its outputs exist with their digests, and it equals the sidecar."""
        runs = self._runs(task, tmp_path_factory)
        found = [r for r in records(runs.again.stdout) if r["medkit"].get("status") != "failed"]
        assert found, runs.again.stderr
        problems = [problem for record in found for problem in record_problems(_as_made(record), task)]
        assert not problems, "\n".join(problems)

    def test_lies_on_its_grid(self, task: str, tmp_path_factory: Any) -> None:
        """An image or label output lies on the grid that `grid` names."""
        runs = self._runs(task, tmp_path_factory)
        for source in runs.inputs[: None if self.arity == "each" else 1]:
            record = runs.record_of(source)
            if self.grid != "free" and record["kind"] in ("image", "labels", "mask"):
                reference = source if self.grid == "input" else Path(record["SpatialReference"])
                assert_same_grid(Path(record["path"]), reference)

    def test_skips_what_exists(self, task: str, tmp_path_factory: Any) -> None:
        """`--skip-existing` makes nothing again: results and settings are the same from run to run."""
        runs = self._runs(task, tmp_path_factory)
        for source in runs.inputs[: None if self.arity == "each" else 1]:
            record = runs.record_of(source)
            assert record["medkit"].get("skipped") is True, f"{source} was worked on again: {record}"

    def test_broken_input_fails_alone(self, task: str, tmp_path_factory: Any) -> None:
        """A truncated image among good ones fails with a reason and exit code 1; the good one after it is worked on."""
        if self.arity == "all":
            import pytest

            pytest.skip("all lines are one case")
        runs = self._runs(task, tmp_path_factory)
        broken, fresh = (runs.record_of(path)["medkit"] for path in runs.added)
        assert runs.again.returncode == 1, f"exit {runs.again.returncode}\n{runs.again.stderr}"
        assert broken["status"] == "failed", broken
        assert broken["error"], "the record of the broken input has no reason"
        assert "Traceback" not in runs.again.stderr, runs.again.stderr
        assert fresh["status"] == "ok", runs.again.stderr
        assert not fresh["skipped"], "the good image after the broken one was not worked on"


def _normal(name: str) -> str:
    """Return a distribution's name in the form in which PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _as_made(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record as it was when the case was made, which is what the sidecar holds."""
    return {**record, "medkit": {**record["medkit"], "skipped": False}}
