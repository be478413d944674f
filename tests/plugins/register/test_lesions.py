"""`medkit run register --lesion-mask`: what it names is left out of the comparison, alone or within a mask."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

Run = Callable[..., "Outcome"]  # noqa: F821
SHAPE = (40, 44, 36)


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], Path]:
    """Files of 4 mm: a head, the same one moved and with a bright lesion, and masks."""
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    radius = (x**2 * np.array([1.6, 1.1, 1.3]).reshape(3, 1, 1, 1)).sum(0)
    head = np.where(radius < 0.7, 500 + 250 * np.sin(5 * x[0] + 1) * np.sin(6 * x[1]) * np.sin(4 * x[2]), 0)
    lesion = ((x - np.array([0.3, 0.2, 0.1]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 0.08
    mask = radius < 0.9
    moved = np.diag([4.0, 4, 4, 1])
    moved[:3, 3] = (6, -5, 4)
    made = {
        "fixed": (head, np.diag([4.0, 4, 4, 1])),
        "moving": (np.where(lesion, 2500, head), moved),
        "lesion": (lesion, moved),
        "rest": (~lesion, moved),
        "mask": (mask, moved),
        "mask_without_lesion": (mask & ~lesion, moved),
        "fixed_lesion": (lesion, np.diag([4.0, 4, 4, 1])),
        "fixed_rest": (~lesion, np.diag([4.0, 4, 4, 1])),
        "everything": (np.ones(SHAPE), moved),
    }
    for name, (data, affine) in made.items():
        nibabel.Nifti1Image(data.astype(np.int16), affine).to_filename(tmp_path / f"{name}.nii.gz")
    return lambda name: tmp_path / f"{name}.nii.gz"


def transform_of(toy: Run, files: Callable[[str], Path], out: Path, *more: object, line: str | None = None) -> str:
    inputs = [] if line else [files("moving")]
    done = toy(
        *("run", "register", "--fixed", files("fixed"), "--type", "affine", *inputs, *more, "-o", out),
        input=line,
        env={"TOY_PLUGINS": "medkit_register"},
    )
    assert done.code == 0, done.err
    return (out / "moving_transform.tfm").read_text()


def test_a_lesion_is_left_out(toy: Run, files: Callable[[str], Path], tmp_path: Path) -> None:
    plain = transform_of(toy, files, tmp_path / "plain")
    rest = transform_of(toy, files, tmp_path / "rest", "--moving-mask", files("rest"))
    assert transform_of(toy, files, tmp_path / "lesion", "--lesion-mask", files("lesion")) == rest != plain
    line = json.dumps({"path": str(files("moving")), "inputs": {"lesion_mask": str(files("lesion"))}})
    assert transform_of(toy, files, tmp_path / "record", line=f"{line}\n") == rest
    inside = ("--moving-mask", files("mask"), "--lesion-mask", files("lesion"))
    within = transform_of(toy, files, tmp_path / "both", *inside)
    assert within == transform_of(toy, files, tmp_path / "within", "--moving-mask", files("mask_without_lesion"))


def test_a_lesion_of_the_fixed_image(toy: Run, files: Callable[[str], Path], tmp_path: Path) -> None:
    rest = transform_of(toy, files, tmp_path / "rest", "--fixed-mask", files("fixed_rest"))
    assert transform_of(toy, files, tmp_path / "lesion", "--fixed-lesion-mask", files("fixed_lesion")) == rest


def test_a_lesion_everywhere_is_refused(toy: Run, files: Callable[[str], Path]) -> None:
    done = toy(
        *("run", "register", "--fixed", files("fixed"), "--type", "rigid", files("moving")),
        *("--lesion-mask", files("everything")),
        env={"TOY_PLUGINS": "medkit_register"},
    )
    assert done.code == 3
    assert "everything.nii.gz: the lesion leaves nothing of the image to compare" in done.err
