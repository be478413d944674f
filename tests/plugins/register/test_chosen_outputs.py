"""`medkit run register --outputs`: only these files are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from folders import names

Run = Callable[..., "Outcome"]  # noqa: F821


@pytest.fixture
def register(toy: Run, tmp_path: Path) -> Run:
    """Register a head of 5 mm with itself, a little shifted."""
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (32, 36, 30)], indexing="ij"))
    radius = (x**2 * np.array([1.6, 1.1, 1.3]).reshape(3, 1, 1, 1)).sum(0)
    head = np.where(radius < 0.7, 500 + 250 * np.sin(5 * x[0] + 1) * np.sin(6 * x[1]) * np.sin(4 * x[2]), 0)
    fixed, moving = tmp_path / "f.nii.gz", tmp_path / "m.nii.gz"
    for path, shift in ((fixed, 0), (moving, 4)):
        affine = np.diag([5.0, 5, 5, 1])
        affine[0, 3] = shift
        nibabel.Nifti1Image(head.astype(np.int16), affine).to_filename(path)

    def run(*words: object) -> Outcome:  # noqa: F821
        return toy(
            *("run", "register", "--fixed", fixed, moving, "-o", tmp_path / "out", "--json", *words),
            env={"TOY_PLUGINS": "medkit_register"},
        )

    return run


@pytest.mark.parametrize("kind", ["rigid", "deformable"])
def test_others_are_not_made(register: Run, tmp_path: Path, kind: str) -> None:
    done = register("--type", kind, "--quality", "fast", "--outputs", "image,transform")
    assert done.code == 0, done.err
    end = ".tfm" if kind == "rigid" else ".nii.gz"
    assert names(tmp_path / "out") == ["m_registered.json", "m_registered.nii.gz", f"m_transform{end}"]
    (record,) = done.records
    assert list(record["medkit"]["outputs"]) == ["image", "transform"]
    assert record["medkit"]["arguments"]["outputs"] == ["image", "transform"]
    assert "inverse_error_mm" not in record["medkit"]["metrics"]


def test_the_first_one_is_the_main_output(register: Run, tmp_path: Path) -> None:
    (record,) = register("--type", "rigid", "--outputs", "transform").records
    assert (record["kind"], Path(record["path"]).name) == ("transform", "m_transform.tfm")
    assert names(tmp_path / "out") == ["m_transform.json", "m_transform.tfm"]


@pytest.mark.parametrize("words", [("--outputs", "image,warp"), ("--outputs", "rigid_transform")])
def test_what_this_type_does_not_make_is_refused(register: Run, words: tuple[str, ...]) -> None:
    done = register("--type", "rigid", *words)
    assert done.code == 2
    assert "expected some of image, transform, inverse_transform" in done.err


def test_the_picture_says_what_is_what(monkeypatch: pytest.MonkeyPatch, register: Run, tmp_path: Path) -> None:
    titles = []
    monkeypatch.setattr(
        "medkit.figures.overlay_mosaic",
        lambda *_, title, **__: titles.append(title) or np.zeros((8, 8, 3), np.uint8),
    )
    (record,) = register("--type", "rigid", "--qc", tmp_path / "qc").records
    before, after = (record["medkit"]["metrics"][when]["ncc"] for when in ("before", "after"))
    assert titles == [f"m.nii.gz (outlines) on f.nii.gz (grey), rigid: correlation {before:.2f} to {after:.2f}"]
    assert after > before
