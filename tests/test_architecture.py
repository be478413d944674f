"""The shape of the code: who may import whom, who knows the tasks, who knows ITK's frame."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from places import REPOSITORY

ROOT = REPOSITORY
CORE = sorted((ROOT / "medkit").rglob("*.py"))
PLUGINS = sorted(p.name for p in (ROOT / "plugins").iterdir() if (p / "__init__.py").exists())
CODE = [p for p in CORE if "templates" not in p.parts]
TASKS = {"register", "template", "segment", "enhance", "sr", "classify", "contours"}

FLOORS = (
    ("errors", "specs", "terminal"),
    ("commandline", "completions", "helppages", "hookspecs", "machine", "pipe", "space"),
    ("bids", "images", "options", "plugins", "scanner"),
    ("bundles", "cli", "figures", "privacy", "studies", "synthesis", "transforms"),
    ("diagnosis", "evaluation", "nnunet", "run", "testing", "training"),
    ("cluster", "dicom_objects", "inference", "task", "transform_tasks", "viewer"),
    ("review", "robustness", *PLUGINS),
    ("commands",),
)
"""The packages, floor by floor: each imports from floors below its own only."""

LIGHT_PACKAGES = {
    "errors": set(),
    "specs": set(),
    "commandline": {"click"},
    "helppages": {"click"},
    "hookspecs": {"pluggy"},
    "pipe": set(),
    "machine": set(),
    "options": {"click"},
    "plugins": {"pluggy"},
    "bids": set(),
    "bundles": set(),
    "cluster": set(),
    "diagnosis": set(),
    "cli": {"click"},
    "run": set(),
    "task": set(),
    "testing": set(),
    "__init__": {"pluggy"},
}
"""What `medkit --help` or the import of a plugin loads -> what it may import next to the standard library."""

HEAVY = {
    "nnunet": {"networks", "transforms", "windows"},
    "synthesis": {"appearance", "artifacts", "base_transform", "chest_ct", "clean_images", "deformation", "degradation"}
    | {"draw", "lung_disease", "ranges", "registration_pairs", "sampling", "sequences"},
    "training": {"augmentation", "cyclegan", "losses", "reading", "registration", "srgan"},
}
"""Modules of networks' building blocks, which train configs name: importing them imports torch and monai."""

FACES = {
    *("dicom_objects", "errors", "evaluation", "figures", "images", "inference", "options", "scanner", "space"),
    *("specs", "synthesis", "task", "testing", "training", "transforms"),
}
"""What plugins import of medkit, next to `medkit.hookimpl`: docs/plugins.md lists their names."""


def imports(path: Path, *, top_only: bool) -> Iterator[str]:
    """Dotted names that a file imports; `top_only`: only those that importing the file itself imports."""
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


def module_of(path: Path) -> str:
    """The dotted name of a file below medkit/ or plugins/."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "plugins" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PLUGIN_CODE = [p for name in PLUGINS for p in (ROOT / "plugins" / name).rglob("*.py") if "bundles" not in p.parts]
MODULES = {module_of(path): path for path in (*CODE, *PLUGIN_CODE)}


def package_of(module: str) -> str:
    """The room of a module: `images` for `medkit.images.nifti`, `medkit_sr` for `medkit_sr.task`."""
    first, *rest = module.split(".")
    return (rest[0] if rest else "__init__") if first == "medkit" else first


def needs(module: str) -> set[str]:
    """The modules of medkit and its plugins that a module imports, in functions too."""
    found = set()
    for name in imports(MODULES[module], top_only=False):
        parent = name.rpartition(".")[0]
        found.add(name if name in MODULES else parent)
    return (found & set(MODULES)) - {module, "medkit"}


FLOOR = {name: number for number, names in enumerate(FLOORS, start=1) for name in names}


def test_every_package_has_a_floor() -> None:
    assert set(map(package_of, MODULES)) - {"__init__", "__main__"} == set(FLOOR)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"medkit", "medkit.__main__"}))
def test_imports_run_down(module: str) -> None:
    own = package_of(module)
    for other in needs(module):
        room = package_of(other)
        assert room == own or FLOOR[room] < FLOOR[own], f"{module} imports {other}, which is not below it"


def test_no_circle_between_files() -> None:
    """Files import each other in one direction only, also inside a package and inside functions."""
    order = TopologicalSorter({module: needs(module) for module in MODULES})
    order.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_light_packages_stay_light(path: Path) -> None:
    package = package_of(module_of(path))
    if package not in LIGHT_PACKAGES:
        return
    assert foreign(path) <= LIGHT_PACKAGES[package]


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_imports_heavy_packages_inside_functions(path: Path) -> None:
    package = package_of(module_of(path))
    if path.stem in HEAVY.get(package, ()):
        return
    allowed = {"click", "pluggy", "numpy", "isal", "pytest", "rich", "lazy_loader"}
    assert foreign(path) <= allowed - ({"numpy"} if package == "commands" else set())


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_modules_are_imported_inside_functions(path: Path) -> None:
    if path.stem in HEAVY.get(package_of(module_of(path)), ()):
        return
    heavy = {name for name in MODULES if name.rpartition(".")[2] in HEAVY.get(package_of(name), ())}
    for name in imports(path, top_only=True):
        assert name not in heavy, name
        assert name.rpartition(".")[0] not in heavy, name


@pytest.mark.parametrize("module", sorted(MODULES))
def test_private_names_stay_in_their_file(module: str) -> None:
    for name in imports(MODULES[module], top_only=False):
        last = name.rpartition(".")[2]
        assert not name.startswith("medkit") or not last.startswith("_") or last.startswith("__"), name


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_imports_no_plugin_and_names_no_task(path: Path) -> None:
    assert not {n.split(".")[0] for n in imports(path, top_only=False)} & set(PLUGINS)
    if path.name == "demo.py":  # it shows what the installed tasks do
        return
    text = _strings(path)
    if "dicom_objects" in path.parts or path.name == "run_bundle.py":  # DICOM has its own "sr": structured reports
        text -= {"sr"}
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


def test_only_modules_about_space_know_itks_frame() -> None:
    allowed = {"space.py", "itk.py", "itk_frame.py", "itk_linear.py", "itk_fields.py", "pictures.py", "points.py"}
    allowed |= {"volumes.py", "segments.py", "dicom_frame.py", "diffusion.py", "boxes.py"}
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
        for name in {n for n in names if n.split(".")[0] == "medkit"} - {"medkit.hookimpl"}:
            _, face, *rest = name.split(".")
            assert face in FACES, f"{path}: {name}"
            assert len(rest) == 1, f"{path}: {name} is not one of the names of medkit.{face}"
            assert name not in MODULES, f"{path}: {name} is a module; import its names from medkit.{face}"
    assert not foreign(ROOT / "plugins" / plugin / "__init__.py")
    for command in (ROOT / "plugins" / plugin).glob("command.py"):  # a plugin may bring bundles alone
        assert foreign(command) <= {"click"}


def test_the_size_of_things() -> None:
    """The picture of STYLE.md: small files; a module of over 400 lines wants to be two."""
    for path in (*CODE, *(p for name in PLUGINS for p in (ROOT / "plugins" / name).rglob("*.py"))):
        assert len(path.read_text().splitlines()) <= 500, path


PROSE = {
    *("bundles/checks/comparison.py", "bundles/safety/audit.py", "bundles/summary.py", "bundles/verify.py"),
    *("cluster/schedulers.py", "commands/plugins.py", "images/itk.py"),
}
"""Modules that split messages, programs' answers and prose, and the audit, which should see more lines, not fewer."""


def test_files_are_read_by_lines_that_end_in_newlines() -> None:
    """`str.splitlines` tears a row at a form feed or U+2028 in a name: `medkit.pipe.lines.text_lines` does not."""
    found = {str(path.relative_to(ROOT / "medkit")) for path in CORE if ".splitlines(" in path.read_text()}
    assert found <= PROSE
