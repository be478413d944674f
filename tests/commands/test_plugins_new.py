"""`medkit plugins new`: what it writes works as it is, and names that would not work are refused."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY

from medkit.bundles.verify import bundle_problems
from medkit.commands.plugins_new import TEMPLATE, refuse_taken, words_for
from medkit.errors import UsageError
from medkit.plugins import Plugin, Registry
from medkit.specs import TaskSpec
from medkit.testing import run_medkit


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin written with a task of another name, so that no name is right by chance."""
    folder = tmp_path_factory.mktemp("new")
    done = run_medkit(["plugins", "new", "bright-things", "--task", "brighten"], cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(folder / "medkit-bright-things")]
    return folder / "medkit-bright-things"


def installed(package: Path, site: Path) -> dict[str, str]:
    """The variables with which Python finds `package` as if it were installed; the environment stays as it is."""
    script = "import sys; from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, site], cwd=package, check=True, capture_output=True)
    paths = [package / "src", site, REPOSITORY, REPOSITORY / "plugins", os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def test_it_passes_its_own_tests(package: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=package, env=installed(package, tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout, done.stdout


MISTAKES = {
    # name: (file, text, what takes its place, the only test of the contract that notices)
    "heavy import": (
        "__init__.py",
        "from pathlib import Path",
        "import numpy\nfrom pathlib import Path",
        "import_is_light",
    ),
    "missing target": ("__init__.py", ".command:command", ".command:no_such", "targets_load"),
    "misspelt hook": ("__init__.py", "def medkit_tasks", "def medkit_task", "is_installed_whole"),
    "option without help": ("command.py", ", help=", ", metavar=", "help_is_whole"),
    "settings that never repeat": ("command.py", '{"level": level}', '{"level": id(object())}', "skips_what_exists"),
    "another grid": ("work.py", "image.with_data(mask)", "shifted(image, mask)", "lies_on_its_grid"),
    "ends the process": (
        "work.py",
        "    image = case",
        "    raise SystemExit('no')\n    image = case",
        "prints_only_paths",
    ),
    "absolute path": ("bundles/smooth_brighten/configs/inference.json", '"."', '"/home/me/b"', "bundles_are_whole"),
}
SHIFTED = """

def shifted(image, mask):
    from medkit.space import Grid

    affine = image.grid.affine.copy()
    affine[0, 3] += 1
    return image.with_data(mask, Grid(image.grid.shape, affine, image.grid.dims))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_contract_notices(package: Path, tmp_path: Path, mistake: str) -> None:
    copy = shutil.copytree(package, tmp_path / "copy")
    name, text, instead, noticed = MISTAKES[mistake]
    path = copy / "src" / "medkit_bright_things" / name
    assert text in path.read_text()
    path.write_text(path.read_text().replace(text, instead) + (SHIFTED if "shifted" in instead else ""))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_contract.py"]
    done = subprocess.run(command, cwd=copy, env=installed(copy, tmp_path), capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"FAILED tests/test_contract.py::TestContract::test_{noticed}" in done.stdout, done.stdout


def test_nothing_of_the_template_is_left(package: Path) -> None:
    files = [p for p in package.rglob("*") if p.is_file() and "egg-info" not in str(p)]
    assert len(files) == len(list(TEMPLATE.rglob("*.tmpl"))) + 1  # the bundle's licence
    for path in files:
        assert ".tmpl" not in path.name
        if "__" in path.name:
            assert path.name == "__init__.py"
        assert "{{" not in path.read_text(), path
        if path.suffix in (".py", ".toml"):
            assert "threshold" not in path.read_text().replace("A threshold selection", ""), path


def test_its_code_is_as_tidy_as_ours(package: Path) -> None:
    rules = ["--isolated", "--line-length", "120"]
    for command in (["check", "--select", "E,F,W,I,B,UP,SIM,PT"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, *rules, "."], cwd=package, capture_output=True)
        assert done.returncode == 0, done.stdout


def test_its_source_is_about_sixty_lines_of_code(package: Path) -> None:
    sources = [path.read_text() for path in (package / "src").rglob("*.py")]
    assert sum(_statement_lines(source) for source in sources) <= 65


def _statement_lines(source: str) -> int:
    """Lines that are neither blank nor comment nor docstring."""
    tree = ast.parse(source)
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    docs = sum((n.end_lineno or 0) - n.lineno + 1 for n in texts)
    lines = [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
    blank_in_docs = sum(str(n.value.value).count("\n\n") for n in texts if isinstance(n.value, ast.Constant))
    return len(lines) - docs + blank_in_docs


# MONAI looks for a codec of NVIDIA's wherever pydicom is installed
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")
def test_its_bundle_is_one_that_monai_takes(package: Path) -> None:
    from monai.bundle import ConfigParser
    from monai.bundle.scripts import verify_net_in_out

    (root,) = (package / "src" / "medkit_bright_things" / "bundles").iterdir()
    assert list(bundle_problems(root)) == []
    assert (root / "LICENSE").read_text() == (package / "LICENSE").read_text()
    configs = root / "configs"
    parser = ConfigParser()
    parser.read_config(configs / "inference.json")
    for part in ("network_def", "preprocessing", "inferer", "postprocessing", "dataset"):
        assert parser.get_parsed_content(part) is not None
    verify_net_in_out("network_def", str(configs / "metadata.json"), str(configs / "inference.json"), device="cpu")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["Bright"], "such as 'bright'"),
        (["two words"], "such as 'two-words'"),
        (["a_b"], "such as 'a-b'"),
        (["../x"], "lower-case letters"),
        (["7"], "with a letter first"),
        (["medkit-x"], "leave out medkit-"),
        (["fine", "--task", "No"], "such as 'no'"),
        (["register"], "plugin register of medkit"),
        (["fine", "--task", "register"], "plugin register of medkit"),
    ],
)
def test_a_bad_name_is_refused_with_a_reason(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = run_medkit(["plugins", "new", *arguments], cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_names_of_a_broken_plugin_are_taken_too() -> None:
    broken = Plugin("glow", "medkit_shine", "medkit-glow", "1", error="ImportError")
    whole = Plugin("other", "other_package", "other", "1", tasks=(TaskSpec("sparkle", "", "a:b"),))
    for name in ("glow", "shine", "sparkle"):
        with pytest.raises(UsageError):
            refuse_taken(words_for(name, name), Registry((broken, whole)))
    refuse_taken(words_for("sparkle", "free"), Registry((broken, whole)))


def test_names_hidden_by_medkit_plugins_are_taken_too(tmp_path: Path) -> None:
    done = run_medkit(["plugins", "new", "register"], cwd=tmp_path, env={"MEDKIT_PLUGINS": ""})
    assert done.returncode == 2


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_never_touched(tmp_path: Path, kind: str) -> None:
    there = tmp_path / "there"
    {"folder": there.mkdir, "file": there.touch, "dangling link": lambda: there.symlink_to("nowhere")}[kind]()
    done = run_medkit(["plugins", "new", "fine", "-o", there])
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{there}: exists already" in done.stderr
    assert list(tmp_path.rglob("*")) == [there]


def test_output_names_the_folder(tmp_path: Path) -> None:
    done = run_medkit(["plugins", "new", "fine", "-o", "deep/er"], cwd=tmp_path)
    assert done.stdout == f"{tmp_path / 'deep' / 'er'}\n"
    assert (tmp_path / "deep/er/src/medkit_fine/__init__.py").is_file()


def test_a_file_in_the_way_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_medkit(["plugins", "new", "fine", "-o", tmp_path / "file" / "x"])
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
