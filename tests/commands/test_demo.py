"""`medkit demo`, as the README's first command runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medkit.testing import run_medkit


@pytest.mark.slow
def test_the_tour_finds_the_truth_and_ends_with_a_page(tmp_path: Path) -> None:
    pytest.importorskip("nilearn")
    folder = tmp_path / "demo"
    done = run_medkit(["demo", "-o", str(folder)])
    assert done.returncode == 0, done.stderr
    errors = re.findall(r"(\w+): ([\d.]+) mm from the truth before, ([\d.]+) mm after", done.stdout)
    assert [name for name, _, _ in errors] == ["anna", "ben"]
    assert all(float(before) > 10 and float(after) < 0.5 for _, before, after in errors)
    assert re.findall(r"(\w+): 31 structures, left hippocampus", done.stdout) == ["anna", "ben"]
    assert "anna: contrast: T1 (confidence 0.9" in done.stdout
    assert "ben: no answer, as it is unlike the training images" in done.stdout
    commands = re.findall(r"^\$ .*medkit (?:run )?(\w+)", done.stdout, re.MULTILINE)
    assert commands == ["segment", "classify", "show", "report"]
    page = Path(done.stdout.splitlines()[-1])
    assert page == folder / "report.html"
    assert "6 cases: 0 failed, 1 to look at" in done.stderr
    assert page.stat().st_size > 1_000_000

    again = run_medkit(["demo", "-o", str(folder)])
    assert again.returncode == 2
    assert "exists already" in again.stderr
