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
