"""Commands that submit, and the lists of jobs that schedulers print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from medkit.cluster.schedulers import RUNNING, SCHEDULERS, WAITING

Shell = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]
Pretend = Callable[..., Path]

SQUEUE = "17 3 RUNNING\n17 4 PENDING\n17 5 REQUEUED\n18 6 COMPLETING\n99 1 RUNNING\n20 N/A RUNNING\n"
QSTAT_PBS = """\
Job id                 Name             User              Time Use S Queue
---------------------  ---------------- ----------------  -------- - -----
17[].head              medkit-1a2b3c    anna                     0 B workq
17[3].head             medkit-1a2b3c    anna              00:01:02 R workq
17[4].head             medkit-1a2b3c    anna                     0 Q workq
17[5].head             medkit-1a2b3c    anna              00:00:10 X workq
18.head                k6-1a2b3c        anna              00:00:10 E workq
99[1].head             other            anna              00:00:10 R workq
"""
QSTAT_SGE = """\
job-ID  prior   name       user  state submit/start at     queue         slots ja-task-ID
-----------------------------------------------------------------------------------------
     17 0.55500 medkit-1a2 anna  r     11/29/2026 06:00:00 all.q@n1          1 3
     17 0.55500 medkit-1a2 anna  Rr    11/29/2026 06:00:00 all.q@n2          1 6
     17 0.00000 medkit-1a2 anna  qw    11/29/2026 06:00:00                   1 4,5
     18 0.00000 medkit-1a2 anna  hqw   11/29/2026 06:00:00                   1 7-11:2
     99 0.00000 other      anna  qw    11/29/2026 06:00:00                   1 1-9:1
"""
BJOBS = "17  3  RUN\n17  4  PEND\n17 5 DONE\n18[6] 6 RUN\n99 1 RUN\n18 7 SSUSP\n"


@pytest.mark.parametrize(
    ("name", "text", "running", "waiting"),
    [
        ("slurm", SQUEUE, {3, 6}, {4, 5}),
        ("pbs", QSTAT_PBS, {3, 6}, {4}),
        ("sge", QSTAT_SGE, {3, 6}, {4, 5, 7, 9, 11}),
        ("lsf", BJOBS, {3, 6}, {4, 7}),
    ],
)
def test_lists_of_jobs(name: str, text: str, running: set[int], waiting: set[int]) -> None:
    found = SCHEDULERS[name].read_queue(text, ["17[].head", "18.head"] if name == "pbs" else ["17", "18"])
    assert found == dict.fromkeys(running, RUNNING) | dict.fromkeys(waiting, WAITING)
    assert SCHEDULERS[name].read_queue("", ["17"]) == {}


ANSWERS = {
    "slurm": ("sbatch", "17;cluster\n", "17"),
    "pbs": ("qsub", "17[].head\n", "17[].head"),
    "sge": ("qsub", "17.1-8:1\n", "17"),
    "lsf": ("bsub", "Job <17> is submitted to default queue <normal>.\n", "17"),
}
FIRST = {
    "slurm": ["--parsable {job}"],
    "pbs": ["-J 1-8%3 {job}"],
    "sge": ["-terse {job}"],
    "lsf": ["", "#!/bin/bash"],
}
AGAIN = {
    "slurm": ["--parsable --array=2,4-5%3 {job}"],
    "pbs": ["-v K=2 -N k2-{digest} {job}", "-J 4-5%3 {job}"],
    "sge": ["-terse -t 2-2 {job}", "-terse -t 4-5 {job}"],
    "lsf": ["-J medkit-{digest}[2,4-5]%3", "#!/bin/bash"],
}


@pytest.mark.parametrize("name", list(ANSWERS))
def test_submitting_all_and_some(here: Shell, pretend: Pretend, blob: Make, tmp_path: Path, name: str) -> None:
    program, answer, job = ANSWERS[name]
    note = pretend(program, answer)
    for query in ("squeue", "qstat", "bjobs"):
        pretend(query)
    for number in range(8):
        blob(f"scans/{number}.nii.gz")
    done = here(f"ls scans/* | medkit submit {name} --shards 8 --max-running 3 -o out -- cat")
    assert (done.code, done.out) == (0, f"{job}\n")
    digest = done.err.split("sha256 ")[1][:6]

    def told(expected: list[str]) -> bool:
        lines = [line.format(job=tmp_path / "out/job.sh", digest=digest) for line in expected]
        return note.read_text().splitlines()[: len(lines)] == lines

    assert told(FIRST[name])
    note.unlink()
    for shard in (1, 3, 6, 7, 8):
        (tmp_path / f"out/shards/{shard}").write_text("0\n")
    (tmp_path / "out/shards/2").write_text("1\n")
    again = here(f"medkit submit {name} -o out --only failed")
    assert again.code == 0, again.err
    assert told(AGAIN[name])
    assert "shard 2,4-5 of 8" in again.err


def test_shards_in_the_queue_are_not_submitted_again(
    here: Shell, pretend: Pretend, submitted: Shell, blob: Make
) -> None:
    for number in range(3):
        blob(f"scans/{number}.nii.gz")
    submitted("cat", shards=3)
    pretend("squeue", "17 1 RUNNING\n17 2 PENDING\n17 3 PENDING\n")
    done = here("medkit submit slurm -o out --only failed")
    assert (done.code, done.out) == (0, "")
    assert "3 shards still in the queue" in done.err
    assert "nothing to do again" in done.err


def test_a_queue_that_cannot_be_asked(here: Shell, pretend: Pretend, submitted: Shell, blob: Make) -> None:
    blob("scans/a.nii.gz")
    submitted("cat", shards=1)
    pretend("squeue", code=1)
    done = here("medkit status out")
    assert done.code == 75
    assert "lost: shard 1: the queue is not known here" in done.out


def test_no_jobs_left_on_lsf(here: Shell, pretend: Pretend, blob: Make, tmp_path: Path) -> None:
    blob("scans/a.nii.gz")
    pretend("bsub", "Job <17> is submitted\n")
    here("ls scans/* | medkit submit lsf --shards 1 -o out -- cat")
    pretend("bjobs")
    (tmp_path / "bin/bjobs").write_text("#!/bin/sh\necho No unfinished job found >&2; exit 255\n")
    assert "not in the queue" in here("medkit status out").out
