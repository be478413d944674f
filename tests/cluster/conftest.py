"""Fixtures of the tests of clusters: schedulers that only note what they were told, and a real Slurm."""

from __future__ import annotations

import getpass
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm
from waiting import processes_in, wait_for

Run = Callable[..., "Outcome"]  # noqa: F821


@pytest.fixture
def pretend(tmp_path: Path) -> Callable[..., Path]:
    """Make a program that notes its arguments and its stdin, and answers: pretend("sbatch", "17"); returns the note."""
    (tmp_path / "bin").mkdir()

    def make(name: str, answer: str = "", code: int = 0) -> Path:
        (tmp_path / f"{name}.answer").write_text(answer)
        program = tmp_path / "bin" / name
        program.write_text(
            f'#!/bin/bash\necho "$@" >> {tmp_path}/{name}.note\n'
            f"[ {name} = bsub ] && cat >> {tmp_path}/{name}.note\ncat {tmp_path}/{name}.answer\nexit {code}\n"
        )
        program.chmod(0o755)
        return tmp_path / f"{name}.note"

    return make


@pytest.fixture
def here(
    toy: Run, shell: Run, shell_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run a line of bash in which the pretended programs come first; a last `medkit` in this process, to save time."""
    monkeypatch.chdir(tmp_path)
    environment = {"PATH": f"{tmp_path}/bin:{shell_environment['PATH']}"}

    def run(line: str) -> object:
        first, _, last = line.partition("medkit ")
        if "<" in last or (first and not first.endswith("| ")):
            return shell(line, env=environment)
        lines = shell(first.removesuffix("| ")).out if first else ""
        return toy(*shlex.split(last), input=lines, env=environment)

    return run


@pytest.fixture
def submitted(here: Run, pretend: Callable[..., Path]) -> Run:
    """Submit files in `scans` to a pretended Slurm: submitted("medkit run pair", shards=2)."""
    pretend("sbatch", "17\n")
    pretend("squeue")
    pretend("scontrol")

    def submit(pipeline: str, *, shards: int = 2, more: str = "") -> object:
        done = here(f"ls scans/* | medkit submit slurm --shards {shards} {more} -o out -- '{pipeline}'")
        assert done.code == 0, done.err
        return done

    return submit


@pytest.fixture(scope="session")
def configuration() -> Iterator[Path]:
    """The configuration of a cluster of two nodes."""
    if missing := slurm.missing():
        pytest.skip(f"Slurm is not installed: {', '.join(missing)}")
    with slurm.cluster() as config:
        yield config


@pytest.fixture
def on_slurm(
    configuration: Path,
    shell: Run,
    shell_environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Run]:
    """Run a line of bash where `sbatch` and `medkit` with the toy plugin are.

    Jobs are cancelled at the end, and no process of the test may be left then.
    """
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    shell_environment["SLURM_CONF"] = str(configuration)
    yield shell
    subprocess.run(["scancel", "--quiet", f"--user={getpass.getuser()}"], check=False)
    slurm.finished(60)
    wait_for(lambda: not processes_in(tmp_path), 15)
