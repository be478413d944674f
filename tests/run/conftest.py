"""Fixtures of the tests of `medkit.run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


@pytest.fixture
def done_once(toy: Run, blob: Make, tmp_path: Path) -> Path:
    """A case that was done, its output folder `o`."""
    source = blob("a.nii.gz")
    assert toy("run", "pair", source, "-o", tmp_path / "o").code == 0
    return source
