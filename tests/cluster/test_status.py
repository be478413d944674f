"""`medkit status`: what has become of each input, from records, exit codes, claims and the queue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import wait_for

from medkit.cluster.stages import is_medkit_only, tasks_of

Shell = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]
Pretend = Callable[..., Path]
PIPE = "medkit run fragile | medkit run pair"


def state(here: Shell) -> tuple[int, dict[str, object]]:
    done = here("medkit status out --json")
    return done.code, json.loads(done.out)


def counts(found: dict[str, object]) -> list[object]:
    return [found[key] for key in ("done", "failed", "to_do", "unknown")]


def test_from_the_first_to_the_last_shard(submitted: Shell, here: Shell, pretend: Pretend, blob: Make) -> None:
    for name in ("a", "b", "fail", "c"):
        blob(f"scans/{name}.nii.gz")
    submitted(PIPE)
    pretend("squeue", "17 1 PENDING\n17 2 PENDING\n")
    code, found = state(here)
    assert (code, counts(found), found["shards"]["waiting"]) == (75, [0, 0, 4, 0], 2)
    assert here("bash out/shard.sh 1").code == 0
    pretend("squeue", "17 2 RUNNING\n")
    code, found = state(here)
    assert (code, counts(found)) == (75, [2, 0, 2, 0])
    assert found["cases_per_minute"] > 0
    assert found["minutes_left"] > 0
    assert here("bash out/shard.sh 2").code == 1
    pretend("squeue")
    code, found = state(here)
    assert (code, counts(found), found["unfinished_shards"]) == (1, [3, 1, 0, 0], [2])
    assert [(stage["task"], stage["done"], stage["failed"]) for stage in found["stages"]] == [
        ("fragile", 3, 1),
        ("pair", 3, 0),
    ]
    text = here("medkit status out").out
    assert "inputs: 3 done, 1 failed, 0 to do, 4 in all\n" in text
    assert "/scans/fail.nii.gz: ValueError: told to fail\n" in text
    assert "--only failed  (shard 2)\n" in text
    assert "next request: --mem " in text


def test_all_is_done(submitted: Shell, here: Shell, blob: Make, tmp_path: Path) -> None:
    blob("scans/a.nii.gz")
    submitted(PIPE, shards=1)
    assert here("bash out/shard.sh 1").code == 0
    code, found = state(here)
    assert (code, counts(found), found["unfinished_shards"]) == (0, [1, 0, 0, 0], [])
    assert here("bash out/shard.sh 1").code == 0  # kept: counted once
    assert state(here) == (0, found)
    assert here("medkit submit slurm -o out --only failed").out == ""


def test_a_later_try_outranks_an_earlier_one(submitted: Shell, here: Shell, blob: Make, tmp_path: Path) -> None:
    for name in ("a", "late"):
        blob(f"scans/{name}.nii.gz")
    submitted(PIPE, shards=1)
    late = tmp_path / "scans/late.nii.gz"
    late.rename(tmp_path / "elsewhere")
    assert here("bash out/shard.sh 1").code == 1
    assert counts(state(here)[1]) == [1, 1, 0, 0]
    (tmp_path / "elsewhere").rename(late)
    assert here("bash out/shard.sh 1").code == 0
    code, found = state(here)
    assert (code, counts(found)) == (0, [2, 0, 0, 0])


def test_a_process_that_was_killed_is_named(submitted: Shell, here: Shell, blob: Make, tmp_path: Path) -> None:
    """A case that kills its process has a name, all others are done, and more memory is asked for."""
    for name in ("a", "die", "z"):
        blob(f"scans/{name}.nii.gz")
    submitted(PIPE, shards=1, more="--mem 3G")
    assert here("bash out/shard.sh 1").code == 1
    code, found = state(here)
    assert (code, counts(found)) == (1, [2, 1, 0, 0])
    assert [Path(death["result"]).name for death in found["killed"]] == ["die_copy.nii.gz"]
    assert found["advice"]["memory_mb"] == 6 * 1024
    assert "6144 MB" in here("medkit submit slurm -o out --only failed").err


def test_a_job_that_was_killed_is_lost(submitted: Shell, here: Shell, start: Shell, blob: Make, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        blob(f"scans/{name}.nii.gz")
    submitted(f"medkit run wait --marks {tmp_path}", shards=1)
    (tmp_path / "a.go").touch()
    command = ["bash", "out/shard.sh", "1"]
    job = subprocess.Popen(command, cwd=tmp_path, env=_environment(here), start_new_session=True)
    wait_for(lambda: (tmp_path / "b.started").exists() and counts(state(here)[1]) == [1, 0, 2, 0])
    assert state(here)[1]["killed"] == []
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    wait_for(lambda: state(here)[1]["killed"])  # the other processes of its group may end a moment later
    code, found = state(here)
    assert (code, counts(found), found["shards"]["lost"]) == (75, [1, 0, 2, 0], 1)
    assert [Path(death["result"]).name for death in found["killed"]] == ["b_waited.nii.gz"]
    text = here("medkit status out").out
    assert "killed: " in text
    assert "lost: shard 1: not in the queue, and without an exit code" in text
    (tmp_path / "go").touch()
    assert here("bash out/shard.sh 1").code == 0
    code, found = state(here)
    assert (code, counts(found), found["killed"]) == (0, [3, 0, 0, 0], [])


def _environment(here: Shell) -> dict[str, str]:
    """The environment in which the lines of bash run."""
    text = here("env -0").out
    return dict(entry.split("=", 1) for entry in text.split("\0") if entry)


def test_stages_that_medkit_does_not_know(submitted: Shell, here: Shell, blob: Make) -> None:
    """A filter that leaves cases out is believed if its shard went well; else nobody says what became of them."""
    for name in ("a", "b", "fail"):
        blob(f"scans/{name}.nii.gz")
    submitted("grep -v /b | medkit run fragile", shards=3)
    for k in (1, 2, 3):
        here(f"bash out/shard.sh {k}")
    # shard 2: grep finds nothing and ends with 1, medkit has no input
    code, found = state(here)
    assert (code, counts(found)) == (1, [1, 1, 0, 1])
    assert "1 neither in the records nor failed by name" in here("medkit status out").out


def test_folders_of_records_alone(toy: Shell, blob: Make, tmp_path: Path) -> None:
    toy("run", "fragile", blob("a.nii.gz"), blob("fail.nii.gz"), "--records", tmp_path / "r/records")
    done = toy("status", tmp_path / "r")
    assert done.code == 1
    assert "fragile: 1 done, 1 failed" in done.out
    with open(next((tmp_path / "r/records").iterdir()), "a") as file:
        file.write('{"path": "/cut of')
    done = toy("status", tmp_path / "r")
    assert "fragile: 1 done, 1 failed" in done.out
    assert "line 3 is not a whole record" in done.err
    (tmp_path / "r/inputs.txt").write_text("a.nii.gz\n/elsewhere/b.nii.gz\n")
    assert toy("status", tmp_path / "r").code == 75


def test_a_group_is_one_result_of_all_its_inputs(submitted: Shell, here: Shell, scan: Make) -> None:
    for number in range(3):
        scan(f"scans/{number}.nii.gz", seed=number)
    submitted("medkit run merge", shards=1)
    assert here("bash out/shard.sh 1").code == 0
    assert counts(state(here)[1]) == [3, 0, 0, 0]


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_no_such_folder(toy: Shell, blob: Make, tmp_path: Path, name: str) -> None:
    blob("file")
    done = toy("status", tmp_path / name)
    assert done.code == 2
    assert "expected the -o of medkit submit" in done.err


def test_a_damaged_submission(submitted: Shell, here: Shell, blob: Make, tmp_path: Path) -> None:
    blob("scans/a.nii.gz")
    submitted("cat", shards=1)
    (tmp_path / "out/submission.json").write_text('{"scheduler": "slurm"}')
    done = here("medkit status out")
    assert done.code == 3
    assert "expected a submission of medkit submit" in done.err


@pytest.mark.parametrize(
    ("pipeline", "tasks"),
    [
        ("medkit run register --fixed f | medkit run segment -q", ["register", "segment"]),
        (
            "sort | medkit  transform apply --transform x | python -m medkit run run-bundle",
            ["transform apply", "run-bundle"],
        ),
        ("fslmaths", []),
    ],
)
def test_the_tasks_of_commands(pipeline: str, tasks: list[str]) -> None:
    assert tasks_of(pipeline) == tasks


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        ("medkit run register --fixed 'a|b' | medkit run segment", True),
        ("A=1 medkit run register 2>> log | medkit run segment > names", True),
        ("medkit run register | gzip", False),
        ("medkit run register && medkit run segment", False),
        ("medkit run register | medkit run segment; ls", False),
        ("(medkit run register)", False),
        ("medkit run register | tee >(medkit run segment) | medkit run classify", False),
        ("medkit run 'register", False),
        ("", False),
    ],
)
def test_whether_records_tell_all(pipeline: str, expected: bool) -> None:
    assert is_medkit_only(pipeline) is expected


def test_the_end_of_a_foreign_stage_is_waited_for(submitted: Shell, here: Shell, blob: Make) -> None:
    blob("scans/a.nii.gz")
    submitted("medkit run pair | (cat; exit 137)", shards=1)
    assert here("bash out/shard.sh 1").code == 137
    code, found = state(here)
    assert (code, counts(found)) == (75, [0, 0, 1, 0])


def test_shards_that_end_without_any_record(submitted: Shell, here: Shell, blob: Make) -> None:
    blob("scans/a.nii.gz"), blob("scans/b.nii.gz")
    submitted("medkit run pair --nosuch")
    here("bash out/shard.sh 1; bash out/shard.sh 2; medkit status out < /dev/null")
    done = here("medkit status out")
    assert done.code == 75
    assert "exit code 2: shard 1-2: wrong usage; see logs/" in done.out
