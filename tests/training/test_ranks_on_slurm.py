"""Ranks that a real Slurm starts on two nodes, with the script of the documentation."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm
from places import HELPERS, REPOSITORY
from processes import train_over
from tiny import write_bundle, write_labels
from trained import is_like
from waiting import wait_for

pytestmark = pytest.mark.slow

Submit = Callable[..., str]


@pytest.fixture
def submit(clean_environment: None, shell_environment: dict[str, str], tmp_path: Path) -> Iterator[Submit]:
    """Submit a script to a cluster of two nodes; gives the number of the job. Jobs are cancelled at the end."""
    if missing := slurm.missing():
        pytest.skip(f"Slurm is not installed: {', '.join(missing)}")
    with slurm.cluster() as config:
        search = f"{HELPERS}:{shell_environment.get('PYTHONPATH', '')}"
        environ = shell_environment | {"SLURM_CONF": str(config), "PYTHONPATH": search, "TINY_MARKS": str(tmp_path)}
        environ |= {"MASTER_ADDR": "127.0.0.1"}  # nobody knows the names of the pretended nodes
        environ.pop("PYTHONWARNINGS", None)  # torch itself uses what it calls deprecated

        def send(script: str, **variables: str) -> str:
            (tmp_path / "job.sh").write_text(script)
            done = subprocess.run(
                ["sbatch", "--parsable", "job.sh"],
                env=environ | variables,
                cwd=tmp_path,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        os.environ["SLURM_CONF"] = str(config)
        try:
            yield send
        finally:
            del os.environ["SLURM_CONF"]


def queue() -> str:
    return subprocess.run(["squeue", "--noheader", "--format=%T"], capture_output=True, text=True).stdout


def script_of_the_documentation(command: str, resources: str) -> str:
    """The script for ranks, with another command and other resources."""
    page = (REPOSITORY / "docs" / "clusters.md").read_text()
    found = next(block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if "bad-exit=0 medkit" in block)
    script = re.sub(r"medkit train .*", command, found)
    return re.sub(r"#SBATCH --nodes.*", f"#SBATCH {resources}", script)


def test_a_job_that_is_stopped_goes_on_to_the_weights_of_an_unbroken_one(submit: Submit, tmp_path: Path) -> None:
    bundle, data = write_bundle(tmp_path / "halves"), write_labels(tmp_path / "labels")
    options = ["--bundle", bundle, "--trust", "--data", data, "--threads", 1]
    command = " ".join(str(word) for word in ("medkit", "train", "halves", *options, "-o", tmp_path / "out"))
    script = script_of_the_documentation(
        command, "--nodes=2 --ntasks-per-node=1 --cpus-per-task=1 --mem-per-cpu=2G --time=10"
    )
    job = submit(script, TINY_TROUBLE="wait@6")
    log = tmp_path / f"train_{job}.log"
    wait_for(lambda: len(list(tmp_path.glob("*.started"))) == 2 or not queue(), 300)
    assert queue(), log.read_text()
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    subprocess.run(["sleep", "1"], check=True)
    (tmp_path / "go").touch()
    wait_for(lambda: not queue(), 240)
    said = log.read_text()
    assert "stopped at step 6;" in said, said
    assert "continuing from step 6 of" in said
    assert said.count("4 items for training") + said.count("3 items for training") == 2, "one rank tells, each time"
    assert said.rstrip().endswith(str(tmp_path / "out"))
    unbroken = tmp_path / "unbroken"
    ended = train_over(2, ["train", "halves", *options, "-o", unbroken])
    assert [each.code for each in ended] == [0, 0]
    assert is_like(tmp_path / "out", unbroken)


def test_a_batch_script_without_srun_is_one_rank(submit: Submit, tmp_path: Path) -> None:
    bundle, data = write_bundle(tmp_path / "halves"), write_labels(tmp_path / "labels")
    command = f"medkit train halves --bundle {bundle} --trust --data {data} -o {tmp_path / 'out'} --dry-run"
    job = submit(f"#!/bin/bash\n#SBATCH --ntasks=2 --mem-per-cpu=2G --output=%j.log\n{command}\nsrun {command}\n")
    wait_for(lambda: not queue(), 300)
    said = (tmp_path / f"{job}.log").read_text()
    assert re.findall(r"^on: cpu.*", said, re.MULTILINE)[0].count("ranks") == 0, said
    assert re.findall(r"^on: cpu.*", said, re.MULTILINE)[1].endswith(", 2 ranks"), said
    assert said.count("on: cpu") == 2
