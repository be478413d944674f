"""Runs killed at any moment: nothing torn under a final name, and a second run finishes the work."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medkit.pipe.names import sidecar_path
from medkit.pipe.records import read_sidecar, sha256_of

pytestmark = pytest.mark.slow

Shell = Callable[..., "Outcome"]  # noqa: F821
Start = Callable[..., "subprocess.Popen[str]"]
Make = Callable[..., Path]
CASES = 30
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""How bash ends when its command was killed: its own end where it has become the command."""


@pytest.fixture
def scans(scan: Make, tmp_path: Path) -> Path:
    """A folder of images, each with other content."""
    for n in range(CASES):
        scan(f"in/{n:02}.nii.gz", seed=n)
    return tmp_path / "in"


def check_whole(folder: Path) -> set[str]:
    """Asserts that no file under a final name is torn; gives the names of the finished cases' main outputs."""
    import nibabel as nib

    done = set()
    for path in folder.rglob("*"):
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.name.endswith(".nii.gz"):
            assert nib.load(path).get_fdata().size
        elif path.suffix == ".json":
            record = read_sidecar(path)
            assert record is not None, f"torn sidecar {path}"
            for entry in record.medkit["outputs"].values():
                assert sha256_of(Path(entry["path"])) == entry["sha256"]
            done.add(record.path.name)
        else:
            assert path.read_text().startswith("name\tvalue\n")
            assert path.read_text().endswith("\n")
    return done


def modified(folder: Path, mains: set[str]) -> dict[str, int]:
    """When the files of finished cases were last changed."""
    return {
        p.name: p.stat().st_mtime_ns
        for name in mains
        for p in (folder / name, sidecar_path(folder / name))
        if p.exists()
    }


def hidden(folder: Path) -> list[Path]:
    return [p for p in folder.rglob(".*") if p.is_file() or p.suffix == ".part"]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(start: Start, shell: Shell, scans: Path, tmp_path: Path, workers: int) -> None:
    inputs = sorted(scans.iterdir())
    generator = random.Random(workers)
    partial = 0
    for attempt in range(20 if workers == 0 else 6):
        out = tmp_path / f"o{attempt}"
        process = start("run", "pair", *inputs, "-o", out, "--workers", workers)
        assert process.stdout
        for _ in range(generator.randrange(CASES)):
            process.stdout.readline()
        time.sleep(generator.uniform(0, 0.01))  # a case takes about 5 ms
        process.kill()
        process.wait()
        time.sleep(0.3 if workers else 0)  # orphaned children finish the case they are at
        done = check_whole(out)
        partial += 0 < len(done) < CASES
        before = modified(out, done)
        again = shell(f"medkit run pair in/*.nii.gz -o {out} --skip-existing --json")
        assert again.code == 0, again.err
        assert {Path(r["path"]).name for r in again.records if r["medkit"]["skipped"]} == done
        assert len(check_whole(out)) == CASES
        assert modified(out, done) == before
        assert hidden(out) == []
    assert partial >= 3, "the moments were badly chosen"


@pytest.mark.parametrize("at", range(1, 9))
def test_killed_between_the_renames(shell: Shell, scan: Make, tmp_path: Path, at: int) -> None:
    """Each of two cases tries four renames: an old sidecar's (there is none), table, image, sidecar."""
    scan("a.nii.gz"), scan("b.nii.gz", seed=1)
    killed = shell(f"medkit run pair a.nii.gz b.nii.gz -o o --kill-at {at}")
    assert killed.code in KILLED
    done = check_whole(tmp_path / "o")
    assert len(done) == (at - 1) // 4
    again = shell("medkit run pair a.nii.gz b.nii.gz -o o --json" + (" --skip-existing" if at > 4 else ""))
    assert again.code == 0, again.err
    assert len(check_whole(tmp_path / "o")) == 2
    assert hidden(tmp_path / "o") == []


@pytest.mark.parametrize("second", ["--skip-existing --value 2", "--overwrite --value 2", "--overwrite --value 3"])
@pytest.mark.parametrize("at", range(1, 5))
def test_killed_while_overwriting(shell: Shell, scan: Make, tmp_path: Path, at: int, second: str) -> None:
    """Four renames: the old sidecar goes first."""
    scan("a.nii.gz")
    assert shell("medkit run pair a.nii.gz -o o --value 1").code == 0
    assert shell(f"medkit run pair a.nii.gz -o o --overwrite --value 2 --kill-at {at}").code in KILLED
    assert len(check_whole(tmp_path / "o")) == (at == 1)
    again = shell(f"medkit run pair a.nii.gz -o o {second}")
    assert again.code == 0, again.err
    assert len(check_whole(tmp_path / "o")) == 1
    assert f"\t{second[-1]}\n" in (tmp_path / "o/a_facts.tsv").read_text()
    assert hidden(tmp_path / "o") == []


@pytest.mark.parametrize("at", range(1, 5))
def test_killed_while_overwriting_what_another_source_made(shell: Shell, scan: Make, tmp_path: Path, at: int) -> None:
    """The old result comes back as far as it can, and is still protected."""
    scan("a/x.nii.gz"), scan("b/x.nii.gz", seed=1)
    assert shell("medkit run pair a/x.nii.gz -o o").code == 0
    assert shell(f"medkit run pair b/x.nii.gz -o o --overwrite --kill-at {at}").code in KILLED
    again = shell("medkit run pair b/x.nii.gz -o o --skip-existing")
    assert again.code == 1
    assert "was made from" in again.err
    assert shell("medkit run pair a/x.nii.gz -o o --skip-existing").code == 0
    assert len(check_whole(tmp_path / "o")) == 1
    assert hidden(tmp_path / "o") == []
