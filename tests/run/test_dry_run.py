"""`--dry-run`: what would happen, with nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from folders import names

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


@pytest.mark.parametrize("task", ["double", "halves"])
def test_a_dry_run_writes_nothing(toy: Run, scan: Make, tmp_path: Path, task: str) -> None:
    source = scan("a/sub-1_T1w.nii.gz")
    more = ["--qc", tmp_path / "qc", "--failed", tmp_path / "failed", "-o", tmp_path / "o"]
    done = toy("run", task, source, tmp_path / "missing.nii.gz", "--dry-run", *more)
    assert (done.code, done.out) == (1, "")
    assert f"would run {task} on {source} -> " in done.err
    assert ("about 8 MiB" in done.err) is (task == "double")
    assert "missing.nii.gz: no such file" in done.err
    assert names(tmp_path) == ["a/sub-1_T1w.nii.gz"]
    assert {p.name for p in tmp_path.iterdir()} == {"a"}


def test_a_dry_run_knows_of_existing_results(toy: Run, done_once: Path, tmp_path: Path) -> None:
    arguments = ("run", "pair", done_once, "-o", tmp_path / "o", "--dry-run")
    assert f"would fail: {done_once}: {tmp_path}/o/a_copy.nii.gz: exists already" in toy(*arguments).err
    assert toy(*arguments).code == 1
    kept = toy(*arguments, "--skip-existing")
    assert (kept.code, kept.err) == (0, f"would keep {tmp_path}/o/a_copy.nii.gz, {tmp_path}/o/a_facts.tsv\n")
    for more in (["--overwrite"], ["--skip-existing", "--value", "2"]):
        done = toy(*arguments, *more)
        assert done.code == 0
        assert done.err.startswith("would run pair on ")


# ---- records of what is planned: a pipe is foreseen stage by stage


@pytest.mark.parametrize(
    "pipe",
    [
        "medkit run double a.nii.gz b.nii.gz -o o --json {dry} | medkit run double --factor 3 --json {dry}",
        "medkit run align --reference a.nii.gz sub-1_T1w.nii.gz -o o --json {dry} | medkit run halves --json {dry}",
        # labels are no image: the third stage works on what they are made from, which only exists in the plan
        "medkit run double a.nii.gz --json {dry} | medkit run halves --json {dry} | medkit run measure --json {dry}",
    ],
)
def test_a_dry_run_foresees_a_pipe(shell: Run, scan: Make, tmp_path: Path, pipe: str) -> None:
    for number, name in enumerate(("a.nii.gz", "b.nii.gz", "sub-1_T1w.nii.gz")):
        scan(name, seed=number)
    plan = shell(pipe.format(dry="--dry-run"))
    assert plan.code == 0, plan.err
    assert not (tmp_path / "a_double.nii.gz").exists()
    assert not (tmp_path / "o").exists()
    done = shell(pipe.format(dry=""))
    assert done.code == 0, done.err
    assert len(plan.records) == len(done.records) >= 1
    for planned, made in zip(plan.records, done.records, strict=True):
        assert planned["medkit"]["status"] == "planned"
        assert {k: v["path"] for k, v in planned["medkit"]["outputs"].items()} == {
            k: v["path"] for k, v in made["medkit"]["outputs"].items()
        }
        assert [planned[key] for key in ("path", "kind", "Sources")] == [
            made[key] for key in ("path", "kind", "Sources")
        ]


def test_planned_kept_and_failed_cases_have_records(toy: Run, scan: Make, done_once: Path, tmp_path: Path) -> None:
    line = f'{{"path": "{scan("new.nii.gz")}", "my_id": 17}}\n'
    text = f"{line}{done_once}\n{tmp_path}/missing.nii.gz\n"
    done = toy("run", "pair", "-o", tmp_path / "o", "--skip-existing", "--dry-run", "--json", input=text)
    planned, kept, failed = done.records
    assert done.code == 1
    assert [r["medkit"]["status"] for r in done.records] == ["planned", "kept", "failed"]
    assert planned["my_id"] == 17
    assert planned["medkit"]["outputs"]["table"]["path"] == str(tmp_path / "o/new_facts.tsv")
    assert kept["path"] == str(tmp_path / "o/a_copy.nii.gz")
    assert "no such file" in failed["medkit"]["error"]
    after = toy("run", "measure", "-o", tmp_path / "t", "--dry-run", "--json", input=done.out)
    assert [r["medkit"]["status"] for r in after.records] == ["planned", "planned", "failed"]
    assert after.code == 1


def test_memory_is_in_the_record(toy: Run, scan: Make, tmp_path: Path) -> None:
    done = toy("run", "double", scan("a.nii.gz"), "--dry-run", "--json")
    assert done.records[0]["medkit"]["memory_mb"] == 8
    then = toy("run", "double", "--dry-run", "--json", input=done.out)
    assert "memory_mb" not in then.records[0]["medkit"]


def test_what_is_only_planned_is_not_worked_on(toy: Run, scan: Make, tmp_path: Path) -> None:
    plan = toy("run", "double", scan("a.nii.gz"), "--dry-run", "--json").out
    done = toy("run", "double", input=plan)
    assert done.code == 3
    assert "a_double.nii.gz: no such file; --dry-run only foresaw it" in done.err


def test_a_plan_says_which_results_are_in_the_way(toy: Run, scan: Make, tmp_path: Path) -> None:
    source = scan("a.nii.gz")
    chain = toy("run", "double", source, "-o", tmp_path / "o").out
    assert toy("run", "double", "-o", tmp_path / "o", input=chain).code == 0
    (tmp_path / "o/a_double.nii.gz").unlink()
    (tmp_path / "o/a_double.json").unlink()
    plan = toy("run", "double", source, "-o", tmp_path / "o", "--dry-run", "--json").out
    then = ("run", "double", "-o", tmp_path / "o", "--dry-run", "--json")
    assert "exists already" in toy(*then, input=plan).err
    again = toy(*then, "--skip-existing", input=plan)
    assert (again.code, again.records[0]["medkit"]["status"]) == (0, "planned")
