"""`medkit demo`, as the README's first command runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medkit.testing import run_medkit


@pytest.mark.slow
def test_the_demo_finds_the_truth(tmp_path: Path) -> None:
    pytest.importorskip("nilearn")
    folder = tmp_path / "demo"
    done = run_medkit(["demo", "-o", str(folder)])
    assert done.returncode == 0, done.stderr
    errors = re.findall(r"(\w+): ([\d.]+) mm from the truth before, ([\d.]+) mm after", done.stdout)
    assert [name for name, _, _ in errors] == ["anna", "ben"]
    assert all(float(before) > 10 and float(after) < 0.5 for _, before, after in errors)
    assert {p.name for p in (folder / "pictures").iterdir()} == {"anna_registered.png", "ben_registered.png"}
    assert "| medkit run register" in done.stdout

    again = run_medkit(["demo", "-o", str(folder)])
    assert again.returncode == 2
    assert "exists already" in again.stderr
