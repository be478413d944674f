"""A real Slurm, and what may happen to jobs: every case has one result or one named failure afterwards."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm
from waiting import wait_for

pytestmark = pytest.mark.slow

Shell = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def configuration() -> Iterator[Path]:
    """The configuration of a cluster of two nodes."""
    if missing := slurm.missing():
        pytest.skip(f"Slurm is not installed: {', '.join(missing)}")
    with slurm.cluster() as config:
        yield config


@pytest.fixture
def on_slurm(configuration: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """Run a line of bash where `sbatch` and `medkit` with the toy plugin are; jobs are cancelled at the end."""
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    yield lambda line: shell(line, env={"SLURM_CONF": str(configuration)})
    subprocess.run(["scancel", "--quiet", f"--user={os.getuid()}"], check=False)
    wait_for(lambda: not queue(), 60)


def queue() -> list[str]:
    """The lines of the queue."""
    done = subprocess.run(["squeue", "--noheader", "--array", "--format=%K %T"], capture_output=True, text=True)
    return done.stdout.splitlines()


def finished(seconds: float = 90) -> None:
    wait_for(lambda: not queue(), seconds)


def state(shell: Shell) -> tuple[int, dict[str, object]]:
    """The exit code of `medkit status`, and its JSON."""
    done = shell("medkit status out --json")
    return done.code, json.loads(done.out)


def counts(found: dict[str, object]) -> tuple[object, ...]:
    return found["done"], found["failed"], found["to_do"], found["unknown"]


PIPE = "-- 'medkit run fragile | medkit run pair'"


def test_an_array_of_two_stages(on_slurm: Shell, blob: Make, tmp_path: Path) -> None:
    """Also: a broken case, a case that kills its process, and the same again for what has failed."""
    for name in ("fail", "die", *"abcdefg"):
        blob(f"scans/{name}.nii.gz")
    done = on_slurm(f"ls scans/* | medkit submit slurm --shards 3 --max-running 2 -o out {PIPE}")
    assert done.code == 0, done.err
    assert done.out.strip().isdecimal()
    finished()
    code, found = state(on_slurm)
    assert (code, counts(found)) == (1, (7, 2, 0, 0))
    reasons = {Path(failure["path"]).name: failure["error"] for failure in found["failures"]}
    assert reasons["fail.nii.gz"] == "ValueError: told to fail"
    assert "SIGKILL" in reasons["die.nii.gz"]
    assert [Path(death["result"]).name for death in found["killed"]] == ["die_copy.nii.gz"]
    assert len(list((tmp_path / "out").glob("*_copy_copy.nii.gz"))) == 7
    merged = on_slurm("medkit merge out")
    assert merged.paths == [tmp_path / "out/records.jsonl"]
    assert len(merged.paths[0].read_text().splitlines()) == 9 + 7

    blob("scans/die.nii.gz", "")  # the second try goes well for one of them
    (tmp_path / "scans/fail.nii.gz").rename(tmp_path / "scans/x")
    again = on_slurm("medkit submit slurm -o out --only failed")
    assert again.code == 0, again.err
    finished()
    code, found = state(on_slurm)
    assert (code, counts(found)) == (1, (7, 2, 0, 0))
    assert "no such file" in on_slurm("medkit status out").out


@pytest.mark.parametrize("signal", ["USR1", "TERM"])
def test_a_shard_that_is_stopped_is_continued(on_slurm: Shell, blob: Make, tmp_path: Path, signal: str) -> None:
    for name in "abcdef":
        blob(f"scans/{name}.nii.gz")
    line = (
        f"ls scans/* | medkit submit slurm --shards 2 -o out -- 'medkit run wait --marks {tmp_path} | medkit run pair'"
    )
    job = on_slurm(line).out.strip()
    wait_for(lambda: (tmp_path / "a.started").exists() and (tmp_path / "b.started").exists(), 60)
    code, found = state(on_slurm)
    assert (code, found["to_do"], found["shards"]["running"]) == (75, 6, 2)
    subprocess.run(["scancel", f"--signal={signal}", f"{job}_1"], check=True)
    wait_for(lambda: "SIG" in (tmp_path / f"out/logs/{job}_1.log").read_text() or True)
    (tmp_path / "a.go").touch()  # the case in work ends, and no other is begun
    wait_for(lambda: any(line.startswith("1 PENDING") for line in queue()), 60)
    (tmp_path / "go").touch()
    finished()
    code, found = state(on_slurm)
    assert (code, counts(found)) == (0, (6, 0, 0, 0))
    lines = [
        json.loads(line) for path in (tmp_path / "out/records").iterdir() for line in path.read_text().splitlines()
    ]
    worked = [record["path"] for record in lines if not record["medkit"]["skipped"]]
    assert len(worked) == len(set(worked)) == 12
    log = (tmp_path / f"out/logs/{job}_1.log").read_text()
    assert "stopped by" in log  # and the second attempt has added its lines
