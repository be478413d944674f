"""`medkit submit`: the frozen list, the scripts, and what is refused; `bash shard.sh K` works without a scheduler."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Shell = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]
Pretend = Callable[..., Path]


@pytest.fixture
def scans(blob: Make, tmp_path: Path) -> Path:
    for name in "abcde":
        blob(f"scans/{name}.nii.gz")
    return tmp_path / "scans"


# ---- the list


def test_the_list_is_frozen(submitted: Shell, here: Shell, scans: Path, tmp_path: Path) -> None:
    done = submitted("medkit run pair")
    content = (tmp_path / "out/inputs.txt").read_text()
    assert content == "".join(f"scans/{name}.nii.gz\n" for name in "abcde")
    assert hashlib.sha256(content.encode()).hexdigest() in done.err
    assert done.out == "17\n"
    (scans / "later.nii.gz").touch()
    assert here("bash out/shard.sh 1").code == 0
    assert here("bash out/shard.sh 2").code == 0
    made = sorted(path.name for path in (tmp_path / "out").glob("*_copy.nii.gz"))
    assert made == [f"{name}_copy.nii.gz" for name in "abcde"]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_each_line_is_in_one_shard(submitted: Shell, here: Shell, scans: Path, k: int) -> None:
    submitted("cat", shards=3)
    assert here(f"bash out/shard.sh {k}").lines == [f"scans/{name}.nii.gz" for name in "abcde"[k - 1 :: 3]]


def test_a_list_that_was_changed_is_refused(submitted: Shell, here: Shell, scans: Path, tmp_path: Path) -> None:
    submitted("cat")
    with open(tmp_path / "out/inputs.txt", "a") as file:
        file.write("scans/more.nii.gz\n")
    done = here("bash out/shard.sh 1")
    assert (done.code, done.out.count("nii.gz\n")) == (2, 0)
    again = here("medkit submit slurm -o out --only failed")
    assert again.code == 3
    assert "was changed since it was submitted" in again.err


def test_names_with_spaces_and_no_more_shards_than_inputs(submitted: Shell, here: Shell, blob: Make) -> None:
    blob("scans/a b.nii.gz")
    done = submitted("cat", shards=5)
    assert "1 input in 1 shard" in done.err
    assert here("bash out/shard.sh 1").lines == ["scans/a b.nii.gz"]


def test_inputs_that_come_twice_are_taken_once(here: Shell, pretend: Pretend, scans: Path, tmp_path: Path) -> None:
    pretend("sbatch", "17\n")
    done = here("ls scans/* scans/a* > list; medkit submit slurm --list list --shards 2 -o out -- cat")
    assert "1 line left out that came before" in done.err
    assert len((tmp_path / "out/inputs.txt").read_text().splitlines()) == 5


# ---- the commands


@pytest.mark.parametrize(
    ("pipeline", "lines"),
    [
        ("tr a-z A-Z | sed s/SCANS.//", ["A.NII.GZ", "C.NII.GZ", "E.NII.GZ"]),
        ('while read -r line; do echo "<$line>"; done', ["<scans/a.nii.gz>", "<scans/c.nii.gz>", "<scans/e.nii.gz>"]),
        ("cd scans && cat | head -1 # the first", ["scans/a.nii.gz"]),
        ('printf "%s\\n" "$HOME" > /dev/null; wc -l', ["3"]),
    ],
)
def test_any_commands_get_the_inputs(
    submitted: Shell, here: Shell, scans: Path, pipeline: str, lines: list[str]
) -> None:
    submitted(pipeline)
    done = here("bash out/shard.sh 1")
    assert (done.code, done.lines) == (0, lines)


def test_a_loop_that_fails(submitted: Shell, here: Shell, scans: Path) -> None:
    submitted("while read -r line; do false; done")
    assert here("bash out/shard.sh 1").code == 1


def test_commands_without_quotes(here: Shell, pretend: Pretend, scans: Path, tmp_path: Path) -> None:
    pretend("sbatch", "17\n")
    done = here("ls scans/* | medkit submit slurm --shards 1 -o out -- sed 's/ /_/;s/a/A B/'")
    assert done.code == 0, done.err
    assert here("bash out/shard.sh 1").lines[0] == "scA Bns/a.nii.gz"


@pytest.mark.parametrize(
    ("stages", "code"),
    [
        ((0, 0), 0),
        ((75, 1), 75),
        ((1, 75), 75),
        ((137, 0), 137),
        ((0, 137), 137),
        ((1, 0), 1),
        ((3, 1), 3),
        ((0, 138), 75),  # a program without handlers that Slurm's USR1 has ended
        ((143, 0), 75),
    ],
)
def test_exit_codes(
    submitted: Shell, here: Shell, scans: Path, tmp_path: Path, stages: tuple[int, int], code: int
) -> None:
    submitted(" | ".join(f"(cat > /dev/null; exit {stage})" for stage in stages))
    assert here("bash out/shard.sh 2").code == code
    left = tmp_path / "out/shards/2"
    assert (left.read_text() if left.exists() else "75") == f"{code}\n" or code == 75
    assert not (tmp_path / "out/shards/1").exists()


# ---- what is asked for


def directives(text: str) -> list[str]:
    return [line.split(" ", 1)[1] for line in text.splitlines() if line.startswith(("#SBATCH", "#PBS", "#BSUB", "#$"))]


def test_the_script_for_slurm(here: Shell, scans: Path, tmp_path: Path) -> None:
    asked = "--shards 4 --max-running 2 --cpus 3 --mem 2G --time 2:30:00 --gpus 1 --job-arg --partition=long"
    done = here(f"ls scans/* | medkit submit slurm {asked} -o out --dry-run -- cat")
    assert done.code == 0, done.err
    assert not (tmp_path / "out").exists()
    assert done.out.startswith(f"# sbatch --parsable {tmp_path}/out/job.sh\n")
    assert directives(done.out)[1:] == [
        "--array=1-4%2",
        "--ntasks=1",
        "--cpus-per-task=3",
        "--mem=2048M",
        "--time=150",
        "--gres=gpu:1",
        "--signal=USR1@180",
        "--requeue",
        "--open-mode=append",
        f"--output={tmp_path}/out/logs/%A_%a.log",
        "--partition=long",
    ]


@pytest.mark.parametrize(
    ("scheduler", "expected", "words"),
    [
        ("pbs", ["-l select=1:ncpus=2:mem=2048mb:ngpus=1", "-l walltime=01:00:00"], ["${PBS_ARRAY_INDEX:-$K}"]),
        ("sge", ["-t 1-4", "-tc 2", "-pe smp 2", "-l h_vmem=1024M", "-l h_rt=01:00:00"], ["$SGE_TASK_ID", "exit 99"]),
        ("lsf", ["-n 2", "-M 2048MB", "-W 60", "-Q 75"], ["$LSB_JOBINDEX", "[1-4]%2"]),
    ],
)
def test_the_scripts_for_other_schedulers(
    here: Shell, scans: Path, scheduler: str, expected: list[str], words: list[str]
) -> None:
    asked = "--shards 4 --max-running 2 --cpus 2 --mem 2G --time 60 --gpus 1"
    done = here(f"ls scans/* | medkit submit {scheduler} {asked} -o out --dry-run -- cat")
    assert done.code == 0, done.err
    assert set(expected) <= set(directives(done.out))
    assert "timeout --preserve-status --signal=USR1 3420 bash " in done.out  # 3 minutes before the limit
    for word in words:
        assert word in done.out


def test_the_scripts_are_bash(here: Shell, scans: Path) -> None:
    for scheduler in ("slurm", "pbs", "sge", "lsf"):
        done = here(f"ls scans/* | medkit submit {scheduler} --shards 2 --time 60 -o out --dry-run -- cat")
        assert subprocess.run(["bash", "-n"], input=done.out.encode(), check=False).returncode == 0


def test_records_tell_what_to_ask_for(submitted: Shell, here: Shell, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "out/records").mkdir(parents=True)
    block = {"status": "ok", "finished": "2026-01-01T00:00:00+00:00"}
    lines = [
        {"path": f"/r/{task}{case}", "Sources": [f"/s{case}"]}
        | {"medkit": block | {"task": task, "seconds": seconds, "peak_rss_mb": peak}}
        for task, seconds, peak in (("register", 30, 1000), ("segment", 90, 3000))
        for case in range(2)
    ]
    (tmp_path / "out/records/x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = submitted("cat")
    # 1.3 x (1000 + 3000 + 150 for each parent) MB; 3 cases of 120 s in the larger shard and the longest case, x 1.3,
    # 60 s of start-up for each stage, and the 237 s of the warning: 943 s
    assert "5600 MB, 20 minutes, from records" in done.err
    text = (tmp_path / "out/job.sh").read_text()
    assert "#SBATCH --mem=5600M\n#SBATCH --time=20\n#SBATCH --signal=USR1@237\n" in text
    like = here("ls scans/* | medkit submit slurm --shards 2 -o other --like out --mem 7G --dry-run -- cat")
    assert "7168 MB, 20 minutes" in like.err


# ---- refusals


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ls scans/* | medkit submit slurm -o out -- cat", "--shards N is missing"),
        ("ls -d scans | medkit submit slurm --shards 2 -o out -- cat", "a folder of several cases"),
        ("ls scans/* | medkit submit slurm --shards 2 -o out -- 'cat |'", "expected shell commands"),
        ("ls scans/* | medkit submit slurm --shards 2 -o out", "expected shell commands"),
        ("ls scans/* | medkit submit slurm --shards 2 -o 'a b' -- cat", "without spaces"),
        (
            "ls scans/* | medkit submit slurm --shards 2 -o out -- 'medkit run pair --shard auto'",
            "deals the inputs out",
        ),
        ("ls scans/* | medkit submit slurm --shards 2 -o out -- 'medkit run merge --group-by sub'", "of a group"),
        ("ls scans/* | medkit submit slurm --shards 2 -o out --time 3 -- cat", "no time is left"),
        ("ls scans/* | medkit submit slurm --shards 2 -o out --time soon -- cat", "expected minutes"),
        ("medkit submit slurm -o out --only failed", "nothing was submitted there"),
        ("medkit submit slurm -o out --only failed --shards 2", "of the earlier submission"),
    ],
)
def test_refused(here: Shell, pretend: Pretend, scans: Path, tmp_path: Path, line: str, reason: str) -> None:
    note = pretend("sbatch", "17\n")
    done = here(line)
    assert done.code in (2, 3)
    assert reason in done.err
    assert not note.exists()
    assert not (tmp_path / "out").exists()


def test_without_input(here: Shell, tmp_path: Path) -> None:
    done = here("medkit submit slurm --shards 2 -o out -- cat < /dev/null")
    assert (done.code, done.err) == (1, "medkit: submit: no input arrived\n")
    assert not (tmp_path / "out").exists()


def test_a_task_that_is_not_installed(here: Shell, pretend: Pretend, scans: Path, tmp_path: Path) -> None:
    """In a container it may be, and there is more in a script than medkit's own commands."""
    pretend("sbatch", "17\n")
    for commands, code in (("medkit run pair | medkit run nosuch", 2), ("apptainer exec m.sif medkit run nosuch", 0)):
        done = here(f"ls scans/* | medkit submit slurm --shards 2 -o out -- '{commands}'")
        assert done.code == code
        assert ("nosuch" in done.err, (tmp_path / "out").exists()) == (code == 2, code == 0)


def test_a_folder_is_submitted_once(submitted: Shell, here: Shell, scans: Path) -> None:
    submitted("cat")
    again = here("ls scans/* | medkit submit slurm --shards 2 -o out -- cat")
    assert again.code == 2
    assert "was submitted before" in again.err


def test_again_with_another_scheduler(submitted: Shell, here: Shell, scans: Path) -> None:
    submitted("cat")
    again = here("medkit submit lsf -o out --only failed")
    assert again.code == 2
    assert "was submitted to slurm, not to lsf" in again.err


def test_names_that_hold_other_line_ends(submitted: Shell, here: Shell, blob: Make) -> None:
    blob("scans/a\x0bb\rc.nii.gz")
    blob("scans/d.nii.gz")
    submitted("medkit run pair")
    for k in (1, 2):
        assert here(f"bash out/shard.sh {k}").code == 0
    done = here("medkit status out")
    assert (done.code, "inputs: 2 done" in done.out) == (0, True)


def test_longer_than_arrays_may_be(here: Shell, pretend: Pretend, blob: Make) -> None:
    pretend("scontrol", "MaxArraySize            = 4\n")
    for name in "abcde":
        blob(f"scans/{name}.nii.gz")
    done = here("ls scans/* | medkit submit slurm --shards 5 --dry-run -o out -- cat")
    assert done.code == 2
    assert "arrays have at most 3 jobs" in done.err


def test_a_scheduler_that_refuses_can_be_asked_again(here: Shell, pretend: Pretend, scans: Path) -> None:
    pretend("sbatch", "error: invalid partition", code=1)
    line = "ls scans/* | medkit submit slurm --shards 2 -o out -- cat"
    done = here(line)
    assert done.code == 1
    assert "sbatch refused the job: error: invalid partition" in done.err
    pretend("sbatch", "17\n")
    assert here(line).out == "17\n"


def test_without_a_scheduler(shell: Shell, scans: Path, tmp_path: Path) -> None:
    done = shell("ls scans/* | medkit submit lsf --shards 2 -o out -- cat")
    assert done.code == 2
    assert "there is no bsub on this machine; --dry-run prints the scripts" in done.err
    assert not (tmp_path / "out").exists()
