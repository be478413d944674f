"""A real Slurm, and what may happen to jobs: every case has one result or one named failure afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm import finished, queue
from waiting import processes_in, wait_for

pytestmark = pytest.mark.slow

Shell = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


def state(shell: Shell) -> tuple[int, dict[str, object]]:
    """The exit code of `medkit status`, and its JSON."""
    done = shell("medkit status out --json")
    return done.code, json.loads(done.out)


def counts(found: dict[str, object]) -> tuple[object, ...]:
    return found["done"], found["failed"], found["to_do"], found["unknown"]


def worked_on(folder: Path) -> list[str]:
    """The results that were made, not kept, each as often as it was."""
    blocks = [json.loads(line) for path in (folder / "records").iterdir() for line in path.read_text().splitlines()]
    return [b["path"] for b in blocks if b["medkit"]["status"] == "ok" and not b["medkit"]["skipped"]]


def logs(folder: Path) -> str:
    """What all jobs have printed."""
    return "".join(path.read_text() for path in sorted((folder / "logs").iterdir()))


WAITING_PIPE = "-- 'medkit run wait --marks {} | medkit run pair'"
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

    again = on_slurm("medkit submit slurm -o out --only failed")
    assert again.code == 0, again.err
    finished()
    code, found = state(on_slurm)
    assert (code, counts(found)) == (1, (7, 2, 0, 0))


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_shard_that_is_stopped_is_continued(on_slurm: Shell, blob: Make, tmp_path: Path, name: str) -> None:
    for case in "abcdef":
        blob(f"scans/{case}.nii.gz")
    job = on_slurm(f"ls scans/* | medkit submit slurm --shards 2 -o out {WAITING_PIPE.format(tmp_path)}").out.strip()
    wait_for(lambda: (tmp_path / "a.started").exists() and (tmp_path / "b.started").exists(), 60)
    code, found = state(on_slurm)
    assert (code, found["to_do"], found["shards"]["running"]) == (75, 6, 2)
    subprocess.run(["scancel", f"--signal={name}", f"{job}_1"], check=True)

    def stopped() -> bool:
        return any(line.startswith("1 PENDING") for line in queue())

    for case, following in (("a", "c"), ("c", "e")):  # the case in work ends; the signal may come a little later
        (tmp_path / f"{case}.go").touch()
        wait_for(lambda started=tmp_path / f"{following}.started": stopped() or started.exists(), 60)
    wait_for(stopped, 60)
    (tmp_path / "go").touch()
    finished()
    code, found = state(on_slurm)
    assert (code, counts(found)) == (0, (6, 0, 0, 0))
    assert len(worked_on(tmp_path / "out")) == len(set(worked_on(tmp_path / "out"))) == 12
    log = (tmp_path / f"out/logs/{job}_1.log").read_text()
    assert "stopped by" in log
    assert "e_waited.nii.gz" in log  # the second attempt has added its lines


def test_one_task_of_the_array_by_hand(on_slurm: Shell, blob: Make, tmp_path: Path) -> None:
    for name in "abcdef":
        blob(f"scans/{name}.nii.gz")
    assert (
        on_slurm("ls scans/* | medkit submit slurm --shards 3 --job-arg=--hold -o out -- 'medkit run pair'").code == 0
    )
    subprocess.run(["scancel", "--quiet", f"--user={os.getuid()}"], check=True)
    assert on_slurm("sed -i /--hold/d out/job.sh; sbatch --array=2 out/job.sh").code == 0
    finished()
    made = sorted(path.name for path in (tmp_path / "out").glob("*_copy.nii.gz"))
    assert made == ["b_copy.nii.gz", "e_copy.nii.gz"]
    assert state(on_slurm)[1]["unfinished_shards"] == [1, 3]


def test_a_merge_after_all_jobs_and_more_shards_than_arrays_hold(on_slurm: Shell, blob: Make, tmp_path: Path) -> None:
    for name in ("a", "b", "fail", "c"):
        blob(f"scans/{name}.nii.gz")
    refused = on_slurm("seq 3000 | medkit submit slurm --shards 2000 -o out -- cat")
    assert (refused.code, "at most 1000 jobs" in refused.err) == (2, True)
    line = "ls scans/* | medkit submit slurm --shards 2 -o out -- 'medkit run tabled --table out/all.tsv'"
    job = on_slurm(line).out.strip()
    after = on_slurm(f"sbatch --dependency=afterany:{job} --output=merge.log --wrap 'medkit merge out'")
    assert after.code == 0, after.err
    finished()
    rows = (tmp_path / "out/all.tsv").read_text().splitlines()[1:]
    assert sorted(row.split("\t")[0] for row in rows) == [f"../scans/{name}.nii.gz" for name in "abc"]
    assert len((tmp_path / "out/records.jsonl").read_text().splitlines()) == 4


def test_two_equal_arrays_do_nothing_twice(on_slurm: Shell, blob: Make, tmp_path: Path) -> None:
    for name in range(12):
        blob(f"scans/slow{name}.nii.gz")
    for folder in ("one", "two"):
        line = f"ls scans/* | medkit submit slurm --shards 3 -o {folder} -- 'medkit run fragile -o results'"
        assert on_slurm(line).code == 0
    finished()
    assert on_slurm("medkit status one").code == 0
    assert on_slurm("medkit status two").code == 0
    both = worked_on(tmp_path / "one") + worked_on(tmp_path / "two")
    assert len(both) == len(set(both)) == 12


def test_a_job_that_takes_too_much_memory(on_slurm: Shell, blob: Make, tmp_path: Path) -> None:
    for name in ("a", "b", "hungry", "z"):
        blob(f"scans/{name}.nii.gz")
    assert on_slurm(f"ls scans/* | medkit submit slurm --shards 1 --mem 600M -o out {PIPE}").code == 0
    finished()
    code, found = state(on_slurm)
    assert code == 75
    assert "hungry_copy.nii.gz" in [Path(death["result"]).name for death in found["killed"]]
    assert found["shards"]["lost"] + found["shards"]["ended"] == 1
    again = on_slurm("medkit submit slurm -o out --only failed --dry-run")
    assert "--mem=1200M" in again.out
    (tmp_path / "scans/hungry.nii.gz").unlink()
    assert on_slurm("medkit submit slurm -o out --only failed").code == 0
    finished()
    code, found = state(on_slurm)
    assert (code, counts(found)) == (1, (3, 1, 0, 0))


def test_a_job_that_is_killed(on_slurm: Shell, blob: Make, tmp_path: Path) -> None:
    for name in "abcd":
        blob(f"scans/{name}.nii.gz")
    job = on_slurm(f"ls scans/* | medkit submit slurm --shards 1 -o out {WAITING_PIPE.format(tmp_path)}").out.strip()
    (tmp_path / "a.go").touch()
    wait_for(lambda: (tmp_path / "b.started").exists() and len(worked_on(tmp_path / "out")) == 2, 60)
    subprocess.run(["scancel", "--signal=KILL", "--full", job], check=True)
    finished()
    code, found = state(on_slurm)
    assert (code, found["to_do"], found["shards"]["lost"]) == (75, 3, 1)
    assert [Path(death["result"]).name for death in found["killed"]] == ["b_waited.nii.gz"]
    (tmp_path / "go").touch()
    assert on_slurm("medkit submit slurm -o out --only failed").code == 0
    finished()
    code, found = state(on_slurm)
    assert (code, counts(found), found["killed"]) == (0, (4, 0, 0, 0), [])


def test_a_stage_that_is_killed(on_slurm: Shell, blob: Make, tmp_path: Path) -> None:
    for name in "abcd":
        blob(f"scans/{name}.nii.gz")
    assert on_slurm(f"ls scans/* | medkit submit slurm --shards 1 -o out {WAITING_PIPE.format(tmp_path)}").code == 0
    (tmp_path / "a.go").touch()
    wait_for(lambda: (tmp_path / "b.started").exists() and (tmp_path / "b.started").read_text(), 60)
    wait_for(lambda: len(worked_on(tmp_path / "out")) == 2, 60)
    child = int((tmp_path / "b.started").read_text())
    parent = re.findall(r"^PPid:\s*(\d+)", Path(f"/proc/{child}/status").read_text(), re.MULTILINE)[0]
    os.kill(int(parent), signal.SIGKILL)
    finished()
    assert (tmp_path / "out/shards/1").read_text() == "137\n"
    code, found = state(on_slurm)
    assert (code, counts(found)) == (75, (1, 0, 3, 0))
    (tmp_path / "go").touch()
    assert on_slurm("medkit submit slurm -o out --only failed").code == 0
    finished()
    code, found = state(on_slurm)
    assert (code, counts(found)) == (0, (4, 0, 0, 0))


def test_a_job_that_gives_way_to_another(on_slurm: Shell, blob: Make, tmp_path: Path) -> None:
    for name in range(16):
        blob(f"scans/slow{name:02}.nii.gz")
    assert on_slurm(f"ls scans/* | medkit submit slurm --shards 2 --cpus 4 -o out {PIPE}").code == 0
    wait_for(lambda: len(list((tmp_path / "out").glob("*_copy.nii.gz"))) >= 2, 60)
    assert on_slurm("sbatch --partition=urgent --cpus-per-task=4 --output=/dev/null --wrap 'sleep 1'").code == 0
    finished()
    code, found = state(on_slurm)
    assert (code, counts(found)) == (0, (16, 0, 0, 0))
    assert len(worked_on(tmp_path / "out")) == len(set(worked_on(tmp_path / "out"))) == 32
    assert "stopped by a signal" in logs(tmp_path / "out")


def test_a_node_that_fails(on_slurm: Shell, blob: Make, tmp_path: Path) -> None:
    for name in range(16):
        blob(f"scans/slow{name:02}.nii.gz")
    assert on_slurm(f"ls scans/* | medkit submit slurm --shards 2 --cpus 4 -o out {PIPE}").code == 0
    wait_for(lambda: len(list((tmp_path / "out").glob("*_copy.nii.gz"))) >= 2, 60)
    subprocess.run(["scontrol", "update", "nodename=n2", "state=down", "reason=test"], check=True)
    try:
        finished()
    finally:
        # it may have come back by itself
        subprocess.run(["scontrol", "update", "nodename=n2", "state=resume"], check=False, capture_output=True)
    code, found = state(on_slurm)
    assert (code, counts(found)) == (0, (16, 0, 0, 0))
    assert len(set(worked_on(tmp_path / "out"))) == 32


def test_the_time_limit(on_slurm: Shell, blob: Make, tmp_path: Path) -> None:
    for name in range(50):
        blob(f"scans/slow{name:02}.nii.gz")
    more = "--job-arg=--time=1 --job-arg=--signal=USR1@45"
    assert on_slurm(f"ls scans/* | medkit submit slurm --shards 1 {more} -o out {PIPE}").code == 0
    finished()
    code, found = state(on_slurm)
    assert (code, counts(found)) == (0, (50, 0, 0, 0))
    assert len(worked_on(tmp_path / "out")) == len(set(worked_on(tmp_path / "out"))) == 100
    assert "stopped by a signal" in logs(tmp_path / "out")


def test_each_job_has_gpus_of_its_own(on_slurm: Shell, blob: Make, tmp_path: Path) -> None:
    """Four jobs at once on two nodes with two GPUs each: no job waits for another, and none shares a GPU."""
    if "gpu" not in on_slurm("sinfo --noheader --format=%G").out:
        pytest.skip("only root can pretend that there are GPUs")
    for name in "abcd":
        blob(f"scans/{name}.nii.gz")
    commands = (
        "touch at.$SLURM_ARRAY_TASK_ID; until [ $(ls at.* | wc -l) = 4 ]; do sleep 0.1; done; "
        "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES > gpus.$SLURM_ARRAY_TASK_ID; medkit run pair"
    )
    assert on_slurm(f"ls scans/* | medkit submit slurm --shards 4 --gpus 1 -o out -- '{commands}'").code == 0
    finished()
    assert state(on_slurm)[0] == 0
    given = [path.read_text().split() for path in tmp_path.glob("gpus.*")]
    assert sorted(given) == [[node, gpu] for node in ("n1", "n2") for gpu in ("0", "1")]


@pytest.mark.parametrize("which", ["srun", "script"])
def test_what_surrounds_a_shard_is_killed(on_slurm: Shell, blob: Make, tmp_path: Path, which: str) -> None:
    for name in "abcd":
        blob(f"scans/{name}.nii.gz")
    assert on_slurm(f"ls scans/* | medkit submit slurm --shards 1 -o out {WAITING_PIPE.format(tmp_path)}").code == 0
    wait_for(lambda: (tmp_path / "a.started").exists(), 60)
    words = {"srun": b"srun\0--kill", "script": b"slurm_script"}[which]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").samefile(tmp_path) and words in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
    finished()
    wait_for(lambda: not processes_in(tmp_path), 15)
    code, found = state(on_slurm)
    assert (code, found["unfinished_shards"]) == (75, [1])
    (tmp_path / "go").touch()
    assert on_slurm("medkit submit slurm -o out --only failed").code == 0
    finished()
    code, found = state(on_slurm)
    assert (code, counts(found), found["killed"]) == (0, (4, 0, 0, 0), [])
