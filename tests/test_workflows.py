"""The Snakefiles of docs/workflows.md, run by Snakemake with the command `medkit` of this environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from places import PLUGINS, REPOSITORY

pytestmark = pytest.mark.slow
Make = Callable[..., Path]
PAGE = (REPOSITORY / "docs" / "workflows.md").read_text()
BY_CASE, BY_BATCH = re.findall(r"^```snakemake\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def snakemake(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Snakemake in `tmp_path` on the text of a Snakefile."""
    program = shutil.which("snakemake")
    if program is None:
        pytest.skip("snakemake is not on the PATH")
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "medkit"  # Snakemake may run in another environment than medkit
    script.write_text(
        f'#!/bin/sh\necho x >> starts\nPYTHONPATH={REPOSITORY}:{PLUGINS} exec {sys.executable} -m medkit "$@"\n'
    )
    script.chmod(0o755)

    def run(snakefile: str, *options: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "Snakefile").write_text(snakefile)
        path = f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"PATH": path}
        words = [program, "--cores", "1", "--nocolor", *options]
        return subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=600)

    return run


def made(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "labels").glob("*_dseg.nii.gz"))


def test_a_rule_for_each_case(snakemake: Callable, scan: Make, tmp_path: Path) -> None:  # type: ignore[type-arg]
    for name in ("anna", "ben"):
        scan(f"scans/{name}.nii.gz")
    done = snakemake(BY_CASE)
    assert done.returncode == 0, done.stderr
    assert made(tmp_path) == ["anna_dseg.nii.gz", "ben_dseg.nii.gz"]
    assert "Nothing to be done" in snakemake(BY_CASE).stderr
    before = (tmp_path / "labels" / "anna_dseg.nii.gz").stat().st_mtime_ns
    done = snakemake(BY_CASE, "--force", "labels/anna_dseg.nii.gz")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "labels" / "anna_dseg.nii.gz").stat().st_mtime_ns > before


def test_a_rule_for_each_batch(snakemake: Callable, scan: Make, tmp_path: Path) -> None:  # type: ignore[type-arg]
    """A broken scan fails its batch; the others' results stay, and are kept when the scan is mended."""
    snakefile = BY_BATCH.replace("BATCHES = 4", "BATCHES = 1")
    for name in ("anna", "cleo"):
        scan(f"scans/{name}.nii.gz")
    (tmp_path / "scans" / "ben.nii.gz").write_bytes(b"no image")
    done = snakemake(snakefile)
    assert done.returncode != 0
    assert "ben.nii.gz" in done.stderr
    assert made(tmp_path) == ["anna_dseg.nii.gz", "cleo_dseg.nii.gz"]
    assert not list((tmp_path / "records").glob("*.jsonl"))
    scan("scans/ben.nii.gz")
    done = snakemake(snakefile)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "records" / "0.jsonl").read_text().splitlines()
    skipped = {Path(json.loads(line)["path"]).name: json.loads(line)["medkit"]["skipped"] for line in lines}
    assert skipped == {"anna_dseg.nii.gz": True, "ben_dseg.nii.gz": False, "cleo_dseg.nii.gz": True}


def test_batches_share_the_cases(snakemake: Callable, scan: Make, tmp_path: Path) -> None:  # type: ignore[type-arg]
    for name in ("anna", "ben", "cleo"):
        scan(f"scans/{name}.nii.gz")
    done = snakemake(BY_BATCH.replace("BATCHES = 4", "BATCHES = 2"))
    assert done.returncode == 0, done.stderr
    assert len(made(tmp_path)) == 3
    assert len((tmp_path / "starts").read_text().splitlines()) == 2
