"""The README and docs/: their commands, examples and plugins run as they stand, and they name all that there is."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import nibabel as nib
import nnunet_model
import numpy as np
import pytest
import zoo
from chests import Chest
from PIL import Image as Picture
from places import REPOSITORY
from strangers import write_sound
from tiny import write_labels

import medkit
from medkit import errors, hookspecs
from medkit.cli import cli
from medkit.options import task_options
from medkit.plugins import registry

DOCS = REPOSITORY / "docs"
PAGES = {p.name: p.read_text() for p in [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))]}
README = PAGES["README.md"]
TEXT = "\n".join(PAGES.values())
LINKING = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]

FACES = (
    *(
        "dicom_objects",
        "errors",
        "evaluation",
        "figures",
        "images",
        "inference",
        "options",
        "scanner",
        "space",
        "specs",
    ),
    *("synthesis", "task", "testing", "training", "transforms"),
)
PAGE_OF = {
    **dict.fromkeys(("medkit bids", "medkit describe"), "workflows.md"),
    "medkit bundle import": "nnunet.md",
    "medkit bundle": "bundles.md",
    "medkit deidentify": "privacy.md",
    "medkit completion": "options.md",
    **dict.fromkeys(("medkit merge", "medkit status", "medkit submit"), "clusters.md"),
    "medkit demo": "index.md",
    "medkit doctor": "doctor.md",
    "medkit dicom": "dicom.md",
    "medkit evaluate": "evaluate.md",
    "medkit plugins": "plugins.md",
    "medkit show": "pipes-and-records.md",
    "medkit train": "training.md",
    "medkit transform": "transforms.md",
    "medkit run bundle": "run-bundle.md",
}
"""Command, or group of commands -> its page; the page of a task has the task's name."""
COMMON = "options.md"
"""The page of the options that tasks share."""


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of one language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def shell(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=os.environ | {"PATH": path} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder with the files that the commands name."""
    rng = np.random.default_rng(0)
    i, j, k = np.mgrid[:32, :36, :28] - np.array([16, 18, 14])[:, None, None, None]
    head = 1000.0 * ((i / 12) ** 2 + (j / 14) ** 2 + (k / 10) ** 2 < 1) - 400.0 * ((i / 4) ** 2 + (j - 4) ** 2 / 9 < 1)
    for folder in ("scans", "labels", "predicted", "xrays", "findings", "paired/images", "paired/labels"):
        (tmp_path / folder).mkdir(parents=True)
    for name, shift in (("mni", 0), ("scans/anna", 6), ("scans/ben", -9)):
        affine = np.diag([4.0, 4.0, 4.0, 1.0])
        affine[:3, 3] = shift
        voxels = np.maximum(head + rng.normal(0, 20, head.shape), 0).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii.gz")
        if name == "scans/anna":
            nib.save(nib.Nifti1Image((head > 500).astype(np.uint8), affine), tmp_path / "labels/anna_dseg.nii.gz")
            affine[0, 3] += 2
            nib.save(nib.Nifti1Image((head > 500).astype(np.uint8), affine), tmp_path / "predicted/anna_dseg.nii.gz")
    shutil.copy(tmp_path / "mni.nii.gz", tmp_path / "mni152_t1.nii.gz")
    for kind, source in (("images", "scans/anna.nii.gz"), ("labels", "labels/anna_dseg.nii.gz")):
        for name in ("a", "b"):
            shutil.copy(tmp_path / source, tmp_path / "paired" / kind / f"{name}.nii.gz")
    for name in ("a", "b"):
        pixels = np.clip(rng.normal(120, 40, (64, 60)), 0, 255).astype(np.uint8)
        Picture.fromarray(pixels).save(tmp_path / "xrays" / f"{name}.png")
    air = np.where(head > 500, 40, -900).astype(np.int16)
    nib.save(nib.Nifti1Image(air, np.diag([4.0, 4.0, 4.0, 1.0])), tmp_path / "chest_ct.nii.gz")
    (tmp_path / "chests").mkdir()
    Chest().write(tmp_path / "chests" / "anna.nii.gz")
    Chest(blood=300.0).write(tmp_path / "ct.nii.gz")
    (tmp_path / "organs.csv").write_text("name,x,y,z\nheart,8,15,-30\n")
    point = {"label": "aorta", "position": [8, 15, -30]}
    markup = {"coordinateSystem": "RAS", "controlPoints": [point]}
    (tmp_path / "aorta.mrk.json").write_text(json.dumps({"markups": [markup]}))
    (tmp_path / "candidates.csv").write_text("name,x,y,z\nfirst,60,70,50\n")
    (tmp_path / "scans.txt").write_text("scans/anna.nii.gz\nscans/ben.nii.gz\n")
    write_sound(tmp_path / "lung_bundle", "lungs", weights=False, train__handlers=[], validate__handlers=[])
    write_sound(tmp_path / "lungs", "lungs", train__handlers=[], validate__handlers=[])
    write_labels(tmp_path / "maps")
    zoo.write(tmp_path / "spleen_ct_segmentation", "spleen_ct_segmentation")
    plan = nnunet_model.plans({"3d_fullres": nnunet_model.configuration(spacing=[4.0] * 3)})
    nnunet_model.write_model(tmp_path / "nnunet", plan, nnunet_model.dataset(), "3d_fullres")
    shutil.make_archive(str(tmp_path / "Dataset001_Lungs"), "zip", tmp_path / "nnunet")
    for name, p in (("anna", 0.8), ("ben", 0.3)):
        (tmp_path / f"findings/{name}_class.tsv").write_text(f"class\tprobability\nwell\t{1 - p}\nill\t{p}\n")
    (tmp_path / "truth.csv").write_text("case,class\nanna,ill\nben,well\n")
    return tmp_path


def commands(page: str) -> list[tuple[str, list[str]]]:
    """The commands that a page's blocks run, each with the results that the page shows for it."""
    found: list[tuple[str, list[str]]] = []
    for block in blocks(page, "sh"):
        if "pip install" not in block:
            found += [(line, []) for line in block.strip().splitlines()]
    for block in blocks(page, "console"):
        for line in block.strip().splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.startswith("/"):
                found[-1][1].append(Path(line).name)
    return found


RUNNING = [page for page in PAGES if commands(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING)
def test_the_commands_run(page: str, scans: Path) -> None:
    for command, results in commands(page):
        done = shell(command, scans)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert not results or [Path(line).name for line in done.stdout.splitlines()] == results
    made = LEFT.get(page, ())
    assert not [path for path in made if not list(scans.glob(path))], sorted(map(str, scans.rglob("*")))
    CHECKS.get(page, lambda folder: None)(scans)


def test_enough_commands_are_run() -> None:
    assert len([command for page in RUNNING for command in commands(page)]) >= 30
    assert set(LEFT) | set(CHECKS) <= set(RUNNING)


LEFT = {
    "transforms.md": ["in_mni/anna_dseg_transformed.nii.gz", "growth.nii.gz", "flirt.mat"],
    "register.md": ["quick/anna_transform.nii.gz", "affine/ben_transform.tfm"],
    "classify.md": ["nodules/chest_ct_gradcam.nii.gz"],
    "sr.md": ["fine/*.nii.gz", "fused/*.nii.gz", "guided/*.nii.gz"],
    "enhance.md": ["brighter/*.nii.gz", "clean/qc/*.png"],
}
"""Page -> files that its commands leave."""


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _check_pipes(folder: Path) -> None:
    assert len(_lines(folder / "rigid.jsonl")) == 2
    assert len(_lines(folder / "aligned.txt")) == 2
    assert len(_lines(folder / "planned.jsonl")) == 2


def _check_run_bundle(folder: Path) -> None:
    assert len(list((folder / "spleens").glob("*_dseg.nii.gz"))) == 2


def _check_nnunet(folder: Path) -> None:
    assert len(list((folder / "nnunet_labels").glob("*_dseg.nii.gz"))) == 2


def _check_segment(folder: Path) -> None:
    assert len(list((folder / "labelled").glob("*_mask.nii.gz"))) == 2


def _check_classify(folder: Path) -> None:
    assert len(_lines(folder / "results.tsv")) == 3


def _check_training(folder: Path) -> None:
    assert _lines(folder / "my_lungs" / "training" / "log.csv")[-1].startswith("8,")


def _check_bundles(folder: Path) -> None:
    assert zipfile.is_zipfile(folder / "lungs-0.1.0.zip")
    assert (folder / "to_read.txt").exists()


def _check_evaluate(folder: Path) -> None:
    assert len(list((folder / "curves").glob("*.png"))) == 3
    assert len(_lines(folder / "similarity.csv")) >= 3


CHECKS = {
    "pipes-and-records.md": _check_pipes,
    "nnunet.md": _check_nnunet,
    "run-bundle.md": _check_run_bundle,
    "segment.md": _check_segment,
    "classify.md": _check_classify,
    "training.md": _check_training,
    "bundles.md": _check_bundles,
    "evaluate.md": _check_evaluate,
}
"""Page -> what its commands must have made."""


def test_the_install_commands_are_what_ci_does() -> None:
    install = next(b for b in blocks("README.md", "sh") if "pip install" in b)
    assert install.splitlines() == ['pip install ".[demo]" && medkit demo', 'pip install ".[test]" && pytest']
    ci = (REPOSITORY / ".ci" / "run").read_text()
    assert 'pip install --quiet ".[test]"' in ci


# ---- plugins and examples


def write_plugin(page: str, folder: Path) -> int:
    """Writes the plugin of a page into `folder`, as an installer would leave it; the number of its lines."""
    (toml,) = blocks(page, "toml")
    project = tomllib.loads(toml)["project"]
    files = [block for block in blocks(page, "python") if re.match(r"# \S+\.py", block)]
    assert files
    for block in files:
        name = re.match(r"# (\S+\.py)", block)
        assert name, block
        (folder / name[1]).parent.mkdir(exist_ok=True)
        (folder / name[1]).write_text(block)
    # what an installer would write; importlib.metadata finds it on the path
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text(
        "[medkit]\n" + "".join(f"{k} = {v}\n" for k, v in project["entry-points"]["medkit"].items())
    )
    return sum(len(block.strip().splitlines()) for block in (*files, toml))


def test_the_plugin_of_the_readme_is_one(tmp_path: Path) -> None:
    assert write_plugin("README.md", tmp_path) <= 35, "a small plugin is about 30 lines"
    nib.save(nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), tmp_path / "a.nii.gz")
    done = shell("ls a.nii.gz | medkit run brighter | medkit run brighter --json", tmp_path, PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["GeneratedBy"][1] == {"Name": "medkit-brighter", "Version": "1.0"}
    assert np.asarray(nib.load(record["path"]).dataobj).max() == 59 * 4


@pytest.mark.slow
def test_the_larger_plugin_keeps_the_contract(tmp_path: Path) -> None:
    assert write_plugin("plugins.md", tmp_path) <= 65, "a plugin is about 60 lines"
    done = shell(f"{sys.executable} -m pytest -q -p no:cacheprovider test_smooth.py", tmp_path, PYTHONPATH=".")
    assert done.returncode == 0, done.stdout + done.stderr
    nib.save(nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), tmp_path / "a.nii.gz")
    done = shell("medkit run smooth a.nii.gz --sigma 2 --json", tmp_path, PYTHONPATH=".")
    record = json.loads(done.stdout)
    assert record["medkit"]["arguments"]["sigma"] == 2
    assert record["medkit"]["metrics"]["mean_change"] > 0


def examples() -> list[str]:
    return [block for block in blocks("plugins.md", "python") if not re.match(r"# \S+\.py", block)]


@pytest.mark.slow
def test_the_examples_run(scans: Path) -> None:
    """All in one process, each with names of its own."""
    (scans / "examples.json").write_text(json.dumps(examples()))
    program = "import json; [exec(text, {}) for text in json.load(open('examples.json'))]"
    done = shell(f"{sys.executable} -W ignore -c {json.dumps(program)}", scans)
    assert done.returncode == 0, done.stderr


def test_every_face_has_an_example() -> None:
    imported = {
        node.module
        for text in examples()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert {"medkit", *(f"medkit.{face}" for face in FACES)} <= imported
    assert {m for m in imported if m.startswith("medkit.")} <= {f"medkit.{face}" for face in FACES}


# ---- all that there is, is named


FOREIGN = {
    spec.name
    for plugin in registry().plugins
    if plugin.distribution != "medkit"
    for spec in plugin.tasks + plugin.commands
}
"""What other distributions add where these tests run; their own pages describe it."""


def all_commands(command: click.Command = cli, words: str = "medkit") -> Iterator[tuple[str, click.Command]]:
    """Every command and task of medkit, with the words that call it."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in set(command.list_commands(context)) - FOREIGN:
            found = command.get_command(context, name)
            assert found is not None, name
            yield from all_commands(found, f"{words} {name}")


COMMANDS = {words: command for words, command in all_commands() if words not in ("medkit", "medkit run")}


def page_of(words: str) -> str:
    """The page that describes a command."""
    found = [page for start, page in PAGE_OF.items() if f"{words} ".startswith(f"{start} ")]
    return found[0] if found else f"{words.split()[-1]}.md"


def common_options() -> set[str]:
    @task_options
    def anything(options: object) -> None: ...

    return {name for option in click.command()(anything).params for name in (*option.opts, *option.secondary_opts)}


def names_option(text: str, option: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None


@pytest.mark.parametrize("words", sorted(COMMANDS))
def test_every_command_and_option_is_documented(words: str) -> None:
    page = PAGES[page_of(words)]
    *group, name = words.split()
    assert words in TEXT or (f"`{' '.join(group)}`" in page and f"| `{name}" in page), f"{words} is named nowhere"
    text = page + PAGES[COMMON]
    for option in COMMANDS[words].params:
        if isinstance(option, click.Option):
            for long in [name for name in option.opts if name.startswith("--") and name != "--help"]:
                assert names_option(text, long), f"{words} {long} is on neither {page_of(words)} nor {COMMON}"


def test_every_common_option_is_on_its_page() -> None:
    for option in common_options() - {"inputs"}:
        assert names_option(PAGES[COMMON], option), option


def test_no_option_is_made_up() -> None:
    """Every `--option` after a `medkit` in a block is one of that command's, or of what else stands in the line."""
    for page in PAGES:
        for block in (*blocks(page, "sh"), *blocks(page, "console"), *blocks(page, "text")):
            for line in block.splitlines():
                for stage in re.split(r"\||&&|-- '", line):
                    check_options(page, stage)


def check_options(page: str, stage: str) -> None:
    words = stage.split("medkit ", 1)[1].split() if re.search(r"(^|\s)medkit ", stage) else []
    called = next((" ".join(words[:n]) for n in (2, 1) if f"medkit {' '.join(words[:n])}" in COMMANDS), None)
    if called is None:
        return
    if called == "bids" and "--" in words:  # what follows are options of the task
        after = words.index("--")
        check_options(page, f"medkit run {words[words.index('--task') + 1]} {' '.join(words[after + 1 :])}")
        words = words[:after]
    known = {name for o in COMMANDS[f"medkit {called}"].params for name in (*o.opts, *o.secondary_opts)} | {"--help"}
    used = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
    assert used <= known, f"{page}: medkit {called} has no {used - known}"


def test_every_hook_is_documented() -> None:
    hooks = [name for name in vars(hookspecs) if name.startswith("medkit_")]
    assert len(hooks) >= 3
    for hook in hooks:
        assert f"`{hook}`" in PAGES["plugins.md"], hook


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_is_documented(face: str) -> None:
    section = re.search(rf"^## medkit\.{face}\n(.*?)(?=^## |\Z)", PAGES["plugins.md"], re.DOTALL | re.MULTILINE)
    assert section, face
    rows = " ".join(line.split("|")[1] for line in section[1].splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", rows)) == set(importlib.import_module(f"medkit.{face}").__all__)


def test_the_faces_are_those_of_the_architecture() -> None:
    text = (REPOSITORY / "tests" / "test_architecture.py").read_text()
    faces = re.search(r"^FACES = \{(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    assert faces
    assert set(FACES) == set(re.findall(r'"(\w+)"', faces[1]))


# ---- pages, links, pictures


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", LINKING, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(REPOSITORY), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text()), link


def test_pictures_are_small_and_used() -> None:
    for picture in (DOCS / "pictures").iterdir():
        assert picture.stat().st_size < 300_000, picture
        assert f"pictures/{picture.name}" in TEXT, f"{picture} is on no page"
        with Picture.open(picture) as opened:
            opened.verify()


def test_every_page_is_in_the_index() -> None:
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in PAGES["index.md"], page


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_pages_have_no_path_of_one_machine() -> None:
    for page in LINKING:
        assert not re.search(r"/work/|/home/|/root/|/opt/", page.read_text()), page


# ---- the map of the code


def test_every_file_of_the_map_exists() -> None:
    for page in (*LINKING, REPOSITORY / "CHANGELOG.md"):
        for path in re.findall(r"`((?:medkit|plugins|bundles|tests|docs)/[\w./]+)`", page.read_text()):
            assert (REPOSITORY / path).exists() or not re.fullmatch(r"[a-z_./\d-]+", path), f"{page.name}: {path}"


def test_every_package_is_on_the_map() -> None:
    mapped = PAGES["design.md"]
    packages = [p.parent for p in (REPOSITORY / "medkit").rglob("__init__.py") if "templates" not in p.parts]
    packages += [p.parent for p in (REPOSITORY / "plugins").glob("*/__init__.py")]
    for folder in set(packages) - {REPOSITORY / "medkit"}:
        assert f"`{folder.relative_to(REPOSITORY)}/`" in mapped, folder
    for module in (REPOSITORY / "medkit").glob("*.py"):
        assert module.name.startswith("__") or f"`medkit/{module.name}`" in mapped, module


def test_the_floors_are_those_of_the_architecture() -> None:
    from_test = (REPOSITORY / "tests" / "test_architecture.py").read_text()
    floors = re.search(r"^FLOORS = \((.*?)^\)", from_test, re.DOTALL | re.MULTILINE)
    assert floors
    named = [set(re.findall(r'"(\w+)"', line)) for line in floors[1].strip().splitlines()]
    rows = re.findall(r"^\| \d \| (.*) \|$", PAGES["design.md"], re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == named


def test_one_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["version"] == medkit.__version__
    assert f"\nversion: {medkit.__version__}\n" in (REPOSITORY / "CITATION.cff").read_text()
    assert f"## {medkit.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_every_variable_and_exit_code_is_documented() -> None:
    code = "".join(p.read_text() for p in (REPOSITORY / "medkit").rglob("*.py"))
    for variable in set(re.findall(r'"(MEDKIT_[A-Z]+(?:_[A-Z]+)*)"', code)):
        assert f"`{variable}`" in PAGES[COMMON], variable
    for number in {error.exit_code for error in vars(errors).values() if hasattr(error, "exit_code")} | {0, 130}:
        assert f"\n| {number} |" in PAGES[COMMON], number
