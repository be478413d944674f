"""Completion in real shells, the values that are offered, and what that imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BUNDLES = ["brain_mri_mask", "brain_mri_segmentation", "chest_ct_segmentation", "infant_mri_segmentation"]
TASKS = ("register", "template", "segment", "deface", "contours", "classify", "enhance", "sr", "bundle")
HEAVY = ("torch", "monai", "scipy", "nibabel", "itk", "PIL", "pydicom", "yaml", "skimage")


def run(environment: dict[str, str], folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def offered(environment: dict[str, str], folder: Path, *words: str) -> list[str]:
    """Return what is offered for the last of the words after `medkit`, each `type,value`."""
    variables = {
        "COMP_WORDS": "\n".join(["medkit", *words]),
        "COMP_CWORD": str(len(words)),
        "_MEDKIT_COMPLETE": "bash_complete",
    }
    lines = run(environment | variables, folder, sys.executable, "-m", "medkit").splitlines()
    return [line for line in lines if line]


def plain(*names: str) -> list[str]:
    return [f"plain,{name}" for name in names]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "se"], plain("segment")),
        (["run", "segment", "--bundle", ""], plain("auto", *BUNDLES)),
        (["run", "segment", "--bundle", "chest"], plain("chest_ct_segmentation")),
        (["run", "segment", "--bundle", "./"], ["file,./"]),
        (["run", "segment", "scans/a"], ["file,scans/a"]),
        (["run", "segment", "--device", "c"], plain("cpu", "cuda")),
        (["run", "segment", "--outputs", "labels,b"], plain("labels,brain")),
        (["run", "segment", "--bundle", "chest_ct_segmentation", "--labels", "body,lung_l"], plain("body,lung_left")),
        (["run", "segment", "--labels", "right\\ thal"], plain("right thalamus")),
        (["run", "segment", "--dicom", "seg,"], plain("seg,sr")),
        (["run", "register", "--type", "a"], plain("affine")),
        (["run", "register", "--outputs", "rigid"], plain("rigid_transform")),
        (["run", "template", "--group-by", "sub,s"], plain("sub,ses")),
        (["bundle", "show", "brain_mri_s"], plain("brain_mri_segmentation")),
        (["describe", "se"], plain("segment")),
        (["bids", "in", "out", "participant", "--task", "te"], plain("template")),
        (["submit", "sl"], plain("slurm")),
        (["evaluate", "re"], ["file,re"]),
        (["completion", "z"], plain("zsh")),
    ],
    ids=" ".join,
)
def test_values(shell_environment: dict[str, str], tmp_path: Path, words: list[str], expected: list[str]) -> None:
    found = offered(shell_environment, tmp_path, *words)
    assert found == expected


def test_of_a_folder_without_bundles_nothing_is_offered_and_nothing_said(
    shell_environment: dict[str, str], tmp_path: Path
) -> None:
    words = ("run", "segment", "--bundle", str(tmp_path), "--labels", "x")
    assert offered(shell_environment, tmp_path, *words) == []


def test_nothing_heavy_is_imported(shell_environment: dict[str, str], tmp_path: Path) -> None:
    """Commands, tasks, options of every task, and names of bundles."""
    code = f"""
import os, sys
from click.shell_completion import BashComplete
from medkit.cli import cli
for words in (["run", ""], ["run", "segment", "--bundle", ""], ["bundle", "show", ""], ["describe", ""],
              *(["run", task, "--"] for task in {TASKS})):
    complete = BashComplete(cli, {{}}, "medkit", "_MEDKIT_COMPLETE")
    assert complete.get_completions(words[:-1], words[-1]), words
print([name for name in {HEAVY} if name in sys.modules])
"""
    assert run(shell_environment, tmp_path, sys.executable, "-c", code) == "[]\n"


@pytest.fixture
def with_medkit(shell_environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has a `medkit` of this Python first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "medkit"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m medkit "$@"\n')
    command.chmod(0o755)
    return shell_environment | {"PATH": f"{folder}:{shell_environment['PATH']}", "HOME": str(tmp_path)}


BASH = """
eval "$(medkit completion bash)"
compopt() { printf 'compopt %s %s\\n' "$1" "$2"; }
try() {
    COMP_WORDS=("$@")
    COMP_CWORD=$(($# - 1))
    COMPREPLY=()
    _medkit_completion medkit
    printf '%s|' "${COMPREPLY[@]}"
    echo
}
try medkit run seg
try medkit run segment --bundle brain_mri_s
try medkit run segment --bundle = brain_mri_s
try medkit run segment --method =
try medkit run segment --labels "right\\\\ thal"
try medkit run segment sc
complete -p medkit
"""


def test_bash(with_medkit: dict[str, str], tmp_path: Path) -> None:
    """Values with spaces are quoted, options take `=`, and files are left to the shell."""
    lines = run(with_medkit, tmp_path, "bash", "--norc", "-c", BASH).splitlines()
    assert lines == [
        "segment|",
        "brain_mri_segmentation|",
        "brain_mri_segmentation|",
        "network|threshold|grow|",
        "right\\ thalamus|",
        "compopt -o default",
        "|",
        "complete -o nosort -F _medkit_completion medkit",
    ]


ZSH = """
compdef() { : }
compadd() { print -l -- ${(P)argv[-1]} }
_describe() { print -l -- ${(P)argv[-2]} }
_path_files() { print files $@ }
eval "$(medkit completion zsh)"
try() { words=("$@"); CURRENT=$#; _medkit_completion }
rehash
try medkit run seg
try medkit run register --bundle ""
try medkit run segment sc
"""


def test_zsh(with_medkit: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    lines = run(with_medkit, tmp_path, "zsh", "-f", "-c", ZSH).splitlines()
    assert any(line.startswith("segment") for line in lines)
    assert [line for line in lines if "brain_mri_registration" in line]
    assert [line for line in lines if line.startswith("files")]


def test_fish(with_medkit: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    (tmp_path / "scan.nii.gz").touch()

    def complete(line: str) -> list[str]:
        script = f"medkit completion fish | source; complete -C {line!r}"
        lines = run(with_medkit, tmp_path, "fish", "--no-config", "-c", script).splitlines()
        return [line.split("\t")[0] for line in lines]

    assert complete("medkit run seg") == ["segment"]
    assert complete("medkit run segment --bundle brain_mri_s") == ["brain_mri_segmentation"]
    assert "scan.nii.gz" in complete("medkit run segment sc")
