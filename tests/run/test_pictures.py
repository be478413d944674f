"""The pictures of `--qc`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from folders import names

Run = Callable[..., "Outcome"]  # noqa: F821
Make = Callable[..., Path]


def test_pictures(toy: Run, scan: Make, tmp_path: Path) -> None:
    pytest.importorskip("medkit.figures.mosaic")
    for task in ("double", "halves"):
        done = toy("run", task, scan("x.nii.gz"), "--qc", tmp_path / "qc", "-o", tmp_path / "o")
        assert done.code == 0
        assert "no picture" not in done.err
    pictures = sorted((tmp_path / "qc").rglob("*"))
    assert [p.name for p in pictures] == ["x_double.png", "x_dseg.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)


def test_pictures_of_equal_names_are_kept_apart(toy: Run, scan: Make, tmp_path: Path) -> None:
    inputs = [scan(f"in/{n}/T1.nii.gz", seed=n) for n in (1, 2)]
    more = ["-o", tmp_path / "o", "--keep-tree", tmp_path / "in", "--qc", tmp_path / "qc"]
    assert toy("run", "double", *inputs, *more).code == 0
    assert len(list((tmp_path / "qc").rglob("*.png"))) == 2


def test_pictures_of_equal_names_without_an_output_folder(
    toy: Run, scan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "xy":
        scan(f"{name}/a.nii.gz")
    assert toy("run", "double", "x/a.nii.gz", "y/a.nii.gz", "--qc", "qc").code == 0
    assert names(tmp_path / "qc") == ["x/a_double.png", "y/a_double.png"]
