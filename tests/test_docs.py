"""The README's commands and its plugin, run as they stand there, so that it stays true."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import click
import nibabel as nib
import numpy as np
import pytest
import zoo
from PIL import Image as Picture
from places import REPOSITORY
from strangers import write_sound
from tiny import write_labels

from medkit.cli import cli
from medkit.options import task_options

README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


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
    """A folder with the files that the README's commands name."""
    rng = np.random.default_rng(0)
    i, j, k = np.mgrid[:32, :36, :28] - np.array([16, 18, 14])[:, None, None, None]
    head = 1000.0 * ((i / 12) ** 2 + (j / 14) ** 2 + (k / 10) ** 2 < 1) - 400.0 * ((i / 4) ** 2 + (j - 4) ** 2 / 9 < 1)
    (tmp_path / "scans").mkdir()
    (tmp_path / "labels").mkdir()
    for name, shift in (("mni", 0), ("scans/anna", 6), ("scans/ben", -9)):
        affine = np.diag([4.0, 4.0, 4.0, 1.0])
        affine[:3, 3] = shift
        voxels = np.maximum(head + rng.normal(0, 20, head.shape), 0).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii.gz")
        if name == "scans/anna":
            nib.save(nib.Nifti1Image((head > 500).astype(np.uint8), affine), tmp_path / "labels/anna_dseg.nii.gz")
    (tmp_path / "xrays").mkdir()
    for name in ("a", "b"):
        pixels = np.clip(rng.normal(120, 40, (64, 60)), 0, 255).astype(np.uint8)
        Picture.fromarray(pixels).save(tmp_path / "xrays" / f"{name}.png")
    air = np.where(head > 500, 40, -900).astype(np.int16)
    nib.save(nib.Nifti1Image(air, np.diag([4.0, 4.0, 4.0, 1.0])), tmp_path / "chest_ct.nii.gz")
    (tmp_path / "candidates.csv").write_text("name,x,y,z\nfirst,60,70,50\n")
    (tmp_path / "scans.txt").write_text("scans/anna.nii.gz\nscans/ben.nii.gz\n")
    write_sound(tmp_path / "lung_bundle", "lungs", weights=False, train__handlers=[], validate__handlers=[])
    write_labels(tmp_path / "maps")
    zoo.write(tmp_path / "spleen_ct_segmentation", "spleen_ct_segmentation")
    (tmp_path / "findings").mkdir()
    for name, p in (("anna", 0.8), ("ben", 0.3)):
        (tmp_path / f"findings/{name}_class.tsv").write_text(f"class\tprobability\nwell\t{1 - p}\nill\t{p}\n")
    (tmp_path / "truth.csv").write_text("case,class\nanna,ill\nben,well\n")
    return tmp_path


@pytest.mark.slow
def test_the_commands_run(scans: Path) -> None:
    ran = 0
    for block in blocks("sh"):
        if "pip install" in block:
            continue
        for command in block.strip().splitlines():
            done = shell(command, scans)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            ran += 1
    assert ran >= 14
    assert (scans / "in_mni" / "anna_dseg_transformed.nii.gz").exists()
    assert len((scans / "rigid.jsonl").read_text().splitlines()) == 2
    assert len(list((scans / "spleens").glob("*_dseg.nii.gz"))) == 2
    assert len(list((scans / "labelled").glob("*_mask.nii.gz"))) == 2
    assert len((scans / "results.tsv").read_text().splitlines()) == 3
    assert (scans / "nodules" / "chest_ct_gradcam.nii.gz").exists()
    assert (scans / "my_lungs" / "training" / "log.csv").read_text().splitlines()[-1].startswith("8,")
    assert zipfile.is_zipfile(scans / "lungs-0.1.1.zip")
    assert len(list((scans / "curves").glob("*.png"))) == 3


def test_the_install_commands_are_what_ci_does() -> None:
    install = next(b for b in blocks("sh") if "pip install" in b)
    assert install.splitlines() == ['pip install ".[demo]" && medkit demo', 'pip install ".[test]" && pytest']
    ci = (REPOSITORY / ".ci" / "run").read_text()
    assert 'pip install --quiet ".[test]"' in ci


def test_the_plugin_is_one(tmp_path: Path) -> None:
    project = tomllib.loads(blocks("toml")[0])
    for block in blocks("python"):
        name = re.match(r"# (\S+\.py)", block)
        assert name, block
        (tmp_path / name[1]).parent.mkdir(exist_ok=True)
        (tmp_path / name[1]).write_text(block)
    # what an installer would write; importlib.metadata finds it on the path
    info = tmp_path / "medkit_brighter-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['project']['name']}\nVersion: {project['project']['version']}\n")
    (info / "entry_points.txt").write_text(
        "[medkit]\n" + "".join(f"{k} = {v}\n" for k, v in project["project"]["entry-points"]["medkit"].items())
    )
    nib.save(nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), tmp_path / "a.nii.gz")
    done = shell("ls a.nii.gz | medkit run brighter --factor 3 | medkit run brighter --json", tmp_path, PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["GeneratedBy"][1] == {"Name": "medkit-brighter", "Version": "1.0"}
    assert np.asarray(nib.load(record["path"]).dataobj).max() == 59 * 6
    assert sum(len(b.splitlines()) for b in [*blocks("python"), *blocks("toml")]) <= 62, "a plugin is about 60 lines"


def test_every_command_and_option_is_documented() -> None:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        assert f"medkit {name}" in README, name

    @task_options
    def anything(options: object) -> None: ...

    hidden = {"--device", "--threads", "--seed", "--quiet", "--verbose", "--progress", "--list", "--null", "--output"}
    for option in click.command()(anything).params:
        long = [name for name in option.opts if name.startswith("--")]
        assert not long or long[0] in hidden or long[0] in README, long


def test_every_module_of_the_map_exists() -> None:
    root = REPOSITORY
    for cell in re.findall(r"^\| (`medkit/.*?|`plugins/.*?) \|", README, re.MULTILINE):
        first, *others = re.findall(r"`([^`]+)`", cell)
        folder = root / first if first.endswith("/") else (root / first).parent
        assert (root / first).exists(), first
        for other in others:
            assert (
                (folder.parent / other).exists() or (folder / other).exists() or (root / "medkit" / other).exists()
            ), other
