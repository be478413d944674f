"""A full or read-only disk ends the run at the first case that meets it: all others would meet it too."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from planted import dicom_series
from waiting import leftovers

from medkit.errors import OutputError, no_room, reason_of

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


@pytest.mark.parametrize("more", [[], pytest.param(["--workers", 1], marks=pytest.mark.slow)])
def test_the_run_ends(toy: Run, blob: Make, tmp_path: Path, more: list[object]) -> None:
    names = [blob(f"{n}.nii.gz") for n in ("a", "full1", "full2", "b")]
    done = toy("run", "fragile", *names, "-o", tmp_path / "o", *more)
    assert done.code == 1
    assert [path.name for path in done.paths] == ["a_copy.nii.gz"]
    assert "full1.nii.gz" in done.err
    assert "No space left" in done.err
    assert f"(the results go to {tmp_path / 'o'})" in done.err, "the disk of the input is not meant"
    assert "the run ends" in done.err
    assert "full2" not in done.err
    assert leftovers(tmp_path) == []


def test_the_failure_of_an_earlier_stage_does_not_end_later_ones(toy: Run, blob: Make, tmp_path: Path) -> None:
    full, good = blob("full.nii.gz"), blob("a.nii.gz")
    text = toy("run", "fragile", full, "--json").out + f"{good}\n"
    done = toy("run", "fragile", "-o", tmp_path / "o", input=text)
    assert (done.code, [path.name for path in done.paths]) == (1, ["a_copy.nii.gz"])


def _write(number: int) -> None:
    try:
        raise OSError(number, "x")
    except OSError:
        raise OutputError("cannot be written") from None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_causes_are_found(number: int) -> None:
    with pytest.raises(OutputError) as caught:
        _write(number)
    assert no_room(caught.value)
    assert not no_room(OSError(errno.EACCES, "x"))


def test_the_reason_of_an_error_that_a_library_has_worded_is_the_systems() -> None:
    with pytest.raises(OSError, match="Traceback") as caught:
        raise OSError("With tag got exception: Traceback ...") from OSError(errno.ENOSPC, "No space left on device")
    assert reason_of(caught.value) == "No space left on device"


_FULL_MOUNT = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=16k tmpfs small && exec "$@"', "sh"]
_LOOKED_AT = ["sh", "-c", '"$@"; code=$?; find small; exit $code', "sh"]
"""Lists what lies on the small disk when the command has ended."""


@pytest.mark.parametrize("command", ["dicom convert", "deidentify"])
def test_a_full_disk_in_other_commands(shell_environment: dict[str, str], tmp_path: Path, command: str) -> None:
    (tmp_path / "small").mkdir()
    if subprocess.run([*_FULL_MOUNT, "true"], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    folder = dicom_series(tmp_path / "ct", np.random.default_rng(1).integers(-1000, 1000, (64, 64, 6)).astype(np.int16))
    line = [*_FULL_MOUNT, *_LOOKED_AT, sys.executable, "-m", "medkit", *command.split(), str(folder), "-o", "small/out"]
    done = subprocess.run(line, cwd=tmp_path, env=shell_environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "small\n"), "nothing is left, no empty folder either"
    assert done.stderr.count("No space left on device") == 1
    assert "small/out" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_limit_on_files_is_told_from_a_large_input(shell: Run, blob: Make, tmp_path: Path) -> None:
    blob("a.nii.gz", "a" * 20_000), blob("b.nii.gz")
    done = shell("ulimit -f 8; medkit run pair a.nii.gz b.nii.gz -o o")
    assert (done.code, [path.name for path in done.paths]) == (1, ["b_copy.nii.gz"])
    assert f"a.nii.gz: File too large (the results go to {tmp_path / 'o'})" in done.err
    assert leftovers(tmp_path) == []


def test_a_disk_that_is_really_full(blob: Make, scan: Make, shell_environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs small && exec "$@"', "sh"]
    if subprocess.run([*mount, "true"], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    names = [str(blob(f"{n}.nii.gz", str(n) * 20_000)) for n in range(8)]
    command = [*mount, sys.executable, "-m", "toy", "run", "pair", *names, "-o", "small"]
    done = subprocess.run(command, cwd=tmp_path, env=shell_environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert 1 <= len(done.stdout.splitlines()) <= 3
    assert done.stderr.count("No space left on device") == 2  # the case, and once more in the list of failures
