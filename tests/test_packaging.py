"""medkit as users install it: wheels, a fresh environment, and a stranger's plugin that comes, breaks and goes.

Everything works without a network. The fresh environment finds torch and the like in the running one's site-packages,
by a .pth file; medkit itself and the plugins are installed into it from wheels.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from places import HELPERS, REPOSITORY

from medkit.images.phantom import make_image
from medkit.testing import records

pytestmark = pytest.mark.slow

STRANGER = HELPERS / "stranger"


def variables(**added: str) -> dict[str, str]:
    """The environment without what would let a process see the checkout."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("MEDKIT_", "PYTHON", "VIRTUAL_ENV"))} | added


def run(*command: object, cwd: Path, **added: str) -> str:
    """stdout of a command that must go well."""
    done = subprocess.run([*map(str, command)], cwd=cwd, env=variables(**added), capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copied(source: Path, target: Path) -> Path:
    """A copy of a source tree without what no package holds, so that building leaves the tree as it is."""
    junk = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")

    def unpackaged(folder: str, names: list[str]) -> set[str]:
        tests = {"tests"} if Path(folder) == source else set()
        return junk(folder, names) | tests

    return shutil.copytree(source, target, symlinks=True, ignore=unpackaged)


def pip(*arguments: object, cwd: Path) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd)


def build_wheel(source: Path, folder: Path) -> Path:
    """The wheel of a source tree."""
    copy = copied(source, folder / "source")
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, copy, cwd=folder)
    return next(folder.glob("*.whl"))


def contents(wheel: Path) -> dict[str, str]:
    """File name -> sha256."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


@dataclass(frozen=True)
class World:
    """A fresh environment with medkit in it."""

    root: Path
    """Its folder, outside the checkout."""

    @property
    def python(self) -> Path:
        return self.root / "venv" / "bin" / "python"

    @property
    def site(self) -> Path:
        return next((self.root / "venv" / "lib").glob("python*/site-packages"))

    def pip(self, *arguments: object) -> str:
        return pip("--python", self.python, *arguments, cwd=self.root)

    def install(self, wheel: Path) -> None:
        self.pip("install", "--no-deps", "--no-index", wheel)

    def medkit(self, *arguments: object, **added: str) -> subprocess.CompletedProcess[str]:
        command = [self.python.with_name("medkit"), *arguments]
        return subprocess.run(
            [*map(str, command)], cwd=self.root, env=variables(**added), capture_output=True, text=True
        )

    def plugins(self, **added: str) -> Mapping[str, Any]:
        """What `medkit plugins --json` says, by plugin name; of two of one name the later."""
        done = self.medkit("plugins", "--json", **added)
        assert done.returncode == 0, done.stderr
        return {p["distribution"]: p for p in json.loads(done.stdout)["plugins"]}

    def bash(self, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """A script under `bash -o pipefail`, with this environment's `medkit` first on the PATH."""
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        command = ["bash", "-o", "pipefail", "-c", script, "bash", *map(str, arguments)]
        return subprocess.run(command, cwd=self.root, env=variables(PATH=path), capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """medkit's own wheel."""
    return build_wheel(REPOSITORY, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def world(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("world"))
    venv.create(world.root / "venv", with_pip=False, symlinks=True)
    world.install(wheel)
    world.install(build_wheel(STRANGER, tmp_path_factory.mktemp("stranger")))
    # after the installs: pip would take the running environment's medkit for its own
    found = [p for p in map(Path, sys.path) if p.name in ("site-packages", "dist-packages") and p.is_dir()]
    (world.site / "running.pth").write_text("".join(f"{p}\n" for p in found))
    return world


@pytest.fixture
def package(world: World) -> Iterator[Path]:
    """The stranger's installed package, to be broken: it is whole again afterwards."""
    package = world.site / "medkit_stranger"
    whole = shutil.copytree(package, world.root / "whole")
    yield package
    shutil.rmtree(package)
    whole.rename(package)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return make_image(tmp_path / "scan.nii.gz", (30, 34, 12), (4, 4, 9), "LPS", 10)


def files(folder: Path) -> list[Path]:
    """All files below a folder; a plugin's bundles are links, which are followed."""
    found = [Path(top, name) for top, _, names in os.walk(folder, followlinks=True) for name in names]
    return [path for path in found if "__pycache__" not in path.parts]


def test_the_wheel_carries_all_code_and_data_and_nothing_else(wheel: Path) -> None:
    found = set(contents(wheel))
    roots = [REPOSITORY / "medkit", *sorted((REPOSITORY / "plugins").glob("medkit_*"))]
    names = {str(path.relative_to(root.parent)) for root in roots for path in files(root)}
    data = {name for name in names if "/bundles/" in name or name.endswith((".py", ".tmpl", "py.typed"))}
    assert not data - found
    stray = {name for name in found - names if ".dist-info/" not in name}
    assert not stray


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    source = copied(REPOSITORY, tmp_path / "source")
    script = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", script, tmp_path, cwd=source)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = tmp_path / "again"
    again.mkdir()
    assert contents(build_wheel(unpacked, again)) == contents(wheel)


def test_the_installed_medkit_is_the_one_under_test(world: World) -> None:
    script = "import medkit, medkit_register; print(medkit.__file__, medkit_register.__file__)"
    for path in run(world.python, "-c", script, cwd=world.root).split():
        assert Path(path).is_relative_to(world.root)


def test_the_stranger_is_listed(world: World) -> None:
    stranger = world.plugins()["medkit-stranger"]
    assert (stranger["name"], stranger["version"], stranger["error"]) == ("stranger", "2.0", None)
    assert [t["name"] for t in stranger["tasks"]] == ["stretch"]
    (bundle,) = stranger["bundles"]
    assert (bundle["name"], bundle["modality"]) == ("any_stretch", "MR")
    assert (Path(bundle["root"]) / "configs" / "metadata.json").is_file()
    assert "Stretch the intensities" in world.medkit("run", "--help").stdout
    assert world.medkit("greet").stdout == "hello from a stranger\n"


def test_the_stranger_runs_in_a_pipe_with_others(world: World, scan: Path, tmp_path: Path) -> None:
    other = make_image(tmp_path / "other.nii.gz", (20, 22, 24), (5, 5, 5), seed=1)
    script = """
    set -e
    printf '%s\\n' "$1" "$2" | medkit run stretch -o "$3" | medkit transform apply --reference "$1" -o "$4" --json |
        python -c 'import json, sys; [print(json.loads(line)["path"]) for line in sys.stdin]'
    """
    done = world.bash(script, scan, other, tmp_path / "a", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    names = [f"{stem}_stretched_transformed.nii.gz" for stem in ("scan", "other")]
    assert done.stdout.splitlines() == [str(tmp_path / "b" / name) for name in names]
    assert "a library that prints to stdout" in done.stderr
    sidecar = json.loads((tmp_path / "a" / "scan_stretched.json").read_text())
    assert {"Name": "medkit-stranger", "Version": "2.0"} in sidecar["GeneratedBy"]
    shown = world.medkit("show", tmp_path / "b" / names[0]).stdout
    assert "medkit-stranger 2.0" in shown


HOOK = "from pathlib import Path\nfrom medkit import hookimpl\nfrom medkit.specs import *\n\n@hookimpl\ndef "
BROKEN = {
    "raises": ("raise RuntimeError('no licence server')", "no licence server"),
    "lacks a library": ("import no_such_library", "no_such_library"),
    "has a syntax error": ("def", "SyntaxError"),
    "exits": ("import sys; sys.exit('I want to be alone')", "I want to be alone"),
    "misspelt hook": (HOOK + "medkit_task():\n    return []", "medkit_task"),
    "no hook": ("", "no hook"),
    "unknown argument": (HOOK + "medkit_tasks(config):\n    return []", "config"),
    "another API": ("HOOK_API = 99", "99"),
    "a number": (HOOK + "medkit_tasks():\n    return 7", "medkit_tasks"),
    "one spec": (HOOK + "medkit_tasks():\n    return TaskSpec('a', 'b', 'c:d')", "medkit_tasks"),
    "words": (HOOK + "medkit_tasks():\n    return ['stretch']", "stretch"),
    "another kind of spec": (HOOK + "medkit_tasks():\n    return [CommandSpec('a', 'b', 'c:d')]", "TaskSpec"),
    "no name": (HOOK + "medkit_tasks():\n    return [TaskSpec(None, 'b', 'c:d')]", "name"),
    "an option as name": (HOOK + "medkit_tasks():\n    return [TaskSpec('--help', 'b', 'c:d')]", "name"),
    "no help": (HOOK + "medkit_tasks():\n    return [TaskSpec('a', 5, 'c:d')]", "help"),
    "no target": (HOOK + "medkit_tasks():\n    return [TaskSpec('a', 'b', None)]", "target"),
    "a bundle that is a string": (HOOK + "medkit_bundles():\n    return [BundleSpec('a', 'b', 'c')]", "root"),
    "one name twice": (HOOK + "medkit_tasks():\n    return [TaskSpec('a', 'b', 'c:d')] * 2", "several TaskSpec"),
    "unknown kinds": (HOOK + "medkit_bundles():\n    return [BundleSpec('a', 'b', Path('c'), ('ct',))]", "kinds"),
    "raising hook": (HOOK + "medkit_tasks():\n    return 1 / 0", "ZeroDivisionError"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_stranger_harms_nobody(world: World, package: Path, how: str) -> None:
    source, told = BROKEN[how]
    (package / "__init__.py").write_text(source + "\n")
    for arguments in (["--help"], ["run", "--help"], ["run", "register", "--help"], ["plugins"]):
        done = world.medkit(*arguments)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    found = world.plugins()
    assert told in found["medkit-stranger"]["error"]
    assert found["medkit"]["error"] is None
    assert "BROKEN" in world.medkit("plugins").stdout
    done = world.medkit("run", "stranger")
    assert (done.returncode, done.stdout) == (5, "")
    assert "medkit-stranger" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_task_of_a_broken_stranger_says_why_it_is_gone(world: World, package: Path, scan: Path) -> None:
    (package / "__init__.py").write_text("raise RuntimeError('no licence server')\n")
    done = world.medkit("run", "stretch", scan)
    assert done.returncode == 5
    assert "medkit-stranger" in done.stderr


def test_the_traceback_is_there_for_who_asks(world: World, package: Path) -> None:
    (package / "__init__.py").write_text("raise RuntimeError('no licence server')\n")
    assert "Traceback" in world.medkit("plugins", "--verbose").stdout


@pytest.mark.parametrize("code", ["print('hello')", "import os; os.system('echo hello')"])
def test_a_stranger_that_prints_on_import_spoils_no_pipe(world: World, package: Path, scan: Path, code: str) -> None:
    for name in ("__init__.py", "command.py"):
        text = (package / name).read_text()
        (package / name).write_text(f"{text}\n{code}\n")
    assert world.plugins()["medkit-stranger"]["error"] is None
    done = world.medkit("run", "stretch", scan, "--json")
    assert [r["medkit"]["status"] for r in records(done.stdout)] == ["ok"]
    assert "hello" in done.stderr


@pytest.mark.parametrize(
    "target",
    ["no_such_module:command", "medkit_stranger.command:no_such_thing", "medkit_stranger.command:work", "nonsense", ""],
)
def test_a_target_that_is_missing_or_no_command_ends_with_5(world: World, package: Path, target: str) -> None:
    init = package / "__init__.py"
    init.write_text(init.read_text().replace("medkit_stranger.command:stretch", target))
    assert world.medkit("run", "register", "--help").returncode == 0
    assert world.medkit("run", "--help").returncode == 0
    done = world.medkit("run", "stretch", "--help")
    assert done.returncode == 5
    assert "medkit-stranger" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="class")
def twin(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Another distribution that offers the same task, command and bundle."""
    folder = tmp_path_factory.mktemp("twin")
    copy = copied(STRANGER, folder / "copy")
    for path in [copy / "pyproject.toml", *copy.rglob("*.py")]:
        path.write_text(path.read_text().replace("stranger", "twin"))
    (copy / "src" / "medkit_stranger").rename(copy / "src" / "medkit_twin")
    world.install(build_wheel(copy, folder))
    yield
    world.pip("uninstall", "--yes", "medkit-twin")


@pytest.mark.usefixtures("twin")
class TestShadowed:
    def test_neither_task_runs_and_both_are_named(self, world: World, scan: Path) -> None:
        for arguments in (["run", "stretch", scan], ["greet"]):
            done = world.medkit(*arguments)
            assert (done.returncode, done.stdout) == (5, "")
            assert "medkit-stranger" in done.stderr
            assert "medkit-twin" in done.stderr

    def test_the_rest_works_and_the_conflict_is_shown(self, world: World) -> None:
        assert world.medkit("run", "register", "--help").returncode == 0
        assert "medkit-twin" in world.medkit("run", "--help").stdout
        conflicts = json.loads(world.medkit("plugins", "--json").stdout)["conflicts"]
        assert len([c for c in conflicts if "medkit-stranger" in c and "medkit-twin" in c]) == 2

    def test_one_of_them_can_be_chosen(self, world: World, scan: Path) -> None:
        done = world.medkit("run", "stretch", scan, MEDKIT_PLUGINS="medkit-twin")
        assert done.returncode == 0, done.stderr
        assert "medkit-twin" in Path(done.stdout.strip()).with_name("scan_stretched.json").read_text()

    def test_bundles_of_one_name_are_told_apart_by_their_distribution(self, world: World) -> None:
        found = world.plugins()
        roots = {found[name]["bundles"][0]["root"] for name in ("medkit-stranger", "medkit-twin")}
        assert len(roots) == 2


def test_plugins_can_be_restricted(world: World, scan: Path) -> None:
    assert set(world.plugins(MEDKIT_PLUGINS="register")) == {"medkit"}
    assert world.medkit("run", "stretch", scan, MEDKIT_PLUGINS="register").returncode == 2
    assert set(world.plugins(MEDKIT_PLUGINS="stranger, register")) == {"medkit", "medkit-stranger"}
    assert not world.plugins(MEDKIT_PLUGINS="")
    assert world.medkit("--help", MEDKIT_PLUGINS="").returncode == 0
    done = world.medkit("plugins", MEDKIT_PLUGINS="no-such-plugin")
    assert done.returncode == 2
    assert "no-such-plugin" in done.stderr


def test_a_new_plugin_installs_and_passes_its_tests_without_a_network(world: World, tmp_path: Path) -> None:
    folder = Path(world.medkit("plugins", "new", "glow", "-o", tmp_path / "glow").stdout.strip())
    world.pip("install", "--no-index", "--no-build-isolation", "-e", f"{folder}[test]")
    try:
        run(world.python, "-m", "pytest", "-q", "-W", "error", cwd=folder)
        assert world.plugins()["medkit-glow"]["bundles"][0]["name"] == "smooth_glow"
        assert world.medkit("plugins", "new", "glow", "-o", tmp_path / "x").returncode == 2
    finally:
        world.pip("uninstall", "--yes", "medkit-glow")


def test_uninstalled_it_is_gone(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    world.pip("uninstall", "--yes", "medkit-stranger")
    try:
        assert "medkit-stranger" not in world.plugins()
        assert world.medkit("run", "stretch").returncode == 2
        assert world.medkit("run", "register", "--help").returncode == 0
        assert not (world.site / "medkit_stranger").exists()
    finally:
        world.install(build_wheel(STRANGER, tmp_path_factory.mktemp("back")))
