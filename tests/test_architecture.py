"""The shape of the code: who may import whom, who knows the tasks, who knows ITK's frame."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from places import REPOSITORY

ROOT = REPOSITORY
CORE = sorted((ROOT / "medkit").rglob("*.py"))
PLUGINS = sorted(p.name for p in (ROOT / "plugins").iterdir() if (p / "__init__.py").exists())
CODE = [p for p in CORE if "templates" not in p.parts]
TASKS = {"register", "template", "segment", "enhance", "sr", "classify"}

STDLIB_ONLY = ("errors", "names", "records", "signals", "files", "specs", "bundle", "bundle_files", "trust")
LIGHT = {
    "pipe": set(),
    "hookspecs": {"pluggy"},
    "__init__": {"pluggy"},
    "plugins": {"pluggy"},
    "options": {"click"},
    "cli": {"click"},
    "case": set(),
    "task": set(),
    "executor": set(),
    "testing": set(),
} | {name: set() for name in STDLIB_ONLY}
"""Modules that `medkit --help` or an import of a plugin loads -> what they may import beside the standard library."""

NUMPY = (
    "space",
    "images",
    "nifti",
    "dicom",
    "itk_files",
    "pictures",
    "transform_files",
    "resample",
    "figures",
    "metrics",
    "label_table",
    "point_files",
    "jacobian",
    "fsl_files",
    "freesurfer_files",
)
"""Modules that may import numpy, isal (a millisecond), and nothing else of others, when they are imported."""

NAMED_BY_CONFIGS = {
    "synthesis",
    "pairs",
    "degradation",
    "frames",
    "losses",
    "sharpening",
    "translation",
    "augmentation",
}
"""Modules of networks' building blocks, which train configs name: they import torch and monai, and hardly anybody
else them."""

USE_THEM = {"shifts"}
"""Modules that call those building blocks, inside functions, for what commands do."""

EDGES = {
    "errors": set(),
    "names": set(),
    "specs": set(),
    "signals": {"errors"},
    "records": {"errors", "names", "specs"},
    "files": {"errors", "names", "records"},
    "pipe": {"errors", "records"},
    "hookspecs": {"specs"},
    "plugins": {"errors", "specs", "hookspecs", "pipe"},
    "options": {"errors", "files", "records", "pipe"},
    "bundle_files": {"errors"},
    "trust": {"errors", "files", "bundle_files"},
    "bundle": {"errors", "plugins", "specs", "trust", "bundle_files"},
}
"""The lower layers, and all they may import of medkit."""


def imports(path: Path, *, top_only: bool) -> Iterator[str]:
    """Dotted names that a file imports; `top_only`: when it is imported itself, type checking apart."""
    tree = ast.parse(path.read_text())
    nodes = _top(tree.body) if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from _top([n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)])
        yield node


def foreign(path: Path) -> set[str]:
    """Packages that importing a file imports, beside the standard library and medkit."""
    tops = {name.split(".")[0] for name in imports(path, top_only=True)}
    return tops - set(sys.stdlib_module_names) - {"medkit", "__future__"} - set(PLUGINS)


def own(path: Path, *, top_only: bool) -> set[str]:
    """Modules of medkit that a file imports, by their first name."""
    found = set()
    for name in imports(path, top_only=top_only):
        words = name.split(".")
        if words[0] == "medkit" and len(words) > 1 and (ROOT / "medkit" / f"{words[1]}.py").exists():
            found.add(words[1])
    return found


@pytest.mark.parametrize("name", [n for n in LIGHT if (ROOT / "medkit" / f"{n}.py").exists()])
def test_light_modules_stay_light(name: str) -> None:
    assert foreign(ROOT / "medkit" / f"{name}.py") <= LIGHT[name]


@pytest.mark.parametrize("name", [n for n in NUMPY if (ROOT / "medkit" / f"{n}.py").exists()])
def test_array_modules_stay_light(name: str) -> None:
    assert foreign(ROOT / "medkit" / f"{name}.py") <= {"numpy", "isal"}


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_imports_heavy_packages_inside_functions(path: Path) -> None:
    if path.stem in NAMED_BY_CONFIGS:
        return
    assert path.stem in USE_THEM or not own(path, top_only=False) & NAMED_BY_CONFIGS
    assert foreign(path) <= {"click", "pluggy", "numpy", "isal", "pytest", "rich"}
    if path.parent.name == "commands":
        assert "numpy" not in foreign(path)


@pytest.mark.parametrize("name", EDGES)
def test_imports_go_one_way(name: str) -> None:
    assert own(ROOT / "medkit" / f"{name}.py", top_only=False) <= EDGES[name]


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_circles_and_no_layer_above(path: Path) -> None:
    """Nothing but the entry points knows the command line; nothing but `cli` and tests knows commands."""
    if path.name in ("cli.py", "__main__.py") or path.parent.name == "commands" or path.name == "testing.py":
        return
    names = set(imports(path, top_only=False))
    assert not any(n.startswith(("medkit.cli", "medkit.commands")) for n in names)


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_imports_no_plugin_and_names_no_task(path: Path) -> None:
    assert not {n.split(".")[0] for n in imports(path, top_only=False)} & set(PLUGINS)
    if path.name == "demo.py":  # it shows what the installed tasks do
        return
    text = _strings(path)
    assert not {word for word in TASKS if word in text}, "task named in code"
    assert not any(p in text for p in PLUGINS)


def _strings(path: Path) -> set[str]:
    """The string constants of a file's code, docstrings left out."""
    tree = ast.parse(path.read_text())
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in prose)
    return {n.value for n in constants if isinstance(n.value, str)}


def test_itks_frame_is_known_in_the_modules_about_space_alone() -> None:
    allowed = {"space.py", "transform_files.py", "itk_files.py", "dicom.py", "pictures.py", "point_files.py"}
    for path in (*CODE, *(ROOT / "plugins").rglob("*.py")):
        tree = ast.parse(path.read_text())
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
            n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)
        }
        if any("LPS" in n.upper().split("_") for n in names):
            assert path.name in allowed, path
        flips = re.findall(r"diag\(\s*[\[(]\s*-1", path.read_text())
        assert not flips or path.name == "space.py", f"{path}: a second constant for the change of frames"


@pytest.mark.parametrize("plugin", PLUGINS)
def test_first_party_plugins_use_what_a_stranger_would(plugin: str) -> None:
    assert plugin in {e.value for e in entry_points(group="medkit")}
    for path in (ROOT / "plugins" / plugin).rglob("*.py"):
        if "bundles" in path.parts:
            continue
        names = set(imports(path, top_only=False))
        assert not {n.split(".")[0] for n in names} & (set(PLUGINS) - {plugin}), path
        assert not any(n.startswith(("medkit.cli", "medkit.commands")) for n in names), path
        assert not [n for n in names if n.startswith("medkit.") and n.rsplit(".", 1)[-1].startswith("_")], path
    assert not foreign(ROOT / "plugins" / plugin / "__init__.py")
    for command in (ROOT / "plugins" / plugin).glob("command.py"):  # a plugin may bring bundles alone
        assert foreign(command) <= {"click"}


def test_the_size_of_things() -> None:
    """The picture of STYLE.md: small files; a module of over 400 lines wants to be two."""
    for path in (*CODE, *(p for name in PLUGINS for p in (ROOT / "plugins" / name).rglob("*.py"))):
        assert len(path.read_text().splitlines()) <= 700, path
