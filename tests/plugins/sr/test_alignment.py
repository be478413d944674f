"""The registration that fusion starts in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from medkit_sr import alignment


def test_modules_of_the_working_directory_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("copyreg", "types", "medkit"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    done = alignment._medkit(["--version"])
    assert (done.returncode, done.stdout.split()[0]) == (0, "medkit"), done.stderr
    assert not (tmp_path / "ran").exists()
