"""The pictures of `--qc`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
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


def test_a_picture_of_another_result_is_never_replaced(toy: Run, scan: Make, tmp_path: Path) -> None:
    for n in (1, 2):
        scan(f"in{n}/a.nii.gz", seed=n)
    runs = [("in1", "o1"), ("in2", "o2"), ("in1", "o1")]
    seen = []
    for source, out in runs:
        done = toy("run", "double", tmp_path / source / "a.nii.gz", "-o", tmp_path / out, "--qc", tmp_path / "qc",
                   "--overwrite")  # fmt: skip
        assert done.code == 0
        seen.append({path.name: path.read_bytes() for path in (tmp_path / "qc").iterdir()})
    assert list(seen[0]) == ["a_double.png"]
    assert set(seen[1]) == {"a_double.png", "a_double_2.png"}
    assert seen[1]["a_double.png"] == seen[0]["a_double.png"] != seen[1]["a_double_2.png"]
    assert seen[2] == seen[1]


def test_pictures_of_others_stay(toy: Run, scan: Make, tmp_path: Path) -> None:
    (tmp_path / "qc").mkdir()
    (tmp_path / "qc/a_double.png").write_bytes(b"mine")
    done = toy("run", "double", scan("a.nii.gz"), "-o", tmp_path / "o", "--qc", tmp_path / "qc")
    assert (tmp_path / "qc/a_double.png").read_bytes() == b"mine"
    assert "a_double.png: shows another result; the picture of a_double.nii.gz is a_double_2.png" in done.err
    assert names(tmp_path / "qc") == ["a_double.png", "a_double_2.png"]


def test_a_picture_of_what_was_measured_of_a_transform(toy: Run, scan: Make, tmp_path: Path) -> None:
    from medkit.transforms.files import write_transform
    from medkit.transforms.transform import AffineTransform

    write_transform(AffineTransform(np.diag([1.1, 1, 1, 1])), tmp_path / "x.tfm")
    options = ("--qc", tmp_path / "qc", "-o", tmp_path / "o")
    done = toy("transform", "jacobian", tmp_path / "x.tfm", "--reference", scan("a.nii.gz"), *options)
    assert done.code == 0
    assert "no picture" not in done.err
    assert names(tmp_path / "qc") == ["x_jacobian.png"]


def test_a_task_without_pictures_says_so_once(toy: Run, blob: Make, tmp_path: Path) -> None:
    from medkit.run import pictures

    pictures._say_once.cache_clear()
    inputs = [blob(f"{name}.nii.gz") for name in "ab"]
    done = toy("run", "pair", *inputs, "--qc", tmp_path / "qc")
    assert done.code == 0
    assert done.err.count("--qc: pair draws no picture") == 1
    assert not (tmp_path / "qc").exists()
